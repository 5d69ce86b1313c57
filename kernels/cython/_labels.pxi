"""Loops over class labels: checking them, and the negative log-likelihood, which only looks one
element per row up. Blocks of ROWS labels are summed in double precision and merged in order.
"""

cdef enum:
    ROWS = 4096  # labels in a block
    FILL = 1 << 18  # bytes of zeros in a task


cdef inline Py_ssize_t label_blocks(Py_ssize_t rows) noexcept nogil:
    return (rows + ROWS - 1) // ROWS


cdef bint scan_block(
    const ClassLoss* a, const wide* weight, Py_ssize_t first, Py_ssize_t last, double* weight_sum
) noexcept nogil:
    """Whether the labels of rows first to last are in range; if so, the sum of the weights."""
    cdef Py_ssize_t r, bad = 0, kept = 0, all_count = not a.has_ignore_index, counts
    cdef const int64_t* labels = a.labels
    cdef int64_t ignore_index = a.ignore_index
    cdef size_t classes = a.n
    cdef double total = 0
    for r in range(first, last):
        counts = all_count | (labels[r] != ignore_index)
        kept += counts
        bad |= counts & (<size_t>labels[r] >= classes)
    if bad:
        return False
    if weight == NULL:
        weight_sum[0] = kept
        return True
    for r in range(first, last):
        if all_count or labels[r] != ignore_index:
            total += weight[labels[r]]
    weight_sum[0] = total
    return True


cdef double pick_block(
    const ClassLoss* a, const real* x, Py_ssize_t first, Py_ssize_t last
) noexcept nogil:
    """Sum of -weight * x at the labels of rows first to last; each into `loss` if per_row."""
    cdef Py_ssize_t r
    cdef ClassLoss b = a[0]  # a copy, which no store can change
    cdef double total = 0, value
    for r in range(first, last):
        value = 0
        if b.labels[r] != b.ignore_index:
            value = -get(x + r // b.inner * b.x_step + b.labels[r] * b.inner + r % b.inner)
            if b.weight != NULL:
                value = value * get_wide(x, b.weight, b.labels[r])
        if b.per_row:
            put_wide(x, b.loss, r, value / b.denominator)
        total += value
    return total


cdef void fill_zero(const ClassLoss* a, real* grad, int num_threads) noexcept nogil:
    cdef Py_ssize_t plane = a.n * a.inner, chunk = FILL // sizeof(real)
    cdef Py_ssize_t chunks = (plane + chunk - 1) // chunk  # of a plane
    cdef Py_ssize_t planes = 1 + chunk // (plane + 1)  # several small ones in a task
    cdef Py_ssize_t groups = (a.outer + planes - 1) // planes, task, at, k
    for task in prange(groups * chunks, num_threads=num_threads, schedule="static"):
        at = task % chunks * chunk
        for k in range(task // chunks * planes, min(a.outer, (task // chunks + 1) * planes)):
            memset(grad + k * a.grad_step + at, 0, min(chunk, plane - at) * sizeof(real))


cdef void put_block(
    const ClassLoss* a, real* grad, Py_ssize_t first, Py_ssize_t last
) noexcept nogil:
    """-grad_loss * weight at the labels of the rows from first to last."""
    cdef Py_ssize_t r
    cdef ClassLoss b = a[0]  # a copy, which no store can change
    cdef double value
    for r in range(first, last):
        if b.labels[r] != b.ignore_index:
            value = -1
            if b.grad_loss != NULL:
                value = -get_wide(grad, b.grad_loss, r if b.per_row else 0)
            value = value / b.denominator
            if b.weight != NULL:
                value = value * get_wide(grad, b.weight, b.labels[r])
            put(grad + r // b.inner * b.grad_step + b.labels[r] * b.inner + r % b.inner, value)


# ---- over threads ----------------------------------------------------------------------------

cdef int scan(const ClassLoss* a, const wide* weight, int threads) noexcept nogil:
    cdef Py_ssize_t rows = a.outer * a.inner, blocks = label_blocks(rows), k, r
    cdef double* sums = allocate_sums(2 * blocks)
    cdef double* bad = sums + blocks
    if sums == NULL:
        return NO_MEMORY
    if blocks == 1:  # one small batch: no parallel region
        bad[0] = not scan_block(a, weight, 0, rows, sums)
    else:
        for k in prange(blocks, num_threads=threads_for(threads, rows), schedule="static"):
            bad[k] = not scan_block(a, weight, k * ROWS, min(rows, (k + 1) * ROWS), sums + k)
    a.stats[0] = -1
    a.stats[1] = 0
    for k in range(blocks):
        if bad[k]:
            r = k * ROWS
            while (0 <= a.labels[r] < a.n
                   or (a.has_ignore_index and a.labels[r] == a.ignore_index)):
                r += 1
            a.stats[0] = r
            break
        a.stats[1] += sums[k]
    free(sums)
    return 0


cdef int nll_forward(const ClassLoss* a, const real* x, int threads) noexcept nogil:
    cdef Py_ssize_t rows = a.outer * a.inner, blocks = label_blocks(rows), k
    cdef double* sums = allocate_sums(blocks)
    cdef double total = 0
    if sums == NULL:
        return NO_MEMORY
    for k in prange(blocks, num_threads=threads_for(threads, rows), schedule="static"):
        sums[k] = pick_block(a, x, k * ROWS, min(rows, (k + 1) * ROWS))
    if not a.per_row:
        for k in range(blocks):
            total += sums[k]
        put_wide(x, a.loss, 0, total / a.denominator)
    free(sums)
    return 0


cdef int nll_backward(const ClassLoss* a, real* grad, int threads) noexcept nogil:
    cdef Py_ssize_t rows = a.outer * a.inner, k
    fill_zero(a, grad, threads_for(threads, rows * a.n))
    for k in prange(label_blocks(rows), num_threads=threads_for(threads, rows), schedule="static"):
        put_block(a, grad, k * ROWS, min(rows, (k + 1) * ROWS))
    return 0
