"""The kernels of linear_cross_entropy.pyx for Cython code: raw pointers, no Python objects, no GIL.

    from fastce.kernels.cython.linear_cross_entropy cimport (
        LinearLoss, c_linear_cross_entropy, F32)
    from libc.string cimport memset

    cdef LinearLoss a
    memset(&a, 0, sizeof(a))  # the defaults
    a.input, a.linear_weight, a.target, a.loss = x, w, labels, &loss
    a.rows, a.width, a.classes = rows, width, classes
    a.input_row = a.linear_weight_row = width
    a.denominator, a.ignore_index = rows, -100
    with nogil:
        failed = c_linear_cross_entropy(F32, &a, threads)

Each returns 0, or -1 where there is no memory, or -2 where `dtype` is none of the four; then the
outputs hold anything. Nothing else is checked: labels must be classes or ignore_index. `weight`,
`grad_loss` and `loss` are of the compute type (double for F64, else float), all other floating
arrays of `dtype`; float16 and bfloat16 are their 16 bits. No output overlaps anything.

`threads` is how many OpenMP threads may be used; 0 and 1 are the caller's alone. The result does
not depend on it, not in the last bit. Any thread may call; from inside a `prange`, pass 1.

What is computed is in kernels/reference/linear_cross_entropy.py. The code is that of the
instruction set level that is used by the process (FASTCE_ISA).
"""

from libc.stdint cimport int64_t

cdef enum:
    CONTRACT = 2  # see kernels/__init__.py

cdef enum:  # dtype
    F64 = 0
    F32 = 1
    F16 = 2
    BF16 = 3

# Cython compares the names of structs when a module that uses them is imported, not their fields.
# A struct whose fields change therefore gets another name.

cdef struct LinearLoss:
    const void* input  # IN (rows, width)
    const void* linear_weight  # IN (classes, width)
    const void* linear_bias  # IN (classes,), or NULL for 0
    const int64_t* target  # IN (rows,)
    const void* weight  # IN (classes,), or NULL for 1
    const void* grad_loss  # IN (rows,) if per_row, else one number
    void* loss  # OUT (rows,) if per_row, else one number
    void* d_input  # OUT (rows, width)
    void* d_linear_weight  # OUT (classes, width)
    void* d_linear_bias  # OUT (classes,), or NULL
    Py_ssize_t rows, width, classes
    # From one row to the next, in elements; rows themselves are contiguous.
    Py_ssize_t input_row, linear_weight_row, d_input_row, d_linear_weight_row
    bint per_row
    int64_t ignore_index
    double denominator, label_smoothing, z_loss, softcap  # softcap: 0 for none

# The loss; gradients are not looked at.
cdef int c_linear_cross_entropy(int dtype, const LinearLoss* a, int threads) noexcept nogil

# The gradients; `loss` is not looked at.
cdef int c_linear_cross_entropy_backward(int dtype, const LinearLoss* a, int threads) noexcept nogil

# Both, and the gradients are those for a grad_loss of 1.
cdef int c_linear_cross_entropy_with_grad(
    int dtype, const LinearLoss* a, int threads
) noexcept nogil
