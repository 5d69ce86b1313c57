"""The arguments of one call of attention for compiled code, and where the rows of a tile lie.

A tile is up to COLUMNS queries that share keys: consecutive queries of one head or, where there are
few of them, of all heads of a group. Numba compiles a function for every combination of the types
of its arguments. So that this is one for each dtype, every array comes as one-dimensional memory
with its strides in a table, inputs are read-only, and what is not given is an empty array.
"""

from typing import NamedTuple

import numpy as np
from numba.extending import register_jitable

from .._jit_options import internal
from .._storage import raw
from .products import COLUMNS

# Rows of the table `places`, one for each array, and what a row holds: strides in elements and,
# from STARTS on, the first element of each batch entry.
Q, K, V, MASK, OUT, LSE, GRAD_OUT, DQ, DK, DV, DMASK = range(11)
HEAD, ROW, ITEM, STARTS = range(4)


class Problem(NamedTuple):
    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    mask: np.ndarray  # of q's dtype
    allowed: np.ndarray  # or a boolean one, as bytes
    places: np.ndarray
    spans: np.ndarray  # (batch entries, 5), see kernels/__init__.py
    first_tile: np.ndarray  # (batch entries + 1,): number of the first tile of each, and of all
    heads: int
    kv_heads: int
    width: int
    value_width: int
    scale: float
    softcap: float
    left: int
    right: int


class Tile(NamedTuple):
    batch: int
    kv_head: int
    rows: int
    low: int  # the keys that any row may see, [low, high)
    high: int
    full_low: int  # the keys that every row may see
    full_high: int


class Lanes(NamedTuple):
    """Of each column of a tile; columns behind the last row are like it."""

    head: np.ndarray
    row: np.ndarray
    low: np.ndarray  # the keys that it may see, [low, high)
    high: np.ndarray


# ---- before compiled code --------------------------------------------------------------------


