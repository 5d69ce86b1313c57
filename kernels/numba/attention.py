"""Scaled dot-product attention and its gradient, without an array of queries by keys.

Read _attention_products.py, _attention_problem.py and _attention_scores.py first. How work is cut
depends on the shapes alone, so the result does not depend on the threads.
"""

import numba
import numpy as np

from ._attention_forward import part_size, run_forward, run_merge, splits_of
from ._attention_problem import multiplications, problem


def attention(q, k, v, mask, spans, out, lse, *, scale, left, right, softcap, threads):
    p, (to, norms) = problem(
        *(q, k, v, mask, spans, [(out, True), (_empty_like_lse(q) if lse is None else lse, True)]),
        scale=scale, left=left, right=right, softcap=softcap,
    )  # fmt: skip
    splits, work = splits_of(p), multiplications(q, v, spans) // 8
    workers = max(1, min(threads, numba.config.NUMBA_NUM_THREADS))
    size = part_size(p) * splits * int(p.first_tile[-1]) if splits > 1 else 0
    parts = np.empty(size, norms.dtype)
    run_forward(threads, work, p, to, norms, splits, parts, np.zeros(1, np.int64), workers)
    if splits > 1:
        run_merge(1, 0, p, to, norms, splits, parts)  # so little that one thread does it


def _empty_like_lse(q):
    return np.empty(0, np.float64 if q.dtype == np.float64 else np.float32)
