"""The loss of rows that lie side by side, see _panels.py.

Each lane is a row, computed as row_loss in rows.py computes one.
"""

from typing import NamedTuple

import numpy as np

from .._class_loss import grad_scale_of, smoothing
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
    log_sums,
    max_prob_of,
    panel_place,
    panel_rows,
    panel_scratch,
    panel_state,
    panels_of_task,
    store_tile,
)
from .._storage import narrow, stack_doubles, stack_like, widen
from .loss_transform import transform_loss, weighted

WORK = 8 * PANEL


class Panel(NamedTuple):
    """Numbers for each row of a panel, of the compute dtype where no other is given."""

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
    t = constants(p.kept[0])
    for c in range(PANEL):
        p.kept[c], p.picked[c], p.weights[c] = t.one if c < width else t.zero, t.zero, t.zero
    if not rows.labels.size:
        return
    for c in range(width):
        label = rows.labels[first + c]
        if label == options.ignore_index:
            p.kept[c] = t.zero
        else:
            p.picked[c] = widen(x.data[at + label * class_step + c * row_step])
            p.weights[c] = rows.weight[label] if rows.weight.size else t.one


@internal
def panel_target_sums(x, place, target, target_place, n, width, rows, options, p, tiles):
    """target_sums of each row, in losses and totals."""
    tile, target_tile = tiles
    zero = constants(tile[0]).zero
    target_scale, uniform_share = smoothing(zero, options)
    zeros = np.zeros(PANEL, tile.dtype)
    losses, loss_errors, probs, prob_errors = zeros, zeros.copy(), zeros.copy(), zeros.copy()
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
                loss = zero if q == zero else q * (p.row_max[c] - line[c])
                losses[c], loss_errors[c] = add_compensated(losses[c], loss_errors[c], loss)
                probs[c], prob_errors[c] = add_compensated(probs[c], prob_errors[c], prob * weight)
    for c in range(PANEL):
        p.losses[c] = compensated(losses[c], loss_errors[c])
        p.totals[c] = options.uniform_total + compensated(probs[c], prob_errors[c])


@internal
def panel_mean_gap(x, place, n, width, p, tile, work):
    """row_mean_gap of each row."""
    t = constants(tile[0])
    ms, lows, totals, errors = column(work, 0), column(work, 1), column(work, 2), column(work, 3)
    column_bounds(p.row_max, ms, lows)
    totals[:] = t.zero
    errors[:] = t.zero
    for first in range(0, n, CLASSES):
        count = min(CLASSES, n - first)
        load_tile(x.data, place, first, count, width, tile)
        for k in range(count):
            line = line_of(tile, k)
            for c in range(PANEL):
                e = exp_between(line[c], ms[c], lows[c])
                term = t.zero if e == t.zero else e * (p.row_max[c] - line[c])
                totals[c], errors[c] = add_compensated(totals[c], errors[c], term)
    for c in range(PANEL):
        max_prob = max_prob_of(p.row_max[c], p.sumexp_m1[c])
        p.mean_gaps[c] = compensated(totals[c], errors[c]) * max_prob


@internal
def transform_panel(transform, width, p):
    """The transformed losses, and in weights and totals the factor of the gradient."""
    for c in range(width):
        log_sum = np.float64(p.log_sums[c])
        weight, valid = np.float64(p.weights[c]), log_sum - log_sum
        row_max, x_label = np.float64(p.row_max[c]), np.float64(p.picked[c])
        loss, factor, _ = transform_loss(transform, row_max, x_label, p.sumexp_m1[c])
        p.losses[c] = weighted(weight, loss, valid)
        p.totals[c] = weighted(weight, factor, valid)
        p.weights[c] = cast(p.weights[c], p.totals[c])
        if transform.beta != 0:
            p.losses[c] -= transform.beta * (log_sum + np.float64(p.mean_gaps[c]))


@internal
def panel_losses(rows, options, first, width, p):
    """The losses and lse of a panel, and the sum of the losses."""
    log_sums(p.row_max, p.sumexp_m1, p.log_sums)
    for c in range(PANEL):
        log_sum = np.float64(p.log_sums[c])
        lse = p.row_max[c] + log_sum
        weight = options.target_scale * np.float64(p.weights[c])
        total = p.totals[c] + weight
        # A class of weight 0 adds nothing, even at -inf.
        gap = np.float64(p.row_max[c] - p.picked[c])
        loss = p.losses[c] + (0.0 if weight == 0.0 else weight * gap)
        loss += total * log_sum + options.z_loss * lse * lse
        p.losses[c] = loss if p.kept[c] != 0 else 0.0
        p.totals[c] = total
    if options.transform.active:
        transform_panel(options.transform, width, p)
        for c in range(width):
            p.losses[c] = p.losses[c] if p.kept[c] != 0 else 0.0
    loss_sum = 0.0
    for c in range(width):
        loss_sum += p.losses[c]
    if rows.loss.size:
        for c in range(width):
            rows.loss[first + c] = p.losses[c] / options.denominator
    if rows.lse.size:
        for c in range(width):
            row_max, sumexp_m1 = p.row_max[c], p.sumexp_m1[c]
            infinite = np.isinf(row_max) and sumexp_m1 == sumexp_m1  # whose log-sum is NaN
            lse = row_max if infinite else row_max + p.log_sums[c]
            rows.lse[first + c] = lse if p.kept[c] != 0 else cast(row_max, np.nan)
    if rows.row_max.size:
        for c in range(width):
            rows.row_max[first + c], rows.sumexp_m1[first + c] = p.row_max[c], p.sumexp_m1[c]
    return loss_sum


