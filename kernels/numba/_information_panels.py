"""Probabilities side by side: each lane of a vector computes a distribution of its own.

What _information_rows.py does, in panels (see _panels.py): the largest element of each column, the
sum of the others, and then the terms. Columns of more than CLASSES outcomes come into the tile
three times. Sums are compensated. Rows with elements below the range of the largest are computed
again, see _information_rows.py.
"""

import math

from ._information_rows import (
    cross_term,
    is_beyond,
    js_term_of_p,
    js_term_of_q,
    kl_term,
    value_beyond,
)
from ._math import (
    add_compensated,
    apart,
    cast,
    compensated,
    constants,
    exp_sub,
    larger,
    log_1p,
    mul_add,
    scale_near_one,
)
from ._panels import (
    CLASSES,
    PANEL,
    TILE,
    column,
    load_tile,
    panel_count,
    panel_place,
    panel_rows,
    panels_per_task,
)
from ._parts import inner
from ._storage import stack_scratch

COLUMNS = 14 * PANEL  # of numbers for each row of a panel


@inner
def column_sums(tile, count, scales, tops, totals, errors, others):
    apart()
    t = constants(tile[0])
    for k in range(count):
        line = tile[k * PANEL : (k + 1) * PANEL]
        for c in range(PANEL):
            a = line[c] * scales[c]
            other = a != tops[c]
            totals[c], errors[c] = add_compensated(totals[c], errors[c], a if other else t.zero)
            others[c] += t.one if other else t.zero


@inner
def column_tops(tile, count, tops, lows):
    apart()
    t = constants(tile[0])
    for k in range(count):
        line = tile[k * PANEL : (k + 1) * PANEL]
        for c in range(PANEL):
            tops[c] = larger(line[c], tops[c])  # skips NaN, which comes back through the sum
            # less the smallest element above 0, or above 0 where one is negative
            lows[c] = larger(t.lowest if line[c] == t.zero else -line[c], lows[c])


@inner
def panel_masses(planes, number, n, width, inner, tile, scales, tops, rests, lows, work):
    """Tops and rests in units of 1 / scale. `rests` is NaN where there is no distribution. `lows`
    are less the smallest elements above 0, as they are.
    """
    t = constants(tile[0])
    place = panel_place(planes, number, inner)
    errors, others = column(work, 1), column(work, 2)
    for c in range(PANEL):
        tops[c], lows[c], rests[c], errors[c], others[c] = t.zero, t.lowest, t.zero, t.zero, t.zero
    for first in range(0, n, CLASSES):
        load_tile(planes.data, place, first, min(CLASSES, n - first), width, tile)
        column_tops(tile, min(CLASSES, n - first), tops, lows)
    for c in range(PANEL):
        largest = tops[c]
        scales[c] = scale_near_one(largest)
        tops[c] = largest * scales[c]
    for first in range(0, n, CLASSES):
        if n > CLASSES:
            load_tile(planes.data, place, first, min(CLASSES, n - first), width, tile)
        column_sums(tile, min(CLASSES, n - first), scales, tops, rests, errors, others)
    for c in range(PANEL):
        total = (rests[c] + errors[c]) + tops[c] * (cast(t.one, n - 1) - others[c])
        valid = lows[c] <= t.zero and t.zero < tops[c] and tops[c] <= t.largest
        rests[c] = total if valid else t.lowest - t.lowest


@inner
def cross_columns(
    x_tile, y_tile, count, x_scales, y_scales, tops, inverses, costs, errors, weights
):
    apart()
    t = constants(x_tile[0])
    for k in range(count):
        x_line = x_tile[k * PANEL : (k + 1) * PANEL]
        y_line = y_tile[k * PANEL : (k + 1) * PANEL]
        for c in range(PANEL):
            u, v = x_line[c] * x_scales[c], y_line[c] * y_scales[c]
            term = cross_term(u, v, inverses[c])
            other = v != tops[c]
            costs[c], errors[c] = add_compensated(costs[c], errors[c], term if other else t.zero)
            weights[c] += u if other else t.zero


