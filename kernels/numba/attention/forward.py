"""The forward: parts of tiles, and how they are merged.

It goes over the keys in blocks and keeps, for each query, the maximum of its scores, the sum of the
weights relative to it, and the weighted sum of the values, which are rescaled when the maximum
grows (Milakov & Gimelshein 2018, Dao et al. 2022). A part is the result for a tile and a range of
keys: rows of COLUMNS numbers, `value_width` (rounded up to four) of sums, then the maximum (in base
2) and the sum of the weights. Where there are too few tiles for all threads, the keys are split,
and the parts merged in order.
"""

import math

import numpy as np
from numba.extending import register_jitable

from .._compile import next_task, threaded
from .._jit_options import internal
from .._math import cast, constants, exp_2, larger
from .._storage import narrow, scratch
from .few_queries import FEW, attend_few
from .problem import (
    LSE,
    OUT,
    Q,
    V,
    find_tile,
    new_lanes,
    queries_of,
    query_at,
)
from .products import COLUMNS, add_product, four_up
from .scores import BLOCK, load_keys, load_queries, new_workspace, scores

ENOUGH = 32  # tasks; with fewer, the keys are split
SHORTEST_SPLIT = 512  # keys
LN_2 = 0.6931471805599453


@register_jitable
def splits_of(p):
    """Into how many parts the keys are cut: by the shapes alone."""
    tiles = int(p.first_tile[-1])
    if not 0 < tiles < ENOUGH:
        return 1
    longest = int((p.spans[:, 3] - p.spans[:, 2]).max())
    return max(1, min(ENOUGH // tiles, longest // SHORTEST_SPLIT))


@register_jitable
def part_size(p):
    return (four_up(p.value_width) + 2) * COLUMNS


# ---- a part of a tile ------------------------------------------------------------------------


@internal
def weigh(s, n, part, depth, sums, base, ratio):
    """s = exp2(s - maximum), n rows; the part's `depth` rows of sums and its total are brought up
    to the new maximum. The last three arguments are memory for COLUMNS numbers.
    """
    t = constants(s[0])
    row_max = part[depth * COLUMNS : (depth + 1) * COLUMNS]
    totals = part[(depth + 1) * COLUMNS : (depth + 2) * COLUMNS]
    for j in range(COLUMNS):
        base[j], sums[j] = row_max[j], t.zero
    for key in range(n):
        line = s[key * COLUMNS : (key + 1) * COLUMNS]
        for j in range(COLUMNS):
            base[j] = larger(line[j], base[j])  # skips NaN, which comes back through the sum
    grown = False
    for j in range(COLUMNS):
        old, row_max[j] = row_max[j], base[j]
        base[j] = t.zero if base[j] == t.lowest else base[j]  # -inf - -inf is NaN
        ratio[j] = exp_2(old - base[j])
        grown |= ratio[j] != t.one
    for key in range(n):
        line = s[key * COLUMNS : (key + 1) * COLUMNS]
        for j in range(COLUMNS):
            weight = exp_2(line[j] - base[j])
            line[j] = weight
            sums[j] += weight
    for j in range(COLUMNS):
        totals[j] = totals[j] * ratio[j] + sums[j]
    if grown:
        for k in range(depth):
            line = part[k * COLUMNS : (k + 1) * COLUMNS]
            for j in range(COLUMNS):
                line[j] *= ratio[j]


@internal
def attend(p, tile, lanes, work, memory, first, last, part):
    """The keys from `first` to `last`."""
    depth = four_up(p.value_width)
    part[:] = 0
    part[depth * COLUMNS : (depth + 1) * COLUMNS] = constants(part[0]).lowest
    load_queries(p, p.q, Q, tile, lanes, p.width, work.queries)
    for at in range(first, last, BLOCK):
        n = min(BLOCK, last - at)
        if not scores(p, tile, lanes, work, at, n):
            continue
        weigh(work.scores, n, part, depth, memory[:COLUMNS], memory[COLUMNS : 2 * COLUMNS],
              memory[2 * COLUMNS :])  # fmt: skip
        work.scores[n * COLUMNS : four_up(n) * COLUMNS] = 0
        load_keys(p, p.v, V, tile, at, n, p.value_width, work.values)
        add_product(work.values, 1, depth, work.scores, part, depth, four_up(n))


# ---- merging ---------------------------------------------------------------------------------


@internal
def merge_parts(p, out, lse, tile, lanes, parts, count):
    """The rows of a tile and their lse, from `count` parts in order; the first one is changed."""
    size, depth = part_size(p), four_up(p.value_width)
    zero = constants(parts[0]).zero
    for r in range(tile.rows):
        maxima, totals = parts[depth * COLUMNS + r :], parts[(depth + 1) * COLUMNS + r :]
        row_max, total = -math.inf, 0.0
        for i in range(count):
            row_max = max(row_max, np.float64(maxima[i * size]))
        for i in range(count):
            # A part that saw no key has 0 to add, or NaN.
            own = np.float64(maxima[i * size])
            scale = 1.0 if own in (-math.inf, row_max) else 2.0 ** (own - row_max)
            total += scale * totals[i * size]
            totals[i * size] = scale
        for i in range(count):  # no key allowed: 0
            totals[i * size] *= cast(zero, 1 / total if total != 0 else 0)
        if lse.size:
            norm = row_max * LN_2 + math.log(total) if total != 0 else -math.inf
            lse[query_at(p, LSE, tile, lanes, r)] = norm
    first = parts[: depth * COLUMNS]
    for i in range(count):
        part = parts[i * size : (i + 1) * size]
        for k in range(depth):
            to, line = first[k * COLUMNS :], part[k * COLUMNS :]
            for j in range(tile.rows):
                term = line[j] * part[(depth + 1) * COLUMNS + j]
                to[j] = term if i == 0 else to[j] + term
    for r in range(tile.rows):
        at = query_at(p, OUT, tile, lanes, r)
        row, column = out[at : at + p.value_width], first[r:]
        for k in range(p.value_width):
            row[k] = narrow(column[k * COLUMNS], out)


# ---- over threads ----------------------------------------------------------------------------


@internal
def attend_split(p, out, lse, number, splits, lanes, work, memory, parts):
    """One split of one tile."""
    tile = find_tile(p, lanes, number // splits)
    size = part_size(p)
    part = parts[number * size : (number + 1) * size] if splits > 1 else parts[:size]
    # Whole blocks for each split.
    blocks = (tile.high - tile.low + BLOCK - 1) // BLOCK
    stretch = (blocks + splits - 1) // splits * BLOCK
    first = min(tile.high, tile.low + number % splits * stretch)
    last = min(tile.high, first + stretch)
    group = p.heads // p.kv_heads
    if group * queries_of(p, tile.batch) <= FEW:
        attend_few(p, tile, lanes, work, first, last, part)
    else:
        attend(p, tile, lanes, work, memory, first, last, part)
    if splits == 1:
        merge_parts(p, out, lse, tile, lanes, part, 1)


@internal
def forward_task(p, out, lse, splits, parts, counter, _):
    """What one thread does."""
    lanes, work, memory = new_lanes(), new_workspace(p), scratch(p.q, 3 * COLUMNS)
    mine = parts if splits > 1 else scratch(p.q, part_size(p))
    number = next_task(counter)
    while number < p.first_tile[-1] * splits:
        attend_split(p, out, lse, number, splits, lanes, work, memory, mine)
        number = next_task(counter)


@internal
def merge_task(p, out, lse, splits, parts, counter, _):
    lanes, size = new_lanes(), splits * part_size(p)
    number = next_task(counter)
    while number < p.first_tile[-1]:
        mine = parts[number * size : (number + 1) * size]
        merge_parts(p, out, lse, find_tile(p, lanes, number), lanes, mine, splits)
        number = next_task(counter)


run_forward, run_merge = threaded(forward_task), threaded(merge_task)
