"""The backward: the weights are computed again from lse, tile by tile and block by block.

With p the weights, ds = p * (grad_out v^T - sum(grad_out * out)), from which dq = scale * ds k,
dk = scale * ds^T q and dv = p^T grad_out: five products. A tile of queries adds to dk and dv of
every key, and to be the same for any number of threads these sums need an order. The tiles of a
head are cut into `pieces` stretches, and its keys into as many. In round t, task i takes stretch i
of the tiles with stretch i + t (modulo their number) of the keys: no two tasks of a round write the
same sums, and the rounds are their order. One piece, where there are heads enough, is a whole head
for each thread. Rejected: dq over tiles, then dk and dv over keys, which is seven products; tiles
that wait for those before them, as in the Cython kernel, for which Numba has no words.

Sums of 16-bit results are made in float32 memory of the same layout, twice their size, and narrowed
at the end. For dk and dv the columns are those of the head, not queries: a width below COLUMNS
leaves some of them empty.
"""

from typing import NamedTuple

import numpy as np

from ._attention_problem import (
    DK,
    DMASK,
    DQ,
    DV,
    GRAD_OUT,
    ITEM,
    LSE,
    OUT,
    Q,
    V,
    key_at,
    keys_of,
    make_tile,
    mask_at,
    new_lanes,
    queries_of,
    query_at,
    together,
)
from ._attention_products import COLUMNS, add_product, four_up, product
from ._attention_scores import (
    BLOCK,
    load_keys,
    load_queries,
    new_work,
    scores,
)
from ._compile import take_turn, threaded
from ._math import add_in_any_order, cast, constants, exp_2, smaller
from ._parts import inner
from ._storage import scratch, widen

ENOUGH = 16  # tasks in a round; with fewer heads, each is cut


class Gradient(NamedTuple):
    """Inputs in storage; sums in the type that is computed in."""

    grad_out: np.ndarray
    out: np.ndarray
    lse: np.ndarray
    dq: np.ndarray
    dk: np.ndarray
    dv: np.ndarray
    dmask: np.ndarray


class Pull(NamedTuple):
    """A thread's memory, beside Work."""

    grad: np.ndarray  # (value_width, COLUMNS): grad_out
    query_rows: np.ndarray  # (COLUMNS, width) in panels of COLUMNS numbers
    grad_rows: np.ndarray  # (COLUMNS, value_width) in panels
    grad_scores: np.ndarray  # (BLOCK, COLUMNS)
    grad_queries: np.ndarray  # (width, COLUMNS)
    panel: np.ndarray  # (BLOCK, COLUMNS)
    means: np.ndarray  # (COLUMNS): sum of grad_out * out
    norms: np.ndarray  # (COLUMNS): lse in base 2


