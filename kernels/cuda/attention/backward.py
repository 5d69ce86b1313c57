"""Gradients of attention on a GPU, in four launches, and a fifth for that of the mask.

With P the weights, which lse gives back, and D = sum(dO * O) of each query,

    dV = P' dO,   dS = P * (dO V' - D),   dQ = scale dS K,   dK = scale dS' Q

`delta` makes D. lse is rounded to its own size: of scores around -1e9 it is the same for one key
and for a thousand. Where it is large, `norms` makes the largest score of a query, the sum of its
weights and D again, of the same products as the others. `backward_q` has tiles of queries and goes
over the keys, `backward_kv` has tiles of keys and goes over the queries of all heads that share
them, with everything transposed; so each gradient is summed in registers, by one block, in one
order. That takes seven products where one
pass that adds to dQ from many blocks takes five, but its sums would depend on who comes first.
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
    span,
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


def norms_shared_size(tiling):
    """Of a block of `norms`."""
    both = size_of(tiling.dtype, tiling.rows + tiling.columns, tiling.width)
    return 2 * both + 8 * tiling.rows


@device
def norm_at(p, which, at, number):
    """Of query number `at`: D, what is subtracted from its scores (in the unit of the products that
    `scores_of` leaves), and the logarithm of what weights are divided by: `which` is 0, 1 or 2.
    """
    return p.delta + (which * p.all_rows + at) * number


@cache
def delta_of(name):
    """The kernel of D, and of lse by `natural`; a warp for each query of each head."""
    storage = storage_of(name)
    size, load, put, number = storage.size, storage.load, storage.put_number, storage.real_size
    get, real = storage.get_number, storage.real
    zero, warp_sum = storage.real(0), reduce_of(name).warp_sum

    @cuda.jit
    def delta(p, natural):
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
            top = real(np.inf) if lse == real(-np.inf) else lse / real(natural)
            put(norm_at(p, 1, at, number), top)
            put(norm_at(p, 2, at, number), zero)

    return delta


@cache
def known_rows_of(tiling):
    """Of the rows of a lane, where rows are queries: what is known before any product."""
    storage, keep_limits = storage_of(tiling.dtype), scores_of(tiling).keep_limits
    get_number, number, zero = storage.get_number, storage.real_size, storage.real(0)

    @device
    def known(r, p, top, log_sum, delta, limits, place, row, queries, keys, offset):
        """Of a row: what `norm_at` tells, and the keys that it may see."""
        entry, head, first_q = place
        row += 8 * r
        low, high = bounds(row + offset, p.left, p.right, keys)
        keep_limits(limits, r, low, high if row < queries else low)
        top[r] = log_sum[r] = delta[r] = zero
        if row < queries:
            at = row_number(p, entry, head, first_q + row)
            delta[r] = get_number(norm_at(p, 0, at, number))
            top[r] = get_number(norm_at(p, 1, at, number))
            log_sum[r] = get_number(norm_at(p, 2, at, number))

    return unrolled(2 * tiling.row_tiles, known)


@cache
def norms_of(tiling):
    """The kernel of what `norm_at` tells of queries whose lse is large. It has the tiles of
    `backward_q`; one without such a query is left at once. Nothing is copied ahead here.
    """
    name, width, _, warps, row_tiles, columns, general, _ = tiling
    storage, scores = storage_of(name), scores_of(tiling)
    kind, number = storage.type, storage.real_size
    get, put, maximum = storage.get_number, storage.put_number, storage.maximum
    zero, one, lowest = storage.real(0), storage.real(1), storage.real(-np.inf)
    highest, large = storage.real(np.inf), storage.real(LARGE)
    rows, threads, lane_rows = tiling.rows, tiling.threads, 2 * row_tiles
    warp_rows, tiles = 16 * row_tiles, columns // 8
    score_count = row_tiles * columns // 2
    tile_size, x_size = size_of(name, rows, width), size_of(name, columns, width)
    load_rows = loader_of(name, rows, width, threads)
    load_columns = loader_of(name, columns, width, threads)
    products = products_of(tiling, tiling.part)
    multiply, show = products.scores, products.show
    unit_of, finish, keep_limits = scores.unit_of, scores.finish, scores.keep_limits
    row_max, shared_sum = scores.row_max, scores.shared_sum
    given_weight, log_of = scores.given_weight, scores.log_of

    @device
    def is_large(p, entry, head, row):
        lse = abs(get(row_of_lse(p, entry, head, row)))
        return lse > large and lse != highest

    @device
    def see(r, p, limits, row, queries, keys, offset):
        """The keys that a row may see."""
        row += 8 * r
        low, high = bounds(row + offset, p.left, p.right, keys)
        keep_limits(limits, r, low, high if row < queries else low)

    @device
    def find_top(r, s, top):
        top[r] = maximum(top[r], row_max(s, r))

    @device
    def add(r, s, ds, top, total, pulled, natural):
        known = zero if top[r] == lowest else top[r]
        for n in range(tiles):
            k = ((r >> 1) * tiles + n) * 4 + 2 * (r & 1)
            for i in range(2):
                weight = given_weight(s[k + i], known, zero, natural)
                total[r] += weight
                pulled[r] += weight * ds[k + i]

    @device
    def leave(r, p, top, total, pulled, place, row, queries):
        total[r], pulled[r] = shared_sum(total[r]), shared_sum(pulled[r])
        row += 8 * r
        entry, head, first_q = place
        if cuda.threadIdx.x & 3 == 0 and row < queries and is_large(p, entry, head, first_q + row):
            at = row_number(p, entry, head, first_q + row)
            sees_any = total[r] != zero
            sum_ = total[r] if sees_any else one
            put(norm_at(p, 0, at, number), pulled[r] / sum_)
            put(norm_at(p, 1, at, number), top[r] if sees_any else highest)
            put(norm_at(p, 2, at, number), log_of(sum_))

    see_all, find_tops = unrolled(lane_rows, see), unrolled(lane_rows, find_top)
    add_all, leave_all = unrolled(lane_rows, add), unrolled(lane_rows, leave)

    @cuda.jit
    def norms(p, scale, softcap):
        _, _, entry, head, tile = locate(p, rows, np.int64(1), 0)
        first_q, queries, first_k, keys, offset = span(p, entry)
        first = tile * rows
        count = min(queries - first, np.int64(rows))
        if count <= 0:
            return
        shared = np.int32(_ptx.dynamic_shared())
        g_tile = np.int32(shared + tile_size)
        k_tile = np.int32(g_tile + tile_size)
        v_tile = np.int32(k_tile + x_size)
        warp, row = np.int32(cuda.threadIdx.x >> 5), np.int64(cuda.threadIdx.x)
        wanted = np.int32(0)
        while row < count:
            if is_large(p, entry, head, first_q + first + row):
                wanted = np.int32(1)
            row += threads
        for lanes in (1, 2, 4, 8, 16):
            wanted |= cuda.shfl_xor_sync(ALL, wanted, lanes)
        if cuda.threadIdx.x & 31 == 0:
            _ptx.shared_store_u32(np.uint32(k_tile + 4 * warp), np.uint32(wanted))
        cuda.syncthreads()
        for other in range(warps):
            wanted |= np.int32(_ptx.shared_load_u32(np.uint32(k_tile + 4 * other)))
        if wanted == 0:
            return
        kv_head = head // p.group
        q = row_of_q(p, entry, head, first_q)
        g = row_of_grad_out(p, entry, head, first_q)
        k_at = in_line(row_of_k(p, entry, kv_head, first_k), p.k_row)
        v_at = in_line(row_of_v(p, entry, kv_head, first_k), p.v_row)
        row = first + warp * warp_rows + np.int32(cuda.threadIdx.x >> 2 & 7)
        limits = np.int32(v_tile + x_size + warp * (8 * warp_rows))
        mine = np.int32(warp * (warp_rows * PANEL))
        see_all(p, limits, row, queries, keys, offset)
        masks = in_line(np.int64(0), p.mask_row)
        if general and p.mask != 0:
            mask = row_of_mask(p, entry, head, np.int64(0))
            masks = in_line(mask, p.mask_row)
        tile_low, _ = bounds(offset + first, p.left, p.right, keys)
        _, tile_high = bounds(offset + first + count - 1, p.left, p.right, keys)
        begin, end = np.int32(tile_low // columns), np.int32((tile_high + columns - 1) // columns)
        load_rows(shared, in_line(q, p.q_row), first, count, p.width, p.aligned & OF_Q)
        g_at = in_line(g, p.grad_out_row)
        load_rows(g_tile, g_at, first, count, p.value_width, p.aligned & OF_GRAD_OUT)

        _, natural = unit_of(scale)
        top, total = cuda.local.array(lane_rows, kind), cuda.local.array(lane_rows, kind)
        pulled = cuda.local.array(lane_rows, kind)
        for r in range(lane_rows):
            top[r], total[r], pulled[r] = lowest, zero, zero
        # First the largest scores, then the sums of exactly those weights that the others make.
        for again in range(2):
            for step in range(begin, end):
                key = np.int32(step * columns)
                left = keys - key
                cuda.syncthreads()
                load_columns(k_tile, k_at, key, left, p.width, p.aligned & OF_K)
                if again:
                    load_columns(v_tile, v_at, key, left, p.value_width, p.aligned & OF_V)
                _ptx.wait_for_all_copies()
                show()
                cuda.syncthreads()
                s, ds = cuda.local.array(score_count, kind), cuda.local.array(score_count, kind)
                for e in range(score_count):
                    s[e] = ds[e] = zero
                multiply(s, shared + mine, k_tile)
                finish(s, p, scale, softcap, key, True, limits, masks, row, p.mask_item)
                if again:
                    multiply(ds, g_tile + mine, v_tile)
                    add_all(s, ds, top, total, pulled, natural)
                else:
                    find_tops(s, top)
        leave_all(p, top, total, pulled, (entry, head, first_q), row, queries)

    return norms


@cache
def backward_q_of(tiling):
    name, width, part_width, _, row_tiles, columns, general, _ = tiling
    storage, scores = storage_of(name), scores_of(tiling)
    size, kind, real = storage.size, storage.type, storage.real
    zero = real(0)
    rows, threads, lane_rows = tiling.rows, tiling.threads, 2 * row_tiles
    warp_rows = 16 * row_tiles
    score_count, result_count = row_tiles * columns // 2, row_tiles * part_width // 2
    tile_size, x_size = size_of(name, rows, width), size_of(name, columns, width)
    warp_scratch = scratch_of(name, row_tiles, columns)
    load_rows = loader_of(name, rows, width, threads)
    load_step = loader_of(name, columns, width, threads)
    products = products_of(tiling, part_width)
    multiply, accumulate, show = products.scores, products.values, products.show
    unit_of, finish, grads = scores.unit_of, scores.finish, scores.grads_of_rows
    keep_slopes = scores.keep_slopes
    write = writer_of(name, row_tiles, part_width, rows)
    known_all = known_rows_of(tiling)

    @cuda.jit
    def backward_q(p, scale, softcap):
        part, _, entry, head, tile = locate(p, rows, np.int64(1), 0)
        first_q, queries, first_k, keys, offset = span(p, entry)
        first = tile * rows
        count = min(queries - first, np.int64(rows))
        if count <= 0:
            return
        kv_head = head // p.group
        q = row_of_q(p, entry, head, first_q)
        k = row_of_k(p, entry, kv_head, first_k)
        v = row_of_v(p, entry, kv_head, first_k)
        g = row_of_grad_out(p, entry, head, first_q)

        warp = np.int32(cuda.threadIdx.x >> 5)
        top, log_sum = cuda.local.array(lane_rows, kind), cuda.local.array(lane_rows, kind)
        delta = cuda.local.array(lane_rows, kind)
        row = first + warp * warp_rows + np.int32(cuda.threadIdx.x >> 2 & 7)
        place = entry, head, first_q
        tile_low, full_high = bounds(offset + first, p.left, p.right, keys)
        full_low, tile_high = bounds(offset + first + count - 1, p.left, p.right, keys)
        begin, end = np.int32(tile_low // columns), np.int32((tile_high + columns - 1) // columns)
        last_key, full_low, full_high = np.int32(keys), np.int32(full_low), np.int32(full_high)

        shared = np.int32(_ptx.dynamic_shared())
        g_tile = np.int32(shared + tile_size)
        stage = np.int32(g_tile + tile_size)
        mine = np.int32(warp * (warp_rows * PANEL))
        limits = np.int32(stage + 4 * x_size + warp * (8 * warp_rows))
        scratch = np.int32(stage + 4 * x_size + 8 * rows + warp * warp_scratch)
        known_all(p, top, log_sum, delta, limits, place, row, queries, keys, offset)
        masks = in_line(np.int64(0), p.mask_row)
        if general and p.mask != 0:
            mask = row_of_mask(p, entry, head, np.int64(0))
            masks = in_line(mask, p.mask_row)
        g_at = in_line(g, p.grad_out_row)
        load_rows(shared, in_line(q, p.q_row), first, count, p.width, p.aligned & OF_Q)
        load_rows(g_tile, g_at, first, count, p.value_width, p.aligned & OF_GRAD_OUT)
        k_at, v_at = in_line(k, p.k_row), in_line(v, p.v_row)
        if begin < end:
            key = np.int32(begin * columns)
            left = last_key - key
            load_step(stage, k_at, key, left, p.width, p.aligned & OF_K)
            load_step(stage + x_size, v_at, key, left, p.value_width, p.aligned & OF_V)

        _, natural = unit_of(scale)
        acc = cuda.local.array(result_count, kind)
        for e in range(result_count):
            acc[e] = zero
        turn = np.int32(0)
        for step in range(begin, end):
            _ptx.wait_for_all_copies()
            show()
            cuda.syncthreads()
            this, turn = np.int32(stage + turn * 2 * x_size), np.int32(1 - turn)
            key = np.int32(step * columns)
            if step + 1 < end:
                to, next_key = np.int32(stage + turn * 2 * x_size), np.int32(key + columns)
                left = last_key - next_key
                load_step(to, k_at, next_key, left, p.width, p.aligned & OF_K)
                load_step(to + x_size, v_at, next_key, left, p.value_width, p.aligned & OF_V)
            s, ds = cuda.local.array(score_count, kind), cuda.local.array(score_count, kind)
            slopes = cuda.local.array(score_count, kind)
            for e in range(score_count):
                s[e] = ds[e] = zero
            multiply(s, shared + mine, this)
            multiply(ds, g_tile + mine, this + x_size)
            is_edge = key < full_low or key + columns > full_high
            keep_slopes(s, slopes, scale, softcap)
            finish(s, p, scale, softcap, key, is_edge, limits, masks, row, p.mask_item)
            grads(s, ds, slopes, top, log_sum, delta, natural, softcap)
            accumulate(acc, ds, this, part * part_width, scratch)

        for e in range(result_count):
            acc[e] *= real(scale)
        _ptx.wait_for_all_copies()  # where nothing is seen, that of the rows may be under way
        cuda.syncthreads()
        # Found again, rather than kept in registers while products need them.
        part, _, entry, head, tile = locate(p, rows, np.int64(1), 0)
        first_q, queries, _, _, _ = span(p, entry)
        first = tile * rows
        count = min(queries - first, np.int64(rows))
        dq = row_of_dq(p, entry, head, first_q)
        row, live = first + warp * warp_rows, count - warp * warp_rows
        shift = part * part_width * size
        dq_at = in_line(dq, p.dq_row)
        write(acc, shared + mine, dq_at, row, live, shift, p.width, p.aligned & OF_DQ)

    return backward_q


@cache
def backward_kv_of(tiling):
    name, width, part_width, _, row_tiles, columns, general, _ = tiling
    storage, scores = storage_of(name), scores_of(tiling)
    size, kind, real, number = storage.size, storage.type, storage.real, storage.real_size
    zero = real(0)
    rows, threads, lane_rows = tiling.rows, tiling.threads, 2 * row_tiles
    warp_rows = 16 * row_tiles
    score_count, result_count = row_tiles * columns // 2, row_tiles * part_width // 2
    tile_size, x_size = size_of(name, rows, width), size_of(name, columns, width)
    step_size, known_size = 2 * x_size, 3 * columns * number
    warp_scratch = scratch_of(name, row_tiles, columns)
    load_rows = loader_of(name, rows, width, threads)
    load_step = loader_of(name, columns, width, threads)
    load_numbers = number_loader_of(name, columns)
    products = products_of(tiling, part_width)
    multiply, accumulate, show = products.scores, products.values, products.show
    unit_of, finish, grads = scores.unit_of, scores.finish, scores.grads_of_columns
    keep_limits = scores.keep_limits
    keep_slopes = scores.keep_slopes
    write = writer_of(name, row_tiles, part_width, rows)

    @device
    def known(r, p, limits, row, queries, keys, offset):
        """The queries that may see a key."""
        row += 8 * r
        low, high = bounds(row - offset, p.right, p.left, queries)
        keep_limits(limits, r, low, high if row < keys else low)

    known_all = unrolled(lane_rows, known)

    @device
    def load_queries(to, known, p, entry, head, first_q, query, queries):
        """A step: queries, the gradients of their results, and what `norm_at` tells."""
        left = queries - query
        q = row_of_q(p, entry, head, first_q)
        g = row_of_grad_out(p, entry, head, first_q)
        at = row_number(p, entry, head, first_q + query)
        g_at = in_line(g, p.grad_out_row)
        load_step(to, in_line(q, p.q_row), query, left, p.width, p.aligned & OF_Q)
        load_step(to + x_size, g_at, query, left, p.value_width, p.aligned & OF_GRAD_OUT)
        load_numbers(known, norm_at(p, 1, at, number), number, left)
        load_numbers(known + columns * number, norm_at(p, 2, at, number), number, left)
        load_numbers(known + 2 * columns * number, norm_at(p, 0, at, number), number, left)

    @cuda.jit
    def backward_kv(p, scale, softcap):
        part, _, entry, kv_head, tile = locate(p, rows, np.int64(1), 2)
        first_q, queries, first_k, keys, offset = span(p, entry)
        first = tile * rows
        count = min(keys - first, np.int64(rows))
        if count <= 0:
            return
        k = row_of_k(p, entry, kv_head, first_k)
        v = row_of_v(p, entry, kv_head, first_k)

        warp = np.int32(cuda.threadIdx.x >> 5)
        row = first + warp * warp_rows + np.int32(cuda.threadIdx.x >> 2 & 7)
        tile_low, full_high = bounds(first - offset, p.right, p.left, queries)
        full_low, tile_high = bounds(first + count - 1 - offset, p.right, p.left, queries)
        begin = np.int32(tile_low // columns)
        # Steps of a head, and of all.
        each = np.int32(max((tile_high + columns - 1) // columns - begin, np.int64(0)))
        end = np.int32(each * p.group)
        full_low, full_high = np.int32(full_low), np.int32(full_high)

        shared = np.int32(_ptx.dynamic_shared())
        v_tile = np.int32(shared + tile_size)
        stage = np.int32(v_tile + tile_size)
        mine = np.int32(warp * (warp_rows * PANEL))
        # What is known of the queries of a step lies behind the tiles, which thus begin at
        # multiples of 1024 bytes.
        in_step = np.int32(stage + 2 * step_size)
        limits = np.int32(in_step + 2 * known_size + warp * (8 * warp_rows))
        scratch = np.int32(in_step + 2 * known_size + 8 * rows + warp * warp_scratch)
        known_all(p, limits, row, queries, keys, offset)
        load_rows(shared, in_line(k, p.k_row), first, count, p.width, p.aligned & OF_K)
        load_rows(v_tile, in_line(v, p.v_row), first, count, p.value_width, p.aligned & OF_V)
        first_query = np.int32(begin * columns)
        next_query, next_head = first_query, kv_head * p.group
        if end > 0:
            load_queries(stage, in_step, p, entry, next_head, first_q, first_query, queries)

        _, natural = unit_of(scale)
        dk_acc, dv_acc = cuda.local.array(result_count, kind), cuda.local.array(result_count, kind)
        for e in range(result_count):
            dk_acc[e] = dv_acc[e] = zero
        turn = np.int32(0)
        for step in range(end):
            _ptx.wait_for_all_copies()
            show()
            cuda.syncthreads()
            known = np.int32(in_step + turn * known_size)
            this, turn = np.int32(stage + turn * step_size), np.int32(1 - turn)
            query, head = next_query, next_head
            next_query = np.int32(next_query + columns)
            if next_query >= first_query + each * columns:
                next_query, next_head = first_query, next_head + 1
            if step + 1 < end:
                to = np.int32(stage + turn * step_size)
                load_queries(
                    to,
                    in_step + turn * known_size,
                    p,
                    entry,
                    next_head,
                    first_q,
                    next_query,
                    queries,
                )
            masks = in_line(np.int64(0), p.mask_item)
            if general and p.mask != 0:
                mask = row_of_mask(p, entry, head, np.int64(0))
                masks = in_line(mask, p.mask_item)
            s, ds = cuda.local.array(score_count, kind), cuda.local.array(score_count, kind)
            slopes = cuda.local.array(score_count, kind)
            for e in range(score_count):
                s[e] = ds[e] = zero
            multiply(s, shared + mine, this)
            multiply(ds, v_tile + mine, this + x_size)
            is_edge = query < full_low or query + columns > full_high
            keep_slopes(s, slopes, scale, softcap)
            finish(s, p, scale, softcap, query, is_edge, limits, masks, row, p.mask_row)
            grads(s, ds, slopes, known, natural, softcap)
            accumulate(dv_acc, s, this + x_size, part * part_width, scratch)
            accumulate(dk_acc, ds, this, part * part_width, scratch)

        for e in range(result_count):
            dk_acc[e] *= real(scale)
        _ptx.wait_for_all_copies()
        cuda.syncthreads()
        # Found again, rather than kept in registers while products need them.
        part, _, entry, kv_head, tile = locate(p, rows, np.int64(1), 2)
        _, _, first_k, keys, _ = span(p, entry)
        first = tile * rows
        count = min(keys - first, np.int64(rows))
        dk = row_of_dk(p, entry, kv_head, first_k)
        dv = row_of_dv(p, entry, kv_head, first_k)
        row, live = first + warp * warp_rows, count - warp * warp_rows
        shift = part * part_width * size
        dk_at, dv_at = in_line(dk, p.dk_row), in_line(dv, p.dv_row)
        write(dk_acc, shared + mine, dk_at, row, live, shift, p.width, p.aligned & OF_DK)
        write(dv_acc, v_tile + mine, dv_at, row, live, shift, p.value_width, p.aligned & OF_DV)

    return backward_kv
