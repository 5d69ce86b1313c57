"""The forward: parts of tiles, and their merging.

A part is the result of a tile for some of the keys: for each of its rows the weighted sum of the
values, and behind it the maximum of the scores (in base 2) and the sum of the weights below it.
"""

from cython.parallel cimport prange, threadid
from libc.stdlib cimport free, malloc

cdef enum:
    FEW = 8  # up to so many queries go one by one: a tile's lanes would stay empty
    ENOUGH = 32  # tasks; with fewer, the keys are split
    SHORTEST_SPLIT = 512  # keys
    MOST_SPLITS = 32


cdef struct Plan:  # how the work is divided
    Py_ssize_t lanes, tiles, splits, part  # part: bytes of one
    const int64_t* first_tile  # (batches + 1,): of each batch entry
    char* parts  # (tiles, splits), where the keys are split
    Py_ssize_t memory  # bytes for each thread
    char* work


cdef inline Py_ssize_t few_rows(const Problem* p, Py_ssize_t batch) noexcept nogil:
    """The queries that share keys, where they are few; else 0."""
    cdef Py_ssize_t rows = p.group * queries_of(p, batch)
    return rows if rows <= FEW else 0


cdef inline Py_ssize_t padded(Py_ssize_t bytes) noexcept nogil:
    return (bytes + 127) // 64 * 64


cdef Py_ssize_t divide_memory(
    const Problem* p, const real* like, Work* work, char* memory
) noexcept nogil:
    """Divides a thread's memory; returns the bytes used."""
    cdef Py_ssize_t wide = 8 if real is double else 4, tile = lanes_of(like) * wide, used = 0
    cdef bint converts = not (real is double or real is float)
    work.queries = memory + used
    used += padded(max(p.width * tile, FEW * p.width * wide))
    work.scores = memory + used
    used += padded(KEYS * max(tile, FEW * wide))
    work.mask = memory + used
    used += padded(KEYS * tile if p.masked else 0)
    work.result = memory + used
    used += padded(p.value_width * tile)
    work.maxima = memory + used
    used += padded(tile)
    work.totals = memory + used
    used += padded(tile)
    work.weights = memory + used
    used += padded(max(KEYS, max(p.width, p.value_width)) * tile if p.pairs else 0)
    work.keys = memory + used
    used += padded(KEYS * p.width * wide if converts else 0)
    work.values = memory + used
    used += padded(KEYS * p.value_width * wide if converts else 0)
    work.part = memory + used
    used += padded(part_size(p, like))
    work.slope = NULL
    return used


cdef inline Py_ssize_t part_size(const Problem* p, const real* like) noexcept nogil:
    return lanes_of(like) * (p.value_width + 2) * (8 if real is double else 4)


# ---- a part of a tile -----------------------------------------------------------------------