def flat(a, axes, batches, writeable=False):
    """`a` as one-dimensional memory, and its row of `places`; `axes` is the number of batch axes.

    An array that is not there is empty.
    """
    if a is None or a.size == 0:
        dtype = np.float32 if a is None else a.dtype
        return _locked(raw(np.empty(0, dtype)), writeable), [0] * (STARTS + batches)
    steps = [stride // a.itemsize for stride in a.strides]
    low = sum(min(0, step * (n - 1)) for step, n in zip(steps, a.shape, strict=True))
    high = sum(max(0, step * (n - 1)) for step, n in zip(steps, a.shape, strict=True))
    lowest = a[tuple(slice(None, None, -1 if step < 0 else 1) for step in steps)]
    memory = np.lib.stride_tricks.as_strided(lowest, (high - low + 1,), (a.itemsize,))
    starts = np.array(-low)
    for n, step in zip(a.shape[:axes], steps[:axes], strict=True):
        starts = starts[..., None] + np.arange(n) * step
    memory = memory.view(np.uint8) if a.dtype == bool else raw(memory)
    return _locked(memory, writeable), [*steps[axes:], 0][:3] + starts.ravel().tolist()


def _locked(memory, writeable):
    if not writeable:
        memory.flags.writeable = False
    return memory


def make_problem(q, k, v, mask, spans, others, *, scale, left, right, softcap):
    """The problem, and the memory of the `others`: pairs of an array and whether it is written."""
    axes, batches = q.ndim - 3, len(spans)
    numbers, allowed = (None, mask) if mask is not None and mask.dtype == bool else (mask, None)
    numbers = np.empty(0, q.dtype) if numbers is None else numbers
    allowed = np.empty(0, bool) if allowed is None else allowed
    inputs = [flat(a, axes, batches) for a in (q, k, v, numbers, allowed)]
    places = [row for _, row in inputs]
    places[MASK : MASK + 2] = [places[MASK + 1] if allowed.size else places[MASK]]
    memory = [flat(a, axes, batches, writeable) for a, writeable in others]
    places += [row for _, row in memory]
    kv_heads = k.shape[-3]
    p = Problem(
        *(data if data.dtype != bool else data.view(np.uint8) for data, _ in inputs),
        np.array(places, np.int64),
        np.ascontiguousarray(spans),
        first_tiles(spans, q.shape[-3], kv_heads),
        *(q.shape[-3], kv_heads, q.shape[-1], v.shape[-1]),
        *(float(scale), float(softcap), int(left), int(right)),
    )
    return p, [data for data, _ in memory]


@register_jitable
def first_tiles(spans, heads, kv_heads):
    group = heads // max(1, kv_heads)
    first = np.zeros(len(spans) + 1, np.int64)
    for batch in range(len(spans)):
        length = spans[batch, 1] - spans[batch, 0]
        if 2 * length <= COLUMNS:  # see `together`
            tiles = (group * length + COLUMNS - 1) // COLUMNS
        else:
            tiles = group * ((length + COLUMNS - 1) // COLUMNS)
        first[batch + 1] = first[batch] + kv_heads * tiles
    return first


def multiplications(q, v, spans):
    """Of the forward."""
    pairs = (spans[:, 1] - spans[:, 0]) * (spans[:, 3] - spans[:, 2])
    return int(pairs.sum()) * q.shape[-3] * (q.shape[-1] + v.shape[-1])


# ---- tiles -----------------------------------------------------------------------------------


@internal
def queries_of(p, batch):
    return p.spans[batch, 1] - p.spans[batch, 0]


@internal
def keys_of(p, batch):
    return p.spans[batch, 3] - p.spans[batch, 2]


@internal
def together(p, batch):
    """Heads that share a tile: those of a group, where the queries of one fill at most half."""
    return p.heads // p.kv_heads if 2 * queries_of(p, batch) <= COLUMNS else 1


@internal
def batch_of(p, number):
    """The batch entry of a tile, by bisection: entries may differ in length."""
    low, high = 0, p.first_tile.size - 1
    while high - low > 1:
        middle = (low + high) // 2
        if p.first_tile[middle] <= number:
            low = middle
        else:
            high = middle
    return low


@internal
def new_lanes():
    memory = np.empty(4 * COLUMNS, np.int64)
    return Lanes(
        memory[:COLUMNS],
        memory[COLUMNS : 2 * COLUMNS],
        memory[2 * COLUMNS : 3 * COLUMNS],
        memory[3 * COLUMNS :],
    )


@internal
def make_tile(p, lanes, batch, index, shared):
    """Tile number `index` of a batch entry, of `shared` heads."""
    length, keys, offset = queries_of(p, batch), keys_of(p, batch), p.spans[batch, 4]
    count = (shared * length + COLUMNS - 1) // COLUMNS
    head, first = index // count * shared, index % count * COLUMNS
    rows = min(COLUMNS, shared * length - first)
    low, high, full_low, full_high = keys, 0, 0, keys
    for r in range(COLUMNS):
        place = first + min(r, rows - 1)
        lanes.head[r], lanes.row[r] = head + place // length, place % length
        position = place % length + offset
        a = max(0, position - p.left) if p.left >= 0 else 0
        b = min(keys, position + p.right + 1) if p.right >= 0 else keys
        lanes.low[r], lanes.high[r] = a, b
        if a < b:
            low, high = min(low, a), max(high, b)
        full_low, full_high = max(full_low, a), min(full_high, b)
    return Tile(
        batch, head // (p.heads // p.kv_heads), rows, low, max(low, high), full_low, full_high
    )


@internal
def find_tile(p, lanes, number):
    """Tile `number` of all."""
    batch = batch_of(p, number)
    return make_tile(p, lanes, batch, number - p.first_tile[batch], together(p, batch))


# ---- places ----------------------------------------------------------------------------------


@internal
def query_at(p, which, tile, lanes, r):
    """Where the row of query r of the tile begins in array `which`."""
    place = p.places[which]
    row = p.spans[tile.batch, 0] + lanes.row[r]
    return place[STARTS + tile.batch] + lanes.head[r] * place[HEAD] + row * place[ROW]


@internal
def key_at(p, which, tile, key):
    """The same of a key, counted from the first one of the batch entry."""
    place = p.places[which]
    row = p.spans[tile.batch, 2] + key
    return place[STARTS + tile.batch] + tile.kv_head * place[HEAD] + row * place[ROW]


@internal
def mask_at(p, which, tile, lanes, r, key):
    """The same of one element of the mask or its gradient."""
    return (
        query_at(p, which, tile, lanes, r) + (p.spans[tile.batch, 2] + key) * p.places[which, ITEM]
    )
