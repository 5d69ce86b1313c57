"""Two small kernels around attention: spans from lengths on the GPU, and sums of gradients."""

from functools import cache
from typing import NamedTuple

import numpy as np
from numba import cuda

from .. import _device, _ptx
from .._storage import load_label, storage_of
from .arrays import members_of
from .work import SPAN

THREADS = 128


class Spans(NamedTuple):
    """How many queries and keys batch entries have: addresses, or 0, of integers on the GPU, with
    the code of their dtype, and numbers in place of what has no address.
    """

    out: int  # (entries, SPAN) int64
    entries: int
    queries: int
    keys: int
    ends_q: int = 0  # (entries + 1): where sequences begin and end
    ends_q_code: int = 0
    ends_k: int = 0
    ends_k_code: int = 0
    lengths: int = 0  # (entries): how many keys are used
    lengths_code: int = 0
    offsets: int = 0  # (entries): positions of the first queries
    offsets_code: int = 0
    offset: int = 0
    # What the host subtracted from the window, up to 2**62, is subtracted from offsets here.
    left_less: int = 0
    right_less: int = 0


@cuda.jit
def _fill_spans(spans: Spans):
    i = np.int64(cuda.blockIdx.x) * cuda.blockDim.x + cuda.threadIdx.x
    if i >= spans.entries:
        return
    first_q, last_q, first_k, last_k = np.int64(0), spans.queries, np.int64(0), spans.keys
    offset = spans.offset
    if spans.ends_q != 0:
        first_q = load_label(spans.ends_q, i, spans.ends_q_code)
        last_q = load_label(spans.ends_q, i + 1, spans.ends_q_code)
    if spans.ends_k != 0:
        first_k = load_label(spans.ends_k, i, spans.ends_k_code)
        last_k = load_label(spans.ends_k, i + 1, spans.ends_k_code)
    if spans.lengths != 0:
        last_k = load_label(spans.lengths, i, spans.lengths_code)
    if spans.offsets != 0:
        offset = load_label(spans.offsets, i, spans.offsets_code)
    # Whatever the numbers are, nothing is read or written out of bounds.
    first_q = min(max(first_q, np.int64(0)), spans.queries)
    first_k = min(max(first_k, np.int64(0)), spans.keys)
    to = spans.out + 8 * SPAN * i
    _ptx.store_i64(to, first_q)
    _ptx.store_i64(to + 8, min(max(last_q, first_q), spans.queries))
    _ptx.store_i64(to + 16, first_k)
    _ptx.store_i64(to + 24, min(max(last_k, first_k), spans.keys))
    # As `per_entry` of fastce on the host: sums with `far` do not overflow.
    far, half = np.int64(1 << 61), np.int64(1 << 59)
    if offset > half:
        offset = max(offset - spans.left_less, half)
    if offset < -half:
        offset = min(offset + spans.right_less, -half)
    _ptx.store_i64(to + 32, min(max(offset, -far), far))


def fill_spans(spans, stream, device):
    if spans.entries:
        blocks = -(-spans.entries // THREADS)
        _device.launch(_fill_spans, blocks, THREADS, 0, stream, device, (spans,))


@cache
def _summing(name, result):
    storage, to_storage = storage_of(name), storage_of(result)
    size, load, zero = storage.size, storage.load, storage.real(0)
    to_size, store = to_storage.size, to_storage.store

    @cuda.jit
    def sum_members(full, out, members, rows, columns, out_row):
        """A block for each row of the result."""
        row, group = np.int64(cuda.blockIdx.x) % rows, np.int64(cuda.blockIdx.x) // rows
        groups = _ptx.load_i64(members)
        first = _ptx.load_i64(members + 8 * (1 + group))
        last = _ptx.load_i64(members + 8 * (2 + group))
        order = members + 8 * (2 + groups)
        column = np.int64(cuda.threadIdx.x)
        while column < columns:
            total, to = zero, np.int64(0)
            for i in range(first, last):
                entry = _ptx.load_i64(order + 8 * i)
                total += load(full + ((entry * rows + row) * columns + column) * size)
                to = _ptx.load_i64(order + 8 * (_ptx.load_i64(members + 8 * (1 + groups)) + entry))
            store(out + to + row * out_row + column * to_size, total)
            column += cuda.blockDim.x

    return sum_members


def sum_members(full, out):
    """Sum the entries of `full` that share memory in `out`, which is broadcast along some leading
    axes. `full` has the same shape, dense, and may have another dtype with the same compute type.
    """
    if 0 in out.shape:
        return
    groups, table = members_of(out, out.device, axes=len(out.shape) - 2)
    rows, columns = out.shape[-2:]
    members = _device.address(table)
    arguments = full.address, out.address, members, rows, columns, out.strides[-2]
    kernel = _summing(full.dtype, out.dtype)
    _device.launch(kernel, groups * rows, THREADS, 0, out.stream, out.device, arguments)
