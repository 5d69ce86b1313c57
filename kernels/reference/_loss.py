"""What losses share: targets, reductions, and the gradient of what the caller made of the loss."""

import numpy as np

from ._widen import narrow, widen


def is_label(target, n):
    """Which of n classes is the row's label, (outer, n, inner)."""
    return np.arange(n)[:, None] == target[:, None]


def target_probs(target, weight, shape, ignore_index, label_smoothing):
    """Target probabilities times weights, q of the formulas, (outer, n, inner), and which rows
    count, (outer, 1, inner).
    """
    n = shape[1]
    if target.ndim == 3:
        q = (1 - label_smoothing) * widen(target)
        kept = np.ones((shape[0], 1, shape[2]), bool)
    else:
        kept = target[:, None] != ignore_index
        q = np.where(is_label(target, n), 1 - label_smoothing, 0.0)
    q = q + label_smoothing / n if label_smoothing and n else q
    return q if weight is None else q * weight.astype(np.float64)[:, None], kept


def row_weight(target, weight, ignore_index):
    """Weight of each row, 0 where ignored, and which rows count."""
    kept = target != ignore_index
    if weight is None:
        return kept.astype(np.float64), kept
    weights = np.zeros(target.shape)
    weights[kept] = weight.astype(np.float64)[target[kept]]
    return weights, kept


def put_loss(losses, loss, denominator):
    """Writes losses, or their sum where `loss` is reduced."""
    with np.errstate(invalid="ignore"):  # 0 / 0: the mean over no row at all is NaN
        if loss.shape != losses.shape:
            losses = np.full(loss.shape, np.sum(losses))
        narrow(losses / np.float64(denominator), loss)


def put_grad(slopes, grad_loss, denominator, grad, kept=True):
    """Writes slopes * grad_loss / denominator, and 0 where `kept` is false; grad_loss may be 1."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        scale = widen(np.asarray(grad_loss)) / np.float64(denominator)
        if scale.ndim == 2:  # (outer, inner)
            scale = scale[:, None]
        narrow(np.where(kept, slopes * scale, 0.0), grad)
