"""Scores of a block of keys for a tile of queries, for the forward and the backward.

All scratch memory is rows of COLUMNS numbers, one for each query: (width, COLUMNS) of a tile's
queries, (BLOCK, COLUMNS) of its scores. Keys and values are copied into memory in the type that is
computed in, and filled up with zeros to multiples of four: so the product needs no special case for
any size, is compiled once for all storage types, and its numbers lie close together. The copy costs
2 to 3% at 64 queries.

Scores are kept in base 2: one factor, scale * log2(e), is multiplied in, and exp becomes exp2.
"""

from typing import NamedTuple

import numpy as np

from .._jit_options import internal
from .._math import cast, constants, larger, mul_add, tanh
from .._storage import scratch, widen
from .problem import ITEM, MASK, K, key_at, mask_at, query_at
from .products import COLUMNS, four_up, product

BLOCK = 96  # keys: the scores of 64 queries take 24 KB; a multiple of four
LOG2_E = 1.4426950408889634


class Workspace(NamedTuple):
    """A thread's memory."""

    queries: np.ndarray  # (width, COLUMNS)
    keys: np.ndarray  # (BLOCK, width)
    values: np.ndarray  # (BLOCK, value_width)
    scores: np.ndarray  # (BLOCK, COLUMNS)
    mask: np.ndarray  # (BLOCK, COLUMNS)
    slope: np.ndarray  # (BLOCK, COLUMNS): d(score) / d(score before softcap)
    low: np.ndarray  # (COLUMNS): which keys of the block a query may see, [low, high)
    high: np.ndarray


@internal
def new_workspace(p):
    width, value_width = four_up(p.width), four_up(p.value_width)
    return Workspace(
        scratch(p.q, width * COLUMNS),
        scratch(p.q, BLOCK * width),
        scratch(p.q, BLOCK * value_width),
        scratch(p.q, BLOCK * COLUMNS),
        scratch(p.q, BLOCK * COLUMNS if p.mask.size or p.allowed.size else 0),
        scratch(p.q, BLOCK * COLUMNS if p.softcap != 0 else 0),
        scratch(p.q, COLUMNS),
        scratch(p.q, COLUMNS),
    )


# ---- into scratch memory ---------------------------------------------------------------------


@internal
def load_queries(p, data, which, tile, lanes, width, to):
    """Rows of the tile to (width, COLUMNS); zeros elsewhere."""
    to[: four_up(width) * COLUMNS] = 0
    for r in range(tile.rows):
        at = query_at(p, which, tile, lanes, r)
        row, column = data[at : at + width], to[r:]
        for k in range(width):
            column[k * COLUMNS] = widen(row[k])


@internal
def load_keys(p, data, which, tile, first, n, width, to):
    """`n` rows from key `first` to (n, width), filled up with zeros to multiples of four."""
    stride = four_up(width)
    if stride != width:
        to[: four_up(n) * stride] = 0
    to[n * stride : four_up(n) * stride] = 0
    for key in range(n):
        at = key_at(p, which, tile, first + key)
        row, line = data[at : at + width], to[key * stride : key * stride + width]
        for k in range(width):
            line[k] = widen(row[k])


@internal
def load_mask(p, tile, lanes, first, n, to):
    """The mask of a block as numbers to add, and whether it lets anything through."""
    lowest = constants(to[0]).lowest
    step, something = p.places[MASK, ITEM], False
    for r in range(COLUMNS):
        at = mask_at(p, MASK, tile, lanes, r, first)
        for key in range(n):
            if p.allowed.size:
                m = cast(lowest, 0) if p.allowed[at + key * step] else lowest
            else:
                m = widen(p.mask[at + key * step])
            to[key * COLUMNS + r] = m
            something |= m != lowest
    return something


# ---- scores ----------------------------------------------------------------------------------


@internal
def scale_scores(p, s, slope):
    """Products to scores in base 2. With softcap, `slope` is its derivative."""
    t = constants(s[0])
    if p.softcap == 0:
        factor = cast(t.one, p.scale * LOG2_E)
        for i in range(s.size):
            s[i] *= factor
    else:
        factor, cap = cast(t.one, p.scale / p.softcap), cast(t.one, p.softcap * LOG2_E)
        for i in range(s.size):
            capped = tanh(s[i] * factor)
            slope[i] = t.one - capped * capped
            s[i] = cap * capped


@internal
def add_mask(s, mask):
    """A mask of the lowest number is not -inf, though its product with log2(e) is."""
    t = constants(s[0])
    for i in range(s.size):
        m = mask[i]
        sum_ = larger(-t.largest, mul_add(m, t.log2_e, s[i]))
        s[i] = t.lowest if m == t.lowest else sum_


@internal
def cut_window(s, n, low, high):
    """-inf for keys of the block beyond [low, high) of each query."""
    t = constants(s[0])
    for key in range(n):
        line, number = s[key * COLUMNS : (key + 1) * COLUMNS], cast(t.one, key)
        for j in range(COLUMNS):
            inside = low[j] <= number and number < high[j]
            line[j] = line[j] if inside else t.lowest


@internal
def scores(p, tile, lanes, work, first, n):
    """work.scores of `n` keys from `first`, -inf where not allowed. False where the mask lets
    nothing through: nothing is computed then.
    """
    masked = p.mask.size > 0 or p.allowed.size > 0
    if masked and not load_mask(p, tile, lanes, first, n, work.mask):
        return False
    load_keys(p, p.k, K, tile, first, n, p.width, work.keys)
    width = four_up(p.width)
    product(work.keys, width, 1, work.queries, work.scores, four_up(n), width)
    s = work.scores[: n * COLUMNS]
    scale_scores(p, s, work.slope)
    if masked:
        add_mask(s, work.mask)
    if first < tile.full_low or first + n > tile.full_high:
        for r in range(COLUMNS):
            work.low[r] = max(0, min(n, lanes.low[r] - first))
            work.high[r] = max(0, min(n, lanes.high[r] - first))
        cut_window(s, n, work.low, work.high)
    return True
