# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: binding=True
"""logsumexp, softmax, log_softmax and their gradients.

Each op is two passes over a row (or panel): the first makes its state, the second writes while
the row is still in the cache, so memory is read once and written once. Big outputs are written
past the caches. Read _rows.pxi first, then _panels.pxi; the passes that write follow here, then
the loops over threads.
"""

include "_simd.pxi"
include "_arrays.pxi"
include "_dtypes.pxi"
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
    if isinf(state.top):
        return NAN
    return ref.ratio / (1 + state.rest) if op == SOFTMAX else log1p(state.rest)


# ---- rows -----------------------------------------------------------------------------------

cdef inline vector[real] scaled(
    vector[real] e, vector[real] scale, vector[real] low
) noexcept nogil:
    """e * (scale + low): rounding the scale alone took softmax to 4.2 ULP of float."""
    return mul_add(e, scale, e * low)


cdef inline vector[real] row_value(
    int op, const real* like, vector[real] v, vector[real] top, vector[real] power,
    vector[real] scale, vector[real] scale_low
) noexcept nogil:
    if op == SOFTMAX:
        return scaled(exp_from(v, top, power), scale, scale_low)
    return sub_before_store(like, v - top, scale, False)


cdef inline void forward_write(
    int op, const real* x, const void* exps, real* y, Py_ssize_t n, State state, bint streaming
) noexcept nogil:
    """softmax or log_softmax of (part of) a row, given the state of the whole row.

    For softmax `exps` may hold the exponentials of the row; else it is NULL.
    """
    cdef Py_ssize_t k, at, left, w = lanes(x), head = stream_head(y, n, streaming)
    cdef Reference ref = reference(x, state.top)
    cdef vector[real] top = splat(x, ref.shift if op == SOFTMAX else state.top), value
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
            value = row_value(op, x, load_n(x + at, left, 0.0), top, power, scale, low)
        if streaming and left == w and k >= 0:
            stream(y + at, value)
        else:
            store_n(y + at, value, left)


cdef inline vector[real] backward_term(int op, const real* g, const real* y) noexcept nogil:
    return load(g) * load(y) if op == SOFTMAX_BACKWARD else load(g)


cdef inline double backward_sum(int op, const real* g, const real* y, Py_ssize_t n) noexcept nogil:
    """sum(g * y) for softmax, sum(g) for log_softmax, of up to BLOCK elements. Four vectors meet
    before the compensated addition: one for each vector cost 18% of log_softmax_backward."""
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
    int op, const real* g, const real* y, Py_ssize_t n, int crew
) noexcept nogil:
    """The backward ops' sum over a row; with a crew, its blocks are spread over the threads."""
    cdef Py_ssize_t blocks = (n + BLOCK - 1) // BLOCK, k
    cdef double total = 0
    cdef double* sums = NULL
    if crew > 1:
        sums = <double*>malloc(blocks * sizeof(double))
    if sums == NULL:
        for k in range(blocks):
            total += backward_sum(op, g + k * BLOCK, y + k * BLOCK, min(BLOCK, n - k * BLOCK))
        return total
    for k in prange(blocks, num_threads=crew, schedule="static"):
        sums[k] = backward_sum(op, g + k * BLOCK, y + k * BLOCK, min(BLOCK, n - k * BLOCK))
    for k in range(blocks):
        total += sums[k]
    free(sums)
    return total


cdef void row(
    int op, const real* x, const real* second, real* out, Py_ssize_t n, bint streaming, int crew
) noexcept nogil:
    """Any op on one row. The backward ops have x = grad, second = y."""
    cdef bint backward = op == SOFTMAX_BACKWARD or op == LOG_SOFTMAX_BACKWARD
    cdef Py_ssize_t blocks = (n + BLOCK - 1) // BLOCK, k
    cdef double total = 0
    cdef char* memory = thread_memory(OF_ROW, BLOCK * 8)
    cdef void* exps = memory if op == SOFTMAX and n <= BLOCK else NULL
    cdef State state = empty_state()
    if backward:
        total = row_sum(op, x, second, n, crew)
    else:
        state = row_state(x, n, exps, crew)
    if op == LOGSUMEXP:
        put(out, state.top + log1p(state.rest))
    elif crew == 1:
        write(op, x, exps, second, out, n, state, total, streaming)
    else:
        for k in prange(blocks, num_threads=crew, schedule="static"):
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


cdef void turn(
    const Job* job, const real* x, const real* second, real* out, Py_ssize_t task
) noexcept nogil:
    """One thread's turn: a panel, or some rows."""
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


