"""Conditional entropy and mutual information of a table of two variables, row by row."""

import math

import numpy as np

from .._jit_options import internal
from .._math import add_compensated, cast, compensated, constants, kl_div_term
from .._storage import scratch, stack_scratch, widen
from .rows import (
    BLOCK,
    cross_row,
    empty_mass,
    is_distribution,
    kl_div_term_of_product,
    merged_mass,
    row_mass,
    settled,
    sums_of,
)


@internal
def table_mass(table, rows, columns, memory):
    mass = empty_mass()
    for i in range(rows):
        mass = merged_mass(mass, row_mass(table[i * columns : (i + 1) * columns], memory))
    return settled(mass)


@internal
def sum_in_units(part, whole):
    """The sum of a part, in the units of the whole."""
    return math.ldexp(part.largest + part.others, max(-2200, part.power - whole.power))


@internal
def conditional(table, rows, columns, memories):
    """The entropies of the rows, weighted with their probabilities."""
    mass = table_mass(table, rows, columns, memories[0])
    if not is_distribution(mass):
        return math.nan
    total, lost = 0.0, 0.0
    for i in range(rows):
        x = table[i * columns : (i + 1) * columns]
        part = row_mass(x, memories[0])
        if part.largest > 0:
            prob = sum_in_units(part, mass) / (mass.largest + mass.others)
            total, lost = add_compensated(total, lost, prob * cross_row(x, x, True, memories))
    return compensated(total, lost)


@sums_of
@internal
def row_sums(of_column, value, arguments):
    scale, of_row, of_all = arguments
    # Divided at last: the product of counts is exact, and independence gives 0.
    y = of_row * of_column / of_all
    return kl_div_term(widen(value) * scale, y, constants(scale).zero)


@internal
def mutual(table, rows, columns, memories):
    """The divergence of the table from the product of its margins."""
    mass = table_mass(table, rows, columns, memories[0])
    if not is_distribution(mass):
        return math.nan
    like, units = memories[0][0], math.ldexp(1.0, -mass.power)
    sums, margin = np.zeros(columns), scratch(table, columns)
    for i in range(rows):
        for k in range(columns):
            sums[k] += units * np.float64(widen(table[i * columns + k]))
    whole = mass.largest + mass.others
    rare = whole
    for k in range(columns):
        margin[k] = sums[k]
        if sums[k] > 0:
            rare = min(rare, sums[k])
    total, lost = 0.0, 0.0
    for i in range(rows):
        x = table[i * columns : (i + 1) * columns]
        row = sum_in_units(row_mass(x, memories[0]), mass)
        if row * rare < constants(like).least:
            for k in range(columns):
                value = units * np.float64(widen(x[k]))
                term = kl_div_term_of_product(value, row, sums[k], whole)
                total, lost = add_compensated(total, lost, term)
            continue
        arguments = cast(like, units), cast(like, row), cast(like, whole)
        for at in range(0, columns, BLOCK):
            end = min(columns, at + BLOCK)
            value = row_sums(margin[at:end], x[at:end], arguments)
            total, lost = add_compensated(total, lost, value)
    return compensated(total, lost) / whole


@internal
def table_task(of_both, tables, out, rows, columns, unit, task):
    memories = stack_scratch(tables.data, BLOCK), stack_scratch(tables.data, BLOCK)
    at = tables.first + task * tables.step
    table = tables.data[at : at + rows * columns]
    if of_both:
        out[task] = mutual(table, rows, columns, memories) / unit
    else:
        out[task] = conditional(table, rows, columns, memories) / unit
