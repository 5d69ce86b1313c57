"""Entropy and KL divergence of softmax, with their gradients, from logits.

The states of _rows.py and _panels.py first; then, with gap = top - x, log p = -gap - log(1 + rest):

    H  = log(1 + rest) + m,  m = sum of p * gap;  dH/dx = p * (gap - m)
    KL = sum of p * log(p / q) - p + q;  d/dq_logits = q - p;  d/dp_logits = p * (log(p / q) - KL)

No term of the sums is negative. A gradient that is not wanted is empty.
"""

from typing import NamedTuple

import numpy as np

from ._information_rows import BLOCK, folded, lanes_of
from ._math import (
    add_compensated,
    apart,
    cast,
    compensated,
    constants,
    exp_between,
    exp_from,
    reference,
    relative_log,
)
from ._panels import (
    CLASSES,
    PANEL,
    TILE,
    column,
    column_bounds,
    load_tile,
    log_sums,
    panel_place,
    panel_rows,
    panel_state,
    store_tile,
)
from ._parts import inner
from ._rows import LANES, floats, log_total, row_state, row_writer
from ._storage import stack_doubles, stack_like, stack_scratch, widen

WORK = 16 * PANEL


class Softmax(NamedTuple):
    """Of a row: p = share * exp_from(x, base). NaN where there is no distribution."""

    top: np.floating
    log_total: float  # log(1 + rest)
    base: tuple
    share: float


@inner
def softmax_of(x, memory):
    top, rest = row_state(x, memory, memory[:0])
    base, ratio = reference(top)
    log_sum = log_total(top, rest)
    return Softmax(top, log_sum, base, ratio / (1 + rest) + (log_sum - log_sum))


# ---- rows ------------------------------------------------------------------------------------


@inner
def gap_term(p, gap):
    """p * gap, 0 for p = 0, whatever the gap."""
    zero = constants(p).zero
    return zero if p == zero else p * gap


@inner
def mean_of_block(x, s):
    apart()
    totals, down = lanes_of(stack_like(x, LANES)), constants(x[0]).down
    for at in range(0, x.size, LANES):
        line = x[at : at + LANES]
        if line.size == LANES:
            for i in range(LANES):
                totals[i] += gap_term(exp_from(line[i], s.base) * down, s.top - line[i])
        else:
            for i in range(line.size):
                totals[i] += gap_term(exp_from(line[i], s.base) * down, s.top - line[i])
    return folded(totals)


@row_writer
@inner
def _write_entropy_gradient(k, inputs, arguments):
    top, base, share, mean = arguments
    x = widen(inputs[0][k])
    return gap_term(exp_from(x, base) * constants(x).down * share, (top - x) - mean)


@inner
def entropy_row(x, grad, memory, unit):
    s = softmax_of(x, memory)
    down = np.float64(constants(memory[0]).down)
    mean, lost = 0.0, 0.0
    for at in range(0, x.size, BLOCK):
        value = mean_of_block(floats(x[at : at + BLOCK], memory), s)
        mean, lost = add_compensated(mean, lost, value)
    mean = compensated(mean, lost) * (s.share / down) + (s.log_total - s.log_total)
    if grad.size:
        share = cast(s.top, s.share / down / unit)
        arguments = s.top, s.base, share, cast(s.top, mean)
        _write_entropy_gradient((x,), arguments, grad, False)
    return mean + s.log_total


class Both(NamedTuple):
    """What the terms of a KL divergence need."""

    x_top: np.floating
    x_base: tuple
    x_share: np.floating
    y_top: np.floating
    y_base: tuple
    y_share: np.floating
    shift: np.floating
    factor: np.floating


@inner
def ratio_term(a, b, both):
    """A term of KL; q - p, p and log(p / q)."""
    down = constants(a).down
    p = exp_from(a, both.x_base) * down * both.x_share
    q = exp_from(b, both.y_base) * down * both.y_share
    log_ratio = ((a - both.x_top) - (b - both.y_top)) - both.shift
    cost, apart_ = relative_log(p, q, log_ratio)
    return cost, apart_, p, log_ratio


@inner
def kl_of_block(x, y, both):
    apart()
    totals = lanes_of(stack_like(x, LANES))
    for at in range(0, x.size, LANES):
        u, v = x[at : at + LANES], y[at : at + LANES]
        if u.size == LANES:
            for i in range(LANES):
                totals[i] += ratio_term(u[i], v[i], both)[0]
        else:
            for i in range(u.size):
                totals[i] += ratio_term(u[i], v[i], both)[0]
    return folded(totals)