cdef void typed(
    Job* job, const real* x, const real* second, real* out, int threads
) noexcept nogil:
    cdef Py_ssize_t elements = job.outer * job.n * job.inner, count, task
    cdef int crew = team(threads, elements)
    job.streaming = (job.op != LOGSUMEXP and out != x and out != second
                     and elements * <Py_ssize_t>sizeof(real) > STREAM_ABOVE)
    count = tasks(job.outer, job.n, job.inner, lanes(x))
    if crew == 1:  # a parallel region of one thread costs as much as a row of 1000
        for task in range(count):
            turn(job, x, second, out, task)
    elif few_long_rows(job.outer, job.n, job.inner, crew):
        for task in range(job.outer):
            row(job.op, x + task * job.x_step, second + task * job.second_step,
                out + task * job.out_step, job.n, job.streaming, crew)
    else:
        for task in prange(count, num_threads=crew, schedule="dynamic"):
            turn(job, x, second, out, task)


cdef int by_dtype(
    Job job, int dtype, const void* x, const void* second, void* out, int threads
) noexcept nogil:
    if dtype == F32:
        typed(&job, <const float*>x, <const float*>second, <float*>out, threads)
    elif dtype == F64:
        typed(&job, <const double*>x, <const double*>second, <double*>out, threads)
    elif dtype == F16:
        typed(&job, <const f16*>x, <const f16*>second, <f16*>out, threads)
    elif dtype == BF16:
        typed(&job, <const bf16*>x, <const bf16*>second, <bf16*>out, threads)
    else:
        return NO_DTYPE
    return 0


# ---- for Cython: see log_softmax.pxd --------------------------------------------------------

cdef inline Job job_of(
    int op, Py_ssize_t outer, Py_ssize_t n, Py_ssize_t inner, Py_ssize_t x_step,
    Py_ssize_t second_step, Py_ssize_t out_step
) noexcept nogil:
    cdef Job job
    job.op = op
    job.outer = outer
    job.n = n
    job.inner = inner
    job.x_step = x_step
    job.second_step = second_step
    job.out_step = out_step
    return job


cdef int c_logsumexp(
    int dtype, const void* x, void* out, Py_ssize_t outer, Py_ssize_t n, Py_ssize_t inner,
    Py_ssize_t x_step, int threads
) noexcept nogil:
    return by_dtype(job_of(LOGSUMEXP, outer, n, inner, x_step, x_step, 1), dtype, x, x, out,
                    threads)


cdef int c_softmax(
    int dtype, const void* x, void* out, Py_ssize_t outer, Py_ssize_t n, Py_ssize_t inner,
    Py_ssize_t x_step, Py_ssize_t out_step, int threads
) noexcept nogil:
    return by_dtype(job_of(SOFTMAX, outer, n, inner, x_step, x_step, out_step), dtype, x, x, out,
                    threads)


cdef int c_log_softmax(
    int dtype, const void* x, void* out, Py_ssize_t outer, Py_ssize_t n, Py_ssize_t inner,
    Py_ssize_t x_step, Py_ssize_t out_step, int threads
) noexcept nogil:
    return by_dtype(job_of(LOG_SOFTMAX, outer, n, inner, x_step, x_step, out_step), dtype, x, x,
                    out, threads)


cdef int c_softmax_backward(
    int dtype, const void* grad, const void* y, void* out, Py_ssize_t outer, Py_ssize_t n,
    Py_ssize_t inner, Py_ssize_t grad_step, Py_ssize_t y_step, Py_ssize_t out_step, int threads
) noexcept nogil:
    return by_dtype(job_of(SOFTMAX_BACKWARD, outer, n, inner, grad_step, y_step, out_step), dtype,
                    grad, y, out, threads)


cdef int c_log_softmax_backward(
    int dtype, const void* grad, const void* y, void* out, Py_ssize_t outer, Py_ssize_t n,
    Py_ssize_t inner, Py_ssize_t grad_step, Py_ssize_t y_step, Py_ssize_t out_step, int threads
) noexcept nogil:
    return by_dtype(job_of(LOG_SOFTMAX_BACKWARD, outer, n, inner, grad_step, y_step, out_step),
                    dtype, grad, y, out, threads)


# ---- for Python -----------------------------------------------------------------------------

cdef on_arrays(int op, cnp.ndarray x, cnp.ndarray second, cnp.ndarray out, int threads):
    cdef int dtype = dtype_of(x)
    cdef Job job = job_of(
        op, cnp.PyArray_DIM(x, 0), cnp.PyArray_DIM(x, 1), cnp.PyArray_DIM(x, 2), plane_step(x),
        plane_step(second), 1 if op == LOGSUMEXP else plane_step(out))
    with nogil:
        by_dtype(job, dtype, cnp.PyArray_DATA(x), cnp.PyArray_DATA(second),
                 cnp.PyArray_DATA(out), threads)


def logsumexp(x, out, *, int threads):
    on_arrays(LOGSUMEXP, x, x, out, threads)


def softmax(x, out, *, int threads):
    on_arrays(SOFTMAX, x, x, out, threads)


def log_softmax(x, out, *, int threads):
    on_arrays(LOG_SOFTMAX, x, x, out, threads)


def softmax_backward(grad, y, out, *, int threads):
    on_arrays(SOFTMAX_BACKWARD, grad, y, out, threads)


def log_softmax_backward(grad, y, out, *, int threads):
    on_arrays(LOG_SOFTMAX_BACKWARD, grad, y, out, threads)
