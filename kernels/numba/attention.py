"""Scaled dot-product attention and its gradient, without an array of queries by keys.

Read _attention_products.py, _attention_problem.py and _attention_scores.py first. How work is cut
depends on the shapes alone, so the result does not depend on the threads.
"""

import numba
import numpy as np

from ._attention_backward import Gradient, pieces_of, run_backward
from ._attention_forward import part_size, run_forward, run_merge, splits_of
from ._attention_narrow import run_narrow
from ._attention_problem import DK, DMASK, DQ, DV, ROW, multiplications, problem
from ._attention_products import COLUMNS


def attention(q, k, v, mask, spans, out, lse, *, scale, left, right, softcap, threads):
    p, (to, norms) = problem(
        *(q, k, v, mask, spans, [(out, True), (_empty(q) if lse is None else lse, True)]),
        scale=scale, left=left, right=right, softcap=softcap,
    )  # fmt: skip
    splits, work = splits_of(p), multiplications(q, v, spans) // 8
    size = part_size(p) * splits * int(p.first_tile[-1]) if splits > 1 else 0
    parts = np.empty(size, norms.dtype)
    run_forward(threads, work, p, to, norms, splits, parts, np.zeros(1, np.int64),
                _workers(threads))  # fmt: skip
    if splits > 1:
        run_merge(1, 0, p, to, norms, splits, parts)  # so little that one thread does it


def attention_backward(grad_out, q, k, v, mask, spans, out, lse, dq, dk, dv, dmask, *, scale, left,
                       right, softcap, threads):  # fmt: skip
    inputs, results = (out, lse, grad_out), (dq, dk, dv, _empty(q) if dmask is None else dmask)
    p, memory = problem(
        *(q, k, v, mask, spans, [*((a, False) for a in inputs), *((a, True) for a in results)]),
        scale=scale, left=left, right=right, softcap=softcap,
    )  # fmt: skip
    o, norms, pulled, *to, mask_sums = memory
    wide = norms.dtype
    sums = to if to[0].dtype == wide else [np.zeros(a.size, wide) for a in to]
    g = Gradient(pulled, o, norms, *sums, mask_sums)
    work, workers = multiplications(q, v, spans) // 4, _workers(threads)
    pieces = pieces_of(p)
    tasks = len(spans) * p.kv_heads * pieces
    for turn in range(pieces):
        run_backward(threads, work, p, g, tasks, pieces, turn, np.zeros(1, np.int64), workers)
    if mask_sums.size:
        tiles = -(-int((spans[:, 1] - spans[:, 0]).max(initial=0)) // COLUMNS)
        alone = p.places[DMASK, ROW] == 0  # all tiles add in the same places, in order
        run_backward(1 if alone else threads, work, p, g, tiles, 0, 0, np.zeros(1, np.int64),
                     1 if alone else workers)  # fmt: skip
    if sums is not to:
        for which, heads, width, result, total in zip(
            (DQ, DK, DV), (p.heads, p.kv_heads, p.kv_heads), (p.width, p.width, p.value_width),
            to, sums, strict=True,
        ):  # fmt: skip
            run_narrow(threads, total.size, p.places[which], p.spans, 0 if which == DQ else 2,
                       heads, width, total, result)  # fmt: skip


def _workers(threads):
    return max(1, min(threads, numba.config.NUMBA_NUM_THREADS))


def _empty(q):
    """No array of the type that is computed in."""
    return np.empty(0, np.float64 if q.dtype == np.float64 else np.float32)
