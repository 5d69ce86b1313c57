"""Rows whose classes are contiguous: the softmax state of a row, and what is made of it.

A row is read in blocks that fit the L1 cache: a first loop over a block finds its maximum, a second
sums exp(x - maximum). Memory is read once, and the loops are so plain that LLVM vectorises them.

The state of a row is (row_max, sumexp_m1): the sum of its exponentials is exp(row_max) * (1 +
sumexp_m1). One maximal element is the 1, `sumexp_m1` is the sum of all others. Where one element
dominates, log1p(sumexp_m1) keeps what log(1 + sumexp_m1) would round away. The states of the blocks
are merged in order, in float64.
"""

import math

import numpy as np
from numba import types
from numba.extending import overload

from ._jit_options import internal
from ._math import (
    add_compensated,
    add_fast,
    add_in_any_order,
    as_int,
    bits,
    cast,
    compensated,
    constants,
    exp_from,
    no_inline,
    reference,
    sub_to_odd,
)
from ._storage import before_line, copy_lines, is_half, narrow, stack_like, widen

BLOCK = 2048  # elements: 8 KB of float32
PART = 64  # elements that are written at a time, see row_writer
LANES, SUMS = 64, 3 * 64  # sums side by side: four vectors of 512 bits; and memory for them


@internal
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


@internal
def maximum(x):
    """Of floats, compared as integers: a maximum of floats depends on the order of NaN and is not
    vectorised. A NaN is the maximum, or is skipped, by its sign; the sums show it either way.
    """
    t = constants(x[0])
    largest = bits(t.lowest) ^ t.magnitude
    for i in range(x.size):
        b = bits(x[i])
        largest = max(largest, as_int(x[i], b ^ ((b >> t.sign) & t.magnitude)))
    return bits(as_int(t.one, largest ^ ((largest >> t.sign) & t.magnitude)))


@internal
def lane_sums(sums):
    """From an array of SUMS numbers, LANES compensated sums side by side and their errors, all 0.

    Equal terms round the same way in every addition, so errors of a plain sum do not cancel: those
    of 3770 exponentials of -11 were 7 ULP in float32, 33 in float64. A loop over lanes of constant
    length becomes vectors; one up to the number of elements left took 4 times as long.
    """
    sums[:] = constants(sums[0]).zero
    return sums[:LANES], sums[LANES:]


@internal
def sum_of_lanes(totals, errors):
    """In float64. The error of an infinite sum is NaN."""
    total, error = 0.0, 0.0
    for i in range(LANES):
        total, error = add_fast(total, error + np.float64(errors[i]), np.float64(totals[i]))
    return compensated(total, error)


@internal
def exp_sums(x, row_max, base, exps):
    """The sum of exp_from(x) over all x below the maximum, the number of the others, and the
    exponentials in `exps`, if that is not empty.
    """
    no_inline()
    t = constants(row_max)
    totals, errors = lane_sums(stack_like(x, SUMS))
    max_count, keeps_exps = t.zero, exps.size > 0  # a float counts the elements of a block exactly
    whole = x.size // LANES * LANES
    for at in range(0, whole, LANES):
        line, kept = x[at : at + LANES], exps[at : at + LANES]
        for i in range(LANES):
            e = exp_from(line[i], base)
            if keeps_exps:
                kept[i] = e
            is_max = line[i] == row_max
            totals[i], errors[i] = add_fast(totals[i], errors[i], t.zero if is_max else e)
            max_count = add_in_any_order(max_count, t.one if is_max else t.zero)
    for i in range(x.size - whole):
        v = x[whole + i]
        e = exp_from(v, base)
        if keeps_exps:
            exps[whole + i] = e
        totals[i], errors[i] = add_fast(totals[i], errors[i], t.zero if v == row_max else e)
        max_count = add_in_any_order(max_count, t.one if v == row_max else t.zero)
    return sum_of_lanes(totals, errors), np.float64(max_count)


@internal
def block_state(x, exps):
    """The state of up to BLOCK floats; `exps` keeps what `exp_from` gives, if it is not empty."""
    no_inline()
    row_max, t = maximum(x), constants(x[0])
    base, ratio = reference(row_max)
    sumexp_below, max_count = exp_sums(x, row_max, base, exps)
    below = 0.0 if sumexp_below < t.nothing else ratio * sumexp_below
    return row_max, below + (max_count - 1)


@internal
def merged(a, b):
    """The state of two parts together; each has a third number, what rounding took away from its
    sum. NaN stays.
    """
    if b[0] > a[0]:
        a, b = b, a
    scale = 1.0 if a[0] == b[0] else math.exp(np.float64(b[0]) - np.float64(a[0]))
    sumexp_m1, lost = add_compensated(a[1], a[2], scale * (1 + b[1]))
    return a[0], sumexp_m1, lost + scale * b[2]


