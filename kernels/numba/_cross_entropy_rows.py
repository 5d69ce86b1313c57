"""Cross-entropy of rows whose classes are contiguous, see _rows.py and cross_entropy.py."""

import math

from ._curves import bend, times
from ._math import add_fast, apart, cast, constants, exp_from, mul_add, reference
from ._panels import rows_per_task
from ._parts import inner
from ._rows import (
    BLOCK,
    LANES,
    SUMS,
    lane_sums,
    log_total,
    row_of,
    row_state,
    row_writer,
    sum_of_lanes,
)
from ._storage import narrow, stack_scratch, stream_end, widen


@inner
def cost_terms(x, t, w, hard, soft, top):
    """q * (top - x), and the part of q that is the target's."""
    part = hard * t
    q = (soft + part) * w
    return constants(x).zero if q == constants(x).zero else q * (top - x), part * w


@inner
def row_cost(x, t, weight, options, row_top):
    """sum(q * (top - x)) and sum(q) over all classes, without the part of a class index."""
    apart()
    hard, soft = cast(row_top, options.hard), cast(row_top, options.soft)
    zero = constants(row_top).zero
    costs, cost_errors = lane_sums(stack_scratch(x, SUMS))
    parts, part_errors = lane_sums(stack_scratch(x, SUMS))
    whole = x.size // LANES * LANES
    for at in range(0, whole, LANES):
        u, w, v = x[at : at + LANES], weight[at : at + LANES], t[at : at + LANES]
        if not t.size:
            for i in range(LANES):
                cost, _ = cost_terms(widen(u[i]), zero, w[i], hard, soft, row_top)
                costs[i], cost_errors[i] = add_fast(costs[i], cost_errors[i], cost)
        else:
            for i in range(LANES):
                cost, part = cost_terms(widen(u[i]), widen(v[i]), w[i], hard, soft, row_top)
                costs[i], cost_errors[i] = add_fast(costs[i], cost_errors[i], cost)
                parts[i], part_errors[i] = add_fast(parts[i], part_errors[i], part)
    for i in range(x.size - whole):
        k = whole + i
        wanted = widen(t[k]) if t.size else zero
        cost, part = cost_terms(widen(x[k]), wanted, weight[k], hard, soft, row_top)
        costs[i], cost_errors[i] = add_fast(costs[i], cost_errors[i], cost)
        parts[i], part_errors[i] = add_fast(parts[i], part_errors[i], part)
    return sum_of_lanes(costs, cost_errors), options.soft_total + sum_of_lanes(parts, part_errors)


@inner
def gap_term(x, base, top):
    """e * (top - x), e being proportional to p; at -inf, too."""
    t = constants(x)
    e = exp_from(x, base) * t.down
    return t.zero if e == t.zero else e * (top - x)


@inner
def row_mean_gap(x, top, rest):
    """sum(p * (top - x)): the entropy without the log-sum. All terms are at least 0."""
    apart()
    base, ratio = reference(top)
    totals, errors = lane_sums(stack_scratch(x, SUMS))
    whole = x.size // LANES * LANES
    for at in range(0, whole, LANES):
        u = x[at : at + LANES]
        for i in range(LANES):
            totals[i], errors[i] = add_fast(totals[i], errors[i], gap_term(widen(u[i]), base, top))
    for i in range(x.size - whole):
        term = gap_term(widen(x[whole + i]), base, top)
        totals[i], errors[i] = add_fast(totals[i], errors[i], term)
    return sum_of_lanes(totals, errors) * (ratio / constants(top).down) / (1 + rest)


@row_writer
@inner
def _write_kept(k, inputs, scale):
    """From exponentials that were kept."""
    return scale * (inputs[0][k] * constants(scale).down)


@row_writer
@inner
def _write_plain(k, inputs, arguments):
    """For q that is 0 everywhere but at a class index."""
    base, scale = arguments
    # Apart from `down`, for the product of the two might be subnormal.
    return scale * (exp_from(widen(inputs[0][k]), base) * constants(scale).down)


@row_writer
@inner
def _write_smooth(k, inputs, arguments):
    """With label smoothing."""
    (x, weight), (base, scale, minus_g, _, soft) = inputs, arguments
    value = scale * (exp_from(widen(x[k]), base) * constants(scale).down)
    return mul_add(minus_g, soft * weight[k], value)


@row_writer
@inner
def _write_probable(k, inputs, arguments):
    """With probabilities `t`."""
    (x, weight, t), (base, scale, minus_g, hard, soft) = inputs, arguments
    value = scale * (exp_from(widen(x[k]), base) * constants(scale).down)
    return mul_add(minus_g, mul_add(hard, widen(t[k]), soft) * weight[k], value)


@row_writer
@inner
def _write_entropic(k, inputs, arguments):
    """With the entropy of a curve."""
    base, scale, gap_scale, top = arguments
    x, t = widen(inputs[0][k]), constants(scale)
    e = exp_from(x, base) * t.down
    value = scale * e
    return value if e == t.zero else value - gap_scale * (top - x) * e


