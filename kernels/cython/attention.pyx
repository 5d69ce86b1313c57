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

include "_simd.pxi"
include "_arrays.pxi"
include "_dtypes.pxi"
include "_threads.pxi"
include "_attention_tiles.pxi"
include "_attention_forward.pxi"
include "_attention_backward.pxi"


cdef void fill_problem(Problem* p, int dtype, const Attention* a) noexcept nogil:
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
    p.pairs = (
        HAS_BF16_PRODUCT and dtype == BF16 and p.width % 2 == 0 and p.value_width % 2 == 0
        and p.k.row % 4 == 0 and p.v.row % 4 == 0)


# ---- for Cython: see attention.pxd ----------------------------------------------------------

cdef int c_attention(int dtype, const Attention* a, int threads) noexcept nogil:
    cdef Problem p
    fill_problem(&p, dtype, a)
    if dtype == F32:
        return typed_forward(&p, <const float*>NULL, threads)
    if dtype == F64:
        return typed_forward(&p, <const double*>NULL, threads)
    if dtype == F16:
        return typed_forward(&p, <const f16*>NULL, threads)
    if dtype == BF16:
        return typed_forward(&p, <const bf16*>NULL, threads)
    return NO_DTYPE


cdef int c_attention_backward(
    int dtype, const Attention* a, const AttentionGradient* g, int threads
) noexcept nogil:
    cdef Problem p
    fill_problem(&p, dtype, a)
    if dtype == F32:
        return typed_backward(&p, g, <const float*>NULL, threads)
    if dtype == F64:
        return typed_backward(&p, g, <const double*>NULL, threads)
    if dtype == F16:
        return typed_backward(&p, g, <const f16*>NULL, threads)
    if dtype == BF16:
        return typed_backward(&p, g, <const bf16*>NULL, threads)
    return NO_DTYPE


# ---- for Python -----------------------------------------------------------------------------

cdef Heads heads_of(object array, int axes):
    cdef Heads a
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
    a.q = heads_of(q, axes)
    a.k = heads_of(k, axes)
    a.v = heads_of(v, axes)
    a.out = heads_of(out, axes)
    a.lse = heads_of(lse, axes)
    a.mask = heads_of(mask, axes)
    a.bool_mask = mask is not None and cnp.PyArray_TYPE(mask) == cnp.NPY_BOOL
    return a


def attention(q, k, v, mask, spans, out, lse, *, double scale, Py_ssize_t left, Py_ssize_t right,
              double softcap, int threads):
    cdef Attention a = attention_of(q, k, v, mask, spans, out, lse, scale, left, right, softcap)
    cdef int dtype = dtype_of(q), result
    with nogil:
        result = c_attention(dtype, &a, threads)
    done(result)


def attention_backward(grad_out, q, k, v, mask, spans, out, lse, dq, dk, dv, dmask, *,
                       double scale, Py_ssize_t left, Py_ssize_t right, double softcap,
                       int threads):
    cdef Attention a = attention_of(q, k, v, mask, spans, out, lse, scale, left, right, softcap)
    cdef AttentionGradient g
    cdef int dtype = dtype_of(q), result
    g.grad_out = heads_of(grad_out, a.axes)
    g.dq = heads_of(dq, a.axes)
    g.dk = heads_of(dk, a.axes)
    g.dv = heads_of(dv, a.axes)
    g.dmask = heads_of(dmask, a.axes)
    with nogil:
        result = c_attention_backward(dtype, &a, &g, threads)
    done(result)
