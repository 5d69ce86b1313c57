# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: binding=True
"""Binary cross-entropy, from logits and from probabilities, and the sigmoid focal loss, each with
its gradient in one trip.

The formulas are in kernels/reference/binary_cross_entropy.py. From logits with e = exp(-|x|), of
the two factors a (of the target) and b one belongs to the side of 0 on which x is, c:

    loss = c * |x| + (a + b) * log1p(e)
    dloss/dx = sign(x) * (c - (the other one) * e) / (1 + e)

Every term of the loss is at least 0, so nothing cancels, and there is no division in it.

The focal loss of a target t has a = t and b = 1 - t, and
1 - p_t = (c + (the other one) * e) / (1 + e), again without subtraction.

Blocks of a fixed size are spread over threads, and their sums of losses, in double, added in order.
A block goes in tiles: whole vectors from its beginning on, wherever that lies in memory, so that a
sum is the same for the loss alone and for the loss with its gradient. What is written past the
caches must begin at an aligned address, so it goes to a tile in the L1 cache first. Rejected:
vectors that begin at the first aligned address of the gradient; the sum then depends on it.
"""

include "_simd.pxi"
include "_arrays.pxi"
include "_dtypes.pxi"
include "_threads.pxi"

from cython.parallel cimport prange
from libc.stdlib cimport free, malloc

cdef enum:
    TILE = 1024  # elements: 4 KB of float
    BLOCK = 16 * TILE  # a thread's turn
    STREAM_ABOVE = 1 << 22  # bytes of an output beyond which it is written past the caches

cdef enum Form:
    OF_PROBABILITIES
    OF_LOGITS
    FOCAL  # of logits

cdef struct Formula:
    Form form
    double hard  # 1 - label_smoothing: of the target
    double soft  # label_smoothing / 2: of both classes
    double gamma, positive, negative  # of the focal loss, see the reference

cdef struct Problem:
    Formula formula
    Py_ssize_t n
    const void* weight  # `weights` numbers of the compute type, or NULL for ones
    const void* pos_weight
    Py_ssize_t weights, pos_weights  # element i has that of number i % weights
    const void* upstream  # (n,), or NULL
    void* loss  # (n,), or NULL
    bint with_loss, stream_grad, stream_loss
    double denominator
    double scale  # of the gradient: upstream gradient, if there is one of all, over denominator

cdef struct Part:  # of the arrays: where a tile of it begins
    const void* weight
    const void* pos_weight
    const void* upstream
    void* loss
    void* grad


# ---- one vector -----------------------------------------------------------------------------

cdef inline vector[real] from_logits(
    const real* like, vector[real] x, vector[real] a, vector[real] b, bint with_slope,
    vector[real]* slope
) noexcept nogil:
    """The losses, and their derivatives."""
    cdef vector[real] zero = splat(like, 0.0), one = splat(like, 1.0)
    cdef vector[real] size = minus_size(x), e = exp_from(size, zero, zero)
    cdef vector[real] c = where_negative(x, a, b), quotient
    if with_slope:
        quotient = (c - where_negative(x, b, a) * e) / (one + e)
        slope[0] = where_negative(x, zero - quotient, quotient)
    # A factor of 0 costs nothing even at infinity; NaN is still in e.
    size = where_equal(c, zero, zero, size)
    return mul_add(a + b, log_1p_small(e), zero - c * size)


cdef inline vector[real] raised(
    const real* like, vector[real] base, double gamma
) noexcept nogil:
    """base**gamma; the usual powers are products."""
    if gamma == 2:
        return base * base
    if gamma == 1:
        return base
    if gamma == 0:
        return splat(like, 1.0)
    return power_of(base, splat(like, gamma))


