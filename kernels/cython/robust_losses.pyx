# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: binding=True
"""Losses for noisy labels and rare classes, with their gradients, in a single pass over memory.

The formulas are in kernels/reference/robust_losses.py. All transform the cross-entropy of the row,
so the gradient is that of cross-entropy times one number per row: the loops are those of
cross-entropy (_loss.pxi), and _loss_transform.pxi has what is done once in a row. Only the entropy
takes a second pass over a row, while it is in the cache.
"""

cdef enum:
    TRANSFORMED = 1

ctypedef RobustLoss Arguments

include "_loss.pxi"


cdef int typed(int op, const RobustLoss* a, const real* like, int threads) noexcept nogil:
    cdef Problem p = problem_of(&a.rows)
    p.transform = LossTransform(a.alpha, a.gamma, a.q, a.epsilon, a.beta)
    return compute(&p, <const real*>a.rows.x, <const real*>NULL, <real*>a.rows.grad, threads)


# ---- for Cython: see robust_losses.pxd ------------------------------------------------------

cdef int from_cython(int part, int dtype, const RobustLoss* a, int threads) noexcept nogil:
    cdef RobustLoss b = a[0]
    b.rows = with_defaults(&a.rows, part)
    b.rows.probabilities = NULL
    b.rows.lse = NULL
    b.rows.label_smoothing = 0
    b.rows.z_loss = 0
    return by_dtype(0, dtype, &b, threads)


cdef int c_robust_losses(int dtype, const RobustLoss* a, int threads) noexcept nogil:
    return from_cython(FORWARD, dtype, a, threads)


cdef int c_robust_losses_backward(int dtype, const RobustLoss* a, int threads) noexcept nogil:
    return from_cython(BACKWARD, dtype, a, threads)


cdef int c_robust_losses_with_grad(int dtype, const RobustLoss* a, int threads) noexcept nogil:
    return from_cython(WITH_GRAD, dtype, a, threads)


# ---- for Python -----------------------------------------------------------------------------

cdef on_arrays(
    grad_loss, logits, target, weight, loss, grad, double alpha, double gamma, double q,
    double epsilon, double beta, double denominator, int64_t ignore_index, int threads
):
    cdef RobustLoss a
    a.rows = class_loss(logits, target, weight, grad_loss, loss, grad, denominator, ignore_index)
    a.alpha = alpha
    a.gamma = gamma
    a.q = q
    a.epsilon = epsilon
    a.beta = beta
    from_python(0, dtype_of(logits), &a, threads)


def robust_losses(logits, target, weight, loss, *, double alpha, double gamma, double q,
                  double epsilon, double beta, double denominator, int64_t ignore_index,
                  int threads):
    on_arrays(None, logits, target, weight, loss, None, alpha, gamma, q, epsilon, beta,
              denominator, ignore_index, threads)


def robust_losses_backward(grad_loss, logits, target, weight, grad, *, double alpha, double gamma,
                           double q, double epsilon, double beta, double denominator,
                           int64_t ignore_index, int threads):
    on_arrays(grad_loss, logits, target, weight, None, grad, alpha, gamma, q, epsilon, beta,
              denominator, ignore_index, threads)


def robust_losses_with_grad(logits, target, weight, loss, grad, *, double alpha, double gamma,
                            double q, double epsilon, double beta, double denominator,
                            int64_t ignore_index, int threads):
    on_arrays(None, logits, target, weight, loss, grad, alpha, gamma, q, epsilon, beta,
              denominator, ignore_index, threads)
