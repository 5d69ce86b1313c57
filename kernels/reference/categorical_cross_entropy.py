"""Cross-entropy from probabilities instead of logits, with its gradient, as the formulas read.

For one row with probabilities p of any positive sum s, and q as in cross_entropy.py:

    c[k]    = clip(p[k] / s, epsilon, 1 - epsilon)
    loss    = sum_k -q[k] * log(c[k])
    dloss/dp[k] = pull / s - u[k] * q[k] / p[k],  pull = sum_k u[k] * q[k]

u[k] is 1 within the bounds of the clip and on them, else 0. epsilon and 1 - epsilon are numbers of
the compute dtype. p is compared with the bounds times s, so that nothing is rounded by a division,
and log(c) is log(p) - log(s). The sum over the rows is divided by ``denominator``.

A class with q = 0 adds exactly 0. Where p is no distribution (NaN, an infinite or negative number,
a sum of 0) the row is NaN. An ignored row adds 0 and has gradient 0, whatever it holds.
"""

import numpy as np

from ._widen import narrow, total, widen
from .cross_entropy import _put_loss, _scale, _wanted


def _rows(probs, target, weight, ignore_index, label_smoothing, epsilon):
    """Loss and gradient of each row, (outer, n or 1, inner), and which rows count."""
    q, kept = _wanted(target, weight, probs.shape, ignore_index, label_smoothing)
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
        pull = total(np.where(inside, q, 0.0))
        loss = total(np.where(q == 0, 0.0, -q * log_p)) + pull * np.log(s)
        grad = pull / s - np.where(inside & (q != 0), q / p, 0.0)
    return np.where(kept, loss, 0.0), grad, kept


def categorical_cross_entropy(
    probs, target, weight, loss, *, denominator, ignore_index, label_smoothing, epsilon, threads
):
    rows, _, _ = _rows(probs, target, weight, ignore_index, label_smoothing, epsilon)
    _put_loss(rows[:, 0], loss, denominator)


def categorical_cross_entropy_backward(
    grad_loss,
    probs,
    target,
    weight,
    grad,
    *,
    denominator,
    ignore_index,
    label_smoothing,
    epsilon,
    threads,
):
    _, rows, kept = _rows(probs, target, weight, ignore_index, label_smoothing, epsilon)
    with np.errstate(invalid="ignore", over="ignore"):
        narrow(np.where(kept, rows * _scale(grad_loss, denominator), 0.0), grad)


def categorical_cross_entropy_with_grad(
    probs,
    target,
    weight,
    loss,
    grad,
    *,
    denominator,
    ignore_index,
    label_smoothing,
    epsilon,
    threads,
):
    loss_rows, rows, kept = _rows(probs, target, weight, ignore_index, label_smoothing, epsilon)
    _put_loss(loss_rows[:, 0], loss, denominator)
    with np.errstate(invalid="ignore", over="ignore"):
        rows = rows * _scale(np.ones((1, 1)), denominator)
        narrow(np.where(kept, rows, 0.0), grad)
