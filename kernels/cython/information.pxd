"""Entropies, divergences and mutual information for Cython code; first read _c_interface.pxd.

    cdef Information a
    memset(&a, 0, sizeof(a))
    a.p, a.out, a.outer, a.n = p, out, rows, outcomes
    with nogil:
        c_entropy(F32, &a, threads)
"""

from ._c_interface cimport BF16, CONTRACT, F16, F32, F64

cdef struct Information:
    # IN (outer, n, inner): probabilities or weights, which need not add up to 1; or logits. Of
    # tables: `outer` of them, each with n rows and `inner` columns
    const void* p
    const void* q  # IN (outer, n, inner): the same of the second distribution
    void* out  # OUT (outer, inner), compute dtype, overlaps nothing; of tables (outer,)
    void* p_grad  # OUT (outer, n, inner): of each result, for the logits p
    void* q_grad  # OUT (outer, n, inner): for the logits q
    Py_ssize_t outer, n, inner
    Py_ssize_t p_step, q_step, p_grad_step, q_grad_step
    bint p_broadcast, q_broadcast  # one plane (n, inner) serves all; its step is not read
    double unit  # divides the results, 0 for 1: nats. log(2) gives bits
    bint exponential  # of c_entropy and c_cross_entropy_of: exp of the nats instead

cdef int c_entropy(int dtype, const Information* a, int threads) noexcept nogil
cdef int c_cross_entropy_of(int dtype, const Information* a, int threads) noexcept nogil
cdef int c_kl_divergence(int dtype, const Information* a, int threads) noexcept nogil
cdef int c_js_divergence(int dtype, const Information* a, int threads) noexcept nogil

# Of tables: the entropy of the column given the row, and the mutual information of the two. A
# table is computed by one thread.
cdef int c_conditional_entropy(int dtype, const Information* a, int threads) noexcept nogil
cdef int c_mutual_information(int dtype, const Information* a, int threads) noexcept nogil

# Of logits; with p_grad for the entropy, and with q_grad and, if it is not NULL, p_grad for KL.
cdef int c_entropy_from_logits(int dtype, const Information* a, int threads) noexcept nogil
cdef int c_entropy_from_logits_with_grad(
    int dtype, const Information* a, int threads
) noexcept nogil
cdef int c_kl_divergence_from_logits(int dtype, const Information* a, int threads) noexcept nogil
cdef int c_kl_divergence_from_logits_with_grad(
    int dtype, const Information* a, int threads
) noexcept nogil
