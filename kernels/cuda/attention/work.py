"""What a kernel of attention takes, and which part of the work a block has.

A block has a tile: some rows of one batch entry, of one head or of the heads that share keys, and
goes over the columns in steps. In the forward and in the gradient of q rows are queries and columns
are keys; in the gradients of k and v it is the other way round.

All kernels take one structure, `Problem`. Its addresses are 0 for what is not there, and its steps
are in bytes: from batch entry to entry, head to head, row to row.
"""

from typing import NamedTuple

import numpy as np

from .. import _ptx
from .._math import device

SPAN = 5  # numbers for each batch entry: see kernels/__init__.py


class Problem(NamedTuple):
    q: int
    k: int
    v: int
    out: int
    lse: int = 0
    mask: int = 0
    grad_out: int = 0
    dq: int = 0
    dk: int = 0
    dv: int = 0
    dmask: int = 0
    delta: int = 0  # (3, entries, heads, rows), dense: see `norm_at`
    partial: int = 0  # results of parts of the keys: see forward.py
    spans: int = 0  # 0: all batch entries have all queries, all keys and one offset
    starts: int = 0  # 0, or offsets of each entry in each array, where one step does not do

    q_entry: int = 0
    k_entry: int = 0
    v_entry: int = 0
    out_entry: int = 0
    lse_entry: int = 0
    mask_entry: int = 0
    grad_out_entry: int = 0
    dq_entry: int = 0
    dk_entry: int = 0
    dv_entry: int = 0
    dmask_entry: int = 0
    q_head: int = 0
    k_head: int = 0
    v_head: int = 0
    out_head: int = 0
    lse_head: int = 0
    mask_head: int = 0
    grad_out_head: int = 0
    dq_head: int = 0
    dk_head: int = 0
    dv_head: int = 0
    dmask_head: int = 0
    q_row: int = 0
    k_row: int = 0
    v_row: int = 0
    out_row: int = 0
    lse_row: int = 0
    mask_row: int = 0
    grad_out_row: int = 0
    dq_row: int = 0
    dk_row: int = 0
    dv_row: int = 0
    dmask_row: int = 0
    mask_item: int = 0
    dmask_item: int = 0

    entries: int = 0
    heads: int = 0
    group: int = 0  # heads that share keys
    queries: int = 0  # of an entry; of packed sequences, of all together
    keys: int = 0
    offset: int = 0
    left: int = -1
    right: int = -1
    width: int = 0  # bytes of a row of q or k
    value_width: int = 0  # bytes of a row of v or out
    of_bytes: int = 0  # whether the mask is boolean
    aligned: int = 0  # one bit for each array: whether its rows are whole words of 16 bytes

    packed: int = 0  # entries are sequences, one after the other in each array
    pack: int = 1  # heads that are rows of one tile
    tiles: int = 0  # of an entry; of packed sequences, of all together
    splits: int = 1  # of the keys
    all_rows: int = 0  # queries of all heads and entries
    parts: int = 1  # of the columns of results

    scale: float = 1.0
    softcap: float = 0.0


#: The arrays of a problem, in the order of `Problem`, which is that of `starts`.
ARRAYS = ("q", "k", "v", "out", "lse", "mask", "grad_out", "dq", "dk", "dv", "dmask")
Q, K, V, OUT, LSE, MASK, GRAD_OUT, DQ, DK, DV, DMASK = range(len(ARRAYS))
# Bits of `aligned`.
OF_Q, OF_K, OF_V, OF_OUT, OF_GRAD_OUT, OF_DQ, OF_DK, OF_DV = (
    1 << i for i in (Q, K, V, OUT, GRAD_OUT, DQ, DK, DV)
)


@device
def start(p, which, entry, step):
    """How far from the beginning of an array, in bytes, its batch entry begins."""
    if p.starts == 0:
        return entry * step
    return _ptx.load_i64(p.starts + 8 * (entry * len(ARRAYS) + which))


def _row_of(name):
    """`row(p, entry, head, row)`: the address of a row of a head of a batch entry of an array."""
    scope = {"start": start, "which": ARRAYS.index(name)}
    exec(
        "def row_of(p, entry, head, row):\n"
        f"    at = p.{name} + start(p, which, entry, p.{name}_entry)\n"
        f"    return at + head * p.{name}_head + row * p.{name}_row",
        scope,
    )
    return device(scope["row_of"])


row_of_q, row_of_k, row_of_v, row_of_out, row_of_lse, row_of_mask = map(_row_of, ARRAYS[:6])
row_of_grad_out, row_of_dq, row_of_dk, row_of_dv, row_of_dmask = map(_row_of, ARRAYS[6:])


class Span(NamedTuple):
    """The queries and keys of a batch entry."""

    first_q: int
    queries: int
    first_k: int
    keys: int
    offset: int  # position of the first query among the keys


@device
def span_of(p, entry):
    if p.spans == 0:
        return Span(np.int64(0), p.queries, np.int64(0), p.keys, p.offset)
    at = p.spans + 8 * SPAN * entry
    first_q, last_q = _ptx.load_i64(at), _ptx.load_i64(at + 8)
    first_k, last_k = _ptx.load_i64(at + 16), _ptx.load_i64(at + 24)
    offset = _ptx.load_i64(at + 32)
    return Span(first_q, last_q - first_q, first_k, last_k - first_k, offset)


@device
def divided(a, b):
    """Quotient, as uint32, and remainder. (64 bits would take a hundred instructions.)"""
    quotient = np.uint32(a // np.uint32(b))
    return quotient, np.int64(a) - np.int64(quotient) * b


@device
def locate(p, rows, per_row, which):
    """(part, split, entry, head, tile) of this block, in tiles of `rows` rows.

    Neighbouring blocks have neighbouring tiles of one head, the last ones first, which under
    causality have the most keys. `per_row` rows belong to one query (or key); `which` is the place
    in a span of the first of them.
    """
    b, part = divided(_ptx.block_index(), p.parts)
    b, split = divided(b, p.splits)
    b, unit = divided(b, p.tiles)
    unit = p.tiles - 1 - unit
    heads = p.heads // per_row if which == 0 else p.heads // p.group
    entry, head = divided(b, heads)
    entry = np.int64(entry)
    if p.packed == 0:
        return part, split, entry, head, unit
    # The tiles of sequence i begin at number first // rows + i: that is enough for all of them, and
    # the host need not know how long the sequences are.
    low, high = np.int64(0), p.entries - 1
    while low < high:
        middle = (low + high + 1) >> 1
        if _first_tile(p, middle, rows, per_row, which) <= unit:
            low = middle
        else:
            high = middle - 1
    return part, split, low, head, unit - _first_tile(p, low, rows, per_row, which)


@device
def _first_tile(p, entry, rows, per_row, which):
    first = _ptx.load_i64(p.spans + 8 * (SPAN * entry + which))
    return first * per_row // rows + entry


@device
def row_number(p, entry, head, row):
    """The index of a query among those of all entries and heads."""
    if p.packed:
        entry = np.int64(0)
    return (entry * p.heads + head) * p.queries + row


@device
def bounds(position, left, right, count):
    """The columns that a row sees, [low, high)."""
    low = min(max(position - left, np.int64(0)), count) if left >= 0 else np.int64(0)
    high = min(max(position + right + 1, np.int64(0)), count) if right >= 0 else count
    return low, max(low, high)