cdef inline void weigh(
    const real* like, const Tile* tile, const Work* work, Py_ssize_t n, Py_ssize_t depth,
    vector[real]* block_maxima, vector[real] factor
) noexcept nogil:
    """work.scores = exp2(factor * scores - maximum); the sums are brought up to the new maximum."""
    cdef Py_ssize_t w = lanes(like), step = TILE_VECTORS, c, k
    cdef vector[real]* s = <vector[real]*>work.scores
    cdef vector[real]* maxima = <vector[real]*>work.maxima
    cdef vector[real]* totals = <vector[real]*>work.totals
    cdef vector[real]* result = <vector[real]*>work.result
    cdef vector[real] lowest = splat(like, -INFINITY), zero = splat(like, 0.0)
    cdef vector[real] one = splat(like, 1.0), row_max, minus_max, scale, even, odd, a, b
    for c in range(tile.columns // w):
        row_max = vmax(block_maxima[c], maxima[c])
        scale = maxima[c]
        maxima[c] = row_max
        # No key allowed so far: -inf - -inf is NaN.
        row_max = where_equal(row_max, lowest, zero, row_max)
        minus_max = zero - row_max
        scale = exp_2(like, scale - row_max)
        even = zero
        odd = zero
        for k in range(n // 2):
            a = exp_2(like, mul_add(s[2 * k * step + c], factor, minus_max))
            b = exp_2(like, mul_add(s[(2 * k + 1) * step + c], factor, minus_max))
            s[2 * k * step + c] = a
            s[(2 * k + 1) * step + c] = b
            even = even + a
            odd = odd + b
        if n % 2:
            a = exp_2(like, mul_add(s[(n - 1) * step + c], factor, minus_max))
            s[(n - 1) * step + c] = a
            even = even + a
        totals[c] = mul_add(totals[c], scale, even + odd)
        if reduce_max(one - scale) > 0:
            for k in range(depth):
                result[k * step + c] = result[k * step + c] * scale


cdef void attend(
    const Problem* p, const real* like, const Tile* tile, const Work* work, Py_ssize_t first,
    Py_ssize_t last, void* part
) noexcept nogil:
    """The keys from `first` to `last`, for a tile in lanes."""
    cdef Py_ssize_t w = lanes(like), step = TILE_VECTORS, k, c, r, n
    cdef vector[real] block_maxima[TILE_VECTORS]
    cdef vector[real] factor
    cdef vector[real]* maxima = <vector[real]*>work.maxima
    cdef vector[real]* totals = <vector[real]*>work.totals
    cdef vector[real]* result = <vector[real]*>work.result
    cdef compute[real]* rows[16]
    cdef Py_ssize_t width = p.value_width + 2
    for c in range(step):
        maxima[c] = splat(like, -INFINITY)
        totals[c] = splat(like, 0.0)
    memset(result, 0, p.value_width * step * sizeof(maxima[0]))
    if p.pairs:
        rows_to_lanes(p, &p.q, tile, like, p.width, work.weights)
        lanes_to_pairs(work.weights, p.width, tile.columns, work.queries)
    else:
        rows_to_lanes(p, &p.q, tile, like, p.width, work.queries)
    for k in range((last - first + KEYS - 1) // KEYS):
        n = min(KEYS, last - first - k * KEYS)
        if not scores(p, like, tile, work, first + k * KEYS, n, block_maxima, &factor):
            continue
        weigh(like, tile, work, n, p.value_width, block_maxima, factor)
        if p.pairs:
            lanes_to_pairs(work.scores, n, tile.columns, work.weights)
        add_keys_times(p, like, &p.v, tile, first + k * KEYS, n, p.value_width,
                       work.weights if p.pairs else work.scores, work.values, result)
    for c in range(tile.columns // w):
        for r in range(w):
            rows[r] = NULL
            if c * w + r < tile.rows:
                rows[r] = <compute[real]*>part + (c * w + r) * width
                k = (c * w + r) * width + p.value_width
                put_wide(like, part, k, get_wide(like, maxima, c * w + r))
                put_wide(like, part, k + 1, get_wide(like, totals, c * w + r))
        store_lanes(rows, p.value_width, <vector[compute[real]]*>result + c, step)


cdef void attend_few(
    const Problem* p, const real* like, const Tile* tile, const Work* work, Py_ssize_t first,
    Py_ssize_t last, void* part
) noexcept nogil:
    """The same for few rows, one by one, with the keys in the lanes: this is bound by memory."""
    cdef Py_ssize_t w = lanes(like), width = p.value_width + 2, block, start, n, r, k, i, left
    cdef Py_ssize_t stride = p.k.row // <Py_ssize_t>sizeof(real)
    cdef const real* x
    cdef void* s = work.scores
    cdef vector[real] factor, cap = splat(like, p.softcap * LOG2_E), v, m, row_max, total
    cdef vector[real] finite = splat(like, -largest_of(like))
    cdef vector[real] lowest = splat(like, -INFINITY), log2_e = splat(like, LOG2_E)
    cdef double old, new, scale
    cdef char* rows[MOST_LANES]
    cdef char* masks[MOST_LANES]
    if p.masked:
        rows_of(p, &p.mask, tile, masks)
    factor = splat(like, p.scale * LOG2_E if p.softcap == 0 else p.scale / p.softcap)
    rows_of(p, &p.q, tile, rows)
    for r in range(tile.rows):
        widen_rows(<const real*>rows[r], 0, 1, p.width,
                   <compute[real]*>work.queries + r * p.width)
        for k in range(width):
            put_wide(like, part, r * width + k, -INFINITY if k == p.value_width else 0)
    for block in range((last - first + KEYS - 1) // KEYS):
        start = first + block * KEYS
        n = min(KEYS, last - start)
        x = <const real*>key_at(p, &p.k, tile, start)
        for r in range(tile.rows):
            row_max = lowest
            for i in range((n + w - 1) // w):
                k = i * w
                left = min(w, n - k)
                v = factor * row_products(x + k * stride, stride, left,
                                          <compute[real]*>work.queries + r * p.width, p.width)
                if p.softcap != 0:
                    v = cap * tan_h(like, v)
                if p.masked:
                    m = few_mask(p, like, masks[r], start + k, left)
                    v = where_equal(m, lowest, lowest, vmax(finite, mul_add(m, log2_e, v)))
                v = where_between(
                    like, v, count_up(like) + splat(like, k),
                    splat(like, max(-1, min(n, tile.lows[r] - start))),
                    splat(like, max(-1, min(n, tile.highs[r] - start))))
                store_wide(like, s, r * KEYS + k, v, w)
                row_max = vmax(v, row_max)
            old = get_wide(like, part, r * width + p.value_width)
            new = max(old, reduce_max(row_max))
            put_wide(like, part, r * width + p.value_width, new)
            row_max = splat(like, new if new != -INFINITY else 0)
            total = splat(like, 0.0)
            for i in range((n + w - 1) // w):
                k = i * w
                v = exp_2(like, load_wide(like, s, r * KEYS + k, w) - row_max)
                store_wide(like, s, r * KEYS + k, v, w)
                total = total + v
            scale = exp2(old - new) if old != -INFINITY else 0
            put_wide(like, part, r * width + p.value_width + 1, reduce_add(total) + (
                get_wide(like, part, r * width + p.value_width + 1) * scale))
            if old != new:
                for i in range((p.value_width + w - 1) // w):
                    k = i * w
                    left = min(w, p.value_width - k)
                    v = load_wide(like, part, r * width + k, left) * splat(like, scale)
                    store_wide(like, part, r * width + k, v, left)
        product(<compute[real]*>s, KEYS, 1, tile.rows, <const real*>key_at(p, &p.v, tile, start),
                p.v.row // <Py_ssize_t>sizeof(real), n, <compute[real]*>part, width,
                p.value_width, True)


cdef inline vector[real] few_mask(
    const Problem* p, const real* like, const char* row, Py_ssize_t key, Py_ssize_t n
) noexcept nogil:
    """The mask of one row at n keys."""
    cdef vector[real] v
    if p.mask.item:
        return load_mask(like, row + key * p.mask.item, p.mask_of_bytes, n)
    v = load_mask(like, row, p.mask_of_bytes, 1)
    return splat(like, get_wide(like, &v, 0))


# ---- merging --------------------------------------------------------------------------------

cdef void merge_parts(
    const Problem* p, const real* like, const Tile* tile, const char* parts, Py_ssize_t count,
    Py_ssize_t size
) noexcept nogil:
    """The rows of a tile and their lse, from its parts in order."""
    cdef Py_ssize_t w = lanes(like), width = p.value_width + 2, r, i, j, k, left
    cdef double row_max, total, scale
    cdef real* out
    cdef vector[real] v
    cdef vector[real] scales[MOST_SPLITS]
    cdef char* rows[MOST_LANES]
    cdef char* norms[MOST_LANES]
    rows_of(p, &p.out, tile, rows)
    if p.lse.data != NULL:
        rows_of(p, &p.lse, tile, norms)
    for r in range(tile.rows):
        row_max = -INFINITY
        total = 0
        for i in range(count):
            row_max = max(row_max, get_wide(like, parts + i * size, r * width + p.value_width))
        for i in range(count):
            scale = get_wide(like, parts + i * size, r * width + p.value_width)
            # A part that saw no key has 0 to add, or NaN.
            scale = 1 if scale == -INFINITY or scale == row_max else exp2(scale - row_max)
            total += scale * get_wide(like, parts + i * size, r * width + p.value_width + 1)
            scales[i] = splat(like, scale)
        for i in range(count):  # no key allowed: 0
            scales[i] = scales[i] * splat(like, 1 / total if total != 0 else 0)
        out = <real*>rows[r]
        for j in range((p.value_width + w - 1) // w):
            k = j * w
            left = min(w, p.value_width - k)
            v = load_wide(like, parts, r * width + k, left) * scales[0]
            for i in range(1, count):
                v = mul_add(load_wide(like, parts + i * size, r * width + k, left), scales[i], v)
            store_n(out + k, v, left)
        if p.lse.data != NULL:
            put_wide(like, norms[r], 0, row_max * LN_2 + log(total) if total != 0 else -INFINITY)


# ---- over threads ---------------------------------------------------------------------------

cdef void run_task(
    const Problem* p, const real* like, const Plan* plan, Py_ssize_t number, char* memory
) noexcept nogil:
    """One split of one tile."""
    cdef Tile tile
    cdef Work work
    cdef Py_ssize_t split = number % plan.splits, first, last
    cdef char* part
    find_tile(p, like, plan, number // plan.splits, &tile)
    divide_memory(p, like, &work, memory)
    part = plan.parts + number * plan.part if plan.splits > 1 else <char*>work.part
    # Whole blocks for each split.
    last = ((tile.high - tile.low + KEYS - 1) // KEYS + plan.splits - 1) // plan.splits * KEYS
    first = min(tile.high, tile.low + split * last)
    last = min(tile.high, first + last)
    if few_rows(p, tile.batch):
        attend_few(p, like, &tile, &work, first, last, part)
    else:
        attend(p, like, &tile, &work, first, last, part)
    if plan.splits == 1:
        merge_parts(p, like, &tile, part, 1, plan.part)


cdef void find_tile(
    const Problem* p, const real* like, const Plan* plan, Py_ssize_t number, Tile* tile
) noexcept nogil:
    """Tile `number` of all: by bisection over the batch, whose entries may differ in length."""
    cdef Py_ssize_t low = 0, high = p.batches, middle
    while high - low > 1:
        middle = (low + high) // 2
        if plan.first_tile[middle] <= number:
            low = middle
        else:
            high = middle
    make_tile(p, tile, low, number - plan.first_tile[low], together(p, low, lanes_of(like)),
              lanes_of(like), lanes(like))


cdef void merge_task(
    const Problem* p, const real* like, const Plan* plan, Py_ssize_t number
) noexcept nogil:
    cdef Tile tile
    find_tile(p, like, plan, number, &tile)
    merge_parts(p, like, &tile, plan.parts + number * plan.splits * plan.part, plan.splits,
                plan.part)


cdef int64_t* count_tiles(const Problem* p, Py_ssize_t width) noexcept nogil:
    """(batches + 1,): the number of the first tile of each batch entry, and of all; or NULL."""
    cdef int64_t* first = <int64_t*>malloc((p.batches + 1) * sizeof(int64_t))
    cdef Py_ssize_t b
    if first == NULL:
        return NULL
    first[0] = 0
    for b in range(p.batches):
        first[b + 1] = first[b] + p.kv_heads * tiles_of(p, b, width)
    return first


cdef Py_ssize_t multiplications(const Problem* p) noexcept nogil:
    """Of the forward."""
    cdef Py_ssize_t pairs = 0, b
    for b in range(p.batches):
        pairs += queries_of(p, b) * keys_of(p, b)
    return pairs * p.heads * (p.width + p.value_width)


cdef int forward(const Problem* p, const real* like, int threads) noexcept nogil:
    cdef Plan plan
    cdef Work work
    cdef Py_ssize_t b, longest = 0, number
    cdef int num_threads
    plan.lanes = lanes_of(like)
    plan.first_tile = count_tiles(p, plan.lanes)
    if plan.first_tile == NULL:
        return NO_MEMORY
    plan.tiles = plan.first_tile[p.batches]
    for b in range(p.batches):
        longest = max(longest, keys_of(p, b))
    plan.splits = 1
    if 0 < plan.tiles < ENOUGH:
        plan.splits = max(1, min(min(ENOUGH // plan.tiles, longest // SHORTEST_SPLIT), MOST_SPLITS))
    plan.part = padded(part_size(p, like))
    plan.memory = divide_memory(p, like, &work, NULL)
    num_threads = threads_for(threads, multiplications(p) // 8)
    num_threads = max(1, min(num_threads, plan.tiles * plan.splits))
    plan.parts = NULL
    plan.work = <char*>malloc(num_threads * plan.memory + 64)
    if plan.splits > 1:
        plan.parts = <char*>malloc(plan.tiles * plan.splits * plan.part)
    if plan.work == NULL or (plan.splits > 1 and plan.parts == NULL):
        free(plan.work)
        free(plan.parts)
        free(<void*>plan.first_tile)
        return NO_MEMORY
    work.queries = <void*>((<size_t>plan.work + 63) & ~<size_t>63)
    if num_threads == 1:
        for number in range(plan.tiles * plan.splits):
            run_task(p, like, &plan, number, <char*>work.queries)
    else:
        for number in prange(plan.tiles * plan.splits, num_threads=num_threads, schedule="dynamic"):
            run_task(p, like, &plan, number, <char*>work.queries + threadid() * plan.memory)
    if plan.splits > 1:
        for number in range(plan.tiles):
            merge_task(p, like, &plan, number)
    free(plan.work)
    free(plan.parts)
    free(<void*>plan.first_tile)
    return 0
