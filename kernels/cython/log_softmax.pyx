# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: binding=True
"""logsumexp, softmax, log_softmax and their gradients.

Each op is two passes over a row (or panel): the first makes its state, the second writes while
the row is still in the cache, so memory is read once and written once. Big outputs are written
past the caches. Read _rows.pxi first, then _panels.pxi; the passes that write follow here, then
the loops over threads.
"""

ctypedef LogSoftmax Arguments

include "_simd.pxi"
include "_arrays.pxi"
include "_calls.pxi"
include "_threads.pxi"
include "_rows.pxi"
include "_panels.pxi"

cdef enum:  # the ops
    LOGSUMEXP
    SOFTMAX
    LOG_SOFTMAX
    SOFTMAX_BACKWARD
    LOG_SOFTMAX_BACKWARD


cdef inline vector[real] backward_value(
    int op, const real* like, vector[real] g, vector[real] y, vector[real] total
) noexcept nogil:
    return y * (g - total) if op == SOFTMAX_BACKWARD else g - exp_sub(y, splat(like, 0.0)) * total


cdef inline double forward_scale(int op, State state, Reference ref) noexcept nogil:
    """What row_value needs beside the maximum: NaN where there is no distribution."""
    if isinf(state.row_max):
        return NAN
    return ref.ratio / (1 + state.sumexp_m1) if op == SOFTMAX else log1p(state.sumexp_m1)


# ---- rows -----------------------------------------------------------------------------------

cdef inline vector[real] scaled(
    vector[real] e, vector[real] scale, vector[real] low
) noexcept nogil:
    """e * (scale + low): rounding the scale alone took softmax to 4.2 ULP of float."""
    return mul_add(e, scale, e * low)


cdef inline vector[real] row_value(
    int op, const real* like, vector[real] v, vector[real] row_max, vector[real] power,
    vector[real] scale, vector[real] scale_low
) noexcept nogil:
    if op == SOFTMAX:
        return scaled(exp_from(v, row_max, power), scale, scale_low)
    return sub_before_store(like, v - row_max, scale, False)