cdef inline vector[real] focal(
    const real* like, vector[real] x, vector[real] a, vector[real] b, double gamma,
    vector[real] factor, bint with_slope, vector[real]* slope
) noexcept nogil:
    """The same of the focal loss, whose balance is in `factor`."""
    cdef vector[real] zero = splat(like, 0.0), one = splat(like, 1.0)
    cdef vector[real] size = minus_size(x), e = exp_from(size, zero, zero)
    cdef vector[real] c = where_negative(x, a, b), other = where_negative(x, b, a)
    cdef vector[real] wrong = mul_add(other, e, c), inverse = one / (one + e)
    cdef vector[real] near = log_1p_small(e), far, steeper
    factor = factor * raised(like, wrong * inverse, gamma)
    if with_slope:
        # e = 0 leaves nothing of this, where bce may be infinite and `wrong` 0.
        steeper = splat(like, gamma) * (near - c * size) * ((c - other) * (e / wrong))
        steeper = (c - other * e) + where_equal(e, zero, zero, steeper)
        steeper = factor * (steeper * inverse)
        slope[0] = where_negative(x, zero - steeper, steeper)
    far = c * factor  # where it is 0, it costs nothing even at infinity
    return mul_add(factor, near, where_equal(far, zero, zero, zero - far * size))


cdef inline vector[real] from_probabilities(
    const real* like, vector[real] p, vector[real] t, bint labels, bint with_slope,
    vector[real]* slope
) noexcept nogil:
    """The same, without weights; with `labels`, every target is 0 or 1. The bounds are PyTorch's.

    What is no probability gives NaN.
    """
    cdef vector[real] zero = splat(like, 0.0), one = splat(like, 1.0), floor = splat(like, -100.0)
    cdef vector[real] q = one - p, lost, u, small, losses
    if with_slope:
        slope[0] = (p - t) / vmax(splat(like, 1e-12), p * q)
    if not labels:
        return mul_add(
            t, zero - vmax(floor, log_of(p)), (one - t) * (zero - vmax(floor, log_1p(zero - p))))
    # One logarithm, of p or of q and what its rounding lost, is half of the work. The bits are the
    # same: the other one has the factor 0.
    lost = where_equal(t, one, zero, (one - q) - p)
    u = where_equal(t, one, p, q)
    small = u - splat(like, 2.0 ** -126)  # subnormal in float
    losses = zero - vmax(floor, log_sum(
        u * where_negative(small, splat(like, 2.0 ** 64), one), lost,
        where_negative(small, splat(like, 64.0), zero)))
    return where_negative(p * q, splat(like, NAN), losses)


# ---- tiles and blocks -----------------------------------------------------------------------

