# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: binding=True
"""Cross-entropy of probabilities, with its gradient.

The formulas are in kernels/reference/categorical_cross_entropy.py. A row is summed first, then read
again from the cache: one element for a class index, otherwise all, by a loop that takes their log.
The gradient is one number for all classes whose target probability is 0.

Sums are compensated (two-sum), which is as exact as double precision and keeps all the lanes.
Nothing is divided by the sum s before the clip: p is compared with the bounds times s, and the loss
is -sum(q * log(p)) + unclipped_total * log(s). log(p / s) would lose log(p) to the rounding of
p / s where that is nearly 1.

Where the class axis is not the last, as many columns as a vector has lanes are transposed into a
tile, and are rows then. Rejected: a row in each lane as in _panels.pxi, with the bounds and the log
of the sum in vectors of the compute type; that was other code with other bits.
"""

ctypedef ClassLoss Arguments

include "_simd.pxi"
include "_arrays.pxi"
include "_calls.pxi"
include "_threads.pxi"
include "_rows.pxi"
include "_panels.pxi"
include "_class_loss.pxi"

from cython.parallel cimport threadid
from libc.math cimport fma, log, nextafterf

# ---- rows -----------------------------------------------------------------------------------

cdef double row_sum(const real* x, Py_ssize_t n) noexcept nogil:
    """NaN where these are no probabilities."""
    cdef Py_ssize_t w = lanes(x), k, pairs = n // (2 * w)
    cdef vector[real] zero = splat(x, 0.0), u, v
    cdef vector[real] sum0 = zero, sum1 = zero, error0 = zero, error1 = zero
    cdef vector[real] negative0 = zero, negative1 = zero  # the largest of -x
    cdef double total
    for k in range(pairs):
        u = load(x + 2 * k * w)
        v = load(x + (2 * k + 1) * w)
        add(&sum0, &error0, u)
        add(&sum1, &error1, v)
        negative0 = vmax(zero - u, negative0)
        negative1 = vmax(zero - v, negative1)
    for k in range(2 * pairs, (n + w - 1) // w):
        u = load_n(x + k * w, min(w, n - k * w), 0.0)
        add(&sum0, &error0, u)
        negative0 = vmax(zero - u, negative0)
    add(&sum0, &error0, sum1)
    total = reduce_add(sum0) + reduce_add(error0 + error1)
    if 0 < total < INFINITY and reduce_max(vmax(negative0, negative1)) <= 0:
        return total
    return NAN


cdef struct Bounds:
    double low, high


cdef inline Bounds bounds(const Problem* p, double total) noexcept nogil:
    """Of the clip, for probabilities of this sum."""
    cdef Bounds b
    b.low = p.low * total
    b.high = p.high * total
    if p.low > 0 and b.low == 0:
        b.low = 5e-324  # the least double: a probability of 0 is still below
    return b


cdef inline Bounds inwards(const real* like, Bounds b) noexcept nogil:
    """Rounded to the compute type such that no number of it changes sides."""
    cdef float low = <float>b.low, high = <float>b.high
    if not (real is double):
        b.low = low if low >= b.low else nextafterf(low, INFINITY)
        b.high = high if high <= b.high else nextafterf(high, 0)
    return b


cdef inline vector[real] clip(
    vector[real] v, vector[real] low, vector[real] high, vector[real] zero
) noexcept nogil:
    return zero - vmax(zero - high, zero - vmax(v, low))


cdef inline vector[real] target_probs(
    const Problem* p, const real* x, const real* t, Py_ssize_t at, Py_ssize_t n
) noexcept nogil:
    """The target probabilities of n classes, without that of a label; 0 in the lanes beyond."""
    cdef vector[real] one = splat(x, 1.0), q = splat(x, p.uniform_share)
    if t != NULL:
        q = mul_add(splat(x, p.target_scale), load_target(t, at, n, p.wide_target), q)
    return q * load_wide(x, p.weight if p.weight != NULL else &one,
                         at if p.weight != NULL else 0, n)


cdef struct DenseSums:
    double loss  # without the log of the sum
    double unclipped_total  # sum of q over the classes that are not clipped


cdef DenseSums dense_sums(const Problem* p, const real* x, const real* t, Bounds b) noexcept nogil:
    """For label smoothing and a target of probabilities."""
    cdef DenseSums sums
    cdef Py_ssize_t w = lanes(x), k, left
    cdef vector[real] zero = splat(x, 0.0), low = splat(x, b.low), high = splat(x, b.high)
    cdef vector[real] low_loss = splat(x, p.low_loss), high_loss = splat(x, p.high_loss)
    cdef vector[real] loss = zero, loss_error = zero, unclipped_total = zero, unclipped_error = zero
    cdef vector[real] one = splat(x, 1.0), v, c, q, each
    for k in range((p.n + w - 1) // w):
        left = min(w, p.n - k * w)
        q = target_probs(p, x, t, k * w, left)
        if reduce_max(add_unless_equal(zero, q, zero, one)) == 0:
            continue  # most of a one-hot row takes no log
        v = load_n(x + k * w, left, 0.0)
        c = clip(v, low, high, zero)
        each = where_equal(c, v, zero - log_of(v), where_equal(c, low, low_loss, high_loss))
        add(&loss, &loss_error, where_equal(q, zero, zero, q * each))
        add(&unclipped_total, &unclipped_error, where_equal(c, v, q, zero))
    sums.loss = reduce_add(corrected(x, loss, loss_error))
    sums.unclipped_total = reduce_add(corrected(x, unclipped_total, unclipped_error))
    return sums


cdef void row_gradient(
    const Problem* p, const real* x, const real* t, real* grad, Bounds b, double slope,
    double grad_scale
) noexcept nogil:
    """grad = slope - grad_scale * q / p, the latter where p is not clipped."""
    cdef Py_ssize_t w = lanes(x), head = stream_head(grad, p.n, p.streaming), k, at, left
    cdef vector[real] zero = splat(x, 0.0), low = splat(x, b.low), high = splat(x, b.high)
    cdef vector[real] everywhere = splat(x, slope), g = splat(x, grad_scale), v, q, less
    cdef vector[real] value = everywhere
    for k in range(-1, (p.n - head + w - 1) // w):
        # First up to the alignment, then whole vectors, then the tail.
        at = 0 if k < 0 else head + k * w
        left = head if k < 0 else min(w, p.n - at)
        if left == 0:
            continue
        if p.dense_target:
            v = load_n(x + at, left, 0.0)
            q = target_probs(p, x, t, at, left)
            less = where_equal(q, zero, zero, g * q / v)
            value = everywhere - where_equal(clip(v, low, high, zero), v, less, zero)
        if p.streaming and left == w and k >= 0:
            stream(grad + at, value)
        else:
            store_n(grad + at, value, left)


cdef double row(
    const Problem* p, const real* x, const real* t, real* grad, Py_ssize_t r
) noexcept nogil:
    """Loss of row r, and its gradient where `grad` is not NULL."""
    cdef Py_ssize_t label = -1
    cdef double total, picked = 0, weight = 0, loss, grad_scale = 1, slope
    cdef bint inside = False
    cdef Bounds b
    cdef DenseSums sums
    if p.labels != NULL:
        label = p.labels[r]
        if label == p.ignore_index:
            if p.loss_per_row:
                put_wide(x, p.loss, r, 0 / p.denominator)  # NaN for the mean over no row
            if grad != NULL:
                memset(grad, 0, p.n * sizeof(real))
            return 0
    total = row_sum(x, p.n)
    b = bounds(p, total)
    sums.loss = 0
    sums.unclipped_total = 0
    if p.dense_target:
        b = inwards(x, b)
        sums = dense_sums(p, x, t, b)
    if label >= 0:
        weight = get_wide(x, p.weight, label) if p.weight != NULL else 1
        picked = get(x + label)
        inside = b.low <= picked <= b.high
        if weight != 0 and p.target_scale != 0:
            sums.loss = fma(
                p.target_scale * weight,
                -log(picked) if inside else p.low_loss if picked < b.low else p.high_loss,
                sums.loss)
        if inside:
            sums.unclipped_total = fma(p.target_scale, weight, sums.unclipped_total)
    loss = fma(sums.unclipped_total, log(total), sums.loss)
    if p.loss_per_row:
        put_wide(x, p.loss, r, loss / p.denominator)
    if grad == NULL:
        return loss

    if p.grad_loss != NULL:
        grad_scale = get_wide(x, p.grad_loss, r if p.grad_loss_per_row else 0)
    grad_scale = grad_scale / p.denominator
    slope = grad_scale * (sums.unclipped_total / total)
    row_gradient(p, x, t, grad, b, slope, grad_scale)
    if label >= 0:
        weight = (p.target_scale + p.uniform_share) * weight
        put(grad + label, slope - (grad_scale * weight / picked if inside and weight != 0 else 0))
    return loss


# ---- columns --------------------------------------------------------------------------------

cdef inline Py_ssize_t row_vectors(const real* like, Py_ssize_t n) noexcept nogil:
    """Of a row in a tile."""
    cdef Py_ssize_t w = lanes(like)
    return (n + w - 1) // w


cdef void to_tile(
    const real* x, Py_ssize_t n, Py_ssize_t stride, Py_ssize_t columns, vector[real]* tile
) noexcept nogil:
    cdef Py_ssize_t w = lanes(x), k
    for k in range(row_vectors(x, n)):
        load_tile(x + k * w * stride, stride, min(w, n - k * w), columns, tile + k,
                  row_vectors(x, n))


cdef void from_tile(
    real* x, Py_ssize_t n, Py_ssize_t stride, Py_ssize_t columns, const vector[real]* tile
) noexcept nogil:
    cdef Py_ssize_t w = lanes(x), k
    for k in range(row_vectors(x, n)):
        store_tile(x + k * w * stride, stride, min(w, n - k * w), columns, tile + k,
                   row_vectors(x, n))


cdef double columns(
    const Problem* p, const real* x, const real* t, real* grad, Py_ssize_t count, Py_ssize_t r,
    void* memory
) noexcept nogil:
    """The rows r to r + count, at most as many as a vector has lanes, which are columns of x."""
    cdef Py_ssize_t vectors = row_vectors(x, p.n), step = vectors * lanes(x), j
    cdef double loss = 0
    cdef vector[real]* a = aligned(x, memory)
    cdef vector[real]* b = a + lanes(x) * vectors if t != NULL else NULL
    cdef vector[real]* result = a if grad != NULL else NULL
    to_tile(x, p.n, p.inner, count, a)
    if t != NULL:
        if p.wide_target and (real is f16 or real is bf16):
            to_tile(<const float*>t, p.n, p.inner, count, <vector[float]*>b)
        else:
            to_tile(t, p.n, p.inner, count, b)
    for j in range(count):
        loss += wide_row(p, x, a, b, result, j * step, r + j)
    if grad != NULL:
        from_tile(grad, p.n, p.inner, count, a)
    return loss


cdef inline double wide_row(
    const Problem* p, const real* like, void* x, void* t, void* grad, Py_ssize_t at, Py_ssize_t r
) noexcept nogil:
    """A row of the compute type."""
    if real is double:
        return row(p, <double*>x + at, <double*>t + at if t != NULL else NULL,
                   <double*>grad + at if grad != NULL else NULL, r)
    else:
        return row(p, <float*>x + at, <float*>t + at if t != NULL else NULL,
                   <float*>grad + at if grad != NULL else NULL, r)


# ---- loops over threads ---------------------------------------------------------------------

cdef double run_task(
    const Problem* p, const real* x, const real* t, real* grad, Py_ssize_t task, void* memory
) noexcept nogil:
    """Some rows, or a panel of columns. The sum of their losses."""
    cdef Py_ssize_t w = lanes(x), chunk = rows_per_task(p.n, w)
    cdef Py_ssize_t panels = (p.inner + PANEL - 1) // PANEL, k, j, at, first
    cdef double loss = 0
    if p.inner == 1:
        for k in range(task * chunk, min(p.outer, (task + 1) * chunk)):
            loss += row(p, x + k * p.x_step, target_at(t, k * p.t_step, p.wide_target),
                        grad + k * p.grad_step if grad != NULL else NULL, k)
        if p.streaming:
            stream_end()
        return loss
    k = task // panels
    first = task % panels * PANEL
    for j in range((min(PANEL, p.inner - first) + w - 1) // w):
        at = first + j * w
        loss += columns(p, x + k * p.x_step + at, target_at(t, k * p.t_step + at, p.wide_target),
                        grad + k * p.grad_step + at if grad != NULL else NULL,
                        min(w, p.inner - at), k * p.inner + at, memory)
    return loss


cdef int compute(Problem* p, const real* x, const real* t, real* grad, int threads) noexcept nogil:
    """Loss and gradient, whichever are not NULL."""
    cdef Py_ssize_t w = lanes(x), count = tasks(p.outer, p.n, p.inner, w), task
    cdef Py_ssize_t elements = p.outer * p.n * p.inner
    cdef int num_threads = threads_for(threads, elements)
    # Each thread has the tiles of the probabilities and of the target, and a vector to align them.
    cdef size_t each = 0 if p.inner == 1 else (
        (2 * w * row_vectors(x, p.n) + 1) * sizeof(vector[real]))
    cdef double* sums = allocate_sums(count)
    cdef char* memory = <char*>malloc(num_threads * each + 1)
    cdef double loss = 0
    if sums == NULL or memory == NULL:
        free(sums)
        free(memory)
        return NO_MEMORY
    p.streaming = (grad != NULL and grad != x and p.inner == 1
                   and elements * <Py_ssize_t>sizeof(real) > STREAM_ABOVE)
    # Also for one thread: in a second copy of the loop GCC fused other products of the log with
    # additions (x86-64-v3, bfloat16), and the bits depended on the number of threads.
    for task in prange(count, num_threads=num_threads, schedule="dynamic"):
        sums[task] = run_task(p, x, t, grad, task, memory + threadid() * each)
    for task in range(count):
        loss += sums[task]
    free(memory)
    free(sums)
    if p.loss != NULL and not p.loss_per_row:
        put_wide(x, p.loss, 0, loss / p.denominator)
    return 0


cdef int typed(int op, const ClassLoss* a, const real* like, int threads) noexcept nogil:
    cdef Problem p = problem_of(a)
    if real is double:
        p.low = a.epsilon
        p.high = 1 - a.epsilon
    else:
        p.low = <float>a.epsilon
        p.high = <float>(1 - <double><float>a.epsilon)
    p.low_loss = -log(p.low)
    p.high_loss = -log(p.high)
    return compute(&p, <const real*>a.x, <const real*>a.probabilities, <real*>a.grad, threads)


# ---- for Cython: see categorical_cross_entropy.pxd ------------------------------------------

cdef int from_cython(int part, int dtype, const ClassLoss* a, int threads) noexcept nogil:
    cdef ClassLoss b = with_defaults(a, part)
    return by_dtype(0, dtype, &b, threads)


cdef int c_categorical_cross_entropy(int dtype, const ClassLoss* a, int threads) noexcept nogil:
    return from_cython(FORWARD, dtype, a, threads)


cdef int c_categorical_cross_entropy_backward(
    int dtype, const ClassLoss* a, int threads
) noexcept nogil:
    return from_cython(BACKWARD, dtype, a, threads)


cdef int c_categorical_cross_entropy_with_grad(
    int dtype, const ClassLoss* a, int threads
) noexcept nogil:
    return from_cython(WITH_GRAD, dtype, a, threads)


# ---- for Python -----------------------------------------------------------------------------

cdef on_arrays(
    grad_loss, probs, target, weight, loss, grad, double denominator, int64_t ignore_index,
    double label_smoothing, double epsilon, int threads
):
    cdef ClassLoss a = class_loss(
        probs, target, weight, grad_loss, loss, grad, denominator, ignore_index)
    a.label_smoothing = label_smoothing
    a.epsilon = epsilon
    from_python(0, dtype_of(probs), &a, threads)


def categorical_cross_entropy(probs, target, weight, loss, *, double denominator,
                              int64_t ignore_index, double label_smoothing, double epsilon,
                              int threads):
    on_arrays(None, probs, target, weight, loss, None, denominator, ignore_index, label_smoothing,
              epsilon, threads)


def categorical_cross_entropy_backward(grad_loss, probs, target, weight, grad, *,
                                       double denominator, int64_t ignore_index,
                                       double label_smoothing, double epsilon, int threads):
    on_arrays(grad_loss, probs, target, weight, None, grad, denominator, ignore_index,
              label_smoothing, epsilon, threads)


def categorical_cross_entropy_with_grad(probs, target, weight, loss, grad, *, double denominator,
                                        int64_t ignore_index, double label_smoothing,
                                        double epsilon, int threads):
    on_arrays(None, probs, target, weight, loss, grad, denominator, ignore_index, label_smoothing,
              epsilon, threads)
