# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: binding=True
"""Binary cross-entropy, from logits and from probabilities, and the sigmoid focal loss, each with
its gradient in a single pass.

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

from cython.parallel cimport prange
from libc.stdlib cimport free, malloc
from libc.string cimport memset

ctypedef BinaryLoss Arguments

include "_simd.pxi"
include "_arrays.pxi"
include "_calls.pxi"
include "_threads.pxi"

cdef enum:
    TILE = 1024  # elements: 4 KB of float
    BLOCK = 16 * TILE  # elements of a task
    STREAM_ABOVE = 1 << 22  # bytes of an output beyond which it is written past the caches

cdef enum:  # the ops
    OF_PROBABILITIES
    OF_LOGITS
    FOCAL  # of logits
    SCAN

cdef struct Problem:
    int op
    Py_ssize_t n
    const void* weight  # `weights` numbers of the compute type, or NULL for ones
    const void* pos_weight
    Py_ssize_t weights, pos_weights  # element i has that of number i % weights
    const void* grad_loss  # (n,), or NULL
    void* loss  # (n,), or NULL
    bint with_loss, stream_grad, stream_loss
    bint wide_target  # of the compute type, beside an input of 16 bits
    double denominator
    double grad_scale  # grad_loss, if there is one for all, over denominator
    double target_scale  # 1 - label_smoothing: of the target
    double uniform_share  # label_smoothing / 2: of both classes
    double gamma, positive, negative  # of the focal loss, see the reference

cdef struct Part:  # of the arrays: where a tile of it begins
    const void* weight
    const void* pos_weight
    const void* grad_loss
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
    # A factor of 0 gives no loss, even at infinity; NaN is still in e.
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
    far = c * factor  # where it is 0, there is no loss, even at infinity
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

cdef inline bint are_labels(const real* t, Py_ssize_t n, bint wide_target) noexcept nogil:
    """Whether all targets are 0 or 1."""
    cdef Py_ssize_t w = lanes(t), k
    cdef vector[real] zero = splat(t, 0.0), one = splat(t, 1.0), others = zero, v
    for k in range((n + w - 1) // w):
        v = load_target(t, k * w, min(w, n - k * w), wide_target)
        others = vmax(where_equal(v, zero, zero, where_equal(v, one, zero, one)), others)
    return reduce_max(others) == 0


cdef double tile(
    const Problem* p, const real* x, const real* t, const Part* to, Py_ssize_t n
) noexcept nogil:
    """The losses of n elements, their gradients and their sum, whichever are asked for.

    The function calls each of those above in one place, so that they are inlined.
    """
    cdef int op = p.op
    cdef bint smooth = p.uniform_share != 0, with_loss = p.with_loss
    cdef bint labels = op == OF_PROBABILITIES and are_labels(t, n, p.wide_target)
    cdef const void* weights = to.weight
    cdef const void* pos_weights = to.pos_weight
    cdef const void* grad_loss = to.grad_loss
    cdef void* loss = to.loss
    cdef real* grad = <real*>to.grad
    cdef Py_ssize_t w = lanes(x), k, at, left
    cdef vector[real] one = splat(x, 1.0), scale = splat(x, p.grad_scale)
    cdef vector[real] target_scale = splat(x, p.target_scale)
    cdef vector[real] uniform_share = splat(x, p.uniform_share)
    cdef vector[real] positive = splat(x, p.positive)
    cdef vector[real] negative = splat(x, p.negative)
    cdef vector[real] a, b, factor, weight = one, losses, slopes = one
    cdef vector[double] low = splat(<double*>NULL, 0.0), high = low
    for k in range((n + w - 1) // w):
        at = k * w
        left = min(w, n - at)
        a = load_target(t, at, left, p.wide_target)
        if weights != NULL:
            weight = load_wide(x, weights, at, left)
        if op == FOCAL:
            b = one - a
            factor = mul_add(positive, a, negative * b)
            losses = focal(
                x, load_n(x + at, left, 0.0), a, b, p.gamma, factor, grad != NULL, &slopes)
        elif op == OF_LOGITS:
            b = one - a
            if smooth:
                a = mul_add(target_scale, a, uniform_share)
                b = mul_add(target_scale, b, uniform_share)
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
            if grad_loss != NULL:
                scale = load_wide(x, grad_loss, at, left)
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
        to.grad_loss = wide_at(x, p.grad_loss, at)
        loss_to = <void*>wide_at(x, p.loss, at)
        to.loss = <void*>losses if p.stream_loss else loss_to
        grad_to = <void*>(grad + at) if grad != NULL else NULL
        to.grad = <void*>slopes if p.stream_grad else grad_to
        total += tile(p, x + at, target_at(t, at, p.wide_target), &to, n)
        if p.stream_loss:
            stream_copy(loss_to, losses, n * wide_size(x))
        if p.stream_grad:
            stream_copy(grad_to, slopes, n * sizeof(real))
        at += n
    if p.stream_loss or p.stream_grad:
        stream_end()
    return total


# ---- loops over threads ---------------------------------------------------------------------

cdef int compute(
    Problem* p, const real* x, const real* t, real* grad, void* sum, int threads
) noexcept nogil:
    """Loss and gradient, whichever are not NULL."""
    cdef Py_ssize_t blocks = (p.n + BLOCK - 1) // BLOCK, k
    cdef int num_threads = threads_for(threads, p.n)
    cdef double total = 0
    cdef double* sums = <double*>malloc((blocks + 1) * sizeof(double))
    if sums == NULL:
        return NO_MEMORY
    p.stream_grad = (grad != NULL and grad != x and grad != t
                     and p.n * <Py_ssize_t>sizeof(real) > STREAM_ABOVE)
    p.stream_loss = p.loss != NULL and p.n * wide_size(x) > STREAM_ABOVE
    if num_threads == 1:  # a parallel region of one thread takes as long as a thousand elements
        for k in range(blocks):
            sums[k] = block(p, x, t, grad, k * BLOCK, min(p.n, (k + 1) * BLOCK))
    else:
        for k in prange(blocks, num_threads=num_threads, schedule="dynamic"):
            sums[k] = block(p, x, t, grad, k * BLOCK, min(p.n, (k + 1) * BLOCK))
    for k in range(blocks):
        total += sums[k]
    free(sums)
    if sum != NULL:
        put_wide(x, sum, 0, total / p.denominator)
    return 0


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
        for k in prange(blocks, num_threads=threads_for(threads, n), schedule="static"):
            bad[k] = first_bad(p, k * BLOCK, min(n, (k + 1) * BLOCK))
    stats[0] = -1
    for k in range(blocks):
        if bad[k] >= 0:
            stats[0] = bad[k]
            break
    free(bad)
    return 0


cdef int typed(int op, const BinaryLoss* a, const real* like, int threads) noexcept nogil:
    cdef Problem p
    if op == SCAN:
        return scan(<const real*>a.x, a.stats, a.n, threads)
    p.op = op
    p.n = a.n
    p.weight = a.weight
    p.weights = a.weights
    p.pos_weight = a.pos_weight
    p.pos_weights = a.pos_weights
    p.grad_loss = a.grad_loss if a.per_element else NULL
    p.loss = a.loss if a.per_element else NULL
    p.with_loss = a.loss != NULL
    p.wide_target = a.wide_target
    p.denominator = a.denominator
    p.grad_scale = 1
    if a.grad_loss != NULL and not a.per_element:
        p.grad_scale = get_wide(like, a.grad_loss, 0)
    p.grad_scale = p.grad_scale / a.denominator
    p.target_scale = 1 - a.label_smoothing
    p.uniform_share = a.label_smoothing / 2
    p.gamma = a.gamma
    p.positive = a.positive
    p.negative = a.negative
    return compute(&p, <const real*>a.x, <const real*>a.target, <real*>a.grad,
                   NULL if a.per_element else a.loss, threads)


# ---- for Cython: see binary_cross_entropy.pxd -----------------------------------------------

cdef int from_cython(
    int op, int part, int dtype, const BinaryLoss* a, int threads
) noexcept nogil:
    """Defaults are filled in; what is no argument of the function is not read."""
    cdef BinaryLoss b = a[0]
    b.weights = a.weights or a.n
    b.pos_weights = a.pos_weights or a.n
    b.denominator = a.denominator or 1
    if op == FOCAL:
        b.weight = NULL
    if op != OF_LOGITS:
        b.pos_weight = NULL
        b.label_smoothing = 0
    if a.positive == 0 and a.negative == 0:
        b.positive = 1
        b.negative = 1
    if part == BACKWARD:
        b.loss = NULL
    else:
        b.grad_loss = NULL
    if part == FORWARD:
        b.grad = NULL
    return by_dtype(op, dtype, &b, threads)


cdef int c_scan_probabilities(int dtype, const BinaryLoss* a, int threads) noexcept nogil:
    return from_cython(SCAN, FORWARD, dtype, a, threads)


cdef int c_binary_cross_entropy(int dtype, const BinaryLoss* a, int threads) noexcept nogil:
    return from_cython(OF_PROBABILITIES, FORWARD, dtype, a, threads)


cdef int c_binary_cross_entropy_backward(
    int dtype, const BinaryLoss* a, int threads
) noexcept nogil:
    return from_cython(OF_PROBABILITIES, BACKWARD, dtype, a, threads)


cdef int c_binary_cross_entropy_with_grad(
    int dtype, const BinaryLoss* a, int threads
) noexcept nogil:
    return from_cython(OF_PROBABILITIES, WITH_GRAD, dtype, a, threads)


cdef int c_binary_cross_entropy_with_logits(
    int dtype, const BinaryLoss* a, int threads
) noexcept nogil:
    return from_cython(OF_LOGITS, FORWARD, dtype, a, threads)


cdef int c_binary_cross_entropy_with_logits_backward(
    int dtype, const BinaryLoss* a, int threads
) noexcept nogil:
    return from_cython(OF_LOGITS, BACKWARD, dtype, a, threads)


cdef int c_binary_cross_entropy_with_logits_with_grad(
    int dtype, const BinaryLoss* a, int threads
) noexcept nogil:
    return from_cython(OF_LOGITS, WITH_GRAD, dtype, a, threads)


cdef int c_sigmoid_focal_loss(int dtype, const BinaryLoss* a, int threads) noexcept nogil:
    return from_cython(FOCAL, FORWARD, dtype, a, threads)


cdef int c_sigmoid_focal_loss_backward(int dtype, const BinaryLoss* a, int threads) noexcept nogil:
    return from_cython(FOCAL, BACKWARD, dtype, a, threads)


cdef int c_sigmoid_focal_loss_with_grad(
    int dtype, const BinaryLoss* a, int threads
) noexcept nogil:
    return from_cython(FOCAL, WITH_GRAD, dtype, a, threads)


# ---- for Python -----------------------------------------------------------------------------

cdef on_arrays(
    int op, grad_loss, cnp.ndarray x, cnp.ndarray target, weight, pos_weight, loss, grad,
    double denominator, int threads, double label_smoothing=0, double gamma=0, double positive=1,
    double negative=1
):
    cdef BinaryLoss a
    memset(&a, 0, sizeof(a))
    a.x = data(x)
    a.target = data(target)
    a.weight = data(weight)
    a.pos_weight = data(pos_weight)
    a.grad_loss = data(grad_loss)
    a.loss = data(loss)
    a.grad = data(grad)
    a.n = size(x)
    a.weights = size(weight)
    a.pos_weights = size(pos_weight)
    a.wide_target = cnp.PyArray_ITEMSIZE(target) > cnp.PyArray_ITEMSIZE(x)
    a.per_element = a.n > 1 and size(grad_loss if loss is None else loss) == a.n
    a.denominator = denominator
    a.label_smoothing = label_smoothing
    a.gamma = gamma
    a.positive = positive
    a.negative = negative
    if a.n == 0 and size(loss) == 0:  # no element, and a loss for each
        return
    from_python(op, dtype_of(x), &a, threads)


def scan_probabilities(probs, stats, *, int threads):
    cdef BinaryLoss a
    a.x = data(probs)
    a.stats = <double*>data(stats)
    a.n = size(probs)
    from_python(SCAN, dtype_of(probs), &a, threads)


def binary_cross_entropy(probs, target, weight, loss, *, double denominator, int threads):
    on_arrays(OF_PROBABILITIES, None, probs, target, weight, None, loss, None, denominator, threads)


def binary_cross_entropy_backward(grad_loss, probs, target, weight, grad, *, double denominator,
                                  int threads):
    on_arrays(OF_PROBABILITIES, grad_loss, probs, target, weight, None, None, grad, denominator,
              threads)


def binary_cross_entropy_with_grad(probs, target, weight, loss, grad, *, double denominator,
                                   int threads):
    on_arrays(OF_PROBABILITIES, None, probs, target, weight, None, loss, grad, denominator, threads)


def binary_cross_entropy_with_logits(logits, target, weight, pos_weight, loss, *,
                                     double denominator, double label_smoothing, int threads):
    on_arrays(OF_LOGITS, None, logits, target, weight, pos_weight, loss, None, denominator,
              threads, label_smoothing)


def binary_cross_entropy_with_logits_backward(grad_loss, logits, target, weight, pos_weight, grad,
                                              *, double denominator, double label_smoothing,
                                              int threads):
    on_arrays(OF_LOGITS, grad_loss, logits, target, weight, pos_weight, None, grad, denominator,
              threads, label_smoothing)


def binary_cross_entropy_with_logits_with_grad(logits, target, weight, pos_weight, loss, grad, *,
                                               double denominator, double label_smoothing,
                                               int threads):
    on_arrays(OF_LOGITS, None, logits, target, weight, pos_weight, loss, grad, denominator,
              threads, label_smoothing)


def sigmoid_focal_loss(logits, target, loss, *, double denominator, double gamma, double positive,
                       double negative, int threads):
    on_arrays(FOCAL, None, logits, target, None, None, loss, None, denominator, threads, 0, gamma,
              positive, negative)


def sigmoid_focal_loss_backward(grad_loss, logits, target, grad, *, double denominator,
                                double gamma, double positive, double negative, int threads):
    on_arrays(FOCAL, grad_loss, logits, target, None, None, None, grad, denominator, threads, 0,
              gamma, positive, negative)


def sigmoid_focal_loss_with_grad(logits, target, loss, grad, *, double denominator, double gamma,
                                 double positive, double negative, int threads):
    on_arrays(FOCAL, None, logits, target, None, None, loss, grad, denominator, threads, 0, gamma,
              positive, negative)
