"""The backward: the weights are computed again from lse, tile by tile and block by block.

With p the weights, ds = p * (grad_out v^T - sum(grad_out * out)), from which dq = scale * ds k,
dk = scale * ds^T q and dv = p^T grad_out: five products. A tile of queries adds to dk and dv of
every key, and to be the same for any number of threads these sums need an order. The tiles of a
head are cut into `pieces` ranges, and its keys into as many. In round `shift`, task i takes range i
of the tiles and range i + shift (modulo their number) of the keys: no two tasks of a round write
the same sums, and the rounds are their order. One piece, where there are heads enough, is a whole
head for each thread. Rejected: dq over tiles, then dk and dv over keys, which is seven products;
tiles that wait for those before them, as in the Cython kernel, which Numba cannot express.

lse is rounded to its own size: of scores around -1e9 it is the same for one key and for a thousand.
Rows whose lse is large get the maximum and the sum of their weights from the scores again, and
sum(grad_out * out) from these weights, before the first round.

Sums of 16-bit results are made in float32 memory of the same layout, twice their size, and narrowed
at the end. For dk and dv the columns are those of the head, not queries: a width below COLUMNS
leaves some of them empty.
"""

from typing import NamedTuple

import numpy as np

from .._compile import next_task, threaded
from .._jit_options import internal
from .._math import add_in_any_order, cast, constants, exp_2, smaller
from .._storage import narrow, scratch, widen
from .forward import weigh
from .problem import (
    DK,
    DMASK,
    DQ,
    DV,
    GRAD_OUT,
    HEAD,
    ITEM,
    LSE,
    OUT,
    ROW,
    STARTS,
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
from .products import COLUMNS, add_product, four_up, product
from .scores import (
    BLOCK,
    load_keys,
    load_queries,
    new_workspace,
    scores,
)

ENOUGH = 16  # tasks in a round; with fewer heads, each is cut

# Of |lse|, in base 2. Its rounding changes weights by up to |lse| / 2**24 of them in float32, here
# by 1e-5, as that of the scores does; scores of trained models stay below.
LARGE_LSE = 256.0

# Rows of GradWorkspace.norms. A weight is exp2(score - BASE) * INV_SUM, with at most CAP as the
# exponent.
BASE = 0  # lse in base 2, or the largest score
INV_SUM = 1  # 1, or 1 / sum of the weights
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
    norms: np.ndarray  # (tiles, NORMS, COLUMNS): from the first round for the others


class GradWorkspace(NamedTuple):
    """More memory of a thread, next to Workspace."""

    grad: np.ndarray  # (value_width, COLUMNS): grad_out
    query_rows: np.ndarray  # (COLUMNS, width) in panels of COLUMNS numbers
    grad_rows: np.ndarray  # (COLUMNS, value_width) in panels
    grad_scores: np.ndarray  # (BLOCK, COLUMNS)
    grad_queries: np.ndarray  # (width, COLUMNS)
    panel: np.ndarray  # (BLOCK, COLUMNS)
    norms: np.ndarray  # (NORMS, COLUMNS)
    part: np.ndarray  # a part of the forward with four rows of sums


def pieces_of(p):
    """Into how many ranges the tiles and the keys of a head are cut: by the shapes alone."""
    heads = max(1, p.kv_heads * len(p.spans))
    tiles = int(np.diff(p.first_tile).max(initial=1)) // max(1, p.kv_heads)
    blocks = int((p.spans[:, 3] - p.spans[:, 2]).max(initial=1)) // BLOCK
    return max(1, min(-(-ENOUGH // heads), tiles, blocks))


@internal
def panels(width):
    return (width + COLUMNS - 1) // COLUMNS


@internal
def new_grad_workspace(p):
    return GradWorkspace(
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


@internal
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


@internal
def load_tile(p, g, tile, lanes, work, grad_work):
    """Queries and grad_out of a tile."""
    load_queries(p, p.q, Q, tile, lanes, p.width, work.queries)
    load_queries(p, g.grad_out, GRAD_OUT, tile, lanes, p.value_width, grad_work.grad)
    load_panels(p, p.q, Q, tile, lanes, p.width, grad_work.query_rows)
    load_panels(p, g.grad_out, GRAD_OUT, tile, lanes, p.value_width, grad_work.grad_rows)


@internal
def sum_weights(p, tile, lanes, work, grad_work):
    """Of each row of the tile the largest score, the sum of the weights below it, and their sum
    with grad_out v^T: rows 4, 5 and 0 of grad_work.part. The other rows are padding.
    """
    part, s, ds = grad_work.part, work.scores, grad_work.grad_scores
    depth, memory = four_up(p.value_width), grad_work.panel
    part[:] = 0
    part[4 * COLUMNS : 5 * COLUMNS] = constants(part[0]).lowest
    for first in range(tile.low, tile.high, BLOCK):
        n = min(BLOCK, tile.high - first)
        if not scores(p, tile, lanes, work, first, n):
            continue
        weigh(s, n, part, 4, memory[:COLUMNS], memory[COLUMNS : 2 * COLUMNS],
              memory[2 * COLUMNS : 3 * COLUMNS])  # fmt: skip
        load_keys(p, p.v, V, tile, first, n, p.value_width, work.values)
        product(work.values, depth, 1, grad_work.grad, ds, four_up(n), depth)
        for key in range(n):
            at = key * COLUMNS
            line, grad_line = s[at : at + COLUMNS], ds[at : at + COLUMNS]
            for j in range(COLUMNS):
                part[j] += line[j] * grad_line[j]


@internal
def is_large(lse):
    t = constants(lse)
    return abs(lse) * t.log2_e > LARGE_LSE and abs(lse) != -t.lowest


@internal
def find_norms(p, g, tile, lanes, work, grad_work):
    t, norms, part = constants(grad_work.norms[0]), grad_work.norms, grad_work.part
    summed = False
    for r in range(tile.rows):
        summed |= is_large(g.lse[query_at(p, LSE, tile, lanes, r)])
    if summed:
        sum_weights(p, tile, lanes, work, grad_work)
    norms[:] = 0
    norms[BASE * COLUMNS : (BASE + 1) * COLUMNS] = -t.lowest
    for r in range(tile.rows):
        lse = g.lse[query_at(p, LSE, tile, lanes, r)]
        a, b = query_at(p, GRAD_OUT, tile, lanes, r), query_at(p, OUT, tile, lanes, r)
        grad_row, row = g.grad_out[a : a + p.value_width], g.out[b : b + p.value_width]
        mean = t.zero
        for k in range(p.value_width):
            mean = add_in_any_order(mean, widen(grad_row[k]) * widen(row[k]))
        base, inv_sum, cap = lse * t.log2_e, t.one, t.zero
        if is_large(lse):
            base, total, cap = part[4 * COLUMNS + r], part[5 * COLUMNS + r], t.one
            inv_sum = t.one / total if total != t.zero else t.zero
            mean = part[r] * inv_sum
        # A query that sees no key: every weight is exp2(-inf).
        norms[BASE * COLUMNS + r] = -t.lowest if base == t.lowest else base
        norms[INV_SUM * COLUMNS + r] = inv_sum
        norms[CAP * COLUMNS + r] = cap
        norms[MEAN * COLUMNS + r] = mean


@internal
def block_gradient(p, tile, lanes, work, grad_work, first, n, of_mask):
    """work.scores = p and grad_work.grad_scores = ds of `n` keys: of the scores before softcap and
    scale or, for the gradient of a mask, after. False where the mask lets nothing through.
    """
    if not scores(p, tile, lanes, work, first, n):
        return False
    load_keys(p, p.v, V, tile, first, n, p.value_width, work.values)
    depth = four_up(p.value_width)
    product(work.values, depth, 1, grad_work.grad, grad_work.grad_scores, four_up(n), depth)
    t, norms = constants(grad_work.norms[0]), grad_work.norms
    bases, inv_sums = norms[BASE * COLUMNS :], norms[INV_SUM * COLUMNS :]
    caps, means = norms[CAP * COLUMNS :], norms[MEAN * COLUMNS :]
    scale = t.one if of_mask else cast(t.one, p.scale)
    for key in range(n):
        at = key * COLUMNS
        line, ds = work.scores[at : at + COLUMNS], grad_work.grad_scores[at : at + COLUMNS]
        for j in range(COLUMNS):
            weight = exp_2(smaller(caps[j], line[j] - bases[j])) * inv_sums[j]
            line[j] = weight
            ds[j] = weight * (ds[j] - means[j]) * scale
    if p.softcap != 0 and not of_mask:
        for i in range(n * COLUMNS):
            grad_work.grad_scores[i] *= work.slope[i]
    # What products read beyond the last key and the last row.
    for s in (work.scores, grad_work.grad_scores):
        s[n * COLUMNS : four_up(n) * COLUMNS] = 0
        for key in range(n):
            for j in range(tile.rows, four_up(tile.rows)):
                s[key * COLUMNS + j] = 0
    return True


@internal
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


@internal
def end_tile(p, g, tile, lanes, grad_work, fresh):
    """dq of the tile, written or added."""
    for r in range(tile.rows):
        at = query_at(p, DQ, tile, lanes, r)
        row, column = g.dq[at : at + p.width], grad_work.grad_queries[r:]
        if fresh:
            for k in range(p.width):
                row[k] = column[k * COLUMNS]
        else:
            for k in range(p.width):
                row[k] += column[k * COLUMNS]


# ---- tasks -----------------------------------------------------------------------------------


@internal
def tile_gradient(p, g, tile, number, lanes, work, grad_work, low, high, fresh):
    """Adds the part of tile `number` and the keys from `low` to `high` to dq, dk and dv."""
    grad_work.grad_queries[:] = 0
    low, high = max(low, tile.low), min(high, tile.high)
    if low >= high and not fresh:
        return
    load_tile(p, g, tile, lanes, work, grad_work)
    tile_norms = g.norms[number * NORMS * COLUMNS : (number + 1) * NORMS * COLUMNS]
    if fresh:
        find_norms(p, g, tile, lanes, work, grad_work)
        tile_norms[:] = grad_work.norms
    else:
        grad_work.norms[:] = tile_norms
    width, panel, ds = four_up(p.width), grad_work.panel, grad_work.grad_scores
    for at in range(low, high, BLOCK):
        n = min(BLOCK, high - at)
        if block_gradient(p, tile, lanes, work, grad_work, at, n, False):
            add_product(work.keys, 1, width, ds, grad_work.grad_queries, width, four_up(n))
            add_outer(
                p, work.scores, grad_work.grad_rows, p.value_width, g.dv, DV, tile, at, n, panel
            )
            add_outer(p, ds, grad_work.query_rows, p.width, g.dk, DK, tile, at, n, panel)
    end_tile(p, g, tile, lanes, grad_work, fresh)


@internal
def piece_gradient(p, g, number, pieces, shift, lanes, work, grad_work):
    """One range of the tiles of a head with one range of its keys."""
    head, piece = number // pieces, number % pieces
    batch, kv_head = head // p.kv_heads, head % p.kv_heads
    count = (p.first_tile[batch + 1] - p.first_tile[batch]) // p.kv_heads
    blocks = (keys_of(p, batch) + BLOCK - 1) // BLOCK
    other = (piece + shift) % pieces
    low, high = other * blocks // pieces * BLOCK, (other + 1) * blocks // pieces * BLOCK
    shared = together(p, batch)
    for i in range(piece * count // pieces, (piece + 1) * count // pieces):
        index = kv_head * count + i
        tile, number = make_tile(p, lanes, batch, index, shared), p.first_tile[batch] + index
        tile_gradient(p, g, tile, number, lanes, work, grad_work, low, high, shift == 0)


@internal
def mask_gradient(p, g, number, lanes, work, grad_work):
    """The gradient of the mask for one tile of positions, over all batch entries and heads: where
    the mask was broadcast, they add up in the same place.
    """
    step = p.places[DMASK, ITEM]
    for batch in range(len(p.spans)):
        count = (queries_of(p, batch) + COLUMNS - 1) // COLUMNS
        for head in range(p.heads if number < count else 0):
            tile = make_tile(p, lanes, batch, head * count + number, 1)
            load_tile(p, g, tile, lanes, work, grad_work)
            find_norms(p, g, tile, lanes, work, grad_work)
            for first in range(tile.low, tile.high, BLOCK):
                n = min(BLOCK, tile.high - first)
                if not block_gradient(p, tile, lanes, work, grad_work, first, n, True):
                    continue
                for r in range(tile.rows):
                    at = mask_at(p, DMASK, tile, lanes, r, first)
                    for key in range(n):
                        g.dmask[at + key * step] += grad_work.grad_scores[key * COLUMNS + r]


# ---- over threads ----------------------------------------------------------------------------


@internal
def backward_task(p, g, tasks, pieces, shift, counter, _):
    """The tasks of one thread in round `shift` or, without pieces, of the gradient of the mask."""
    lanes, work, grad_work = new_lanes(), new_workspace(p), new_grad_workspace(p)
    number = next_task(counter)
    while number < tasks:
        if pieces:
            piece_gradient(p, g, number, pieces, shift, lanes, work, grad_work)
        else:
            mask_gradient(p, g, number, lanes, work, grad_work)
        number = next_task(counter)


@internal
def narrow_task(places, spans, side, heads, width, sums, to, counter, _):
    """Narrows sums of gradients in float32 to 16-bit results. `places` is the array's row of that
    table; `side` is 0 for queries, 2 for keys (columns of spans).
    """
    number = next_task(counter)
    while number < len(spans) * heads:
        batch, head = number // heads, number % heads
        for row in range(spans[batch, side], spans[batch, side + 1]):
            at = places[STARTS + batch] + head * places[HEAD] + row * places[ROW]
            line, result = sums[at : at + width], to[at : at + width]
            for k in range(width):
                result[k] = narrow(line[k], to)
        number = next_task(counter)


run_backward, run_narrow = threaded(backward_task), threaded(narrow_task)
