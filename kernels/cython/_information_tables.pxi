"""Conditional entropy and mutual information of a table of two variables, row by row."""

from cython.parallel cimport threadid

cdef Mass table_mass(
    const real* x, Py_ssize_t rows, Py_ssize_t columns
) noexcept nogil:
    cdef Mass mass = empty_mass()
    cdef Py_ssize_t i
    for i in range(rows):
        mass = merge_mass(mass, row_mass(x + i * columns, columns, 1))
    return settled_mass(mass)


cdef double table_conditional(
    const real* x, Py_ssize_t rows, Py_ssize_t columns
) noexcept nogil:
    """The entropies of the rows, weighted with their shares of the sum."""
    cdef Mass mass = table_mass(x, rows, columns), part
    cdef double total = 0, lost = 0, share
    cdef Py_ssize_t i
    if not is_distribution(mass):
        return NAN
    for i in range(rows):
        part = row_mass(x + i * columns, columns, 1)
        if part.row_max > 0:
            share = ldexp(part.row_max + part.sum_others, part.power - mass.power) / (
                mass.row_max + mass.sum_others)
            add_double(
                &total, &lost,
                share * mass_value(ENTROPY, x + i * columns, x + i * columns, columns, part, part,
                                   1))
    return total + lost


cdef double table_mutual(
    const real* x, Py_ssize_t rows, Py_ssize_t columns, double* sums, void* margin
) noexcept nogil:
    """The divergence of the table from the product of its margins. `sums` and `margin` are scratch
    for a number per column.
    """
    cdef Mass mass = table_mass(x, rows, columns), part
    cdef double whole = mass.row_max + mass.sum_others, rare = whole, total = 0, lost = 0
    cdef double scale, row
    cdef Py_ssize_t w = lanes(x), i, k, left
    cdef vector[real] zero = splat(x, 0.0), of_row, of_all, to_units, u, v
    cdef vector[double] terms, more
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
        row = ldexp(part.row_max + part.sum_others, part.power - mass.power)
        if row * rare < least_exact(x):
            for k in range(columns):
                add_double(&total, &lost, kl_div_term_of_product(
                    scale * get(x + i * columns + k), row, sums[k], whole))
            continue
        of_row = splat(x, row)
        terms = splat(<const double*>NULL, 0.0)
        more = terms
        for k in range((columns + w - 1) // w):
            left = min(w, columns - k * w)
            u = load_n(x + i * columns + k * w, left, 0.0) * to_units
            # Divided at last: the product of counts is exact, and independence gives 0.
            v = of_row * load_wide(x, margin, k * w, left) / of_all
            add_part(&terms, &more, x, kl_div_term(u, v, zero))
        add_double(&total, &lost, sum_of_parts(x, terms, more))
    return (total + lost) / whole
