"""Rows whose classes are contiguous: the softmax state of a row, and what is made of it.

A row is read in blocks that fit the L1 cache: a first loop over a block finds its maximum, a second
sums exp(x - maximum). Memory is read once, and the loops are so plain that LLVM vectorises them.

A state stands for exp(top) * (1 + rest): one maximal element is the 1, `rest` is the sum of all
others. Where one element dominates, log1p(rest) keeps what log(1 + rest) would round away. The
states of the blocks are merged in order, in float64.
"""

import math

import numpy as np
from numba import types
from numba.extending import overload

from ._math import (
    add_compensated,
    add_fast,
    add_in_any_order,
    apart,
    as_int,
    bits,
    cast,
    compensated,
    constants,
    exp_from,
    reference,
    sub_to_odd,
)
from ._parts import inner
from ._storage import before_line, copy_lines, is_half, narrow, stack_like, widen

BLOCK = 2048  # elements: 8 KB of float32
PART = 64  # elements that are written at a time, see row_writer
LANES, SUMS = 64, 3 * 64  # sums side by side: four vectors of 512 bits; and memory for them


@inner
def row_of(planes, r, n):
    at = planes.first + r * planes.step
    return planes.data[at : at + n]


# ---- the state of a row ----------------------------------------------------------------------


def floats(x, memory):
    """`x` if it holds floats next to each other, else its copy in `memory`, as floats."""
    raise NotImplementedError("for compiled code")


@overload(floats)
def _floats(x, memory):
    if isinstance(x.dtype, types.Float) and x.layout == "C":
        return lambda x, memory: x

    def widened(x, memory):
        for i in range(x.size):
            memory[i] = widen(x[i])
        return memory[: x.size]

    return widened


@inner
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


@inner
def lane_sums(sums):
    """From an array of SUMS numbers, LANES compensated sums side by side and their errors, all 0.

    Equal terms round the same way in every addition, so errors of a plain sum do not cancel: those
    of 3770 exponentials of -11 were 7 ULP in float32, 33 in float64. A loop over lanes of constant
    length becomes vectors; one up to the number of elements left took 4 times as long.
    """
    sums[:] = constants(sums[0]).zero
    return sums[:LANES], sums[LANES:]


@inner
def sum_of_lanes(totals, errors):
    """In float64. The error of an infinite sum is NaN."""
    total, error = 0.0, 0.0
    for i in range(LANES):
        total, error = add_fast(total, error + np.float64(errors[i]), np.float64(totals[i]))
    return compensated(total, error)


@inner
def exp_sums(x, top, base, exps):
    """The sum of exp_from(x) over all but the ties for the maximum; the ties; and the exponentials
    in `exps`, if that is not empty.
    """
    apart()
    t = constants(top)
    totals, errors = lane_sums(stack_like(x, SUMS))
    ties, keeps_exps = t.zero, exps.size > 0  # ties of a block are counted exactly in either type
    whole = x.size // LANES * LANES
    for at in range(0, whole, LANES):
        line, kept = x[at : at + LANES], exps[at : at + LANES]
        for i in range(LANES):
            e = exp_from(line[i], base)
            if keeps_exps:
                kept[i] = e
            is_top = line[i] == top
            totals[i], errors[i] = add_fast(totals[i], errors[i], t.zero if is_top else e)
            ties = add_in_any_order(ties, t.one if is_top else t.zero)
    for i in range(x.size - whole):
        v = x[whole + i]
        e = exp_from(v, base)
        if keeps_exps:
            exps[whole + i] = e
        totals[i], errors[i] = add_fast(totals[i], errors[i], t.zero if v == top else e)
        ties = add_in_any_order(ties, t.one if v == top else t.zero)
    return sum_of_lanes(totals, errors), np.float64(ties)


@inner
def block_state(x, exps):
    """The state of up to BLOCK floats; `exps` keeps what `exp_from` gives, if it is not empty."""
    apart()
    top, t = maximum(x), constants(x[0])
    base, ratio = reference(top)
    total, ties = exp_sums(x, top, base, exps)
    return top, (0.0 if total < t.nothing else ratio * total) + (ties - 1)


@inner
def merged(a_top, a_rest, a_lost, b_top, b_rest, b_lost):
    """The state of two parts together, and what rounding took away from its rest. NaN stays."""
    if b_top > a_top:
        a_top, a_rest, a_lost, b_top, b_rest, b_lost = b_top, b_rest, b_lost, a_top, a_rest, a_lost
    scale = 1.0 if a_top == b_top else math.exp(np.float64(b_top) - np.float64(a_top))
    rest, lost = add_compensated(a_rest, a_lost, scale * (1 + b_rest))
    return a_top, rest, lost + scale * b_lost


