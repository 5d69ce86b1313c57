"""Gradients of attention on a GPU, in four launches, and a fifth for that of the mask.

With P the weights, which lse gives back, and D = sum(dO * O) of each query,

    dV = P' dO,   dS = P * (dO V' - D),   dQ = scale dS K,   dK = scale dS' Q

`delta` computes D. lse is rounded to its own size: of scores around -1e9 it is the same for one key
and for a thousand. Where it is large, `norms` computes the largest score of a query, the sum of its
weights and D again, from the same products as the others. `backward_q` has tiles of queries and
goes over the keys, `backward_kv` has tiles of keys and goes over the queries of all heads that
share them, with everything transposed; so each gradient is summed in registers, by one block, in
one order. That takes seven products where one pass that adds to dQ from many blocks takes five, but
its sums would depend on which block comes first.
"""

import math
from functools import cache

import numpy as np
from numba import cuda

from .. import _ptx
from .._math import device
from .._reduce import ALL, reduce_of
from .._storage import storage_of
from .products import products_of
from .scores import scores_of
from .tiles import (
    PANEL,
    in_line,
    loader_of,
    number_loader_of,
    place_of_row,
    scratch_of,
    size_of,
    unrolled,
    writer_of,
)
from .work import (
    OF_DK,
    OF_DQ,
    OF_DV,
    OF_GRAD_OUT,
    OF_K,
    OF_Q,
    OF_V,
    Problem,
    bounds,
    locate,
    row_number,
    row_of_dk,
    row_of_dq,
    row_of_dv,
    row_of_grad_out,
    row_of_k,
    row_of_lse,
    row_of_mask,
    row_of_out,
    row_of_q,
    row_of_v,
    span_of,
)

# Of |lse|, in nats. Its rounding changes weights by up to |lse| / 2**24 of them in float32, here by
# 1e-5; scores of trained models stay below.
LARGE = 256 * math.log(2)


def shared_size(tiling):
    """Bytes of shared memory of a block of `backward_q` or `backward_kv`: its rows of two arrays,
    two steps of two others with three numbers for each column, scratch.
    """
    name = tiling.dtype
    number = storage_of(name).real_size
    scratch = tiling.warps * scratch_of(name, tiling.row_tiles, tiling.columns) + 8 * tiling.rows
    step = 2 * size_of(name, tiling.columns, tiling.width) + 3 * tiling.columns * number
    return 2 * size_of(name, tiling.rows, tiling.width) + 2 * step + scratch


def unbuffered_size(tiling):
    """The same of a block that copies nothing ahead: rows and columns of two arrays each."""
    both = size_of(tiling.dtype, tiling.rows + tiling.columns, tiling.width)
    return 2 * both + 8 * tiling.rows


@device
def norm_at(p, which, at, number):
    """Of query number `at`: D, the row_max that is subtracted from its scores (in the unit of the
    products that `scores_of` leaves), and the logarithm of the sum by which weights are divided:
    `which` is 0, 1 or 2.
    """
    return p.delta + (which * p.all_rows + at) * number


@cache
def delta_of(name):
    """The kernel of D, and of lse over `score_scale`; a warp for each query of each head."""
    storage = storage_of(name)
    size, load, put, number = storage.size, storage.load, storage.put_number, storage.real_size
    get, real = storage.get_number, storage.real
    zero, warp_sum = storage.real(0), reduce_of(name).warp_sum

    @cuda.jit
    def delta(p: Problem, score_scale: float):
        lane = np.int64(cuda.threadIdx.x) & 31
        at = np.int64(cuda.blockIdx.x) * (cuda.blockDim.x >> 5) + (cuda.threadIdx.x >> 5)
        if at >= p.all_rows:
            return
        query, head = at % p.queries, at // p.queries
        head, entry = head % p.heads, head // p.heads
        out = row_of_out(p, entry, head, query)
        grad = row_of_grad_out(p, entry, head, query)
        total, column = zero, lane * size
        while column < p.value_width:
            total += load(out + column) * load(grad + column)
            column += 32 * size
        total = warp_sum(total, 32)
        if lane == 0:
            lse = get(row_of_lse(p, entry, head, query))
            put(norm_at(p, 0, at, number), total)
            # A query that sees no key: every weight is exp(-inf).
            row_max = real(np.inf) if lse == real(-np.inf) else lse / real(score_scale)
            put(norm_at(p, 1, at, number), row_max)
            put(norm_at(p, 2, at, number), zero)

    return delta


