"""Probabilities side by side: each lane of a vector computes a distribution of its own.

What rows.py does, in panels (see _panels.py): the largest element of each column, the sum of the
others, and then the terms. Columns of more than CLASSES outcomes come into the tile three times.
Sums are compensated. Rows with elements below the range of the largest are computed again, see
rows.py.
"""

import math
from typing import NamedTuple

import numpy as np

from .._jit_options import internal
from .._math import (
    add_compensated,
    cast,
    compensated,
    constants,
    exp_sub,
    larger,
    log_1p,
    mul_add,
    no_inline,
    scale_near_one,
)
from .._panels import (
    CLASSES,
    PANEL,
    TILE,
    column,
    line_of,
    load_pair,
    load_tile,
    panel_place,
    panel_rows,
)
from .._storage import stack_scratch
from .rows import (
    cross_term,
    is_beyond,
    js_term_of_p,
    js_term_of_q,
    kl_term,
    value_beyond,
)

COLUMNS = 14 * PANEL  # of numbers for each row of a panel


@internal
def column_sums(tile, count, scales, largest, totals, errors, others):
    no_inline()
    t = constants(tile[0])
    for k in range(count):
        line = line_of(tile, k)
        for c in range(PANEL):
            a = line[c] * scales[c]
            other = a != largest[c]
            totals[c], errors[c] = add_compensated(totals[c], errors[c], a if other else t.zero)
            others[c] += t.one if other else t.zero


@internal
def column_extremes(tile, count, largest, lows):
    no_inline()
    t = constants(tile[0])
    for k in range(count):
        line = line_of(tile, k)
        for c in range(PANEL):
            # skips NaN, which comes back through the sum
            largest[c] = larger(line[c], largest[c])
            lows[c] = larger(t.lowest if line[c] == t.zero else -line[c], lows[c])


class Masses(NamedTuple):
    """Of each row of a panel, in units of 1 / scale."""

    scale: np.ndarray
    largest: np.ndarray
    others: np.ndarray  # the sum of all others; NaN where there is no distribution
    low: np.ndarray  # less the smallest element above 0, not scaled; above 0 if one is negative


@internal
def new_masses(work, first):
    return Masses(
        column(work, first), column(work, first + 1), column(work, first + 2),
        column(work, first + 3),
    )  # fmt: skip


@internal
def panel_masses(planes, number, n, width, inner, tile, p, work):
    t, place = constants(tile[0]), panel_place(planes, number, inner)
    scales, largest, others, lows = p
    errors, counts = column(work, 1), column(work, 2)
    for c in range(PANEL):
        largest[c], lows[c], others[c] = t.zero, t.lowest, t.zero
        errors[c], counts[c] = t.zero, t.zero
    for first in range(0, n, CLASSES):
        load_tile(planes.data, place, first, min(CLASSES, n - first), width, tile)
        column_extremes(tile, min(CLASSES, n - first), largest, lows)
    for c in range(PANEL):
        value = largest[c]
        scales[c] = scale_near_one(value)
        largest[c] = value * scales[c]
    for first in range(0, n, CLASSES):
        if n > CLASSES:
            load_tile(planes.data, place, first, min(CLASSES, n - first), width, tile)
        count = min(CLASSES, n - first)
        column_sums(tile, count, scales, largest, others, errors, counts)
    for c in range(PANEL):
        max_count_m1 = cast(t.one, n - 1) - counts[c]
        total = (others[c] + errors[c]) + largest[c] * max_count_m1
        valid = lows[c] <= t.zero and t.zero < largest[c] and largest[c] <= t.largest
        others[c] = total if valid else t.lowest - t.lowest


@internal
def lane_beyond(of_kl, x, y, number, n, inner, c):
    """value_beyond of row c of a panel."""
    x_at, x_step, x_row = panel_place(x, number, inner)
    y_at, y_step, y_row = panel_place(y, number, inner)
    x_line, y_line = x.data[x_at + c * x_row :], y.data[y_at + c * y_row :]
    return value_beyond(of_kl, x_line, x_step, y_line, y_step, n)


# ---- cross-entropy ---------------------------------------------------------------------------


@internal
def cross_columns(
    x_tile, y_tile, count, x_scales, y_scales, largest, inverses, totals, errors, weights
):
    no_inline()
    t = constants(x_tile[0])
    for k in range(count):
        x_line, y_line = line_of(x_tile, k), line_of(y_tile, k)
        for c in range(PANEL):
            u, v = x_line[c] * x_scales[c], y_line[c] * y_scales[c]
            term = cross_term(u, v, inverses[c])
            other = v != largest[c]
            totals[c], errors[c] = add_compensated(totals[c], errors[c], term if other else t.zero)
            weights[c] += u if other else t.zero


