"""Tiles of queries against blocks of keys: what the forward and the backward share.

The queries of a tile lie side by side in the lanes. Then no key and no value is transposed or
packed: their numbers are broadcast from where they lie, the scores have the keys below each other
(so maxima and sums over keys need no shuffling), and the weights are the right operand of the
product with the values as they are. Only the queries are transposed, once per tile. Heads that
share keys fill a tile together where there are few queries.

Rejected: keys in the lanes (the usual way), which transposes every block of keys for every tile of
queries, reduces across lanes, and repacks the weights for the second product.

Scores are kept in base 2: one factor, scale * log2(e), is multiplied in, and exp becomes exp2.
"""

from libc.math cimport exp2, fabs, log
from libc.stdint cimport int64_t
from libc.stdlib cimport calloc
from libc.string cimport memcpy, memset

include "_products.pxi"

cdef extern from "products.h" nogil:
    cdef cppclass compute[T]:  # the type in which T is computed; only pointers to it are used
        pass

    void store_lanes[T](T* const*, Py_ssize_t, const vector[T]*, Py_ssize_t)
    vector[T] row_products[T](const T*, Py_ssize_t, Py_ssize_t, const compute[T]*, Py_ssize_t)
    vector[T] load_mask[T](const T*, const void*, bint, Py_ssize_t)
    void load_mask_lanes[T](const T*, const char* const*, bint, Py_ssize_t, Py_ssize_t, Py_ssize_t,
                            vector[T]*, Py_ssize_t)
    vector[T] where_between[T](const T*, vector[T], vector[T], vector[T], vector[T])
    vector[T] count_up[T](const T*)

cdef enum:
    KEYS = 96  # in a block: with 64 queries the weights take 24 KB; a multiple of TILE_ROWS
    MOST_LANES = 64
    DEEPEST = 64  # axes of a NumPy array

cdef double LARGE = 1 << 16  # scores, in base 2

cdef double LOG2_E = 1.4426950408889634, LN_2 = 0.6931471805599453

cdef struct Problem:  # an Attention of attention.pxd, without defaults
    int axes  # of the batch
    const Py_ssize_t* shape
    Py_ssize_t batches, heads, kv_heads, group, width, value_width
    const int64_t* spans  # (batches, 5), see kernels/__init__.py
    Py_ssize_t span_step  # from one to the next: 5, or 0 where there is one for all
    int64_t[5] whole  # which is this
    double scale, softcap
    Py_ssize_t left, right  # of the window, -1 without bound
    AttentionArray q, k, v, out, lse, mask
    bint masked, mask_of_bytes
    bint pairs  # products of bfloat16 pairs

cdef struct Tile:
    Py_ssize_t batch, kv_head, head  # head: of the first query
    Py_ssize_t length, first, rows  # queries of a head; of this tile the first, and their number
    Py_ssize_t columns  # rows, rounded up to whole vectors
    Py_ssize_t low, high  # the keys that any row may see, [low, high)
    Py_ssize_t full_low, full_high  # the keys that every row may see
    bint summed  # of the backward: whether a row's lse is too large to give its weights
    int64_t lows[MOST_LANES]
    int64_t highs[MOST_LANES]

cdef struct Work:  # a thread's memory
    void* queries  # (width, lanes), or pairs of it
    void* scores  # (KEYS, lanes)
    void* weights  # the same as bfloat16 pairs
    void* mask  # (KEYS, lanes)
    void* result  # (value_width, lanes)
    void* maxima  # (lanes)
    void* totals  # (lanes)
    void* keys  # (KEYS, width) where the storage type is not computed in
    void* values  # (KEYS, value_width), or pairs of it
    void* part  # of the forward, where the keys are not split
    # and for the backward:
    void* grad  # (value_width, lanes): grad_out
    void* query_rows  # (lanes, width), or pairs of rows
    void* grad_rows  # (lanes, value_width), or pairs of rows
    void* slope  # (KEYS, lanes): d(score) / d(score before softcap)
    void* grad_scores  # (KEYS, lanes)
    void* grad_queries  # (width, lanes)
    void* norms  # (NORMS, lanes), see _attention_backward.pxi
    void* grad_keys  # (CHUNK, width), where dk is not computed in
    void* grad_values  # (CHUNK, value_width)