@row_writer
@inner
def _write_q_gradient(k, inputs, both):
    return ratio_term(widen(inputs[0][k]), widen(inputs[1][k]), both)[1] * both.factor


@row_writer
@inner
def _write_p_gradient(k, inputs, arguments):
    both, kl = arguments
    _, _, p, log_ratio = ratio_term(widen(inputs[0][k]), widen(inputs[1][k]), both)
    return gap_term(p, log_ratio - kl) * both.factor


@inner
def kl_row(x, y, q_grad, p_grad, memories, unit):
    s, t = softmax_of(x, memories[0]), softmax_of(y, memories[0])
    down, like = np.float64(constants(s.top).down), s.top
    # NaN without a distribution, so that all gradients are
    x_share = cast(like, s.share / down + (t.log_total - t.log_total))
    both = Both(
        s.top, s.base, x_share, t.top, t.base, cast(like, t.share / down),
        cast(like, s.log_total - t.log_total), cast(like, 1 / unit),
    )  # fmt: skip
    kl, lost = 0.0, 0.0
    for at in range(0, x.size, BLOCK):
        u, v = floats(x[at : at + BLOCK], memories[0]), floats(y[at : at + BLOCK], memories[1])
        kl, lost = add_compensated(kl, lost, kl_of_block(u, v, both))
    kl = compensated(kl, lost) + (s.log_total - s.log_total) + (t.log_total - t.log_total)
    if p_grad.size:
        _write_p_gradient((x, y), (both, cast(like, kl)), p_grad, False)
    if q_grad.size:
        _write_q_gradient((x, y), both, q_grad, False)
    return kl


# ---- panels ----------------------------------------------------------------------------------


@inner
def softmax_columns(planes, number, n, inner, width, tile, tops, shares, sums, ms, lows, work):
    """Of each row of a panel: p = share * exp_between(x, m, low), and log(1 + rest) in `sums`."""
    rests, zero = stack_doubles(planes.data, PANEL), constants(tops[0]).zero
    panel_state(
        planes.data, panel_place(planes, number, inner), n, width, tile, tops, rests, False, work
    )
    log_sums(tops, rests, sums)
    column_bounds(tops, ms, lows)
    for c in range(PANEL):
        shares[c] = cast(zero, 1 / (1 + rests[c])) + (tops[c] - tops[c])


@inner
def entropy_columns(tile, count, tops, shares, ms, lows, costs, errors):
    apart()
    for k in range(count):
        line = tile[k * PANEL : (k + 1) * PANEL]
        for c in range(PANEL):
            p = exp_between(line[c], ms[c], lows[c]) * shares[c]
            term = gap_term(p, tops[c] - line[c])
            costs[c], errors[c] = add_compensated(costs[c], errors[c], term)


@inner
def entropy_gradients(tile, count, tops, shares, ms, lows, means, unit):
    apart()
    factor = constants(tile[0]).one / cast(tile[0], unit)
    for k in range(count):
        line = tile[k * PANEL : (k + 1) * PANEL]
        for c in range(PANEL):
            p = exp_between(line[c], ms[c], lows[c]) * shares[c]
            line[c] = gap_term(p, (tops[c] - line[c]) - means[c]) * factor


@inner
def entropy_panel(x, out, grad, number, outer, n, inner, unit):
    row, width = panel_rows(number, outer, inner)
    tile, work = stack_scratch(x.data, TILE), stack_scratch(x.data, WORK)
    tops, shares, sums, ms, lows = (
        column(work, 5), column(work, 6), column(work, 7), column(work, 8), column(work, 9)
    )  # fmt: skip
    means, errors = column(work, 10), column(work, 11)
    t = constants(tile[0])
    softmax_columns(x, number, n, inner, width, tile, tops, shares, sums, ms, lows, work)
    for c in range(PANEL):
        means[c], errors[c] = t.zero, t.zero
    for first in range(0, n, CLASSES):
        count = min(CLASSES, n - first)
        if n > CLASSES:
            load_tile(x.data, panel_place(x, number, inner), first, count, width, tile)
        entropy_columns(tile, count, tops, shares, ms, lows, means, errors)
    for c in range(PANEL):
        means[c] = cast(t.one, compensated(means[c], errors[c]))
    for c in range(width):
        out[row + c] = (means[c] + sums[c]) / cast(t.one, unit)
    if not grad.data.size:
        return
    for first in range(0, n, CLASSES):
        count = min(CLASSES, n - first)
        if n > CLASSES:
            load_tile(x.data, panel_place(x, number, inner), first, count, width, tile)
        entropy_gradients(tile, count, tops, shares, ms, lows, means, unit)
        store_tile(tile, grad.data, panel_place(grad, number, inner), first, count, width)


