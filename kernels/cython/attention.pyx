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
include "_threads.pxi"
include "_attention_tiles.pxi"
include "_attention_forward.pxi"
include "_attention_backward.pxi"


cdef fill_problem(
    Problem* p, cnp.ndarray q, k, v, mask, cnp.ndarray spans, out, lse, double scale,
    Py_ssize_t left, Py_ssize_t right, double softcap
):
    cdef int axes = cnp.PyArray_NDIM(q) - 3
    p.axes = axes
    p.shape = <const Py_ssize_t*>cnp.PyArray_DIMS(q)
    p.batches = cnp.PyArray_DIM(spans, 0)
    p.heads = cnp.PyArray_DIM(q, axes)
    p.kv_heads = cnp.PyArray_DIM(k, axes)
    p.group = p.heads // p.kv_heads if p.kv_heads else 1
    p.width = cnp.PyArray_DIM(q, axes + 2)
    p.value_width = cnp.PyArray_DIM(v, axes + 2)
    p.spans = <const int64_t*>cnp.PyArray_DATA(spans)
    p.scale = scale
    p.softcap = softcap
    p.left = left
    p.right = right
    p.q = heads_of(q, axes)
    p.k = heads_of(k, axes)
    p.v = heads_of(v, axes)
    p.out = heads_of(out, axes)
    p.lse.data = NULL
    if lse is not None:
        p.lse = heads_of(lse, axes)
    p.masked = mask is not None
    p.mask_of_bytes = False
    if p.masked:
        p.mask = heads_of(mask, axes)
        p.mask_of_bytes = cnp.PyArray_TYPE(mask) == cnp.NPY_BOOL
    p.pairs = (
        HAS_BF16_PRODUCT and cnp.PyArray_TYPE(q) == cnp.NPY_UINT16 and p.width % 2 == 0
        and p.value_width % 2 == 0 and p.k.row % 4 == 0 and p.v.row % 4 == 0)


def attention(q, k, v, mask, spans, out, lse, *, double scale, Py_ssize_t left, Py_ssize_t right,
              double softcap, int threads):
    cdef Problem p
    cdef int dtype = cnp.PyArray_TYPE(q)
    fill_problem(&p, q, k, v, mask, spans, out, lse, scale, left, right, softcap)
    if dtype == cnp.NPY_FLOAT32:
        typed_forward(&p, <const float*>NULL, threads)
    elif dtype == cnp.NPY_FLOAT64:
        typed_forward(&p, <const double*>NULL, threads)
    elif dtype == cnp.NPY_FLOAT16:
        typed_forward(&p, <const f16*>NULL, threads)
    elif dtype == cnp.NPY_UINT16:
        typed_forward(&p, <const bf16*>NULL, threads)
    else:
        raise TypeError(f"no kernel for dtype {q.dtype}")


def attention_backward(grad_out, q, k, v, mask, spans, out, lse, dq, dk, dv, dmask, *,
                       double scale, Py_ssize_t left, Py_ssize_t right, double softcap,
                       int threads):
    cdef Problem p
    cdef Gradient g
    cdef int dtype = cnp.PyArray_TYPE(q)
    fill_problem(&p, q, k, v, mask, spans, out, lse, scale, left, right, softcap)
    g.grad_out = heads_of(grad_out, p.axes)
    g.dq = heads_of(dq, p.axes)
    g.dk = heads_of(dk, p.axes)
    g.dv = heads_of(dv, p.axes)
    g.dmask.data = NULL
    if dmask is not None:
        g.dmask = heads_of(dmask, p.axes)
    if dtype == cnp.NPY_FLOAT32:
        typed_backward(&p, &g, <const float*>NULL, threads)
    elif dtype == cnp.NPY_FLOAT64:
        typed_backward(&p, &g, <const double*>NULL, threads)
    elif dtype == cnp.NPY_FLOAT16:
        typed_backward(&p, &g, <const f16*>NULL, threads)
    elif dtype == cnp.NPY_UINT16:
        typed_backward(&p, &g, <const bf16*>NULL, threads)
    else:
        raise TypeError(f"no kernel for dtype {q.dtype}")
