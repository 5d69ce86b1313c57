"""Probabilities whose outcomes are contiguous: a row in two passes, by blocks.

The first makes the mass of a row, its largest element and the sum of the others; the second sums
the terms of the formula, from the cache. Blocks are merged in order, in float64 with
compensation. The rare row that has elements below the range of its largest is computed again,
element by element.

"""

import math
from typing import NamedTuple

import numpy as np

from .._jit_options import internal
from .._math import (
    add_compensated,
    add_in_any_order,
    as_int,
    bits,
    cast,
    compensated,
    constants,
    kl_div_term,
    log,
    mul_add,
    no_inline,
)
from .._rows import LANES, floats, maximum
from .._storage import stack_like, widen

# Elements of a block, which are added in their own type, LANES sums side by side: four terms each.
# Equal terms are all rounded in the same direction, and 32 of them were 12 ULP off. Adding floats
# as doubles took twice as long.
BLOCK = 256
NORMAL_DOUBLE, LEAST_DOUBLE = 2.0**-1022, 2.0**-1074
NOTHING = -10000  # power of a sum of zeros: less than any other


@internal
def lanes_of(totals):
    """`totals` as LANES sums of a block, all 0."""
    totals[:] = constants(totals[0]).zero
    return totals


@internal
def folded(totals):
    """Their sum, by halves: that of equal numbers is exact."""
    half = LANES
    while half > 1:
        half //= 2
        for i in range(half):
            totals[i] += totals[half + i]
    return np.float64(totals[0])


def sums_of(term):
    """A function that sums term(x[i], y[i], arguments) over a block, in the type of x."""

    @internal
    def sums(x, y, arguments):
        no_inline()
        totals = lanes_of(stack_like(x, LANES))
        for at in range(0, x.size, LANES):
            u, v = x[at : at + LANES], y[at : at + LANES]
            if u.size == LANES:
                for i in range(LANES):
                    totals[i] += term(u[i], v[i], arguments)
            else:
                for i in range(u.size):
                    totals[i] += term(u[i], v[i], arguments)
        return folded(totals)

    return sums


# ---- the mass of a row -----------------------------------------------------------------------


class Mass(NamedTuple):
    """Of a sum: (largest + others + lost) * 2**power, and the smallest element."""

    largest: float
    others: float  # the sum of all other elements; NaN where one is negative, NaN or infinite
    power: int
    lost: float  # what rounding `others` lost
    least: float  # the smallest element above 0, not divided by 2**power


@internal
def is_distribution(mass):
    return mass.largest > 0 and mass.others >= 0


@internal
def block_mass(x):
    """Of floats."""
    no_inline()
    t = constants(x[0])
    largest, least = maximum(x), as_int(x[0], t.magnitude)
    for i in range(x.size):  # bits of a number that is not negative are ordered as it is
        least = min(least, as_int(x[i], t.magnitude if x[i] == t.zero else bits(x[i])))
    if least < 0 or not largest <= t.largest:
        return Mass(0.0, math.nan, NOTHING, 0.0, math.inf)
    power, scale = NOTHING, t.one
    if largest > t.zero:
        most = t.bias - 1  # whose power of two and its inverse are normal
        power = max(-most, min(most, math.frexp(np.float64(largest))[1] - 1))
        scale = cast(largest, math.ldexp(1.0, -power))
    scaled, max_count, totals = largest * scale, t.zero, lanes_of(stack_like(x, LANES))
    for at in range(0, x.size, LANES):
        line = x[at : at + LANES]
        if line.size == LANES:
            for i in range(LANES):
                a = line[i] * scale
                totals[i] += t.zero if a == scaled else a
                max_count = add_in_any_order(max_count, t.one if a == scaled else t.zero)
        else:
            for i in range(line.size):
                a = line[i] * scale
                totals[i] += t.zero if a == scaled else a
                max_count = add_in_any_order(max_count, t.one if a == scaled else t.zero)
    others = folded(totals) + np.float64(scaled) * (np.float64(max_count) - 1)
    smallest = np.float64(bits(least)) if largest > t.zero else math.inf
    return Mass(np.float64(scaled), others, power, 0.0, smallest)


@internal
def merged_mass(a, b):
    if b.power > a.power or (b.power == a.power and b.largest > a.largest):
        a, b = b, a
    power = max(-2200, b.power - a.power)
    others, lost = add_compensated(a.others, a.lost, math.ldexp(b.largest, power))
    others, lost = add_compensated(others, lost, math.ldexp(b.others, power))
    lost += math.ldexp(b.lost, power)
    return Mass(a.largest, others, a.power, lost, min(a.least, b.least))


