"""exp, exp2, log, log1p, tanh and powers in plain arithmetic, within 2 ULP (tanh 3, powers more)
over their whole range.

A call of math.exp keeps LLVM from vectorising the loop around it, and Numba ships no vector exp
(at (65536, 1000) math.exp took 3.4 times as long as these). The formulas and their coefficients are
those of kernels/cython/vector_math.h, whose comments derive them; so are the two types, float32 and
float64. Nothing is compiled with fastmath, which would give NaN and infinity no meaning and undo
the compensated sums. What LLVM may change is allowed operation by operation: `mul_add` may
be fused, `add_in_any_order` may be spread over the lanes of a vector.
"""

from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from ._jit_options import INTERNAL, internal

# ---- operations that Python does not have ----------------------------------------------------

_SAME_WIDTH = {
    types.float32: types.int32,
    types.float64: types.int64,
    types.int32: types.float32,
    types.int64: types.float64,
}


@intrinsic
def bits(typingctx, value):
    """The same bits as an integer of that width, or as a float."""
    to = _SAME_WIDTH[value]

    def generate(context, builder, signature, args):
        return builder.bitcast(args[0], context.get_value_type(to))

    return to(value), generate


@intrinsic
def mul_add(typingctx, a, b, c):
    """a * b + c, rounded once where the processor has such an instruction."""

    def generate(context, builder, signature, args):
        real = args[0].type
        fused = builder.module.declare_intrinsic(
            "llvm.fmuladd", [real], ir.FunctionType(real, [real] * 3)
        )
        return builder.call(fused, args)

    return a(a, a, a), generate


@intrinsic
def add_in_any_order(typingctx, a, b):
    """a + b of a sum whose order is left to the compiler: it is then the same in every call."""

    def generate(context, builder, signature, args):
        return builder.fadd(*args, flags=("reassoc", "nsz"))

    return a(a, a), generate


@intrinsic
def no_inline(typingctx):
    """Keeps the function that calls it from being inlined. One that adds in any order calls it: the
    order is then the same in every caller, in kernels and in code of users. One that is large does
    so that LLVM has less to compile.
    """

    def generate(context, builder, signature, args):
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), generate


@internal
def add_compensated(total, error, term):
    """total + term, and `error` plus what that loses (Knuth's two-sum)."""
    new = total + term
    back = new - total
    return new, error + ((total - (new - back)) + (term - back))


@internal
def add_fast(total, error, term):
    """add_compensated in three operations, for terms of one sign (Dekker). Nothing is lost where
    total >= term already; a larger term may lose half a unit of its last place, and doubles the
    total.
    """
    new = total + term
    return new, error + (term - (new - total))


@internal
def compensated(total, error):
    """The sum as a float64. The error of an infinite one is NaN."""
    return np.float64(total) + np.float64(error) if error == error else np.float64(total)


# ---- the two types ---------------------------------------------------------------------------


class Constants(NamedTuple):
    """What the functions need to know of a floating type. Integers have its width."""

    zero: np.floating
    one: np.floating
    half: np.floating
    two: np.floating
    lowest: np.floating  # -inf
    largest: np.floating  # finite
    least: np.floating  # normal
    to_int: np.floating  # 1.5 * 2**mantissa: adding it rounds to an integer
    log2_e: np.floating
    ln2: np.floating
    ln2_hi: np.floating  # so few bits that it is exact times any exponent
    ln2_lo: np.floating
    exp_low: np.floating  # exp of it rounds to 0
    near_limit: np.floating  # more than twice that, see exp_from
    two_steps: np.floating  # of the last place, relatively
    lowest_power: np.floating  # of two, by which scale_up can multiply
    to_exponent: np.floating  # adding it to n leaves the exponent of 2**(n + up) in the last bits
    down: np.floating  # 2**-up
    nothing: np.floating  # below it, times 2**up, a sum rounds to 0
    tiny: np.floating  # see kl_div_term; so the next two
    untiny: np.floating
    untiny_power: np.floating
    mantissa: np.integer
    bias: np.integer
    sqrt_half: np.integer  # its bits
    magnitude: np.integer  # all bits but the sign
    sign: np.integer  # the place of the sign
    one_int: np.integer


EXP_2_UP_TO = 60


