"""Conditional entropy and mutual information of a table of two variables, row by row."""

import math

import numpy as np

from ._information_rows import (
    BLOCK,
    cross_row,
    empty_mass,
    folded,
    is_distribution,
    lanes_of,
    merged_mass,
    relative,
    relative_of_product,
    row_mass,
    settled,
)
from ._math import add_compensated, apart, cast, compensated, constants
from ._parts import inner
from ._rows import LANES
from ._storage import scratch, stack_like, stack_scratch, widen


@inner
def table_mass(table, rows, columns, memory):
    mass = empty_mass()
    for i in range(rows):
        mass = merged_mass(mass, row_mass(table[i * columns : (i + 1) * columns], memory))
    return settled(mass)


@inner
def conditional(table, rows, columns, memories):
    """The entropies of the rows, weighted with what they hold of the whole."""
    mass = table_mass(table, rows, columns, memories[0])
    if not is_distribution(mass):
        return math.nan
    total, lost = 0.0, 0.0
    for i in range(rows):
        x = table[i * columns : (i + 1) * columns]
        part = row_mass(x, memories[0])
        if part[0] > 0:
            held = math.ldexp(part[0] + part[1], max(-2200, part[2] - mass[2]))
            cost = held / (mass[0] + mass[1]) * cross_row(x, x, True, memories)
            total, lost = add_compensated(total, lost, cost)
    return compensated(total, lost)


@inner
def cost_of_row(x, margin, scale, of_row, of_all):
    apart()
    zero, totals = constants(scale).zero, lanes_of(stack_like(margin, LANES))
    for at in range(0, x.size, LANES):
        line, of_column = x[at : at + LANES], margin[at : at + LANES]
        for i in range(line.size):
            # Divided at last: the product of counts is exact, and independence gives 0.
            y = of_row * of_column[i] / of_all
            totals[i] += relative(widen(line[i]) * scale, y, zero)
    return folded(totals)


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
    total, lost, of_all = 0.0, 0.0, cast(like, whole)
    for i in range(rows):
        x = table[i * columns : (i + 1) * columns]
        part = row_mass(x, memories[0])
        row = math.ldexp(part[0] + part[1], max(-2200, part[2] - mass[2]))
        if row * rare < constants(like).least:
            for k in range(columns):
                value = units * np.float64(widen(x[k]))
                cost = relative_of_product(value, row, sums[k], whole)
                total, lost = add_compensated(total, lost, cost)
            continue
        for at in range(0, columns, BLOCK):
            end = min(columns, at + BLOCK)
            cost = cost_of_row(
                x[at:end], margin[at:end], cast(like, units), cast(like, row), of_all
            )
            total, lost = add_compensated(total, lost, cost)
    return compensated(total, lost) / whole


@inner
def table_task(of_both, tables, out, rows, columns, unit, task):
    memories = stack_scratch(tables.data, BLOCK), stack_scratch(tables.data, BLOCK)
    at = tables.first + task * tables.step
    table = tables.data[at : at + rows * columns]
    if of_both:
        out[task] = mutual(table, rows, columns, memories) / unit
    else:
        out[task] = conditional(table, rows, columns, memories) / unit
