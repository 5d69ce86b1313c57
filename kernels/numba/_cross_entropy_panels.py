"""Cross-entropy of rows that lie side by side, see _panels.py and cross_entropy.py.

Each lane is a row, computed as cross_entropy_row in _cross_entropy_rows.py computes one.
"""

import numpy as np

from ._curves import bend, times
from ._math import add_compensated, cast, compensated, constants, exp_between, exp_sub, mul_add
from ._panels import (
    CLASSES,
    PANEL,
    TILE,
    column,
    column_bounds,
    load_tile,
    log_sums,
    panel_count,
    panel_place,
    panel_rows,
    panel_scratch,
    panel_state,
    panels_per_task,
    store_tile,
)
from ._parts import inner
from ._storage import narrow, stack_doubles, stack_like, widen

MORE = 8 * PANEL


@inner
def gather(x, place, rows, options, first, width, kept, picked, weights):
    """Of each row: whether it counts (1 or 0), x at its label, and the weight of that class."""
    at, class_step, row_step = place
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


@inner
def panel_cost(
    x, place, target, target_place, n, width, rows, options, tops, losses, totals, tiles
):
    """row_cost of each row."""
    tile, t_tile = tiles
    t = constants(tops[0])
    hard, soft = cast(t.one, options.hard), cast(t.one, options.soft)
    zeros = np.zeros(PANEL, tile.dtype)
    costs, cost_errors, parts, part_errors = zeros, zeros.copy(), zeros.copy(), zeros.copy()
    for first in range(0, n, CLASSES):
        count = min(CLASSES, n - first)
        load_tile(x.data, place, first, count, width, tile)
        if target.data.size:
            load_tile(target.data, target_place, first, count, width, t_tile)
        for k in range(count):
            weight = rows.weight[first + k]
            line, wanted = tile[k * PANEL : (k + 1) * PANEL], t_tile[k * PANEL : (k + 1) * PANEL]
            for c in range(PANEL):
                part = hard * wanted[c]
                q = (soft + part) * weight
                cost = t.zero if q == t.zero else q * (tops[c] - line[c])
                costs[c], cost_errors[c] = add_compensated(costs[c], cost_errors[c], cost)
                parts[c], part_errors[c] = add_compensated(parts[c], part_errors[c], part * weight)
    for c in range(PANEL):
        losses[c] = compensated(costs[c], cost_errors[c])
        totals[c] = options.soft_total + compensated(parts[c], part_errors[c])


@inner
def panel_mean_gap(x, place, n, width, tops, rests, mean_gaps, tile, work):
    """row_mean_gap of each row."""
    t = constants(tops[0])
    ms, lows, totals, errors = column(work, 0), column(work, 1), column(work, 2), column(work, 3)
    column_bounds(tops, ms, lows)
    totals[:] = t.zero
    errors[:] = t.zero
    for first in range(0, n, CLASSES):
        count = min(CLASSES, n - first)
        load_tile(x.data, place, first, count, width, tile)
        for k in range(count):
            line = tile[k * PANEL : (k + 1) * PANEL]
            for c in range(PANEL):
                e = exp_between(line[c], ms[c], lows[c])
                term = t.zero if e == t.zero else e * (tops[c] - line[c])
                totals[c], errors[c] = add_compensated(totals[c], errors[c], term)
    for c in range(PANEL):
        share = cast(t.one, 1 / (1 + rests[c])) + (tops[c] - tops[c])
        mean_gaps[c] = compensated(totals[c], errors[c]) * share


@inner
def bend_panel(curve, width, tops, rests, sums, columns, mean_gaps):
    """The losses on a curve. What multiplies the gradient goes into `weights` and `totals`."""
    _, picked, weights, losses, totals = columns
    for c in range(width):
        valid = np.float64(sums[c] - sums[c])
        weight, top, x = np.float64(weights[c]), np.float64(tops[c]), np.float64(picked[c])
        loss, slope, _ = bend(curve, top, x, rests[c])
        losses[c] = times(weight, loss, valid)
        totals[c] = times(weight, slope, valid)
        weights[c] = cast(tops[c], totals[c])
        if curve.beta != 0:
            losses[c] -= curve.beta * (np.float64(sums[c]) + np.float64(mean_gaps[c]))


