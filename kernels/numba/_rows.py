"""Rows whose classes are contiguous: the softmax state of a row, and what is made of it.

A row is read in blocks that fit the L1 cache: a first loop over a block finds its maximum, a second
sums exp(x - maximum). Memory is read once, and the loops are so plain that LLVM vectorises them.

A state stands for exp(top) * (1 + rest): one maximal element is the 1, `rest` is the sum of all
others. Where one element dominates, log1p(rest) keeps what log(1 + rest) would round away. The
states of the blocks are merged in order, in float64.

The functions ``row_*`` are for loops in your own compiled code, prange included.
"""

import math

import numpy as np
from numba import types
from numba.extending import overload

from ._compile import compiled
from ._math import (
    add_in_any_order,
    as_int,
    bits,
    cast,
    constants,
    exp_from,
    exp_sub,
    reference,
    sub_to_odd,
)
from ._storage import is_half, narrow, put, widen

BLOCK = 4096  # elements: 16 KB of float32
# Sums of fewer float32 are made in float64, which takes 1.7 times as long: in 500 softmax rows of
# 100 classes the worst element was 4.6 ULP off instead of 3.9. In longer rows errors cancel.
DOUBLE_BELOW = 512


@compiled
def row_of(planes, r, n):
    at = planes.first + r * planes.step
    return planes.data[at : at + n]


# ---- the state of a row ----------------------------------------------------------------------


def floats(x, memory):
    """`x` if it holds floats, else `x` widened into `memory`."""
    raise NotImplementedError("for compiled code")


@overload(floats)
def _floats(x, memory):
    if isinstance(x.dtype, types.Float):
        return lambda x, memory: x

    def widened(x, memory):
        for i in range(x.size):
            memory[i] = widen(x[i])
        return memory[: x.size]

    return widened


@compiled
def maximum(x):
    """Of floats, compared as integers: a maximum of floats depends on the order of NaN and is not
    vectorised. A NaN is the maximum, or is skipped, by its sign; the sums show it either way.
    """
    t = constants(x[0])
    top = bits(t.lowest) ^ t.magnitude
    for i in range(x.size):
        b = bits(x[i])
        top = max(top, as_int(x[i], b ^ ((b >> t.sign) & t.magnitude)))
    return bits(as_int(t.one, top ^ ((top >> t.sign) & t.magnitude)))


@compiled
def exp_sums(x, top, shift, power, exps, total):
    """The sum of exp(x - m') over all but the ties for the maximum, added in the type of `total`;
    the ties; and the exponentials in `exps`, if that is not empty.
    """
    t = constants(top)
    ties = t.zero  # of a block: counted exactly in either type
    if exps.size:
        for i in range(x.size):
            e = exp_from(x[i], shift, power)
            exps[i] = e
            total = add_in_any_order(total, cast(total, t.zero if x[i] == top else e))
            ties = add_in_any_order(ties, t.one if x[i] == top else t.zero)
    else:
        for i in range(x.size):
            e = exp_from(x[i], shift, power)
            total = add_in_any_order(total, cast(total, t.zero if x[i] == top else e))
            ties = add_in_any_order(ties, t.one if x[i] == top else t.zero)
    return np.float64(total), np.float64(ties)


@compiled
def block_state(x, exps):
    """The state of up to BLOCK floats; `exps` keeps exp(x - m') as `exp_from` gives it, if it is
    not empty.
    """
    top = maximum(x)
    shift, power, ratio = reference(top)
    if x.size < DOUBLE_BELOW:
        total, ties = exp_sums(x, top, shift, power, exps, 0.0)
    else:
        total, ties = exp_sums(x, top, shift, power, exps, constants(top).zero)
    return top, ratio * total + (ties - 1)


@compiled
def merged(a_top, a_rest, b_top, b_rest):
    """The state of two parts together. NaN in either `rest` stays."""
    if b_top > a_top:
        a_top, a_rest, b_top, b_rest = b_top, b_rest, a_top, a_rest
    if a_top == b_top:
        return a_top, a_rest + b_rest + 1
    return a_top, a_rest + math.exp(np.float64(b_top) - np.float64(a_top)) * (1 + b_rest)


