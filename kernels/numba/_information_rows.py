"""Probabilities whose outcomes are contiguous: a row in two passes, by blocks.

The first makes the mass of a row, its largest element and the sum of the others; the second sums
the terms of the formula, from the cache. Blocks are merged in order, in float64 with
compensation. The rare row that has elements below the range of its largest is computed again,
element by element.

A mass (top, rest, power, lost, least) stands for the sum (top + rest + lost) * 2**power: top the
largest element, rest all the others, `lost` what rounding that lost; `least` is the smallest
element above 0, as it is. `rest` is NaN where one is negative, NaN or infinite.
"""

import math

import numpy as np

from ._math import (
    add_compensated,
    add_in_any_order,
    apart,
    as_int,
    bits,
    cast,
    compensated,
    constants,
    log,
    mul_add,
    relative,
)
from ._parts import inner
from ._rows import LANES, floats, maximum
from ._storage import stack_like, widen

# Elements of a block, which are added in their own type, LANES sums side by side: four terms each.
# Equal terms are all rounded in the same direction, and 32 of them were 12 ULP off. Adding floats
# as doubles took twice as long.
BLOCK = 256
NORMAL_DOUBLE, LEAST_DOUBLE = 2.0**-1022, 2.0**-1074
NOTHING = -10000  # power of a sum of zeros: less than any other


@inner
def lanes_of(totals):
    """`totals` as LANES sums of a block, all 0."""
    totals[:] = constants(totals[0]).zero
    return totals


@inner
def folded(totals):
    """Their sum, by halves: that of equal numbers is exact."""
    half = LANES
    while half > 1:
        half //= 2
        for i in range(half):
            totals[i] += totals[half + i]
    return np.float64(totals[0])


@inner
def is_distribution(mass):
    return mass[0] > 0 and mass[1] >= 0


@inner
def block_mass(x):
    """Of floats."""
    apart()
    t = constants(x[0])
    largest, least = maximum(x), as_int(x[0], t.magnitude)
    for i in range(x.size):  # bits of a number that is not negative are ordered as it is
        least = min(least, as_int(x[i], t.magnitude if x[i] == t.zero else bits(x[i])))
    if least < 0 or not largest <= t.largest:
        return 0.0, math.nan, NOTHING, 0.0, math.inf
    power, scale = NOTHING, t.one
    if largest > t.zero:
        most = t.bias - 1  # whose power of two and its inverse are normal
        power = max(-most, min(most, math.frexp(np.float64(largest))[1] - 1))
        scale = cast(largest, math.ldexp(1.0, -power))
    top, ties, totals = largest * scale, t.zero, lanes_of(stack_like(x, LANES))
    for at in range(0, x.size, LANES):
        line = x[at : at + LANES]
        if line.size == LANES:
            for i in range(LANES):
                a = line[i] * scale
                totals[i] += t.zero if a == top else a
                ties = add_in_any_order(ties, t.one if a == top else t.zero)
        else:
            for i in range(line.size):
                a = line[i] * scale
                totals[i] += t.zero if a == top else a
                ties = add_in_any_order(ties, t.one if a == top else t.zero)
    rest = folded(totals) + np.float64(top) * (np.float64(ties) - 1)
    smallest = np.float64(bits(least)) if largest > t.zero else math.inf
    return np.float64(top), rest, power, 0.0, smallest


@inner
def merged_mass(a, b):
    if b[2] > a[2] or (b[2] == a[2] and b[0] > a[0]):
        a, b = b, a
    power = max(-2200, b[2] - a[2])
    rest, lost = add_compensated(a[1], a[3], math.ldexp(b[0], power))
    rest, lost = add_compensated(rest, lost, math.ldexp(b[1], power))
    return a[0], rest, a[2], lost + math.ldexp(b[3], power), min(a[4], b[4])


@inner
def empty_mass():
    return 0.0, 0.0, NOTHING, 0.0, math.inf


@inner
def settled(mass):
    return mass[0], mass[1] + mass[3], mass[2], 0.0, mass[4]


@inner
def row_mass(x, memory):
    """`memory` holds a block of half floats widened."""
    mass = empty_mass()
    for at in range(0, x.size, BLOCK):
        mass = merged_mass(mass, block_mass(floats(x[at : at + BLOCK], memory)))
    return settled(mass)


@inner
def to_units(like, mass):
    """By which elements are multiplied to be in the units of their mass."""
    return cast(like, math.ldexp(1.0, -mass[2]))


