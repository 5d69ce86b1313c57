"""Cross-entropy from probabilities instead of logits, with its gradient, as the formulas read.

For one row with probabilities p of any positive sum s, and q as in _softmax.py:

    c[k]    = clip(p[k] / s, epsilon, 1 - epsilon)
    loss    = sum_k -q[k] * log(c[k])
    dloss/dp[k] = Q / s - u[k] * q[k] / p[k],  Q = sum_k u[k] * q[k]

u[k] is 1 within the bounds of the clip and on them, else 0. epsilon and 1 - epsilon are numbers of
the compute dtype. p is compared with the bounds times s, so that nothing is rounded by a division,
and log(c) is log(p) - log(s). The sum over the rows is divided by ``denominator``.

A class with q = 0 adds exactly 0. Where p is no distribution (NaN, an infinite or negative number,
a sum of 0) the row is NaN. An ignored row adds 0 and has gradient 0, whatever it holds.
"""

import numpy as np

from ._loss import put_grad, put_loss, target_probs
from ._widen import total, widen


def _rows(probs, target, weight, ignore_index, label_smoothing, epsilon):
    """Loss and gradient of each row, (outer, n or 1, inner), and which rows count."""
    q, kept = target_probs(target, weight, probs.shape, ignore_index, label_smoothing)
    wide = np.float64 if probs.dtype == np.float64 else np.float32
    low, high = float(wide(epsilon)), float(1 - wide(epsilon))
    p = np.where(kept, widen(probs), 1.0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        s = total(p)
        s = np.where((s > 0) & np.isfinite(s) & ~np.any(p < 0, axis=1, keepdims=True), s, np.nan)
        # Of a sum so small that the product is 0, a probability of 0 is still below the bound.
        below = p < np.maximum(low * s, np.nextafter(0, 1) if low else 0)
        inside = ~below & (p <= high * s)
        log_p = np.where(inside, np.log(p), np.where(below, np.log(low), np.log(high)))
        total_q = total(np.where(inside, q, 0.0))
        loss = total(np.where(q == 0, 0.0, -q * log_p)) + total_q * np.log(s)
        grad = total_q / s - np.where(inside & (q != 0), q / p, 0.0)
    return np.where(kept, loss, 0.0), grad, kept


def categorical_cross_entropy(
    probs, target, weight, loss, *, denominator, ignore_index, label_smoothing, epsilon, threads
):
    losses, _, _ = _rows(probs, target, weight, ignore_index, label_smoothing, epsilon)
    put_loss(losses[:, 0], loss, denominator)


def categorical_cross_entropy_backward(
    grad_loss, probs, target, weight, grad, *, denominator, ignore_index, label_smoothing,
    epsilon, threads,
):  # fmt: skip
    _, rows, kept = _rows(probs, target, weight, ignore_index, label_smoothing, epsilon)
    put_grad(rows, grad_loss, denominator, grad, kept)


def categorical_cross_entropy_with_grad(
    probs, target, weight, loss, grad, *, denominator, ignore_index, label_smoothing, epsilon,
    threads,
):  # fmt: skip
    losses, rows, kept = _rows(probs, target, weight, ignore_index, label_smoothing, epsilon)
    put_loss(losses[:, 0], loss, denominator)
    put_grad(rows, 1.0, denominator, grad, kept)
