# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: binding=True
"""Cross-entropy of probabilities, with its gradient.

The formulas are in kernels/reference/categorical_cross_entropy.py. A row is summed first, then read
again from the cache: by one element for a class index, and otherwise by a loop that takes the log
of every class. The gradient is one number everywhere but at the classes that are wanted.

Sums are compensated (two-sum), which is as exact as double precision and keeps all the lanes.
Nothing is divided by the sum s before the clip: p is compared with the bounds times s, and the loss
is -sum(q * log(p)) + pull * log(s). log(p / s) would lose log(p) to the rounding of p / s where
that is nearly 1.

Where the class axis is not the last, as many columns as a vector has lanes are transposed into a
tile, and are rows then. Rejected: a row in each lane as in _panels.pxi, with the bounds and the log
of the sum in vectors of the compute type; that was other code with other bits.
"""

include "_simd.pxi"
include "_arrays.pxi"
include "_dtypes.pxi"
include "_threads.pxi"
include "_rows.pxi"
include "_panels.pxi"
include "_labels.pxi"

from cython.parallel cimport threadid
from libc.math cimport fma, log, nextafterf

cdef struct Problem:
    Py_ssize_t outer, n, inner
    Py_ssize_t x_step, t_step, grad_step  # from one plane to the next, in elements
    const int64_t* labels  # (outer, inner), or NULL for a target of probabilities
    const void* weight  # (n,) of the compute type, or NULL for ones
    const void* upstream  # (outer, inner), or (1, 1), or NULL for 1
    void* loss  # (outer, inner), or (1, 1), or NULL
    bint upstream_per_row, loss_per_row, dense_q, streaming
    bint wide_target  # a dense one of the compute type, beside probabilities of 16 bits
    int64_t ignore_index
    double denominator
    double hard  # 1 - label_smoothing: of the target
    double soft  # label_smoothing / n: of every class
    double low, high  # the bounds of the clip, in the compute type
    double low_cost, high_cost  # -log of them


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


cdef inline vector[real] wanted(
    const Problem* p, const real* x, const real* t, Py_ssize_t at, Py_ssize_t n
) noexcept nogil:
    """q of n classes, but for the part of a class index; 0 in the lanes beyond."""
    cdef vector[real] one = splat(x, 1.0), q = splat(x, p.soft)
    if t != NULL:
        q = mul_add(splat(x, p.hard), load_target(t, at, n, p.wide_target), q)
    return q * load_wide(x, p.weight if p.weight != NULL else &one,
                         at if p.weight != NULL else 0, n)


cdef struct Cost:
    double loss  # but for the log of the sum
    double pull  # sum of q over the classes that are not clipped


