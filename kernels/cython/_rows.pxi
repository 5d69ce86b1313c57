"""Rows whose classes are contiguous: the softmax state of a row, in blocks.

A row is read in blocks that fit the L1 cache twice: the first pass over a block finds its
maximum, the second sums exp(x - maximum), while the next block is being prefetched. Memory is
read once. Rejected: the online softmax per vector (it rescales at every new maximum of a lane,
some 120 times in a row of 32000), and a maximum pass over the whole row (reads it twice).

A state stands for exp(row_max) * (1 + sumexp_m1). One maximal element is the 1; `sumexp_m1` is the
sum of all others. Where one element dominates, log1p(sumexp_m1) keeps what log(1 + sumexp_m1) would
round away.
The states of the blocks are merged in order, so the result does not depend on the threads.

All sums are compensated. Equal terms round the same way in every addition, so the errors of a plain
sum do not cancel: 3770 elements of -11 below a 0 gave errors of 25.7 ULP in float, 33 in double.
"""

from cython.parallel cimport prange
from libc.stdlib cimport free, malloc

cdef enum:
    BLOCK = 4096  # elements: 16 KB of float
    STREAM_ABOVE = 1 << 22  # bytes of an output beyond which it is written past the caches

cdef struct State:
    double row_max
    double sumexp_m1
    double lost  # what rounding took away from `sumexp_m1`; row_state adds it at the end


cdef inline void add_double(double* total, double* lost, double term) noexcept nogil:
    """total + term, and `lost` plus what that loses (two-sum)."""
    cdef double new = total[0] + term, back = new - total[0]
    lost[0] += (total[0] - (new - back)) + (term - back)
    total[0] = new


cdef inline double settled(double total, double lost) noexcept nogil:
    """A compensated sum. The error of an infinite one is NaN."""
    return total if isinf(total) else total + lost


cdef inline State block_state(const real* x, Py_ssize_t n, void* exps) noexcept nogil:
    """The state of up to BLOCK elements. Their exponentials, as exp_from gives them, are kept in
    `exps`, unless it is NULL: computing them again took 40% of a gradient of 1000 classes.
    """
    cdef State state
    cdef Py_ssize_t k, w = lanes(x), fours = n // (4 * w), pairs = 2 * fours, left, max_count = 0
    cdef const real* p
    cdef vector[real] zero = splat(x, 0.0), lowest = splat(x, -INFINITY)
    cdef vector[real] m0 = lowest, m1 = lowest, m2 = lowest, m3 = lowest
    for k in range(fours):
        p = x + 4 * w * k
        m0 = vmax(load(p), m0)
        m1 = vmax(load(p + w), m1)
        m2 = vmax(load(p + 2 * w), m2)
        m3 = vmax(load(p + 3 * w), m3)
    for k in range(4 * fours, (n + w - 1) // w):
        m0 = vmax(load_n(x + k * w, min(w, n - k * w), -INFINITY), m0)
    m0 = vmax(vmax(m0, m1), vmax(m2, m3))
    state.row_max = reduce_max(m0)

    cdef Reference at = reference(x, state.row_max)
    cdef vector[real] shift = splat(x, at.shift), power = splat(x, at.power)
    cdef vector[real] row_max = splat(x, state.row_max), a, b, e, f
    cdef vector[real] sum0 = zero, sum1 = zero, error0 = zero, error1 = zero
    for k in range(pairs):
        p = x + 2 * w * k
        prefetch(p + BLOCK)
        prefetch(p + BLOCK + w)
        a = load(p)
        b = load(p + w)
        e = exp_from(a, shift, power)
        f = exp_from(b, shift, power)
        if exps != NULL:
            store_wide(x, exps, 2 * w * k, e, w)
            store_wide(x, exps, 2 * w * k + w, f, w)
        if any_equal(x, vmax(a, b), row_max):  # mostly once in a block
            max_count += count_equal(x, a, row_max) + count_equal(x, b, row_max)
            e = where_equal(a, row_max, zero, e)
            f = where_equal(b, row_max, zero, f)
        add_fast(&sum0, &error0, e)
        add_fast(&sum1, &error1, f)
    for k in range(2 * pairs, (n + w - 1) // w):
        left = min(w, n - k * w)
        a = load_n(x + k * w, left, -INFINITY)
        e = exp_from(a, shift, power)
        if exps != NULL:
            store_wide(x, exps, k * w, e, left)
        max_count += count_equal(x, a, row_max)
        add_fast(&sum0, &error0, where_equal(a, row_max, zero, e))
    state.sumexp_m1 = at.ratio * (reduce_add(sum0) + reduce_add(sum1)
                                  + reduce_add(error0 + error1)) + (max_count - 1)
    state.lost = 0
    return state


cdef inline State merge(State a, State b) noexcept nogil:
    """The state of two parts together. NaN in either `sumexp_m1` stays."""
    cdef double scale = 1
    if b.row_max > a.row_max:
        a, b = b, a
    if a.row_max != b.row_max:
        scale = exp(b.row_max - a.row_max)
    add_double(&a.sumexp_m1, &a.lost, scale * (1 + b.sumexp_m1))
    a.lost += scale * b.lost
    return a


cdef inline State empty_state() noexcept nogil:
    cdef State state
    state.row_max = -INFINITY
    state.sumexp_m1 = 0
    state.lost = 0
    return state


cdef State row_state(const real* x, Py_ssize_t n, void* exps, int num_threads) noexcept nogil:
    """The state of a row, whose blocks are shared by the threads.

    The exponentials of a row of one block are kept in `exps`, unless it is NULL.
    """
    cdef State state = empty_state()
    cdef Py_ssize_t blocks = (n + BLOCK - 1) // BLOCK, k
    cdef State* states = NULL
    if num_threads > 1:
        states = <State*>malloc(blocks * sizeof(State))
    if states == NULL:
        for k in range(blocks):
            state = merge(state, block_state(x + k * BLOCK, min(BLOCK, n - k * BLOCK),
                                             exps if blocks == 1 else NULL))
        state.sumexp_m1 += state.lost
        return state
    for k in prange(blocks, num_threads=num_threads, schedule="static"):
        states[k] = block_state(x + k * BLOCK, min(BLOCK, n - k * BLOCK), NULL)
    for k in range(blocks):
        state = merge(state, states[k])
    state.sumexp_m1 += state.lost
    free(states)
    return state


cdef inline double log_total(State state) noexcept nogil:
    """log(1 + sumexp_m1), or NaN where the maximum is infinite and there is no distribution."""
    return NAN if isinf(state.row_max) else log1p(state.sumexp_m1)


cdef inline Py_ssize_t stream_head(const real* y, Py_ssize_t n, bint streaming) noexcept nogil:
    """Elements before the first address that can be streamed to: less than a vector."""
    cdef size_t align = stream_align(y)
    if not streaming:
        return 0
    return min(n, <Py_ssize_t>((align - <size_t>y % align) % align // sizeof(real)))
