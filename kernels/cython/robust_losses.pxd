"""The kernels of robust_losses.pyx for Cython code: raw pointers, no Python objects, no GIL.

    from fastce.kernels.cython.robust_losses cimport c_robust_losses_with_grad, F32

    with nogil:  # the focal loss
        failed = c_robust_losses_with_grad(
            F32, logits, labels, NULL, loss, grad, rows, classes, 1, classes, classes, False,
            1, 2, 0, 0, 0, rows, -100, threads)

For a row with class y, p = softmax(x) and entropy H, a function computes

    weight[y] * (alpha * (1 - p[y])**gamma * L(p[y]) + epsilon * (1 - p[y])) - beta * H
    L(p) = (1 - p**q) / q, which is -log(p) for q = 0

    loss                                            alpha     gamma  q    epsilon     beta
    focal                                           a number  gamma  0    0           0
    generalized cross-entropy                       1         0      q    0           0
    symmetric cross-entropy (alpha, beta, log 0)    alpha     0      0    -beta log0  0
    poly cross-entropy                              1         0      0    epsilon     0
    cross-entropy and confidence penalty            1         0      0    0           beta

Every function returns 0, or -1 where there is no memory, or -2 where `dtype` is none of the four;
then the outputs hold anything. Arguments are as in cross_entropy.pxd, and these hold besides:

- `labels` is NULL for the entropy alone, of every row.
- `gamma` is at least 0, and `q` from 0 to 1. All five numbers are finite.
- `grad` is exactly `logits`, with the same step, or overlaps no input.
"""

from libc.stdint cimport int64_t

cdef enum:
    CONTRACT = 2  # see kernels/__init__.py

cdef enum:  # dtype
    F64 = 0
    F32 = 1
    F16 = 2
    BF16 = 3

cdef int c_robust_losses(
    int dtype, const void* logits, const int64_t* labels, const void* weight, void* loss,
    Py_ssize_t outer, Py_ssize_t n, Py_ssize_t inner, Py_ssize_t logits_step, bint per_row,
    double alpha, double gamma, double q, double epsilon, double beta, double denominator,
    int64_t ignore_index, int threads
) noexcept nogil

# grad: that for the logits. grad_loss is NULL for 1.
cdef int c_robust_losses_backward(
    int dtype, const void* grad_loss, const void* logits, const int64_t* labels,
    const void* weight, void* grad, Py_ssize_t outer, Py_ssize_t n, Py_ssize_t inner,
    Py_ssize_t logits_step, Py_ssize_t grad_step, bint per_row, double alpha, double gamma,
    double q, double epsilon, double beta, double denominator, int64_t ignore_index, int threads
) noexcept nogil

# Both at once; grad is what c_robust_losses_backward gives for a grad_loss of 1.
cdef int c_robust_losses_with_grad(
    int dtype, const void* logits, const int64_t* labels, const void* weight, void* loss,
    void* grad, Py_ssize_t outer, Py_ssize_t n, Py_ssize_t inner, Py_ssize_t logits_step,
    Py_ssize_t grad_step, bint per_row, double alpha, double gamma, double q, double epsilon,
    double beta, double denominator, int64_t ignore_index, int threads
) noexcept nogil
