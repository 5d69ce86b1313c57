# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: binding=True
"""Scaled dot-product attention and its gradient, without an array of queries by keys.

Read _attention_tiles.pxi first. The forward goes over the keys in blocks and keeps, for each
query, the maximum of its scores, the sum of the weights below it, and the weighted sum of the
values, which are rescaled when the maximum grows (Milakov & Gimelshein 2018, Dao et al. 2022).
Where there are too few tiles to share, the keys are split: each part leaves its three, and these
are merged in order. How work is cut depends on the shapes alone, so the result does not depend on
the threads.
"""

cdef struct Arguments:  # of the forward, or of the backward
    const Attention* attention
    const AttentionGradient* gradient

cdef enum:  # the ops
    ATTENTION
    ATTENTION_BACKWARD

include "_simd.pxi"
include "_arrays.pxi"
include "_calls.pxi"
include "_threads.pxi"
include "_attention_tiles.pxi"
include "_attention_forward.pxi"
include "_attention_backward.pxi"


cdef void fill_problem(Problem* p, const Attention* a, const real* like) noexcept nogil:
    cdef int axis
    p.axes = a.axes
    p.shape = a.shape
    p.batches = 1
    for axis in range(a.axes):
        p.batches *= a.shape[axis]
    p.heads = a.heads
    p.kv_heads = a.kv_heads if a.kv_heads else a.heads
    p.group = p.heads // p.kv_heads if p.kv_heads else 1
    p.width = a.width
    p.value_width = a.value_width
    p.spans = a.spans
    p.span_step = 5
    if a.spans == NULL:
        memset(p.whole, 0, sizeof(p.whole))
        p.whole[1] = a.queries
        p.whole[3] = a.keys
        p.spans = p.whole
        p.span_step = 0
    p.scale = a.scale
    p.softcap = a.softcap
    p.left = a.left if a.windowed else -1
    p.right = a.right if a.windowed else -1
    p.q = a.q
    p.k = a.k
    p.v = a.v
    p.out = a.out
    p.lse = a.lse
    p.mask = a.mask
    p.masked = a.mask.data != NULL
    p.mask_of_bytes = a.bool_mask
    p.pairs = False
    if real is bf16:
        p.pairs = (HAS_BF16_PRODUCT and p.width % 2 == 0 and p.value_width % 2 == 0
                   and p.k.row % 4 == 0 and p.v.row % 4 == 0)


cdef int typed(int op, const Arguments* a, const real* like, int threads) noexcept nogil:
    cdef Problem p
    fill_problem(&p, a.attention, like)
    if op == ATTENTION:
        return forward(&p, like, threads)
    return backward(&p, a.gradient, like, threads)


# ---- for Cython: see attention.pxd ----------------------------------------------------------

cdef int c_attention(int dtype, const Attention* a, int threads) noexcept nogil:
    cdef Arguments all
    all.attention = a
    all.gradient = NULL
    return by_dtype(ATTENTION, dtype, &all, threads)


cdef int c_attention_backward(
    int dtype, const Attention* a, const AttentionGradient* g, int threads
) noexcept nogil:
    cdef Arguments all
    all.attention = a
    all.gradient = g
    return by_dtype(ATTENTION_BACKWARD, dtype, &all, threads)


# ---- for Python -----------------------------------------------------------------------------

cdef AttentionArray array_of(object array, int axes):
    cdef AttentionArray a
    cdef cnp.ndarray n = array
    memset(&a, 0, sizeof(a))
    if array is None:
        return a
    a.data = cnp.PyArray_DATA(n)
    a.batch = <const Py_ssize_t*>cnp.PyArray_STRIDES(n)
    a.head = a.batch[axes]
    a.row = a.batch[axes + 1]
    a.item = a.batch[axes + 2] if cnp.PyArray_NDIM(n) > axes + 2 else 0
    return a


cdef Attention attention_of(
    cnp.ndarray q, k, v, mask, spans, out, lse, double scale, Py_ssize_t left, Py_ssize_t right,
    double softcap
):
    cdef Attention a
    cdef int axes = cnp.PyArray_NDIM(q) - 3
    memset(&a, 0, sizeof(a))
    a.axes = axes
    a.shape = <const Py_ssize_t*>cnp.PyArray_DIMS(q)
    a.heads = cnp.PyArray_DIM(q, axes)
    a.kv_heads = cnp.PyArray_DIM(k, axes)
    a.width = cnp.PyArray_DIM(q, axes + 2)
    a.value_width = cnp.PyArray_DIM(v, axes + 2)
    a.spans = <const int64_t*>data(spans)
    a.scale = scale
    a.softcap = softcap
    a.windowed = True
    a.left = left
    a.right = right
    a.q = array_of(q, axes)
    a.k = array_of(k, axes)
    a.v = array_of(v, axes)
    a.out = array_of(out, axes)
    a.lse = array_of(lse, axes)
    a.mask = array_of(mask, axes)
    a.bool_mask = mask is not None and cnp.PyArray_TYPE(mask) == cnp.NPY_BOOL
    return a


def attention(q, k, v, mask, spans, out, lse, *, double scale, Py_ssize_t left, Py_ssize_t right,
              double softcap, int threads):
    cdef Attention a = attention_of(q, k, v, mask, spans, out, lse, scale, left, right, softcap)
    cdef Arguments all
    all.attention = &a
    all.gradient = NULL
    from_python(ATTENTION, dtype_of(q), &all, threads)


def attention_backward(grad_out, q, k, v, mask, spans, out, lse, dq, dk, dv, dmask, *,
                       double scale, Py_ssize_t left, Py_ssize_t right, double softcap,
                       int threads):
    cdef Attention a = attention_of(q, k, v, mask, spans, out, lse, scale, left, right, softcap)
    cdef AttentionGradient g
    cdef Arguments all
    g.grad_out = array_of(grad_out, a.axes)
    g.dq = array_of(dq, a.axes)
    g.dk = array_of(dk, a.axes)
    g.dv = array_of(dv, a.axes)
    g.dmask = array_of(dmask, a.axes)
    all.attention = &a
    all.gradient = &g
    from_python(ATTENTION_BACKWARD, dtype_of(q), &all, threads)