@inner
def panel_losses(rows, options, first, width, tops, rests, sums, columns, mean_gaps):
    """The losses and lse of a panel. Leaves in `totals` sum(q), in `losses` the losses."""
    kept, picked, weights, losses, totals = columns
    log_sums(tops, rests, sums)
    loss_sum = 0.0
    for c in range(PANEL):
        log_sum = np.float64(sums[c])
        lse = tops[c] + log_sum
        weight = options.hard * np.float64(weights[c])
        total = totals[c] + weight
        # A class of weight 0 costs nothing, even at -inf.
        gap = np.float64(tops[c] - picked[c])
        loss = losses[c] + (0.0 if weight == 0.0 else weight * gap)
        loss += total * log_sum + options.z_loss * lse * lse
        losses[c] = loss if kept[c] != 0 else 0.0
        totals[c] = total
    if options.curve.bends:
        bend_panel(options.curve, width, tops, rests, sums, columns, mean_gaps)
        for c in range(width):
            losses[c] = losses[c] if kept[c] != 0 else 0.0
    for c in range(width):
        loss_sum += losses[c]
    if rows.loss.size:
        for c in range(width):
            rows.loss[first + c] = losses[c] / options.denominator
    if rows.lse.size:
        for c in range(width):
            infinite = np.isinf(tops[c]) and rests[c] == rests[c]  # whose log-sum is NaN
            lse = tops[c] if infinite else tops[c] + sums[c]
            rows.lse[first + c] = lse if kept[c] != 0 else cast(tops[c], np.nan)
    if rows.top.size:
        for c in range(width):
            rows.top[first + c], rows.rest[first + c] = tops[c], rests[c]
    return loss_sum


@inner
def panel_slopes(
    rows, options, first, width, tops, rests, sums, columns, slopes, upstreams, mean_gaps,
    gap_slopes,
):  # fmt: skip
    """The factors of a panel's gradient, and in `picked` the gradient at the labels.

    With probabilities `picked` is the maximum of a row of which p is nearly 1, else NaN; and
    `weights`, `mean_gaps`, `gap_slopes` and `sums` have what the gradient there is made of.
    """
    _, picked, weights, _, totals = columns
    t = constants(tops[0])
    beta = cast(t.one, options.curve.beta)
    upstreams[:] = cast(t.one, 1 / options.denominator)
    if rows.upstream.size:
        for c in range(width):
            value = np.float64(rows.upstream[first + c if rows.upstream.size > 1 else 0])
            upstreams[c] = cast(t.one, value / options.denominator)
    hard, soft, z2 = cast(t.one, options.hard), cast(t.one, options.soft), 2 * options.z_loss
    for c in range(PANEL):
        g, top, rest = upstreams[c], tops[c], cast(t.one, rests[c])
        pull = cast(t.one, totals[c] + z2 * np.float64(top + sums[c]))
        share = cast(t.one, 1 / (1 + rests[c])) + (top - top)
        # p and p - 1 at the label, the latter without cancellation where p is nearly 1
        there = exp_sub(picked[c], top) * share
        below = -rest * share if picked[c] == top else there - t.one
        weight = (hard + soft) * weights[c]
        at_label = g * (weight * below + (pull - weight) * there)
        if beta != t.zero:  # log p + entropy = mean_gap - gap
            more = g * beta * there * (mean_gaps[c] - (top - picked[c]))
            at_label += t.zero if there == t.zero else more
            gap_slopes[c] = g * beta * share
            pull += beta * mean_gaps[c]
        picked[c] = at_label
        if options.every_class and not rows.labels.size:
            picked[c] = top if rests[c] < 0.5 else cast(top, np.nan)
            weights[c], mean_gaps[c] = g * share, cast(top, totals[c])
            gap_slopes[c] = g * share * rest
            sums[c] = g * share * cast(top, z2 * np.float64(top + sums[c]))
        slopes[c] = g * pull * share


