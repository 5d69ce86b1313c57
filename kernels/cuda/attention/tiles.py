"""Tiles of queries, keys and values in shared memory: their layout, loading and storing.

A tile is some rows of one head, `width` numbers each, the last ones zeros where a head has fewer.
It is stored in panels of 128 bytes of each row, one after the other. Within a panel the 16 bytes at
place c of row r are at place c ^ (r & 7), so that eight rows below each other are in different
banks, whether a product reads along them or across. Hopper's tensor cores read that layout, too.

A warp works on 16 `row_tiles` rows. Its lanes hold its accumulators in the order of the tensor
cores (`_tensor_cores.py`), whether it uses any or not: with g = lane >> 2 and t = lane & 3, number
(m * columns / 8 + n) * 4 + 2 h + i of a lane is row 16 m + 8 h + g, column 8 n + 2 t + i.
"""

import inspect
from functools import cache
from typing import NamedTuple

import numpy as np
from numba import cuda

from .. import _ptx
from .._math import device
from .._storage import storage_of

WIDTHS = (32, 64, 96, 128, 192, 256)  # for which kernels are compiled


def width_of(*widths):
    if max(widths) > WIDTHS[-1]:
        raise ValueError(
            f"attention on a GPU takes heads of up to {WIDTHS[-1]} numbers, got {max(widths)}"
        )
    return next(w for w in WIDTHS if w >= max(widths))


PANEL = 128  # bytes of a row


