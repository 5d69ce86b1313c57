# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: binding=True
"""Entropies, divergences and mutual information.

The formulas, of which no term is negative, are in kernels/reference/information.py. A row is read
twice, first for its largest element and its sum, then for the terms, from the cache; the logarithms
are most of the work. Rejected: log(sum) - sum(x * log(x)) / sum in one pass, which cancels where
one outcome dominates; and KL as the difference of two such sums.

Read _information_rows.pxi first, then _information_tiles.pxi for short rows and other axes,
_information_logits.pxi and _information_tables.pxi.
"""

include "_simd.pxi"
include "_arrays.pxi"
include "_dtypes.pxi"
include "_threads.pxi"
include "_rows.pxi"
include "_panels.pxi"

cdef enum:  # the ops
    ENTROPY
    CROSS_ENTROPY
    KL
    JS
    LOGITS_ENTROPY
    LOGITS_KL
    CONDITIONAL
    MUTUAL

cdef struct Finish:  # of a number of nats
    double unit  # to divide by
    bint exponential  # exp of it instead

cdef struct Steps:  # from one plane to the next, in elements
    Py_ssize_t x, y, grad, p_grad

cdef struct Job:
    int op
    Py_ssize_t outer, n, inner
    Steps step
    Finish finish


cdef inline real* moved(real* a, Py_ssize_t elements) noexcept nogil:
    """NULL stays NULL."""
    return a if a == NULL else a + elements


cdef inline double finished(double value, Finish finish) noexcept nogil:
    return exp(value) if finish.exponential else value / finish.unit


include "_information_rows.pxi"
include "_information_tiles.pxi"
include "_information_logits.pxi"
include "_information_tables.pxi"


# ---- loops over threads ---------------------------------------------------------------------

cdef void row(
    const Job* job, const real* x, const real* y, void* out, real* grad, real* p_grad,
    Py_ssize_t number, int crew
) noexcept nogil:
    cdef const real* a = x + number * job.step.x
    cdef const real* b = y + number * job.step.y
    cdef real* to = moved(grad, number * job.step.grad)
    cdef real* p_to = moved(p_grad, number * job.step.p_grad)
    cdef double value
    if job.op == LOGITS_ENTROPY or job.op == LOGITS_KL:
        value = logits_row(job.op, a, b, to, p_to, job.n, job.finish.unit, crew)
    else:
        value = row_value(job.op, a, b, job.n, crew)
    put_wide(x, out, number, finished(value, job.finish))


