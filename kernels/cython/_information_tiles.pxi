"""Probabilities side by side in the lanes: short rows, and outcomes that lie further apart.

What _information_rows.pxi does, with each lane a distribution of its own: the largest element, the
sum of the others, and then the terms, in three passes down the outcomes of as many distributions as
a vector has lanes. Sums are compensated, so that many outcomes are as exact as in rows. Lanes with
elements far below their largest are computed again, as such rows are.
"""

from libc.math cimport isnan


cdef inline void lane_masses(
    const real* x, Py_ssize_t n, Py_ssize_t stride, Py_ssize_t left,
    vector[real]* scale, vector[real]* row_max, vector[real]* sum_others, vector[real]* least
) noexcept nogil:
    """As in Mass, in units of 1 / scale. `sum_others` is NaN where there is no distribution."""
    cdef Py_ssize_t k
    cdef vector[real] zero = splat(x, 0.0), one = splat(x, 1.0)
    cdef vector[real] nothing = splat(x, -INFINITY), a, largest = zero, low = nothing
    cdef vector[real] total = zero, error = zero, others = zero
    for k in range(n):
        a = load_n(x + k * stride, left, 0.0)
        largest = vmax(a, largest)
        low = vmax(where_equal(a, zero, nothing, zero - a), low)
    least[0] = zero - low
    scale[0] = scale_near_one(largest)
    row_max[0] = largest * scale[0]
    for k in range(n):
        a = load_n(x + k * stride, left, 0.0) * scale[0]
        add(&total, &error, where_equal(a, row_max[0], zero, a))
        others = add_unless_equal(others, a, row_max[0], one)
    total = (total + error) + row_max[0] * (splat(x, n - 1) - others)
    total = total + (row_max[0] - row_max[0])  # NaN where the largest is infinite
    total = where_negative(least[0], splat(x, NAN), total)
    sum_others[0] = where_equal(largest, zero, splat(x, NAN), total)


cdef inline vector[real] lane_values(
    int op, const real* x, const real* y, Py_ssize_t n, Py_ssize_t stride, Py_ssize_t left,
    vector[real]* beyond
) noexcept nogil:
    """The results of up to as many distributions as there are lanes, in nats. `beyond` is 1 where
    the result is not exact, see is_beyond.
    """
    cdef Py_ssize_t k
    cdef vector[real] zero = splat(x, 0.0), one = splat(x, 1.0), u, v
    cdef vector[real] p_scale, p_max, p_others, q_scale, q_max, q_others, p_sum, q_sum
    cdef vector[real] ratio, inverse
    cdef vector[real] terms = zero, error = zero, weight = zero, p_least, q_least
    lane_masses(x, n, stride, left, &p_scale, &p_max, &p_others, &p_least)
    q_scale = p_scale
    q_max = p_max
    q_others = p_others
    q_least = p_least
    if op != ENTROPY:
        lane_masses(y, n, stride, left, &q_scale, &q_max, &q_others, &q_least)
    p_sum = p_max + p_others
    q_sum = q_max + q_others
    ratio = q_sum / p_sum
    inverse = one / q_max
    beyond[0] = where_negative(
        q_least * q_scale - splat(x, least_exact(x)), one,
        where_negative(p_least * p_scale - splat(x, least_seen(x)), one, zero))
    for k in range(n):
        u = load_n(x + k * stride, left, 0.0) * p_scale
        v = u if op == ENTROPY else load_n(y + k * stride, left, 0.0) * q_scale
        if op == ENTROPY or op == CROSS_ENTROPY:
            add(&terms, &error, where_equal(v, q_max, zero, cross_term(x, u, v, inverse)))
            weight = add_unless_equal(weight, v, q_max, u)
        else:
            add(&terms, &error, divergence_term(op, x, u, v, ratio))
    terms = corrected(x, terms, error)
    if op == KL or op == JS:
        u = (p_sum - p_sum) + (q_sum - q_sum)  # NaN where either is no distribution
        return terms / (q_sum if op == KL else splat(x, 4.0) * q_sum) + u
    # What rounding the inverse did to the logarithms is the same for all of them.
    terms = terms + weight * mul_add(inverse, q_max, zero - one)
    return log_1p(q_others / q_max) + terms / p_sum


cdef inline void lanes_by_op(
    int op, const Information* a, const real* x, const real* y, Py_ssize_t at, Py_ssize_t stride,
    Py_ssize_t left
) noexcept nogil:
    """Results number `at` and following."""
    cdef double flags[16]
    cdef Py_ssize_t i, n = a.n
    cdef vector[real] value, beyond, zero = splat(x, 0.0), one = splat(x, 1.0)
    if op == ENTROPY:
        value = lane_values(ENTROPY, x, y, n, stride, left, &beyond)
    elif op == CROSS_ENTROPY:
        value = lane_values(CROSS_ENTROPY, x, y, n, stride, left, &beyond)
    elif op == KL:
        value = lane_values(KL, x, y, n, stride, left, &beyond)
    else:
        value = lane_values(JS, x, y, n, stride, left, &beyond)
    if a.exponential:
        value = one / exp_sub(zero - value, zero)
    else:
        value = value / splat(x, a.unit)
    store_wide(x, a.out, at, value, left)
    if op != JS and reduce_max(beyond) > 0:
        store_wide(x, flags, 0, beyond, lanes(x))
        for i in range(left):
            if get_wide(x, flags, i) > 0 and not isnan(get_wide(x, a.out, at + i)):
                put_wide(x, a.out, at + i,
                         finished(value_beyond(op, x + i, y + i, n, stride), a))


cdef void panel(
    int op, const Information* a, const real* x, const real* y, Py_ssize_t at, Py_ssize_t width
) noexcept nogil:
    """`width` columns."""
    cdef Py_ssize_t w = lanes(x), c
    for c in range((width + w - 1) // w):
        lanes_by_op(op, a, x + c * w, y + c * w, at + c * w, a.inner, min(w, width - c * w))


cdef void tile(
    int op, const Information* a, const real* x, const real* y, Py_ssize_t at, Py_ssize_t rows
) noexcept nogil:
    """Up to tile_rows short rows, as columns of the compute type."""
    cdef char* memory = thread_memory(OF_TILE, 2 * TILE_MEMORY)
    cdef Py_ssize_t w = lanes(x), vectors = (rows + w - 1) // w, c, left
    cdef vector[real]* u = aligned(x, memory)
    cdef vector[real]* v = u if op == ENTROPY else u + a.n * vectors
    load_tiles(x, a.p_step, rows, a.n, u)
    if op != ENTROPY:
        load_tiles(y, a.q_step, rows, a.n, v)
    for c in range(vectors):
        left = min(w, rows - c * w)
        if real is double:
            lanes_by_op(op, a, <double*>(u + c), <double*>(v + c), at + c * w, vectors * w, left)
        else:
            lanes_by_op(op, a, <float*>(u + c), <float*>(v + c), at + c * w, vectors * w, left)
