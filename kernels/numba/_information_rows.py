"""Probabilities whose outcomes are contiguous: a row in two passes, by blocks.

The first makes the mass of a row, its largest element and the sum of the others; the second sums
the terms of the formula, from the cache. Blocks are merged in order, in float64.

A mass (top, rest, power) stands for the sum (top + rest) * 2**power: top the largest element, rest
all the others. `rest` is NaN where one is negative, NaN or infinite.
"""

import math

import numpy as np

from ._compile import inner
from ._math import (
    add_in_any_order,
    apart,
    cast,
    constants,
    log,
    mul_add,
    relative,
)
from ._rows import BLOCK, floats, maximum

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
def kl_term(u, v, ratio):
    """A term of KL of p = u / (sum of u) from q = v / (sum of v), times the sum of v. `ratio` is
    that sum divided by the other; what rounding it loses is of second order, see
    kernels/reference/information.py.
    """
    t = constants(u)
    a = u * ratio
    cost = relative(a, mul_add(u, ratio, -a), v, t.zero)
    # Also of a u that is so small that a is 0.
    return cost if v != t.zero or u == t.zero else -t.lowest


@inner
def js_term(u, v, ratio):
    """The same of twice JS."""
    t = constants(u)
    a = u * ratio
    low = mul_add(u, ratio, -a)
    total = a + v
    back = total - a
    m = total * t.half
    m_low = ((a - (total - back)) + (v - back) + low) * t.half
    return relative(a, low, m, m_low) + relative(v, t.zero, m, m_low)


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


def divergence_row(term, parts):
    """A function of two rows that sums a term, and divides by `parts` times the sum of q."""

    @inner
    def sums(x, y, x_scale, y_scale, ratio):
        apart()
        cost = constants(x[0]).zero
        for i in range(x.size):
            cost = add_in_any_order(cost, term(x[i] * x_scale, y[i] * y_scale, ratio))
        return np.float64(cost)

    @inner
    def row(x, y, same, memories):
        p, q = row_mass(x, memories[0]), row_mass(y, memories[0])
        if not (is_distribution(p) and is_distribution(q)):
            return math.nan
        like = memories[0][0]
        total = q[0] + q[1]
        ratio, cost = cast(like, total / (p[0] + p[1])), 0.0
        for at in range(0, x.size, BLOCK):
            u, v = floats(x[at : at + BLOCK], memories[0]), floats(y[at : at + BLOCK], memories[1])
            cost += sums(u, v, to_units(like, p), to_units(like, q), ratio)
        return cost / (parts * total)

    return row


kl_row, js_row = divergence_row(kl_term, 1), divergence_row(js_term, 2)