cdef Cost row_cost(const Problem* p, const real* x, const real* t, Bounds b) noexcept nogil:
    """What label smoothing and a target of probabilities cost."""
    cdef Cost cost
    cdef Py_ssize_t w = lanes(x), k, left
    cdef vector[real] zero = splat(x, 0.0), low = splat(x, b.low), high = splat(x, b.high)
    cdef vector[real] low_cost = splat(x, p.low_cost), high_cost = splat(x, p.high_cost)
    cdef vector[real] loss = zero, loss_error = zero, pull = zero, pull_error = zero, v, c, q, each
    cdef vector[real] one = splat(x, 1.0)
    for k in range((p.n + w - 1) // w):
        left = min(w, p.n - k * w)
        q = wanted(p, x, t, k * w, left)
        if reduce_max(add_unless_equal(zero, q, zero, one)) == 0:
            continue  # nothing is wanted here: most of a one-hot row takes no log
        v = load_n(x + k * w, left, 0.0)
        c = clip(v, low, high, zero)
        each = where_equal(c, v, zero - log_of(v), where_equal(c, low, low_cost, high_cost))
        add(&loss, &loss_error, where_equal(q, zero, zero, q * each))
        add(&pull, &pull_error, where_equal(c, v, q, zero))
    cost.loss = reduce_add(corrected(x, loss, loss_error))
    cost.pull = reduce_add(corrected(x, pull, pull_error))
    return cost


cdef void row_gradient(
    const Problem* p, const real* x, const real* t, real* grad, Bounds b, double slope,
    double upstream
) noexcept nogil:
    """grad = slope - upstream * q / p, the latter where p is not clipped."""
    cdef Py_ssize_t w = lanes(x), head = stream_head(grad, p.n, p.streaming), k, at, left
    cdef vector[real] zero = splat(x, 0.0), low = splat(x, b.low), high = splat(x, b.high)
    cdef vector[real] everywhere = splat(x, slope), g = splat(x, upstream), v, q, less
    cdef vector[real] value = everywhere
    for k in range(-1, (p.n - head + w - 1) // w):
        # First up to the alignment, then whole vectors, then the tail.
        at = 0 if k < 0 else head + k * w
        left = head if k < 0 else min(w, p.n - at)
        if left == 0:
            continue
        if p.dense_q:
            v = load_n(x + at, left, 0.0)
            q = wanted(p, x, t, at, left)
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
    cdef double total, picked = 0, weight = 0, loss, upstream = 1, slope
    cdef bint inside = False
    cdef Bounds b
    cdef Cost cost
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
    cost.loss = 0
    cost.pull = 0
    if p.dense_q:
        b = inwards(x, b)
        cost = row_cost(p, x, t, b)
    if label >= 0:
        weight = get_wide(x, p.weight, label) if p.weight != NULL else 1
        picked = get(x + label)
        inside = b.low <= picked <= b.high
        if weight != 0 and p.hard != 0:
            cost.loss = fma(
                p.hard * weight,
                -log(picked) if inside else p.low_cost if picked < b.low else p.high_cost,
                cost.loss)
        if inside:
            cost.pull = fma(p.hard, weight, cost.pull)
    loss = fma(cost.pull, log(total), cost.loss)
    if p.loss_per_row:
        put_wide(x, p.loss, r, loss / p.denominator)
    if grad == NULL:
        return loss

    if p.upstream != NULL:
        upstream = get_wide(x, p.upstream, r if p.upstream_per_row else 0)
    upstream = upstream / p.denominator
    slope = upstream * (cost.pull / total)
    row_gradient(p, x, t, grad, b, slope, upstream)
    if label >= 0:
        weight = (p.hard + p.soft) * weight
        put(grad + label, slope - (upstream * weight / picked if inside and weight != 0 else 0))
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

cdef double turn(
    const Problem* p, const real* x, const real* t, real* grad, Py_ssize_t task, void* memory
) noexcept nogil:
    """One thread's turn: some rows, or a panel of columns. The sum of its losses."""
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


cdef int typed(Problem* p, const real* x, const real* t, real* grad, int threads) noexcept nogil:
    cdef Py_ssize_t w = lanes(x), count = tasks(p.outer, p.n, p.inner, w), task
    cdef Py_ssize_t elements = p.outer * p.n * p.inner
    cdef int crew = team(threads, elements)
    # Each thread has the tiles of the probabilities and of the target, and room to align them.
    cdef size_t size = 0 if p.inner == 1 else (
        (2 * w * row_vectors(x, p.n) + 1) * sizeof(vector[real]))
    cdef double* sums = room(count)
    cdef char* memory = <char*>malloc(crew * size + 1)
    cdef double loss = 0
    if sums == NULL or memory == NULL:
        free(sums)
        free(memory)
        return NO_MEMORY
    p.streaming = (grad != NULL and grad != x and p.inner == 1
                   and elements * <Py_ssize_t>sizeof(real) > STREAM_ABOVE)
    # Also for a crew of one: in a second copy of the loop GCC fused other products of the log with
    # additions (x86-64-v3, bfloat16), and the bits depended on the number of threads.
    for task in prange(count, num_threads=crew, schedule="dynamic"):
        sums[task] = turn(p, x, t, grad, task, memory + threadid() * size)
    for task in range(count):
        loss += sums[task]
    free(memory)
    free(sums)
    if p.loss != NULL and not p.loss_per_row:
        put_wide(x, p.loss, 0, loss / p.denominator)
    return 0


cdef int compute(
    int dtype, const void* probs, const int64_t* labels, const void* probabilities,
    const void* weight, const void* upstream, void* loss, void* grad, Py_ssize_t outer,
    Py_ssize_t n, Py_ssize_t inner, Py_ssize_t probs_step, Py_ssize_t probabilities_step,
    Py_ssize_t grad_step, bint per_row, double denominator, int64_t ignore_index,
    double label_smoothing, double epsilon, int threads
) noexcept nogil:
    """Loss and gradient, whichever are not NULL."""
    cdef Problem p
    memset(&p, 0, sizeof(p))
    p.outer = outer
    p.n = n
    p.inner = inner
    p.x_step = probs_step
    p.t_step = probabilities_step
    p.grad_step = grad_step
    p.labels = labels
    p.weight = weight
    p.upstream = upstream
    p.upstream_per_row = per_row
    p.loss = loss
    p.loss_per_row = per_row and loss != NULL
    p.dense_q = label_smoothing != 0 or probabilities != NULL
    p.wide_target = dtype == F16 + WIDE_TARGET or dtype == BF16 + WIDE_TARGET
    if p.wide_target:
        dtype -= WIDE_TARGET
    p.ignore_index = ignore_index
    p.denominator = denominator
    p.hard = 1 - label_smoothing
    p.soft = label_smoothing / n if n else 0
    p.low = epsilon if dtype == F64 else <float>epsilon
    p.high = 1 - epsilon if dtype == F64 else <float>(1 - <double><float>epsilon)
    p.low_cost = -log(p.low)
    p.high_cost = -log(p.high)
    if dtype == F32:
        return typed(&p, <const float*>probs, <const float*>probabilities, <float*>grad, threads)
    if dtype == F64:
        return typed(&p, <const double*>probs, <const double*>probabilities, <double*>grad,
                     threads)
    if dtype == F16:
        return typed(&p, <const f16*>probs, <const f16*>probabilities, <f16*>grad, threads)
    if dtype == BF16:
        return typed(&p, <const bf16*>probs, <const bf16*>probabilities, <bf16*>grad, threads)
    return NO_DTYPE


# ---- for Cython: see categorical_cross_entropy.pxd ------------------------------------------

cdef int c_categorical_cross_entropy(
    int dtype, const void* probs, const int64_t* labels, const void* probabilities,
    const void* weight, void* loss, Py_ssize_t outer, Py_ssize_t n, Py_ssize_t inner,
    Py_ssize_t probs_step, Py_ssize_t probabilities_step, bint per_row, double denominator,
    int64_t ignore_index, double label_smoothing, double epsilon, int threads
) noexcept nogil:
    return compute(dtype, probs, labels, probabilities, weight, NULL, loss, NULL, outer, n, inner,
                   probs_step, probabilities_step, 0, per_row, denominator, ignore_index,
                   label_smoothing, epsilon, threads)


cdef int c_categorical_cross_entropy_backward(
    int dtype, const void* grad_loss, const void* probs, const int64_t* labels,
    const void* probabilities, const void* weight, void* grad, Py_ssize_t outer, Py_ssize_t n,
    Py_ssize_t inner, Py_ssize_t probs_step, Py_ssize_t probabilities_step, Py_ssize_t grad_step,
    bint per_row, double denominator, int64_t ignore_index, double label_smoothing,
    double epsilon, int threads
) noexcept nogil:
    return compute(dtype, probs, labels, probabilities, weight, grad_loss, NULL, grad, outer, n,
                   inner, probs_step, probabilities_step, grad_step, per_row, denominator,
                   ignore_index, label_smoothing, epsilon, threads)


cdef int c_categorical_cross_entropy_with_grad(
    int dtype, const void* probs, const int64_t* labels, const void* probabilities,
    const void* weight, void* loss, void* grad, Py_ssize_t outer, Py_ssize_t n, Py_ssize_t inner,
    Py_ssize_t probs_step, Py_ssize_t probabilities_step, Py_ssize_t grad_step, bint per_row,
    double denominator, int64_t ignore_index, double label_smoothing, double epsilon, int threads
) noexcept nogil:
    return compute(dtype, probs, labels, probabilities, weight, NULL, loss, grad, outer, n, inner,
                   probs_step, probabilities_step, grad_step, per_row, denominator, ignore_index,
                   label_smoothing, epsilon, threads)


# ---- for Python -----------------------------------------------------------------------------

cdef on_arrays(
    cnp.ndarray probs, cnp.ndarray target, weight, loss, upstream, grad, double denominator,
    int64_t ignore_index, double label_smoothing, double epsilon, int threads
):
    cdef bint hard = cnp.PyArray_NDIM(target) == 2
    cdef bint wide_target = not hard and (
        cnp.PyArray_ITEMSIZE(target) > cnp.PyArray_ITEMSIZE(probs))
    cdef int dtype = dtype_of(probs) + (WIDE_TARGET if wide_target else 0), result
    cdef const int64_t* labels = <const int64_t*>data(target) if hard else NULL
    cdef void* probabilities = NULL if hard else data(target)
    cdef Py_ssize_t x_step = plane_step(probs), grad_step = plane_step(grad)
    cdef Py_ssize_t t_step = 0 if hard else plane_step(target)
    cdef object by_row = upstream if loss is None else loss
    cdef bint rows = (cnp.PyArray_DIM(by_row, 0) == cnp.PyArray_DIM(probs, 0)
                      and cnp.PyArray_DIM(by_row, 1) == cnp.PyArray_DIM(probs, 2))
    cdef void* x = data(probs)
    cdef void* weights = data(weight)
    cdef void* slope = data(upstream)
    cdef void* losses = data(loss)
    cdef void* out = data(grad)
    with nogil:
        result = compute(
            dtype, x, labels, probabilities, weights, slope, losses, out,
            cnp.PyArray_DIM(probs, 0), cnp.PyArray_DIM(probs, 1), cnp.PyArray_DIM(probs, 2),
            x_step, t_step, grad_step, rows, denominator, ignore_index, label_smoothing, epsilon,
            threads)
    done(result)


def categorical_cross_entropy(probs, target, weight, loss, *, double denominator,
                              int64_t ignore_index, double label_smoothing, double epsilon,
                              int threads):
    on_arrays(probs, target, weight, loss, None, None, denominator, ignore_index, label_smoothing,
              epsilon, threads)


def categorical_cross_entropy_backward(grad_loss, probs, target, weight, grad, *,
                                       double denominator, int64_t ignore_index,
                                       double label_smoothing, double epsilon, int threads):
    on_arrays(probs, target, weight, None, grad_loss, grad, denominator, ignore_index,
              label_smoothing, epsilon, threads)


def categorical_cross_entropy_with_grad(probs, target, weight, loss, grad, *, double denominator,
                                        int64_t ignore_index, double label_smoothing,
                                        double epsilon, int threads):
    on_arrays(probs, target, weight, loss, None, grad, denominator, ignore_index, label_smoothing,
              epsilon, threads)
