"""The forward of few queries, one by one: most columns of a tile would be empty.

It is bound by memory, as every key and value is used a few times only. Keys lie side by side in
the scores: rows of BLOCK numbers, one row for each query.
"""

from .._jit_options import internal
from .._math import add_in_any_order, constants, exp_2, larger, mul_add
from .._storage import widen
from .problem import ITEM, MASK, K, Q, V, key_at, mask_at, query_at
from .products import COLUMNS, four_up
from .scores import BLOCK, add_mask, scale_scores

FEW = 8  # queries that share keys


@internal
def few_scores(p, tile, lanes, work, r, first, n, q, s):
    """Scores of query `r` whose numbers are `q`, at `n` keys from `first`."""
    t = constants(s[0])
    for key in range(n):
        at = key_at(p, K, tile, first + key)
        row, total = p.k[at : at + p.width], t.zero
        for k in range(q.size):
            total = add_in_any_order(total, widen(row[k]) * q[k])
        s[key] = total
    scale_scores(p, s, work.slope)
    if p.mask.size or p.allowed.size:
        at, step = mask_at(p, MASK, tile, lanes, r, first), p.places[MASK, ITEM]
        mask = work.mask[:n]
        for key in range(n):
            if p.allowed.size:
                mask[key] = t.zero if p.allowed[at + key * step] else t.lowest
            else:
                mask[key] = widen(p.mask[at + key * step])
        add_mask(s, mask)
    for key in range(n):
        if not lanes.low[r] <= first + key < lanes.high[r]:
            s[key] = t.lowest


@internal
def few_weights(s, row_max, total, sums):
    """s = exp2(s - maximum); the new maximum and the total; `sums` are brought up to it."""
    t = constants(s[0])
    new = row_max
    for key in range(s.size):
        new = larger(s[key], new)
    base = t.zero if new == t.lowest else new
    ratio, added = exp_2(row_max - base), t.zero
    for key in range(s.size):
        s[key] = exp_2(s[key] - base)
    for key in range(s.size):
        added = add_in_any_order(added, s[key])
    if ratio != t.one:
        for k in range(sums.size):
            sums[k] *= ratio
    return new, total * ratio + added


@internal
def add_values(p, tile, first, s, sums):
    """sums += the values of the keys from `first`, times their weights `s`."""
    last = s.size // 4 * 4
    for key in range(0, last, 4):
        a, b = key_at(p, V, tile, first + key), key_at(p, V, tile, first + key + 1)
        c, d = key_at(p, V, tile, first + key + 2), key_at(p, V, tile, first + key + 3)
        rows = p.v[a : a + sums.size], p.v[b : b + sums.size]
        more = p.v[c : c + sums.size], p.v[d : d + sums.size]
        weights = s[key], s[key + 1], s[key + 2], s[key + 3]
        for k in range(sums.size):
            sum_ = mul_add(weights[0], widen(rows[0][k]), sums[k])
            sum_ = mul_add(weights[1], widen(rows[1][k]), sum_)
            sum_ = mul_add(weights[2], widen(more[0][k]), sum_)
            sums[k] = mul_add(weights[3], widen(more[1][k]), sum_)
    for key in range(last, s.size):
        at = key_at(p, V, tile, first + key)
        row, weight = p.v[at : at + sums.size], s[key]
        for k in range(sums.size):
            sums[k] = mul_add(weight, widen(row[k]), sums[k])


@internal
def attend_few(p, tile, lanes, work, first, last, part):
    """`attend` for up to FEW rows: the part is the same."""
    depth, t = four_up(p.value_width), constants(part[0])
    part[:] = 0
    row_max, totals = part[depth * COLUMNS :], part[(depth + 1) * COLUMNS :]
    row_max[: tile.rows] = t.lowest
    # The memory of a tile is enough for the few rows: of queries, of scores and of sums.
    q, sums = work.queries[: tile.rows * p.width], work.values[: tile.rows * p.value_width]
    sums[:] = 0
    for r in range(tile.rows):
        at = query_at(p, Q, tile, lanes, r)
        for k in range(p.width):
            q[r * p.width + k] = widen(p.q[at + k])
    for at in range(first, last, BLOCK):
        s = work.scores[: min(BLOCK, last - at)]
        for r in range(tile.rows):
            few_scores(p, tile, lanes, work, r, at, s.size, q[r * p.width : (r + 1) * p.width], s)
            mine = sums[r * p.value_width : (r + 1) * p.value_width]
            row_max[r], totals[r] = few_weights(s, row_max[r], totals[r], mine)
            add_values(p, tile, at, s, mine)
    for r in range(tile.rows):
        for k in range(p.value_width):
            part[k * COLUMNS + r] = sums[r * p.value_width + k]