@internal
def row_state(x, memory, exps):
    """(row_max, sumexp_m1). `memory` holds a block of half floats widened; `exps` as above, for a
    row of one block.
    """
    if x.size <= BLOCK and x.size:
        return block_state(floats(x, memory), exps)
    t = constants(memory[0])
    state = t.lowest, 0.0, 0.0
    for at in range(0, x.size, BLOCK):
        row_max, sumexp_m1 = block_state(floats(x[at : at + BLOCK], memory), exps[:0])
        state = merged(state, (row_max, sumexp_m1, 0.0))
    return state[0], state[1] + state[2]


@internal
def log_total(row_max, sumexp_m1):
    """log(1 + sumexp_m1), or NaN where the maximum is infinite and there is no distribution."""
    return math.nan if math.isinf(row_max) else math.log1p(sumexp_m1)


# ---- a row of each op ------------------------------------------------------------------------


def row_writer(element):
    """A function that writes ``element(k, inputs, arguments)`` to out[k] for every k of a row.

    PART results at a time go to a buffer first, and from there to `out`: the loop that computes is
    vectorised even where `out` is an input, and past the caches only whole lines can be written. It
    is short, so that the processor computes while lines are on their way to memory: with 1024 in
    place of 64 a log-softmax took 2.2 times as long. An index is unsigned: of a signed one Numba
    tests whether it counts from the end, which prevents vectors.
    """

    @internal
    def write_some(at, count, inputs, arguments, out):
        no_inline()
        buffer = stack_like(out, PART)
        for i in range(count):
            value = element(np.uint64(at + i), inputs, arguments)
            buffer[i] = narrow(value, out)
        to = out[at : at + count]
        for i in range(count):
            to[i] = buffer[i]

    @internal
    def write(inputs, arguments, out, streaming):
        no_inline()
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
@internal
def _write_product(k, inputs, arguments):
    return inputs[0][k] * arguments[0]


@row_writer
@internal
def _write_softmax(k, inputs, arguments):
    base, scale = arguments
    return exp_from(widen(inputs[0][k]), base) * scale


@internal
def write_softmax(x, out, row_max, sumexp_m1, exps, streaming):
    """`exps` holds the exponentials of the row, or is empty."""
    base, ratio = reference(row_max)
    scale = cast(row_max, math.nan if math.isinf(row_max) else ratio / (1 + sumexp_m1))
    if exps.size:
        _write_product((exps,), (scale,), out, streaming)
    else:
        _write_softmax((x,), (base, scale), out, streaming)


@row_writer
@internal
def _write_log_softmax(k, inputs, arguments):
    row_max, log_sum = arguments
    below = widen(inputs[0][k]) - row_max
    # A half float is rounded again.
    return sub_to_odd(below, log_sum) if is_half(inputs[0]) else below - log_sum


@internal
def write_log_softmax(x, out, row_max, sumexp_m1, streaming):
    log_sum = cast(row_max, log_total(row_max, sumexp_m1))
    _write_log_softmax((x,), (row_max, log_sum), out, streaming)


@internal
def sum_of(a):
    """In float64, of a block."""
    no_inline()
    total = 0.0
    for i in range(a.size):
        total = add_in_any_order(total, np.float64(widen(a[i])))
    return total


@internal
def dot(a, b):
    """The sum of a * b in float64, of a block."""
    no_inline()
    total = 0.0
    for i in range(a.size):
        total = add_in_any_order(total, np.float64(widen(a[i])) * np.float64(widen(b[i])))
    return total


@row_writer
@internal
def _write_softmax_gradient(k, inputs, total):
    g, y = inputs
    return widen(y[k]) * (widen(g[k]) - total)


@internal
def softmax_backward_row(grad, y, out, streaming):
    total = 0.0
    for at in range(0, y.size, BLOCK):
        total += dot(grad[at : at + BLOCK], y[at : at + BLOCK])
    _write_softmax_gradient((grad, y), cast(widen(y[0]), total), out, streaming)


@row_writer
@internal
def _write_log_softmax_gradient(k, inputs, arguments):
    (g, y), (base, total) = inputs, arguments
    return widen(g[k]) - exp_from(widen(y[k]), base) * constants(total).down * total


@internal
def log_softmax_backward_row(grad, y, out, streaming):
    total = 0.0
    for at in range(0, y.size, BLOCK):
        total += sum_of(grad[at : at + BLOCK])
    total = cast(widen(y[0]), total)
    base, _ = reference(constants(total).zero)
    _write_log_softmax_gradient((grad, y), (base, total), out, streaming)
