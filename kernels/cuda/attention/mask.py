"""The gradient of a floating attention mask on a GPU.

It is that of the scores, summed over whatever the mask was broadcast along: batch entries, heads,
queries, keys. A block has a tile of the result and goes, in order, over all tiles of scores that
belong to it, with the products of `_attention_backward.py`. Nothing is copied ahead here: the other
gradients need as many products, and most callers want no gradient of the mask.
"""

from functools import cache

import numpy as np
from numba import cuda

from .. import _ptx
from .._math import device
from .._reduce import ALL
from .._storage import storage_of
from .backward import known_rows_of
from .products import products_of
from .scores import scores_of
from .tiles import PANEL, in_line, loader_of, size_of, unrolled
from .work import (
    OF_GRAD_OUT,
    OF_K,
    OF_Q,
    OF_V,
    bounds,
    row_of_dmask,
    row_of_grad_out,
    row_of_k,
    row_of_mask,
    row_of_q,
    row_of_v,
    span,
)


def shared_size(tiling):
    """Bytes of shared memory of a block: rows and columns of two arrays each."""
    both = size_of(tiling.dtype, tiling.rows + tiling.columns, tiling.width)
    return 2 * both + 8 * tiling.rows


@cache
def mask_gradient_of(tiling):
    name, width, _, warps, row_tiles, columns, _, _ = tiling
    storage, scores = storage_of(name), scores_of(tiling)
    kind, real, number = storage.type, storage.real, storage.real_size
    get, put = storage.get_number, storage.put_number
    shared_load, shared_store = storage.shared_load, storage.shared_store
    zero = real(0)
    rows, threads, lane_rows = tiling.rows, tiling.threads, 2 * row_tiles
    warp_rows, tiles = 16 * row_tiles, columns // 8
    score_count = row_tiles * columns // 2
    tile_size, x_size = size_of(name, rows, width), size_of(name, columns, width)
    load_rows = loader_of(name, rows, width, threads)
    load_columns = loader_of(name, columns, width, threads)
    multiply = products_of(tiling, width).scores
    unit_of, finish, grads = scores.unit_of, scores.finish, scores.grads_of_rows
    shared_sum, known_all = scores.shared_sum, known_rows_of(tiling)

    @device
    def add(address, value):
        put(address, get(address) + value)

    @device
    def add_row(r, acc, to, p, row, queries, column, keys):
        """A row of the tile; where the mask has one number for all keys, its sum."""
        row += 8 * r
        t = np.int32(cuda.threadIdx.x & 3)
        total = zero
        for n in range(tiles):
            for i in range(2):
                value = acc[((r >> 1) * tiles + n) * 4 + 2 * (r & 1) + i]
                total += value
                key = column + 8 * n + 2 * t + i
                if p.dmask_item != 0 and row < queries and key < keys:
                    add(to + row * p.dmask_row + key * p.dmask_item, value)
        if p.dmask_item == 0:
            total = shared_sum(total)
            if t == 0 and row < queries:
                add(to + row * p.dmask_row, total)

    @device
    def sum_columns(n, acc, at):
        """Of the rows of a warp, to shared memory."""
        for i in range(2):
            total = zero
            for r in range(lane_rows):
                total += acc[((r >> 1) * tiles + n) * 4 + 2 * (r & 1) + i]
            for step in (4, 8, 16):
                total += cuda.shfl_xor_sync(ALL, total, step)
            lane = np.int32(cuda.threadIdx.x & 31)
            if lane < 4:
                shared_store(np.uint32(at + (8 * n + 2 * lane + i) * number), total)

    add_rows, sum_all_columns = unrolled(lane_rows, add_row), unrolled(tiles, sum_columns)

    @cuda.jit
    def mask_gradient(p, scale, softcap, members, head_blocks, row_blocks, key_blocks, keys_there):
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
        # `members` has where each group of entries that share a mask begins, then their numbers.
        groups = _ptx.load_i64(members)
        first_member = _ptx.load_i64(members + 8 * (1 + group))
        last_member = _ptx.load_i64(members + 8 * (2 + group))
        each = heads * row_steps * key_steps
        warp = np.int32(cuda.threadIdx.x >> 5)
        shared = np.int32(_ptx.dynamic_shared())
        g_tile = np.int32(shared + tile_size)
        k_tile = np.int32(g_tile + tile_size)
        v_tile = np.int32(k_tile + x_size)
        limits = np.int32(v_tile + x_size + warp * (8 * warp_rows))
        mine = np.int32(warp * (warp_rows * PANEL))
        my_row = warp * warp_rows + np.int32(cuda.threadIdx.x >> 2 & 7)
        _, natural = unit_of(scale)
        acc = cuda.local.array(score_count, kind)
        for e in range(score_count):
            acc[e] = zero
        for work in range((last_member - first_member) * each):
            member, rest = first_member + work // each, work % each
            entry = _ptx.load_i64(members + 8 * (2 + groups + member))
            head = head_block * heads + rest // (row_steps * key_steps)
            first = (row_block * row_steps + rest // key_steps % row_steps) * rows
            key = (key_block * key_steps + rest % key_steps) * columns
            first_q, queries, first_k, keys, offset = span(p, entry)
            count = min(queries - first, np.int64(rows))
            tile_low, _ = bounds(offset + first, p.left, p.right, keys)
            _, tile_high = bounds(offset + first + count - 1, p.left, p.right, keys)
            if count > 0 and key < tile_high and key + columns > tile_low:
                kv_head = head // p.group
                q = row_of_q(p, entry, head, first_q)
                k = row_of_k(p, entry, kv_head, first_k)
                v = row_of_v(p, entry, kv_head, first_k)
                g = row_of_grad_out(p, entry, head, first_q)
                g_at, v_at = in_line(g, p.grad_out_row), in_line(v, p.v_row)
                cuda.syncthreads()
                load_rows(shared, in_line(q, p.q_row), first, count, p.width, p.aligned & OF_Q)
                load_rows(g_tile, g_at, first, count, p.value_width, p.aligned & OF_GRAD_OUT)
                there = keys - key
                load_columns(k_tile, in_line(k, p.k_row), key, there, p.width, p.aligned & OF_K)
                load_columns(v_tile, v_at, key, there, p.value_width, p.aligned & OF_V)
                top, log_sum = cuda.local.array(lane_rows, kind), cuda.local.array(lane_rows, kind)
                delta = cuda.local.array(lane_rows, kind)
                place = entry, head, first_q
                row = first + my_row
                known_all(p, top, log_sum, delta, limits, place, row, queries, keys, offset)
                mask = row_of_mask(p, entry, head, np.int64(0))
                masks = in_line(mask, p.mask_row)
                s, ds = cuda.local.array(score_count, kind), cuda.local.array(score_count, kind)
                for e in range(score_count):
                    s[e] = ds[e] = zero
                _ptx.wait_for_all_copies()
                cuda.syncthreads()
                multiply(s, shared + mine, k_tile)
                multiply(ds, g_tile + mine, v_tile)
                finish(s, p, scale, softcap, np.int32(key), True, limits, masks, row, p.mask_item)
                # No slopes: the mask comes after the softcap.
                grads(s, ds, s, top, log_sum, delta, natural, 0.0)
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
