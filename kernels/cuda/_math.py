"""exp and max as softmax needs them, and the running state of a softmax (`State`)."""

import math
from functools import cache
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
from numba import cuda
from numba.cuda.libdevice import fsub_rd, fsub_ru

from ._ptx import bits_to_f32, bits_to_f64, f32_to_bits, f64_to_bits, max_nan_f32

# Inlined always: a call would spill what the caller holds in registers.
device = cuda.jit(device=True, forceinline=True)


def namespace(*functions, **others):
    """Functions by their names, and others by the names that are given."""
    named = {getattr(f, "py_func", f).__name__: f for f in functions}
    return SimpleNamespace(**named, **others)


class State(NamedTuple):
    """The softmax of the elements read so far; (-inf, 0, 0) where there are none.

    The largest element is counted apart, as its 1 would swallow small exponentials:
    ``sumexp_m1 = sumexp_below + (max_count - 1)`` is the sum of exp(x - row_max) less 1, and
    log1p(sumexp_m1) its logarithm, exact where one element dominates. NaN stays NaN.
    """

    row_max: float
    sumexp_below: float  # sum of exp(x - row_max) over the elements below the maximum
    max_count: float  # how many elements equal it


@device
def _larger_f64(a, b):
    return a if a > b or a != a else b


@device
def _rounding_error(x, row_max, gap):
    """(x - row_max) - gap, where gap is the rounded x - row_max, exactly (Knuth's two-sum). In exp,
    it saves softmax 10 to 70 ULP at offsets of 100.
    """
    back = gap - x
    return (x - (gap - back)) - (row_max + back)


@device
def _exp_below_f64(x, row_max):
    """exp(x - row_max)."""
    gap = x - row_max
    e = math.exp(gap)
    return e + e * _rounding_error(x, row_max, gap) if e > 0 else e


@device
def add_compensated(total, error, value):
    """total + value, and the sum's rounding error so far (Knuth's two-sum). For one thread."""
    new = total + value
    back = new - total
    return new, error + ((total - (new - back)) + (value - back))


_LOWEST = np.float32(-150)  # of a smaller number, exp is 0 in float32
_LOG2_E, _ROUND = np.float32(1.4426950408889634), np.float32(1.5 * 2**23)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
# exp(f) for |f| < 0.35 by Taylor, to 2e-9 with these. The instruction ex2.approx errs by 2 ULP.
_C2, _C3, _C4, _C5, _C6, _C7 = (np.float32(1 / math.factorial(i)) for i in range(2, 8))


@device
def _exp_below_f32(x, row_max):
    """exp(x - row_max), within 1 ULP."""
    gap = x - row_max
    low = max_nan_f32(gap, _LOWEST)
    error = _rounding_error(x, row_max, gap) if gap > _LOWEST else np.float32(0)
    shifted = low * _LOG2_E + _ROUND  # its last bits are the exponent
    n = shifted - _ROUND
    f = ((low - n * _LN2_HIGH) - n * _LN2_LOW) + error
    tail = _C2 + f * (_C3 + f * (_C4 + f * (_C5 + f * (_C6 + f * _C7))))
    e = np.float32(1) + (f + f * f * tail)
    # In two steps, as 2**n may be too small for a float32 where e * 2**n is none the less.
    exponent = np.int32(f32_to_bits(shifted)) - np.int32(0x4B400000)
    half = exponent >> 1
    first = bits_to_f32(np.uint32((half + 127) << 23))
    second = bits_to_f32(np.uint32((exponent - half + 127) << 23))
    return e * first * second


@device
def _exp_below_half(x, row_max):
    """exp(x - row_max) for values of 16 bits: their float32 difference is exact where it counts."""
    return math.exp(x - row_max)


@device
def _word_f64(x):
    """The upper half of its bits: sign, exponent and the first of the mantissa."""
    return f64_to_bits(x)[1]


@device
def _with_word_f64(x, word):
    """x with these bits in place of its own."""
    return bits_to_f64(f64_to_bits(x)[0], word)


@device
def _upper_f64(x):
    """x without the lower half of its bits."""
    return bits_to_f64(np.uint32(0), f64_to_bits(x)[1])


@device
def _with_word_f32(x, word):
    return bits_to_f32(word)