def _constants(real, whole, bias, mantissa, up, ln2_hi, ln2_lo, exp_low, near, sqrt_half):
    info = np.finfo(real)
    to_int = 1.5 * 2.0**mantissa
    return Constants(
        *map(real, (0, 1, 0.5, 2, -np.inf, info.max, info.tiny, to_int)),
        *map(real, (1.4426950408889634, 0.6931471805599453, ln2_hi, ln2_lo)),
        *map(real, (exp_low, near, 2 * info.eps)),
        *map(real, (2 - bias - up, to_int + bias + up, 2.0**-up, 2.0 ** (up - bias - mantissa))),
        *map(real, (2.0**-63, 2.0**86, 86) if mantissa == 23 else (2.0**-500, 2.0**600, 600)),
        *map(whole, (mantissa, bias, sqrt_half, np.iinfo(whole).max, info.bits - 1, 1)),
    )


FLOAT32 = _constants(
    np.float32, np.int32, 127, 23, 64, float.fromhex("0x1.63p-1"), -2.12194440e-4, -104, 256,
    0x3F3504F3,
)  # fmt: skip
FLOAT64 = _constants(
    np.float64, np.int64, 1023, 52, 512, 6.93147180369123816490e-01, 1.90821492927058770002e-10,
    -746, 2048, 0x3FE6A09E667F3BCD,
)  # fmt: skip


def constants(like):
    """`FLOAT32` or `FLOAT64`, by the type of `like`."""
    return FLOAT64 if isinstance(like, np.float64) else FLOAT32


@overload(constants)
def _constants_overload(like):
    table = FLOAT64 if like == types.float64 else FLOAT32
    return lambda like: table


def cast(like, value):
    """`value` in the type of `like`."""
    return type(like)(value)


@overload(cast, inline="always")
def _cast_overload(like, value):
    to = like
    return lambda like, value: to(value)


def _polynomial(*coefficients):
    """Horner's scheme in either type; the highest power comes first, for float32 and float64."""

    def evaluate(x):
        raise NotImplementedError("for compiled code")

    @overload(evaluate, jit_options=INTERNAL)
    def _evaluate(x):
        c = coefficients[1] if x == types.float64 else coefficients[0]
        c = tuple(map(np.float64 if x == types.float64 else np.float32, c))
        n = len(c)

        def horner(x):
            value = c[0]
            for i in range(1, n):
                value = mul_add(value, x, c[i])
            return value

        return horner

    return evaluate


# ---- exp -------------------------------------------------------------------------------------

# q in exp(r) = 1 + r + r**2 * q(r), |r| <= ln(2) / 2
_exp_tail = _polynomial(
    (1.37511503e-3, 8.36898723e-3, 4.16695443e-2, 1.66665179e-1, 4.99999885e-1),
    (
        2.5024585741429218e-8, 2.76312725510702821e-7, 2.75575080521148186e-6,
        2.48014899597542431e-5, 1.98412695956368644e-4, 1.3888888947024378e-3,
        8.33333333345238636e-3, 4.16666666665151239e-2, 1.66666666666664806e-1,
        5.00000000000001285e-1,
    ),
)  # fmt: skip
# (2**r - 1) / r, |r| <= 1/2
_exp_2_tail = _polynomial(
    (
        1.53707048e-4, 1.33998483e-3, 9.61837325e-3, 5.55032904e-2, 2.40226485e-1, 6.93147206e-1,
    ),
    (
        4.43072789840146544e-10, 7.07381015509986209e-9, 1.01782292580493941e-7,
        1.32154351062474748e-6, 1.52527334121407174e-5, 1.54035304575188347e-4,
        1.33335581468747268e-3, 9.61812910759373496e-3, 5.5504108664819545e-2,
        2.40226506959101325e-1, 6.93147180559945335e-1,
    ),
)  # fmt: skip


@internal
def larger(a, b):
    """The larger one; `b` where either is NaN."""
    return a if a > b else b


@internal
def smaller(a, b):
    """The smaller one; `b` where either is NaN."""
    return a if a < b else b


@internal
def scale_up(value, n_and_exponent):
    """value * 2**(n + up) for an integer n, given as n + t.to_exponent; up is 64 or 512. Exact: the
    product with t.down = 2**-up, where there is one, is the only rounding of a subnormal result.
    """
    t = constants(value)
    return value * bits(as_int(value, bits(n_and_exponent) << t.mantissa))