# ---- the steps of a block --------------------------------------------------------------------


@cache
def pair_loaders_of(name, rows, width, threads):
    """`load_queries(to, q_at, g_at, first, count, p)`: rows of q into a tile, and of grad_out into
    the one behind it. `load_keys(to, k_at, v_at, first, count, p)`: of k and v.
    """
    load, size = loader_of(name, rows, width, threads), size_of(name, rows, width)

    @device
    def load_queries(to, q_at, g_at, first, count, p):
        load(to, q_at, first, count, p.width, p.aligned & OF_Q)
        load(to + size, g_at, first, count, p.value_width, p.aligned & OF_GRAD_OUT)

    @device
    def load_keys(to, k_at, v_at, first, count, p):
        load(to, k_at, first, count, p.width, p.aligned & OF_K)
        load(to + size, v_at, first, count, p.value_width, p.aligned & OF_V)

    return load_queries, load_keys


@device
def query_lines(p, entry, head, span):
    """The rows of q and of grad_out of a head, for a loader."""
    q = row_of_q(p, entry, head, span.first_q)
    g = row_of_grad_out(p, entry, head, span.first_q)
    return in_line(q, p.q_row), in_line(g, p.grad_out_row)


@device
def key_lines(p, entry, kv_head, span):
    """The same of k and v."""
    k = row_of_k(p, entry, kv_head, span.first_k)
    v = row_of_v(p, entry, kv_head, span.first_k)
    return in_line(k, p.k_row), in_line(v, p.v_row)


@cache
def mask_lines_of(general):
    """`mask_lines(p, entry, head, step)`: the rows of the mask for `finish`, if there is one."""

    @device
    def mask_lines(p, entry, head, step):
        mask = np.int64(0)
        if general and p.mask != 0:
            mask = row_of_mask(p, entry, head, np.int64(0))
        return in_line(mask, step)

    return mask_lines


@cache
def key_limiter_of(tiling):
    """`limit_keys(r, p, limits, row, span)`: keep the keys that a row sees."""
    keep_limits = scores_of(tiling).keep_limits

    @device
    def limit_keys(r, p, limits, row, span):
        row += 8 * r
        low, high = bounds(row + span.offset, p.left, p.right, span.keys)
        keep_limits(limits, r, low, high if row < span.queries else low)

    return limit_keys


@cache
def norm_loader_of(tiling):
    """`load(p, norms, limits, entry, head, row, span)`, where rows are queries: `norm_at` of the
    rows of a lane, and the keys that they see.
    """
    storage, limit_keys = storage_of(tiling.dtype), key_limiter_of(tiling)
    get_number, number, zero = storage.get_number, storage.real_size, storage.real(0)

    @device
    def load_norm(r, p, norms, limits, entry, head, row, span):
        row_max, log_sumexp, delta = norms
        limit_keys(r, p, limits, row, span)
        row += 8 * r
        row_max[r] = log_sumexp[r] = delta[r] = zero
        if row < span.queries:
            at = row_number(p, entry, head, span.first_q + row)
            delta[r] = get_number(norm_at(p, 0, at, number))
            row_max[r] = get_number(norm_at(p, 1, at, number))
            log_sumexp[r] = get_number(norm_at(p, 2, at, number))

    return unrolled(tiling.lane_rows, load_norm)


# ---- kernels ---------------------------------------------------------------------------------


