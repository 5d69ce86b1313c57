"""The backward: the weights are computed again from lse, tile by tile and block by block.

With p the weights, ds = p * (grad_out v^T - sum(grad_out * out)), from which dq = scale * ds k,
dk = scale * ds^T q and dv = p^T grad_out: five products. A tile of queries adds to dk and dv of
every key, in the order of the tiles, whichever thread computes it: the bits do not depend on the
threads. Three ways, which sum every number in the same order:

- A thread computes a whole head of keys, tile after tile.
- Where there are fewer heads than threads, these compute the tiles of one head in order. Before it
  adds to a block of keys, a tile waits until those before it have passed that block.
- Results of 16 bits cannot be summed in. A whole head is summed in the thread's memory, if it fits;
  else dq is computed over tiles, and dk and dv once more over chunks of keys: seven products.

lse is rounded relative to its size: for scores around -1e9 (a mask of padding), it is the same with
one key and with a thousand. For rows with a large lse, the maximum and the sum of the weights are
therefore computed from the scores again, and sum(grad_out * out) from these weights: two products
more for their tile.
Rejected: the maximum and the sum as two arrays, which every caller would have to pass on.
"""

cdef extern from *:
    """
    #include <sched.h>
    INLINE void announce(int64_t *progress, int64_t value) {
        __atomic_store_n(progress, value, __ATOMIC_RELEASE);
    }
    INLINE bool has_passed(const int64_t *progress, int64_t value) {
        return __atomic_load_n(progress, __ATOMIC_ACQUIRE) >= value;
    }
    INLINE void wait_for(const int64_t *progress, int64_t value) {
        for (int tries = 0; !has_passed(progress, value); tries++)
            if (tries > 100) sched_yield();
    }
    """
    void announce(int64_t*, int64_t) nogil
    bint has_passed(const int64_t*, int64_t) nogil
    void wait_for(const int64_t*, int64_t) nogil

cdef enum:
    CHUNK = 4 * KEYS  # keys of a task for dk and dv: the queries are transposed again for each
    HEAD_MEMORY = 1 << 22  # bytes for the sums of a whole head
    # Rows of Work.norms. A weight is exp2(min(score - MAXIMUM, CAP)) * SHARE.
    MAXIMUM = 0  # lse in base 2, or the largest score
    SHARE = 1  # 1, or 1 / sum of the weights
    CAP = 2  # 0: no weight is above 1, however lse was rounded. Or 1, which has no effect
    MEAN = 3  # sum of grad_out * out
    NORMS = 4

# Of |lse|, in base 2. Its rounding changes weights relatively by up to |lse| / 2**24 in float32,
# here by 1e-5, as that of the scores does; scores of trained models are below.
cdef double LARGE_LSE = 256

cdef int64_t DONE = 1 << 62

cdef struct Gradient:
    AttentionArray grad_out, dq, dk, dv, dmask
    Py_ssize_t chunk  # keys for which there is memory to sum in
    char* norms  # Work.norms of all tiles, where dk and dv are made over chunks; or NULL


cdef Py_ssize_t divide_memory_backward(
    const Problem* p, const Gradient* g, const real* like, Work* work, char* memory
) noexcept nogil:
    cdef Py_ssize_t wide = 8 if real is double else 4, tile = lanes_of(like) * wide, used
    cdef bint converts = not (real is double or real is float)
    used = divide_memory(p, like, work, memory)
    work.grad = memory + used
    used += padded(p.value_width * tile)
    work.query_rows = memory + used
    used += padded(max(p.width * tile, lanes(like) * KEYS * wide))
    work.grad_rows = memory + used
    used += padded(p.value_width * tile)
    if p.softcap != 0:
        work.slope = memory + used
        used += padded(KEYS * tile)
    work.grad_scores = memory + used
    used += padded(KEYS * tile)
    work.grad_queries = memory + used
    used += padded(p.width * tile)
    work.norms = memory + used
    used += padded(NORMS * tile)
    work.grad_keys = memory + used
    used += padded(g.chunk * p.width * wide if converts else 0)
    work.grad_values = memory + used
    used += padded(g.chunk * p.value_width * wide if converts else 0)
    return used


