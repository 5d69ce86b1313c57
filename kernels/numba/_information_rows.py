"""Probabilities whose outcomes are contiguous: a row in two passes, by blocks.

The first makes the mass of a row, its largest element and the sum of the others; the second sums
the terms of the formula, from the cache. Blocks are merged in order, in float64.

A mass (top, rest, power) stands for the sum (top + rest) * 2**power: top the largest element, rest
all the others. `rest` is NaN where one is negative, NaN or infinite.
"""

import math

import numpy as np

from ._math import (
    add_in_any_order,
    apart,
    cast,
    constants,
    log,
    mul_add,
    relative,
)
from ._parts import inner
from ._rows import floats, maximum

# Elements of a block, which are added in their own type: equal terms, all rounded in the same
# direction, were 14 ULP off in blocks of 2048.
BLOCK = 512
NOTHING = -10000  # power of a sum of zeros: less than any other


@inner
def is_distribution(mass):
    return mass[0] > 0 and mass[1] >= 0


@inner
def block_mass(x):
    """Of floats."""
    apart()
    t = constants(x[0])
    largest, negative = maximum(x), t.zero
    for i in range(x.size):
        negative = add_in_any_order(negative, t.one if x[i] < t.zero else t.zero)
    if negative > t.zero or not largest <= t.largest:
        return 0.0, math.nan, NOTHING
    power, scale = NOTHING, t.one
    if largest > t.zero:
        most = t.bias - 1  # whose power of two and its inverse are normal
        power = max(-most, min(most, math.frexp(np.float64(largest))[1] - 1))
        scale = cast(largest, math.ldexp(1.0, -power))
    top, total, ties = largest * scale, t.zero, t.zero
    for i in range(x.size):
        a = x[i] * scale
        total = add_in_any_order(total, t.zero if a == top else a)
        ties = add_in_any_order(ties, t.one if a == top else t.zero)
    return np.float64(top), np.float64(total) + np.float64(top) * (np.float64(ties) - 1), power


@inner
def merged_mass(a, b):
    if b[2] > a[2] or (b[2] == a[2] and b[0] > a[0]):
        a, b = b, a
    return a[0], a[1] + math.ldexp(b[0] + b[1], max(-2200, b[2] - a[2])), a[2]


@inner
def row_mass(x, memory):
    """`memory` holds a block of half floats widened."""
    mass = 0.0, 0.0, NOTHING
    for at in range(0, x.size, BLOCK):
        mass = merged_mass(mass, block_mass(floats(x[at : at + BLOCK], memory)))
    return mass


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
    cost, weight = t.zero, t.zero
    for i in range(x.size):
        u, v = x[i] * x_scale, y[i] * y_scale
        term = cross_term(u, v, inverse)
        cost = add_in_any_order(cost, t.zero if v == top else term)
        weight = add_in_any_order(weight, t.zero if v == top else u)
    return np.float64(cost), np.float64(weight)


@inner
def cross_row(x, y, same, memories):
    """The cross-entropy of a row, or its entropy where y is the same as x; in nats."""
    p = row_mass(x, memories[0])
    q = p if same else row_mass(y, memories[0])
    if not (is_distribution(p) and is_distribution(q)):
        return math.nan
    like = memories[0][0]
    inverse, top = cast(like, 1 / q[0]), cast(like, q[0])
    cost, weight = 0.0, 0.0
    for at in range(0, x.size, BLOCK):
        u, v = floats(x[at : at + BLOCK], memories[0]), floats(y[at : at + BLOCK], memories[1])
        sums = cross_sums(u, v, to_units(like, p), to_units(like, q), inverse, top)
        cost += sums[0]
        weight += sums[1]
    # What rounding the inverse did to the logarithms is the same for all of them.
    cost += weight * math.log1p(np.float64(mul_add(inverse, top, -constants(like).one)))
    return math.log1p(q[1] / q[0]) + cost / (p[0] + p[1])


def sums_of(term):
    """A function that sums a term over a block."""

    @inner
    def sums(x, y, x_scale, y_scale, ratio):
        apart()
        cost = constants(x[0]).zero
        for i in range(x.size):
            cost = add_in_any_order(cost, term(x[i] * x_scale, y[i] * y_scale, ratio))
        return np.float64(cost)

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
    cost = 0.0
    for at in range(0, x.size, BLOCK):
        u, v = floats(x[at : at + BLOCK], memories[0]), floats(y[at : at + BLOCK], memories[1])
        if of_js:
            cost += js_sums_of_p(u, v, *scales, ratio) + js_sums_of_q(u, v, *scales, ratio)
        else:
            cost += kl_sums(u, v, *scales, ratio)
    return cost / (4 * total if of_js else total)
