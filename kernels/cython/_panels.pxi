"""Panels: columns side by side in the SIMD lanes, classes one below the other.

Two layouts come down to this: a class axis that is not the last (the lanes are its
neighbours in memory, and nothing is transposed), and rows too short to fill vectors (tiles of
as many rows as a vector has lanes, transposed in registers).

The classes are read once, in groups: the maximum of the group, then the sum of exp(x - maximum),
with the old sum rescaled once per group. `row_max` and `sumexp_m1` are those of _rows.pxi; the sum
over the groups is compensated, so long columns are as exact as rows.
"""

cdef enum:
    PANEL = 256  # columns: their state is 3 KB of float, and a group of classes stays in L1
    GROUP = 16  # classes between two rescalings
    SHORT = 128  # classes: rows up to here go through tiles
    TILES = 16  # in a task
    ABREAST = 4  # vectors side by side in a tile: their dependency chains overlap
    PANEL_MEMORY = 3 * 8 * (PANEL + 8) + 64  # bytes of three arrays, in the widest type, aligned
    TILE_MEMORY = 64 * SHORT + 64  # bytes of a tile, see tile_rows


cdef inline Py_ssize_t tile_rows(Py_ssize_t n, Py_ssize_t w) noexcept nogil:
    """Rows in a tile: as many vectors abreast as fit its memory, which stays in L1."""
    return min(ABREAST, SHORT // n) * w if n else w


cdef inline Py_ssize_t rows_per_task(Py_ssize_t n, Py_ssize_t w) noexcept nogil:
    """Rows in a task, where the classes are contiguous."""
    return TILES * tile_rows(n, w) if n <= SHORT else 1 + 16384 // n


cdef inline Py_ssize_t tasks(
    Py_ssize_t outer, Py_ssize_t n, Py_ssize_t inner, Py_ssize_t w
) noexcept nogil:
    """How many tasks the threads share: panels or groups of rows. This does not depend on the
    number of threads, so that sums over tasks do not either."""
    cdef Py_ssize_t chunk = rows_per_task(n, w)
    return (outer + chunk - 1) // chunk if inner == 1 else outer * ((inner + PANEL - 1) // PANEL)


cdef inline bint few_long_rows(
    Py_ssize_t outer, Py_ssize_t n, Py_ssize_t inner, int num_threads
) noexcept nogil:
    """Whether to spread each row over the threads instead of the rows."""
    return inner == 1 and outer < 2 * num_threads and n > 16 * BLOCK


cdef inline void load_tiles(
    const real* x, Py_ssize_t stride, Py_ssize_t rows, Py_ssize_t n, vector[real]* tile
) noexcept nogil:
    """Up to tile_rows rows into the lanes; vectors of one class lie abreast."""
    cdef Py_ssize_t w = lanes(x), vectors = (rows + w - 1) // w, c
    for c in range(vectors):
        load_tile(x + c * w * stride, stride, min(w, rows - c * w), n, tile + c, vectors)


cdef inline void store_tiles(
    real* x, Py_ssize_t stride, Py_ssize_t rows, Py_ssize_t n, const vector[real]* tile
) noexcept nogil:
    cdef Py_ssize_t w = lanes(x), vectors = (rows + w - 1) // w, c
    for c in range(vectors):
        store_tile(x + c * w * stride, stride, min(w, rows - c * w), n, tile + c, vectors)


cdef inline void add(vector[real]* total, vector[real]* error, vector[real] term) noexcept nogil:
    """total += term, and what that rounds away to `error`."""
    cdef vector[real] old = total[0], new = old + term, back = new - old
    error[0] = error[0] + ((old - (new - back)) + (term - back))
    total[0] = new


cdef inline vector[real] corrected(
    const real* like, vector[real] total, vector[real] error
) noexcept nogil:
    """A compensated sum. An infinite one has no error to add: inf - inf is NaN."""
    cdef vector[real] finite = total - total  # 0, or NaN, which does not equal itself
    return where_equal(finite, finite, total + error, total)


cdef inline double sum_lanes(
    const real* like, vector[real] total, vector[real] error
) noexcept nogil:
    """The same over all lanes, in double. Equal lanes would round the same way in `corrected`."""
    return settled(reduce_add(total), reduce_add(error))


cdef inline vector[real] group_sum(
    const real* x, real* exps, Py_ssize_t count, Py_ssize_t stride, Py_ssize_t n,
    vector[real] row_max, vector[real]* others
) noexcept nogil:
    """Sum of exp(x - row_max) over a group of classes, in n lanes. Elements that equal the maximum
    are left out; the others are counted in `others`. The exponentials are kept in `exps`, unless
    it is NULL.
    """
    cdef Py_ssize_t k
    cdef vector[real] zero = splat(x, 0.0), one = splat(x, 1.0), u, v, e, f
    cdef vector[real] sum0 = zero, sum1 = zero
    for k in range(count // 2):
        u = load_n(x + 2 * k * stride, n, 0.0)
        v = load_n(x + (2 * k + 1) * stride, n, 0.0)
        e = exp_sub(u, row_max)
        f = exp_sub(v, row_max)
        sum0 = add_unless_equal(sum0, u, row_max, e)
        sum1 = add_unless_equal(sum1, v, row_max, f)
        others[0] = add_unless_equal(add_unless_equal(others[0], u, row_max, one), v, row_max, one)
        if exps != NULL:
            store_n(exps + 2 * k * stride, e, n)
            store_n(exps + (2 * k + 1) * stride, f, n)
    if count % 2:
        u = load_n(x + (count - 1) * stride, n, 0.0)
        e = exp_sub(u, row_max)
        sum0 = add_unless_equal(sum0, u, row_max, e)
        others[0] = add_unless_equal(others[0], u, row_max, one)
        if exps != NULL:
            store_n(exps + (count - 1) * stride, e, n)
    return sum0 + sum1


cdef inline void panel_state(
    const real* x, Py_ssize_t n, Py_ssize_t stride, Py_ssize_t width,
    vector[real]* maxima, vector[real]* sumexps_m1, vector[real]* errors
) noexcept nogil:
    """The state of each column, reading the classes once; `errors` is scratch."""
    cdef Py_ssize_t w = lanes(x), vectors = (width + w - 1) // w, group, count, c, k, left
    cdef const real* p
    cdef vector[real] zero = splat(x, 0.0), one = splat(x, 1.0), lowest = splat(x, -INFINITY)
    cdef vector[real] old, row_max, others, max_count, scale, a, b, sumexp_m1, back
    for c in range(vectors):
        maxima[c] = lowest
        sumexps_m1[c] = zero
        errors[c] = zero
    for group in range((n + GROUP - 1) // GROUP):
        count = min(GROUP, n - group * GROUP)
        for c in range(vectors):
            p = x + group * GROUP * stride + c * w
            left = min(w, width - c * w)
            old = maxima[c]
            row_max = old
            for k in range(count):
                prefetch(p + (k + GROUP) * stride)
                row_max = vmax(load_n(p + k * stride, left, 0.0), row_max)
            others = zero
            b = group_sum(p, NULL, count, stride, left, row_max, &others)
            max_count = splat(x, count) - others
            # The old maximum stays the 1 of 1 + sumexp_m1, or is added to it beside the new one.
            scale = where_equal(old, row_max, one, exp_sub(old, row_max))  # both may be infinite
            a = sumexps_m1[c] * scale
            b = b + where_equal(old, row_max, max_count, (max_count - one) + scale)
            sumexp_m1 = a + b
            back = sumexp_m1 - a
            errors[c] = errors[c] * scale + ((a - (sumexp_m1 - back)) + (b - back))
            sumexps_m1[c] = sumexp_m1
            maxima[c] = row_max
    for c in range(vectors):
        sumexps_m1[c] = sumexps_m1[c] + errors[c]


cdef inline void tile_state(
    const real* x, real* exps, Py_ssize_t n, Py_ssize_t stride,
    vector[real]* maxima, vector[real]* sumexps_m1
) noexcept nogil:
    """The same for a tile, which is in the cache: first the maximum, then the sum.

    exp(x - row_max) is kept in `exps`, unless it is NULL; it may take the place of x.
    """
    cdef Py_ssize_t w = lanes(x), group, count, c, k
    cdef vector[real] zero = splat(x, 0.0), one = splat(x, 1.0)
    cdef vector[real] row_max, others, b, sumexp_m1, back, total, error
    for c in range(stride // w):
        row_max = splat(x, -INFINITY)
        for k in range(n):
            row_max = vmax(load(x + k * stride + c * w), row_max)
        maxima[c] = row_max
        others = zero
        sumexp_m1 = zero
        error = zero
        for group in range((n + GROUP - 1) // GROUP):
            count = min(GROUP, n - group * GROUP)
            k = group * GROUP * stride + c * w
            b = group_sum(x + k, exps + k if exps != NULL else NULL, count, stride, w, row_max,
                          &others)
            total = sumexp_m1 + b
            back = total - sumexp_m1
            error = error + ((sumexp_m1 - (total - back)) + (b - back))
            sumexp_m1 = total
        sumexps_m1[c] = (sumexp_m1 + error) + (splat(x, n - 1) - others)


cdef inline vector[real] inverse(const real* like, vector[real] sumexp_m1) noexcept nogil:
    """1 / (1 + sumexp_m1), corrected for the rounding of the sum."""
    cdef vector[real] one = splat(like, 1.0), total = one + sumexp_m1, back = total - sumexp_m1
    cdef vector[real] result = one / total
    return result - result * result * ((one - back) + (sumexp_m1 - (total - back)))
