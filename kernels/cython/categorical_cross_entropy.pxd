"""categorical_cross_entropy for Cython code; see _c_interface.pxd.

`x` are probabilities. The target is `labels`, or `probabilities`: one-hot, for example.
"""

from ._c_interface cimport BF16, CONTRACT, ClassLoss, F16, F32, F64

# loss.
cdef int c_categorical_cross_entropy(int dtype, const ClassLoss* a, int threads) noexcept nogil

# grad.
cdef int c_categorical_cross_entropy_backward(
    int dtype, const ClassLoss* a, int threads
) noexcept nogil

# loss, and grad for a grad_loss of 1.
cdef int c_categorical_cross_entropy_with_grad(
    int dtype, const ClassLoss* a, int threads
) noexcept nogil