def as_int(like, value):
    """`value` as the integer that is as wide as the float `like`; Numba computes in 64 bits."""
    return type(bits(like))(value)


@overload(as_int, inline="always")
def _as_int_overload(like, value):
    to = _SAME_WIDTH[like]
    return lambda like, value: to(value)


@internal
def _exp_reduced(d, lost):
    """exp(d + lost) as a number near 1, and the power of two that it lacks."""
    t = constants(d)
    n = mul_add(d, t.log2_e, t.to_int) - t.to_int
    r = mul_add(-n, t.ln2_hi, d)
    r = mul_add(-n, t.ln2_lo, r) + lost
    return t.one + mul_add(r * r, _exp_tail(r), r), n


@internal
def bounds(m):
    """For exp_between: `m`, where infinity counts as the largest finite number, and a number so far
    below that exp(x - m) is 0 from there on.
    """
    t = constants(m)
    m = smaller(t.largest, larger(-t.largest, m))
    return m, larger(-t.largest, m - larger(-t.exp_low, abs(m) * t.two_steps))


@internal
def exp_between(x, m, low):
    """exp(x - m) for x <= m, see `bounds`. What the rounding of x - m loses is put back (Knuth's
    two-sum). NaN only where x is NaN.
    """
    t = constants(x)
    x = larger(low, x)
    d = x - m
    back = d - x
    lost = (x - (d - back)) - (m + back)
    e, n = _exp_reduced(larger(t.exp_low, d), lost)
    return scale_up(e, n + t.to_exponent) * t.down


@internal
def exp_sub(x, m):
    m, low = bounds(m)
    return exp_between(x, m, low)


class Base(NamedTuple):
    """What exp_from is kl_div_term to, see `reference`."""

    shift: np.floating
    low: np.floating
    to_exponent: np.floating


@internal
def reference(m):
    """(base, ratio): exp(x - m) = ratio * exp_from(x, base) for x <= m, in fewer operations than
    exp_sub takes.

    A number m' near m takes its place. A small m becomes a multiple of ln(2), and x is reduced as
    it is; subtracting a large m is exact, by Sterbenz's lemma, for every x that is not so far below
    that the result is 0.
    """
    t = constants(m)
    shift, power, ratio = smaller(t.largest, larger(-t.largest, m)), 0.0, 1.0
    if -t.near_limit < m and m < t.near_limit:
        d = FLOAT64
        power = np.rint(np.float64(m) * d.log2_e)
        shift, ratio = t.zero, np.exp((power * d.ln2_hi - m) + power * d.ln2_lo)
    low = cast(m, (power + np.float64(t.lowest_power)) * np.float64(t.ln2))
    return Base(shift, low, cast(m, np.float64(t.to_exponent) - power)), ratio * t.down


@internal
def exp_from(x, base):
    """exp(x - m') * 2**up for x <= m, see `reference`; next to nothing where that is 0."""
    t = constants(x)
    e, n = _exp_reduced(larger(base.low, x - base.shift), -t.zero)
    return scale_up(e, n + base.to_exponent)


@internal
def exp_2(x):
    """2**x for x <= EXP_2_UP_TO: 0 for -inf, NaN for NaN."""
    t = constants(x)
    x = larger(t.lowest_power, x)
    n = (x + t.to_int) - t.to_int
    r = x - n
    return scale_up(mul_add(_exp_2_tail(r), r, t.one), n + t.to_exponent) * t.down


@internal
def sub_to_odd(a, b):
    """a - b for a <= 0 <= b, rounded to odd: of the two floats around an inexact result, the one
    whose last bit is 1. Rounding that again, to a half float, rounds the exact number.
    """
    t = constants(a)
    result = a - b
    back = result - a
    error = (a - (result - back)) - (b + back)
    every = bits(result)
    towards = ((every ^ bits(error)) >> t.sign) | t.one_int
    step = towards if error != t.zero and error == error and not every & t.one_int else 0
    return bits(as_int(a, every + step))


# ---- tanh and log1p --------------------------------------------------------------------------

