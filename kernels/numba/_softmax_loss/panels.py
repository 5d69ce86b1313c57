"""The loss of rows that lie side by side, see _panels.py.

Each lane is a row, computed as row_loss in rows.py computes one.
"""

from typing import NamedTuple

import numpy as np

from .._class_loss import smoothing
from .._jit_options import internal
from .._math import add_compensated, cast, compensated, constants, exp_between, exp_sub, mul_add
from .._panels import (
    CLASSES,
    PANEL,
    TILE,
    column,
    column_bounds,
    line_of,
    load_tile,
    max_prob_of,
    panel_place,
    panel_rows,
    panel_scratch,
    panel_state,
    panels_of_task,
    put_log_sums,
    store_tile,
)
from .._storage import narrow, stack_doubles, stack_like, widen
from .loss_transform import transform_loss, weighted

WORK = 8 * PANEL


class Panel(NamedTuple):
    """Numbers for each row of a panel, of the compute dtype where no other is given. A loop reads
    local names: an attribute in it counts references, and the loop is not vectorised.
    """

    row_max: np.ndarray
    sumexp_m1: np.ndarray  # float64
    log_sums: np.ndarray  # log(1 + sumexp_m1)
    kept: np.ndarray  # 1, or 0 where the row is ignored
    picked: np.ndarray  # x at the label, then the gradient there
    weights: np.ndarray  # of the label
    losses: np.ndarray  # float64
    totals: np.ndarray  # float64: sum(q)
    grad_scales: np.ndarray
    exp_factors: np.ndarray  # as exp_factor of row_gradient in rows.py
    mean_gaps: np.ndarray  # row_mean_gap, for an entropy in the loss
    gap_factors: np.ndarray  # as gap_factor there


@internal
def gather(x, place, rows, options, first, width, p):
    """kept, picked and weights of each row."""
    at, class_step, row_step = place
    kept, picked, weights = p.kept, p.picked, p.weights
    t = constants(kept[0])
    for c in range(PANEL):
        kept[c], picked[c], weights[c] = t.one if c < width else t.zero, t.zero, t.zero
    if not rows.labels.size:
        return
    for c in range(width):
        label = rows.labels[first + c]
        if label == options.ignore_index:
            kept[c] = t.zero
        else:
            picked[c] = widen(x.data[at + label * class_step + c * row_step])
            weights[c] = rows.weight[label] if rows.weight.size else t.one


@internal
def panel_target_sums(x, place, target, target_place, n, width, rows, options, p, tiles):
    """target_sums of each row, in losses and totals."""
    tile, target_tile = tiles
    row_max, losses, totals = p.row_max, p.losses, p.totals
    zero = constants(tile[0]).zero
    target_scale, uniform_share = smoothing(zero, options)
    zeros = np.zeros(PANEL, tile.dtype)
    sums, errors, probs, prob_errors = zeros, zeros.copy(), zeros.copy(), zeros.copy()
    for first in range(0, n, CLASSES):
        count = min(CLASSES, n - first)
        load_tile(x.data, place, first, count, width, tile)
        if target.data.size:
            load_tile(target.data, target_place, first, count, width, target_tile)
        for k in range(count):
            weight = rows.weight[first + k]
            line, target_prob = line_of(tile, k), line_of(target_tile, k)
            for c in range(PANEL):
                prob = target_scale * target_prob[c]
                q = (uniform_share + prob) * weight
                loss = zero if q == zero else q * (row_max[c] - line[c])
                sums[c], errors[c] = add_compensated(sums[c], errors[c], loss)
                probs[c], prob_errors[c] = add_compensated(probs[c], prob_errors[c], prob * weight)
    for c in range(PANEL):
        losses[c] = compensated(sums[c], errors[c])
        totals[c] = options.uniform_total + compensated(probs[c], prob_errors[c])


@internal
def panel_mean_gap(x, place, n, width, p, tile, work):
    """row_mean_gap of each row."""
    t, row_max, sumexp_m1, mean_gaps = constants(tile[0]), p.row_max, p.sumexp_m1, p.mean_gaps
    ms, lows, totals, errors = column(work, 0), column(work, 1), column(work, 2), column(work, 3)
    column_bounds(row_max, ms, lows)
    totals[:] = t.zero
    errors[:] = t.zero
    for first in range(0, n, CLASSES):
        count = min(CLASSES, n - first)
        load_tile(x.data, place, first, count, width, tile)
        for k in range(count):
            line = line_of(tile, k)
            for c in range(PANEL):
                e = exp_between(line[c], ms[c], lows[c])
                term = t.zero if e == t.zero else e * (row_max[c] - line[c])
                totals[c], errors[c] = add_compensated(totals[c], errors[c], term)
    for c in range(PANEL):
        max_prob = max_prob_of(row_max[c], sumexp_m1[c])
        mean_gaps[c] = compensated(totals[c], errors[c]) * max_prob


