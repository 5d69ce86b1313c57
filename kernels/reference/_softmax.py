"""The softmax of rows, and the loss of a softmax, as the formulas read.

For one row with logits x, p = softmax(x), lse = logsumexp(x), n classes, label smoothing s:

    class index y:    q[k] = (1 - s) * [k == y] * weight[y] + s / n * weight[k]
    probabilities t:  q[k] = ((1 - s) * t[k] + s / n) * weight[k]

    loss    = sum_k q[k] * (lse - x[k])  +  z_loss * lse**2
    dloss/dx[k] = (sum q + 2 * z_loss * lse) * p[k] - q[k]

A class with q = 0 adds exactly 0, even where its logit is -inf.
"""

import numpy as np

from ._loss import target_probs
from ._widen import total, widen


def shifted(x):
    """Split `x` of shape (outer, n, inner) into a maximum and what lies below it.

    Returns ``row_max``, the maximum over the classes; ``gap = row_max - x``; ``below = exp(x -
    row_max)``; and ``sumexp_m1``, the sum of ``below`` without one maximal element, whose 1 comes
    back through log1p: where it dominates, only the sum of the others is significant.
    """
    if x.shape[1] == 0:
        row_max = np.full((x.shape[0], 1, x.shape[2]), -np.inf)
        return row_max, x, x, np.zeros_like(row_max)
    with np.errstate(invalid="ignore"):
        row_max = np.max(x, axis=1, keepdims=True)
        gap = row_max - x
        below = exp_gap(row_max, x, gap)
        others = below.copy()
        np.put_along_axis(others, np.argmax(x, axis=1, keepdims=True), 0.0, axis=1)
        sumexp_m1 = total(others)
    return row_max, gap, below, np.where(np.isinf(row_max), np.nan, sumexp_m1)


def exp_gap(row_max, x, gap):
    """``exp(-gap)``, with what the rounding of ``gap = row_max - x`` lost put back.

    At gap = 14 that is up to 8 ULP of a float64 softmax. `lost` is exact (Knuth's two-sum).
    """
    back = gap - row_max
    lost = (row_max - (gap - back)) - (x + back)
    return np.exp(-gap) * (1 - np.where(np.isfinite(lost), lost, 0.0))


def softmax_loss(logits, target, weight, ignore_index, label_smoothing, z_loss):
    """Loss, lse and gradient of each row, (outer, n or 1, inner), and which rows count."""
    q, kept = target_probs(target, weight, logits.shape, ignore_index, label_smoothing)
    x = np.where(kept, widen(logits), 0.0)
    with np.errstate(invalid="ignore", over="ignore"):
        row_max, gap, below, sumexp_m1 = shifted(x)
        log_sum = np.log1p(sumexp_m1)
        log_p = -gap - log_sum
        terms = np.where((q == 0) & ~np.isnan(log_sum), 0.0, -q * log_p)
        lse = row_max + log_sum
        loss = total(terms) + (z_loss * lse**2 if z_loss else 0 * lse)
        # p_factor * p - q, with p - 1 from expm1: nothing cancels where p is nearly 1.
        others = (total(q) - q) + 2 * z_loss * lse  # p_factor - q
        grad = q * np.expm1(log_p) + others * (below / (1 + sumexp_m1))
        lse = np.where(np.isinf(row_max), row_max, lse)  # which has no such loss
    return np.where(kept, loss, 0.0), np.where(kept, lse, np.nan), grad, kept