@cache
def norms_of(tiling):
    """The kernel of `norm_at` of queries whose lse is large. It has the tiles of `backward_q`; one
    without such a query returns at once. Nothing is copied ahead here.
    """
    name, width, _, warps, row_tiles, columns, general, _ = tiling
    storage, scores = storage_of(name), scores_of(tiling)
    kind, number = storage.type, storage.real_size
    get, put, maximum = storage.get_number, storage.put_number, storage.maximum
    zero, one, lowest = storage.real(0), storage.real(1), storage.real(-np.inf)
    highest, large = storage.real(np.inf), storage.real(LARGE)
    rows, threads = tiling.rows, tiling.threads
    lane_rows, warp_rows = tiling.lane_rows, tiling.warp_rows
    score_count, per_row, place_of = row_tiles * columns // 2, columns // 4, place_of_row(columns)
    tile_size, x_size = size_of(name, rows, width), size_of(name, columns, width)
    load_queries, _ = pair_loaders_of(name, rows, width, threads)
    load_columns, mask_lines = loader_of(name, columns, width, threads), mask_lines_of(general)
    products = products_of(tiling, tiling.part)
    multiply, fence = products.scores, products.fence
    scales_of, finish = scores.scales_of, scores.finish
    max_of_row, shared_sum = scores.max_of_row, scores.shared_sum
    normalized_weight, log_of = scores.normalized_weight, scores.log_of

    @device
    def is_large(p, entry, head, row):
        lse = abs(get(row_of_lse(p, entry, head, row)))
        return lse > large and lse != highest

    @device
    def find_max(r, s, row_max):
        row_max[r] = maximum(row_max[r], max_of_row(s, r))

    @device
    def add(r, s, ds, row_max, total, grad_sum, score_scale):
        finite_max = zero if row_max[r] == lowest else row_max[r]
        for e in range(per_row):
            k = place_of(r, e)
            weight = normalized_weight(s[k], finite_max, zero, score_scale)
            total[r] += weight
            grad_sum[r] += weight * ds[k]

    @device
    def store_norms(r, p, row_max, total, grad_sum, entry, head, row, span):
        total[r], grad_sum[r] = shared_sum(total[r]), shared_sum(grad_sum[r])
        row += 8 * r
        query = span.first_q + row
        if cuda.threadIdx.x & 3 == 0 and row < span.queries and is_large(p, entry, head, query):
            at = row_number(p, entry, head, query)
            sees_any = total[r] != zero
            divisor = total[r] if sees_any else one
            put(norm_at(p, 0, at, number), grad_sum[r] / divisor)
            put(norm_at(p, 1, at, number), row_max[r] if sees_any else highest)
            put(norm_at(p, 2, at, number), log_of(divisor))

    limit_all = unrolled(lane_rows, key_limiter_of(tiling))
    find_all = unrolled(lane_rows, find_max)
    add_all, store_all = unrolled(lane_rows, add), unrolled(lane_rows, store_norms)

    @cuda.jit
    def norms(p: Problem):
        _, _, entry, head, tile = locate(p, rows, np.int64(1), 0)
        span = span_of(p, entry)
        first = tile * rows
        count = min(span.queries - first, np.int64(rows))
        if count <= 0:
            return
        shared = np.int32(_ptx.dynamic_shared())
        g_tile = np.int32(shared + tile_size)
        k_tile = np.int32(g_tile + tile_size)
        v_tile = np.int32(k_tile + x_size)
        warp, row = np.int32(cuda.threadIdx.x >> 5), np.int64(cuda.threadIdx.x)
        any_large = np.int32(0)
        while row < count:
            if is_large(p, entry, head, span.first_q + first + row):
                any_large = np.int32(1)
            row += threads
        for lanes in (1, 2, 4, 8, 16):
            any_large |= cuda.shfl_xor_sync(ALL, any_large, lanes)
        if cuda.threadIdx.x & 31 == 0:
            _ptx.shared_store_u32(np.uint32(k_tile + 4 * warp), np.uint32(any_large))
        cuda.syncthreads()
        for other in range(warps):
            any_large |= np.int32(_ptx.shared_load_u32(np.uint32(k_tile + 4 * other)))
        if any_large == 0:
            return
        q_at, g_at = query_lines(p, entry, head, span)
        k_at, v_at = key_lines(p, entry, head // p.group, span)
        row = first + warp * warp_rows + np.int32(cuda.threadIdx.x >> 2 & 7)
        limits = np.int32(v_tile + x_size + warp * (8 * warp_rows))
        my_rows = np.int32(warp * (warp_rows * PANEL))
        limit_all(p, limits, row, span)
        masks = mask_lines(p, entry, head, p.mask_row)
        tile_low, _ = bounds(span.offset + first, p.left, p.right, span.keys)
        _, tile_high = bounds(span.offset + first + count - 1, p.left, p.right, span.keys)
        begin, end = np.int32(tile_low // columns), np.int32((tile_high + columns - 1) // columns)
        load_queries(shared, q_at, g_at, first, count, p)

        _, score_scale = scales_of(p.scale)
        row_max, total = cuda.local.array(lane_rows, kind), cuda.local.array(lane_rows, kind)
        grad_sum = cuda.local.array(lane_rows, kind)
        for r in range(lane_rows):
            row_max[r], total[r], grad_sum[r] = lowest, zero, zero
        # First the largest scores, then the sums of exactly those weights that the others make.
        for second_pass in range(2):
            for step in range(begin, end):
                key = np.int32(step * columns)
                left = span.keys - key
                cuda.syncthreads()
                load_columns(k_tile, k_at, key, left, p.width, p.aligned & OF_K)
                if second_pass:
                    load_columns(v_tile, v_at, key, left, p.value_width, p.aligned & OF_V)
                _ptx.wait_for_all_copies()
                fence()
                cuda.syncthreads()
                s, ds = cuda.local.array(score_count, kind), cuda.local.array(score_count, kind)
                for e in range(score_count):
                    s[e] = ds[e] = zero
                multiply(s, shared + my_rows, k_tile)
                finish(s, p, key, True, limits, masks, row, p.mask_item)
                if second_pass:
                    multiply(ds, g_tile + my_rows, v_tile)
                    add_all(s, ds, row_max, total, grad_sum, score_scale)
                else:
                    find_all(s, row_max)
        store_all(p, row_max, total, grad_sum, entry, head, row, span)

    return norms


@cache
def backward_q_of(tiling):
    name, width, part_width, _, row_tiles, columns, general, _ = tiling
    storage, scores = storage_of(name), scores_of(tiling)
    size, kind, real = storage.size, storage.type, storage.real
    zero = real(0)
    rows, threads = tiling.rows, tiling.threads
    lane_rows, warp_rows = tiling.lane_rows, tiling.warp_rows
    score_count, result_count = row_tiles * columns // 2, row_tiles * part_width // 2
    tile_size, x_size = size_of(name, rows, width), size_of(name, columns, width)
    warp_scratch = scratch_of(name, row_tiles, columns)
    load_queries, _ = pair_loaders_of(name, rows, width, threads)
    _, load_keys = pair_loaders_of(name, columns, width, threads)
    products = products_of(tiling, part_width)
    multiply, accumulate, fence = products.scores, products.values, products.fence
    scales_of, finish, grads = scores.scales_of, scores.finish, scores.grads_of_rows
    softcap_slopes, mask_lines = scores.softcap_slopes, mask_lines_of(general)
    write = writer_of(name, row_tiles, part_width, rows)
    load_norms = norm_loader_of(tiling)

    @cuda.jit
    def backward_q(p: Problem):
        part, _, entry, head, tile = locate(p, rows, np.int64(1), 0)
        span = span_of(p, entry)
        first = tile * rows
        count = min(span.queries - first, np.int64(rows))
        if count <= 0:
            return
        q_at, g_at = query_lines(p, entry, head, span)
        k_at, v_at = key_lines(p, entry, head // p.group, span)

        warp = np.int32(cuda.threadIdx.x >> 5)
        row_max, log_sumexp = cuda.local.array(lane_rows, kind), cuda.local.array(lane_rows, kind)
        norms = row_max, log_sumexp, cuda.local.array(lane_rows, kind)
        row = first + warp * warp_rows + np.int32(cuda.threadIdx.x >> 2 & 7)
        tile_low, full_high = bounds(span.offset + first, p.left, p.right, span.keys)
        full_low, tile_high = bounds(span.offset + first + count - 1, p.left, p.right, span.keys)
        begin, end = np.int32(tile_low // columns), np.int32((tile_high + columns - 1) // columns)
        last_key, full_low, full_high = np.int32(span.keys), np.int32(full_low), np.int32(full_high)

        shared = np.int32(_ptx.dynamic_shared())
        g_tile = np.int32(shared + tile_size)
        stage = np.int32(g_tile + tile_size)
        my_rows = np.int32(warp * (warp_rows * PANEL))
        limits = np.int32(stage + 4 * x_size + warp * (8 * warp_rows))
        scratch = np.int32(stage + 4 * x_size + 8 * rows + warp * warp_scratch)
        load_norms(p, norms, limits, entry, head, row, span)
        masks = mask_lines(p, entry, head, p.mask_row)
        load_queries(shared, q_at, g_at, first, count, p)
        if begin < end:
            key = np.int32(begin * columns)
            load_keys(stage, k_at, v_at, key, last_key - key, p)

        _, score_scale = scales_of(p.scale)
        acc = cuda.local.array(result_count, kind)
        for e in range(result_count):
            acc[e] = zero
        slot = np.int32(0)
        for step in range(begin, end):
            _ptx.wait_for_all_copies()
            fence()
            cuda.syncthreads()
            current, slot = np.int32(stage + slot * 2 * x_size), np.int32(1 - slot)
            key = np.int32(step * columns)
            if step + 1 < end:
                to, next_key = np.int32(stage + slot * 2 * x_size), np.int32(key + columns)
                load_keys(to, k_at, v_at, next_key, last_key - next_key, p)
            s, ds = cuda.local.array(score_count, kind), cuda.local.array(score_count, kind)
            slopes = cuda.local.array(score_count, kind)
            for e in range(score_count):
                s[e] = ds[e] = zero
            multiply(s, shared + my_rows, current)
            multiply(ds, g_tile + my_rows, current + x_size)
            is_edge = key < full_low or key + columns > full_high
            softcap_slopes(s, slopes, p)
            finish(s, p, key, is_edge, limits, masks, row, p.mask_item)
            grads(s, ds, slopes, norms, score_scale, p.softcap)
            accumulate(acc, ds, current, part * part_width, scratch)

        for e in range(result_count):
            acc[e] *= real(p.scale)
        _ptx.wait_for_all_copies()  # where no key is seen, that of the rows may be under way
        cuda.syncthreads()
        # Computed again, rather than kept in registers while products need them.
        part, _, entry, head, tile = locate(p, rows, np.int64(1), 0)
        span = span_of(p, entry)
        first = tile * rows
        count = min(span.queries - first, np.int64(rows))
        row, rows_left = first + warp * warp_rows, count - warp * warp_rows
        shift = part * part_width * size
        dq_at = in_line(row_of_dq(p, entry, head, span.first_q), p.dq_row)
        write(acc, shared + my_rows, dq_at, row, rows_left, shift, p.width, p.aligned & OF_DQ)

    return backward_q


@cache
def backward_kv_of(tiling):
    name, width, part_width, _, row_tiles, columns, general, _ = tiling
    storage, scores = storage_of(name), scores_of(tiling)
    size, kind, real, number = storage.size, storage.type, storage.real, storage.real_size
    zero = real(0)
    rows, threads = tiling.rows, tiling.threads
    lane_rows, warp_rows = tiling.lane_rows, tiling.warp_rows
    score_count, result_count = row_tiles * columns // 2, row_tiles * part_width // 2
    tile_size, x_size = size_of(name, rows, width), size_of(name, columns, width)
    step_size, norms_size = 2 * x_size, 3 * columns * number
    warp_scratch = scratch_of(name, row_tiles, columns)
    _, load_keys = pair_loaders_of(name, rows, width, threads)
    load_queries, _ = pair_loaders_of(name, columns, width, threads)
    load_numbers = number_loader_of(name, columns)
    products = products_of(tiling, part_width)
    multiply, accumulate, fence = products.scores, products.values, products.fence
    scales_of, finish, grads = scores.scales_of, scores.finish, scores.grads_of_columns
    keep_limits, softcap_slopes = scores.keep_limits, scores.softcap_slopes
    write, mask_lines = writer_of(name, row_tiles, part_width, rows), mask_lines_of(general)

    @device
    def limit_queries(r, p, limits, row, span):
        """Keep the queries that see a key."""
        row += 8 * r
        low, high = bounds(row - span.offset, p.right, p.left, span.queries)
        keep_limits(limits, r, low, high if row < span.keys else low)

    limit_all = unrolled(lane_rows, limit_queries)

    @device
    def load_step(to, norms, p, entry, head, query, span):
        """A step: queries, the gradients of their results, and their `norm_at`."""
        left = span.queries - query
        q_at, g_at = query_lines(p, entry, head, span)
        at = row_number(p, entry, head, span.first_q + query)
        load_queries(to, q_at, g_at, query, left, p)
        load_numbers(norms, norm_at(p, 1, at, number), number, left)
        load_numbers(norms + columns * number, norm_at(p, 2, at, number), number, left)
        load_numbers(norms + 2 * columns * number, norm_at(p, 0, at, number), number, left)

    @cuda.jit
    def backward_kv(p: Problem):
        part, _, entry, kv_head, tile = locate(p, rows, np.int64(1), 2)
        span = span_of(p, entry)
        first = tile * rows
        count = min(span.keys - first, np.int64(rows))
        if count <= 0:
            return
        k_at, v_at = key_lines(p, entry, kv_head, span)

        warp = np.int32(cuda.threadIdx.x >> 5)
        row = first + warp * warp_rows + np.int32(cuda.threadIdx.x >> 2 & 7)
        tile_low, full_high = bounds(first - span.offset, p.right, p.left, span.queries)
        full_low, tile_high = bounds(first + count - 1 - span.offset, p.right, p.left, span.queries)
        begin = np.int32(tile_low // columns)
        head_steps = np.int32(max((tile_high + columns - 1) // columns - begin, np.int64(0)))
        end = np.int32(head_steps * p.group)
        full_low, full_high = np.int32(full_low), np.int32(full_high)

        shared = np.int32(_ptx.dynamic_shared())
        v_tile = np.int32(shared + tile_size)
        stage = np.int32(v_tile + tile_size)
        my_rows = np.int32(warp * (warp_rows * PANEL))
        # The `norm_at` of the queries of a step lie behind the tiles, which thus begin at multiples
        # of 1024 bytes.
        step_norms = np.int32(stage + 2 * step_size)
        limits = np.int32(step_norms + 2 * norms_size + warp * (8 * warp_rows))
        scratch = np.int32(step_norms + 2 * norms_size + 8 * rows + warp * warp_scratch)
        limit_all(p, limits, row, span)
        load_keys(shared, k_at, v_at, first, count, p)
        first_query = np.int32(begin * columns)
        next_query, next_head = first_query, kv_head * p.group
        if end > 0:
            load_step(stage, step_norms, p, entry, next_head, first_query, span)

        _, score_scale = scales_of(p.scale)
        dk_acc, dv_acc = cuda.local.array(result_count, kind), cuda.local.array(result_count, kind)
        for e in range(result_count):
            dk_acc[e] = dv_acc[e] = zero
        slot = np.int32(0)
        for step in range(end):
            _ptx.wait_for_all_copies()
            fence()
            cuda.syncthreads()
            norms = np.int32(step_norms + slot * norms_size)
            current, slot = np.int32(stage + slot * step_size), np.int32(1 - slot)
            query, head = next_query, next_head
            next_query = np.int32(next_query + columns)
            if next_query >= first_query + head_steps * columns:
                next_query, next_head = first_query, next_head + 1
            if step + 1 < end:
                to = np.int32(stage + slot * step_size)
                next_norms = step_norms + slot * norms_size
                load_step(to, next_norms, p, entry, next_head, next_query, span)
            masks = mask_lines(p, entry, head, p.mask_item)
            s, ds = cuda.local.array(score_count, kind), cuda.local.array(score_count, kind)
            slopes = cuda.local.array(score_count, kind)
            for e in range(score_count):
                s[e] = ds[e] = zero
            multiply(s, shared + my_rows, current)
            multiply(ds, v_tile + my_rows, current + x_size)
            is_edge = query < full_low or query + columns > full_high
            softcap_slopes(s, slopes, p)
            finish(s, p, query, is_edge, limits, masks, row, p.mask_row)
            grads(s, ds, slopes, norms, score_scale, p.softcap)
            accumulate(dv_acc, s, current + x_size, part * part_width, scratch)
            accumulate(dk_acc, ds, current, part * part_width, scratch)

        for e in range(result_count):
            dk_acc[e] *= real(p.scale)
        _ptx.wait_for_all_copies()
        cuda.syncthreads()
        # Computed again, rather than kept in registers while products need them.
        part, _, entry, kv_head, tile = locate(p, rows, np.int64(1), 2)
        span = span_of(p, entry)
        first = tile * rows
        count = min(span.keys - first, np.int64(rows))
        row, rows_left = first + warp * warp_rows, count - warp * warp_rows
        shift = part * part_width * size
        dk_at = in_line(row_of_dk(p, entry, kv_head, span.first_k), p.dk_row)
        dv_at = in_line(row_of_dv(p, entry, kv_head, span.first_k), p.dv_row)
        write(dk_acc, shared + my_rows, dk_at, row, rows_left, shift, p.width, p.aligned & OF_DK)
        write(
            dv_acc, v_tile + my_rows, dv_at, row, rows_left, shift, p.value_width, p.aligned & OF_DV
        )  # fmt: skip

    return backward_kv
