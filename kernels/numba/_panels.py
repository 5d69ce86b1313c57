"""Rows that lie side by side: each lane of a vector computes a row of its own.

So are computed short rows, and rows whose classes are not next to each other in memory. Up to PANEL
rows, a panel, are brought into a tile, CLASSES classes at a time, as floats with the rows side by
side: `tile[k * PANEL + c]` is class k of row c. Every loop over c then has a constant length and
plain arithmetic, which LLVM vectorises; columns beyond the last row hold zeros. Short rows take one
tile and are read once. Of longer ones the states of the tiles are merged, as _rows.py merges those
of blocks, and a second reading writes.
"""

import numpy as np
from numba.extending import register_jitable

from ._math import (
    add_compensated,
    apart,
    bounds,
    cast,
    constants,
    exp_between,
    exp_sub,
    larger,
    log_1p,
)
from ._parts import inner
from ._storage import narrow, stack_doubles, stack_like, stack_scratch, widen

PANEL = 128  # rows: eight vectors of 512 bits
CLASSES = 64  # a tile is 32 KB of float32
SHORT = 64  # rows of up to so many classes are computed side by side
TILE, WORK = CLASSES * PANEL, 5 * PANEL
PER_TASK = 1 << 16  # elements


@register_jitable
def is_panelled(n, inner):
    return inner != 1 or n <= SHORT