@inner
def row_state(x, memory, exps):
    """(top, rest) of a row. `memory` holds a block of half floats widened; `exps` as above, for a
    row of one block.
    """
    if x.size <= BLOCK and x.size:
        return block_state(floats(x, memory), exps)
    t = constants(memory[0])
    top, rest, lost = t.lowest, 0.0, 0.0
    for at in range(0, x.size, BLOCK):
        part_top, part_rest = block_state(floats(x[at : at + BLOCK], memory), exps[:0])
        top, rest, lost = merged(top, rest, lost, part_top, part_rest, 0.0)
    return top, rest + lost


@inner
def log_total(top, rest):
    """log(1 + rest), or NaN where the maximum is infinite and there is no distribution."""
    return math.nan if math.isinf(top) else math.log1p(rest)


# ---- a row of each op ------------------------------------------------------------------------


def row_writer(element):
    """A function that writes ``element(k, inputs, arguments)`` to out[k] for every k of a row.

    PART results at a time go to a buffer first, and from there to `out`: the loop that computes is
    vectorised even where `out` is an input, and past the caches only whole lines can be written. It
    is short, so that the processor computes while lines are on their way to memory: with 1024 in
    place of 64 a log-softmax took 2.2 times as long. An index is unsigned because Numba then does
    not ask whether it counts from the end, which vectors cannot.
    """

    @inner
    def write_some(at, count, inputs, arguments, out):
        apart()
        buffer = stack_like(out, PART)
        for i in range(count):
            value = element(np.uint64(at + i), inputs, arguments)
            buffer[i] = narrow(value, out)
        to = out[at : at + count]
        for i in range(count):
            to[i] = buffer[i]

    @inner
    def write(inputs, arguments, out, streaming):
        apart()
        at, parts = 0, stack_like(out, PART)
        if streaming:
            at = min(before_line(out), out.size)
            write_some(0, at, inputs, arguments, out)
        while at + PART <= out.size:
            for i in range(PART):
                value = element(np.uint64(at + i), inputs, arguments)
                parts[i] = narrow(value, out)
            copy_lines(parts, out[at : at + PART], streaming)
            at += PART
        write_some(at, out.size - at, inputs, arguments, out)

    return write


@row_writer
@inner
def _write_product(k, inputs, arguments):
    return inputs[0][k] * arguments[0]


@row_writer
@inner
def _write_softmax(k, inputs, arguments):
    base, scale = arguments
    return exp_from(widen(inputs[0][k]), base) * scale


@inner
def write_softmax(x, out, top, rest, exps, streaming):
    """`exps` holds the exponentials of the row, or is empty."""
    base, ratio = reference(top)
    scale = cast(top, math.nan if math.isinf(top) else ratio / (1 + rest))
    if exps.size:
        _write_product((exps,), (scale,), out, streaming)
    else:
        _write_softmax((x,), (base, scale), out, streaming)


@row_writer
@inner
def _write_log_softmax(k, inputs, arguments):
    top, log_sum = arguments
    below = widen(inputs[0][k]) - top
    # A half float is rounded again.
    return sub_to_odd(below, log_sum) if is_half(inputs[0]) else below - log_sum


@inner
def write_log_softmax(x, out, top, rest, streaming):
    _write_log_softmax((x,), (top, cast(top, log_total(top, rest))), out, streaming)


@inner
def sum_of(a):
    """In float64, of a block."""
    apart()
    total = 0.0
    for i in range(a.size):
        total = add_in_any_order(total, np.float64(widen(a[i])))
    return total


@inner
def dot(a, b):
    """The same of a * b."""
    apart()
    total = 0.0
    for i in range(a.size):
        total = add_in_any_order(total, np.float64(widen(a[i])) * np.float64(widen(b[i])))
    return total


@row_writer
@inner
def _write_softmax_gradient(k, inputs, total):
    g, y = inputs
    return widen(y[k]) * (widen(g[k]) - total)


@inner
def softmax_backward_row(grad, y, out, streaming):
    total = 0.0
    for at in range(0, y.size, BLOCK):
        total += dot(grad[at : at + BLOCK], y[at : at + BLOCK])
    _write_softmax_gradient((grad, y), cast(widen(y[0]), total), out, streaming)


@row_writer
@inner
def _write_log_softmax_gradient(k, inputs, arguments):
    (g, y), (base, total) = inputs, arguments
    return widen(g[k]) - exp_from(widen(y[k]), base) * constants(total).down * total


@inner
def log_softmax_backward_row(grad, y, out, streaming):
    total = 0.0
    for at in range(0, y.size, BLOCK):
        total += sum_of(grad[at : at + BLOCK])
    total = cast(widen(y[0]), total)
    base, _ = reference(constants(total).zero)
    _write_log_softmax_gradient((grad, y), (base, total), out, streaming)
