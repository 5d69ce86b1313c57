"""Loops over class labels: checking them, and the negative log-likelihood, which only looks one
element per row up. Blocks of ROWS labels are summed in double precision and merged in order.
"""

from libc.stdint cimport int64_t
from libc.string cimport memset

cdef enum:
    ROWS = 4096  # labels in a block
    FILL = 1 << 18  # bytes of zeros in a thread's turn


cdef inline Py_ssize_t label_blocks(Py_ssize_t rows) noexcept nogil:
    return (rows + ROWS - 1) // ROWS


cdef bint scan_block(
    const int64_t* labels, Py_ssize_t rows, const real* weight, Py_ssize_t classes,
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
            total += get(weight + labels[r])
    weight_sum[0] = total
    return True


cdef double pick_block(
    const int64_t* labels, Py_ssize_t first, Py_ssize_t last, const real* x, Py_ssize_t step,
    Py_ssize_t inner, const void* weight, int64_t ignore_index, void* loss, double denominator
) noexcept nogil:
    """Sum of -weight * x at the labels of the rows from first to last; each into `loss` if given."""
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
