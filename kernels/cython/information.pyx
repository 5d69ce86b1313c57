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

ctypedef Information Arguments

include "_simd.pxi"
include "_arrays.pxi"
include "_calls.pxi"
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


cdef inline real* moved(real* a, Py_ssize_t elements) noexcept nogil:
    """NULL stays NULL."""
    return a if a == NULL else a + elements


cdef inline double finished(double nats, const Information* a) noexcept nogil:
    return exp(nats) if a.exponential else nats / a.unit


include "_information_rows.pxi"
include "_information_tiles.pxi"
include "_information_logits.pxi"
include "_information_tables.pxi"


# ---- loops over threads ---------------------------------------------------------------------

cdef void row(
    int op, const Information* a, const real* like, Py_ssize_t number, int num_threads
) noexcept nogil:
    cdef const real* x = <const real*>a.p + number * a.p_step
    cdef const real* y = <const real*>a.q + number * a.q_step
    cdef double value
    if op == LOGITS_ENTROPY or op == LOGITS_KL:
        value = logits_row(op, x, y, moved(<real*>a.q_grad, number * a.q_grad_step),
                           moved(<real*>a.p_grad, number * a.p_grad_step), a.n, a.unit,
                           num_threads)
    else:
        value = row_value(op, x, y, a.n, num_threads)
    put_wide(like, a.out, number, finished(value, a))


