"""Attention on a GPU: one pass over the keys, without an array of queries by keys.

A block has some queries of a head and goes over the keys, in steps; the keys and values of the next
step are copied to shared memory while it computes. A row keeps the largest score so far, the sum of
its weights and their sum times the values, which are rescaled when the largest grows (Milakov &
Gimelshein 2018, Dao 2023).

Where there are too few queries for all multiprocessors, heads that share keys are rows of one tile,
and the keys are split: each block writes what its rows keep, and `merge` combines it, in order.
"""

import math
from functools import cache

import numpy as np
from numba import cuda

from .. import _ptx
from .._math import device
from .._storage import storage_of
from .products import products_of
from .scores import scores_of
from .tiles import (
    PANEL,
    in_line,
    loader_of,
    place_of_row,
    row_at,
    scratch_of,
    size_of,
    unrolled,
    writer_of,
)
from .work import (
    OF_K,
    OF_OUT,
    OF_Q,
    OF_V,
    Problem,
    bounds,
    locate,
    row_number,
    row_of_k,
    row_of_lse,
    row_of_mask,
    row_of_out,
    row_of_q,
    row_of_v,
    span_of,
)


def shared_size(tiling):
    """Bytes of shared memory of a block: queries, two steps of keys and values, scratch."""
    name, warps = tiling.dtype, tiling.warps
    columns = tiling.columns
    step = size_of(name, columns, tiling.width) + size_of(name, columns, tiling.part)
    scratch = warps * scratch_of(name, tiling.row_tiles, tiling.columns) + 8 * tiling.rows
    return size_of(name, tiling.rows, tiling.width) + 2 * step + scratch