@internal
def panel_factors(rows, options, first, width, p):
    """The factors of a panel's gradient, and in `picked` the gradient at the labels.

    With probabilities `picked` is the maximum of a row of which p is nearly 1, else NaN; and
    weights, mean_gaps, gap_factors and log_sums have what the gradient there is made of.
    """
    t = constants(p.row_max[0])
    beta = cast(t.one, options.transform.beta)
    p.grad_scales[:] = cast(t.one, 1 / options.denominator)
    if rows.grad_loss.size:
        for c in range(width):
            p.grad_scales[c] = cast(t.one, grad_scale_of(rows, options, first + c))
    (target_scale, uniform_share), z2 = smoothing(t.one, options), 2 * options.z_loss
    for c in range(PANEL):
        g, m, sumexp_m1 = p.grad_scales[c], p.row_max[c], cast(t.one, p.sumexp_m1[c])
        p_factor = cast(t.one, p.totals[c] + z2 * np.float64(m + p.log_sums[c]))
        max_prob = max_prob_of(m, p.sumexp_m1[c])
        # p and p - 1 at the label, the latter without cancellation where p is nearly 1
        prob = exp_sub(p.picked[c], m) * max_prob
        prob_m1 = -sumexp_m1 * max_prob if p.picked[c] == m else prob - t.one
        weight = (target_scale + uniform_share) * p.weights[c]
        at_label = g * (weight * prob_m1 + (p_factor - weight) * prob)
        if beta != t.zero:  # log p + entropy = mean_gap - gap
            more = g * beta * prob * (p.mean_gaps[c] - (m - p.picked[c]))
            at_label += t.zero if prob == t.zero else more
            p.gap_factors[c] = g * beta * max_prob
            p_factor += beta * p.mean_gaps[c]
        p.picked[c] = at_label
        if options.every_class and not rows.labels.size:
            p.picked[c] = m if p.sumexp_m1[c] < 0.5 else cast(m, np.nan)
            p.weights[c], p.mean_gaps[c] = g * max_prob, cast(m, p.totals[c])
            p.gap_factors[c] = g * max_prob * sumexp_m1
            lse = np.float64(m + p.log_sums[c])
            p.log_sums[c] = g * max_prob * cast(m, z2 * lse)
        p.exp_factors[c] = g * p_factor * max_prob


@internal
def panel_gradient(
    x, place, target, target_place, grad, grad_place, n, width, rows, options, p, tiles, has_exps,
    work,
):  # fmt: skip
    """Writes the gradient but for the part of a class index."""
    tile, target_tile = tiles
    ms, lows = column(work, 0), column(work, 1)
    column_bounds(p.row_max, ms, lows)
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
                    less = p.gap_factors[c] * (p.row_max[c] - line[c]) * e
                    line[c] = p.exp_factors[c] * e - (zero if e == zero else less)
            elif target.data.size:
                weight = rows.weight[first + k]
                for c in range(PANEL):
                    q = mul_add(target_scale, target_prob[c], uniform_share) * weight
                    value = p.exp_factors[c] * exp_between(line[c], ms[c], lows[c])
                    value = mul_add(-p.grad_scales[c], q, value)
                    # p - 1 there: nothing cancels where p is nearly 1
                    at_max = mul_add(-p.gap_factors[c], q, p.weights[c] * (p.mean_gaps[c] - q))
                    line[c] = at_max + p.log_sums[c] if line[c] == p.picked[c] else value
            else:
                for c in range(PANEL):
                    e = line[c] if has_exps else exp_between(line[c], ms[c], lows[c])
                    line[c] = p.exp_factors[c] * e
            if options.every_class and not target.data.size:
                weight = rows.weight[first + k]
                for c in range(PANEL):
                    line[c] = mul_add(-p.grad_scales[c], uniform_share * weight, line[c])
            for c in range(PANEL):
                line[c] = line[c] if p.kept[c] != zero else zero
        store_tile(tile, grad.data, grad_place, first, count, width)


@internal
def put_labels(grad, place, rows, first, width, p):
    """The gradient at the labels of a panel."""
    at, class_step, row_step = place
    if rows.labels.size:
        for c in range(width):
            if p.kept[c] != 0:
                label = rows.labels[first + c]
                grad.data[at + label * class_step + c * row_step] = narrow(p.picked[c], grad.data)


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
