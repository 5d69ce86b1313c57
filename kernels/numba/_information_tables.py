"""Conditional entropy and mutual information of a table of two variables, row by row."""

import math

import numpy as np

from ._information_rows import (
    BLOCK,
    NOTHING,
    cross_row,
    is_distribution,
    merged_mass,
    relative,
    row_mass,
)
from ._math import add_in_any_order, apart, cast, constants
from ._parts import inner
from ._storage import scratch, stack_scratch, widen

NORMAL_DOUBLE = 2.0**-1022


@inner
def table_mass(table, rows, columns, memory):
    mass = 0.0, 0.0, NOTHING
    for i in range(rows):
        mass = merged_mass(mass, row_mass(table[i * columns : (i + 1) * columns], memory))
    return mass


@inner
def conditional(table, rows, columns, memories):
    """The entropies of the rows, weighted with what they hold of the whole."""
    mass = table_mass(table, rows, columns, memories[0])
    if not is_distribution(mass):
        return math.nan
    total = 0.0
    for i in range(rows):
        x = table[i * columns : (i + 1) * columns]
        part = row_mass(x, memories[0])
        if part[0] > 0:
            held = math.ldexp(part[0] + part[1], max(-2200, part[2] - mass[2]))
            total += held / (mass[0] + mass[1]) * cross_row(x, x, True, memories)
    return total


@inner
def cost_of_row(x, margin, scale, of_row, of_all):
    apart()
    zero = constants(scale).zero
    cost = zero
    for k in range(x.size):
        # Divided at last: the product of counts is exact, and independence gives 0.
        y = of_row * margin[k] / of_all
        cost = add_in_any_order(cost, relative(widen(x[k]) * scale, y, zero))
    return np.float64(cost)


@inner
def relative_of_product(x, row, column, whole):
    """x * log(x / y) - x + y for y = row * column / whole, also where that is below all numbers."""
    y = row * column / whole
    if x == 0:
        return y
    if y < NORMAL_DOUBLE:
        return x * (math.log(x / row) - math.log(column / whole)) - x
    gap = (y - x) / x
    return x * (gap - math.log1p(gap)) if abs(gap) < 0.5 else x * math.log(x / y) + (y - x)


@inner
def mutual(table, rows, columns, memories):
    """The divergence of the table from the product of its margins."""
    mass = table_mass(table, rows, columns, memories[0])
    if not is_distribution(mass):
        return math.nan
    like, units = memories[0][0], math.ldexp(1.0, -mass[2])
    sums, margin = np.zeros(columns), scratch(table, columns)
    for i in range(rows):
        for k in range(columns):
            sums[k] += units * np.float64(widen(table[i * columns + k]))
    whole = mass[0] + mass[1]
    rare = whole
    for k in range(columns):
        margin[k] = sums[k]
        if sums[k] > 0:
            rare = min(rare, sums[k])
    total, of_all = 0.0, cast(like, whole)
    for i in range(rows):
        x = table[i * columns : (i + 1) * columns]
        part = row_mass(x, memories[0])
        row = math.ldexp(part[0] + part[1], max(-2200, part[2] - mass[2]))
        if row * rare < constants(like).least:
            for k in range(columns):
                value = units * np.float64(widen(x[k]))
                total += relative_of_product(value, row, sums[k], whole)
        else:
            total += cost_of_row(x, margin, cast(like, units), cast(like, row), of_all)
    return total / whole


@inner
def table_task(of_both, tables, out, rows, columns, unit, task):
    memories = stack_scratch(tables.data, BLOCK), stack_scratch(tables.data, BLOCK)
    at = tables.first + task * tables.step
    table = tables.data[at : at + rows * columns]
    if of_both:
        out[task] = mutual(table, rows, columns, memories) / unit
    else:
        out[task] = conditional(table, rows, columns, memories) / unit