@register_jitable
def panel_count(outer, inner):
    return outer * (-(-inner // PANEL)) if inner != 1 else -(-outer // PANEL)


@register_jitable
def panels_per_task(n):
    return max(1, PER_TASK // (PANEL * max(1, n)))


@register_jitable
def rows_per_task(n):
    return max(1, PER_TASK // max(1, n))


@register_jitable
def task_count(outer, n, inner):
    """Tasks of a loop over threads: what each does depends on the shape alone."""
    if is_panelled(n, inner):
        return -(-panel_count(outer, inner) // panels_per_task(n))
    return -(-outer // rows_per_task(n))


@inner
def panel_rows(number, outer, inner):
    """The first row of a panel, counted as (outer, inner) lies in memory, and how many it has."""
    if inner == 1:
        return number * PANEL, min(PANEL, outer - number * PANEL)
    per_plane = -(-inner // PANEL)
    at = number % per_plane * PANEL
    return number // per_plane * inner + at, min(PANEL, inner - at)


@inner
def panel_place(planes, number, inner):
    """Where a panel begins, and the steps to the next class and to the next row."""
    if inner == 1:
        return planes.first + number * PANEL * planes.step, 1, planes.step
    per_plane = -(-inner // PANEL)
    at = planes.first + number // per_plane * planes.step + number % per_plane * PANEL
    return at, inner, 1


@inner
def load_tile(data, origin, first, count, width, tile):
    """`count` classes, from class `first`, of `width` rows."""
    apart()
    at, class_step, row_step = origin
    zero = constants(tile[0]).zero
    if width < PANEL:
        tile[: count * PANEL] = zero
    if row_step == 1:
        for k in range(count):
            start = at + (first + k) * class_step
            line, to = data[start : start + width], tile[k * PANEL : k * PANEL + width]
            for c in range(width):
                to[c] = widen(line[c])
    else:
        for k in range(count):
            # Unsigned, for which Numba does not ask whether it counts from the end: 2 to 4 times
            # as fast as slices of rows.
            place, step = np.uint64(at + first + k), np.uint64(row_step)
            to = tile[k * PANEL : k * PANEL + width]
            for c in range(width):
                to[c] = widen(data[place])
                place += step


@inner
def store_tile(tile, data, origin, first, count, width):
    apart()
    at, class_step, row_step = origin
    if row_step == 1:
        for k in range(count):
            start = at + (first + k) * class_step
            line, values = data[start : start + width], tile[k * PANEL : k * PANEL + width]
            for c in range(width):
                line[c] = narrow(values[c], data)
    else:
        for k in range(count):
            place, step = np.uint64(at + first + k), np.uint64(row_step)
            values = tile[k * PANEL : k * PANEL + width]
            for c in range(width):
                data[place] = narrow(values[c], data)
                place += step


@inner
def column(work, i):
    """A number for each row of a panel, of several that lie in one array: LLVM sees that they do
    not overlap, where separate arrays would be compared before each loop, or not vectorised.
    """
    return work[i * PANEL : (i + 1) * PANEL]


@inner
def column_bounds(tops, ms, lows):
    """What exp_between wants for each row."""
    for c in range(PANEL):
        ms[c], lows[c] = bounds(tops[c])


@inner
def tile_state(tile, count, tops, rests, keeps_exps, work):
    """The state of each row in a tile, see _rows.py. The exponentials may take its place."""
    apart()
    t = constants(tile[0])
    totals, errors, ties = column(work, 2), column(work, 3), column(work, 4)
    ms, lows = column(work, 0), column(work, 1)
    for c in range(PANEL):
        tops[c], totals[c], errors[c], ties[c] = t.lowest, t.zero, t.zero, -t.one
    for k in range(count):
        line = tile[k * PANEL : (k + 1) * PANEL]
        for c in range(PANEL):
            tops[c] = larger(line[c], tops[c])  # skips NaN, which comes back through the sum
    column_bounds(tops, ms, lows)
    for k in range(count):
        line = tile[k * PANEL : (k + 1) * PANEL]
        for c in range(PANEL):
            x, top = line[c], tops[c]
            e = exp_between(x, ms[c], lows[c])
            # 64 terms added plainly cost up to 3 ULP.
            totals[c], errors[c] = add_compensated(totals[c], errors[c], t.zero if x == top else e)
            ties[c] += t.one if x == top else t.zero
            if keeps_exps:
                line[c] = e
    for c in range(PANEL):
        rests[c] = (np.float64(totals[c]) + np.float64(errors[c])) + np.float64(ties[c])


@inner
def panel_state(data, place, n, width, tile, tops, rests, keeps_exps, work):
    """The state of each row of a panel. `tile` is left with the last classes, or with exponentials,
    which are kept only of a row that is one tile.
    """
    apart()
    part_tops, part_rests = stack_like(tops, PANEL), stack_like(rests, PANEL)
    losts = stack_like(rests, PANEL)  # what rounding took away from `rests`
    losts[:] = 0
    for number in range(max(1, -(-n // CLASSES))):
        first = number * CLASSES
        count = min(CLASSES, n - first)
        load_tile(data, place, first, count, width, tile)
        if number == 0:
            tile_state(tile, count, tops, rests, keeps_exps, work)
            continue
        tile_state(tile, count, part_tops, part_rests, keeps_exps, work)
        for c in range(PANEL):
            a, b = tops[c], part_tops[c]
            top = larger(a, b)
            less = 1.0 if a == b else np.float64(exp_sub(b if a > b else a, top))
            if a >= b:
                term = less * (1 + part_rests[c])
            else:
                term, losts[c] = less * (1 + rests[c]), less * losts[c]
                rests[c] = part_rests[c]
            rests[c], losts[c] = add_compensated(rests[c], losts[c], term)
            tops[c] = top
    for c in range(PANEL):
        rests[c] += losts[c]


@inner
def log_sums(tops, rests, to):
    """log(1 + rest), or NaN where the maximum is infinite and there is no distribution."""
    for c in range(PANEL):
        to[c] = log_1p(cast(tops[c], rests[c])) + (tops[c] - tops[c])


@inner(inline="always")  # for what is on the stack lives as long as the function
def panel_scratch(data):
    """A tile; for each row of a panel its maximum and sum; and five columns for what comes up."""
    tile, tops, work = (
        stack_scratch(data, TILE),
        stack_scratch(data, PANEL),
        stack_scratch(data, WORK),
    )
    return tile, tops, stack_doubles(data, PANEL), work
