"""cross_entropy and nll_loss for Cython code; see _c_interface.pxd, which has an example."""

from ._c_interface cimport BF16, CONTRACT, ClassLoss, F16, F32, F64

# loss and lse, either of which may be NULL.
cdef int c_cross_entropy(int dtype, const ClassLoss* a, int threads) noexcept nogil

# grad.
cdef int c_cross_entropy_backward(int dtype, const ClassLoss* a, int threads) noexcept nogil

# loss, and grad for a grad_loss of 1.
cdef int c_cross_entropy_with_grad(int dtype, const ClassLoss* a, int threads) noexcept nogil

# stats, from labels, weight, outer, n and inner. `dtype` is that of the logits; never returns -2.
cdef int c_scan_target(int dtype, const ClassLoss* a, int threads) noexcept nogil

# loss, of log-probabilities.
cdef int c_nll_loss(int dtype, const ClassLoss* a, int threads) noexcept nogil

# grad, which does not depend on x.
cdef int c_nll_loss_backward(int dtype, const ClassLoss* a, int threads) noexcept nogil