# tanh(x) = x + x**3 * tail(x**2), |x| < 0.625: the coefficients of Cephes
_tanh_tail_32 = _polynomial(
    (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314442036e-1, -3.33332819422e-1),
    (0.0,),
)
_tanh_top = _polynomial(
    (0.0,),
    (-9.64399179425052238628e-1, -9.92877231001918586564e1, -1.61468768441708447952e3),
)
_tanh_bottom = _polynomial(
    (0.0,),
    (1.0, 1.12811678491631932402e2, 2.23548839060100448583e3, 4.84406305325125486048e3),
)
# log(f) - (f - 1) + (f - 1)**2 / 2 = s * (h + z * tail(z)), z = s**2, s = (f - 1) / (f + 1):
# the coefficients of fdlibm
_log_tail = _polynomial(
    (0.24279078841, 0.28498786688, 0.40000972152, 0.66666662693),
    (
        1.479819860511658591e-01, 1.531383769920937332e-01, 1.818357216161805012e-01,
        2.222219843214978396e-01, 2.857142874366239149e-01, 3.999999999940941908e-01,
        6.666666666666735130e-01,
    ),
)  # fmt: skip


# q in log(1 + e) = e + e**2 * q(e), 0 <= e <= 1
_log_1p_tail = _polynomial(
    (
        -0.00331846996, 0.0202045722, -0.0576644181, 0.106805526, -0.153553944,
        0.196953998, -0.249585873, 0.333305113, -0.499999328,
    ),
    (
        -1.6599325828352185e-05, 0.000199451904760749622, -0.00113966895852180526,
        0.00413990818150590956, -0.0108080748559061298, 0.0218084437664177976,
        -0.0358773930975282429, 0.0503907090621690881, -0.0631094301194415758,
        0.0734141681914698696, -0.0821264165456194045, 0.0905747421003253311,
        -0.0999264698527077277, 0.111098501608610581, -0.12499835233558898,
        0.142856983772630647, -0.16666665578802442, 0.19999999950440156,
        -0.249999999986320082, 0.333333333333139525, -0.499999999999999001,
    ),
)  # fmt: skip


def _tanh_tail(z):
    raise NotImplementedError("for compiled code")


@overload(_tanh_tail, jit_options=INTERNAL)
def _tanh_tail_overload(z):
    if z == types.float64:
        return lambda z: _tanh_top(z) / _tanh_bottom(z)
    return lambda z: _tanh_tail_32(z)


@internal
def tanh(x):
    """The hyperbolic tangent."""
    t = constants(x)
    size, z = abs(x), x * x
    power = smaller(cast(x, EXP_2_UP_TO), size * (t.two * t.log2_e))
    large = t.one - t.two / (exp_2(power) + t.one)
    near = mul_add(x * z, _tanh_tail(z), x)
    far = -large if x < t.zero else large
    return near if size < cast(x, 0.625) else far


@internal
def log_sum(u, lost, down):
    """log((u + lost) / 2**down) where u is 0 or normal, and `lost` what rounding it lost: -inf for
    0, NaN below.
    """
    t = constants(u)
    all_bits = bits(u)
    k = as_int(u, as_int(u, all_bits - t.sqrt_half) >> t.mantissa)
    power = cast(u, k) - down
    f = bits(as_int(u, all_bits - (k << t.mantissa))) - t.one
    # lost is scaled with u; 2**-k must be a normal number, and lost is 0 long before it is not
    least = min(k, as_int(u, t.bias - t.one_int))
    shift = lost * bits(as_int(u, (t.bias - least) << t.mantissa))
    s = f / (f + t.two)
    h = t.half * f * f
    # k * ln2 and f - h may cancel, down to half: their rounding errors are carried along.
    high, part = power * t.ln2_hi, f - h
    total = high + part
    z = s * s
    low = mul_add(s, h + z * _log_tail(z), power * t.ln2_lo)
    result = total + (((high - total) + part) + ((f - part) - h) + (low + (shift - shift * f)))
    special = u if u > t.zero else t.lowest if u == t.zero else t.lowest - t.lowest
    return result if t.zero < u and u <= t.largest else special


@internal
def log(x):
    """log(x), also of subnormal numbers."""
    t = constants(x)
    small = x < t.least
    up, down = cast(x, 2.0**64 if small else 1.0), cast(x, 64.0 if small else 0.0)
    return log_sum(x * up, t.zero, down)


@internal
def log_1p(x):
    """log(1 + x) for x >= -1. What 1 + x rounds away returns as a correction."""
    t = constants(x)
    u = x + t.one
    back = u - x
    return log_sum(u, (x - (u - back)) + (t.one - back), t.zero)