cdef inline char* batch_at(
    const Problem* p, const AttentionArray* a, Py_ssize_t batch
) noexcept nogil:
    """Where the first head of a batch entry lies."""
    cdef char* at = <char*>a.data
    cdef int axis
    for axis in range(p.axes - 1, -1, -1):
        at += batch % p.shape[axis] * a.batch[axis]
        batch = batch // p.shape[axis]
    return at


cdef inline Py_ssize_t lanes_of(const real* like) noexcept nogil:
    return TILE_VECTORS * lanes(like)


cdef inline const int64_t* span(const Problem* p, Py_ssize_t batch) noexcept nogil:
    return p.spans + p.span_step * batch


cdef inline Py_ssize_t queries_of(const Problem* p, Py_ssize_t batch) noexcept nogil:
    return span(p, batch)[1] - span(p, batch)[0]


cdef inline Py_ssize_t keys_of(const Problem* p, Py_ssize_t batch) noexcept nogil:
    return span(p, batch)[3] - span(p, batch)[2]


cdef inline Py_ssize_t together(
    const Problem* p, Py_ssize_t batch, Py_ssize_t width
) noexcept nogil:
    """Heads that share a tile: those of a group, where the queries of one fill at most half."""
    return p.group if 2 * queries_of(p, batch) <= width else 1


cdef inline Py_ssize_t tiles_of(
    const Problem* p, Py_ssize_t batch, Py_ssize_t width
) noexcept nogil:
    """Tiles of one key head of a batch entry."""
    cdef Py_ssize_t heads = together(p, batch, width)
    if heads == 0:  # key heads without queries
        return 0
    return p.group // heads * ((heads * queries_of(p, batch) + width - 1) // width)


cdef void make_tile(
    const Problem* p, Tile* tile, Py_ssize_t batch, Py_ssize_t index, Py_ssize_t together,
    Py_ssize_t width, Py_ssize_t lanes
) noexcept nogil:
    """Tile number `index` of a batch entry, of `together` heads, and which keys its queries see."""
    cdef Py_ssize_t length = queries_of(p, batch), keys = keys_of(p, batch), r, at, row
    cdef Py_ssize_t count = (together * length + width - 1) // width
    tile.batch = batch
    tile.head = index // count * together
    tile.kv_head = tile.head // p.group
    tile.length = length
    tile.first = index % count * width
    tile.rows = min(width, together * length - tile.first)
    tile.columns = (tile.rows + lanes - 1) // lanes * lanes
    tile.low = keys
    tile.high = 0
    tile.full_low = 0
    tile.full_high = keys
    row = tile.first % length
    for r in range(tile.columns):
        at = row + span(p, batch)[4]
        if r < tile.rows - 1:  # lanes beyond the last row are like it
            row = row + 1 if row + 1 < length else 0
        tile.lows[r] = max(0, at - p.left) if p.left >= 0 else 0
        tile.highs[r] = min(keys, at + p.right + 1) if p.right >= 0 else keys
        if tile.lows[r] < tile.highs[r]:
            tile.low = min(tile.low, <Py_ssize_t>tile.lows[r])
            tile.high = max(tile.high, <Py_ssize_t>tile.highs[r])
        tile.full_low = max(tile.full_low, <Py_ssize_t>tile.lows[r])
        tile.full_high = min(tile.full_high, <Py_ssize_t>tile.highs[r])
    tile.high = max(tile.high, tile.low)


cdef inline void rows_of(
    const Problem* p, const AttentionArray* a, const Tile* tile, char** rows
) noexcept nogil:
    """Where the rows of the tile lie in an array of queries; NULL beyond the last."""
    cdef char* at = (batch_at(p, a, tile.batch) + tile.head * a.head
                     + span(p, tile.batch)[0] * a.row)
    cdef Py_ssize_t r, head = tile.first // tile.length, row = tile.first % tile.length
    for r in range(tile.columns):
        rows[r] = at + head * a.head + row * a.row if r < tile.rows else NULL
        row += 1
        if row == tile.length:
            row = 0
            head += 1


cdef inline char* key_at(
    const Problem* p, const AttentionArray* a, const Tile* tile, Py_ssize_t key
) noexcept nogil:
    return (batch_at(p, a, tile.batch) + tile.kv_head * a.head
            + (span(p, tile.batch)[2] + key) * a.row)