@internal
def empty_mass():
    return Mass(0.0, 0.0, NOTHING, 0.0, math.inf)


@internal
def settled(mass):
    return Mass(mass.largest, mass.others + mass.lost, mass.power, 0.0, mass.least)


@internal
def row_mass(x, memory):
    """`memory` holds a block of half floats widened."""
    mass = empty_mass()
    for at in range(0, x.size, BLOCK):
        mass = merged_mass(mass, block_mass(floats(x[at : at + BLOCK], memory)))
    return settled(mass)


@internal
def to_units(like, mass):
    """By which elements are multiplied to be in the units of their mass."""
    return cast(like, math.ldexp(1.0, -mass.power))


# ---- terms -----------------------------------------------------------------------------------


@internal
def cross_term(u, v, inverse):
    """u * log(largest / v), inverse = 1 / largest."""
    t = constants(u)
    term = u * -log(v * inverse)
    return t.zero if u == t.zero else term


@internal
def rescaled(ratio, u):
    """u * ratio, and what rounding that loses. Of a u > 0 it is not 0."""
    a = u * ratio
    return (a if a != constants(u).zero else u), mul_add(u, ratio, -a)


@internal
def kl_term(u, v, ratio):
    """A term of KL of p = u / (sum of u) from q = v / (sum of v), times the sum of v. `ratio` is
    that sum divided by the other; what rounding it loses is of second order, see
    kernels/reference/information.py.
    """
    a, low = rescaled(ratio, u)
    return kl_div_term(a, v, -low)


@internal
def sum_of_both(u, v, ratio):
    """p + q in the same units, and what rounding it loses."""
    a, low = rescaled(ratio, u)
    total = a + v
    back = total - a
    return total, (a - (total - back)) + (v - back) + low


# JS has a term for p and one for q; a loop with both is not vectorised. They are those of 2 p and
# 2 q from p + q: the half of that, of the smallest number, would be 0.
@internal
def js_term_of_p(u, v, ratio):
    a, low = rescaled(ratio, u)
    total, total_low = sum_of_both(u, v, ratio)
    return kl_div_term(a + a, total, total_low - (low + low))


@internal
def js_term_of_q(u, v, ratio):
    total, total_low = sum_of_both(u, v, ratio)
    return kl_div_term(v + v, total, total_low)


@internal
def cross_sums(x, y, x_scale, y_scale, inverse, largest):
    """Of a block: the sum of the terms, and the weight of all outcomes but the most likely in q,
    whose term is 0 here.
    """
    no_inline()
    t = constants(x[0])
    weight, totals = t.zero, lanes_of(stack_like(x, LANES))
    for at in range(0, x.size, LANES):
        x_line, y_line = x[at : at + LANES], y[at : at + LANES]
        if x_line.size == LANES:
            for i in range(LANES):
                u, v = x_line[i] * x_scale, y_line[i] * y_scale
                term = cross_term(u, v, inverse)
                totals[i] += t.zero if v == largest else term
                weight = add_in_any_order(weight, t.zero if v == largest else u)
        else:
            for i in range(x_line.size):
                u, v = x_line[i] * x_scale, y_line[i] * y_scale
                term = cross_term(u, v, inverse)
                totals[i] += t.zero if v == largest else term
                weight = add_in_any_order(weight, t.zero if v == largest else u)
    return folded(totals), np.float64(weight)


# ---- rows with elements below the range -------------------------------------------------------


@internal
def is_beyond(like, p_least, p_unit, q_least, q_unit):
    """Whether vectors would lose too much of a row: digits of an element of q, of which a logarithm
    is taken, or all of an element of p. In their units, numbers lose digits below the first limit
    and may become 0 below the second. JS needs no test: its terms are small where an element is.
    """
    t = constants(like)
    return q_least * q_unit < t.least or p_least * p_unit < t.least * t.two_steps


@internal
def kl_div_term_of_product(x, row, column, whole):
    """x * log(x / y) - x + y for y = row * column / whole, also where that is below all numbers."""
    y = row * column / whole
    if x == 0:
        return y
    if y < NORMAL_DOUBLE or x / y < NORMAL_DOUBLE or math.isinf(x / y):
        log_ratio = (math.log(x) - math.log(row)) + (math.log(whole) - math.log(column))
        return x * log_ratio + (y - x)
    gap = (y - x) / x
    return x * (gap - math.log1p(gap)) if abs(gap) < 0.5 else x * math.log(x / y) + (y - x)


@internal
def ratio_of(x, largest):
    """2**500 * x / largest for x <= largest; largest * 2**-500 may be 0."""
    return x * 2.0**500 / largest if largest < 1.0 else x / (largest * 2.0**-500)


