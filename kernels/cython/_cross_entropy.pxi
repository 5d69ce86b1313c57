"""Cross-entropy over rows and threads, for cross_entropy.pyx and robust_losses.pyx.

Whoever includes this says with CURVED, a constant, whether the curve of a Problem bends the loss of
each row; where it is 0, the compiler leaves all of that out.
"""

include "_simd.pxi"
include "_arrays.pxi"
include "_dtypes.pxi"
include "_threads.pxi"
include "_rows.pxi"
include "_panels.pxi"
include "_labels.pxi"
include "_curves.pxi"

cdef struct Problem:
    Py_ssize_t outer, n, inner
    Py_ssize_t x_step, t_step, grad_step  # from one plane to the next, in elements
    const int64_t* labels  # (outer, inner), or NULL for a target of probabilities
    const void* weight  # (n,) of the compute type, or NULL for ones
    const void* upstream  # (outer, inner), or (1, 1), or NULL for 1
    void* loss  # (outer, inner) or NULL
    void* lse  # (outer, inner) or NULL; NaN where a row is ignored
    void* top  # (outer, inner) or NULL: the state of each row, as _rows.pxi has it
    void* rest  # the same
    bint upstream_per_row, loss_per_row, dense_q, streaming
    bint wide_target  # probabilities of the compute type, beside logits of 16 bits
    int64_t ignore_index
    double denominator, z_loss
    double hard  # 1 - label_smoothing: of the target
    double soft  # label_smoothing / n: of every class
    double soft_total  # soft * (sum of the weights)
    Curve curve  # only where CURVED


include "_cross_entropy_rows.pxi"
include "_cross_entropy_panels.pxi"


# ---- loops over threads ---------------------------------------------------------------------

cdef double turn(
    const Problem* p, const real* x, const real* t, real* grad, Py_ssize_t task
) noexcept nogil:
    """One thread's turn: a panel, or some rows. The sum of its losses."""
    cdef Py_ssize_t panels = (p.inner + PANEL - 1) // PANEL, k, at
    cdef Py_ssize_t rows = tile_rows(p.n, lanes(x)), chunk = rows_per_task(p.n, lanes(x))
    cdef Py_ssize_t last = min(p.outer, (task + 1) * chunk)
    cdef double loss = 0
    if p.inner > 1:
        k = task // panels
        at = task % panels * PANEL
        return panel(p, x + k * p.x_step + at, target_at(t, k * p.t_step + at, p.wide_target),
                     grad + k * p.grad_step + at if grad != NULL else NULL, p.inner,
                     min(PANEL, p.inner - at), False, k * p.inner + at)
    if p.n <= SHORT:
        for k in range((last - task * chunk + rows - 1) // rows):
            at = task * chunk + k * rows
            loss += tile(p, x, t, grad, min(rows, last - at), at)
        return loss
    for k in range(task * chunk, last):
        loss += whole_row(p, x, t, grad, k, 1)
    if p.streaming:
        stream_end()
    return loss


cdef inline double whole_row(
    const Problem* p, const real* x, const real* t, real* grad, Py_ssize_t r, int crew
) noexcept nogil:
    return row(p, x + r * p.x_step, target_at(t, r * p.t_step, p.wide_target),
               grad + r * p.grad_step if grad != NULL else NULL, r, crew)


cdef double run(
    const Problem* p, const real* x, const real* t, real* grad, double* sums, int crew
) noexcept nogil:
    """The sum of the losses; `sums` has room for one number per task, and one more."""
    cdef Py_ssize_t count = tasks(p.outer, p.n, p.inner, lanes(x)), task, chunk, k
    cdef double loss = 0
    if crew == 1:  # a parallel region of one thread costs as much as a row of 1000
        for task in range(count):
            sums[task] = turn(p, x, t, grad, task)
    elif few_long_rows(p.outer, p.n, p.inner, crew):
        chunk = rows_per_task(p.n, lanes(x))
        for task in range(count):  # in the same groups as elsewhere: the same bits
            sums[task] = 0
            for k in range(task * chunk, min(p.outer, (task + 1) * chunk)):
                sums[task] += whole_row(p, x, t, grad, k, crew)
    else:
        for task in prange(count, num_threads=crew, schedule="dynamic"):
            sums[task] = turn(p, x, t, grad, task)
    for task in range(count):
        loss += sums[task]
    return loss


cdef int typed(
    Problem* p, const real* x, const real* t, real* grad, int threads
) noexcept nogil:
    cdef double loss
    cdef Py_ssize_t elements = p.outer * p.n * p.inner
    cdef double* sums = room(tasks(p.outer, p.n, p.inner, lanes(x)))
    if sums == NULL:
        return NO_MEMORY
    if p.soft != 0:
        p.soft_total = p.soft * (weight_sum(x, p.weight, p.n) if p.weight != NULL else p.n)
    p.streaming = (grad != NULL and grad != x
                   and elements * <Py_ssize_t>sizeof(real) > STREAM_ABOVE)
    loss = run(p, x, t, grad, sums, team(threads, elements))
    free(sums)
    if p.loss != NULL and not p.loss_per_row:
        put_wide(x, p.loss, 0, loss / p.denominator)
    return 0


cdef bint per_row(cnp.ndarray x, loss):
    """Whether a loss or its gradient has one number for each row, and not (1, 1) for them all."""
    return (loss is not None and cnp.PyArray_DIM(loss, 0) == cnp.PyArray_DIM(x, 0)
            and cnp.PyArray_DIM(loss, 1) == cnp.PyArray_DIM(x, 2))