@inner
def row_gradient(x, t, grad, weight, options, top, slope, upstream, gap_slope, exps, streaming):
    """grad = (slope - gap_slope * (top - x)) * exp(x - top) - upstream * q, without the part of a
    class index; `gap_slope` is for the entropy of a curve.

    `exps` holds the row's exponentials, or is empty.
    """
    base, ratio = reference(top)
    scale = cast(top, slope * (ratio / constants(top).down))
    if options.curve.beta != 0:
        gap_scale = cast(top, gap_slope * (ratio / constants(top).down))
        _write_entropic((x,), (base, scale, gap_scale, top), grad, streaming)
    elif exps.size:
        _write_kept((exps,), scale, grad, streaming)
    elif options.every_class:
        minus_g, hard, soft = cast(top, -upstream), cast(top, options.hard), cast(top, options.soft)
        arguments = base, scale, minus_g, hard, soft
        if t.size:
            _write_probable((x, weight, t), arguments, grad, streaming)
        else:
            _write_smooth((x, weight), arguments, grad, streaming)
    else:
        _write_plain((x,), (base, scale), grad, streaming)


@inner
def cross_entropy_row(x, t, grad, rows, options, r, memory, exps):
    """Loss of row r, and its gradient unless `grad` is empty."""
    label = rows.labels[r] if rows.labels.size else -1
    if rows.labels.size and label == options.ignore_index:
        if rows.loss.size:
            rows.loss[r] = 0 / options.denominator  # NaN for the mean over no row
        if rows.lse.size:
            rows.lse[r] = 0
        grad[:] = 0  # also the bits of a half float
        return 0.0
    label_weight = 0.0
    if label >= 0:
        label_weight = float(rows.weight[label]) if rows.weight.size else 1.0
    weight = options.hard * label_weight
    if rows.given_lse.size:
        top, rest = rows.given_lse[r], 0.0
    else:
        top, rest = row_state(x, memory, exps)
    log_sum = log_total(top, rest)
    lse = top + log_sum
    loss, total, gap, value = 0.0, 0.0, 0.0, 0.0
    if options.every_class:
        loss, total = row_cost(x, t, rows.weight, options, top)
    if label >= 0:
        gap = float(top) - float(widen(x[label]))
        total += weight
        if weight != 0:  # a class of weight 0 costs nothing, even at -inf
            loss += weight * gap
    loss += total * log_sum + options.z_loss * lse * lse
    p_label, mean_gap, gap_slope, curve = 0.0, 0.0, 0.0, options.curve
    if curve.bends and label >= 0:
        bent, slope, p_label = bend(curve, float(top), float(widen(x[label])), rest)
        loss = times(weight, bent, log_sum - log_sum)
        weight = times(weight, slope, log_sum - log_sum)
        total = weight
    if curve.beta != 0:
        mean_gap = row_mean_gap(x, top, rest)
        loss -= curve.beta * (log_sum + mean_gap)
    if rows.loss.size:
        rows.loss[r] = loss / options.denominator
    if rows.lse.size:
        rows.lse[r] = lse
    if not grad.size:
        return loss

    upstream = 1.0
    if rows.upstream.size:
        upstream = float(rows.upstream[r if rows.upstream.size > 1 else 0])
    upstream /= options.denominator
    pull = total + 2 * options.z_loss * lse
    share = math.nan if math.isinf(top) else 1 / (1 + rest)
    if label >= 0:  # p - 1 by expm1: nothing cancels where p is nearly 1
        below = math.expm1(-gap - log_sum)
        weight += options.soft * label_weight
        value = upstream * (weight * below + (pull - weight) * (1 + below))
    if curve.beta != 0:  # log p + entropy = mean_gap - gap
        if p_label != 0:
            value += upstream * curve.beta * p_label * (mean_gap - gap)
        pull += curve.beta * mean_gap
        gap_slope = upstream * curve.beta * share
    no_exps = exps[: 0 if rows.given_lse.size else exps.size]
    row_gradient(
        x, t, grad, rows.weight, options, top, upstream * pull * share, upstream, gap_slope,
        no_exps, options.streaming,
    )  # fmt: skip
    if label >= 0:
        grad[label] = narrow(cast(top, value), grad)
    return loss


@inner
def rows_task(x, target, grad, rows, options, outer, n, task):
    """The sum of the losses of some rows."""
    memory = stack_scratch(x.data, BLOCK)
    keeps_exps = grad.data.size and n <= BLOCK and not options.every_class
    exps = stack_scratch(x.data, BLOCK)[: n if keeps_exps else 0]
    loss = 0.0
    for r in range(task * rows_per_task(n), min(outer, (task + 1) * rows_per_task(n))):
        t, g = row_of(target, r, n), row_of(grad, r, n)  # of nothing, nothing
        loss += cross_entropy_row(row_of(x, r, n), t, g, rows, options, r, memory, exps)
    if options.streaming:
        stream_end()
    return loss
