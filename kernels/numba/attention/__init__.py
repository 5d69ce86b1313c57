"""Scaled dot-product attention and its gradient, without an array of queries by keys.

Read products.py, problem.py and scores.py first. How work is cut depends on the shapes alone, so
the result does not depend on the threads.
"""

import numpy as np

from .._storage import compute_dtype
from .backward import NORMS, Gradient, pieces_of, run_backward, run_narrow
from .forward import part_size, run_forward, run_merge, splits_of
from .problem import DK, DMASK, DQ, DV, ROW, make_problem, multiplications
from .products import COLUMNS

PER_ELEMENT = 32  # multiplications take as long as an element of the row ops


def attention(q, k, v, mask, spans, out, lse, *, scale, left, right, softcap, threads):
    p, (to, norms) = make_problem(
        *(q, k, v, mask, spans, [(out, True), (_none(q) if lse is None else lse, True)]),
        **{"scale": scale, "left": left, "right": right, "softcap": softcap},
    )
    splits, work = splits_of(p), multiplications(q, v, spans) // PER_ELEMENT
    tasks = splits * int(p.first_tile[-1])
    parts = np.empty(part_size(p) * tasks if splits > 1 else 0, norms.dtype)
    num_threads = min(threads, tasks)
    run_forward(num_threads, work, num_threads, p, to, norms, splits, parts, _counter())
    if splits > 1:
        run_merge(threads, parts.size, threads, p, to, norms, splits, parts, _counter())


def attention_backward(grad_out, q, k, v, mask, spans, out, lse, dq, dk, dv, dmask, *, scale, left,
                       right, softcap, threads):  # fmt: skip
    inputs, results = (out, lse, grad_out), (dq, dk, dv, _none(q) if dmask is None else dmask)
    p, (o, norms, grad_o, *to, mask_sums) = make_problem(
        *(q, k, v, mask, spans, [*((a, False) for a in inputs), *((a, True) for a in results)]),
        **{"scale": scale, "left": left, "right": right, "softcap": softcap},
    )
    exact = to[0].dtype == norms.dtype
    sums = to if exact else [np.zeros(a.size, norms.dtype) for a in to]
    tile_norms = np.empty(int(p.first_tile[-1]) * NORMS * COLUMNS, norms.dtype)
    g = Gradient(grad_o, o, norms, *sums, mask_sums, tile_norms)
    work, pieces = multiplications(q, v, spans) // PER_ELEMENT, pieces_of(p)
    tasks = len(spans) * p.kv_heads * pieces
    num_threads = min(threads, tasks)
    for shift in range(pieces):
        run_backward(num_threads, work, num_threads, p, g, tasks, pieces, shift, _counter())
    if mask_sums.size:
        tiles = -(-int((spans[:, 1] - spans[:, 0]).max(initial=0)) // COLUMNS)
        # Where all queries share a row of it, all tiles add in the same places, in order.
        num_threads = 1 if p.places[DMASK, ROW] == 0 else min(threads, tiles)
        run_backward(num_threads, work, num_threads, p, g, tiles, 0, 0, _counter())
    if not exact:
        for which, (sides, heads, width) in {
            DQ: (0, p.heads, p.width),
            DK: (2, p.kv_heads, p.width),
            DV: (2, p.kv_heads, p.value_width),
        }.items():
            total, result = sums[which - DQ], to[which - DQ]
            run_narrow(
                threads, total.size // 8, threads, p.places[which], p.spans, sides, heads, width,
                total, result, _counter(),
            )  # fmt: skip


def _counter():
    """A counter for `next_task`."""
    return np.zeros(1, np.int64)


def _none(q):
    """No array, of the type that is computed in."""
    return np.empty(0, compute_dtype(q))