def pieces_of(p):
    """Into how many stretches the tiles and the keys of a head are cut: by the shapes alone."""
    heads = max(1, p.kv_heads * len(p.spans))
    tiles = int(np.diff(p.first_tile).max(initial=1)) // max(1, p.kv_heads)
    blocks = int((p.spans[:, 3] - p.spans[:, 2]).max(initial=1)) // BLOCK
    return max(1, min(-(-ENOUGH // heads), tiles, blocks))


@inner
def panels(width):
    return (width + COLUMNS - 1) // COLUMNS


@inner
def new_pull(p):
    return Pull(
        scratch(p.q, four_up(p.value_width) * COLUMNS),
        scratch(p.q, panels(p.width) * COLUMNS * COLUMNS),
        scratch(p.q, panels(p.value_width) * COLUMNS * COLUMNS),
        scratch(p.q, BLOCK * COLUMNS),
        scratch(p.q, four_up(p.width) * COLUMNS),
        scratch(p.q, BLOCK * COLUMNS),
        scratch(p.q, COLUMNS),
        scratch(p.q, COLUMNS),
    )


# ---- a tile, and a block of keys -------------------------------------------------------------


@inner
def load_panels(p, data, which, tile, lanes, width, to):
    """Rows of the tile as panels of (COLUMNS, COLUMNS), zeros elsewhere."""
    to[:] = 0
    for r in range(tile.rows):
        at = query_at(p, which, tile, lanes, r)
        for first in range(0, width, COLUMNS):
            n, start = min(COLUMNS, width - first), (first + r) * COLUMNS
            row, line = data[at + first : at + first + n], to[start : start + n]
            for k in range(n):
                line[k] = widen(row[k])


@inner
def begin_tile(p, g, tile, lanes, work, pull):
    """Queries, grad_out, lse and sum(grad_out * out) of a tile."""
    load_queries(p, p.q, Q, tile, lanes, p.width, work.queries)
    load_queries(p, g.grad_out, GRAD_OUT, tile, lanes, p.value_width, pull.grad)
    load_panels(p, p.q, Q, tile, lanes, p.width, pull.query_rows)
    load_panels(p, g.grad_out, GRAD_OUT, tile, lanes, p.value_width, pull.grad_rows)
    t = constants(pull.means[0])
    pull.means[:] = 0
    pull.norms[:] = -t.lowest
    for r in range(tile.rows):
        norm = g.lse[query_at(p, LSE, tile, lanes, r)] * t.log2_e
        # A query that sees no key, or keys of the lowest number only: every weight is exp2(-inf).
        pull.norms[r] = -t.lowest if norm < -t.half * t.largest else norm
        a, b = query_at(p, GRAD_OUT, tile, lanes, r), query_at(p, OUT, tile, lanes, r)
        pulled, out = g.grad_out[a : a + p.value_width], g.out[b : b + p.value_width]
        total = t.zero
        for k in range(p.value_width):
            total = add_in_any_order(total, widen(pulled[k]) * widen(out[k]))
        pull.means[r] = total


@inner
def block_gradient(p, tile, lanes, work, pull, first, n, of_mask):
    """work.scores = p, pull.grad_scores = ds of `n` keys: of the scores before softcap and scale
    or, for the gradient of a mask, after. False where the mask lets nothing through.
    """
    if not scores(p, tile, lanes, work, first, n):
        return False
    load_keys(p, p.v, V, tile, first, n, p.value_width, work.values)
    depth = four_up(p.value_width)
    product(work.values, depth, 1, pull.grad, pull.grad_scores, four_up(n), depth)
    t = constants(pull.means[0])
    norms, means = pull.norms, pull.means
    scale = t.one if of_mask else cast(t.one, p.scale)
    for key in range(n):
        at = key * COLUMNS
        line, ds = work.scores[at : at + COLUMNS], pull.grad_scores[at : at + COLUMNS]
        for j in range(COLUMNS):
            weight = exp_2(smaller(t.zero, line[j] - norms[j]))  # none is above 1
            line[j] = weight
            ds[j] = weight * (ds[j] - means[j]) * scale
    if p.softcap != 0 and not of_mask:
        for i in range(n * COLUMNS):
            pull.grad_scores[i] *= work.slope[i]
    # What products read beyond the last key and the last row.
    for s in (work.scores, pull.grad_scores):
        s[n * COLUMNS : four_up(n) * COLUMNS] = 0
        for key in range(n):
            for j in range(tile.rows, four_up(tile.rows)):
                s[key * COLUMNS + j] = 0
    return True


@inner
def add_outer(p, s, rows, width, to, which, tile, first, n, panel):
    """The rows of `n` keys in array `which` += s (n, COLUMNS) times the rows of the tile."""
    for column in range(0, width, COLUMNS):
        b = rows[column * COLUMNS : (column + COLUMNS) * COLUMNS]
        product(s, COLUMNS, 1, b, panel, four_up(n), four_up(tile.rows))
        count = min(COLUMNS, width - column)
        for key in range(n):
            at = key_at(p, which, tile, first + key) + column
            row, line = to[at : at + count], panel[key * COLUMNS : key * COLUMNS + count]
            for k in range(count):
                row[k] += line[k]


@inner
def end_tile(p, g, tile, lanes, pull, fresh):
    """dq of the tile, written or added."""
    for r in range(tile.rows):
        at = query_at(p, DQ, tile, lanes, r)
        row, column = g.dq[at : at + p.width], pull.grad_queries[r:]
        if fresh:
            for k in range(p.width):
                row[k] = column[k * COLUMNS]
        else:
            for k in range(p.width):
                row[k] += column[k * COLUMNS]


# ---- turns -----------------------------------------------------------------------------------


@inner
def tile_turn(p, g, tile, lanes, work, pull, low, high, fresh):
    """What a tile and the keys from `low` to `high` add to dq, dk and dv."""
    pull.grad_queries[:] = 0
    low, high = max(low, tile.low), min(high, tile.high)
    if low < high:
        begin_tile(p, g, tile, lanes, work, pull)
    elif not fresh:
        return
    width = four_up(p.width)
    for at in range(low, high, BLOCK):
        n = min(BLOCK, high - at)
        if block_gradient(p, tile, lanes, work, pull, at, n, False):
            add_product(work.keys, 1, width, pull.grad_scores, pull.grad_queries, width, four_up(n))
            add_outer(p, work.scores, pull.grad_rows, p.value_width, g.dv, DV, tile, at, n,
                      pull.panel)  # fmt: skip
            add_outer(p, pull.grad_scores, pull.query_rows, p.width, g.dk, DK, tile, at, n,
                      pull.panel)  # fmt: skip
    end_tile(p, g, tile, lanes, pull, fresh)


@inner
def piece_turn(p, g, number, pieces, turn, lanes, work, pull):
    """One stretch of the tiles of a head with one stretch of its keys."""
    head, piece = number // pieces, number % pieces
    batch, kv_head = head // p.kv_heads, head % p.kv_heads
    count = (p.first_tile[batch + 1] - p.first_tile[batch]) // p.kv_heads
    blocks = (keys_of(p, batch) + BLOCK - 1) // BLOCK
    other = (piece + turn) % pieces
    low, high = other * blocks // pieces * BLOCK, (other + 1) * blocks // pieces * BLOCK
    shared = together(p, batch)
    for i in range(piece * count // pieces, (piece + 1) * count // pieces):
        tile = make_tile(p, lanes, batch, kv_head * count + i, shared)
        tile_turn(p, g, tile, lanes, work, pull, low, high, turn == 0)


@inner
def mask_turn(p, g, number, lanes, work, pull):
    """The gradient of the mask for one tile of positions, over all batch entries and heads: where
    the mask was broadcast, they add up in the same place.
    """
    step = p.places[DMASK, ITEM]
    for batch in range(len(p.spans)):
        count = (queries_of(p, batch) + COLUMNS - 1) // COLUMNS
        for head in range(p.heads if number < count else 0):
            tile = make_tile(p, lanes, batch, head * count + number, 1)
            begin_tile(p, g, tile, lanes, work, pull)
            for first in range(tile.low, tile.high, BLOCK):
                n = min(BLOCK, tile.high - first)
                if not block_gradient(p, tile, lanes, work, pull, first, n, True):
                    continue
                for r in range(tile.rows):
                    at = mask_at(p, DMASK, tile, lanes, r, first)
                    for key in range(n):
                        g.dmask[at + key * step] += pull.grad_scores[key * COLUMNS + r]


# ---- over threads ----------------------------------------------------------------------------


@inner
def backward_task(p, g, tasks, pieces, turn, turns, _):
    """What one thread does in round `turn` or, where there are no pieces, of the gradient of the
    mask.
    """
    lanes, work, pull = new_lanes(), new_work(p), new_pull(p)
    number = take_turn(turns)
    while number < tasks:
        if pieces:
            piece_turn(p, g, number, pieces, turn, lanes, work, pull)
        else:
            mask_turn(p, g, number, lanes, work, pull)
        number = take_turn(turns)


run_backward = threaded(backward_task)