@internal
def cross_panel(x, y, same, out, number, outer, n, inner, unit, exponential):
    """The cross-entropy of each row of a panel, or its entropy where y is the same as x."""
    row, width = panel_rows(number, outer, inner)
    x_tile, y_tile = stack_scratch(x.data, TILE), stack_scratch(x.data, TILE)
    work = stack_scratch(x.data, COLUMNS)
    p, q = new_masses(work, 3), new_masses(work, 7)
    inverses, totals, errors, weights = (
        column(work, 0), column(work, 11), column(work, 12), column(work, 13)
    )  # fmt: skip
    t = constants(x_tile[0])
    panel_masses(x, number, n, width, inner, x_tile, p, work)
    panel_masses(y, number, n, width, inner, y_tile, q, work)
    (p_scale, p_largest, p_others, p_low), (q_scale, q_largest, q_others, q_low) = p, q
    for c in range(PANEL):
        inverses[c] = t.one / q_largest[c]
        totals[c], errors[c], weights[c] = t.zero, t.zero, t.zero
    for first in range(0, n, CLASSES):
        load_pair(x, y, number, inner, first, n, width, x_tile, y_tile)
        cross_columns(
            x_tile, y_tile, min(CLASSES, n - first), p_scale, q_scale, q_largest, inverses, totals,
            errors, weights,
        )  # fmt: skip
    for c in range(width):
        total = cast(t.one, compensated(totals[c], errors[c]))
        total += weights[c] * mul_add(inverses[c], q_largest[c], -t.one)
        value = log_1p(q_others[c] / q_largest[c]) + total / (p_largest[c] + p_others[c])
        power = t.one / exp_sub(-value, t.zero)
        out[row + c] = power if exponential else value / cast(value, unit)
    for c in range(width):
        far = is_beyond(t.one, -p_low[c], p_scale[c], -q_low[c], q_scale[c])
        if far and out[row + c] == out[row + c]:
            nats = lane_beyond(False, x, y, number, n, inner, c)
            out[row + c] = cast(t.one, math.exp(nats) if exponential else nats / unit)


# ---- divergences -----------------------------------------------------------------------------


def columns_of(term):
    """A function that sums a term for each row of a panel."""

    @internal
    def columns(x_tile, y_tile, count, x_scales, y_scales, ratios, totals, errors):
        no_inline()
        for k in range(count):
            x_line, y_line = line_of(x_tile, k), line_of(y_tile, k)
            for c in range(PANEL):
                u, v = x_line[c] * x_scales[c], y_line[c] * y_scales[c]
                value = term(u, v, ratios[c])
                totals[c], errors[c] = add_compensated(totals[c], errors[c], value)

    return columns


kl_columns, js_columns_of_p, js_columns_of_q = map(
    columns_of, (kl_term, js_term_of_p, js_term_of_q)
)


@internal
def divergence_panel(x, y, of_js, out, number, outer, n, inner, unit):
    row, width = panel_rows(number, outer, inner)
    x_tile, y_tile = stack_scratch(x.data, TILE), stack_scratch(x.data, TILE)
    work = stack_scratch(x.data, COLUMNS)
    p, q, t = new_masses(work, 3), new_masses(work, 7), constants(x_tile[0])
    totals, errors, ratios = column(work, 11), column(work, 12), column(work, 13)
    panel_masses(x, number, n, width, inner, x_tile, p, work)
    panel_masses(y, number, n, width, inner, y_tile, q, work)
    (p_scale, p_largest, p_others, p_low), (q_scale, q_largest, q_others, q_low) = p, q
    for c in range(PANEL):
        ratios[c] = (q_largest[c] + q_others[c]) / (p_largest[c] + p_others[c])
        totals[c], errors[c] = t.zero, t.zero
    for first in range(0, n, CLASSES):
        load_pair(x, y, number, inner, first, n, width, x_tile, y_tile)
        count = min(CLASSES, n - first)
        if of_js:
            js_columns_of_p(x_tile, y_tile, count, p_scale, q_scale, ratios, totals, errors)
            js_columns_of_q(x_tile, y_tile, count, p_scale, q_scale, ratios, totals, errors)
        else:
            kl_columns(x_tile, y_tile, count, p_scale, q_scale, ratios, totals, errors)
    parts = t.two + t.two if of_js else t.one
    for c in range(width):
        total = cast(t.one, compensated(totals[c], errors[c]))
        value = total / (parts * (q_largest[c] + q_others[c]))
        # NaN where either is no distribution: a term need not show it
        out[row + c] = (value + (ratios[c] - ratios[c])) / cast(t.one, unit)
    for c in range(width):
        far = is_beyond(t.one, -p_low[c], p_scale[c], -q_low[c], q_scale[c])
        if far and out[row + c] == out[row + c] and not of_js:
            out[row + c] = cast(t.one, lane_beyond(True, x, y, number, n, inner, c) / unit)
