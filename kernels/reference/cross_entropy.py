"""Cross-entropy from logits and from log-probabilities, with gradients, as the formulas read.

For one row with logits x, p = softmax(x), lse = logsumexp(x), n classes, label smoothing s:

    class index y:    q[k] = (1 - s) * [k == y] * weight[y] + s / n * weight[k]
    probabilities t:  q[k] = ((1 - s) * t[k] + s / n) * weight[k]

    loss    = sum_k q[k] * (lse - x[k])  +  z_loss * lse**2
    dloss/dx[k] = (sum q + 2 * z_loss * lse) * p[k] - q[k]

The sum over the rows is divided by ``denominator``. A class with q = 0 adds exactly 0, even
where its logit is -inf. An ignored row adds 0 and has gradient 0, whatever its logits hold;
its lse is NaN, since nothing of it is read.
"""

import numpy as np

from ._widen import narrow, total, widen
from .log_softmax import shifted


def scan_target(target, weight, stats, *, classes, ignore_index, threads):
    """stats = (first row whose label is out of range, or -1; sum of the rows' weights)."""
    flat = target.ravel()
    kept = flat != ignore_index
    bad = np.flatnonzero(kept & ((flat < 0) | (flat >= classes)))
    stats[0] = bad[0] if bad.size else -1
    if bad.size:
        return
    kept = flat[kept]
    stats[1] = kept.size if weight is None else np.sum(weight.astype(np.float64)[kept])


def _is_label(target, n):
    """Which of n classes is the row's label, (outer, n, inner)."""
    return np.arange(n)[:, None] == target[:, None]


def _wanted(target, weight, shape, ignore_index, label_smoothing):
    """q of the formulas, (outer, n, inner), and which rows count, (outer, 1, inner)."""
    n = shape[1]
    if target.ndim == 3:
        q = (1 - label_smoothing) * widen(target)
        kept = np.ones((shape[0], 1, shape[2]), bool)
    else:
        kept = target[:, None] != ignore_index
        q = np.where(_is_label(target, n), 1 - label_smoothing, 0.0)
    q = q + label_smoothing / n if label_smoothing and n else q
    return q if weight is None else q * weight.astype(np.float64)[:, None], kept


def _rows(logits, target, weight, ignore_index, label_smoothing, z_loss):
    """Loss, lse and gradient of each row, (outer, n or 1, inner), and which rows count."""
    q, kept = _wanted(target, weight, logits.shape, ignore_index, label_smoothing)
    x = np.where(kept, widen(logits), 0.0)
    with np.errstate(invalid="ignore", over="ignore"):
        top, gap, below, rest = shifted(x)
        log_total = np.log1p(rest)
        log_p = -gap - log_total
        cost = np.where((q == 0) & ~np.isnan(log_total), 0.0, -q * log_p)
        total_lse = top + log_total
        loss = total(cost) + (z_loss * total_lse**2 if z_loss else 0 * total_lse)
        # pull * p - q, with p - 1 from expm1: nothing cancels where p is nearly 1.
        others = (total(q) - q) + 2 * z_loss * total_lse
        grad = q * np.expm1(log_p) + others * (below / (1 + rest))
        total_lse = np.where(np.isinf(top), top, total_lse)  # which has no such loss
    return np.where(kept, loss, 0.0), np.where(kept, total_lse, np.nan), grad, kept


def _put_loss(rows, loss, denominator):
    with np.errstate(invalid="ignore"):  # 0 / 0: the mean over no row at all is NaN
        if loss.shape != rows.shape:
            rows = np.full((1, 1), np.sum(rows))
        narrow(rows / np.float64(denominator), loss)


def _scale(grad_loss, denominator):
    with np.errstate(invalid="ignore", divide="ignore"):
        return (widen(grad_loss) / np.float64(denominator))[:, None]


def cross_entropy(
    logits,
    target,
    weight,
    loss,
    lse,
    *,
    denominator,
    ignore_index,
    label_smoothing,
    z_loss,
    threads,
):
    rows, row_lse, _, _ = _rows(logits, target, weight, ignore_index, label_smoothing, z_loss)
    _put_loss(rows[:, 0], loss, denominator)
    if lse is not None:
        narrow(row_lse[:, 0], lse)


def cross_entropy_backward(
    grad_loss,
    logits,
    target,
    weight,
    grad,
    *,
    denominator,
    ignore_index,
    label_smoothing,
    z_loss,
    threads,
):
    _, _, rows, kept = _rows(logits, target, weight, ignore_index, label_smoothing, z_loss)
    with np.errstate(invalid="ignore"):
        narrow(np.where(kept, rows * _scale(grad_loss, denominator), 0.0), grad)


def cross_entropy_with_grad(
    logits,
    target,
    weight,
    loss,
    grad,
    *,
    denominator,
    ignore_index,
    label_smoothing,
    z_loss,
    threads,
):
    rows = _rows(logits, target, weight, ignore_index, label_smoothing, z_loss)[0]
    _put_loss(rows[:, 0], loss, denominator)
    cross_entropy_backward(
        np.ones((1, 1)),
        logits,
        target,
        weight,
        grad,
        denominator=denominator,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        threads=threads,
    )


def _row_weight(target, weight, ignore_index):
    """Weight of each row, 0 where ignored, and which rows count."""
    kept = target != ignore_index
    if weight is None:
        return kept.astype(np.float64), kept
    row_weight = np.zeros(target.shape)
    row_weight[kept] = weight.astype(np.float64)[target[kept]]
    return row_weight, kept


def nll_loss(log_probs, target, weight, loss, *, denominator, ignore_index, threads):
    w, kept = _row_weight(target, weight, ignore_index)
    picked = np.where(_is_label(target, log_probs.shape[1]), widen(log_probs), 0.0).sum(axis=1)
    with np.errstate(invalid="ignore"):
        _put_loss(np.where(kept, -w * picked, 0.0), loss, denominator)


def nll_loss_backward(grad_loss, target, weight, grad, *, denominator, ignore_index, threads):
    w, kept = _row_weight(target, weight, ignore_index)
    with np.errstate(invalid="ignore"):
        slope = np.where(kept[:, None], -w[:, None] * _scale(grad_loss, denominator), 0.0)
    narrow(np.where(_is_label(target, grad.shape[1]) & kept[:, None], slope, 0.0), grad)
