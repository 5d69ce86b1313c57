"""logsumexp, softmax and log_softmax for Cython code; first read _c_interface.pxd.

    cdef LogSoftmax a
    memset(&a, 0, sizeof(a))
    a.x, a.out, a.outer, a.n = x, out, rows, classes
    with nogil:
        c_log_softmax(F32, &a, threads)
"""

from ._c_interface cimport BF16, CONTRACT, F16, F32, F64

cdef struct LogSoftmax:
    const void* x  # IN (outer, n, inner), of the forward functions
    const void* y  # IN (outer, n, inner), of the backward functions: their result for x
    const void* grad  # IN (outer, n, inner), of the backward functions: the gradient for y
    void* out  # OUT (outer, n, inner); of c_logsumexp (outer, inner), and it overlaps nothing
    Py_ssize_t outer, n, inner
    Py_ssize_t x_step, y_step, grad_step, out_step

cdef int c_logsumexp(int dtype, const LogSoftmax* a, int threads) noexcept nogil
cdef int c_softmax(int dtype, const LogSoftmax* a, int threads) noexcept nogil
cdef int c_log_softmax(int dtype, const LogSoftmax* a, int threads) noexcept nogil

# out: the gradient for x.
cdef int c_softmax_backward(int dtype, const LogSoftmax* a, int threads) noexcept nogil
cdef int c_log_softmax_backward(int dtype, const LogSoftmax* a, int threads) noexcept nogil