cdef void run_task(
    int op, const Information* a, const real* like, Py_ssize_t task
) noexcept nogil:
    """A panel, or some rows."""
    cdef Py_ssize_t panels = (a.inner + PANEL - 1) // PANEL, plane, at, k
    cdef Py_ssize_t rows = tile_rows(a.n, lanes(like)), chunk = rows_per_task(a.n, lanes(like))
    cdef Py_ssize_t last = min(a.outer, (task + 1) * chunk)
    cdef bint logits = op == LOGITS_ENTROPY or op == LOGITS_KL
    cdef const real* x = <const real*>a.p
    cdef const real* y = <const real*>a.q
    cdef real* q_grad = <real*>a.q_grad
    cdef real* p_grad = <real*>a.p_grad
    if a.inner > 1:
        plane = task // panels
        at = task % panels * PANEL
        x += plane * a.p_step + at
        y += plane * a.q_step + at
        if logits:
            logits_panel(op, a, x, y, plane * a.inner + at,
                         moved(q_grad, plane * a.q_grad_step + at),
                         moved(p_grad, plane * a.p_grad_step + at), min(PANEL, a.inner - at))
        else:
            panel(op, a, x, y, plane * a.inner + at, min(PANEL, a.inner - at))
    elif a.n <= SHORT:
        for k in range((last - task * chunk + rows - 1) // rows):
            at = task * chunk + k * rows
            if logits:
                logits_tile(op, a, x + at * a.p_step, y + at * a.q_step, at,
                            moved(q_grad, at * a.q_grad_step), moved(p_grad, at * a.p_grad_step),
                            min(rows, last - at))
            else:
                tile(op, a, x + at * a.p_step, y + at * a.q_step, at, min(rows, last - at))
    else:
        for k in range(task * chunk, last):
            row(op, a, like, k, 1)


cdef void table(
    int op, const Information* a, const real* like, char* scratch, Py_ssize_t number
) noexcept nogil:
    cdef const real* x = <const real*>a.p + number * a.p_step
    cdef double* sums = <double*>scratch
    cdef double value
    if op == CONDITIONAL:
        value = table_conditional(x, a.n, a.inner)
    else:
        value = table_mutual(x, a.n, a.inner, sums, sums + a.inner)
    put_wide(like, a.out, number, finished(value, a))


cdef int tables(
    int op, const Information* a, const real* like, int num_threads
) noexcept nogil:
    cdef Py_ssize_t number
    cdef size_t each = 2 * a.inner * sizeof(double)
    cdef char* scratch = <char*>malloc(num_threads * each + 1)
    if scratch == NULL:
        return NO_MEMORY
    if num_threads == 1:
        for number in range(a.outer):
            table(op, a, like, scratch, number)
    else:
        for number in prange(a.outer, num_threads=num_threads, schedule="dynamic"):
            table(op, a, like, scratch + threadid() * each, number)
    free(scratch)
    return 0


cdef int typed(int op, const Information* a, const real* like, int threads) noexcept nogil:
    cdef Py_ssize_t count = tasks(a.outer, a.n, a.inner, lanes(like)), task
    cdef int num_threads = threads_for(threads, a.outer * a.n * a.inner)
    if op == CONDITIONAL or op == MUTUAL:
        return tables(op, a, like, num_threads)
    if num_threads == 1:
        for task in range(count):
            run_task(op, a, like, task)
    elif few_long_rows(a.outer, a.n, a.inner, num_threads):
        for task in range(a.outer):
            row(op, a, like, task, num_threads)
    else:
        for task in prange(count, num_threads=num_threads, schedule="dynamic"):
            run_task(op, a, like, task)
    return 0


# ---- for Cython: see information.pxd --------------------------------------------------------

cdef inline void of_one(int op, Information* a) noexcept nogil:
    """Where there is one distribution, it is also the second, and so is its gradient."""
    if op == ENTROPY or op == LOGITS_ENTROPY:
        a.q = a.p
        a.q_step = a.p_step
        a.q_grad = a.p_grad
        a.q_grad_step = a.p_grad_step
        a.p_grad = NULL


cdef int from_cython(
    int op, bint with_grad, int dtype, const Information* a, int threads
) noexcept nogil:
    cdef Information b = a[0]
    cdef Py_ssize_t plane
    b.inner = a.inner or 1
    plane = a.n * b.inner
    b.p_step = 0 if a.p_broadcast else a.p_step or plane
    b.q_step = 0 if a.q_broadcast else a.q_step or plane
    b.p_grad_step = a.p_grad_step or plane
    b.q_grad_step = a.q_grad_step or plane
    b.unit = a.unit or 1
    if op != ENTROPY and op != CROSS_ENTROPY:
        b.exponential = False
    if not with_grad:
        b.p_grad = NULL
        b.q_grad = NULL
    of_one(op, &b)
    return by_dtype(op, dtype, &b, threads)


cdef int c_entropy(int dtype, const Information* a, int threads) noexcept nogil:
    return from_cython(ENTROPY, False, dtype, a, threads)


cdef int c_cross_entropy_of(int dtype, const Information* a, int threads) noexcept nogil:
    return from_cython(CROSS_ENTROPY, False, dtype, a, threads)


cdef int c_kl_divergence(int dtype, const Information* a, int threads) noexcept nogil:
    return from_cython(KL, False, dtype, a, threads)


cdef int c_js_divergence(int dtype, const Information* a, int threads) noexcept nogil:
    return from_cython(JS, False, dtype, a, threads)


cdef int c_conditional_entropy(int dtype, const Information* a, int threads) noexcept nogil:
    return from_cython(CONDITIONAL, False, dtype, a, threads)


cdef int c_mutual_information(int dtype, const Information* a, int threads) noexcept nogil:
    return from_cython(MUTUAL, False, dtype, a, threads)


cdef int c_entropy_from_logits(int dtype, const Information* a, int threads) noexcept nogil:
    return from_cython(LOGITS_ENTROPY, False, dtype, a, threads)


cdef int c_entropy_from_logits_with_grad(
    int dtype, const Information* a, int threads
) noexcept nogil:
    return from_cython(LOGITS_ENTROPY, True, dtype, a, threads)


cdef int c_kl_divergence_from_logits(int dtype, const Information* a, int threads) noexcept nogil:
    return from_cython(LOGITS_KL, False, dtype, a, threads)


cdef int c_kl_divergence_from_logits_with_grad(
    int dtype, const Information* a, int threads
) noexcept nogil:
    return from_cython(LOGITS_KL, True, dtype, a, threads)


# ---- for Python -----------------------------------------------------------------------------

cdef on_arrays(
    int op, cnp.ndarray p, q, out, p_grad, q_grad, double unit, bint exponential, int threads
):
    cdef Information a
    a.p = data(p)
    a.q = data(q)
    a.out = data(out)
    a.p_grad = data(p_grad)
    a.q_grad = data(q_grad)
    a.outer = cnp.PyArray_DIM(p, 0)
    a.n = cnp.PyArray_DIM(p, 1)
    a.inner = cnp.PyArray_DIM(p, 2)
    a.p_step = plane_step(p)
    a.q_step = plane_step(q)
    a.p_grad_step = plane_step(p_grad)
    a.q_grad_step = plane_step(q_grad)
    a.unit = unit
    a.exponential = exponential
    of_one(op, &a)
    from_python(op, dtype_of(p), &a, threads)


def entropy(p, out, *, double unit, bint exponential, int threads):
    on_arrays(ENTROPY, p, None, out, None, None, unit, exponential, threads)


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
    on_arrays(LOGITS_ENTROPY, logits, None, out, None, None, unit, False, threads)


def entropy_from_logits_with_grad(logits, out, grad, *, double unit, int threads):
    on_arrays(LOGITS_ENTROPY, logits, None, out, grad, None, unit, False, threads)


def kl_divergence_from_logits(p_logits, q_logits, out, *, double unit, int threads):
    on_arrays(LOGITS_KL, p_logits, q_logits, out, None, None, unit, False, threads)


def kl_divergence_from_logits_with_grad(
    p_logits, q_logits, out, q_grad, p_grad, *, double unit, int threads
):
    on_arrays(LOGITS_KL, p_logits, q_logits, out, p_grad, q_grad, unit, False, threads)
