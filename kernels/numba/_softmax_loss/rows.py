"""The loss of rows whose classes are contiguous, see _rows.py."""

import math

from .._class_loss import grad_scale_of, smoothing
from .._jit_options import internal
from .._math import (
    add_fast,
    add_in_any_order,
    cast,
    constants,
    exp_from,
    mul_add,
    no_inline,
    reference,
)
from .._panels import rows_of_task
from .._rows import (
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
from .._storage import narrow, stack_scratch, stream_end, widen
from .loss_transform import transform_loss, weighted

SEARCHED = 256  # elements in which a maximum is looked for at once


@internal
def target_terms(x, t, w, scales, row_max):
    """q * (row_max - x), and the part of q that is the target's; `scales` of `smoothing`."""
    target_scale, uniform_share = scales
    prob = target_scale * t
    q = (uniform_share + prob) * w
    return constants(x).zero if q == constants(x).zero else q * (row_max - x), prob * w


@internal
def target_sums(x, t, weight, options, row_max):
    """sum(q * (row_max - x)) and sum(q) over all classes, without the part of a class index."""
    no_inline()
    scales, zero = smoothing(row_max, options), constants(row_max).zero
    losses, loss_errors = lane_sums(stack_scratch(x, SUMS))
    probs, prob_errors = lane_sums(stack_scratch(x, SUMS))
    whole = x.size // LANES * LANES
    for at in range(0, whole, LANES):
        u, w, v = x[at : at + LANES], weight[at : at + LANES], t[at : at + LANES]
        if not t.size:
            for i in range(LANES):
                loss, _ = target_terms(widen(u[i]), zero, w[i], scales, row_max)
                losses[i], loss_errors[i] = add_fast(losses[i], loss_errors[i], loss)
        else:
            for i in range(LANES):
                loss, prob = target_terms(widen(u[i]), widen(v[i]), w[i], scales, row_max)
                losses[i], loss_errors[i] = add_fast(losses[i], loss_errors[i], loss)
                probs[i], prob_errors[i] = add_fast(probs[i], prob_errors[i], prob)
    for i in range(x.size - whole):
        k = whole + i
        target_prob = widen(t[k]) if t.size else zero
        loss, prob = target_terms(widen(x[k]), target_prob, weight[k], scales, row_max)
        losses[i], loss_errors[i] = add_fast(losses[i], loss_errors[i], loss)
        probs[i], prob_errors[i] = add_fast(probs[i], prob_errors[i], prob)
    total = options.uniform_total + sum_of_lanes(probs, prob_errors)
    return sum_of_lanes(losses, loss_errors), total


@internal
def gap_term(x, base, row_max):
    """e * (row_max - x), e being proportional to p; at -inf, too."""
    t = constants(x)
    e = exp_from(x, base) * t.down
    return t.zero if e == t.zero else e * (row_max - x)


@internal
def row_mean_gap(x, row_max, sumexp_m1):
    """sum(p * (row_max - x)): the entropy without the log-sum. All terms are at least 0."""
    no_inline()
    base, ratio = reference(row_max)
    totals, errors = lane_sums(stack_scratch(x, SUMS))
    whole = x.size // LANES * LANES
    for at in range(0, whole, LANES):
        u = x[at : at + LANES]
        for i in range(LANES):
            totals[i], errors[i] = add_fast(
                totals[i], errors[i], gap_term(widen(u[i]), base, row_max)
            )
    for i in range(x.size - whole):
        term = gap_term(widen(x[whole + i]), base, row_max)
        totals[i], errors[i] = add_fast(totals[i], errors[i], term)
    return sum_of_lanes(totals, errors) * (ratio / constants(row_max).down) / (1 + sumexp_m1)


@internal
def place_of(x, row_max):
    """The first index of the maximum of a row; -1 if nothing equals it."""
    no_inline()
    t = constants(row_max)
    for at in range(0, x.size, SEARCHED):
        u = x[at : at + SEARCHED]
        found = t.zero
        for i in range(u.size):
            found = add_in_any_order(found, t.one if widen(u[i]) == row_max else t.zero)
        if found != t.zero:
            for i in range(u.size):
                if widen(u[i]) == row_max:
                    return at + i
    return -1


@row_writer
@internal
def _write_kept(k, inputs, scale):
    """From exponentials that were kept."""
    return scale * (inputs[0][k] * constants(scale).down)


@row_writer
@internal
def _write_plain(k, inputs, arguments):
    """For q that is 0 everywhere but at a class index."""
    base, scale = arguments
    # Apart from `down`, for the product of the two might be subnormal.
    return scale * (exp_from(widen(inputs[0][k]), base) * constants(scale).down)


@row_writer
@internal
def _write_smooth(k, inputs, arguments):
    """With label smoothing."""
    (x, weight), (base, scale, minus_g, _, uniform_share) = inputs, arguments
    value = scale * (exp_from(widen(x[k]), base) * constants(scale).down)
    return mul_add(minus_g, uniform_share * weight[k], value)


@row_writer
@internal
def _write_probable(k, inputs, arguments):
    """With probabilities `t`."""
    (x, weight, t), (base, scale, minus_g, target_scale, uniform_share) = inputs, arguments
    value = scale * (exp_from(widen(x[k]), base) * constants(scale).down)
    return mul_add(minus_g, mul_add(target_scale, widen(t[k]), uniform_share) * weight[k], value)


@row_writer
@internal
def _write_entropic(k, inputs, arguments):
    """With an entropy in the loss."""
    base, scale, gap_scale, row_max = arguments
    x, t = widen(inputs[0][k]), constants(scale)
    e = exp_from(x, base) * t.down
    value = scale * e
    return value if e == t.zero else value - gap_scale * (row_max - x) * e


@internal
def row_gradient(x, t, grad, weight, options, row_max, exp_factor, grad_scale, gap_factor, exps):
    """grad = (exp_factor - gap_factor * (row_max - x)) * exp(x - row_max) - grad_scale * q, without
    the part of a class index; `gap_factor` is for an entropy in the loss.

    `exps` holds the row's exponentials, or is empty.
    """
    (base, ratio), streaming = reference(row_max), options.streaming
    scale = cast(row_max, exp_factor * (ratio / constants(row_max).down))
    if options.transform.beta != 0:
        gap_scale = cast(row_max, gap_factor * (ratio / constants(row_max).down))
        _write_entropic((x,), (base, scale, gap_scale, row_max), grad, streaming)
    elif exps.size:
        _write_kept((exps,), scale, grad, streaming)
    elif options.every_class:
        target_scale, uniform_share = smoothing(row_max, options)
        arguments = base, scale, cast(row_max, -grad_scale), target_scale, uniform_share
        if t.size:
            _write_probable((x, weight, t), arguments, grad, streaming)
        else:
            _write_smooth((x, weight), arguments, grad, streaming)
    else:
        _write_plain((x,), (base, scale), grad, streaming)


@internal
def row_loss(x, t, grad, rows, options, r, memory, exps):
    """Loss of row r, and its gradient unless `grad` is empty."""
    label = rows.labels[r] if rows.labels.size else -1
    if rows.labels.size and label == options.ignore_index:
        if rows.loss.size:
            rows.loss[r] = 0 / options.denominator  # NaN for the mean over no row
        if rows.lse.size:
            rows.lse[r] = math.nan
        grad[:] = 0  # also the bits of a half float
        return 0.0
    label_weight = 0.0
    if label >= 0:
        label_weight = float(rows.weight[label]) if rows.weight.size else 1.0
    weight = options.target_scale * label_weight
    row_max, sumexp_m1 = row_state(x, memory, exps)
    log_sum = log_total(row_max, sumexp_m1)
    lse = row_max + log_sum
    loss, total, gap, at_label = 0.0, 0.0, 0.0, 0.0
    if options.every_class:
        loss, total = target_sums(x, t, rows.weight, options, row_max)
    if label >= 0:
        gap = float(row_max) - float(widen(x[label]))
        total += weight
        if weight != 0:  # a class of weight 0 adds nothing, even at -inf
            loss += weight * gap
    loss += total * log_sum + options.z_loss * lse * lse
    p_label, mean_gap, gap_factor, transform = 0.0, 0.0, 0.0, options.transform
    if transform.active and label >= 0:
        x_label, valid = float(widen(x[label])), log_sum - log_sum
        value, factor, p_label = transform_loss(transform, float(row_max), x_label, sumexp_m1)
        loss, weight = weighted(weight, value, valid), weighted(weight, factor, valid)
        total = weight
    if transform.beta != 0:
        mean_gap = row_mean_gap(x, row_max, sumexp_m1)
        loss -= transform.beta * (log_sum + mean_gap)
    if rows.loss.size:
        rows.loss[r] = loss / options.denominator
    if rows.lse.size:
        rows.lse[r] = row_max + math.log1p(sumexp_m1)  # infinite where the maximum is
    if rows.row_max.size:
        rows.row_max[r], rows.sumexp_m1[r] = row_max, sumexp_m1
    if not grad.size:
        return loss

    grad_scale = grad_scale_of(rows, options, r)
    p_factor = total + 2 * options.z_loss * lse
    max_prob = math.nan if math.isinf(row_max) else 1 / (1 + sumexp_m1)
    if t.size and sumexp_m1 < 0.5:  # only the maximum can have such a p
        label = place_of(x, row_max)
        label_weight = float(rows.weight[label])
        weight = options.target_scale * float(widen(t[label])) * label_weight
    if label >= 0:  # p - 1 by expm1: nothing cancels where p is nearly 1
        p_m1 = math.expm1(-gap - log_sum)
        weight += options.uniform_share * label_weight
        others = (total - weight) + 2 * options.z_loss * lse  # p_factor - weight, but more exact
        # 1 + p_m1 has an error of 1e-16, and p may be far less.
        p = 1 + p_m1 if others == 0 or p_m1 > -0.5 else math.exp(-gap - log_sum)
        at_label = grad_scale * (weight * p_m1 + others * p)
    if transform.beta != 0:  # log p + entropy = mean_gap - gap
        if p_label != 0:
            at_label += grad_scale * transform.beta * p_label * (mean_gap - gap)
        p_factor += transform.beta * mean_gap
        gap_factor = grad_scale * transform.beta * max_prob
    exp_factor = grad_scale * p_factor * max_prob
    row_gradient(
        x, t, grad, rows.weight, options, row_max, exp_factor, grad_scale, gap_factor, exps
    )
    if label >= 0:
        grad[label] = narrow(cast(row_max, at_label), grad)
    return loss


@internal
def rows_loss(x, target, grad, rows, options, outer, n, task):
    """The sum of the losses of some rows."""
    memory = stack_scratch(x.data, BLOCK)
    keeps_exps = grad.data.size and n <= BLOCK and not options.every_class
    exps = stack_scratch(x.data, BLOCK)[: n if keeps_exps else 0]
    loss = 0.0
    for r in rows_of_task(outer, n, task):
        t, g = row_of(target, r, n), row_of(grad, r, n)  # or empty
        loss += row_loss(row_of(x, r, n), t, g, rows, options, r, memory, exps)
    if options.streaming:
        stream_end()
    return loss