@inner
def kl_columns(x_tile, y_tile, count, x_state, y_state, shifts, costs, errors):
    apart()
    x_tops, x_shares, x_ms, x_lows = x_state
    y_tops, y_shares, y_ms, y_lows = y_state
    for k in range(count):
        x_line = x_tile[k * PANEL : (k + 1) * PANEL]
        y_line = y_tile[k * PANEL : (k + 1) * PANEL]
        for c in range(PANEL):
            p = exp_between(x_line[c], x_ms[c], x_lows[c]) * x_shares[c]
            q = exp_between(y_line[c], y_ms[c], y_lows[c]) * y_shares[c]
            log_ratio = ((x_line[c] - x_tops[c]) - (y_line[c] - y_tops[c])) - shifts[c]
            term = relative_log(p, q, log_ratio)[0]
            costs[c], errors[c] = add_compensated(costs[c], errors[c], term)


@inner
def kl_gradients(x_tile, y_tile, count, x_state, y_state, shifts, kls, unit):
    """They take the place of the logits: for p in x_tile, for q in y_tile."""
    apart()
    x_tops, x_shares, x_ms, x_lows = x_state
    y_tops, y_shares, y_ms, y_lows = y_state
    factor = constants(x_tile[0]).one / cast(x_tile[0], unit)
    for k in range(count):
        x_line = x_tile[k * PANEL : (k + 1) * PANEL]
        y_line = y_tile[k * PANEL : (k + 1) * PANEL]
        for c in range(PANEL):
            p = exp_between(x_line[c], x_ms[c], x_lows[c]) * x_shares[c]
            q = exp_between(y_line[c], y_ms[c], y_lows[c]) * y_shares[c]
            log_ratio = ((x_line[c] - x_tops[c]) - (y_line[c] - y_tops[c])) - shifts[c]
            y_line[c] = relative_log(p, q, log_ratio)[1] * factor
            x_line[c] = gap_term(p, log_ratio - kls[c]) * factor


@inner
def kl_panel(x, y, out, q_grad, p_grad, number, outer, n, inner, unit):
    row, width = panel_rows(number, outer, inner)
    x_tile, y_tile = stack_scratch(x.data, TILE), stack_scratch(x.data, TILE)
    work = stack_scratch(x.data, WORK)
    x_state = column(work, 5), column(work, 6), column(work, 7), column(work, 8)
    y_state = column(work, 9), column(work, 10), column(work, 11), column(work, 12)
    shifts, kls, errors = column(work, 13), column(work, 14), column(work, 15)
    t = constants(x_tile[0])
    softmax_columns(
        x, number, n, inner, width, x_tile, x_state[0], x_state[1], shifts, x_state[2], x_state[3],
        work,
    )  # fmt: skip
    softmax_columns(
        y, number, n, inner, width, y_tile, y_state[0], y_state[1], kls, y_state[2], y_state[3],
        work,
    )  # fmt: skip
    for c in range(PANEL):
        shifts[c] -= kls[c]
        x_state[1][c] += shifts[c] - shifts[c]  # NaN without a distribution: so are all gradients
        kls[c], errors[c] = t.zero, t.zero
    for first in range(0, n, CLASSES):
        count = min(CLASSES, n - first)
        if n > CLASSES:
            load_tile(x.data, panel_place(x, number, inner), first, count, width, x_tile)
            load_tile(y.data, panel_place(y, number, inner), first, count, width, y_tile)
        kl_columns(x_tile, y_tile, count, x_state, y_state, shifts, kls, errors)
    for c in range(PANEL):  # NaN where there is no distribution
        kls[c] = cast(t.one, compensated(kls[c], errors[c])) + (shifts[c] - shifts[c])
    for c in range(width):
        out[row + c] = kls[c] / cast(t.one, unit)
    if not q_grad.data.size:
        return
    for first in range(0, n, CLASSES):
        count = min(CLASSES, n - first)
        if n > CLASSES:
            load_tile(x.data, panel_place(x, number, inner), first, count, width, x_tile)
            load_tile(y.data, panel_place(y, number, inner), first, count, width, y_tile)
        kl_gradients(x_tile, y_tile, count, x_state, y_state, shifts, kls, unit)
        store_tile(y_tile, q_grad.data, panel_place(q_grad, number, inner), first, count, width)
        if p_grad.data.size:
            store_tile(x_tile, p_grad.data, panel_place(p_grad, number, inner), first, count, width)
