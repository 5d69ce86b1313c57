"""Entropy and KL divergence of softmax, with their gradients, from logits.

The states of _rows.py and _panels.py first; then, with gap = row_max - x and log p = -gap - log(1 +
sumexp_m1):

    H  = log(1 + sumexp_m1) + m,  m = sum of p * gap;  dH/dx = p * (gap - m)
    KL = sum of p * log(p / q) - p + q;  d/dq_logits = q - p;  d/dp_logits = p * (log(p / q) - KL)

No term of the sums is negative. A gradient that is not given is empty.
"""

from typing import NamedTuple

import numpy as np

from .._jit_options import internal
from .._math import (
    add_compensated,
    cast,
    compensated,
    constants,
    exp_between,
    exp_from,
    kl_div_term_from_log,
    no_inline,
    reference,
)
from .._panels import (
    CLASSES,
    PANEL,
    TILE,
    column,
    column_bounds,
    line_of,
    load_pair,
    load_tile,
    max_prob_of,
    panel_place,
    panel_rows,
    panel_state,
    put_log_sums,
    store_tile,
)
from .._rows import floats, log_total, row_state, row_writer
from .._storage import stack_doubles, stack_scratch, widen
from .rows import BLOCK, sums_of

WORK = 16 * PANEL


class Softmax(NamedTuple):
    """Of a row: p = scale * exp_from(x, base). NaN where there is no distribution."""

    row_max: np.floating
    log_sum: float  # log(1 + sumexp_m1)
    base: tuple
    scale: float


@internal
def softmax_of(x, memory):
    row_max, sumexp_m1 = row_state(x, memory, memory[:0])
    base, ratio = reference(row_max)
    log_sum = log_total(row_max, sumexp_m1)
    return Softmax(row_max, log_sum, base, ratio / (1 + sumexp_m1) + (log_sum - log_sum))


# ---- rows ------------------------------------------------------------------------------------


@internal
def gap_term(p, gap):
    """p * gap, 0 for p = 0, whatever the gap."""
    zero = constants(p).zero
    return zero if p == zero else p * gap


@sums_of
@internal
def gap_sums(x, _, s):
    return gap_term(exp_from(x, s.base) * constants(x).down, s.row_max - x)


@row_writer
@internal
def _write_entropy_gradient(k, inputs, arguments):
    row_max, base, scale, mean = arguments
    x = widen(inputs[0][k])
    return gap_term(exp_from(x, base) * constants(x).down * scale, (row_max - x) - mean)


@internal
def entropy_row(x, grad, memory, unit):
    s = softmax_of(x, memory)
    down = np.float64(constants(memory[0]).down)
    mean, lost = 0.0, 0.0
    for at in range(0, x.size, BLOCK):
        block = floats(x[at : at + BLOCK], memory)
        mean, lost = add_compensated(mean, lost, gap_sums(block, block, s))
    mean = compensated(mean, lost) * (s.scale / down) + (s.log_sum - s.log_sum)
    if grad.size:
        scale = cast(s.row_max, s.scale / down / unit)
        arguments = s.row_max, s.base, scale, cast(s.row_max, mean)
        _write_entropy_gradient((x,), arguments, grad, False)
    return mean + s.log_sum


class Both(NamedTuple):
    """The softmax of x, which is p, and that of y, which is q."""

    x_max: np.floating
    x_base: tuple
    x_scale: np.floating
    y_max: np.floating
    y_base: tuple
    y_scale: np.floating
    shift: np.floating  # the difference of their log_sum
    factor: np.floating  # of the gradients


@internal
def ratio_term(a, b, both):
    """A term of KL; q - p, p and log(p / q)."""
    down = constants(a).down
    p = exp_from(a, both.x_base) * down * both.x_scale
    q = exp_from(b, both.y_base) * down * both.y_scale
    log_ratio = ((a - both.x_max) - (b - both.y_max)) - both.shift
    term, difference = kl_div_term_from_log(p, q, log_ratio)
    return term, difference, p, log_ratio


@sums_of
@internal
def kl_sums(x, y, both):
    return ratio_term(x, y, both)[0]


@row_writer
@internal
def _write_q_gradient(k, inputs, both):
    return ratio_term(widen(inputs[0][k]), widen(inputs[1][k]), both)[1] * both.factor