@inner
def cross_panel(x, y, same, out, number, outer, n, inner, unit, exponential):
    """The cross-entropy of each row of a panel, or its entropy where y is the same as x."""
    row, width = panel_rows(number, outer, inner)
    x_tile, y_tile = stack_scratch(x.data, TILE), stack_scratch(x.data, TILE)
    work = stack_scratch(x.data, COLUMNS)
    x_scales, x_tops, x_rests = column(work, 3), column(work, 4), column(work, 5)
    y_scales, y_tops, y_rests = column(work, 6), column(work, 7), column(work, 8)
    costs, errors, weights = column(work, 9), column(work, 10), column(work, 11)
    inverses, x_lows, y_lows = column(work, 0), column(work, 12), column(work, 13)
    t = constants(x_tile[0])
    panel_masses(x, number, n, width, inner, x_tile, x_scales, x_tops, x_rests, x_lows, work)
    panel_masses(y, number, n, width, inner, y_tile, y_scales, y_tops, y_rests, y_lows, work)
    for c in range(PANEL):
        inverses[c] = t.one / y_tops[c]
        costs[c], errors[c], weights[c] = t.zero, t.zero, t.zero
    for first in range(0, n, CLASSES):
        count = min(CLASSES, n - first)
        if n > CLASSES:
            load_tile(x.data, panel_place(x, number, inner), first, count, width, x_tile)
            load_tile(y.data, panel_place(y, number, inner), first, count, width, y_tile)
        cross_columns(
            x_tile, y_tile, count, x_scales, y_scales, y_tops, inverses, costs, errors, weights
        )
    for c in range(width):
        cost = cast(t.one, compensated(costs[c], errors[c]))
        cost += weights[c] * mul_add(inverses[c], y_tops[c], -t.one)
        value = log_1p(y_rests[c] / y_tops[c]) + cost / (x_tops[c] + x_rests[c])
        power = t.one / exp_sub(-value, t.zero)
        out[row + c] = power if exponential else value / cast(value, unit)
    for c in range(width):
        far = is_beyond(t.one, -x_lows[c], x_scales[c], -y_lows[c], y_scales[c])
        if far and out[row + c] == out[row + c]:
            nats = lane_beyond(False, x, y, number, n, inner, c)
            out[row + c] = cast(t.one, math.exp(nats) if exponential else nats / unit)


@inner
def lane_beyond(of_kl, x, y, number, n, inner, c):
    x_at, x_step, x_apart = panel_place(x, number, inner)
    y_at, y_step, y_apart = panel_place(y, number, inner)
    x_line, y_line = x.data[x_at + c * x_apart :], y.data[y_at + c * y_apart :]
    return value_beyond(of_kl, x_line, x_step, y_line, y_step, n)


def columns_of(term):
    """A function that sums a term for each row of a panel."""

    @inner
    def columns(x_tile, y_tile, count, x_scales, y_scales, ratios, costs, errors):
        apart()
        for k in range(count):
            x_line = x_tile[k * PANEL : (k + 1) * PANEL]
            y_line = y_tile[k * PANEL : (k + 1) * PANEL]
            for c in range(PANEL):
                u, v = x_line[c] * x_scales[c], y_line[c] * y_scales[c]
                costs[c], errors[c] = add_compensated(costs[c], errors[c], term(u, v, ratios[c]))

    return columns


kl_columns, js_columns_of_p, js_columns_of_q = map(
    columns_of, (kl_term, js_term_of_p, js_term_of_q)
)


@inner
def divergence_panel(x, y, of_js, out, number, outer, n, inner, unit):
    row, width = panel_rows(number, outer, inner)
    x_tile, y_tile = stack_scratch(x.data, TILE), stack_scratch(x.data, TILE)
    work = stack_scratch(x.data, COLUMNS)
    x_scales, x_tops, x_rests = column(work, 3), column(work, 4), column(work, 5)
    y_scales, y_tops, y_rests = column(work, 6), column(work, 7), column(work, 8)
    costs, errors, ratios = column(work, 9), column(work, 10), column(work, 11)
    x_lows, y_lows, t = column(work, 12), column(work, 13), constants(x_tile[0])
    panel_masses(x, number, n, width, inner, x_tile, x_scales, x_tops, x_rests, x_lows, work)
    panel_masses(y, number, n, width, inner, y_tile, y_scales, y_tops, y_rests, y_lows, work)
    for c in range(PANEL):
        ratios[c] = (y_tops[c] + y_rests[c]) / (x_tops[c] + x_rests[c])
        costs[c], errors[c] = t.zero, t.zero
    for first in range(0, n, CLASSES):
        count = min(CLASSES, n - first)
        if n > CLASSES:
            load_tile(x.data, panel_place(x, number, inner), first, count, width, x_tile)
            load_tile(y.data, panel_place(y, number, inner), first, count, width, y_tile)
        if of_js:
            js_columns_of_p(x_tile, y_tile, count, x_scales, y_scales, ratios, costs, errors)
            js_columns_of_q(x_tile, y_tile, count, x_scales, y_scales, ratios, costs, errors)
        else:
            kl_columns(x_tile, y_tile, count, x_scales, y_scales, ratios, costs, errors)
    parts = t.two + t.two if of_js else t.one
    for c in range(width):
        cost = cast(t.one, compensated(costs[c], errors[c]))
        value = cost / (parts * (y_tops[c] + y_rests[c]))
        # NaN where either is no distribution: a term need not show it
        out[row + c] = (value + (ratios[c] - ratios[c])) / cast(t.one, unit)
    for c in range(width):
        far = is_beyond(t.one, -x_lows[c], x_scales[c], -y_lows[c], y_scales[c])
        if far and out[row + c] == out[row + c] and not of_js:
            out[row + c] = cast(t.one, lane_beyond(True, x, y, number, n, inner, c) / unit)


@inner
def panels_in(n, outer, inner, task):
    """The first panel of a task, and the one after its last."""
    first = task * panels_per_task(n)
    return first, min(panel_count(outer, inner), first + panels_per_task(n))
