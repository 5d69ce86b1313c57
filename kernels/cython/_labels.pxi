"""Loops over class labels: checking them, and the negative log-likelihood, which only looks one
element per row up. Blocks of ROWS labels are summed in double precision and merged in order.
"""

from libc.stdint cimport int64_t
from libc.string cimport memset

ctypedef fused wide:  # the compute types
    double
    float

cdef enum:
    ROWS = 4096  # labels in a block
    FILL = 1 << 18  # bytes of zeros in a thread's turn


cdef inline double* room(Py_ssize_t numbers) noexcept nogil:
    """Memory for partial sums, or NULL."""
    return <double*>malloc((numbers + 1) * sizeof(double))


cdef inline Py_ssize_t label_blocks(Py_ssize_t rows) noexcept nogil:
    return (rows + ROWS - 1) // ROWS


cdef bint scan_block(
    const int64_t* labels, Py_ssize_t rows, const wide* weight, Py_ssize_t classes,
    int64_t ignore_index, double* weight_sum
) noexcept nogil:
    """Whether every label is in range; if so, the sum of the rows' weights."""
    cdef Py_ssize_t r, bad = 0, kept = 0
    cdef double total = 0
    for r in range(rows):
        kept += labels[r] != ignore_index
        bad |= (labels[r] != ignore_index) & (<size_t>labels[r] >= <size_t>classes)
    if bad:
        return False
    if weight == NULL:
        weight_sum[0] = kept
        return True
    for r in range(rows):
        if labels[r] != ignore_index:
            total += weight[labels[r]]
    weight_sum[0] = total
    return True


cdef double pick_block(
    const int64_t* labels, Py_ssize_t first, Py_ssize_t last, const real* x, Py_ssize_t step,
    Py_ssize_t inner, const void* weight, int64_t ignore_index, void* loss, double denominator
) noexcept nogil:
    """Sum of -weight * x at the labels of rows first to last; each into `loss` if given."""
    cdef Py_ssize_t r
    cdef double total = 0, value
    for r in range(first, last):
        value = 0
        if labels[r] != ignore_index:
            value = -get(x + r // inner * step + labels[r] * inner + r % inner)
            if weight != NULL:
                value = value * get_wide(x, weight, labels[r])
        if loss != NULL:
            put_wide(x, loss, r, value / denominator)
        total += value
    return total


cdef void fill_zero(
    real* grad, Py_ssize_t outer, Py_ssize_t plane, Py_ssize_t step, int crew
) noexcept nogil:
    cdef Py_ssize_t per_turn = FILL // sizeof(real), turns = (plane + per_turn - 1) // per_turn
    cdef Py_ssize_t planes = 1 + per_turn // (plane + 1)  # several small ones in a turn
    cdef Py_ssize_t groups = (outer + planes - 1) // planes, task, at, k
    if plane == 0:
        return
    for task in prange(groups * turns, num_threads=crew, schedule="static"):
        at = task % turns * per_turn
        for k in range(task // turns * planes, min(outer, (task // turns + 1) * planes)):
            memset(grad + k * step + at, 0, min(per_turn, plane - at) * sizeof(real))


cdef void put_block(
    const int64_t* labels, Py_ssize_t first, Py_ssize_t last, real* grad, Py_ssize_t step,
    Py_ssize_t inner, const void* weight, int64_t ignore_index, const void* upstream,
    bint per_row, double denominator
) noexcept nogil:
    """-upstream * weight at the labels of the rows from first to last."""
    cdef Py_ssize_t r
    cdef double value
    for r in range(first, last):
        if labels[r] != ignore_index:
            value = -get_wide(grad, upstream, r if per_row else 0) / denominator
            if weight != NULL:
                value = value * get_wide(grad, weight, labels[r])
            put(grad + r // inner * step + labels[r] * inner + r % inner, value)


# ---- over threads ----------------------------------------------------------------------------

cdef int scan(
    const int64_t* labels, Py_ssize_t rows, const wide* weight, Py_ssize_t classes,
    int64_t ignore_index, double* stats, int threads
) noexcept nogil:
    cdef Py_ssize_t blocks = label_blocks(rows), k, r
    cdef double* sums = room(2 * blocks)
    cdef double* bad = sums + blocks
    if sums == NULL:
        return NO_MEMORY
    if blocks == 1:  # one small batch: no parallel region
        bad[0] = not scan_block(labels, rows, weight, classes, ignore_index, sums)
    else:
        for k in prange(blocks, num_threads=team(threads, rows), schedule="static"):
            bad[k] = not scan_block(labels + k * ROWS, min(ROWS, rows - k * ROWS), weight,
                                    classes, ignore_index, sums + k)
    stats[0] = -1
    stats[1] = 0
    for k in range(blocks):
        if bad[k]:
            r = k * ROWS
            while labels[r] == ignore_index or 0 <= labels[r] < classes:
                r += 1
            stats[0] = r
            break
        stats[1] += sums[k]
    free(sums)
    return 0


cdef int nll_forward(
    const real* x, const int64_t* labels, Py_ssize_t rows, Py_ssize_t inner, Py_ssize_t step,
    const void* weight, int64_t ignore_index, void* loss, bint per_row, double denominator,
    int threads
) noexcept nogil:
    cdef double* sums = room(label_blocks(rows))
    cdef double total = 0
    cdef Py_ssize_t k
    if sums == NULL:
        return NO_MEMORY
    for k in prange(label_blocks(rows), num_threads=team(threads, rows), schedule="static"):
        sums[k] = pick_block(labels, k * ROWS, min(rows, (k + 1) * ROWS), x, step, inner, weight,
                             ignore_index, loss if per_row else NULL, denominator)
    if not per_row:
        for k in range(label_blocks(rows)):
            total += sums[k]
        put_wide(x, loss, 0, total / denominator)
    free(sums)
    return 0


cdef void nll_gradient(
    real* grad, const int64_t* labels, Py_ssize_t outer, Py_ssize_t n, Py_ssize_t inner,
    Py_ssize_t step, const void* weight, int64_t ignore_index, const void* upstream, bint per_row,
    double denominator, int threads
) noexcept nogil:
    cdef Py_ssize_t rows = outer * inner, k
    fill_zero(grad, outer, n * inner, step, team(threads, rows * n))
    for k in prange(label_blocks(rows), num_threads=team(threads, rows), schedule="static"):
        put_block(labels, k * ROWS, min(rows, (k + 1) * ROWS), grad, step, inner, weight,
                  ignore_index, upstream, per_row, denominator)