# ---- a tile, and a block of keys ------------------------------------------------------------

cdef void load_rows(
    const Problem* p, const AttentionArray* a, const Tile* tile, const real* like, Py_ssize_t n,
    void* to
) noexcept nogil:
    """The rows of a tile, (rows, n) in the type that is computed in, or pairs of neighbours."""
    cdef Py_ssize_t w = lanes(like), r, k, left
    cdef vector[real] odd
    cdef char* rows[MOST_LANES]
    rows_of(p, a, tile, rows)
    if not p.pairs:
        for r in range(tile.rows):
            widen_rows(<const real*>rows[r], 0, 1, n, <compute[real]*>to + r * n)
        return
    for r in range((tile.rows + 1) // 2):
        for k in range((n + w - 1) // w):
            left = min(w, n - k * w)
            odd = splat(like, 0.0)
            if 2 * r + 1 < tile.rows:
                odd = load_n(<const real*>rows[2 * r + 1] + k * w, left, 0.0)
            store_pairs(like, to, r * n + k * w,
                        load_n(<const real*>rows[2 * r] + k * w, left, 0.0), odd, left)


cdef void begin_tile(
    const Problem* p, const Gradient* g, const real* like, Tile* tile, const Work* work,
    const char* norms
) noexcept nogil:
    """Queries, grad_out and norms of a tile, which are copied from `norms` unless it is NULL."""
    if p.pairs:
        rows_to_lanes(p, &p.q, tile, like, p.width, work.weights)
        lanes_to_pairs(work.weights, p.width, tile.columns, work.queries)
        rows_to_lanes(p, &g.grad_out, tile, like, p.value_width, work.weights)
        lanes_to_pairs(work.weights, p.value_width, tile.columns, work.grad)
    else:
        rows_to_lanes(p, &p.q, tile, like, p.width, work.queries)
        rows_to_lanes(p, &g.grad_out, tile, like, p.value_width, work.grad)
    load_rows(p, &p.q, tile, like, p.width, work.query_rows)
    load_rows(p, &g.grad_out, tile, like, p.value_width, work.grad_rows)
    find_norms(p, g, like, tile, work, norms)


cdef inline Py_ssize_t norms_size(const real* like) noexcept nogil:
    return NORMS * lanes_of(like) * (8 if real is double else 4)


cdef inline bint is_large(double lse) noexcept nogil:
    return fabs(lse) * LOG2_E > LARGE_LSE and fabs(lse) != INFINITY


cdef void find_norms(
    const Problem* p, const Gradient* g, const real* like, Tile* tile, const Work* work,
    const char* norms
) noexcept nogil:
    cdef Py_ssize_t w = lanes(like), all = lanes_of(like), r, k, left
    cdef char* lses[MOST_LANES]
    cdef char* grads[MOST_LANES]
    cdef char* outs[MOST_LANES]
    cdef const real* go
    cdef const real* o
    cdef vector[real] total
    cdef double lse, row_max, share, cap, mean
    rows_of(p, &p.lse, tile, lses)
    tile.summed = False
    for r in range(tile.rows):
        tile.summed |= is_large(get_wide(like, lses[r], 0))
    if norms != NULL:
        memcpy(work.norms, norms, norms_size(like))
        return
    if tile.summed:
        sum_weights(p, like, tile, work)
    rows_of(p, &p.out, tile, outs)
    rows_of(p, &g.grad_out, tile, grads)
    for r in range(tile.columns):
        lse = -INFINITY
        total = splat(like, 0.0)
        if r < tile.rows:
            lse = get_wide(like, lses[r], 0)
            go = <const real*>grads[r]
            o = <const real*>outs[r]
            for k in range((p.value_width + w - 1) // w):
                left = min(w, p.value_width - k * w)
                total = mul_add(load_n(go + k * w, left, 0.0), load_n(o + k * w, left, 0.0), total)
        row_max = lse * LOG2_E
        share = 1
        cap = 0
        mean = reduce_add(total)
        if is_large(lse):
            row_max = get_wide(like, work.maxima, r)
            share = 1 / get_wide(like, work.totals, r)
            cap = 1
            mean = get_wide(like, work.result, r) * share
        if row_max == -INFINITY:  # a query that sees no key: every weight is exp2(-inf)
            row_max = INFINITY
            share = 1
            mean = 0
        put_wide(like, work.norms, MAXIMUM * all + r, row_max)
        put_wide(like, work.norms, SHARE * all + r, share)
        put_wide(like, work.norms, CAP * all + r, cap)
        put_wide(like, work.norms, MEAN * all + r, mean)


cdef void sum_weights(
    const Problem* p, const real* like, const Tile* tile, const Work* work
) noexcept nogil:
    """The first pass of rows whose lse is too large: of each row of the tile the largest score in
    work.maxima, in work.totals the sum of the weights below it, and in the first row of work.result
    their sum with grad_out v^T."""
    cdef Py_ssize_t w = lanes(like), step = TILE_VECTORS, c, k, j, n, first
    cdef vector[real] block_maxima[TILE_VECTORS]
    cdef vector[real] factor
    cdef vector[real]* maxima = <vector[real]*>work.maxima
    cdef vector[real]* totals = <vector[real]*>work.totals
    cdef vector[real]* sums = <vector[real]*>work.result
    cdef vector[real]* s = <vector[real]*>work.scores
    cdef vector[real]* grad_weights = <vector[real]*>work.grad_scores
    for c in range(step):
        maxima[c] = splat(like, -INFINITY)
        totals[c] = splat(like, 0.0)
        sums[c] = splat(like, 0.0)
    for k in range((tile.high - tile.low + KEYS - 1) // KEYS):
        first = tile.low + k * KEYS
        n = min(KEYS, tile.high - first)
        if not scores(p, like, tile, work, first, n, block_maxima, &factor):
            continue
        weigh(like, tile, work, n, 1, block_maxima, factor)
        times_keys(p, like, &p.v, tile, first, n, p.value_width, work.grad, work.values,
                   work.grad_scores)
        for c in range(tile.columns // w):
            for j in range(n):
                sums[c] = mul_add(s[j * step + c], grad_weights[j * step + c], sums[c])


cdef bint block_gradient(
    const Problem* p, const real* like, const Tile* tile, const Work* work, Py_ssize_t first,
    Py_ssize_t n, bint of_mask
) noexcept nogil:
    """work.scores = p, work.grad_scores = ds of n keys: of the scores before softcap and scale or,
    for the gradient of a mask, after. False where the mask allows no key."""
    cdef Py_ssize_t w = lanes(like), step = TILE_VECTORS, c, k
    cdef vector[real] maxima[TILE_VECTORS]
    cdef vector[real]* s = <vector[real]*>work.scores
    cdef vector[real]* ds = <vector[real]*>work.grad_scores
    cdef vector[real]* slope = <vector[real]*>work.slope
    cdef vector[real] scale = splat(like, p.scale), zero = splat(like, 0.0)
    cdef vector[real] factor, minus_max, minus_cap, share, mean, v
    cdef Py_ssize_t all = lanes_of(like)
    if not scores(p, like, tile, work, first, n, maxima, &factor):
        return False
    times_keys(p, like, &p.v, tile, first, n, p.value_width, work.grad, work.values,
               work.grad_scores)
    for c in range(tile.columns // w):
        minus_max = zero - load_wide(like, work.norms, MAXIMUM * all + c * w, w)
        minus_cap = zero - load_wide(like, work.norms, CAP * all + c * w, w)
        share = load_wide(like, work.norms, SHARE * all + c * w, w)
        mean = load_wide(like, work.norms, MEAN * all + c * w, w)
        for k in range(n):
            v = mul_add(s[k * step + c], factor, minus_max)
            v = exp_2(like, zero - vmax(minus_cap, zero - v))
            if tile.summed:
                v = v * share
            s[k * step + c] = v
            v = v * (ds[k * step + c] - mean)
            if not of_mask:
                v = v * scale
                if slope != NULL:
                    v = v * slope[k * step + c]
            ds[k * step + c] = v
    return True


cdef void narrow_lanes(void* memory, Py_ssize_t n, Py_ssize_t columns, void* to) noexcept nogil:
    """(n, lanes) of float to bfloat16: pairs of neighbouring lanes."""
    cdef float* x = <float*>memory
    cdef bf16* y = <bf16*>to
    cdef Py_ssize_t w = lanes(x), width = lanes_of(x), k, c
    for k in range(n):
        for c in range(columns // w):
            narrow_to(y + k * width + c * w, load(x + k * width + c * w))


cdef inline void add_outer(
    const Problem* p, const real* like, const Tile* tile, const Work* work, void* left, void* rows,
    Py_ssize_t n, Py_ssize_t width, void* to, Py_ssize_t stride
) noexcept nogil:
    """(n, width) += left (n, lanes) times the rows (lanes, width) of the tile."""
    cdef Py_ssize_t all = lanes_of(like)
    if p.pairs:
        narrow_lanes(left, n, tile.columns, work.weights)
        product(<bf16_pair*>work.weights, all // 2, 1, n, <bf16_pair*>rows, width,
                (tile.rows + 1) // 2, <float*>to, stride, width, True)
    else:
        product(<compute[real]*>left, all, 1, n, <compute[real]*>rows, width, tile.rows,
                <compute[real]*>to, stride, width, True)


cdef inline void add_to_queries(
    const Problem* p, const real* like, const Tile* tile, const Work* work, Py_ssize_t first,
    Py_ssize_t n
) noexcept nogil:
    """work.grad_queries += ds^T k."""
    cdef void* right = work.grad_scores
    if p.pairs:
        lanes_to_pairs(work.grad_scores, n, tile.columns, work.weights)
        right = work.weights
    add_keys_times(p, like, &p.k, tile, first, n, p.width, right, work.keys, work.grad_queries)


cdef void end_tile(
    const Problem* p, const Gradient* g, const real* like, const Tile* tile, const Work* work
) noexcept nogil:
    """Writes dq of the tile."""
    cdef Py_ssize_t w = lanes(like), c
    cdef char* rows[MOST_LANES]
    rows_of(p, &g.dq, tile, rows)
    for c in range(tile.columns // w):
        store_lanes(<real**>(rows + c * w), p.width, <vector[real]*>work.grad_queries + c,
                    TILE_VECTORS)


# ---- tasks ----------------------------------------------------------------------------------

cdef void clear_queries(const Problem* p, const real* like, const Work* work) noexcept nogil:
    memset(work.grad_queries, 0, p.width * lanes_of(like) * (8 if real is double else 4))


cdef void query_task(
    const Problem* p, const Gradient* g, const real* like, const Plan* plan, Py_ssize_t number,
    const Work* work
) noexcept nogil:
    """dq of one tile."""
    cdef Tile tile
    cdef Py_ssize_t k, n, first
    find_tile(p, like, plan, number, &tile)
    begin_tile(p, g, like, &tile, work, NULL)
    if g.norms != NULL:
        memcpy(g.norms + number * norms_size(like), work.norms, norms_size(like))
    clear_queries(p, like, work)
    for k in range((tile.high - tile.low + KEYS - 1) // KEYS):
        first = tile.low + k * KEYS
        n = min(KEYS, tile.high - first)
        if block_gradient(p, like, &tile, work, first, n, False):
            add_to_queries(p, like, &tile, work, first, n)
    end_tile(p, g, like, &tile, work)


cdef void key_task(
    const Problem* p, const Gradient* g, const real* like, Py_ssize_t batch, Py_ssize_t head,
    Py_ssize_t first, Py_ssize_t last, const Work* work, bint with_queries, const char* norms
) noexcept nogil:
    """dk and dv of the keys from `first` to `last` of a head; dq too where these are all keys.
    `norms` are those of the head's tiles where they are known, else NULL."""
    cdef Tile tile
    cdef bint converts = not (real is double or real is float)
    cdef Py_ssize_t width = lanes_of(like), count = tiles_of(p, batch, width), i, k, n, at, end
    cdef Py_ssize_t dk_stride = p.width, dv_stride = p.value_width
    cdef char* dk
    cdef char* dv
    tile.batch = batch
    tile.kv_head = head
    if converts:
        memset(work.grad_keys, 0, (last - first) * p.width * 4)
        memset(work.grad_values, 0, (last - first) * p.value_width * 4)
    else:
        dk_stride = g.dk.row // <Py_ssize_t>sizeof(real)
        dv_stride = g.dv.row // <Py_ssize_t>sizeof(real)
    for i in range(count):
        make_tile(p, &tile, batch, head * count + i, together(p, batch, width), width,
                  lanes(like))
        if tile.low >= last or tile.high <= first:
            if with_queries:
                clear_queries(p, like, work)
                end_tile(p, g, like, &tile, work)
            continue
        begin_tile(p, g, like, &tile, work, norms + i * norms_size(like) if norms else NULL)
        if with_queries:
            clear_queries(p, like, work)
        at = max(first, tile.low)
        end = min(last, tile.high)
        for k in range((end - at + KEYS - 1) // KEYS):
            n = min(KEYS, end - at)
            if block_gradient(p, like, &tile, work, at, n, False):
                if converts:
                    dk = <char*>work.grad_keys + (at - first) * p.width * 4
                    dv = <char*>work.grad_values + (at - first) * p.value_width * 4
                else:
                    dk = key_at(p, &g.dk, &tile, at)
                    dv = key_at(p, &g.dv, &tile, at)
                if with_queries:
                    add_to_queries(p, like, &tile, work, at, n)
                add_outer(p, like, &tile, work, work.scores, work.grad_rows, n, p.value_width, dv,
                          dv_stride)
                add_outer(p, like, &tile, work, work.grad_scores, work.query_rows, n, p.width, dk,
                          dk_stride)
            at += n
        if with_queries:
            end_tile(p, g, like, &tile, work)
    if converts:
        write_sums(like, work.grad_keys, last - first, p.width, key_at(p, &g.dk, &tile, first),
                   g.dk.row)
        write_sums(like, work.grad_values, last - first, p.value_width,
                   key_at(p, &g.dv, &tile, first), g.dv.row)


cdef void write_sums(
    const real* like, const void* sums, Py_ssize_t rows, Py_ssize_t n, char* to, Py_ssize_t stride
) noexcept nogil:
    """Rows of n sums to rows of the storage type, `stride` bytes apart."""
    cdef Py_ssize_t w = lanes(like), r, k, left
    for r in range(rows):
        for k in range((n + w - 1) // w):
            left = min(w, n - k * w)
            store_n(<real*>(to + r * stride) + k * w, load_wide(like, sums, r * n + k * w, left),
                    left)


cdef void ordered_task(
    const Problem* p, const Gradient* g, const real* like, const Plan* plan, Py_ssize_t number,
    int64_t* progress, const Work* work
) noexcept nogil:
    """dq of one tile, and what it adds to dk and dv. Tile i has passed the key progress[i]."""
    cdef Tile tile
    cdef Py_ssize_t k, n, at, oldest, i
    cdef bint allowed
    find_tile(p, like, plan, number, &tile)
    announce(progress + number, tile.low)
    oldest = number - (number - plan.first_tile[tile.batch]) % tiles_of(p, tile.batch, plan.lanes)
    begin_tile(p, g, like, &tile, work, NULL)
    clear_queries(p, like, work)
    for k in range((tile.high - tile.low + KEYS - 1) // KEYS):
        at = tile.low + k * KEYS
        n = min(KEYS, tile.high - at)
        allowed = block_gradient(p, like, &tile, work, at, n, False)
        if allowed:
            add_to_queries(p, like, &tile, work, at, n)
            for i in range(oldest, number):
                wait_for(progress + i, at + n)
            while oldest < number and has_passed(progress + oldest, DONE):
                oldest += 1
            add_outer(p, like, &tile, work, work.scores, work.grad_rows, n, p.value_width,
                      key_at(p, &g.dv, &tile, at), g.dv.row // <Py_ssize_t>sizeof(real))
            add_outer(p, like, &tile, work, work.grad_scores, work.query_rows, n, p.width,
                      key_at(p, &g.dk, &tile, at), g.dk.row // <Py_ssize_t>sizeof(real))
        announce(progress + number, at + n)
    end_tile(p, g, like, &tile, work)
    announce(progress + number, DONE)


cdef void add_mask_rows(
    const AttentionArray* a, const real* like, char* const* rows, Py_ssize_t count,
    const void* scores, Py_ssize_t lane, Py_ssize_t n, void* scratch
) noexcept nogil:
    """The gradient of the scores, (n, lanes) from `lane`, is added to rows of the mask's; to one
    number where that was broadcast over the keys."""
    cdef Py_ssize_t w = lanes(like), r, j, left
    cdef compute[real]* lines[16]
    cdef vector[real] total
    for r in range(w):
        lines[r] = <compute[real]*>scratch + r * KEYS if r < count else NULL
    store_lanes(lines, n, <vector[compute[real]]*>scores + lane // w, TILE_VECTORS)
    for r in range(min(w, count)):
        total = splat(like, 0.0)
        for j in range((n + w - 1) // w):
            left = min(w, n - j * w)
            if a.item:
                store_wide(like, rows[r], j * w, load_wide(like, rows[r], j * w, left)
                           + load_wide(like, lines[r], j * w, left), left)
            else:
                total = total + load_wide(like, lines[r], j * w, left)
        if a.item == 0:
            put_wide(like, rows[r], 0, get_wide(like, rows[r], 0) + reduce_add(total))


cdef void mask_task(
    const Problem* p, const Gradient* g, const real* like, Py_ssize_t number, const Work* work
) noexcept nogil:
    """The gradient of the mask for one tile of positions, over all batch entries and heads: where
    the mask was broadcast, they add up in the same place."""
    cdef Tile tile
    cdef Py_ssize_t width = lanes_of(like), w = lanes(like), count, batch, head, k, n, first, r, c
    cdef char* rows[MOST_LANES]
    cdef char* places[MOST_LANES]
    for batch in range(p.batches):
        count = (queries_of(p, batch) + width - 1) // width
        if number >= count:
            continue
        for head in range(p.heads):
            make_tile(p, &tile, batch, head * count + number, 1, width, w)
            begin_tile(p, g, like, &tile, work, NULL)
            rows_of(p, &g.dmask, &tile, rows)
            for k in range((tile.high - tile.low + KEYS - 1) // KEYS):
                first = tile.low + k * KEYS
                n = min(KEYS, tile.high - first)
                if not block_gradient(p, like, &tile, work, first, n, True):
                    continue
                for r in range(tile.rows):
                    places[r] = rows[r] + first * g.dmask.item
                for c in range(tile.columns // w):
                    add_mask_rows(&g.dmask, like, places + c * w, tile.rows - c * w,
                                  work.grad_scores, c * w, n, work.query_rows)


# ---- over threads ---------------------------------------------------------------------------

cdef int backward(
    const Problem* p, const AttentionGradient* arrays, const real* like, int threads
) noexcept nogil:
    cdef Gradient g
    cdef Plan plan
    cdef Work work
    cdef Py_ssize_t number, longest = 0, most = 0, chunks, b, heads = p.batches * p.kv_heads
    cdef int num_threads = threads_for(threads, multiplications(p) // 4)
    cdef bint converts = not (real is double or real is float)
    # The last round of heads leaves threads idle: more than five sevenths busy is better than
    # seven products.
    cdef bint whole = heads * 7 >= (heads + num_threads - 1) // num_threads * num_threads * 5
    cdef int64_t* progress = NULL
    g.grad_out = arrays.grad_out
    g.dq = arrays.dq
    g.dk = arrays.dk
    g.dv = arrays.dv
    g.dmask = arrays.dmask
    for b in range(p.batches):
        longest = max(longest, keys_of(p, b))
        most = max(most, (queries_of(p, b) + lanes_of(like) - 1) // lanes_of(like))
    g.chunk = CHUNK
    if converts and longest * (p.width + p.value_width) * 4 <= HEAD_MEMORY:
        g.chunk = longest
    elif converts:
        whole = False
    plan.splits = 1
    plan.lanes = lanes_of(like)
    plan.first_tile = count_tiles(p, plan.lanes)
    if plan.first_tile == NULL:
        return NO_MEMORY
    plan.tiles = plan.first_tile[p.batches]
    plan.memory = divide_memory_backward(p, &g, like, &work, NULL)
    plan.work = <char*>malloc(num_threads * plan.memory + 64)
    g.norms = NULL
    if not whole and converts:
        g.norms = <char*>malloc((plan.tiles + 1) * norms_size(like))
    elif not whole:
        progress = <int64_t*>calloc(plan.tiles + 1, sizeof(int64_t))
    if plan.work == NULL or not (whole or progress != NULL or g.norms != NULL):
        free(g.norms)
        free(progress)
        free(plan.work)
        free(<void*>plan.first_tile)
        return NO_MEMORY
    work.queries = <void*>((<size_t>plan.work + 63) & ~<size_t>63)
    chunks = (longest + g.chunk - 1) // g.chunk if g.chunk else 0
    if whole:
        for number in prange(heads, num_threads=num_threads, schedule="dynamic"):
            head_task(p, &g, like, &plan, number, 0, <char*>work.queries)
    elif not converts:
        for number in prange(plan.tiles, num_threads=num_threads, schedule="dynamic"):
            tile_task(p, &g, like, &plan, number, progress, <char*>work.queries)
    else:
        for number in prange(plan.tiles, num_threads=num_threads, schedule="dynamic"):
            tile_task(p, &g, like, &plan, number, NULL, <char*>work.queries)
        for number in prange(heads * chunks, num_threads=num_threads, schedule="dynamic"):
            head_task(p, &g, like, &plan, number, chunks, <char*>work.queries)
    if g.dmask.data != NULL:
        if g.dmask.row == 0:
            num_threads = 1
        for number in prange(most, num_threads=num_threads, schedule="dynamic"):
            position_task(p, &g, like, &plan, number, <char*>work.queries)
    free(g.norms)
    free(progress)
    free(plan.work)
    free(<void*>plan.first_tile)
    return 0


cdef void head_task(
    const Problem* p, const Gradient* g, const real* like, const Plan* plan, Py_ssize_t number,
    Py_ssize_t chunks, char* memory
) noexcept nogil:
    """A whole head or, where there are `chunks`, one of them of its keys."""
    cdef Work work
    cdef Py_ssize_t chunk = number % chunks if chunks else 0
    cdef Py_ssize_t head = number // chunks if chunks else number
    cdef Py_ssize_t batch = head // p.kv_heads, keys = keys_of(p, batch)
    cdef Py_ssize_t tile
    divide_memory_backward(p, g, like, &work, memory + threadid() * plan.memory)
    if chunks == 0:
        key_task(p, g, like, batch, head % p.kv_heads, 0, keys, &work, True, NULL)
    elif chunk * g.chunk < keys:
        tile = plan.first_tile[batch] + head % p.kv_heads * tiles_of(p, batch, plan.lanes)
        key_task(p, g, like, batch, head % p.kv_heads, chunk * g.chunk,
                 min(keys, (chunk + 1) * g.chunk), &work, False,
                 g.norms + tile * norms_size(like))


cdef void tile_task(
    const Problem* p, const Gradient* g, const real* like, const Plan* plan, Py_ssize_t number,
    int64_t* progress, char* memory
) noexcept nogil:
    cdef Work work
    divide_memory_backward(p, g, like, &work, memory + threadid() * plan.memory)
    if progress != NULL:
        ordered_task(p, g, like, plan, number, progress, &work)
    else:
        query_task(p, g, like, plan, number, &work)


cdef void position_task(
    const Problem* p, const Gradient* g, const real* like, const Plan* plan, Py_ssize_t number,
    char* memory
) noexcept nogil:
    cdef Work work
    divide_memory_backward(p, g, like, &work, memory + threadid() * plan.memory)
    mask_task(p, g, like, number, &work)
