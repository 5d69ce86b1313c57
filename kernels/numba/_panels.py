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

from ._jit_options import internal
from ._math import (
    add_compensated,
    bounds,
    cast,
    constants,
    exp_between,
    exp_sub,
    larger,
    log_1p,
    no_inline,
)
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


@internal
def panels_of_task(outer, n, inner, task):
    first = task * panels_per_task(n)
    return range(first, min(panel_count(outer, inner), first + panels_per_task(n)))


@internal
def rows_of_task(rows, n, task):
    return range(task * rows_per_task(n), min(rows, (task + 1) * rows_per_task(n)))


@internal
def panel_rows(number, outer, inner):
    """The first row of a panel, counted as (outer, inner) lies in memory, and how many it has."""
    if inner == 1:
        return number * PANEL, min(PANEL, outer - number * PANEL)
    per_plane = -(-inner // PANEL)
    at = number % per_plane * PANEL
    return number // per_plane * inner + at, min(PANEL, inner - at)


@internal
def panel_place(planes, number, inner):
    """Where a panel begins, and the steps to the next class and to the next row."""
    if inner == 1:
        return planes.first + number * PANEL * planes.step, 1, planes.step
    per_plane = -(-inner // PANEL)
    at = planes.first + number // per_plane * planes.step + number % per_plane * PANEL
    return at, inner, 1


@internal
def load_tile(data, origin, first, count, width, tile):
    """`count` classes, from class `first`, of `width` rows."""
    no_inline()
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
            # Unsigned: of a signed index Numba tests whether it counts from the end. 2 to 4 times
            # as fast as slices of rows.
            place, step = np.uint64(at + first + k), np.uint64(row_step)
            to = tile[k * PANEL : k * PANEL + width]
            for c in range(width):
                to[c] = widen(data[place])
                place += step


@internal
def load_pair(x, y, number, inner, first, n, width, x_tile, y_tile):
    """Tiles of two panels; not of short rows, which are in the tiles already."""
    if n > CLASSES:
        count = min(CLASSES, n - first)
        load_tile(x.data, panel_place(x, number, inner), first, count, width, x_tile)
        load_tile(y.data, panel_place(y, number, inner), first, count, width, y_tile)


@internal
def store_tile(tile, data, origin, first, count, width):
    no_inline()
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


@internal
def line_of(tile, k):
    """Class k of all rows of a panel."""
    return tile[k * PANEL : (k + 1) * PANEL]


@internal
def column(work, i):
    """A number for each row of a panel, of several that lie in one array: LLVM sees that they do
    not overlap, where separate arrays would be compared before each loop, or not vectorised.
    """
    return work[i * PANEL : (i + 1) * PANEL]


@internal
def column_bounds(row_max, ms, lows):
    """The arguments of exp_between for each row."""
    for c in range(PANEL):
        ms[c], lows[c] = bounds(row_max[c])


@internal
def tile_state(tile, count, row_max, sumexp_m1, keeps_exps, work):
    """The state of each row in a tile, see _rows.py. The exponentials may take its place."""
    no_inline()
    t = constants(tile[0])
    totals, errors, more = column(work, 2), column(work, 3), column(work, 4)  # max_count - 1
    ms, lows = column(work, 0), column(work, 1)
    for c in range(PANEL):
        row_max[c], totals[c], errors[c], more[c] = t.lowest, t.zero, t.zero, -t.one
    for k in range(count):
        line = line_of(tile, k)
        for c in range(PANEL):
            row_max[c] = larger(line[c], row_max[c])  # skips NaN, which comes back through the sum
    column_bounds(row_max, ms, lows)
    for k in range(count):
        line = line_of(tile, k)
        for c in range(PANEL):
            e = exp_between(line[c], ms[c], lows[c])
            is_max = line[c] == row_max[c]
            # 64 terms added plainly cost up to 3 ULP.
            totals[c], errors[c] = add_compensated(totals[c], errors[c], t.zero if is_max else e)
            more[c] += t.one if is_max else t.zero
            if keeps_exps:
                line[c] = e
    for c in range(PANEL):
        sumexp_m1[c] = (np.float64(totals[c]) + np.float64(errors[c])) + np.float64(more[c])


@internal
def panel_state(data, place, n, width, tile, row_max, sumexp_m1, keeps_exps, work):
    """The state of each row of a panel. `tile` is left with the last classes, or with exponentials,
    which are kept only of a row that is one tile.
    """
    no_inline()
    part_max, part_sumexp_m1 = stack_like(row_max, PANEL), stack_like(sumexp_m1, PANEL)
    losts = stack_like(sumexp_m1, PANEL)  # what rounding took away from `sumexp_m1`
    losts[:] = 0
    for number in range(max(1, -(-n // CLASSES))):
        first = number * CLASSES
        count = min(CLASSES, n - first)
        load_tile(data, place, first, count, width, tile)
        if number == 0:
            tile_state(tile, count, row_max, sumexp_m1, keeps_exps, work)
            continue
        tile_state(tile, count, part_max, part_sumexp_m1, keeps_exps, work)
        for c in range(PANEL):
            a, b = row_max[c], part_max[c]
            m = larger(a, b)
            less = 1.0 if a == b else np.float64(exp_sub(b if a > b else a, m))
            if a >= b:
                term = less * (1 + part_sumexp_m1[c])
            else:
                term, losts[c] = less * (1 + sumexp_m1[c]), less * losts[c]
                sumexp_m1[c] = part_sumexp_m1[c]
            sumexp_m1[c], losts[c] = add_compensated(sumexp_m1[c], losts[c], term)
            row_max[c] = m
    for c in range(PANEL):
        sumexp_m1[c] += losts[c]


@internal
def max_prob_of(row_max, sumexp_m1):
    """The softmax of the maximum; NaN where that is infinite."""
    return cast(row_max, 1 / (1 + sumexp_m1)) + (row_max - row_max)


@internal
def put_log_sums(row_max, sumexp_m1, to):
    """log(1 + sumexp_m1), or NaN where the maximum is infinite and there is no distribution."""
    for c in range(PANEL):
        to[c] = log_1p(cast(row_max[c], sumexp_m1[c])) + (row_max[c] - row_max[c])


@internal(inline="always")  # for what is on the stack lives as long as the function
def panel_scratch(data):
    """A tile; for each row of a panel row_max and sumexp_m1; and five columns of workspace."""
    tile, work = stack_scratch(data, TILE), stack_scratch(data, WORK)
    return tile, stack_scratch(data, PANEL), stack_doubles(data, PANEL), work
