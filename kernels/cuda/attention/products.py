"""The products of a warp with tiles: S += A B', rows of one with rows of another, and O += P B,
where the lanes hold P as they do the first product.

There are four kinds: 16 bits, 16 bits of Hopper's warpgroups, tf32, and ordinary units, for float32
and float64. `tiles.py` has the layout of tiles and of accumulators.
"""

from functools import cache
from types import SimpleNamespace

import numpy as np
from numba import cuda, types

from .. import _ptx
from .. import _tensor_cores as tensor
from .._math import device
from .._storage import storage_of
from .tiles import PANEL, place_in, unrolled, uses_tensor_cores


@cache
def products_of(tiling, results):
    """``scores(acc, a, b)`` and ``values(acc, weights, b, first, scratch)``.

    a are the warp's rows of a tile of `tiling.rows`, b a tile of `tiling.columns` rows. `values` is
    for `results` columns of b from `first` on; `scratch` is the warp's.
    """
    make = _ordinary
    if tiling.warpgroups:
        return SimpleNamespace(**_of_warpgroups(tiling, results))
    if uses_tensor_cores(tiling.dtype):
        make = _tf32 if tiling.dtype == "tfloat32" else _of_16_bits
    scores, values = make(tiling, results)
    return SimpleNamespace(scores=scores, values=values, fence=_no_fence)


@device
def _no_fence():
    """What was copied to shared memory is visible after a barrier."""


@cache
def _accumulator(mma):
    @device
    def accumulate(acc, at, a, k, b0, b1):
        """Four numbers of acc += four registers of a times b0, b1."""
        a0, a1, a2, a3 = a[k], a[k + 1], a[k + 2], a[k + 3]
        c0, c1, c2, c3 = acc[at], acc[at + 1], acc[at + 2], acc[at + 3]
        c0, c1, c2, c3 = mma(a0, a1, a2, a3, b0, b1, c0, c1, c2, c3)
        acc[at], acc[at + 1], acc[at + 2], acc[at + 3] = c0, c1, c2, c3

    return accumulate