@internal
def largest_and_others(x, step, n):
    """The largest element, and the sum of the others divided by it, one after the other."""
    at = 0
    for k in range(n):
        at = k if widen(x[k * step]) > widen(x[at * step]) else at
    largest, others, lost = np.float64(widen(x[at * step])), 0.0, 0.0
    for k in range(n):
        if k != at:
            term = ratio_of(np.float64(widen(x[k * step])), largest)
            others, lost = add_compensated(others, lost, term)
    return largest, (others + lost) * 2.0**-500


@internal
def value_beyond(of_kl, x, x_step, y, y_step, n):
    """The cross-entropy or KL divergence of two distributions in nats, one element after the other.

    What is summed is 2**500 times as large, so that no term is subnormal.
    """
    no_inline()
    p_largest, p_others = largest_and_others(x, x_step, n)
    q_largest, q_others = largest_and_others(y, y_step, n)
    small = q_largest < 1.0  # as in ratio_of
    column, whole = (2.0**500, q_largest) if small else (1.0, q_largest * 2.0**-500)
    total, lost = 0.0, 0.0
    for k in range(n):
        u, v = np.float64(widen(x[k * x_step])), np.float64(widen(y[k * y_step]))
        p = max(LEAST_DOUBLE, ratio_of(u, p_largest))
        if of_kl:
            p *= (1 + q_others) / (1 + p_others)
            term = kl_div_term_of_product(p if u > 0 else 0.0, v, column, whole)
        elif u > 0:
            ratio = v / q_largest
            normal = ratio >= NORMAL_DOUBLE
            term = -p * (math.log(ratio) if normal else math.log(v) - math.log(q_largest))
        else:
            term = 0.0
        total, lost = add_compensated(total, lost, term)
    total = compensated(total, lost) * 2.0**-500
    return total / (1 + q_others) if of_kl else math.log1p(q_others) + total / (1 + p_others)


# ---- a row -----------------------------------------------------------------------------------


@internal
def cross_row(x, y, same, memories):
    """The cross-entropy of a row, or its entropy where y is the same as x; in nats."""
    p = row_mass(x, memories[0])
    q = p if same else row_mass(y, memories[0])
    if not (is_distribution(p) and is_distribution(q)):
        return math.nan
    like = memories[0][0]
    units = to_units(like, p), to_units(like, q)
    if is_beyond(like, p.least, units[0], q.least, units[1]):
        return value_beyond(False, x, 1, y, 1, x.size)
    inverse, largest = cast(like, 1 / q.largest), cast(like, q.largest)
    total, lost, weight = 0.0, 0.0, 0.0
    for at in range(0, x.size, BLOCK):
        u, v = floats(x[at : at + BLOCK], memories[0]), floats(y[at : at + BLOCK], memories[1])
        sums = cross_sums(u, v, units[0], units[1], inverse, largest)
        total, lost = add_compensated(total, lost, sums[0])
        weight += sums[1]
    total = compensated(total, lost)
    # What rounding the inverse did to the logarithms is the same for all of them.
    total += weight * math.log1p(np.float64(mul_add(inverse, largest, -constants(like).one)))
    return math.log1p(q.others / q.largest) + total / (p.largest + p.others)


def scaled_sums_of(term):
    """A function that sums term(x[i] * scale of x, y[i] * scale of y, ratio) over a block."""

    @internal
    def scaled(u, v, arguments):
        u_scale, v_scale, ratio = arguments
        return term(u * u_scale, v * v_scale, ratio)

    return sums_of(scaled)


kl_sums, js_sums_of_p, js_sums_of_q = map(scaled_sums_of, (kl_term, js_term_of_p, js_term_of_q))


@internal
def divergence_row(x, y, of_js, memories):
    p, q = row_mass(x, memories[0]), row_mass(y, memories[0])
    if not (is_distribution(p) and is_distribution(q)):
        return math.nan
    like = memories[0][0]
    p_sum, q_sum = p.largest + p.others, q.largest + q.others
    arguments = to_units(like, p), to_units(like, q), cast(like, q_sum / p_sum)
    if not of_js and is_beyond(like, p.least, arguments[0], q.least, arguments[1]):
        return value_beyond(True, x, 1, y, 1, x.size)
    total, lost = 0.0, 0.0
    for at in range(0, x.size, BLOCK):
        u, v = floats(x[at : at + BLOCK], memories[0]), floats(y[at : at + BLOCK], memories[1])
        if of_js:
            value = js_sums_of_p(u, v, arguments) + js_sums_of_q(u, v, arguments)
        else:
            value = kl_sums(u, v, arguments)
        total, lost = add_compensated(total, lost, value)
    return compensated(total, lost) / (4 * q_sum if of_js else q_sum)
