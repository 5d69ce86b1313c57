"""linear_cross_entropy for Cython code; first read _c_interface.pxd.

    cdef LinearClassLoss a
    memset(&a, 0, sizeof(a))
    a.input, a.linear_weight, a.labels, a.loss = x, w, labels, &loss
    a.rows, a.width, a.classes, a.denominator = rows, width, classes, rows
    with nogil:
        failed = c_linear_cross_entropy(F32, &a, threads)
"""

from libc.stdint cimport int64_t

from ._c_interface cimport BF16, CONTRACT, ClassLoss, F16, F32, F64

cdef struct LinearClassLoss:
    const void* input  # IN (rows, width)
    const void* linear_weight  # IN (classes, width)
    const void* linear_bias  # IN (classes,), or NULL for 0
    const int64_t* labels  # IN (rows,): at least 0 and less than classes, or ignore_index
    const void* weight  # IN (classes,), compute dtype, or NULL for 1
    # IN, compute dtype, or NULL for 1: (rows,) if per_row; else one number
    const void* grad_loss
    void* loss  # OUT, compute dtype: (rows,) if per_row; else one number, their sum
    # OUT, as input, linear_weight and linear_bias; the last may be NULL. They overlap nothing
    void* d_input
    void* d_linear_weight
    void* d_linear_bias
    Py_ssize_t rows, width, classes
    # From one row to the next, in elements, 0 for width; rows themselves are contiguous.
    Py_ssize_t input_row, linear_weight_row, d_input_row, d_linear_weight_row
    bint per_row
    bint has_ignore_index  # else no row is ignored
    int64_t ignore_index
    double denominator  # divides losses and gradients, 0 for 1; see ClassLoss
    double label_smoothing  # from 0 to 1
    double z_loss  # at least 0
    double softcap  # logits become softcap * tanh(logits / softcap); 0 for none

# loss.
cdef int c_linear_cross_entropy(int dtype, const LinearClassLoss* a, int threads) noexcept nogil

# The gradients.
cdef int c_linear_cross_entropy_backward(
    int dtype, const LinearClassLoss* a, int threads
) noexcept nogil

# loss, and the gradients for a grad_loss of 1.
cdef int c_linear_cross_entropy_with_grad(
    int dtype, const LinearClassLoss* a, int threads
) noexcept nogil