cdef inline bint are_labels(const real* t, Py_ssize_t n) noexcept nogil:
    """Whether all targets are 0 or 1."""
    cdef Py_ssize_t w = lanes(t), k
    cdef vector[real] zero = splat(t, 0.0), one = splat(t, 1.0), others = zero, v
    for k in range((n + w - 1) // w):
        v = load_n(t + k * w, min(w, n - k * w), 0.0)
        others = vmax(where_equal(v, zero, zero, where_equal(v, one, zero, one)), others)
    return reduce_max(others) == 0


cdef double tile(
    const Problem* p, const real* x, const real* t, const Part* to, Py_ssize_t n
) noexcept nogil:
    """The losses of n elements, their gradients and their sum, whichever are wanted.

    The function calls each of those above in one place, so that they are inlined.
    """
    cdef Form form = p.formula.form
    cdef bint smooth = p.formula.soft != 0, with_loss = p.with_loss
    cdef bint labels = form == OF_PROBABILITIES and are_labels(t, n)
    cdef const void* weights = to.weight
    cdef const void* pos_weights = to.pos_weight
    cdef const void* upstream = to.upstream
    cdef void* loss = to.loss
    cdef real* grad = <real*>to.grad
    cdef Py_ssize_t w = lanes(x), k, at, left
    cdef vector[real] one = splat(x, 1.0), scale = splat(x, p.scale)
    cdef vector[real] hard = splat(x, p.formula.hard), soft = splat(x, p.formula.soft)
    cdef vector[real] positive = splat(x, p.formula.positive)
    cdef vector[real] negative = splat(x, p.formula.negative)
    cdef vector[real] a, b, factor, weight = one, losses, slopes = one
    cdef vector[double] low = splat(<double*>NULL, 0.0), high = low
    for k in range((n + w - 1) // w):
        at = k * w
        left = min(w, n - at)
        a = load_n(t + at, left, 0.0)
        if weights != NULL:
            weight = load_wide(x, weights, at, left)
        if form == FOCAL:
            b = one - a
            factor = mul_add(positive, a, negative * b)
            losses = focal(
                x, load_n(x + at, left, 0.0), a, b, p.formula.gamma, factor, grad != NULL, &slopes)
        elif form == OF_LOGITS:
            b = one - a
            if smooth:
                a = mul_add(hard, a, soft)
                b = mul_add(hard, b, soft)
            if weights != NULL:
                a = a * weight
                b = b * weight
            if pos_weights != NULL:
                a = a * load_wide(x, pos_weights, at, left)
            losses = from_logits(x, load_n(x + at, left, 0.0), a, b, grad != NULL, &slopes)
        else:
            losses = from_probabilities(
                x, load_n(x + at, left, 0.5), a, labels, grad != NULL, &slopes)
            if weights != NULL:
                losses = losses * weight
                slopes = slopes * weight
        if grad != NULL:
            if upstream != NULL:
                scale = load_wide(x, upstream, at, left)
            store_n(grad + at, slopes * scale, left)
        if loss != NULL:
            store_wide(x, loss, at, losses, left)
        if with_loss:
            if left < w:
                losses = first_lanes(losses, left)
            low = low + low_doubles(losses)
            high = high + high_doubles(losses)
    return reduce_add(low + high)


cdef inline const void* wide_at(
    const real* like, const void* numbers, Py_ssize_t at
) noexcept nogil:
    """The address of element `at` of an array of the compute type, NULL of NULL."""
    return <const char*>numbers + at * wide_size(like) if numbers != NULL else NULL


cdef double block(
    const Problem* p, const real* x, const real* t, real* grad, Py_ssize_t first, Py_ssize_t last
) noexcept nogil:
    """The sum of the losses of these elements."""
    cdef char* losses = thread_memory(OF_TILE, 2 * TILE * 8)  # on their way past the caches
    cdef char* slopes = losses + TILE * 8
    cdef Py_ssize_t at = first, n, w = 0, v = 0
    cdef double total = 0
    cdef Part to
    cdef void* loss_to
    cdef void* grad_to
    while at < last:
        n = min(TILE, last - at)
        if p.weight != NULL:
            w = at % p.weights
            n = min(n, p.weights - w)
        if p.pos_weight != NULL:
            v = at % p.pos_weights
            n = min(n, p.pos_weights - v)
        to.weight = wide_at(x, p.weight, w)
        to.pos_weight = wide_at(x, p.pos_weight, v)
        to.upstream = wide_at(x, p.upstream, at)
        loss_to = <void*>wide_at(x, p.loss, at)
        to.loss = <void*>losses if p.stream_loss else loss_to
        grad_to = <void*>(grad + at) if grad != NULL else NULL
        to.grad = <void*>slopes if p.stream_grad else grad_to
        total += tile(p, x + at, t + at, &to, n)
        if p.stream_loss:
            stream_copy(loss_to, losses, n * wide_size(x))
        if p.stream_grad:
            stream_copy(grad_to, slopes, n * sizeof(real))
        at += n
    if p.stream_loss or p.stream_grad:
        stream_end()
    return total


# ---- loops over threads ---------------------------------------------------------------------

cdef int typed(
    Problem* p, const real* x, const real* t, real* grad, void* sum, int threads
) noexcept nogil:
    cdef Py_ssize_t blocks = (p.n + BLOCK - 1) // BLOCK, k
    cdef int crew = team(threads, p.n)
    cdef double total = 0
    cdef double* sums = <double*>malloc((blocks + 1) * sizeof(double))
    if sums == NULL:
        return NO_MEMORY
    p.stream_grad = (grad != NULL and grad != x and grad != t
                     and p.n * <Py_ssize_t>sizeof(real) > STREAM_ABOVE)
    p.stream_loss = p.loss != NULL and p.n * wide_size(x) > STREAM_ABOVE
    if crew == 1:  # a parallel region of one thread costs as much as a thousand elements
        for k in range(blocks):
            sums[k] = block(p, x, t, grad, k * BLOCK, min(p.n, (k + 1) * BLOCK))
    else:
        for k in prange(blocks, num_threads=crew, schedule="dynamic"):
            sums[k] = block(p, x, t, grad, k * BLOCK, min(p.n, (k + 1) * BLOCK))
    for k in range(blocks):
        total += sums[k]
    free(sums)
    if sum != NULL:
        put_wide(x, sum, 0, total / p.denominator)
    return 0


cdef inline Formula formula_of(
    Form form, double label_smoothing, double gamma, double positive, double negative
) noexcept nogil:
    cdef Formula f
    f.form = form
    f.hard = 1 - label_smoothing
    f.soft = label_smoothing / 2
    f.gamma = gamma
    f.positive = positive
    f.negative = negative
    return f


cdef inline Formula probabilities() noexcept nogil:
    return formula_of(OF_PROBABILITIES, 0, 0, 1, 1)


cdef inline Formula logits_with(double label_smoothing) noexcept nogil:
    return formula_of(OF_LOGITS, label_smoothing, 0, 1, 1)


cdef inline Formula focal_with(double gamma, double positive, double negative) noexcept nogil:
    return formula_of(FOCAL, 0, gamma, positive, negative)


cdef int compute(
    int dtype, Formula formula, const void* grad_loss, const void* x, const void* target,
    const void* weight, Py_ssize_t weights, const void* pos_weight, Py_ssize_t pos_weights,
    void* loss, void* grad, Py_ssize_t n, bint per_element, double denominator, int threads
) noexcept nogil:
    """Loss and gradient, whichever are not NULL."""
    cdef Problem p
    cdef void* sum = NULL if per_element else loss
    p.n = n
    p.formula = formula
    p.with_loss = loss != NULL
    p.weight = weight
    p.weights = weights
    p.pos_weight = pos_weight
    p.pos_weights = pos_weights
    p.upstream = grad_loss if per_element else NULL
    p.loss = loss if per_element else NULL
    p.denominator = denominator
    p.scale = 1 / denominator
    if grad_loss != NULL and not per_element:
        p.scale = (<const double*>grad_loss)[0] if dtype == F64 else (<const float*>grad_loss)[0]
        p.scale = p.scale / denominator
    if dtype == F32:
        return typed(&p, <const float*>x, <const float*>target, <float*>grad, sum, threads)
    if dtype == F64:
        return typed(&p, <const double*>x, <const double*>target, <double*>grad, sum, threads)
    if dtype == F16:
        return typed(&p, <const f16*>x, <const f16*>target, <f16*>grad, sum, threads)
    if dtype == BF16:
        return typed(&p, <const bf16*>x, <const bf16*>target, <bf16*>grad, sum, threads)
    return NO_DTYPE


cdef Py_ssize_t first_bad(const real* p, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """The first of these elements that is below 0 or above 1, or -1."""
    cdef Py_ssize_t w = lanes(p), k, at
    cdef vector[real] zero = splat(p, 0.0), above = zero, below = zero, v
    for k in range((last - first + w - 1) // w):
        at = first + k * w
        v = load_n(p + at, min(w, last - at), 0.0)
        above = vmax(v, above)  # of NaN, the other one
        below = vmax(zero - v, below)
    if reduce_max(above) <= 1 and reduce_max(below) <= 0:
        return -1
    for k in range(first, last):
        if get(p + k) < 0 or get(p + k) > 1:
            return k
    return -1


cdef int scan(const real* p, double* stats, Py_ssize_t n, int threads) noexcept nogil:
    cdef Py_ssize_t blocks = (n + BLOCK - 1) // BLOCK, k
    cdef Py_ssize_t* bad = <Py_ssize_t*>malloc((blocks + 1) * sizeof(Py_ssize_t))
    if bad == NULL:
        return NO_MEMORY
    if blocks == 1:
        bad[0] = first_bad(p, 0, n)
    else:
        for k in prange(blocks, num_threads=team(threads, n), schedule="static"):
            bad[k] = first_bad(p, k * BLOCK, min(n, (k + 1) * BLOCK))
    stats[0] = -1
    for k in range(blocks):
        if bad[k] >= 0:
            stats[0] = bad[k]
            break
    free(bad)
    return 0


# ---- for Cython: see binary_cross_entropy.pxd -----------------------------------------------

cdef int c_scan_probabilities(
    int dtype, const void* probs, double* stats, Py_ssize_t n, int threads
) noexcept nogil:
    if dtype == F32:
        return scan(<const float*>probs, stats, n, threads)
    if dtype == F64:
        return scan(<const double*>probs, stats, n, threads)
    if dtype == F16:
        return scan(<const f16*>probs, stats, n, threads)
    if dtype == BF16:
        return scan(<const bf16*>probs, stats, n, threads)
    return NO_DTYPE


cdef int c_binary_cross_entropy(
    int dtype, const void* probs, const void* target, const void* weight, Py_ssize_t weights,
    void* loss, Py_ssize_t n, bint per_element, double denominator, int threads
) noexcept nogil:
    return compute(dtype, probabilities(), NULL, probs, target, weight, weights, NULL, 0, loss,
                   NULL, n, per_element, denominator, threads)


cdef int c_binary_cross_entropy_backward(
    int dtype, const void* grad_loss, const void* probs, const void* target, const void* weight,
    Py_ssize_t weights, void* grad, Py_ssize_t n, bint per_element, double denominator, int threads
) noexcept nogil:
    return compute(dtype, probabilities(), grad_loss, probs, target, weight, weights, NULL, 0, NULL,
                   grad, n, per_element, denominator, threads)


cdef int c_binary_cross_entropy_with_grad(
    int dtype, const void* probs, const void* target, const void* weight, Py_ssize_t weights,
    void* loss, void* grad, Py_ssize_t n, bint per_element, double denominator, int threads
) noexcept nogil:
    return compute(dtype, probabilities(), NULL, probs, target, weight, weights, NULL, 0, loss,
                   grad, n, per_element, denominator, threads)


cdef int c_binary_cross_entropy_with_logits(
    int dtype, const void* logits, const void* target, const void* weight, Py_ssize_t weights,
    const void* pos_weight, Py_ssize_t pos_weights, void* loss, Py_ssize_t n, bint per_element,
    double denominator, double label_smoothing, int threads
) noexcept nogil:
    return compute(dtype, logits_with(label_smoothing), NULL, logits, target, weight, weights,
                   pos_weight, pos_weights, loss, NULL, n, per_element, denominator, threads)


cdef int c_binary_cross_entropy_with_logits_backward(
    int dtype, const void* grad_loss, const void* logits, const void* target, const void* weight,
    Py_ssize_t weights, const void* pos_weight, Py_ssize_t pos_weights, void* grad, Py_ssize_t n,
    bint per_element, double denominator, double label_smoothing, int threads
) noexcept nogil:
    return compute(dtype, logits_with(label_smoothing), grad_loss, logits, target, weight, weights,
                   pos_weight, pos_weights, NULL, grad, n, per_element, denominator, threads)


cdef int c_binary_cross_entropy_with_logits_with_grad(
    int dtype, const void* logits, const void* target, const void* weight, Py_ssize_t weights,
    const void* pos_weight, Py_ssize_t pos_weights, void* loss, void* grad, Py_ssize_t n,
    bint per_element, double denominator, double label_smoothing, int threads
) noexcept nogil:
    return compute(dtype, logits_with(label_smoothing), NULL, logits, target, weight, weights,
                   pos_weight, pos_weights, loss, grad, n, per_element, denominator, threads)


cdef int c_sigmoid_focal_loss(
    int dtype, const void* logits, const void* target, void* loss, Py_ssize_t n, bint per_element,
    double denominator, double gamma, double positive, double negative, int threads
) noexcept nogil:
    return compute(dtype, focal_with(gamma, positive, negative), NULL, logits, target, NULL, 0,
                   NULL, 0, loss, NULL, n, per_element, denominator, threads)


cdef int c_sigmoid_focal_loss_backward(
    int dtype, const void* grad_loss, const void* logits, const void* target, void* grad,
    Py_ssize_t n, bint per_element, double denominator, double gamma, double positive,
    double negative, int threads
) noexcept nogil:
    return compute(dtype, focal_with(gamma, positive, negative), grad_loss, logits, target, NULL, 0,
                   NULL, 0, NULL, grad, n, per_element, denominator, threads)


cdef int c_sigmoid_focal_loss_with_grad(
    int dtype, const void* logits, const void* target, void* loss, void* grad, Py_ssize_t n,
    bint per_element, double denominator, double gamma, double positive, double negative,
    int threads
) noexcept nogil:
    return compute(dtype, focal_with(gamma, positive, negative), NULL, logits, target, NULL, 0,
                   NULL, 0, loss, grad, n, per_element, denominator, threads)


# ---- for Python -----------------------------------------------------------------------------

cdef Py_ssize_t count(object a):
    return 0 if a is None else cnp.PyArray_SIZE(<cnp.ndarray>a)


cdef on_arrays(
    Formula formula, grad_loss, cnp.ndarray x, target, weight, pos_weight, loss, grad,
    double denominator, int threads
):
    cdef int dtype = dtype_of(x), result
    cdef Py_ssize_t n = cnp.PyArray_SIZE(x), weights = count(weight)
    cdef Py_ssize_t pos_weights = count(pos_weight)
    cdef bint per_element = n > 1 and count(grad_loss if loss is None else loss) == n
    cdef void* upstream = data(grad_loss)
    cdef void* values = data(x)
    cdef void* targets = data(target)
    cdef void* w = data(weight)
    cdef void* v = data(pos_weight)
    cdef void* losses = data(loss)
    cdef void* slopes = data(grad)
    if n == 0 and count(loss) == 0:  # nothing, each of which has a loss
        return
    with nogil:
        result = compute(dtype, formula, upstream, values, targets, w, weights, v, pos_weights,
                         losses, slopes, n, per_element, denominator, threads)
    done(result)


def scan_probabilities(cnp.ndarray probs, stats, *, int threads):
    cdef int dtype = dtype_of(probs), result
    cdef Py_ssize_t n = cnp.PyArray_SIZE(probs)
    cdef void* values = data(probs)
    cdef double* found = <double*>data(stats)
    with nogil:
        result = c_scan_probabilities(dtype, values, found, n, threads)
    done(result)


def binary_cross_entropy(probs, target, weight, loss, *, double denominator, int threads):
    on_arrays(probabilities(), None, probs, target, weight, None, loss, None, denominator, threads)


def binary_cross_entropy_backward(grad_loss, probs, target, weight, grad, *, double denominator,
                                  int threads):
    on_arrays(probabilities(), grad_loss, probs, target, weight, None, None, grad, denominator,
              threads)


def binary_cross_entropy_with_grad(probs, target, weight, loss, grad, *, double denominator,
                                   int threads):
    on_arrays(probabilities(), None, probs, target, weight, None, loss, grad, denominator, threads)


def binary_cross_entropy_with_logits(logits, target, weight, pos_weight, loss, *,
                                     double denominator, double label_smoothing, int threads):
    on_arrays(logits_with(label_smoothing), None, logits, target, weight, pos_weight, loss, None,
              denominator, threads)


def binary_cross_entropy_with_logits_backward(grad_loss, logits, target, weight, pos_weight, grad,
                                              *, double denominator, double label_smoothing,
                                              int threads):
    on_arrays(logits_with(label_smoothing), grad_loss, logits, target, weight, pos_weight, None,
              grad, denominator, threads)


def binary_cross_entropy_with_logits_with_grad(logits, target, weight, pos_weight, loss, grad, *,
                                               double denominator, double label_smoothing,
                                               int threads):
    on_arrays(logits_with(label_smoothing), None, logits, target, weight, pos_weight, loss, grad,
              denominator, threads)


def sigmoid_focal_loss(logits, target, loss, *, double denominator, double gamma, double positive,
                       double negative, int threads):
    on_arrays(focal_with(gamma, positive, negative), None, logits, target, None, None, loss, None,
              denominator, threads)


def sigmoid_focal_loss_backward(grad_loss, logits, target, grad, *, double denominator,
                                double gamma, double positive, double negative, int threads):
    on_arrays(focal_with(gamma, positive, negative), grad_loss, logits, target, None, None, None,
              grad, denominator, threads)


def sigmoid_focal_loss_with_grad(logits, target, loss, grad, *, double denominator, double gamma,
                                 double positive, double negative, int threads):
    on_arrays(focal_with(gamma, positive, negative), None, logits, target, None, None, loss, grad,
              denominator, threads)
