"""Losses of logits over rows and threads.

Whoever includes this defines TRANSFORMED, a constant: whether the losses of a Problem are
transformed. Where it is 0, the compiler leaves all of that out.
"""

include "_simd.pxi"
include "_arrays.pxi"
include "_calls.pxi"
include "_threads.pxi"
include "_rows.pxi"
include "_panels.pxi"
include "_class_loss.pxi"
include "_loss_transform.pxi"
include "_loss_rows.pxi"
include "_loss_panels.pxi"


# ---- loops over threads ---------------------------------------------------------------------

cdef double run_task(
    const Problem* p, const real* x, const real* t, real* grad, Py_ssize_t task
) noexcept nogil:
    """A panel, or some rows. The sum of their losses."""
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
    const Problem* p, const real* x, const real* t, real* grad, Py_ssize_t r, int num_threads
) noexcept nogil:
    return row(p, x + r * p.x_step, target_at(t, r * p.t_step, p.wide_target),
               grad + r * p.grad_step if grad != NULL else NULL, r, num_threads)


cdef double run(
    const Problem* p, const real* x, const real* t, real* grad, double* sums, int num_threads
) noexcept nogil:
    """The sum of the losses; `sums` has space for one number per task."""
    cdef Py_ssize_t count = tasks(p.outer, p.n, p.inner, lanes(x)), task, chunk, k
    cdef double loss = 0
    if num_threads == 1:  # a parallel region of one thread takes as long as a row of 1000
        for task in range(count):
            sums[task] = run_task(p, x, t, grad, task)
    elif few_long_rows(p.outer, p.n, p.inner, num_threads):
        chunk = rows_per_task(p.n, lanes(x))
        for task in range(count):  # in the same groups as elsewhere: the same bits
            sums[task] = 0
            for k in range(task * chunk, min(p.outer, (task + 1) * chunk)):
                sums[task] += whole_row(p, x, t, grad, k, num_threads)
    else:
        for task in prange(count, num_threads=num_threads, schedule="dynamic"):
            sums[task] = run_task(p, x, t, grad, task)
    for task in range(count):
        loss += sums[task]
    return loss


cdef int compute(
    Problem* p, const real* x, const real* t, real* grad, int threads
) noexcept nogil:
    """Loss, lse and gradient, whichever are not NULL."""
    cdef double loss
    cdef Py_ssize_t elements = p.outer * p.n * p.inner
    cdef double* sums = allocate_sums(tasks(p.outer, p.n, p.inner, lanes(x)))
    if sums == NULL:
        return NO_MEMORY
    p.uniform_total = uniform_total(p, x)
    p.streaming = (grad != NULL and grad != x
                   and elements * <Py_ssize_t>sizeof(real) > STREAM_ABOVE)
    loss = run(p, x, t, grad, sums, threads_for(threads, elements))
    free(sums)
    if p.loss != NULL and not p.loss_per_row:
        put_wide(x, p.loss, 0, loss / p.denominator)
    return 0
