"""attention for Cython code; first read _c_interface.pxd.

    cdef Attention a
    memset(&a, 0, sizeof(a))  # the defaults
    a.q.data, a.q.head, a.q.row = q, queries * width * 4, width * 4  # and so on for k, v and out
    a.heads, a.queries, a.keys, a.width, a.value_width = heads, queries, keys, width, width
    a.scale = 1 / sqrt(width)
    with nogil:
        failed = c_attention(F32, &a, threads)

Strides, too, are aligned to the elements. No output overlaps anything. Small problems are computed
by one thread.
"""

from libc.stdint cimport int64_t

from ._c_interface cimport BF16, CONTRACT, F16, F32, F64

cdef struct AttentionArray:
    # An array (batch axes..., heads, rows, numbers). Strides are in bytes, as in Py_buffer: arrays
    # of several dtypes meet here. They may be 0 for an input that is broadcast.
    void* data
    const Py_ssize_t* batch  # the strides of the batch axes; not read where there are none
    Py_ssize_t head
    Py_ssize_t row
    Py_ssize_t item  # of mask and dmask: from key to key, or 0; elsewhere numbers are contiguous

cdef struct Attention:
    AttentionArray q  # (batch..., heads, queries, width)
    AttentionArray k  # (batch..., kv_heads, keys, width)
    AttentionArray v  # (batch..., kv_heads, keys, value_width)
    AttentionArray out  # (batch..., heads, queries, value_width); an input of the backward
    # (batch..., heads, queries), the logsumexp of the scores, in the compute dtype: double for F64,
    # else float. Forward: data may be NULL. Backward: an input, of these keys.
    AttentionArray lse
    # (batch..., heads, queries, keys), or data is NULL. It is added to the scores; or, with
    # bool_mask, has one byte for each, 1 where a query sees a key. item is the size of an element,
    # or 0.
    AttentionArray mask
    bint bool_mask

    int axes  # how many batch axes there are, 0 for a single entry
    const Py_ssize_t* shape  # their sizes; not read where there are none
    Py_ssize_t heads
    Py_ssize_t kv_heads  # a divisor of heads; 0 for as many. heads / kv_heads neighbours share one
    Py_ssize_t width
    Py_ssize_t value_width

    # (batch entries, 5): for each its first query and the one after the last, the same of its keys,
    # and the position of its first query among these keys. Entries of different lengths may lie
    # behind each other on the axes of queries and keys: then the batch axis has stride 0. NULL for
    # (0, queries, 0, keys, 0) everywhere; only then are the next two read.
    const int64_t* spans
    Py_ssize_t queries
    Py_ssize_t keys

    double scale  # of q k^T, often 1 / sqrt(width). Has no default: 0 is 0
    double softcap  # scores become softcap * tanh(score / softcap); 0 for none
    # With `windowed`, a query at position p sees the keys from p - left to p + right; -1 for no
    # bound. (-1, 0) is causal.
    bint windowed
    Py_ssize_t left
    Py_ssize_t right

cdef struct AttentionGradient:
    AttentionArray grad_out  # as out
    AttentionArray dq  # as q, dk as k, dv as v
    AttentionArray dk  # must hold zeros
    AttentionArray dv  # must hold zeros
    # In the compute dtype, or data is NULL. It is added to; with strides of 0, several sums may
    # meet in one place.
    AttentionArray dmask

cdef int c_attention(int dtype, const Attention* a, int threads) noexcept nogil

cdef int c_attention_backward(
    int dtype, const Attention* a, const AttentionGradient* g, int threads
) noexcept nogil