@row_writer
@internal
def _write_p_gradient(k, inputs, arguments):
    both, kl = arguments
    _, _, p, log_ratio = ratio_term(widen(inputs[0][k]), widen(inputs[1][k]), both)
    return gap_term(p, log_ratio - kl) * both.factor


@internal
def kl_row(x, y, q_grad, p_grad, memories, unit):
    s, t = softmax_of(x, memories[0]), softmax_of(y, memories[0])
    down, like = np.float64(constants(s.row_max).down), s.row_max
    # NaN without a distribution, so that all gradients are
    x_scale = cast(like, s.scale / down + (t.log_sum - t.log_sum))
    both = Both(
        s.row_max, s.base, x_scale, t.row_max, t.base, cast(like, t.scale / down),
        cast(like, s.log_sum - t.log_sum), cast(like, 1 / unit),
    )  # fmt: skip
    kl, lost = 0.0, 0.0
    for at in range(0, x.size, BLOCK):
        u, v = floats(x[at : at + BLOCK], memories[0]), floats(y[at : at + BLOCK], memories[1])
        kl, lost = add_compensated(kl, lost, kl_sums(u, v, both))
    kl = compensated(kl, lost) + (s.log_sum - s.log_sum) + (t.log_sum - t.log_sum)
    if p_grad.size:
        _write_p_gradient((x, y), (both, cast(like, kl)), p_grad, False)
    if q_grad.size:
        _write_q_gradient((x, y), both, q_grad, False)
    return kl


# ---- panels ----------------------------------------------------------------------------------


class Columns(NamedTuple):
    """For each row of a panel: p = max_prob * exp_between(x, m, low). A loop reads local names: an
    attribute in it counts references, and the loop is not vectorised.
    """

    row_max: np.ndarray
    max_prob: np.ndarray  # NaN where there is no distribution
    m: np.ndarray
    low: np.ndarray


@internal
def softmax_columns(planes, number, n, inner, width, tile, s, sums, work):
    """`s`, which is of Columns, and log(1 + sumexp_m1) in `sums`."""
    sumexp_m1, place = stack_doubles(planes.data, PANEL), panel_place(planes, number, inner)
    panel_state(planes.data, place, n, width, tile, s.row_max, sumexp_m1, False, work)
    put_log_sums(s.row_max, sumexp_m1, sums)
    column_bounds(s.row_max, s.m, s.low)
    row_max, max_prob = s.row_max, s.max_prob
    for c in range(PANEL):
        max_prob[c] = max_prob_of(row_max[c], sumexp_m1[c])


@internal
def entropy_columns(tile, count, s, totals, errors):
    no_inline()
    row_max, max_prob, m, low = s
    for k in range(count):
        line = line_of(tile, k)
        for c in range(PANEL):
            p = exp_between(line[c], m[c], low[c]) * max_prob[c]
            term = gap_term(p, row_max[c] - line[c])
            totals[c], errors[c] = add_compensated(totals[c], errors[c], term)


@internal
def entropy_gradients(tile, count, s, means, unit):
    no_inline()
    row_max, max_prob, m, low = s
    factor = constants(tile[0]).one / cast(tile[0], unit)
    for k in range(count):
        line = line_of(tile, k)
        for c in range(PANEL):
            p = exp_between(line[c], m[c], low[c]) * max_prob[c]
            line[c] = gap_term(p, (row_max[c] - line[c]) - means[c]) * factor


@internal
def entropy_panel(x, out, grad, number, outer, n, inner, unit):
    row, width = panel_rows(number, outer, inner)
    tile, work = stack_scratch(x.data, TILE), stack_scratch(x.data, WORK)
    s = Columns(column(work, 5), column(work, 6), column(work, 7), column(work, 8))
    sums, means, errors = column(work, 9), column(work, 10), column(work, 11)
    place, t = panel_place(x, number, inner), constants(tile[0])
    softmax_columns(x, number, n, inner, width, tile, s, sums, work)
    for c in range(PANEL):
        means[c], errors[c] = t.zero, t.zero
    for first in range(0, n, CLASSES):
        count = min(CLASSES, n - first)
        if n > CLASSES:
            load_tile(x.data, place, first, count, width, tile)
        entropy_columns(tile, count, s, means, errors)
    for c in range(PANEL):
        means[c] = cast(t.one, compensated(means[c], errors[c]))
    for c in range(width):
        out[row + c] = (means[c] + sums[c]) / cast(t.one, unit)
    if not grad.data.size:
        return
    for first in range(0, n, CLASSES):
        count = min(CLASSES, n - first)
        if n > CLASSES:
            load_tile(x.data, place, first, count, width, tile)
        entropy_gradients(tile, count, s, means, unit)
        store_tile(tile, grad.data, panel_place(grad, number, inner), first, count, width)