@inner
def panel_gradient(
    x, place, target, target_place, grad, grad_place, n, width, rows, options, tops, slopes,
    upstreams, sums, mean_gaps, gap_slopes, columns, tiles, has_exps, work,
):  # fmt: skip
    """Writes the gradient but for the part of a class index."""
    kept, picked, weights, _, _ = columns
    tile, t_tile = tiles
    ms, lows = column(work, 0), column(work, 1)
    column_bounds(tops, ms, lows)
    t = constants(tops[0])
    hard, soft = cast(t.one, options.hard), cast(t.one, options.soft)
    for first in range(0, n, CLASSES):
        count = min(CLASSES, n - first)
        if not has_exps:
            load_tile(x.data, place, first, count, width, tile)
        if target.data.size:
            load_tile(target.data, target_place, first, count, width, t_tile)
        for k in range(count):
            line, wanted = tile[k * PANEL : (k + 1) * PANEL], t_tile[k * PANEL : (k + 1) * PANEL]
            if options.curve.beta != 0:
                for c in range(PANEL):
                    e = exp_between(line[c], ms[c], lows[c])
                    less = gap_slopes[c] * (tops[c] - line[c]) * e
                    line[c] = slopes[c] * e - (t.zero if e == t.zero else less)
            elif target.data.size:
                weight = rows.weight[first + k]
                for c in range(PANEL):
                    q = mul_add(hard, wanted[c], soft) * weight
                    value = slopes[c] * exp_between(line[c], ms[c], lows[c])
                    value = mul_add(-upstreams[c], q, value)
                    # p - 1 there: nothing cancels where p is nearly 1
                    at_top = mul_add(-gap_slopes[c], q, weights[c] * (mean_gaps[c] - q))
                    line[c] = at_top + sums[c] if line[c] == picked[c] else value
            else:
                for c in range(PANEL):
                    e = line[c] if has_exps else exp_between(line[c], ms[c], lows[c])
                    line[c] = slopes[c] * e
            if options.every_class and not target.data.size:
                weight = rows.weight[first + k]
                for c in range(PANEL):
                    line[c] = mul_add(-upstreams[c], soft * weight, line[c])
            for c in range(PANEL):
                line[c] = line[c] if kept[c] != t.zero else t.zero
        store_tile(tile, grad.data, grad_place, first, count, width)


@inner
def panels_task(x, target, grad, rows, options, outer, n, inner, task):
    """The sum of the losses of some panels, and their gradient unless `grad` is empty."""
    tile, tops, rests, work = panel_scratch(x.data)
    t_tile, more = stack_like(tile, TILE), stack_like(work, MORE)
    t_tile[:] = 0
    sums, kept, picked = column(more, 0), column(more, 1), column(more, 2)
    weights, slopes, upstreams = column(more, 3), column(more, 4), column(more, 5)
    mean_gaps, gap_slopes = column(more, 6), column(more, 7)
    losses, totals = stack_doubles(rests, PANEL), stack_doubles(rests, PANEL)
    columns, tiles = (kept, picked, weights, losses, totals), (tile, t_tile)
    every = options.every_class
    entropic = options.curve.beta != 0
    has_exps = grad.data.size > 0 and n <= CLASSES and not (every or entropic)
    loss = 0.0
    last = min(panel_count(outer, inner), (task + 1) * panels_per_task(n))
    for number in range(task * panels_per_task(n), last):
        first, width = panel_rows(number, outer, inner)
        place = panel_place(x, number, inner)
        t_place = panel_place(target, number, inner)
        gather(x, place, rows, options, first, width, kept, picked, weights)
        panel_state(x.data, place, n, width, tile, tops, rests, has_exps, work)
        losses[:] = 0
        totals[:] = 0
        if every:
            panel_cost(
                x, place, target, t_place, n, width, rows, options, tops, losses, totals, tiles
            )
        if entropic:
            panel_mean_gap(x, place, n, width, tops, rests, mean_gaps, tile, work)
        loss += panel_losses(rows, options, first, width, tops, rests, sums, columns, mean_gaps)
        if grad.data.size:
            grad_place = panel_place(grad, number, inner)
            panel_slopes(
                rows, options, first, width, tops, rests, sums, columns, slopes, upstreams,
                mean_gaps, gap_slopes,
            )  # fmt: skip
            panel_gradient(
                x, place, target, t_place, grad, grad_place, n, width, rows, options, tops,
                slopes, upstreams, sums, mean_gaps, gap_slopes, columns, tiles, has_exps, work,
            )  # fmt: skip
            put_labels(grad, grad_place, rows, first, width, kept, picked)
    return loss


@inner
def put_labels(grad, place, rows, first, width, kept, values):
    """The gradient at the labels of a panel."""
    at, class_step, row_step = place
    if rows.labels.size:
        for c in range(width):
            if kept[c] != 0:
                label = rows.labels[first + c]
                grad.data[at + label * class_step + c * row_step] = narrow(values[c], grad.data)