@compiled
def row_state(x, memory, exps):
    """(top, rest) of a row. `memory` holds a block of half floats widened; `exps` as above, for a
    row of one block.
    """
    if x.size <= BLOCK and x.size:
        return block_state(floats(x, memory), exps)
    t = constants(memory[0])
    top, rest = t.lowest, 0.0
    for at in range(0, x.size, BLOCK):
        part_top, part_rest = block_state(floats(x[at : at + BLOCK], memory), exps[:0])
        top, rest = merged(top, rest, part_top, part_rest)
    return top, rest


@compiled
def log_total(top, rest):
    """log(1 + rest), or NaN where the maximum is infinite and there is no distribution."""
    return math.nan if math.isinf(top) else math.log1p(rest)


# ---- a row of each op ------------------------------------------------------------------------
#
# Results go to a buffer of BLOCK elements first, and from there to `out`: a loop from `x` to the
# buffer is vectorised even where `out` is `x`, and big results can be written past the caches.


@compiled
def write_softmax(x, out, top, rest, exps, buffer, streaming):
    """`exps` holds the exponentials of the row, or is empty."""
    shift, power, ratio = reference(top)
    scale = cast(top, math.nan if math.isinf(top) else ratio / (1 + rest))
    for at in range(0, x.size, BLOCK):
        v, result = x[at : at + BLOCK], buffer[: min(BLOCK, x.size - at)]
        if exps.size:
            for i in range(v.size):
                result[i] = narrow(exps[i] * scale, out)
        else:
            for i in range(v.size):
                result[i] = narrow(exp_from(widen(v[i]), shift, power) * scale, out)
        put(result, out[at : at + BLOCK], streaming)


@compiled
def write_log_softmax(x, out, top, rest, buffer, streaming):
    log_sum = cast(top, log_total(top, rest))
    for at in range(0, x.size, BLOCK):
        v, result = x[at : at + BLOCK], buffer[: min(BLOCK, x.size - at)]
        if is_half(out):  # rounded again in narrow
            for i in range(v.size):
                result[i] = narrow(sub_to_odd(widen(v[i]) - top, log_sum), out)
        else:
            for i in range(v.size):
                result[i] = narrow((widen(v[i]) - top) - log_sum, out)
        put(result, out[at : at + BLOCK], streaming)


@compiled
def softmax_backward_row(grad, y, out, buffer, streaming):
    total = 0.0
    for at in range(0, y.size, BLOCK):
        g, v, part = grad[at : at + BLOCK], y[at : at + BLOCK], 0.0
        for i in range(g.size):
            part = add_in_any_order(part, np.float64(widen(g[i])) * np.float64(widen(v[i])))
        total += part
    total = cast(widen(y[0]), total)
    for at in range(0, y.size, BLOCK):
        g, v, result = grad[at : at + BLOCK], y[at : at + BLOCK], buffer[: min(BLOCK, y.size - at)]
        for i in range(g.size):
            result[i] = narrow(widen(v[i]) * (widen(g[i]) - total), out)
        put(result, out[at : at + BLOCK], streaming)


@compiled
def log_softmax_backward_row(grad, y, out, buffer, streaming):
    total = 0.0
    for at in range(0, y.size, BLOCK):
        g, part = grad[at : at + BLOCK], 0.0
        for i in range(g.size):
            part = add_in_any_order(part, np.float64(widen(g[i])))
        total += part
    total = cast(widen(y[0]), total)
    zero = constants(total).zero
    for at in range(0, y.size, BLOCK):
        g, v, result = grad[at : at + BLOCK], y[at : at + BLOCK], buffer[: min(BLOCK, y.size - at)]
        for i in range(g.size):
            result[i] = narrow(widen(g[i]) - exp_sub(widen(v[i]), zero) * total, out)
        put(result, out[at : at + BLOCK], streaming)
