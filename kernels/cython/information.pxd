"""The kernels of information.pyx for Cython code: raw pointers, no Python objects, no GIL.

    from fastce.kernels.cython.information cimport c_entropy, F32

    with nogil:
        c_entropy(F32, p, out, rows, outcomes, 1, outcomes, 1.0, False, threads)

Every function returns 0, -1 where there was no memory for intermediate results (of tables only), or
-2 where `dtype` is none of the four. Nothing else is checked. What log_softmax.pxd says of arrays,
pointers, steps and threads holds here too; the outcomes lie on the middle axis.

`out` has shape (outer, inner), is contiguous, in the compute type: double for F64, else float. It
overlaps nothing. Results are divided by `unit`: 1 for nats, log(2) for bits. With `exponential`
they are exp of the number of nats instead.
"""

cdef enum:
    CONTRACT = 2  # see kernels/__init__.py

cdef enum:  # dtype
    F64 = 0
    F32 = 1
    F16 = 2
    BF16 = 3

cdef int c_entropy(
    int dtype, const void* p, void* out, Py_ssize_t outer, Py_ssize_t n, Py_ssize_t inner,
    Py_ssize_t p_step, double unit, bint exponential, int threads
) noexcept nogil

# -sum(p * log(q)) of probabilities; c_cross_entropy of cross_entropy.pxd is the loss of logits.
cdef int c_cross_entropy_of(
    int dtype, const void* p, const void* q, void* out, Py_ssize_t outer, Py_ssize_t n,
    Py_ssize_t inner, Py_ssize_t p_step, Py_ssize_t q_step, double unit, bint exponential,
    int threads
) noexcept nogil

cdef int c_kl_divergence(
    int dtype, const void* p, const void* q, void* out, Py_ssize_t outer, Py_ssize_t n,
    Py_ssize_t inner, Py_ssize_t p_step, Py_ssize_t q_step, double unit, int threads
) noexcept nogil

cdef int c_js_divergence(
    int dtype, const void* p, const void* q, void* out, Py_ssize_t outer, Py_ssize_t n,
    Py_ssize_t inner, Py_ssize_t p_step, Py_ssize_t q_step, double unit, int threads
) noexcept nogil

# table: (tables, rows, columns), each table contiguous; out: (tables,). The entropy of the column
# given the row, and the mutual information of the two. A table is not spread over threads.
cdef int c_conditional_entropy(
    int dtype, const void* table, void* out, Py_ssize_t tables, Py_ssize_t rows,
    Py_ssize_t columns, Py_ssize_t table_step, double unit, int threads
) noexcept nogil

cdef int c_mutual_information(
    int dtype, const void* table, void* out, Py_ssize_t tables, Py_ssize_t rows,
    Py_ssize_t columns, Py_ssize_t table_step, double unit, int threads
) noexcept nogil

cdef int c_entropy_from_logits(
    int dtype, const void* logits, void* out, Py_ssize_t outer, Py_ssize_t n, Py_ssize_t inner,
    Py_ssize_t step, double unit, int threads
) noexcept nogil

# grad: that of each row's own result, in the dtype of the logits.
cdef int c_entropy_from_logits_with_grad(
    int dtype, const void* logits, void* out, void* grad, Py_ssize_t outer, Py_ssize_t n,
    Py_ssize_t inner, Py_ssize_t step, Py_ssize_t grad_step, double unit, int threads
) noexcept nogil

cdef int c_kl_divergence_from_logits(
    int dtype, const void* p_logits, const void* q_logits, void* out, Py_ssize_t outer,
    Py_ssize_t n, Py_ssize_t inner, Py_ssize_t p_step, Py_ssize_t q_step, double unit, int threads
) noexcept nogil

# p_grad may be NULL.
cdef int c_kl_divergence_from_logits_with_grad(
    int dtype, const void* p_logits, const void* q_logits, void* out, void* q_grad, void* p_grad,
    Py_ssize_t outer, Py_ssize_t n, Py_ssize_t inner, Py_ssize_t p_step, Py_ssize_t q_step,
    Py_ssize_t q_grad_step, Py_ssize_t p_grad_step, double unit, int threads
) noexcept nogil
