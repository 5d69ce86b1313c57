"""robust_losses for Cython code; first read _c_interface.pxd.

    cdef RobustLoss a
    memset(&a, 0, sizeof(a))
    a.rows.x, a.rows.labels, a.rows.loss, a.rows.grad = logits, labels, &loss, grad
    a.rows.outer, a.rows.n, a.rows.denominator = rows, classes, rows
    a.alpha, a.gamma = 1, 2  # the focal loss
    with nogil:
        failed = c_robust_losses_with_grad(F32, &a, threads)

For a row with class y, p = softmax(x) and entropy H, a function computes

    weight[y] * (alpha * (1 - p[y])**gamma * L(p[y]) + epsilon * (1 - p[y])) - beta * H
    L(p) = (1 - p**q) / q, which is -log(p) for q = 0

    loss                                            alpha     gamma  q    epsilon     beta
    focal                                           a number  gamma  0    0           0
    generalized cross-entropy                       1         0      q    0           0
    symmetric cross-entropy (alpha, beta, log 0)    alpha     0      0    -beta log0  0
    poly cross-entropy                              1         0      0    epsilon     0
    cross-entropy and confidence penalty            1         0      0    0           beta
"""

from ._c_interface cimport BF16, CONTRACT, ClassLoss, F16, F32, F64

cdef struct RobustLoss:
    # Its labels may be NULL: the entropy alone, of every row. Not used: probabilities, lse,
    # label_smoothing, z_loss and its epsilon.
    ClassLoss rows
    double alpha  # has no default: 0 is 0
    double gamma  # at least 0
    double q  # from 0 to 1
    double epsilon, beta

# loss.
cdef int c_robust_losses(int dtype, const RobustLoss* a, int threads) noexcept nogil

# grad.
cdef int c_robust_losses_backward(int dtype, const RobustLoss* a, int threads) noexcept nogil

# loss, and grad for a grad_loss of 1.
cdef int c_robust_losses_with_grad(int dtype, const RobustLoss* a, int threads) noexcept nogil