@device
def _upper_f32(x):
    return bits_to_f32(f32_to_bits(x) & np.uint32(0xFFFFF000))


def _power_of(real):
    """A function (x, y): x**y for x from 0 to 1 and y > 0; NaN below 0.

    With x = 2**k * f it is 2**(y * k + y * log2(f)); the first term may be large, so it is not
    rounded before an integer has been taken away.
    """
    double = real is np.float64
    word_of, with_word, upper_of, maximum, mantissa, bias, sqrt_half = (
        (_word_f64, _with_word_f64, _upper_f64, _larger_f64, 20, 1023, np.uint32(0x3FE6A09E))
        if double
        else (f32_to_bits, _with_word_f32, _upper_f32, max_nan_f32, 23, 127, np.uint32(0x3F3504F3))
    )
    zero, one, nan = real(0), real(1), real(np.nan)
    least, up, down = real(2.0 ** (1 - bias)), real(2.0**64), 64
    to_int = real(1.5 * 2.0 ** (52 if double else 23))
    lowest = real(-5 * bias)  # with no more, the power is 0

    @device
    def two_to(n):
        return with_word(zero, np.uint32((max(n, -bias) + bias) << mantissa))

    @device
    def power(x, y):
        if not x > zero:
            return zero if x == zero else nan
        small = x < least
        u = x * (up if small else one)
        k = np.int32(word_of(u) - sqrt_half) >> mantissa
        log_2 = math.log2(with_word(u, np.uint32(np.int32(word_of(u)) - (k << mantissa))))
        whole = real(k - down if small else k)
        n = (maximum(lowest, y * (whole + log_2)) + to_int) - to_int
        upper = upper_of(y)  # this times k is exact
        r = cuda.fma(upper, whole, -n) + cuda.fma(y - upper, whole, y * log_2)
        # In two steps, as in exp.
        half = np.int32(n) >> 1
        return math.exp2(maximum(-one, r)) * two_to(half) * two_to(np.int32(n) - half)

    return power


@cache
def math_of(real, half):
    """The functions for computing in `real`, for storage of 16 bits if `half`."""
    maximum = _larger_f64 if real is np.float64 else max_nan_f32
    exp_below = _exp_below_f64 if real is np.float64 else _exp_below_f32
    exp_below = _exp_below_half if half else exp_below
    zero, one = real(0), real(1)

    @device
    def add_value(x, state):
        """The state with one more element."""
        row_max, sumexp_below, max_count = state
        new_max = maximum(row_max, x)
        if new_max != row_max:
            sumexp_below = (sumexp_below + max_count) * exp_below(row_max, new_max)
            max_count = zero
            row_max = new_max
        if x == row_max:
            max_count += one
        else:
            sumexp_below += exp_below(x, row_max)
        return State(row_max, sumexp_below, max_count)

    @device
    def rescaled(state, new_max):
        """A state relative to `new_max`, the maximum of its elements and others."""
        row_max, sumexp_below, max_count = state
        if row_max == new_max:
            return State(new_max, sumexp_below, max_count)
        return State(new_max, (sumexp_below + max_count) * exp_below(row_max, new_max), zero)

    def adder_of(count):
        """A function that adds `count` elements, which lie in an array, at once."""

        @device
        def add_values(v, state):
            new_max = state.row_max
            for j in range(count):
                new_max = maximum(new_max, v[j])
            if new_max != state.row_max:
                state = rescaled(state, new_max)
            row_max, sumexp_below, max_count = state
            for j in range(count):
                if v[j] == row_max:
                    max_count += one
                else:
                    sumexp_below += exp_below(v[j], row_max)
            return State(row_max, sumexp_below, max_count)

        return add_values

    @device
    def difference(a, b):
        """a - b, such that rounding it again, to 16 bits, rounds as if it were once.

        Of the two float32 that enclose an inexact result, the odd one: no number of 16 bits, and no
        middle between two, is odd.
        """
        if not half:
            return a - b
        down, up = fsub_rd(a, b), fsub_ru(a, b)
        return up if f32_to_bits(down) & 1 == 0 else down

    return namespace(
        *(adder_of, difference, add_value, rescaled),
        maximum=maximum,
        exp_below=exp_below,
        empty_state=State(real(-np.inf), zero, zero),
        power=_power_of(real),
    )