@internal
def kl_columns(x_tile, y_tile, count, x_softmax, y_softmax, shifts, totals, errors):
    no_inline()
    (x_max, x_prob, x_m, x_low), (y_max, y_prob, y_m, y_low) = x_softmax, y_softmax
    for k in range(count):
        x_line, y_line = line_of(x_tile, k), line_of(y_tile, k)
        for c in range(PANEL):
            p = exp_between(x_line[c], x_m[c], x_low[c]) * x_prob[c]
            q = exp_between(y_line[c], y_m[c], y_low[c]) * y_prob[c]
            log_ratio = ((x_line[c] - x_max[c]) - (y_line[c] - y_max[c])) - shifts[c]
            term = kl_div_term_from_log(p, q, log_ratio)[0]
            totals[c], errors[c] = add_compensated(totals[c], errors[c], term)


@internal
def kl_gradients(x_tile, y_tile, count, x_softmax, y_softmax, shifts, kls, unit):
    """They take the place of the logits: for p in x_tile, for q in y_tile."""
    no_inline()
    (x_max, x_prob, x_m, x_low), (y_max, y_prob, y_m, y_low) = x_softmax, y_softmax
    factor = constants(x_tile[0]).one / cast(x_tile[0], unit)
    for k in range(count):
        x_line, y_line = line_of(x_tile, k), line_of(y_tile, k)
        for c in range(PANEL):
            p = exp_between(x_line[c], x_m[c], x_low[c]) * x_prob[c]
            q = exp_between(y_line[c], y_m[c], y_low[c]) * y_prob[c]
            log_ratio = ((x_line[c] - x_max[c]) - (y_line[c] - y_max[c])) - shifts[c]
            y_line[c] = kl_div_term_from_log(p, q, log_ratio)[1] * factor
            x_line[c] = gap_term(p, log_ratio - kls[c]) * factor


@internal
def kl_panel(x, y, out, q_grad, p_grad, number, outer, n, inner, unit):
    row, width = panel_rows(number, outer, inner)
    x_tile, y_tile = stack_scratch(x.data, TILE), stack_scratch(x.data, TILE)
    work = stack_scratch(x.data, WORK)
    x_softmax = Columns(column(work, 5), column(work, 6), column(work, 7), column(work, 8))
    y_softmax = Columns(column(work, 9), column(work, 10), column(work, 11), column(work, 12))
    shifts, kls, errors = column(work, 13), column(work, 14), column(work, 15)
    t = constants(x_tile[0])
    softmax_columns(x, number, n, inner, width, x_tile, x_softmax, shifts, work)
    softmax_columns(y, number, n, inner, width, y_tile, y_softmax, kls, work)
    max_prob = x_softmax.max_prob
    for c in range(PANEL):
        shifts[c] -= kls[c]
        # NaN without a distribution: so are all gradients
        max_prob[c] += shifts[c] - shifts[c]
        kls[c], errors[c] = t.zero, t.zero
    for first in range(0, n, CLASSES):
        load_pair(x, y, number, inner, first, n, width, x_tile, y_tile)
        count = min(CLASSES, n - first)
        kl_columns(x_tile, y_tile, count, x_softmax, y_softmax, shifts, kls, errors)
    for c in range(PANEL):  # NaN where there is no distribution
        kls[c] = cast(t.one, compensated(kls[c], errors[c])) + (shifts[c] - shifts[c])
    for c in range(width):
        out[row + c] = kls[c] / cast(t.one, unit)
    if not q_grad.data.size:
        return
    for first in range(0, n, CLASSES):
        load_pair(x, y, number, inner, first, n, width, x_tile, y_tile)
        count = min(CLASSES, n - first)
        kl_gradients(x_tile, y_tile, count, x_softmax, y_softmax, shifts, kls, unit)
        store_tile(y_tile, q_grad.data, panel_place(q_grad, number, inner), first, count, width)
        if p_grad.data.size:
            store_tile(x_tile, p_grad.data, panel_place(p_grad, number, inner), first, count, width)