cdef inline void forward_write(
    int op, const real* x, const void* exps, real* y, Py_ssize_t n, State state, bint streaming
) noexcept nogil:
    """softmax or log_softmax of (part of) a row, given the state of the whole row.

    For softmax `exps` may hold the exponentials of the row; else it is NULL.
    """
    cdef Py_ssize_t k, at, left, w = lanes(x), head = stream_head(y, n, streaming)
    cdef Reference ref = reference(x, state.row_max)
    cdef vector[real] row_max = splat(x, ref.shift if op == SOFTMAX else state.row_max), value
    cdef vector[real] power = splat(x, ref.power)
    cdef double exact = forward_scale(op, state, ref)
    cdef vector[real] scale = splat(x, exact), low = splat(x, exact - rounded(x, exact))
    for k in range(-1, (n - head + w - 1) // w):
        # First up to the alignment, then whole vectors, then the tail.
        at = 0 if k < 0 else head + k * w
        left = head if k < 0 else min(w, n - at)
        if left == 0:
            continue
        if exps != NULL:
            value = scaled(load_wide(x, exps, at, left), scale, low)
        else:
            value = row_value(op, x, load_n(x + at, left, 0.0), row_max, power, scale, low)
        if streaming and left == w and k >= 0:
            stream(y + at, value)
        else:
            store_n(y + at, value, left)


cdef inline vector[real] backward_term(int op, const real* g, const real* y) noexcept nogil:
    return load(g) * load(y) if op == SOFTMAX_BACKWARD else load(g)


cdef inline double backward_sum(int op, const real* g, const real* y, Py_ssize_t n) noexcept nogil:
    """sum(g * y) for softmax, sum(g) for log_softmax, of up to BLOCK elements. Four vectors meet
    before the compensated addition: one for each vector took 18% of log_softmax_backward."""
    cdef Py_ssize_t k, j, w = lanes(g), fours = n // (4 * w), left
    cdef vector[real] zero = splat(g, 0.0), total = zero, error = zero, a
    cdef const real* p
    for k in range(fours):
        p = g + 4 * w * k
        for j in range(4):
            prefetch(p + j * w + BLOCK)
            if op == SOFTMAX_BACKWARD:
                prefetch(y + (4 * k + j) * w + BLOCK)
        add(&total, &error, (backward_term(op, p, y + 4 * k * w)
                             + backward_term(op, p + w, y + (4 * k + 1) * w))
            + (backward_term(op, p + 2 * w, y + (4 * k + 2) * w)
               + backward_term(op, p + 3 * w, y + (4 * k + 3) * w)))
    for k in range(4 * fours, (n + w - 1) // w):
        left = min(w, n - k * w)
        a = load_n(g + k * w, left, 0.0)
        if op == SOFTMAX_BACKWARD:
            a = a * load_n(y + k * w, left, 0.0)
        add(&total, &error, a)
    return sum_lanes(g, total, error)


cdef inline void backward_write(
    int op, const real* g, const real* y, real* out, Py_ssize_t n, double row_sum, bint streaming
) noexcept nogil:
    cdef Py_ssize_t k, at, left, w = lanes(g), head = stream_head(out, n, streaming)
    cdef vector[real] total = splat(g, row_sum), value
    for k in range(-1, (n - head + w - 1) // w):  # as in forward_write
        at = 0 if k < 0 else head + k * w
        left = head if k < 0 else min(w, n - at)
        if left == 0:
            continue
        value = backward_value(op, g, load_n(g + at, left, 0.0), load_n(y + at, left, 0.0), total)
        if streaming and left == w and k >= 0:
            stream(out + at, value)
        else:
            store_n(out + at, value, left)


cdef double row_sum(
    int op, const real* g, const real* y, Py_ssize_t n, int num_threads
) noexcept nogil:
    """The backward ops' sum over a row, whose blocks are shared by the threads."""
    cdef Py_ssize_t blocks = (n + BLOCK - 1) // BLOCK, k
    cdef double total = 0
    cdef double* sums = NULL
    if num_threads > 1:
        sums = <double*>malloc(blocks * sizeof(double))
    if sums == NULL:
        for k in range(blocks):
            total += backward_sum(op, g + k * BLOCK, y + k * BLOCK, min(BLOCK, n - k * BLOCK))
        return total
    for k in prange(blocks, num_threads=num_threads, schedule="static"):
        sums[k] = backward_sum(op, g + k * BLOCK, y + k * BLOCK, min(BLOCK, n - k * BLOCK))
    for k in range(blocks):
        total += sums[k]
    free(sums)
    return total


cdef void row(
    int op, const real* x, const real* second, real* out, Py_ssize_t n, bint streaming,
    int num_threads
) noexcept nogil:
    """Any op on one row. The backward ops have x = grad, second = y."""
    cdef bint backward = op == SOFTMAX_BACKWARD or op == LOG_SOFTMAX_BACKWARD
    cdef Py_ssize_t blocks = (n + BLOCK - 1) // BLOCK, k
    cdef double total = 0
    cdef char* memory = thread_memory(OF_ROW, BLOCK * 8)
    cdef void* exps = memory if op == SOFTMAX and n <= BLOCK else NULL
    cdef State state = empty_state()
    if backward:
        total = row_sum(op, x, second, n, num_threads)
    else:
        state = row_state(x, n, exps, num_threads)
    if op == LOGSUMEXP:
        put(out, state.row_max + log1p(state.sumexp_m1))
    elif num_threads == 1:
        write(op, x, exps, second, out, n, state, total, streaming)
    else:
        for k in prange(blocks, num_threads=num_threads, schedule="static"):
            write(op, x + k * BLOCK, NULL, second + k * BLOCK, out + k * BLOCK,
                  min(BLOCK, n - k * BLOCK), state, total, streaming)
            if streaming:
                stream_end()


cdef inline void write(
    int op, const real* x, const void* exps, const real* second, real* out, Py_ssize_t n,
    State state, double total, bint streaming
) noexcept nogil:
    if op == SOFTMAX_BACKWARD or op == LOG_SOFTMAX_BACKWARD:
        backward_write(op, x, second, out, n, total, streaming)
    else:
        forward_write(op, x, exps, out, n, state, streaming)


include "_log_softmax_panels.pxi"


# ---- loops over threads ---------------------------------------------------------------------

cdef struct Job:
    int op
    Py_ssize_t outer, n, inner
    Py_ssize_t x_step, second_step, out_step  # from one plane to the next, in elements
    bint streaming


cdef void run_task(
    const Job* job, const real* x, const real* second, real* out, Py_ssize_t task
) noexcept nogil:
    """A panel, or some rows."""
    cdef Py_ssize_t panels = (job.inner + PANEL - 1) // PANEL, k, at
    cdef Py_ssize_t rows = tile_rows(job.n, lanes(x)), chunk = rows_per_task(job.n, lanes(x))
    cdef Py_ssize_t last = min(job.outer, (task + 1) * chunk)
    if job.inner > 1:
        k = task // panels
        at = task % panels * PANEL
        panel(job.op, x + k * job.x_step + at, second + k * job.second_step + at,
              out + k * job.out_step + at, job.n, job.inner, min(PANEL, job.inner - at), False,
              False, out + k * job.inner + at)
    elif job.n <= SHORT:
        for k in range((last - task * chunk + rows - 1) // rows):
            at = task * chunk + k * rows
            tile(job.op, x + at * job.x_step, second + at * job.second_step,
                 out + at * job.out_step, min(rows, last - at), job.n, job.x_step,
                 job.second_step, job.out_step)
    else:
        for k in range(task * chunk, last):
            row(job.op, x + k * job.x_step, second + k * job.second_step,
                out + k * job.out_step, job.n, job.streaming, 1)
        if job.streaming:
            stream_end()


cdef int typed(int op, const LogSoftmax* a, const real* like, int threads) noexcept nogil:
    cdef bint backward = op == SOFTMAX_BACKWARD or op == LOG_SOFTMAX_BACKWARD
    cdef const real* x = <const real*>(a.grad if backward else a.x)
    cdef const real* second = <const real*>(a.y if backward else a.x)
    cdef real* out = <real*>a.out
    cdef Py_ssize_t elements = a.outer * a.n * a.inner
    cdef Py_ssize_t count = tasks(a.outer, a.n, a.inner, lanes(like)), task
    cdef int num_threads = threads_for(threads, elements)
    cdef Job job
    job.op = op
    job.outer = a.outer
    job.n = a.n
    job.inner = a.inner
    job.x_step = a.grad_step if backward else a.x_step
    job.second_step = a.y_step if backward else a.x_step
    job.out_step = 1 if op == LOGSUMEXP else a.out_step
    job.streaming = (op != LOGSUMEXP and out != x and out != second
                     and elements * <Py_ssize_t>sizeof(real) > STREAM_ABOVE)
    if num_threads == 1:  # a parallel region of one thread takes as long as a row of 1000
        for task in range(count):
            run_task(&job, x, second, out, task)
    elif few_long_rows(a.outer, a.n, a.inner, num_threads):
        for task in range(a.outer):
            row(op, x + task * job.x_step, second + task * job.second_step,
                out + task * job.out_step, a.n, job.streaming, num_threads)
    else:
        for task in prange(count, num_threads=num_threads, schedule="dynamic"):
            run_task(&job, x, second, out, task)
    return 0


# ---- for Cython: see log_softmax.pxd --------------------------------------------------------

cdef int from_cython(int op, int dtype, const LogSoftmax* a, int threads) noexcept nogil:
    cdef LogSoftmax b = a[0]
    b.inner = a.inner or 1
    b.x_step = a.x_step or a.n * b.inner
    b.y_step = a.y_step or a.n * b.inner
    b.grad_step = a.grad_step or a.n * b.inner
    b.out_step = a.out_step or a.n * b.inner
    return by_dtype(op, dtype, &b, threads)


cdef int c_logsumexp(int dtype, const LogSoftmax* a, int threads) noexcept nogil:
    return from_cython(LOGSUMEXP, dtype, a, threads)


cdef int c_softmax(int dtype, const LogSoftmax* a, int threads) noexcept nogil:
    return from_cython(SOFTMAX, dtype, a, threads)


cdef int c_log_softmax(int dtype, const LogSoftmax* a, int threads) noexcept nogil:
    return from_cython(LOG_SOFTMAX, dtype, a, threads)


cdef int c_softmax_backward(int dtype, const LogSoftmax* a, int threads) noexcept nogil:
    return from_cython(SOFTMAX_BACKWARD, dtype, a, threads)


cdef int c_log_softmax_backward(int dtype, const LogSoftmax* a, int threads) noexcept nogil:
    return from_cython(LOG_SOFTMAX_BACKWARD, dtype, a, threads)


# ---- for Python -----------------------------------------------------------------------------

cdef on_arrays(int op, x, y, grad, cnp.ndarray out, int threads):
    cdef LogSoftmax a
    cdef cnp.ndarray shaped = y if x is None else x
    a.x = data(x)
    a.y = data(y)
    a.grad = data(grad)
    a.out = data(out)
    a.outer = cnp.PyArray_DIM(shaped, 0)
    a.n = cnp.PyArray_DIM(shaped, 1)
    a.inner = cnp.PyArray_DIM(shaped, 2)
    a.x_step = plane_step(x)
    a.y_step = plane_step(y)
    a.grad_step = plane_step(grad)
    a.out_step = plane_step(out)
    from_python(op, dtype_of(out), &a, threads)


def logsumexp(x, out, *, int threads):
    on_arrays(LOGSUMEXP, x, None, None, out, threads)


def softmax(x, out, *, int threads):
    on_arrays(SOFTMAX, x, None, None, out, threads)


def log_softmax(x, out, *, int threads):
    on_arrays(LOG_SOFTMAX, x, None, None, out, threads)


def softmax_backward(grad, y, out, *, int threads):
    on_arrays(SOFTMAX_BACKWARD, None, y, grad, out, threads)


def log_softmax_backward(grad, y, out, *, int threads):
    on_arrays(LOG_SOFTMAX_BACKWARD, None, y, grad, out, threads)