def size_of(name, rows, width):
    """Bytes of a tile: a multiple of 1024 where `rows` is one of 8, as Hopper needs it."""
    return -(-width * storage_of(name).size // PANEL) * PANEL * rows


def scratch_of(name, row_tiles, columns):
    """Bytes of shared memory that a warp needs for `values` beside the tiles."""
    if uses_tensor_cores(name):
        return 0
    return 16 * row_tiles * (columns + 1) * storage_of(name).size


def uses_tensor_cores(name):
    return name in ("float16", "bfloat16", "tfloat32")


class Tiling(NamedTuple):
    """What a kernel is compiled for."""

    dtype: str  # of storage, or "tfloat32"
    width: int  # of the tiles that products sum over: one of WIDTHS
    part: int  # columns of results that a block has
    warps: int
    row_tiles: int  # of 16 rows, of each warp
    columns: int  # in a step
    general: bool = False  # with a mask, a softcap, or a scale that is not above 0
    warpgroups: bool = False  # Hopper's products of four warps

    @property
    def rows(self):
        return 16 * self.row_tiles * self.warps

    @property
    def lane_rows(self):
        return 2 * self.row_tiles

    @property
    def warp_rows(self):
        return 16 * self.row_tiles

    @property
    def threads(self):
        return 32 * self.warps


def unrolled(count, body):
    """`loop(...)`: body(0, ...), body(1, ...), and so on. LLVM does not unroll long loops, and an
    array is in registers only if no loop over it is left.
    """
    names = ", ".join(list(inspect.signature(body.py_func).parameters)[1:])
    calls = "\n".join(f"    body({i}, {names})" for i in range(count))
    scope = {"body": body}
    exec(f"def loop({names}):\n{calls}", scope)
    return device(scope["loop"])


@cache
def place_of_row(columns):
    """`place(row, e)`: the index in a lane's accumulators of the e-th number of one of its rows."""

    @device
    def place(row, e):
        return ((row >> 1) * (columns // 8) + (e >> 1)) * 4 + 2 * (row & 1) + (e & 1)

    return place


@device
def place_in(rows, row, chunk):
    """The offset, in a tile of `rows` rows, of the 16 bytes at place `chunk` of a row."""
    return np.int32((chunk >> 3) * (PANEL * rows) + PANEL * row + (((chunk & 7) ^ (row & 7)) << 4))


# ---- from and to global memory ---------------------------------------------------------------


@device
def row_at(rows, row):
    """The address of a row of (address, step, inner_step, pack). Rows are queries, or keys; where
    `pack` heads share a tile, rows are the heads of the first query, those of the next, and so on.
    """
    address, step, inner_step, pack = rows
    if pack == 1:
        return address + row * step
    return address + row // pack * step + row % pack * inner_step


@device
def in_line(address, step):
    """Rows of one head for `row_at`."""
    return address, step, np.int64(0), 1


@cache
def loader_of(name, rows, width, threads):
    """`load(to, rows_at, first, count, valid, aligned)`: rows of memory into a tile.

    `rows_at` is (address, step, inner_step, pack), see `row_at`. The tile gets rows from `first`
    on, with zeros behind `count` of them, and behind the first `valid` bytes of each.
    """
    size = storage_of(name).size
    chunks = width * size // 16
    at_once = threads // chunks  # rows; each thread stays at its place in a row
    passes = -(-rows // max(at_once, 1))
    fetch, put = {
        2: (_ptx.load_u16, _ptx.shared_store_u16),
        4: (_ptx.load_u32, _ptx.shared_store_u32),
        8: (_ptx.load_i64, _ptx.shared_store_i64),
    }[size]
    nothing = np.int64(0) if size == 8 else np.uint32(0)

    @device
    def bytes_of(chunk, valid):
        return np.int32(min(max(np.int32(valid - 16 * chunk), np.int32(0)), np.int32(16)))

    @device
    def load_words(to, rows_at, first, count, valid):
        thread = np.int32(cuda.threadIdx.x)
        row = np.int32(thread // np.int32(chunks))
        chunk = np.int32(thread - row * chunks)
        chunk_bytes = bytes_of(chunk, valid)
        rows_left = np.int32(min(count, np.int64(rows)) - row)
        at = row_at(rows_at, first + row) + 16 * chunk
        step = rows_at[1] * at_once
        if at_once * chunks == threads or row < at_once:
            for i in range(passes):
                if rows % at_once == 0 or row < rows - i * at_once:
                    address = at + i * step
                    if rows_at[3] != 1:
                        address = row_at(rows_at, first + row + i * at_once) + 16 * chunk
                    place = to + place_in(rows, row + i * at_once, chunk)
                    # Of a row that is not there, 0 bytes are read, whatever its address is.
                    valid_bytes = chunk_bytes if i * at_once < rows_left else np.int32(0)
                    _ptx.copy_part_async(np.uint32(place), address, np.uint32(valid_bytes))

    @device
    def load_long_rows(to, rows_at, first, count, valid):
        """The same, for rows of more words than the block has threads."""
        i = np.int32(cuda.threadIdx.x)
        while i < rows * chunks:
            row = np.int32(i // np.int32(chunks))
            chunk = np.int32(i - row * chunks)
            chunk_bytes = bytes_of(chunk, valid)
            valid_bytes = chunk_bytes if row < count else np.int32(0)
            place = np.uint32(to + place_in(rows, row, chunk))
            address = row_at(rows_at, first + row) + 16 * chunk
            _ptx.copy_part_async(place, address, np.uint32(valid_bytes))
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
            put(np.uint32(to + place_in(rows, row, at >> 4) + (at & 15)), value)
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
def writer_of(name, row_tiles, columns, tile_rows):
    """`write(acc, tile, rows_at, first, count, column, valid, aligned)`: what a warp accumulated.

    It goes through the warp's own rows of a tile of `tile_rows`, so that whole words reach memory.
    `first` is the first row, of which there are `count`; `column` is the offset, in bytes, of the
    first number in a row, and `valid` the length of a row.
    """
    storage, rows = storage_of(name), 16 * row_tiles
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
        tile_row = np.int32(8 * row + (lane >> 2))
        for n in range(columns // 8):
            at = (8 * n + 2 * (lane & 3)) * size
            to = np.uint32(tile + place_in(tile_rows, tile_row, at >> 4) + (at & 15))
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
        rows_left = min(count, np.int64(rows))
        bytes_left = min(valid - column, np.int64(columns * size))
        if aligned:
            for i in range(lane, rows * chunks, 32):
                row = i // chunks
                at = 16 * (i - row * chunks)
                if row < rows_left and at < bytes_left:
                    a, b, c, d = _ptx.shared_load_word(
                        np.uint32(tile + place_in(tile_rows, row, at >> 4))
                    )
                    _ptx.store_word(row_at(rows_at, first + row) + column + at, a, b, c, d)
        else:
            for i in range(lane, rows * columns, 32):
                row = i // columns
                at = (i - row * columns) * size
                if row < rows_left and at < bytes_left:
                    place = tile + place_in(tile_rows, row, at >> 4) + (at & 15)
                    bits = get_one(np.uint32(place))
                    put_one(row_at(rows_at, first + row) + column + at, bits)

    return write


@cache
def number_loader_of(name, count):
    """`load(to, address, step, valid)`: `count` numbers of the compute type, one by one."""
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