# ---- terms -----------------------------------------------------------------------------------


@inner
def cross_term(u, v, inverse):
    """u * log(top / v), inverse = 1 / top."""
    t = constants(u)
    cost = u * -log(v * inverse)
    return t.zero if u == t.zero else cost


@inner
def brought_to(ratio, u):
    """u * ratio, and what rounding that loses. Of a u > 0 it is not 0."""
    a = u * ratio
    return (a if a != constants(u).zero else u), mul_add(u, ratio, -a)


@inner
def kl_term(u, v, ratio):
    """A term of KL of p = u / (sum of u) from q = v / (sum of v), times the sum of v. `ratio` is
    that sum divided by the other; what rounding it loses is of second order, see
    kernels/reference/information.py.
    """
    a, low = brought_to(ratio, u)
    return relative(a, v, -low)


@inner
def of_both(u, v, ratio):
    """p + q in the same units, and what rounding it loses."""
    a, low = brought_to(ratio, u)
    total = a + v
    back = total - a
    return total, (a - (total - back)) + (v - back) + low


# JS has a term for p and one for q; a loop with both is not vectorised. They are those of 2 p and
# 2 q from p + q: the half of that, of the smallest number, would be 0.
@inner
def js_term_of_p(u, v, ratio):
    a, low = brought_to(ratio, u)
    total, total_low = of_both(u, v, ratio)
    return relative(a + a, total, total_low - (low + low))


@inner
def js_term_of_q(u, v, ratio):
    total, total_low = of_both(u, v, ratio)
    return relative(v + v, total, total_low)


@inner
def cross_sums(x, y, x_scale, y_scale, inverse, top):
    """Of a block: the cost, and the weight of all outcomes but the most likely in q, whose cost is
    0 here.
    """
    apart()
    t = constants(x[0])
    weight, totals = t.zero, lanes_of(stack_like(x, LANES))
    for at in range(0, x.size, LANES):
        x_line, y_line = x[at : at + LANES], y[at : at + LANES]
        if x_line.size == LANES:
            for i in range(LANES):
                u, v = x_line[i] * x_scale, y_line[i] * y_scale
                term = cross_term(u, v, inverse)
                totals[i] += t.zero if v == top else term
                weight = add_in_any_order(weight, t.zero if v == top else u)
        else:
            for i in range(x_line.size):
                u, v = x_line[i] * x_scale, y_line[i] * y_scale
                term = cross_term(u, v, inverse)
                totals[i] += t.zero if v == top else term
                weight = add_in_any_order(weight, t.zero if v == top else u)
    return folded(totals), np.float64(weight)


# ---- rows beyond the range -------------------------------------------------------------------


@inner
def is_beyond(like, p_least, p_unit, q_least, q_unit):
    """Whether vectors would round what matters of a row: the logarithm of an element of q, or
    whether one of p is 0. In their units, numbers lose digits below the first limit and may become
    0 below the second. JS does not ask: its terms are small where an element is.
    """
    t = constants(like)
    seen = t.least * t.two_steps
    return q_least * q_unit < t.least or p_least * p_unit < seen


@inner
def relative_of_product(x, row, column, whole):
    """x * log(x / y) - x + y for y = row * column / whole, also where that is below all numbers."""
    y = row * column / whole
    if x == 0:
        return y
    if y < NORMAL_DOUBLE or x / y < NORMAL_DOUBLE or math.isinf(x / y):
        log_ratio = (math.log(x) - math.log(row)) + (math.log(whole) - math.log(column))
        return x * log_ratio + (y - x)
    gap = (y - x) / x
    return x * (gap - math.log1p(gap)) if abs(gap) < 0.5 else x * math.log(x / y) + (y - x)


@inner
def share_of(x, top):
    """2**500 * x / top for x <= top; top * 2**-500 may be 0."""
    return x * 2.0**500 / top if top < 1.0 else x / (top * 2.0**-500)


@inner
def rest_of(x, step, n):
    """The largest element, and the sum of the others divided by it, one after the other."""
    at = 0
    for k in range(n):
        at = k if widen(x[k * step]) > widen(x[at * step]) else at
    top, rest, lost = np.float64(widen(x[at * step])), 0.0, 0.0
    for k in range(n):
        if k != at:
            term = share_of(np.float64(widen(x[k * step])), top)
            rest, lost = add_compensated(rest, lost, term)
    return top, (rest + lost) * 2.0**-500


