"""The backward: the weights are computed again from lse, tile by tile and block by block.

With p the weights, ds = p * (grad_out v^T - sum(grad_out * out)), from which dq = scale * ds k,
dk = scale * ds^T q and dv = p^T grad_out: five products. A tile of queries adds to dk and dv of
every key, and to be the same for any number of threads these sums need an order. The tiles of a
head are cut into `pieces` stretches, and its keys into as many. In round t, task i takes stretch i
of the tiles with stretch i + t (modulo their number) of the keys: no two tasks of a round write the
same sums, and the rounds are their order. One piece, where there are heads enough, is a whole head
for each thread. Rejected: dq over tiles, then dk and dv over keys, which is seven products; tiles
that wait for those before them, as in the Cython kernel, for which Numba has no words.

lse is rounded to its own size: of scores around -1e9 it is the same for one key and for a thousand.
Rows whose lse is large get the maximum and the sum of their weights from the scores again, and
sum(grad_out * out) from these weights, before the first round.

Sums of 16-bit results are made in float32 memory of the same layout, twice their size, and narrowed
at the end. For dk and dv the columns are those of the head, not queries: a width below COLUMNS
leaves some of them empty.
"""

from typing import NamedTuple

import numpy as np

from ._attention_forward import weigh
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

# Of |lse|, in base 2. Its rounding changes weights by up to |lse| / 2**24 of them in float32, here
# by 1e-5, as that of the scores does; scores of trained models stay below.
LARGE_LSE = 256.0

# Rows of Pull.norms. A weight is exp2(score - TOP) * SHARE, with at most CAP as the exponent.
TOP = 0  # lse in base 2, or the largest score
SHARE = 1  # 1, or 1 / sum of the weights
CAP = 2  # 0: no weight is above 1, however lse was rounded. Or 1, which limits nothing
MEAN = 3  # sum of grad_out * out
NORMS = 4


class Gradient(NamedTuple):
    """Inputs in storage; sums in the type that is computed in."""

    grad_out: np.ndarray
    out: np.ndarray
    lse: np.ndarray
    dq: np.ndarray
    dk: np.ndarray
    dv: np.ndarray
    dmask: np.ndarray
    norms: np.ndarray  # (tiles, NORMS, COLUMNS): from the first round to the others


class Pull(NamedTuple):
    """A thread's memory, beside Work."""

    grad: np.ndarray  # (value_width, COLUMNS): grad_out
    query_rows: np.ndarray  # (COLUMNS, width) in panels of COLUMNS numbers
    grad_rows: np.ndarray  # (COLUMNS, value_width) in panels
    grad_scores: np.ndarray  # (BLOCK, COLUMNS)
    grad_queries: np.ndarray  # (width, COLUMNS)
    panel: np.ndarray  # (BLOCK, COLUMNS)
    norms: np.ndarray  # (NORMS, COLUMNS)
    part: np.ndarray  # a part of the forward with four rows of sums


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
        scratch(p.q, NORMS * COLUMNS),
        scratch(p.q, 6 * COLUMNS),
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
def load_tile(p, g, tile, lanes, work, pull):
    """Queries and grad_out of a tile."""
    load_queries(p, p.q, Q, tile, lanes, p.width, work.queries)
    load_queries(p, g.grad_out, GRAD_OUT, tile, lanes, p.value_width, pull.grad)
    load_panels(p, p.q, Q, tile, lanes, p.width, pull.query_rows)
    load_panels(p, g.grad_out, GRAD_OUT, tile, lanes, p.value_width, pull.grad_rows)