@internal
def transform_panel(transform, width, p):
    """The transformed losses, and in weights and totals the factor of the gradient."""
    picked, weights, losses, totals = p.picked, p.weights, p.losses, p.totals
    row_max, sumexp_m1, log_sums, mean_gaps = p.row_max, p.sumexp_m1, p.log_sums, p.mean_gaps
    for c in range(width):
        log_sum = np.float64(log_sums[c])
        weight, valid = np.float64(weights[c]), log_sum - log_sum
        m, x_label = np.float64(row_max[c]), np.float64(picked[c])
        loss, factor, _ = transform_loss(transform, m, x_label, sumexp_m1[c])
        losses[c] = weighted(weight, loss, valid)
        totals[c] = weighted(weight, factor, valid)
        weights[c] = cast(weights[c], totals[c])
        if transform.beta != 0:
            losses[c] -= transform.beta * (log_sum + np.float64(mean_gaps[c]))


@internal
def panel_losses(rows, options, first, width, p):
    """The losses and lse of a panel, and the sum of the losses."""
    row_max, sumexp_m1, log_sums, kept = p.row_max, p.sumexp_m1, p.log_sums, p.kept
    picked, weights, losses, totals = p.picked, p.weights, p.losses, p.totals
    put_log_sums(row_max, sumexp_m1, log_sums)
    for c in range(PANEL):
        log_sum = np.float64(log_sums[c])
        lse = row_max[c] + log_sum
        weight = options.target_scale * np.float64(weights[c])
        total = totals[c] + weight
        # A class of weight 0 adds nothing, even at -inf.
        gap = np.float64(row_max[c] - picked[c])
        loss = losses[c] + (0.0 if weight == 0.0 else weight * gap)
        loss += total * log_sum + options.z_loss * lse * lse
        losses[c] = loss if kept[c] != 0 else 0.0
        totals[c] = total
    if options.transform.active:
        transform_panel(options.transform, width, p)
        for c in range(width):
            losses[c] = losses[c] if kept[c] != 0 else 0.0
    loss_sum = 0.0
    for c in range(width):
        loss_sum += losses[c]
    if rows.loss.size:
        for c in range(width):
            rows.loss[first + c] = losses[c] / options.denominator
    if rows.lse.size:
        for c in range(width):
            m = row_max[c]
            infinite = np.isinf(m) and sumexp_m1[c] == sumexp_m1[c]  # whose log-sum is NaN
            lse = m if infinite else m + log_sums[c]
            rows.lse[first + c] = lse if kept[c] != 0 else cast(m, np.nan)
    if rows.row_max.size:
        for c in range(width):
            rows.row_max[first + c], rows.sumexp_m1[first + c] = row_max[c], sumexp_m1[c]
    return loss_sum


@internal
def panel_factors(rows, options, first, width, p):
    """The factors of a panel's gradient, and in `picked` the gradient at the labels.

    With probabilities `picked` is the maximum of a row of which p is nearly 1, else NaN; and
    weights, mean_gaps, gap_factors and log_sums have what the gradient there is made of.
    """
    row_max, sumexp_m1, log_sums, picked = p.row_max, p.sumexp_m1, p.log_sums, p.picked
    weights, totals, grad_scales = p.weights, p.totals, p.grad_scales
    exp_factors, mean_gaps, gap_factors = p.exp_factors, p.mean_gaps, p.gap_factors
    t = constants(row_max[0])
    beta = cast(t.one, options.transform.beta)
    grad_scales[:] = cast(t.one, 1 / options.denominator)
    given = rows.grad_loss
    if given.size:
        for c in range(width):
            value = np.float64(given[first + c if given.size > 1 else 0])
            grad_scales[c] = cast(t.one, value / options.denominator)
    (target_scale, uniform_share), z2 = smoothing(t.one, options), 2 * options.z_loss
    for c in range(PANEL):
        g, m, s = grad_scales[c], row_max[c], cast(t.one, sumexp_m1[c])
        p_factor = cast(t.one, totals[c] + z2 * np.float64(m + log_sums[c]))
        max_prob = max_prob_of(m, sumexp_m1[c])
        # p and p - 1 at the label, the latter without cancellation where p is nearly 1
        prob = exp_sub(picked[c], m) * max_prob
        prob_m1 = -s * max_prob if picked[c] == m else prob - t.one
        weight = (target_scale + uniform_share) * weights[c]
        at_label = g * (weight * prob_m1 + (p_factor - weight) * prob)
        if beta != t.zero:  # log p + entropy = mean_gap - gap
            more = g * beta * prob * (mean_gaps[c] - (m - picked[c]))
            at_label += t.zero if prob == t.zero else more
            gap_factors[c] = g * beta * max_prob
            p_factor += beta * mean_gaps[c]
        picked[c] = at_label
        if options.every_class and not rows.labels.size:
            picked[c] = m if sumexp_m1[c] < 0.5 else cast(m, np.nan)
            weights[c], mean_gaps[c] = g * max_prob, cast(m, totals[c])
            gap_factors[c] = g * max_prob * s
            lse = np.float64(m + log_sums[c])
            log_sums[c] = g * max_prob * cast(m, z2 * lse)
        exp_factors[c] = g * p_factor * max_prob