cdef void rows_to_lanes(
    const Problem* p, const AttentionArray* a, const Tile* tile, const real* like, Py_ssize_t n,
    void* to
) noexcept nogil:
    """Rows of n numbers to (n, lanes)."""
    cdef char* rows[MOST_LANES]
    cdef Py_ssize_t w = lanes(like), c
    rows_of(p, a, tile, rows)
    for c in range(tile.columns // w):
        load_lanes(<const real**>(rows + c * w), 0, n, <vector[real]*>to + c, TILE_VECTORS)


cdef void lanes_to_pairs(void* memory, Py_ssize_t n, Py_ssize_t columns, void* to) noexcept nogil:
    """(n, lanes) of float to (n / 2, lanes) of bfloat16 pairs along n; an odd last row meets 0."""
    cdef float* x = <float*>memory
    cdef Py_ssize_t w = lanes(x), width = lanes_of(x), k, c
    cdef vector[float] odd
    for k in range((n + 1) // 2):
        for c in range(columns // w):
            odd = splat(x, 0.0)
            if 2 * k + 1 < n:
                odd = load(x + (2 * k + 1) * width + c * w)
            store_pairs(x, to, k * width + c * w, load(x + 2 * k * width + c * w), odd, w)


cdef inline void widen_rows(
    const real* x, Py_ssize_t stride, Py_ssize_t rows, Py_ssize_t n, void* to
) noexcept nogil:
    """Rows of the storage type to (rows, n) of the type that is computed in."""
    cdef Py_ssize_t w = lanes(x), r, k, left
    for r in range(rows):
        for k in range((n + w - 1) // w):
            left = min(w, n - k * w)
            store_wide(x, to, r * n + k * w, load_n(x + r * stride + k * w, left, 0.0), left)


cdef inline void pair_rows(
    const real* x, Py_ssize_t stride, Py_ssize_t rows, Py_ssize_t n, void* to
) noexcept nogil:
    """Rows of bfloat16 to (rows / 2, n) of pairs of neighbouring rows; an odd last one meets 0."""
    cdef Py_ssize_t w = lanes(x), r, k, left
    cdef vector[real] odd
    for r in range((rows + 1) // 2):
        for k in range((n + w - 1) // w):
            left = min(w, n - k * w)
            odd = splat(x, 0.0)
            if 2 * r + 1 < rows:
                odd = load_n(x + (2 * r + 1) * stride + k * w, left, 0.0)
            store_pairs(x, to, r * n + k * w, load_n(x + 2 * r * stride + k * w, left, 0.0), odd,
                        left)


cdef inline void times_keys(
    const Problem* p, const real* like, const AttentionArray* keys, const Tile* tile,
    Py_ssize_t first, Py_ssize_t n, Py_ssize_t width, const void* right, void* scratch, void* to
) noexcept nogil:
    """(n, lanes) = n rows of the keys (or values) from `first`, times `right` (width, lanes)."""
    cdef const real* x = <const real*>key_at(p, keys, tile, first)
    cdef Py_ssize_t stride = keys.row // <Py_ssize_t>sizeof(real), all = lanes_of(like)
    cdef compute[real]* result = <compute[real]*>to
    if p.pairs:
        product(<bf16_pair*>x, stride // 2, 1, n, <bf16_pair*>right, all, width // 2,
                <float*>to, all, tile.columns, False)
    elif real is double or real is float:
        product(x, stride, 1, n, <real*>right, all, width, <real*>to, all, tile.columns, False)
    else:
        widen_rows(x, stride, n, width, scratch)
        product(<compute[real]*>scratch, width, 1, n, <compute[real]*>right, all, width, result,
                all, tile.columns, False)


cdef inline void add_keys_times(
    const Problem* p, const real* like, const AttentionArray* keys, const Tile* tile,
    Py_ssize_t first, Py_ssize_t n, Py_ssize_t width, const void* right, void* scratch, void* to
) noexcept nogil:
    """(width, lanes) += transpose of n rows of the keys (or values), times `right` (n, lanes)."""
    cdef const real* x = <const real*>key_at(p, keys, tile, first)
    cdef Py_ssize_t stride = keys.row // <Py_ssize_t>sizeof(real), all = lanes_of(like)
    if p.pairs:
        pair_rows(x, stride, n, width, scratch)
        product(<bf16_pair*>scratch, 1, width, width, <bf16_pair*>right, all, (n + 1) // 2,
                <float*>to, all, tile.columns, True)
    elif real is double or real is float:
        product(x, 1, stride, width, <real*>right, all, n, <real*>to, all, tile.columns, True)
    else:
        widen_rows(x, stride, n, width, scratch)
        product(<compute[real]*>scratch, 1, width, width, <compute[real]*>right, all, n,
                <compute[real]*>to, all, tile.columns, True)


cdef bint block_mask(
    const Problem* p, const real* like, const Tile* tile, Py_ssize_t first, Py_ssize_t n, void* to
) noexcept nogil:
    """The mask of a block, (n, lanes); whether it allows any key."""
    cdef char* rows[MOST_LANES]
    cdef Py_ssize_t w = lanes(like), step = TILE_VECTORS, c, r, k
    cdef vector[real]* m = <vector[real]*>to
    cdef vector[real] zero = splat(like, 0.0), one = splat(like, 1.0), any = zero
    rows_of(p, &p.mask, tile, rows)
    for r in range(tile.rows, tile.columns):
        rows[r] = rows[tile.rows - 1]
    for c in range(tile.columns // w):
        load_mask_lanes(like, <const char**>(rows + c * w), p.mask_of_bytes, p.mask.item, first, n,
                        m + c, step)
        for k in range(n):
            any = vmax(any, where_equal(m[k * step + c], splat(like, -INFINITY), zero, one))
    return reduce_max(any) > 0


cdef bint scores(
    const Problem* p, const real* like, const Tile* tile, const Work* work, Py_ssize_t first,
    Py_ssize_t n, vector[real]* maxima, vector[real]* factor
) noexcept nogil:
    """work.scores, times `factor`, are the scores of n keys from `first`, in base 2, -inf where not
    allowed; `maxima` their maxima. False where the mask allows none: nothing is computed then."""
    cdef Py_ssize_t w = lanes(like), step = TILE_VECTORS, c, k
    cdef bint partly = first < tile.full_low or first + n > tile.full_high
    cdef vector[real]* s = <vector[real]*>work.scores
    cdef vector[real]* m = <vector[real]*>work.mask
    cdef vector[real]* slope = <vector[real]*>work.slope
    cdef vector[real] scale = splat(like, p.scale * LOG2_E), cap = splat(like, p.softcap * LOG2_E)
    cdef vector[real] log2_e = splat(like, LOG2_E), low = scale, high = scale, row_max, largest, v
    cdef vector[real] lowest = splat(like, -INFINITY), finite = splat(like, -largest_of(like))
    if p.masked and not block_mask(p, like, tile, first, n, m):
        return False
    times_keys(p, like, &p.k, tile, first, n, p.width, work.queries, work.keys, work.scores)
    if not (partly or p.masked or p.softcap != 0 or p.scale <= 0):
        largest = splat(like, 0.0)
        for c in range(tile.columns // w):
            row_max = splat(like, -INFINITY)
            for k in range(n):
                row_max = vmax(s[k * step + c], row_max)
            maxima[c] = row_max * scale
            row_max = where_equal(maxima[c], lowest, splat(like, 0.0), maxima[c])
            largest = vmax(vmax(row_max, splat(like, 0.0) - row_max), largest)
        # The factor can wait for exp2, but where the rounding of the maximum has become visible.
        if reduce_max(largest) < LARGE:
            factor[0] = scale
            return True
    factor[0] = splat(like, 1.0)
    if p.softcap != 0:
        scale = splat(like, p.scale / p.softcap)
    for c in range(tile.columns // w):
        row_max = splat(like, -INFINITY)
        if partly:
            bounds(like, tile, first, n, c * w, &low, &high)
        for k in range(n):
            v = s[k * step + c] * scale
            if p.softcap != 0:
                v = tan_h(like, v)
                if slope != NULL:
                    slope[k * step + c] = splat(like, 1.0) - v * v
                v = cap * v
            if p.masked:
                # A mask of the lowest number is not -inf, though its product with log2(e) is.
                v = where_equal(m[k * step + c], lowest, lowest,
                                vmax(finite, mul_add(m[k * step + c], log2_e, v)))
            if partly:
                v = where_between(like, v, splat(like, k), low, high)
            s[k * step + c] = v
            row_max = vmax(v, row_max)
        maxima[c] = row_max
    return True


cdef inline void bounds(
    const real* like, const Tile* tile, Py_ssize_t first, Py_ssize_t n, Py_ssize_t lane,
    vector[real]* low, vector[real]* high
) noexcept nogil:
    """Which keys of a block, counted from 0, the lanes from `lane` may see."""
    cdef Py_ssize_t w = lanes(like), r
    for r in range(w):
        put_wide(like, low, r, max(-1, min(n, tile.lows[lane + r] - first)))
        put_wide(like, high, r, max(-1, min(n, tile.highs[lane + r] - first)))
