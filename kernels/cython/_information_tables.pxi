"""Conditional entropy and mutual information of a table of two variables, row by row."""

from cython.parallel cimport threadid
from libc.float cimport DBL_MIN, FLT_MIN
from libc.math cimport fabs, log, log1p

cdef Mass table_mass(
    const real* x, Py_ssize_t rows, Py_ssize_t columns
) noexcept nogil:
    cdef Mass mass = empty_mass()
    cdef Py_ssize_t i
    for i in range(rows):
        mass = merge_mass(mass, row_mass(x + i * columns, columns, 1))
    return mass


cdef double table_conditional(
    const real* x, Py_ssize_t rows, Py_ssize_t columns
) noexcept nogil:
    """The entropies of the rows, weighted with what they hold of the whole."""
    cdef Mass mass = table_mass(x, rows, columns), part
    cdef double total = 0, share
    cdef Py_ssize_t i
    if not is_distribution(mass):
        return NAN
    for i in range(rows):
        part = row_mass(x + i * columns, columns, 1)
        if part.top > 0:
            share = ldexp(part.top + part.rest, part.power - mass.power) / (mass.top + mass.rest)
            total += share * mass_value(ENTROPY, x + i * columns, x, columns, part, part, 1)
    return total


cdef double relative_of_product(
    double x, double row, double column, double whole
) noexcept nogil:
    """x * log(x / y) - x + y for y = row * column / whole, also where that is below all numbers."""
    cdef double y = row * column / whole, apart
    if x == 0:
        return y
    if y < DBL_MIN:
        return x * (log(x / row) - log(column / whole)) - x
    apart = (y - x) / x
    return x * (apart - log1p(apart)) if fabs(apart) < 0.5 else x * log(x / y) + (y - x)


cdef double table_mutual(
    const real* x, Py_ssize_t rows, Py_ssize_t columns, double* sums, void* margin
) noexcept nogil:
    """The divergence of the table from the product of its margins. `sums` and `margin` are scratch
    for a number per column.
    """
    cdef Mass mass = table_mass(x, rows, columns), part
    cdef double scale, total = 0, whole = mass.top + mass.rest, rare = whole, row
    cdef Py_ssize_t w = lanes(x), i, k, left
    cdef vector[real] zero = splat(x, 0.0), of_row, of_all, to_units, cost, u, v
    if not is_distribution(mass):
        return NAN
    scale = ldexp(1.0, -mass.power)
    for k in range(columns):
        sums[k] = 0
    for i in range(rows):
        for k in range(columns):
            sums[k] += scale * get(x + i * columns + k)
    for k in range(columns):
        put_wide(x, margin, k, sums[k])
        if sums[k] > 0:
            rare = min(rare, sums[k])
    to_units = splat(x, scale)
    of_all = splat(x, whole)
    for i in range(rows):
        part = row_mass(x + i * columns, columns, 1)
        row = ldexp(part.top + part.rest, part.power - mass.power)
        if row * rare < (DBL_MIN if wide_size(x) == 8 else FLT_MIN):
            for k in range(columns):
                total += relative_of_product(
                    scale * get(x + i * columns + k), row, sums[k], whole)
            continue
        of_row = splat(x, row)
        cost = zero
        for k in range((columns + w - 1) // w):
            left = min(w, columns - k * w)
            u = load_n(x + i * columns + k * w, left, 0.0) * to_units
            # Divided at last: the product of counts is exact, and independence gives 0.
            v = of_row * load_wide(x, margin, k * w, left) / of_all
            cost = cost + relative(u, v, zero)
        total += reduce_add(cost)
    return total / whole
