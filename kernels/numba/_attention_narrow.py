"""Sums of gradients in float32, to 16-bit results."""

from ._attention_problem import HEAD, ROW, STARTS
from ._compile import take_turn, threaded
from ._parts import inner
from ._storage import narrow


@inner
def narrow_task(places, spans, side, heads, width, sums, to, turns, _):
    """`places` of the array; `side` is 0 for rows of queries, 2 for keys (columns of spans)."""
    number = take_turn(turns)
    while number < len(spans) * heads:
        batch, head = number // heads, number % heads
        for row in range(spans[batch, side], spans[batch, side + 1]):
            at = places[STARTS + batch] + head * places[HEAD] + row * places[ROW]
            line, result = sums[at : at + width], to[at : at + width]
            for k in range(width):
                result[k] = narrow(line[k], to)
        number = take_turn(turns)


run_narrow = threaded(narrow_task)
