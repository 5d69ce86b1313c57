"""The gradient of a floating attention mask on a GPU.

It is that of the scores, summed over the axes along which the mask was broadcast: batch entries,
heads, queries, keys. A block has a tile of the result and goes, in order, over all tiles of scores
that belong to it. Nothing is copied ahead here: the other gradients need as many products, and most
callers ask for no gradient of the mask.
"""

from functools import cache

import numpy as np
from numba import cuda

from .. import _ptx
from .._math import device
from .._reduce import ALL
from .._storage import storage_of
from .backward import key_lines, mask_lines_of, norm_loader_of, pair_loaders_of, query_lines
from .products import products_of
from .scores import scores_of
from .tiles import PANEL, place_of_row, size_of, unrolled
from .work import Problem, bounds, row_of_dmask, span_of


@cache
def mask_gradient_of(tiling):
    name, width, _, warps, row_tiles, columns, _, _ = tiling
    storage, scores = storage_of(name), scores_of(tiling)
    kind, real, number = storage.type, storage.real, storage.real_size
    get, put = storage.get_number, storage.put_number
    shared_load, shared_store = storage.shared_load, storage.shared_store
    zero = real(0)
    rows, threads = tiling.rows, tiling.threads
    lane_rows, warp_rows = tiling.lane_rows, tiling.warp_rows
    score_count, per_row, place_of = row_tiles * columns // 2, columns // 4, place_of_row(columns)
    tile_size, x_size = size_of(name, rows, width), size_of(name, columns, width)
    load_queries, _ = pair_loaders_of(name, rows, width, threads)
    _, load_keys = pair_loaders_of(name, columns, width, threads)
    multiply = products_of(tiling, width).scores
    scales_of, finish, grads = scores.scales_of, scores.finish, scores.grads_of_rows
    shared_sum, load_norms = scores.shared_sum, norm_loader_of(tiling)
    mask_lines = mask_lines_of(True)

    @device
    def add(address, value):
        put(address, get(address) + value)

    @device
    def add_row(r, acc, to, p, row, queries, column, keys):
        """A row of the tile; where the mask has one number for all keys, its sum."""
        row += 8 * r
        t = np.int32(cuda.threadIdx.x & 3)
        total = zero
        for e in range(per_row):
            value = acc[place_of(r, e)]
            total += value
            key = column + 8 * (e >> 1) + 2 * t + (e & 1)
            if p.dmask_item != 0 and row < queries and key < keys:
                add(to + row * p.dmask_row + key * p.dmask_item, value)
        if p.dmask_item == 0:
            total = shared_sum(total)
            if t == 0 and row < queries:
                add(to + row * p.dmask_row, total)

    @device
    def sum_columns(e, acc, at):
        """Sums over the rows of a warp, to shared memory."""
        total = zero
        for r in range(lane_rows):
            total += acc[place_of(r, e)]
        for step in (4, 8, 16):
            total += cuda.shfl_xor_sync(ALL, total, step)
        lane = np.int32(cuda.threadIdx.x & 31)
        if lane < 4:
            column = 8 * (e >> 1) + 2 * lane + (e & 1)
            shared_store(np.uint32(at + column * number), total)

    add_rows, sum_all_columns = unrolled(lane_rows, add_row), unrolled(per_row, sum_columns)

    @cuda.jit
    def mask_gradient(p: Problem, members, head_blocks, row_blocks, key_blocks, keys_there):
        b = np.int64(cuda.blockIdx.x)
        key_block = b % key_blocks
        b //= key_blocks
        row_block = b % row_blocks
        b //= row_blocks
        head_block, group = b % head_blocks, b // head_blocks
        row_tiles_there = (p.queries + rows - 1) // rows
        key_tiles_there = (keys_there + columns - 1) // columns
        heads, row_steps = p.heads // head_blocks, row_tiles_there // row_blocks
        key_steps = key_tiles_there // key_blocks
        # The table of `members_of`.
        groups = _ptx.load_i64(members)
        first_member = _ptx.load_i64(members + 8 * (1 + group))
        last_member = _ptx.load_i64(members + 8 * (2 + group))
        member_steps = heads * row_steps * key_steps
        warp = np.int32(cuda.threadIdx.x >> 5)
        shared = np.int32(_ptx.dynamic_shared())
        g_tile = np.int32(shared + tile_size)
        k_tile = np.int32(g_tile + tile_size)
        v_tile = np.int32(k_tile + x_size)
        limits = np.int32(v_tile + x_size + warp * (8 * warp_rows))
        my_rows = np.int32(warp * (warp_rows * PANEL))
        my_row = warp * warp_rows + np.int32(cuda.threadIdx.x >> 2 & 7)
        _, score_scale = scales_of(p.scale)
        acc = cuda.local.array(score_count, kind)
        for e in range(score_count):
            acc[e] = zero
        for step in range((last_member - first_member) * member_steps):
            member, i = first_member + step // member_steps, step % member_steps
            entry = _ptx.load_i64(members + 8 * (2 + groups + member))
            head = head_block * heads + i // (row_steps * key_steps)
            first = (row_block * row_steps + i // key_steps % row_steps) * rows
            key = (key_block * key_steps + i % key_steps) * columns
            span = span_of(p, entry)
            count = min(span.queries - first, np.int64(rows))
            tile_low, _ = bounds(span.offset + first, p.left, p.right, span.keys)
            _, tile_high = bounds(span.offset + first + count - 1, p.left, p.right, span.keys)
            if count > 0 and key < tile_high and key + columns > tile_low:
                q_at, g_at = query_lines(p, entry, head, span)
                k_at, v_at = key_lines(p, entry, head // p.group, span)
                cuda.syncthreads()
                load_queries(shared, q_at, g_at, first, count, p)
                load_keys(k_tile, k_at, v_at, key, span.keys - key, p)
                row_max, log_sumexp = (
                    cuda.local.array(lane_rows, kind),
                    cuda.local.array(lane_rows, kind),
                )
                norms = row_max, log_sumexp, cuda.local.array(lane_rows, kind)
                row = first + my_row
                load_norms(p, norms, limits, entry, head, row, span)
                masks = mask_lines(p, entry, head, p.mask_row)
                s, ds = cuda.local.array(score_count, kind), cuda.local.array(score_count, kind)
                for e in range(score_count):
                    s[e] = ds[e] = zero
                _ptx.wait_for_all_copies()
                cuda.syncthreads()
                multiply(s, shared + my_rows, k_tile)
                multiply(ds, g_tile + my_rows, v_tile)
                finish(s, p, np.int32(key), True, limits, masks, row, p.mask_item)
                # No slopes: the mask is added after the softcap.
                grads(s, ds, s, norms, score_scale, 0.0)
                for e in range(score_count):
                    acc[e] += ds[e]
        entry = _ptx.load_i64(members + 8 * (2 + groups + first_member))
        head = head_block * heads
        to = row_of_dmask(p, entry, head, np.int64(0))
        column = key_block * columns
        if p.dmask_row != 0 or (row_tiles_there == row_blocks and p.queries == 1):
            row = row_block * rows + my_row
            add_rows(acc, to, p, row, p.queries, column, keys_there)
            return
        cuda.syncthreads()
        sum_all_columns(acc, np.int32(shared + warp * (columns * number)))
        cuda.syncthreads()
        i = np.int32(cuda.threadIdx.x)
        total = zero
        if i < columns:
            for w in range(warps):
                total += shared_load(np.uint32(shared + (w * columns + i) * number))
            if p.dmask_item != 0 and column + i < keys_there:
                add(to + (column + i) * p.dmask_item, total)
        if p.dmask_item == 0:
            cuda.syncthreads()
            if i < columns:
                shared_store(np.uint32(shared + i * number), total)
            cuda.syncthreads()
            if i == 0:
                total = zero
                for c in range(columns):
                    total += shared_load(np.uint32(shared + c * number))
                add(to, total)

    return mask_gradient