@cache
def forward_of(tiling):
    name, width, part_width, _, row_tiles, columns, general, _ = tiling
    storage, scores = storage_of(name), scores_of(tiling)
    size, kind, real, number = storage.size, storage.type, storage.real, storage.real_size
    zero, one, lowest = real(0), real(1), real(-np.inf)
    rows, threads = tiling.rows, tiling.threads
    lane_rows, warp_rows = tiling.lane_rows, tiling.warp_rows
    score_count, result_count = row_tiles * columns // 2, row_tiles * part_width // 2
    per_row = result_count // lane_rows
    q_size, x_size = size_of(name, rows, width), size_of(name, columns, width)
    step_size = x_size + size_of(name, columns, part_width)
    warp_scratch = scratch_of(name, row_tiles, columns)
    load_q = loader_of(name, rows, width, threads)
    load_k = loader_of(name, columns, width, threads)
    load_v = loader_of(name, columns, part_width, threads)
    products = products_of(tiling, part_width)
    multiply, accumulate, fence = products.scores, products.values, products.fence
    scales_of, finish, max_of_row = scores.scales_of, scores.finish, scores.max_of_row
    keep_limits = scores.keep_limits
    weight, weights, shared_sum = scores.weight, scores.weights, scores.shared_sum
    write = writer_of(name, row_tiles, part_width, rows)
    store_number = storage.put_number

    place_of, maximum = place_of_row(part_width), storage.maximum

    @device
    def add_step(r, s, acc, row_max, total, exp_scale):
        """Weights of a row in place of its scores `s`, and what it keeps of them."""
        new_max = maximum(row_max[r], max_of_row(s, r))
        finite_max = zero if new_max == lowest else new_max
        factor = weight(row_max[r], finite_max, exp_scale)
        row_max[r] = new_max
        total[r] = total[r] * factor + weights(s, r, finite_max, exp_scale)
        for e in range(per_row):
            acc[place_of(r, e)] *= factor

    @device
    def finish_row(r, acc, row_max, total, score_scale, row, count, lse_at):
        """The result of a row and, where `lse_at` is an address, its lse."""
        total[r] = shared_sum(total[r])
        row += 8 * r
        if lse_at[0] != 0 and cuda.threadIdx.x & 3 == 0 and row < count:
            lse = row_max[r] * score_scale + math.log(total[r]) if total[r] != zero else lowest
            store_number(row_at(lse_at, row), lse)
        # A factor, as divisions take more registers than a thread has. The sum is 1 or more.
        factor, sees_any = one / total[r], total[r] != zero
        for e in range(per_row):
            # A weight of 0 times an infinite value is NaN, but not in a row that sees no key.
            value = acc[place_of(r, e)] * factor
            acc[place_of(r, e)] = value if sees_any else zero

    @device
    def store_partial(r, acc, row_max, total, score_scale, row, count, p, place, split, part):
        """Write what a row keeps, for `merge`. `place` is (entry, head, first query)."""
        total[r] = shared_sum(total[r])
        row += 8 * r
        if row < count:
            entry, head, first_q = place
            query, t = row // p.pack, np.int32(cuda.threadIdx.x) & 3
            at = row_number(p, entry, head + row - query * p.pack, first_q + query)
            at += split * p.all_rows
            width = p.parts * part_width
            to = p.partial + (at * width + part * part_width + 2 * t) * number
            for e in range(per_row):
                store_number(to + (8 * (e >> 1) + (e & 1)) * number, acc[place_of(r, e)])
            if part == 0 and t == 0:
                to = p.partial + (p.splits * p.all_rows * width + 2 * at) * number
                store_number(to, row_max[r] * score_scale)
                store_number(to + number, total[r])

    @device
    def limit_keys(r, p, limits, row, count, span):
        """Keep the keys that a row sees."""
        row += 8 * r
        low, high = bounds(row // p.pack + span.offset, p.left, p.right, span.keys)
        keep_limits(limits, r, low, high if row < count else low)

    add_all, finish_all = unrolled(lane_rows, add_step), unrolled(lane_rows, finish_row)
    store_all, limit_all = unrolled(lane_rows, store_partial), unrolled(lane_rows, limit_keys)

    @cuda.jit
    def forward(p: Problem):
        part, split, entry, head, tile = locate(p, rows, p.pack, 0)
        span = span_of(p, entry)
        first, all_rows = tile * rows, span.queries * p.pack
        count = min(all_rows - first, np.int64(rows))
        if count <= 0:
            return
        kv_head, head = head * p.pack // p.group, head * p.pack
        q = row_of_q(p, entry, head, span.first_q)
        k = row_of_k(p, entry, kv_head, span.first_k)
        v = row_of_v(p, entry, kv_head, span.first_k)
        shift = part * part_width * size
        v += shift

        warp, g = np.int32(cuda.threadIdx.x >> 5), np.int32(cuda.threadIdx.x >> 2 & 7)
        row = first + warp * warp_rows + g
        # The keys that any row sees, and those that every row sees.
        first_position = span.offset + first // p.pack
        last_position = span.offset + (first + count - 1) // p.pack
        tile_low, full_high = bounds(first_position, p.left, p.right, span.keys)
        full_low, tile_high = bounds(last_position, p.left, p.right, span.keys)
        begin = tile_low // columns
        steps = max((tile_high + columns - 1) // columns - begin, np.int64(0))
        end = np.int32(begin + steps * (split + 1) // p.splits)
        begin = np.int32(begin + steps * split // p.splits)
        last_key, full_low, full_high = np.int32(span.keys), np.int32(full_low), np.int32(full_high)

        shared = np.int32(_ptx.dynamic_shared())
        stage = np.int32(shared + q_size)
        my_rows = np.int32(shared + warp * (warp_rows * PANEL))
        limits = np.int32(stage + 2 * step_size + warp * (8 * warp_rows))
        scratch = np.int32(stage + 2 * step_size + 8 * rows + warp * warp_scratch)
        limit_all(p, limits, row, all_rows, span)
        mask = np.int64(0)
        if general and p.mask != 0:
            mask = row_of_mask(p, entry, head, np.int64(0))
        masks = mask, p.mask_row, p.mask_head, p.pack
        load_q(shared, (q, p.q_row, p.q_head, p.pack), first, count, p.width, p.aligned & OF_Q)
        k_at, v_at = in_line(k, p.k_row), in_line(v, p.v_row)
        value_width = p.value_width - shift
        if begin < end:
            key = np.int32(begin * columns)
            load_k(stage, k_at, key, last_key - key, p.width, p.aligned & OF_K)
            load_v(stage + x_size, v_at, key, last_key - key, value_width, p.aligned & OF_V)

        exp_scale, score_scale = scales_of(p.scale)
        acc = cuda.local.array(result_count, kind)
        for e in range(result_count):
            acc[e] = zero
        row_max, total = cuda.local.array(lane_rows, kind), cuda.local.array(lane_rows, kind)
        for r in range(lane_rows):
            row_max[r], total[r] = lowest, zero
        slot = np.int32(0)
        for step in range(begin, end):
            _ptx.wait_for_all_copies()
            fence()
            cuda.syncthreads()
            current, slot = np.int32(stage + slot * step_size), np.int32(1 - slot)
            key = np.int32(step * columns)
            if step + 1 < end:
                to, next_key = np.int32(stage + slot * step_size), np.int32(key + columns)
                left = last_key - next_key
                load_k(to, k_at, next_key, left, p.width, p.aligned & OF_K)
                load_v(to + x_size, v_at, next_key, left, value_width, p.aligned & OF_V)
            s = cuda.local.array(score_count, kind)
            for e in range(score_count):
                s[e] = zero
            multiply(s, my_rows, current)
            is_edge = key < full_low or key + columns > full_high
            finish(s, p, key, is_edge, limits, masks, row, p.mask_item)
            add_all(s, acc, row_max, total, exp_scale)
            accumulate(acc, s, current + x_size, 0, scratch)

        _ptx.wait_for_all_copies()  # where no key is seen, that of the queries may be under way
        cuda.syncthreads()
        # Computed again, rather than kept in registers while products need them.
        part, split, entry, head, tile = locate(p, rows, p.pack, 0)
        span = span_of(p, entry)
        head *= p.pack
        first, all_rows = tile * rows, span.queries * p.pack
        count = min(all_rows - first, np.int64(rows))
        row = first + warp * warp_rows + g
        if p.splits > 1:
            place = entry, head, span.first_q
            store_all(acc, row_max, total, score_scale, row, all_rows, p, place, split, part)
            return
        lse = np.int64(0)
        if p.lse != 0 and part == 0:
            lse = row_of_lse(p, entry, head, span.first_q)
        lse_at = lse, p.lse_row, p.lse_head, p.pack
        finish_all(acc, row_max, total, score_scale, row, all_rows, lse_at)
        out_at = row_of_out(p, entry, head, span.first_q), p.out_row, p.out_head, p.pack
        row, rows_left = first + warp * warp_rows, count - warp * warp_rows
        shift = part * part_width * size
        write(acc, my_rows, out_at, row, rows_left, shift, p.value_width, p.aligned & OF_OUT)

    return forward


@cache
def merge_of(name, width):
    """The kernel that combines the results of parts of the keys; a warp for each row."""
    storage = storage_of(name)
    real, number, store = storage.real, storage.real_size, storage.store
    get, put, exp_below = storage.get_number, storage.put_number, storage.exp_below
    maximum, size = storage.maximum, storage.size
    zero, lowest = real(0), real(-np.inf)

    @cuda.jit
    def merge(p: Problem):
        lane = np.int64(cuda.threadIdx.x) & 31
        at = np.int64(cuda.blockIdx.x) * (cuda.blockDim.x >> 5) + (cuda.threadIdx.x >> 5)
        if at >= p.all_rows:
            return
        query, head = at % p.queries, at // p.queries
        head, entry = head % p.heads, head // p.heads
        kept = p.partial + p.splits * p.all_rows * width * number
        row_max, total = lowest, zero
        for split in range(p.splits):
            row_max = maximum(row_max, get(kept + 2 * number * (split * p.all_rows + at)))
        finite_max = zero if row_max == lowest else row_max
        for split in range(p.splits):
            there = kept + 2 * number * (split * p.all_rows + at)
            total += get(there + number) * exp_below(get(there), finite_max)
        if p.lse != 0 and lane == 0:
            to = row_of_lse(p, entry, head, query)
            put(to, row_max + math.log(total) if total != zero else lowest)
        out = row_of_out(p, entry, head, query)
        column = lane
        while column * size < p.value_width:
            result = zero
            for split in range(p.splits):
                there = split * p.all_rows + at
                factor = exp_below(get(kept + 2 * number * there), finite_max)
                value = get(p.partial + (there * width + column) * number)
                # A part that sees no key adds nothing, whatever its values are.
                result += value * factor if factor != zero else zero
            store(out + column * size, result / total if total != zero else zero)
            column += 32

    return merge