@inner
def sum_weights(p, tile, lanes, work, pull):
    """Of each row of the tile the largest score, the sum of the weights below it, and their sum
    with grad_out v^T: rows 4, 5 and 0 of pull.part. The other rows are filling.
    """
    part, s, ds = pull.part, work.scores, pull.grad_scores
    depth, memory = four_up(p.value_width), pull.panel
    part[:] = 0
    part[4 * COLUMNS : 5 * COLUMNS] = constants(part[0]).lowest
    for first in range(tile.low, tile.high, BLOCK):
        n = min(BLOCK, tile.high - first)
        if not scores(p, tile, lanes, work, first, n):
            continue
        weigh(s, n, part, 4, memory[:COLUMNS], memory[COLUMNS : 2 * COLUMNS],
              memory[2 * COLUMNS : 3 * COLUMNS])  # fmt: skip
        load_keys(p, p.v, V, tile, first, n, p.value_width, work.values)
        product(work.values, depth, 1, pull.grad, ds, four_up(n), depth)
        for key in range(n):
            at = key * COLUMNS
            line, pulled = s[at : at + COLUMNS], ds[at : at + COLUMNS]
            for j in range(COLUMNS):
                part[j] += line[j] * pulled[j]


@inner
def is_large(lse):
    t = constants(lse)
    return abs(lse) * t.log2_e > LARGE_LSE and abs(lse) != -t.lowest


@inner
def find_norms(p, g, tile, lanes, work, pull):
    t, norms, part = constants(pull.norms[0]), pull.norms, pull.part
    summed = False
    for r in range(tile.rows):
        summed |= is_large(g.lse[query_at(p, LSE, tile, lanes, r)])
    if summed:
        sum_weights(p, tile, lanes, work, pull)
    norms[:] = 0
    norms[TOP * COLUMNS : (TOP + 1) * COLUMNS] = -t.lowest
    for r in range(tile.rows):
        lse = g.lse[query_at(p, LSE, tile, lanes, r)]
        a, b = query_at(p, GRAD_OUT, tile, lanes, r), query_at(p, OUT, tile, lanes, r)
        pulled, out = g.grad_out[a : a + p.value_width], g.out[b : b + p.value_width]
        mean = t.zero
        for k in range(p.value_width):
            mean = add_in_any_order(mean, widen(pulled[k]) * widen(out[k]))
        top, share, cap = lse * t.log2_e, t.one, t.zero
        if is_large(lse):
            top, total, cap = part[4 * COLUMNS + r], part[5 * COLUMNS + r], t.one
            share = t.one / total if total != t.zero else t.zero
            mean = part[r] * share
        # A query that sees no key: every weight is exp2(-inf).
        norms[TOP * COLUMNS + r] = -t.lowest if top == t.lowest else top
        norms[SHARE * COLUMNS + r] = share
        norms[CAP * COLUMNS + r] = cap
        norms[MEAN * COLUMNS + r] = mean


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
    t, norms = constants(pull.norms[0]), pull.norms
    tops, shares = norms[TOP * COLUMNS :], norms[SHARE * COLUMNS :]
    caps, means = norms[CAP * COLUMNS :], norms[MEAN * COLUMNS :]
    scale = t.one if of_mask else cast(t.one, p.scale)
    for key in range(n):
        at = key * COLUMNS
        line, ds = work.scores[at : at + COLUMNS], pull.grad_scores[at : at + COLUMNS]
        for j in range(COLUMNS):
            weight = exp_2(smaller(caps[j], line[j] - tops[j])) * shares[j]
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
def tile_turn(p, g, tile, number, lanes, work, pull, low, high, fresh):
    """What tile `number` and the keys from `low` to `high` add to dq, dk and dv."""
    pull.grad_queries[:] = 0
    low, high = max(low, tile.low), min(high, tile.high)
    if low >= high and not fresh:
        return
    load_tile(p, g, tile, lanes, work, pull)
    kept = g.norms[number * NORMS * COLUMNS : (number + 1) * NORMS * COLUMNS]
    if fresh:
        find_norms(p, g, tile, lanes, work, pull)
        kept[:] = pull.norms
    else:
        pull.norms[:] = kept
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
        index = kv_head * count + i
        tile, number = make_tile(p, lanes, batch, index, shared), p.first_tile[batch] + index
        tile_turn(p, g, tile, number, lanes, work, pull, low, high, turn == 0)


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
            load_tile(p, g, tile, lanes, work, pull)
            find_norms(p, g, tile, lanes, work, pull)
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
