"""The kernels of log_softmax.pyx for Cython code: raw pointers, no Python objects, no GIL.

    from fastce.kernels.cython.log_softmax cimport c_log_softmax, F32

    with nogil:
        c_log_softmax(F32, x, out, rows, classes, 1, classes, classes, threads)

Every function returns 0, or -2 where `dtype` is none of the four. Nothing else is checked, so the
following must hold:

- Arrays have shape (outer, n, inner) and the classes lie on the middle axis: for rows of classes,
  inner = 1. Each (n, inner) plane is contiguous; `*_step` is the distance between the starts of
  neighbouring planes, in elements. Sizes may be 0, and then no element is touched.
- Pointers are aligned to their elements, and NULL only where an array has no elements. float16
  and bfloat16 are their 16 bits.
- An output is exactly one of the inputs, with the same step, or overlaps none of them.
- `threads` is how many OpenMP threads may be used; 0 and 1 are the caller's alone. Arrays of fewer
  than 65,536 elements are not spread. The result does not depend on it, not in the last bit. Any
  thread may call, also several at once; from inside a `prange`, pass 1.

What the functions compute, and what becomes of infinities and NaN, is what the functions of
these names in fastce compute. Their code is that of the instruction set level that is used by the
process (FASTCE_ISA), and is found when the calling module is imported.
"""

cdef enum:
    CONTRACT = 2  # see kernels/__init__.py

cdef enum:  # dtype
    F64 = 0
    F32 = 1
    F16 = 2
    BF16 = 3

# out, of shape (outer, inner) and contiguous: log(sum(exp(x))) over the classes. No overlap.
cdef int c_logsumexp(
    int dtype, const void* x, void* out, Py_ssize_t outer, Py_ssize_t n, Py_ssize_t inner,
    Py_ssize_t x_step, int threads
) noexcept nogil

cdef int c_softmax(
    int dtype, const void* x, void* out, Py_ssize_t outer, Py_ssize_t n, Py_ssize_t inner,
    Py_ssize_t x_step, Py_ssize_t out_step, int threads
) noexcept nogil

cdef int c_log_softmax(
    int dtype, const void* x, void* out, Py_ssize_t outer, Py_ssize_t n, Py_ssize_t inner,
    Py_ssize_t x_step, Py_ssize_t out_step, int threads
) noexcept nogil

# out: the gradient for x, from that for y = softmax(x) (or log_softmax(x)) and y.
cdef int c_softmax_backward(
    int dtype, const void* grad, const void* y, void* out, Py_ssize_t outer, Py_ssize_t n,
    Py_ssize_t inner, Py_ssize_t grad_step, Py_ssize_t y_step, Py_ssize_t out_step, int threads
) noexcept nogil

cdef int c_log_softmax_backward(
    int dtype, const void* grad, const void* y, void* out, Py_ssize_t outer, Py_ssize_t n,
    Py_ssize_t inner, Py_ssize_t grad_step, Py_ssize_t y_step, Py_ssize_t out_step, int threads
) noexcept nogil
