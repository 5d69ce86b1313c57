"""Rows that lie side by side: each lane of a vector computes a row of its own.

So are computed short rows, and rows whose classes are not next to each other in memory. Up to PANEL
rows, a panel, are brought into a tile, CLASSES classes at a time, as floats with the rows side by
side: `tile[k * PANEL + c]` is class k of row c. Every loop over c then has a constant length and
plain arithmetic, which LLVM vectorises; columns beyond the last row hold zeros. Short rows take one
tile and are read once. Of longer ones the states of the tiles are merged, as _rows.py merges those
of blocks, and a second reading writes.
"""

import numpy as np

from ._compile import compiled
from ._math import add_compensated, cast, constants, exp_sub, larger, log_1p
from ._storage import narrow, scratch, widen

PANEL = 128  # rows: eight vectors of 512 bits
CLASSES = 64  # a tile is 32 KB of float32
SHORT = 64  # rows of up to so many classes are computed side by side
PER_TASK = 1 << 16  # elements


@compiled
def is_panelled(n, inner):
    return inner > 1 or n <= SHORT


@compiled
def panel_count(outer, inner):
    return outer * (-(-inner // PANEL)) if inner != 1 else -(-outer // PANEL)


@compiled
def panels_per_task(n):
    return max(1, PER_TASK // (PANEL * max(1, n)))


@compiled
def rows_per_task(n):
    return max(1, PER_TASK // max(1, n))


@compiled
def task_count(outer, n, inner):
    """Tasks of a loop over threads: what each does depends on the shape alone."""
    if is_panelled(n, inner):
        return -(-panel_count(outer, inner) // panels_per_task(n))
    return -(-outer // rows_per_task(n))


@compiled
def panel_rows(number, outer, inner):
    """The first row of a panel, counted as (outer, inner) lies in memory, and how many it has."""
    if inner == 1:
        return number * PANEL, min(PANEL, outer - number * PANEL)
    per_plane = -(-inner // PANEL)
    at = number % per_plane * PANEL
    return number // per_plane * inner + at, min(PANEL, inner - at)


@compiled
def panel_place(planes, number, inner):
    """Where a panel begins, and the steps to the next class and to the next row."""
    if inner == 1:
        return planes.first + number * PANEL * planes.step, 1, planes.step
    per_plane = -(-inner // PANEL)
    at = planes.first + number // per_plane * planes.step + number % per_plane * PANEL
    return at, inner, 1


@compiled
def load_tile(data, place, first, count, width, tile):
    """`count` classes, from class `first`, of `width` rows."""
    at, class_step, row_step = place
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
        for c in range(width):
            start = at + c * row_step + first
            row = data[start : start + count]
            for k in range(count):
                tile[k * PANEL + c] = widen(row[k])


@compiled
def store_tile(tile, data, place, first, count, width):
    at, class_step, row_step = place
    if row_step == 1:
        for k in range(count):
            start = at + (first + k) * class_step
            line, values = data[start : start + width], tile[k * PANEL : k * PANEL + width]
            for c in range(width):
                line[c] = narrow(values[c], data)
    else:
        for c in range(width):
            start = at + c * row_step + first
            row = data[start : start + count]
            for k in range(count):
                row[k] = narrow(tile[k * PANEL + c], data)


@compiled
def tile_state(tile, count, tops, rests, keeps_exps):
    """The state of each row in a tile, see _rows.py. The exponentials may take its place."""
    t = constants(tile[0])
    totals, errors, ties = np.empty_like(tops), np.empty_like(tops), np.empty_like(tops)
    for c in range(PANEL):
        tops[c], totals[c], errors[c], ties[c] = t.lowest, t.zero, t.zero, -t.one
    for k in range(count):
        line = tile[k * PANEL : (k + 1) * PANEL]
        for c in range(PANEL):
            tops[c] = larger(line[c], tops[c])  # skips NaN, which comes back through the sum
    for k in range(count):
        line = tile[k * PANEL : (k + 1) * PANEL]
        for c in range(PANEL):
            x, top = line[c], tops[c]
            e = exp_sub(x, top)
            # 64 terms added plainly cost up to 3 ULP.
            totals[c], errors[c] = add_compensated(totals[c], errors[c], t.zero if x == top else e)
            ties[c] += t.one if x == top else t.zero
            if keeps_exps:
                line[c] = e
    for c in range(PANEL):
        rests[c] = (np.float64(totals[c]) + np.float64(errors[c])) + np.float64(ties[c])


@compiled
def panel_state(data, place, n, width, tile, tops, rests, keeps_exps):
    """The state of each row of a panel. `tile` is left with the last classes, or exponentials."""
    load_tile(data, place, 0, min(n, CLASSES), width, tile)
    tile_state(tile, min(n, CLASSES), tops, rests, keeps_exps)
    if n <= CLASSES:
        return
    part_tops, part_rests = np.empty_like(tops), np.empty_like(rests)
    for first in range(CLASSES, n, CLASSES):
        count = min(CLASSES, n - first)
        load_tile(data, place, first, count, width, tile)
        tile_state(tile, count, part_tops, part_rests, False)
        for c in range(PANEL):
            a, b = tops[c], part_tops[c]
            top = larger(a, b)
            less = 1.0 if a == b else np.float64(exp_sub(b if a > b else a, top))
            if a >= b:
                rests[c] += less * (1 + part_rests[c])
            else:
                rests[c] = part_rests[c] + less * (1 + rests[c])
            tops[c] = top


@compiled
def log_sums(tops, rests, to):
    """log(1 + rest), or NaN where the maximum is infinite and there is no distribution."""
    for c in range(PANEL):
        to[c] = log_1p(cast(tops[c], rests[c])) + (tops[c] - tops[c])


@compiled
def panel_scratch(data):
    """A tile, and an array of maxima and one of sums of a panel."""
    return scratch(data, CLASSES * PANEL), scratch(data, PANEL), np.empty(PANEL)