@internal
def panel_gradient(
    x, place, target, target_place, grad, grad_place, n, width, rows, options, p, tiles, has_exps,
    work,
):  # fmt: skip
    """Writes the gradient but for the part of a class index."""
    tile, target_tile = tiles
    row_max, log_sums, kept, picked = p.row_max, p.log_sums, p.kept, p.picked
    weights, grad_scales, exp_factors = p.weights, p.grad_scales, p.exp_factors
    mean_gaps, gap_factors = p.mean_gaps, p.gap_factors
    ms, lows = column(work, 0), column(work, 1)
    column_bounds(row_max, ms, lows)
    zero = constants(tile[0]).zero
    target_scale, uniform_share = smoothing(zero, options)
    for first in range(0, n, CLASSES):
        count = min(CLASSES, n - first)
        if not has_exps:
            load_tile(x.data, place, first, count, width, tile)
        if target.data.size:
            load_tile(target.data, target_place, first, count, width, target_tile)
        for k in range(count):
            line, target_prob = line_of(tile, k), line_of(target_tile, k)
            if options.transform.beta != 0:
                for c in range(PANEL):
                    e = exp_between(line[c], ms[c], lows[c])
                    less = gap_factors[c] * (row_max[c] - line[c]) * e
                    line[c] = exp_factors[c] * e - (zero if e == zero else less)
            elif target.data.size:
                weight = rows.weight[first + k]
                for c in range(PANEL):
                    q = mul_add(target_scale, target_prob[c], uniform_share) * weight
                    value = exp_factors[c] * exp_between(line[c], ms[c], lows[c])
                    value = mul_add(-grad_scales[c], q, value)
                    # p - 1 there: nothing cancels where p is nearly 1
                    at_max = mul_add(-gap_factors[c], q, weights[c] * (mean_gaps[c] - q))
                    line[c] = at_max + log_sums[c] if line[c] == picked[c] else value
            else:
                for c in range(PANEL):
                    e = line[c] if has_exps else exp_between(line[c], ms[c], lows[c])
                    line[c] = exp_factors[c] * e
            if options.every_class and not target.data.size:
                weight = rows.weight[first + k]
                for c in range(PANEL):
                    line[c] = mul_add(-grad_scales[c], uniform_share * weight, line[c])
            for c in range(PANEL):
                line[c] = line[c] if kept[c] != zero else zero
        store_tile(tile, grad.data, grad_place, first, count, width)


@internal
def put_labels(grad, place, rows, first, width, p):
    """The gradient at the labels of a panel."""
    at, class_step, row_step = place
    kept, picked = p.kept, p.picked
    if rows.labels.size:
        for c in range(width):
            if kept[c] != 0:
                label = rows.labels[first + c]
                grad.data[at + label * class_step + c * row_step] = narrow(picked[c], grad.data)


@internal
def panels_loss(x, target, grad, rows, options, outer, n, inner, task):
    """The sum of the losses of some panels, and their gradient unless `grad` is empty."""
    tile, row_max, sumexp_m1, work = panel_scratch(x.data)
    target_tile, more = stack_like(tile, TILE), stack_like(work, WORK)
    target_tile[:] = 0
    losses, totals = stack_doubles(sumexp_m1, PANEL), stack_doubles(sumexp_m1, PANEL)
    p = Panel(
        row_max, sumexp_m1, column(more, 0), column(more, 1), column(more, 2), column(more, 3),
        losses, totals, column(more, 4), column(more, 5), column(more, 6), column(more, 7),
    )  # fmt: skip
    tiles, has_entropy = (tile, target_tile), options.transform.beta != 0
    has_exps = grad.data.size > 0 and n <= CLASSES and not (options.every_class or has_entropy)
    loss = 0.0
    for number in panels_of_task(outer, n, inner, task):
        first, width = panel_rows(number, outer, inner)
        place = panel_place(x, number, inner)
        target_place = panel_place(target, number, inner)
        gather(x, place, rows, options, first, width, p)
        panel_state(x.data, place, n, width, tile, row_max, sumexp_m1, has_exps, work)
        losses[:] = 0
        totals[:] = 0
        if options.every_class:
            panel_target_sums(
                x, place, target, target_place, n, width, rows, options, p, tiles
            )  # fmt: skip
        if has_entropy:
            panel_mean_gap(x, place, n, width, p, tile, work)
        loss += panel_losses(rows, options, first, width, p)
        if grad.data.size:
            grad_place = panel_place(grad, number, inner)
            panel_factors(rows, options, first, width, p)
            panel_gradient(
                x, place, target, target_place, grad, grad_place, n, width, rows, options, p,
                tiles, has_exps, work,
            )  # fmt: skip
            put_labels(grad, grad_place, rows, first, width, p)
    return loss
