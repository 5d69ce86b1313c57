# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: binding=True
"""Losses for noisy labels and rare classes, with their gradients, in one trip through memory.

The formulas are in kernels/reference/robust_losses.py. All are a curve over the probability of the
row's class, so the gradient is that of cross-entropy times one number per row: the loops are those
of cross-entropy (_cross_entropy.pxi), and _curves.pxi has what is done once in a row. Only the
entropy wants a second pass over a row, while it is in the cache.
"""

cdef enum:
    CURVED = 1

include "_cross_entropy.pxi"

cdef int compute(
    int dtype, const void* logits, const int64_t* labels, const void* weight,
    const void* upstream, void* loss, void* grad, Py_ssize_t outer, Py_ssize_t n,
    Py_ssize_t inner, Py_ssize_t logits_step, Py_ssize_t grad_step, bint per_row, double alpha,
    double gamma, double q, double epsilon, double beta, double denominator,
    int64_t ignore_index, int threads
) noexcept nogil:
    """Loss and gradient, whichever are not NULL."""
    cdef Problem p
    memset(&p, 0, sizeof(p))
    p.outer = outer
    p.n = n
    p.inner = inner
    p.x_step = logits_step
    p.grad_step = grad_step
    p.labels = labels
    p.weight = weight
    p.upstream = upstream
    p.upstream_per_row = per_row
    p.loss = loss
    p.loss_per_row = per_row and loss != NULL
    p.ignore_index = ignore_index
    p.denominator = denominator
    p.hard = 1
    p.curve = Curve(alpha, gamma, q, epsilon, beta)
    if dtype == F32:
        return typed(&p, <const float*>logits, <const float*>NULL, <float*>grad, threads)
    if dtype == F64:
        return typed(&p, <const double*>logits, <const double*>NULL, <double*>grad, threads)
    if dtype == F16:
        return typed(&p, <const f16*>logits, <const f16*>NULL, <f16*>grad, threads)
    if dtype == BF16:
        return typed(&p, <const bf16*>logits, <const bf16*>NULL, <bf16*>grad, threads)
    return NO_DTYPE


# ---- for Cython: see robust_losses.pxd ------------------------------------------------------

cdef int c_robust_losses(
    int dtype, const void* logits, const int64_t* labels, const void* weight, void* loss,
    Py_ssize_t outer, Py_ssize_t n, Py_ssize_t inner, Py_ssize_t logits_step, bint per_row,
    double alpha, double gamma, double q, double epsilon, double beta, double denominator,
    int64_t ignore_index, int threads
) noexcept nogil:
    return compute(dtype, logits, labels, weight, NULL, loss, NULL, outer, n, inner, logits_step,
                   0, per_row, alpha, gamma, q, epsilon, beta, denominator, ignore_index, threads)


cdef int c_robust_losses_backward(
    int dtype, const void* grad_loss, const void* logits, const int64_t* labels,
    const void* weight, void* grad, Py_ssize_t outer, Py_ssize_t n, Py_ssize_t inner,
    Py_ssize_t logits_step, Py_ssize_t grad_step, bint per_row, double alpha, double gamma,
    double q, double epsilon, double beta, double denominator, int64_t ignore_index, int threads
) noexcept nogil:
    return compute(dtype, logits, labels, weight, grad_loss, NULL, grad, outer, n, inner,
                   logits_step, grad_step, per_row, alpha, gamma, q, epsilon, beta, denominator,
                   ignore_index, threads)


cdef int c_robust_losses_with_grad(
    int dtype, const void* logits, const int64_t* labels, const void* weight, void* loss,
    void* grad, Py_ssize_t outer, Py_ssize_t n, Py_ssize_t inner, Py_ssize_t logits_step,
    Py_ssize_t grad_step, bint per_row, double alpha, double gamma, double q, double epsilon,
    double beta, double denominator, int64_t ignore_index, int threads
) noexcept nogil:
    return compute(dtype, logits, labels, weight, NULL, loss, grad, outer, n, inner, logits_step,
                   grad_step, per_row, alpha, gamma, q, epsilon, beta, denominator, ignore_index,
                   threads)


# ---- for Python -----------------------------------------------------------------------------

cdef on_arrays(
    cnp.ndarray logits, target, weight, loss, upstream, grad, double alpha, double gamma,
    double q, double epsilon, double beta, double denominator, int64_t ignore_index, int threads
):
    cdef int dtype = dtype_of(logits), result
    cdef const int64_t* labels = <const int64_t*>data(target)
    cdef Py_ssize_t x_step = plane_step(logits), grad_step = plane_step(grad)
    cdef bint rows = per_row(logits, upstream if loss is None else loss)
    cdef void* x = data(logits)
    cdef void* weights = data(weight)
    cdef void* slope = data(upstream)
    cdef void* losses = data(loss)
    cdef void* out = data(grad)
    with nogil:
        result = compute(
            dtype, x, labels, weights, slope, losses, out, cnp.PyArray_DIM(logits, 0),
            cnp.PyArray_DIM(logits, 1), cnp.PyArray_DIM(logits, 2), x_step, grad_step, rows, alpha,
            gamma, q, epsilon, beta, denominator, ignore_index, threads)
    done(result)


def robust_losses(logits, target, weight, loss, *, double alpha, double gamma, double q,
                  double epsilon, double beta, double denominator, int64_t ignore_index,
                  int threads):
    on_arrays(logits, target, weight, loss, None, None, alpha, gamma, q, epsilon, beta,
              denominator, ignore_index, threads)


def robust_losses_backward(grad_loss, logits, target, weight, grad, *, double alpha, double gamma,
                           double q, double epsilon, double beta, double denominator,
                           int64_t ignore_index, int threads):
    on_arrays(logits, target, weight, None, grad_loss, grad, alpha, gamma, q, epsilon, beta,
              denominator, ignore_index, threads)


def robust_losses_with_grad(logits, target, weight, loss, grad, *, double alpha, double gamma,
                            double q, double epsilon, double beta, double denominator,
                            int64_t ignore_index, int threads):
    on_arrays(logits, target, weight, loss, None, grad, alpha, gamma, q, epsilon, beta,
              denominator, ignore_index, threads)
