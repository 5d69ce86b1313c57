"""Sums of gradients in float32, to 16-bit results."""

import numba

from ._attention_problem import HEAD, ROW, STARTS
from ._compile import inner, threaded
from ._storage import narrow


@inner
def _narrow_rows(places, batch, head, first, last, width, sums, to):
    for row in range(first, last):
        at = places[STARTS + batch] + head * places[HEAD] + row * places[ROW]
        line, result = sums[at : at + width], to[at : at + width]
        for k in range(width):
            result[k] = narrow(line[k], to)


def _narrow(places, spans, side, heads, width, sums, to):
    """`places` of the array; `side` is 0 for rows of queries, 2 for keys (columns of spans)."""
    for number in numba.prange(len(spans) * heads):
        batch = number // heads
        _narrow_rows(places, batch, number % heads, spans[batch, side], spans[batch, side + 1],
                     width, sums, to)  # fmt: skip


run_narrow = threaded(_narrow)