def _scores_of(tiling, accumulate, rounded):
    """Of tensor cores. One `load_matrices` brings 16 rows by 32 bytes."""
    rows, row_tiles, columns = tiling.rows, tiling.row_tiles, tiling.columns
    tiles, steps = columns // 8, tiling.width * storage_of(tiling.dtype).size // 32
    fragment = 4 * row_tiles

    @device
    def scores(acc, a, b):
        row, high = np.int32(cuda.threadIdx.x & 15), np.int32(cuda.threadIdx.x >> 4 & 1)
        for step in range(steps):
            a_at = a + place_in(rows, row, 2 * step + high)
            b_at = b + place_in(columns, row, 2 * step + high)
            fa = cuda.local.array(fragment, types.uint32)
            for m in range(row_tiles):
                x = tensor.load_matrices(np.uint32(a_at + m * 16 * PANEL))
                for i in range(4):
                    fa[4 * m + i] = rounded(x[i])
            for n in range(columns // 16):
                y = tensor.load_matrices(np.uint32(b_at + n * 16 * PANEL))
                for h in range(2):
                    b0, b1 = rounded(y[h]), rounded(y[h + 2])
                    for m in range(row_tiles):
                        accumulate(acc, (m * tiles + 2 * n + h) * 4, fa, 4 * m, b0, b1)

    return scores


@device
def _as_it_is(bits):
    return bits


def _of_16_bits(tiling, results):
    name, row_tiles, columns = tiling.dtype, tiling.row_tiles, tiling.columns
    mma, pack = tensor.mma_f16, _ptx.pack_half
    if name == "bfloat16":
        mma, pack = tensor.mma_bf16, _ptx.pack_bfloat16
    tiles, fragment = columns // 8, 4 * row_tiles
    accumulate = _accumulator(mma)

    @device
    def add(k, acc, weights, b, first):
        """With the weights of columns from 16 k on."""
        row, high = np.int32(cuda.threadIdx.x & 15), np.int32(cuda.threadIdx.x >> 4 & 1)
        fa = cuda.local.array(fragment, types.uint32)
        for m in range(row_tiles):
            at = (m * tiles + 2 * k) * 4
            for i in range(4):
                fa[4 * m + i] = pack(weights[at + 2 * i], weights[at + 2 * i + 1])
        for n in range(results // 16):
            at = b + place_in(columns, 16 * k + row, (first >> 3) + 2 * n + high)
            y = tensor.load_matrices_transposed(np.uint32(at))
            for h in range(2):
                for m in range(row_tiles):
                    at = (m * (results // 8) + 2 * n + h) * 4
                    accumulate(acc, at, fa, 4 * m, y[2 * h], y[2 * h + 1])

    add_all = unrolled(columns // 16, add)

    @device
    def values(acc, weights, b, first, scratch):
        add_all(acc, weights, b, first)

    return _scores_of(tiling, accumulate, _as_it_is), values


def _of_warpgroups(tiling, results):
    """16 bits, on Hopper. A step of 16 is 32 bytes along rows, or 16 rows."""
    rows, columns, panels = tiling.rows, tiling.columns, tiling.width // 64
    kind, pack = "f16", _ptx.pack_half
    if tiling.dtype == "bfloat16":
        kind, pack = "bf16", _ptx.pack_bfloat16
    along = [
        (panel * PANEL * rows + 32 * i, panel * PANEL * columns + 32 * i)
        for panel in range(panels)
        for i in range(4)
    ]
    across = [(0, 16 * PANEL * i) for i in range(columns // 16)]
    multiply = tensor.warpgroup_mma(kind, columns, tuple(along), from_registers=False)
    accumulate = tensor.warpgroup_mma(kind, results, tuple(across), from_registers=True)
    descriptor, registers = tensor.descriptor, columns // 4

    @device
    def scores(acc, a, b):
        group = np.int32(a - (np.int32(cuda.threadIdx.x >> 5) & 3) * (16 * PANEL))
        multiply(acc, descriptor(group, PANEL * rows), descriptor(b, PANEL * columns))

    @device
    def values(acc, weights, b, first, scratch):
        fa = cuda.local.array(registers, types.uint32)
        for i in range(registers):
            fa[i] = pack(weights[2 * i], weights[2 * i + 1])
        panel = np.int32(b + (first >> 6) * (PANEL * columns))
        accumulate(acc, fa, descriptor(panel, PANEL * columns))

    return {"scores": scores, "values": values, "fence": _ptx.fence_for_tensor_cores}


@device
def _bits_to_tf32(bits):
    return tensor.to_tf32(_ptx.bits_to_f32(bits))


def _tf32(tiling, results):
    row_tiles, columns = tiling.row_tiles, tiling.columns
    tiles, fragment = columns // 8, 4 * row_tiles
    accumulate = _accumulator(tensor.mma_tf32)

    @device
    def number(b, row, column):
        at = b + place_in(columns, row, column >> 2) + 4 * (column & 3)
        return tensor.to_tf32(_ptx.shared_load_f32(np.uint32(at)))

    @device
    def add(k, acc, weights, b, first):
        """With the weights of columns from 8 k on."""
        g, t = np.int32(cuda.threadIdx.x >> 2 & 7), np.int32(cuda.threadIdx.x & 3)
        # Columns 2t and 2t + 1 of the weights, which a lane has, stand for t and t + 4: the sum
        # over them may have any order, if rows of b have the same.
        fa = cuda.local.array(fragment, types.uint32)
        for m in range(row_tiles):
            at = (m * tiles + k) * 4
            fa[4 * m] = tensor.to_tf32(weights[at])
            fa[4 * m + 1] = tensor.to_tf32(weights[at + 2])
            fa[4 * m + 2] = tensor.to_tf32(weights[at + 1])
            fa[4 * m + 3] = tensor.to_tf32(weights[at + 3])
        row = 8 * k + 2 * t
        for n in range(results // 8):
            column = first + 8 * n + g
            b0, b1 = number(b, row, column), number(b, row + 1, column)
            for m in range(row_tiles):
                accumulate(acc, (m * (results // 8) + n) * 4, fa, 4 * m, b0, b1)

    add_all = unrolled(tiles, add)

    @device
    def values(acc, weights, b, first, scratch):
        add_all(acc, weights, b, first)

    return _scores_of(tiling, accumulate, _bits_to_tf32), values


def _ordinary(tiling, results):
    """By multiplications and additions of single numbers."""
    storage = storage_of(tiling.dtype)
    row_tiles, columns, width = tiling.row_tiles, tiling.columns, tiling.width
    size, per_word, kind, unpack = storage.size, storage.per_word, storage.type, storage.unpack
    tiles, rows, tile_rows = columns // 8, 2 * row_tiles, tiling.rows
    held = rows * per_word
    scratch_pitch = (columns + 1) * size
    shared_load, shared_store = storage.shared_load, storage.shared_store
    load_pair = _ptx.shared_load_f64_pair if size == 8 else _ptx.shared_load_f32_pair

    @device
    def scores(acc, a, b):
        g, t = np.int32(cuda.threadIdx.x >> 2 & 7), np.int32(cuda.threadIdx.x & 3)
        v = cuda.local.array(per_word, kind)
        for chunk in range(width // per_word):
            of_rows = cuda.local.array(held, kind)
            for r in range(rows):
                at = np.uint32(a + place_in(tile_rows, 8 * r + g, chunk))
                unpack(_ptx.shared_load_word(at), v)
                for e in range(per_word):
                    of_rows[r * per_word + e] = v[e]
            for n in range(tiles):
                for i in range(2):
                    at = np.uint32(b + place_in(columns, 8 * n + 2 * t + i, chunk))
                    unpack(_ptx.shared_load_word(at), v)
                    for r in range(rows):
                        at = ((r >> 1) * tiles + n) * 4 + 2 * (r & 1) + i
                        for e in range(per_word):
                            acc[at] += of_rows[r * per_word + e] * v[e]

    @device
    def values(acc, weights, b, first, scratch):
        g, t = np.int32(cuda.threadIdx.x >> 2 & 7), np.int32(cuda.threadIdx.x & 3)
        cuda.syncwarp()  # until here, others may still read what the last call left
        for r in range(rows):
            for n in range(tiles):
                for i in range(2):
                    at = scratch + (8 * r + g) * scratch_pitch + (8 * n + 2 * t + i) * size
                    weight = weights[((r >> 1) * tiles + n) * 4 + 2 * (r & 1) + i]
                    shared_store(np.uint32(at), weight)
        cuda.syncwarp()
        for k in range(columns):
            of_rows = cuda.local.array(rows, kind)
            for r in range(rows):
                at = scratch + (8 * r + g) * scratch_pitch + k * size
                of_rows[r] = shared_load(np.uint32(at))
            for n in range(results // 8):
                column = (first + 8 * n + 2 * t) * size
                at = b + place_in(columns, k, column >> 4) + (column & 15)
                b0, b1 = load_pair(np.uint32(at))
                for r in range(rows):
                    at = ((r >> 1) * (results // 8) + n) * 4 + 2 * (r & 1)
                    acc[at] += of_rows[r] * b0
                    acc[at + 1] += of_rows[r] * b1

    return scores, values