cdef void turn(
    const Job* job, const real* x, const real* y, void* out, real* grad, real* p_grad,
    Py_ssize_t task
) noexcept nogil:
    """One thread's turn: a panel, or some rows."""
    cdef Py_ssize_t panels = (job.inner + PANEL - 1) // PANEL, plane, at, k
    cdef Py_ssize_t rows = tile_rows(job.n, lanes(x)), chunk = rows_per_task(job.n, lanes(x))
    cdef Py_ssize_t last = min(job.outer, (task + 1) * chunk)
    cdef bint logits = job.op == LOGITS_ENTROPY or job.op == LOGITS_KL
    if job.inner > 1:
        plane = task // panels
        at = task % panels * PANEL
        x += plane * job.step.x + at
        y += plane * job.step.y + at
        if logits:
            logits_panel(job.op, x, y, out, plane * job.inner + at,
                         moved(grad, plane * job.step.grad + at),
                         moved(p_grad, plane * job.step.p_grad + at),
                         job.n, job.inner, min(PANEL, job.inner - at), job.finish.unit)
        else:
            panel(job.op, x, y, out, plane * job.inner + at, job.n, job.inner,
                  min(PANEL, job.inner - at), job.finish)
    elif job.n <= SHORT:
        for k in range((last - task * chunk + rows - 1) // rows):
            at = task * chunk + k * rows
            if logits:
                logits_tile(job.op, x + at * job.step.x, y + at * job.step.y, out, at,
                            moved(grad, at * job.step.grad),
                            moved(p_grad, at * job.step.p_grad),
                            min(rows, last - at), job.n, &job.step, job.finish.unit)
            else:
                tile(job.op, x + at * job.step.x, y + at * job.step.y, out, at,
                     min(rows, last - at), job.n, job.step.x, job.step.y, job.finish)
    else:
        for k in range(task * chunk, last):
            row(job, x, y, out, grad, p_grad, k, 1)


cdef void typed(
    const Job* job, const real* x, const real* y, void* out, real* grad, real* p_grad, int threads
) noexcept nogil:
    cdef Py_ssize_t count = tasks(job.outer, job.n, job.inner, lanes(x)), task
    cdef int crew = team(threads, job.outer * job.n * job.inner)
    if crew == 1:
        for task in range(count):
            turn(job, x, y, out, grad, p_grad, task)
    elif few_long_rows(job.outer, job.n, job.inner, crew):
        for task in range(job.outer):
            row(job, x, y, out, grad, p_grad, task, crew)
    else:
        for task in prange(count, num_threads=crew, schedule="dynamic"):
            turn(job, x, y, out, grad, p_grad, task)


cdef void table(
    const Job* job, const real* x, void* out, void* scratch, Py_ssize_t number
) noexcept nogil:
    """Its rows and columns are n and inner of the job."""
    cdef double* sums = <double*>scratch
    cdef double value
    x += number * job.step.x
    if job.op == CONDITIONAL:
        value = table_conditional(x, job.n, job.inner)
    else:
        value = table_mutual(x, job.n, job.inner, sums, sums + job.inner)
    put_wide(x, out, number, value / job.finish.unit)


cdef int typed_tables(const Job* job, const real* x, void* out, int threads) noexcept nogil:
    cdef Py_ssize_t number
    cdef int crew = team(threads, job.outer * job.n * job.inner), result = 0
    cdef size_t size = 2 * job.inner * sizeof(double)
    cdef char* scratch = <char*>malloc(crew * size + 1)
    if scratch == NULL:
        return NO_MEMORY
    if crew == 1:
        for number in range(job.outer):
            table(job, x, out, scratch, number)
    else:
        for number in prange(job.outer, num_threads=crew, schedule="dynamic"):
            table(job, x, out, scratch + threadid() * size, number)
    free(scratch)
    return result


cdef int by_type(
    const Job* job, const real* x, const void* y, void* out, void* grad, void* p_grad, int threads
) noexcept nogil:
    if job.op == CONDITIONAL or job.op == MUTUAL:
        return typed_tables(job, x, out, threads)
    typed(job, x, <const real*>y, out, <real*>grad, <real*>p_grad, threads)
    return 0


cdef int by_dtype(
    Job job, int dtype, const void* x, const void* y, void* out, void* grad, void* p_grad,
    int threads
) noexcept nogil:
    if dtype == F32:
        return by_type(&job, <const float*>x, y, out, grad, p_grad, threads)
    if dtype == F64:
        return by_type(&job, <const double*>x, y, out, grad, p_grad, threads)
    if dtype == F16:
        return by_type(&job, <const f16*>x, y, out, grad, p_grad, threads)
    if dtype == BF16:
        return by_type(&job, <const bf16*>x, y, out, grad, p_grad, threads)
    return NO_DTYPE


# ---- for Cython: see information.pxd --------------------------------------------------------

cdef inline Job job_of(
    int op, Py_ssize_t outer, Py_ssize_t n, Py_ssize_t inner, Steps step, double unit,
    bint exponential
) noexcept nogil:
    cdef Job job
    job.op = op
    job.outer = outer
    job.n = n
    job.inner = inner
    job.step = step
    job.finish.unit = unit
    job.finish.exponential = exponential
    return job


cdef inline Steps steps(
    Py_ssize_t x, Py_ssize_t y, Py_ssize_t grad, Py_ssize_t p_grad
) noexcept nogil:
    cdef Steps step
    step.x = x
    step.y = y
    step.grad = grad
    step.p_grad = p_grad
    return step


cdef int c_entropy(
    int dtype, const void* p, void* out, Py_ssize_t outer, Py_ssize_t n, Py_ssize_t inner,
    Py_ssize_t p_step, double unit, bint exponential, int threads
) noexcept nogil:
    return by_dtype(job_of(ENTROPY, outer, n, inner, steps(p_step, p_step, 0, 0), unit,
                           exponential), dtype, p, p, out, NULL, NULL, threads)


cdef int c_cross_entropy_of(
    int dtype, const void* p, const void* q, void* out, Py_ssize_t outer, Py_ssize_t n,
    Py_ssize_t inner, Py_ssize_t p_step, Py_ssize_t q_step, double unit, bint exponential,
    int threads
) noexcept nogil:
    return by_dtype(job_of(CROSS_ENTROPY, outer, n, inner, steps(p_step, q_step, 0, 0), unit,
                           exponential), dtype, p, q, out, NULL, NULL, threads)


cdef int c_kl_divergence(
    int dtype, const void* p, const void* q, void* out, Py_ssize_t outer, Py_ssize_t n,
    Py_ssize_t inner, Py_ssize_t p_step, Py_ssize_t q_step, double unit, int threads
) noexcept nogil:
    return by_dtype(job_of(KL, outer, n, inner, steps(p_step, q_step, 0, 0), unit, False), dtype,
                    p, q, out, NULL, NULL, threads)


cdef int c_js_divergence(
    int dtype, const void* p, const void* q, void* out, Py_ssize_t outer, Py_ssize_t n,
    Py_ssize_t inner, Py_ssize_t p_step, Py_ssize_t q_step, double unit, int threads
) noexcept nogil:
    return by_dtype(job_of(JS, outer, n, inner, steps(p_step, q_step, 0, 0), unit, False), dtype,
                    p, q, out, NULL, NULL, threads)


cdef int c_conditional_entropy(
    int dtype, const void* table, void* out, Py_ssize_t tables, Py_ssize_t rows,
    Py_ssize_t columns, Py_ssize_t table_step, double unit, int threads
) noexcept nogil:
    return by_dtype(job_of(CONDITIONAL, tables, rows, columns, steps(table_step, 0, 0, 0), unit,
                           False), dtype, table, NULL, out, NULL, NULL, threads)


cdef int c_mutual_information(
    int dtype, const void* table, void* out, Py_ssize_t tables, Py_ssize_t rows,
    Py_ssize_t columns, Py_ssize_t table_step, double unit, int threads
) noexcept nogil:
    return by_dtype(job_of(MUTUAL, tables, rows, columns, steps(table_step, 0, 0, 0), unit, False),
                    dtype, table, NULL, out, NULL, NULL, threads)


cdef int c_entropy_from_logits(
    int dtype, const void* logits, void* out, Py_ssize_t outer, Py_ssize_t n, Py_ssize_t inner,
    Py_ssize_t step, double unit, int threads
) noexcept nogil:
    return c_entropy_from_logits_with_grad(dtype, logits, out, NULL, outer, n, inner, step, 0,
                                           unit, threads)


cdef int c_entropy_from_logits_with_grad(
    int dtype, const void* logits, void* out, void* grad, Py_ssize_t outer, Py_ssize_t n,
    Py_ssize_t inner, Py_ssize_t step, Py_ssize_t grad_step, double unit, int threads
) noexcept nogil:
    return by_dtype(job_of(LOGITS_ENTROPY, outer, n, inner, steps(step, step, grad_step, 0), unit,
                           False), dtype, logits, logits, out, grad, NULL, threads)


cdef int c_kl_divergence_from_logits(
    int dtype, const void* p_logits, const void* q_logits, void* out, Py_ssize_t outer,
    Py_ssize_t n, Py_ssize_t inner, Py_ssize_t p_step, Py_ssize_t q_step, double unit, int threads
) noexcept nogil:
    return c_kl_divergence_from_logits_with_grad(dtype, p_logits, q_logits, out, NULL, NULL, outer,
                                                 n, inner, p_step, q_step, 0, 0, unit, threads)


cdef int c_kl_divergence_from_logits_with_grad(
    int dtype, const void* p_logits, const void* q_logits, void* out, void* q_grad, void* p_grad,
    Py_ssize_t outer, Py_ssize_t n, Py_ssize_t inner, Py_ssize_t p_step, Py_ssize_t q_step,
    Py_ssize_t q_grad_step, Py_ssize_t p_grad_step, double unit, int threads
) noexcept nogil:
    return by_dtype(job_of(LOGITS_KL, outer, n, inner, steps(p_step, q_step, q_grad_step,
                                                             p_grad_step), unit, False), dtype,
                    p_logits, q_logits, out, q_grad, p_grad, threads)


# ---- for Python -----------------------------------------------------------------------------

cdef on_arrays(
    int op, cnp.ndarray x, y, cnp.ndarray out, grad, p_grad, double unit, bint exponential,
    int threads
):
    cdef int dtype = dtype_of(x), result
    cdef void* second = data(y)
    cdef void* to = data(grad)
    cdef void* p_to = data(p_grad)
    cdef Job job = job_of(
        op, cnp.PyArray_DIM(x, 0), cnp.PyArray_DIM(x, 1), cnp.PyArray_DIM(x, 2),
        steps(plane_step(x), plane_step(y), plane_step(grad), plane_step(p_grad)), unit,
        exponential)
    with nogil:
        result = by_dtype(job, dtype, cnp.PyArray_DATA(x), second, cnp.PyArray_DATA(out), to, p_to,
                          threads)
    done(result)


def entropy(p, out, *, double unit, bint exponential, int threads):
    on_arrays(ENTROPY, p, p, out, None, None, unit, exponential, threads)


def cross_entropy_of(p, q, out, *, double unit, bint exponential, int threads):
    on_arrays(CROSS_ENTROPY, p, q, out, None, None, unit, exponential, threads)


def kl_divergence(p, q, out, *, double unit, int threads):
    on_arrays(KL, p, q, out, None, None, unit, False, threads)


def js_divergence(p, q, out, *, double unit, int threads):
    on_arrays(JS, p, q, out, None, None, unit, False, threads)


def conditional_entropy(table, out, *, double unit, int threads):
    on_arrays(CONDITIONAL, table, None, out, None, None, unit, False, threads)


def mutual_information(table, out, *, double unit, int threads):
    on_arrays(MUTUAL, table, None, out, None, None, unit, False, threads)


def entropy_from_logits(logits, out, *, double unit, int threads):
    on_arrays(LOGITS_ENTROPY, logits, logits, out, None, None, unit, False, threads)


def entropy_from_logits_with_grad(logits, out, grad, *, double unit, int threads):
    on_arrays(LOGITS_ENTROPY, logits, logits, out, grad, None, unit, False, threads)


def kl_divergence_from_logits(p_logits, q_logits, out, *, double unit, int threads):
    on_arrays(LOGITS_KL, p_logits, q_logits, out, None, None, unit, False, threads)


def kl_divergence_from_logits_with_grad(
    p_logits, q_logits, out, q_grad, p_grad, *, double unit, int threads
):
    on_arrays(LOGITS_KL, p_logits, q_logits, out, q_grad, p_grad, unit, False, threads)
