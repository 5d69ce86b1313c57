"""Tiles of queries, keys and values in shared memory, and the products of a warp with them.

A tile is some rows of one head, `width` numbers each, the last ones zeros where a head has fewer.
It is swizzled: the 16 bytes at place c of row r lie at place c ^ (r & 7), so that eight rows below
each other are in different banks, whether a product reads along them or across.

A warp works on 16 `row_tiles` rows. What it accumulates lies in its lanes as the tensor cores have
it (`_tensor_cores.py`), whether it has any or not: with g = lane >> 2 and t = lane & 3, number
(m * columns / 8 + n) * 4 + 2 h + i of a lane is row 16 m + 8 h + g, column 8 n + 2 t + i.

There are two products. `scores`: S += A B', rows of one tile with rows of another. `values`:
O += P B, where P is what `scores` left in the lanes. Each is there in three makes: 16 bits, tf32, and
ordinary units, for float32 and float64.
"""

import inspect
from functools import cache
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
from numba import cuda, types

from . import _ptx
from . import _tensor_cores as tensor
from ._math import device
from ._storage import storage_of

WIDTHS = (32, 64, 96, 128, 192, 256)  # for which kernels are compiled


def width_of(*widths):
    return next(w for w in WIDTHS if w >= max(widths))


def pitch_of(name, width):
    """Bytes from row to row of a tile: a swizzle needs eight places."""
    return -(-width * storage_of(name).size // 128) * 128


def scratch_of(name, row_tiles, columns):
    """Bytes of shared memory that a warp needs for `values` besides."""
    if uses_tensor_cores(name):
        return 0
    return 16 * row_tiles * (columns + 1) * storage_of(name).size


def uses_tensor_cores(name):
    return name in ("float16", "bfloat16", "tfloat32")


class Tiling(NamedTuple):
    """For what a kernel is compiled."""

    dtype: str  # of storage, or "tfloat32"
    width: int  # of the tiles that products sum over: one of WIDTHS
    part: int  # columns of results that a block has
    warps: int
    row_tiles: int  # of 16 rows, of each warp
    columns: int  # in a step
    general: bool = False  # with a mask, a softcap, or a scale that is not above 0

    @property
    def rows(self):
        return 16 * self.row_tiles * self.warps

    @property
    def threads(self):
        return 32 * self.warps


def unrolled(count, body):
    """`loop(...)`: body(0, ...), body(1, ...), and so on. LLVM does not unroll long loops, and what
    an array holds is in registers only if no loop is left that goes over it.
    """
    names = ", ".join(list(inspect.signature(body.py_func).parameters)[1:])
    calls = "\n".join(f"    body({i}, {names})" for i in range(count))
    scope = {"body": body}
    exec(f"def loop({names}):\n{calls}", scope)
    return device(scope["loop"])


@cache
def place_of_row(columns):
    """`place(row, e)`: where in its lane's accumulators the e-th number of a row of the lane is."""

    @device
    def place(row, e):
        return ((row >> 1) * (columns // 8) + (e >> 1)) * 4 + 2 * (row & 1) + (e & 1)

    return place


@device
def _place(row, chunk):
    """Where in its row of a tile are the 16 bytes at place `chunk`."""
    return np.int32((chunk ^ (row & 7)) << 4)


# ---- from and to global memory ---------------------------------------------------------------


@device
def row_at(rows, row):
    """The address of a row of (address, step, inner_step, pack). Rows are queries, or keys; where
    `pack` heads share a tile, rows are the heads of the first query, those of the next one, and so on.
    """
    address, step, inner_step, pack = rows
    if pack == 1:
        return address + row * step
    return address + row // pack * step + row % pack * inner_step


@cache
def loader_of(name, rows, width, threads):
    """`load(to, rows_at, first, count, valid, aligned)`: rows of memory into a tile.

    `rows_at` is (address, step, inner_step, pack), see `row_at`. The tile gets rows from `first` on;
    behind `count` of them come zeros, and behind the first `valid` bytes of each.
    """
    size, pitch = storage_of(name).size, pitch_of(name, width)
    chunks = width * size // 16
    at_once = threads // chunks  # rows; each thread stays at its place in a row
    turns = -(-rows // max(at_once, 1))
    fetch, put = {
        2: (_ptx.load_u16, _ptx.shared_store_u16),
        4: (_ptx.load_u32, _ptx.shared_store_u32),
        8: (_ptx.load_i64, _ptx.shared_store_i64),
    }[size]
    nothing = np.int64(0) if size == 8 else np.uint32(0)

    @device
    def load_words(to, rows_at, first, count, valid):
        thread = np.int32(cuda.threadIdx.x)
        row = np.int32(thread // np.int32(chunks))
        chunk = np.int32(thread - row * chunks)
        wanted = np.int32(min(max(np.int32(valid - 16 * chunk), np.int32(0)), np.int32(16)))
        live = np.int32(min(count, np.int64(rows)) - row)
        at = row_at(rows_at, first + row) + 16 * chunk
        onward = rows_at[1] * at_once
        place = np.int32(to + row * pitch)
        if at_once * chunks == threads or row < at_once:
            for turn in range(turns):
                if rows % at_once == 0 or row < rows - turn * at_once:
                    this = at + turn * onward
                    if rows_at[3] != 1:
                        this = row_at(rows_at, first + row + turn * at_once) + 16 * chunk
                    to_place = place + turn * at_once * pitch + _place(row + turn * at_once, chunk)
                    # Of what is not there, 0 bytes are read, from wherever that would be.
                    size_ = wanted if turn * at_once < live else np.int32(0)
                    _ptx.copy_part_async(np.uint32(to_place), this, np.uint32(size_))

    @device
    def load_long_rows(to, rows_at, first, count, valid):
        """The same, for rows of more words than the block has threads."""
        i = np.int32(cuda.threadIdx.x)
        while i < rows * chunks:
            row = np.int32(i // np.int32(chunks))
            chunk = np.int32(i - row * chunks)
            wanted = np.int32(min(max(np.int32(valid - 16 * chunk), np.int32(0)), np.int32(16)))
            size_ = wanted if row < count else np.int32(0)
            place = np.uint32(to + row * pitch + _place(row, chunk))
            _ptx.copy_part_async(place, row_at(rows_at, first + row) + 16 * chunk, np.uint32(size_))
            i = np.int32(i + threads)

    @device
    def load_numbers(to, rows_at, first, count, valid):
        i = np.int32(cuda.threadIdx.x)
        while i < rows * width:
            row = np.int32(i // np.int32(width))
            at = np.int32((i - row * width) * size)
            value = nothing
            if row < count and at < valid:
                value = fetch(row_at(rows_at, first + row) + at)
            put(np.uint32(to + row * pitch + _place(row, at >> 4) + (at & 15)), value)
            i = np.int32(i + threads)

    @device
    def load(to, rows_at, first, count, valid, aligned):
        if aligned:
            if at_once:
                load_words(to, rows_at, first, count, valid)
            else:
                load_long_rows(to, rows_at, first, count, valid)
        else:
            load_numbers(to, rows_at, first, count, valid)

    return load


@cache
def writer_of(name, row_tiles, columns, stored):
    """`write(acc, tile, rows_at, first, count, column, valid, aligned)`: what a warp accumulated.

    It goes by way of the warp's own rows of a tile with `stored` numbers, so that whole words reach
    memory. `first` is the first row, of which `count` are there; `column`, in bytes, is where in a
    row the first number belongs, and `valid` how long a row is.
    """
    storage, pitch, rows = storage_of(name), pitch_of(name, stored), 16 * row_tiles
    size, chunks, place = storage.size, columns * storage.size // 16, place_of_row(columns)
    pack = _ptx.pack_bfloat16 if name == "bfloat16" else _ptx.pack_half
    put, halves = storage.shared_store, size == 2
    get_one, put_one = {
        2: (_ptx.shared_load_u16, _ptx.store_u16),
        4: (_ptx.shared_load_u32, _ptx.store_u32),
        8: (_ptx.shared_load_i64, _ptx.store_i64),
    }[size]

    @device
    def put_row(row, acc, tile):
        lane = np.int32(cuda.threadIdx.x) & 31
        tile += (8 * row + (lane >> 2)) * pitch
        for n in range(columns // 8):
            at = (8 * n + 2 * (lane & 3)) * size
            to = np.uint32(tile + _place(lane >> 2, at >> 4) + (at & 15))
            k = place(row, 2 * n)
            if halves:
                _ptx.shared_store_u32(to, pack(acc[k], acc[k + 1]))
            else:
                put(to, acc[k])
                put(np.uint32(to + size), acc[k + 1])

    put_all = unrolled(2 * row_tiles, put_row)

    @device
    def write(acc, tile, rows_at, first, count, column, valid, aligned):
        lane = np.int32(cuda.threadIdx.x) & 31
        cuda.syncwarp()
        put_all(acc, tile)
        cuda.syncwarp()
        live, room = min(count, np.int64(rows)), min(valid - column, np.int64(columns * size))
        if aligned:
            for i in range(lane, rows * chunks, 32):
                row = i // chunks
                at = 16 * (i - row * chunks)
                if row < live and at < room:
                    a, b, c, d = _ptx.shared_load_word(
                        np.uint32(tile + row * pitch + _place(row, at >> 4))
                    )
                    _ptx.store_word(row_at(rows_at, first + row) + column + at, a, b, c, d)
        else:
            for i in range(lane, rows * columns, 32):
                row = i // columns
                at = (i - row * columns) * size
                if row < live and at < room:
                    bits = get_one(np.uint32(tile + row * pitch + _place(row, at >> 4) + (at & 15)))
                    put_one(row_at(rows_at, first + row) + column + at, bits)

    return write


@cache
def number_loader_of(name, count):
    """`load(to, address, step, valid)`: so many numbers of the compute type, one by one."""
    number = storage_of(name).real_size
    copy = _ptx.copy_f64_async if number == 8 else _ptx.copy_f32_async

    @device
    def load(to, address, step, valid):
        i = np.int32(cuda.threadIdx.x)
        if i < count:
            there = i < valid
            copy(
                np.uint32(to + i * number),
                address + i * step if there else address,
                np.uint32(number if there else 0),
            )

    return load


# ---- products --------------------------------------------------------------------------------


@cache
def products_of(name, row_tiles, columns, width, results, stored):
    """``scores(acc, a, b)`` over `width` numbers, and ``values(acc, weights, b, first, scratch)`` for
    `results` columns from `first` on of a tile with `stored`. a and scratch are of the warp, b of
    the block.
    """
    make = _ordinary
    if uses_tensor_cores(name):
        make = _tf32 if name == "tfloat32" else _of_16_bits
    scores, values = make(name, row_tiles, columns, width, results, pitch_of(name, stored))
    return SimpleNamespace(scores=scores, values=values)


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


def _scores_of(name, row_tiles, columns, width, accumulate, rounded):
    """Of tensor cores. One `load_matrices` brings 16 rows by 32 bytes."""
    pitch, tiles = pitch_of(name, width), columns // 8
    steps = width * storage_of(name).size // 32
    fragment = 4 * row_tiles

    @device
    def scores(acc, a, b):
        row, high = np.int32(cuda.threadIdx.x & 15), np.int32(cuda.threadIdx.x >> 4 & 1)
        a = np.int32(a + row * pitch)
        b = np.int32(b + row * pitch)
        for step in range(steps):
            chunk = np.int32(_place(row, 2 * step + high))
            fa = cuda.local.array(fragment, types.uint32)
            for m in range(row_tiles):
                x = tensor.load_matrices(np.uint32(a + m * 16 * pitch + chunk))
                for i in range(4):
                    fa[4 * m + i] = rounded(x[i])
            for n in range(columns // 16):
                y = tensor.load_matrices(np.uint32(b + n * 16 * pitch + chunk))
                for h in range(2):
                    b0, b1 = rounded(y[h]), rounded(y[h + 2])
                    for m in range(row_tiles):
                        accumulate(acc, (m * tiles + 2 * n + h) * 4, fa, 4 * m, b0, b1)

    return scores


@device
def _as_it_is(bits):
    return bits


def _of_16_bits(name, row_tiles, columns, width, results, stored_pitch):
    mma, pack = tensor.mma_f16, _ptx.pack_half
    if name == "bfloat16":
        mma, pack = tensor.mma_bf16, _ptx.pack_bfloat16
    tiles, fragment = columns // 8, 4 * row_tiles
    accumulate = _accumulator(mma)

    @device
    def add(k, acc, weights, b, first):
        """With the weights of columns from 16 k on."""
        row, high = np.int32(cuda.threadIdx.x & 15), np.int32(cuda.threadIdx.x >> 4 & 1)
        b = np.int32(b + (16 * k + row) * stored_pitch)
        fa = cuda.local.array(fragment, types.uint32)
        for m in range(row_tiles):
            at = (m * tiles + 2 * k) * 4
            for i in range(4):
                fa[4 * m + i] = pack(weights[at + 2 * i], weights[at + 2 * i + 1])
        for n in range(results // 16):
            chunk = _place(row, (first >> 3) + 2 * n + high)
            y = tensor.load_matrices_transposed(np.uint32(b + chunk))
            for h in range(2):
                for m in range(row_tiles):
                    at = (m * (results // 8) + 2 * n + h) * 4
                    accumulate(acc, at, fa, 4 * m, y[2 * h], y[2 * h + 1])

    add_all = unrolled(columns // 16, add)

    @device
    def values(acc, weights, b, first, scratch):
        add_all(acc, weights, b, first)

    return _scores_of(name, row_tiles, columns, width, accumulate, _as_it_is), values


@device
def _bits_to_tf32(bits):
    return tensor.to_tf32(_ptx.bits_to_f32(bits))


def _tf32(name, row_tiles, columns, width, results, stored_pitch):
    tiles, fragment = columns // 8, 4 * row_tiles
    accumulate = _accumulator(tensor.mma_tf32)

    @device
    def number(b, row, column):
        at = b + row * stored_pitch + _place(row, column >> 2) + 4 * (column & 3)
        return tensor.to_tf32(_ptx.shared_load_f32(np.uint32(at)))

    @device
    def add(k, acc, weights, b, first):
        """With the weights of columns from 8 k on."""
        g, t = np.int32(cuda.threadIdx.x >> 2 & 7), np.int32(cuda.threadIdx.x & 3)
        # Columns 2t and 2t + 1 of the weights, which a lane has, stand for t and t + 4: the sum
        # over them may go in any order, if rows of b go in the same.
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

    return _scores_of(name, row_tiles, columns, width, accumulate, _bits_to_tf32), values


def _ordinary(name, row_tiles, columns, width, results, stored_pitch):
    """By multiplications and additions of single numbers."""
    storage = storage_of(name)
    size, per_word, kind, unpack = storage.size, storage.per_word, storage.type, storage.unpack
    pitch, tiles, rows = pitch_of(name, width), columns // 8, 2 * row_tiles
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
                row = 8 * r + g
                unpack(_ptx.shared_load_word(np.uint32(a + row * pitch + _place(row, chunk))), v)
                for e in range(per_word):
                    of_rows[r * per_word + e] = v[e]
            for n in range(tiles):
                for i in range(2):
                    row = 8 * n + 2 * t + i
                    at = np.uint32(b + row * pitch + _place(row, chunk))
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
                at = b + k * stored_pitch + _place(k, column >> 4) + (column & 15)
                b0, b1 = load_pair(np.uint32(at))
                for r in range(rows):
                    at = ((r >> 1) * (results // 8) + n) * 4 + 2 * (r & 1)
                    acc[at] += of_rows[r] * b0
                    acc[at + 1] += of_rows[r] * b1

    return scores, values
