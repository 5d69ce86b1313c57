"""Cross-entropy from logits and from log-probabilities, with gradients, and the check of labels.

The formulas of the loss of logits are in _softmax.py. The sum over the rows is divided by
``denominator``. An ignored row adds 0 and has gradient 0, whatever its logits hold; its lse is NaN,
since nothing of it is read.
"""

import numpy as np

from ._loss import is_label, put_grad, put_loss, row_weight
from ._softmax import softmax_loss
from ._widen import narrow, widen


def cross_entropy(
    logits, target, weight, loss, lse, *, denominator, ignore_index, label_smoothing, z_loss,
    threads,
):  # fmt: skip
    rows, row_lse, _, _ = softmax_loss(
        logits, target, weight, ignore_index, label_smoothing, z_loss
    )  # fmt: skip
    put_loss(rows[:, 0], loss, denominator)
    if lse is not None:
        narrow(row_lse[:, 0], lse)


def cross_entropy_backward(
    grad_loss, logits, target, weight, grad, *, denominator, ignore_index, label_smoothing,
    z_loss, threads,
):  # fmt: skip
    _, _, rows, kept = softmax_loss(logits, target, weight, ignore_index, label_smoothing, z_loss)
    put_grad(rows, grad_loss, denominator, grad, kept)


def cross_entropy_with_grad(
    logits, target, weight, loss, grad, *, denominator, ignore_index, label_smoothing, z_loss,
    threads,
):  # fmt: skip
    losses, _, rows, kept = softmax_loss(
        logits, target, weight, ignore_index, label_smoothing, z_loss
    )  # fmt: skip
    put_loss(losses[:, 0], loss, denominator)
    put_grad(rows, 1.0, denominator, grad, kept)


# ---- labels ----------------------------------------------------------------------------------


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


def nll_loss(log_probs, target, weight, loss, *, denominator, ignore_index, threads):
    w, kept = row_weight(target, weight, ignore_index)
    picked = np.where(is_label(target, log_probs.shape[1]), widen(log_probs), 0.0).sum(axis=1)
    with np.errstate(invalid="ignore"):
        put_loss(np.where(kept, -w * picked, 0.0), loss, denominator)


def nll_loss_backward(grad_loss, target, weight, grad, *, denominator, ignore_index, threads):
    w, kept = row_weight(target, weight, ignore_index)
    picked = is_label(target, grad.shape[1]) & kept[:, None]
    put_grad(-w[:, None], grad_loss, denominator, grad, picked)