@internal
def log_1p_small(e):
    """log(1 + e) for e from 0 to 1, without a division."""
    return mul_add(e * e, _log_1p_tail(e), e)


@internal
def power_of(x, y):
    """x**y for x from 0 to 1 and y > 0, within 3 + 2 * y ULP; NaN below 0."""
    t = constants(x)
    small = x < t.least
    u = x * cast(x, 2.0**64 if small else 1.0)
    all_bits = bits(u)
    k = as_int(u, as_int(u, all_bits - t.sqrt_half) >> t.mantissa)
    whole = cast(x, k) - cast(x, 64.0 if small else 0.0)
    f = bits(as_int(u, all_bits - (k << t.mantissa))) - t.one
    s = f / (f + t.two)
    h, z = t.half * f * f, s * s
    log_2 = (f - (h - s * (h + z * _log_tail(z)))) * t.log2_e
    n = (larger(t.lowest_power, y * (whole + log_2)) + t.to_int) - t.to_int
    half = as_int(y, t.mantissa >> t.one_int)
    upper = bits(as_int(y, as_int(y, bits(y) >> half) << half))
    r = larger(-t.one, (upper * whole - n) + mul_add(y - upper, whole, y * log_2))
    result = scale_up(mul_add(_exp_2_tail(r), r, t.one), n + t.to_exponent) * t.down
    special = t.zero if x == t.zero else t.lowest - t.lowest
    return result if x > t.zero else special


# ---- terms of the KL divergence -----------------------------------------------------------------


@internal
def kl_div_term(x, y, low):
    """x * log(x / y) - x + y for x, y >= 0: y for x = 0, infinity for y = 0, and never negative.
    Where x and y are nearly equal it is as exact as y - x is, to which `low` is added: what
    rounding x and y lost of it.

    Each choice is one of two: LLVM makes vectors of those, but not of three in one expression.
    """
    t = constants(x)
    # The ratio must be a normal number. Of nearly equal ones both are scaled, or neither.
    limit_x = t.two * t.tiny if y < t.two * t.tiny else t.tiny
    limit_y = t.two * t.tiny if x < t.two * t.tiny else t.tiny
    a = x * (t.untiny if x < limit_x else t.one)
    b = y * (t.untiny if y < limit_y else t.one)
    down = t.untiny_power if y < limit_y else t.zero
    down -= t.untiny_power if x < limit_x else t.zero
    inverse = t.one / a
    u = b * inverse
    lost = mul_add(-u, a, b) * inverse
    all_bits = bits(u)
    k = as_int(u, as_int(u, all_bits - t.sqrt_half) >> t.mantissa)
    power = cast(u, k) - down
    f = bits(as_int(u, all_bits - (k << t.mantissa))) - t.one
    f += lost * bits(as_int(u, as_int(u, t.bias - k) << t.mantissa))
    difference = ((b - a) + low) * inverse
    f = difference if power == t.zero else f
    s = f / (f + t.two)
    h = t.half * f * f
    near = x * (h - s * (h + s * s * _log_tail(s * s)))
    far = (y - x) - x * (power * t.ln2_hi + (f + power * t.ln2_lo))
    result = near + (far if power != t.zero else t.zero)
    result = result if y > t.zero else -t.lowest
    return result if x > t.zero else y


@internal
def kl_div_term_from_log(p, q, log_ratio):
    """kl_div_term of p and q, and q - p, given log_ratio = log(p / q): exact in the same way."""
    t = constants(p)
    r = -log_ratio
    square = r * r * _exp_tail(r)  # expm1(r) - r, |r| <= ln(2) / 2
    near = abs(r) < t.half * t.ln2
    difference = p * (r + square) if near else q - p
    result = p * square if near else p * log_ratio + (q - p)
    return (q if p == t.zero else result), difference


@internal
def scale_near_one(x):
    """A power of two that brings x >= 0 to [1, 2), or [2, 4), or less for a subnormal number."""
    t = constants(x)
    exponent = as_int(x, as_int(x, t.bias + t.bias) - as_int(x, bits(x) >> t.mantissa))
    return bits(as_int(x, (exponent if exponent > t.one_int else t.one_int) << t.mantissa))