@inner
def value_beyond(of_kl, x, x_step, y, y_step, n):
    """The cross-entropy or KL divergence of two distributions in nats, one element after the other.

    What is summed is 2**500 times as large, so that no term is subnormal.
    """
    apart()
    (p_top, p_rest), (q_top, q_rest) = rest_of(x, x_step, n), rest_of(y, y_step, n)
    small = q_top < 1.0  # as in share_of
    column, whole = (2.0**500, q_top) if small else (1.0, q_top * 2.0**-500)
    cost, lost = 0.0, 0.0
    for k in range(n):
        u, v = np.float64(widen(x[k * x_step])), np.float64(widen(y[k * y_step]))
        share = max(LEAST_DOUBLE, share_of(u, p_top))
        if of_kl:
            share *= (1 + q_rest) / (1 + p_rest)
            term = relative_of_product(share if u > 0 else 0.0, v, column, whole)
        elif u > 0:
            ratio = v / q_top
            normal = ratio >= NORMAL_DOUBLE
            term = -share * (math.log(ratio) if normal else math.log(v) - math.log(q_top))
        else:
            term = 0.0
        cost, lost = add_compensated(cost, lost, term)
    cost = compensated(cost, lost) * 2.0**-500
    return cost / (1 + q_rest) if of_kl else math.log1p(q_rest) + cost / (1 + p_rest)


# ---- a row -----------------------------------------------------------------------------------


@inner
def cross_row(x, y, same, memories):
    """The cross-entropy of a row, or its entropy where y is the same as x; in nats."""
    p = row_mass(x, memories[0])
    q = p if same else row_mass(y, memories[0])
    if not (is_distribution(p) and is_distribution(q)):
        return math.nan
    like = memories[0][0]
    units = to_units(like, p), to_units(like, q)
    if is_beyond(like, p[4], units[0], q[4], units[1]):
        return value_beyond(False, x, 1, y, 1, x.size)
    inverse, top = cast(like, 1 / q[0]), cast(like, q[0])
    cost, lost, weight = 0.0, 0.0, 0.0
    for at in range(0, x.size, BLOCK):
        u, v = floats(x[at : at + BLOCK], memories[0]), floats(y[at : at + BLOCK], memories[1])
        sums = cross_sums(u, v, units[0], units[1], inverse, top)
        cost, lost = add_compensated(cost, lost, sums[0])
        weight += sums[1]
    cost = compensated(cost, lost)
    # What rounding the inverse did to the logarithms is the same for all of them.
    cost += weight * math.log1p(np.float64(mul_add(inverse, top, -constants(like).one)))
    return math.log1p(q[1] / q[0]) + cost / (p[0] + p[1])


def sums_of(term):
    """A function that sums a term over a block."""

    @inner
    def sums(x, y, x_scale, y_scale, ratio):
        apart()
        totals = lanes_of(stack_like(x, LANES))
        for at in range(0, x.size, LANES):
            u, v = x[at : at + LANES], y[at : at + LANES]
            if u.size == LANES:
                for i in range(LANES):
                    totals[i] += term(u[i] * x_scale, v[i] * y_scale, ratio)
            else:
                for i in range(u.size):
                    totals[i] += term(u[i] * x_scale, v[i] * y_scale, ratio)
        return folded(totals)

    return sums


kl_sums, js_sums_of_p, js_sums_of_q = map(sums_of, (kl_term, js_term_of_p, js_term_of_q))


@inner
def divergence_row(x, y, of_js, memories):
    p, q = row_mass(x, memories[0]), row_mass(y, memories[0])
    if not (is_distribution(p) and is_distribution(q)):
        return math.nan
    like = memories[0][0]
    total = q[0] + q[1]
    scales, ratio = (to_units(like, p), to_units(like, q)), cast(like, total / (p[0] + p[1]))
    if not of_js and is_beyond(like, p[4], scales[0], q[4], scales[1]):
        return value_beyond(True, x, 1, y, 1, x.size)
    cost, lost = 0.0, 0.0
    for at in range(0, x.size, BLOCK):
        u, v = floats(x[at : at + BLOCK], memories[0]), floats(y[at : at + BLOCK], memories[1])
        if of_js:
            value = js_sums_of_p(u, v, *scales, ratio) + js_sums_of_q(u, v, *scales, ratio)
        else:
            value = kl_sums(u, v, *scales, ratio)
        cost, lost = add_compensated(cost, lost, value)
    return compensated(cost, lost) / (4 * total if of_js else total)
