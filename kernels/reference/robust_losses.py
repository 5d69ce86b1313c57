"""Losses for noisy labels and rare classes, with gradients, as the formulas read.

For one row with logits x, class index y, p = softmax(x), u = 1 - p[y], and H the entropy of p:

    loss = w[y] * (alpha * u**gamma * L(p[y]) + epsilon * u) - beta * H
    L(p) = (1 - p**q) / q, which is -log(p) for q = 0

    dloss/dx[k] = w[y] * s * (p[k] - [k == y]) + beta * p[k] * (log(p[k]) + H)
    s = alpha * u**gamma * (p[y]**q + gamma * p[y] * L / u) + epsilon * p[y]

That is cross-entropy for alpha = 1 and zeros, whose gradient s multiplies: one number per row.
The sum over the rows is divided by ``denominator``. An ignored row adds 0 and has gradient 0,
whatever its logits hold. Without a target there is the entropy alone, of every row.
"""

import numpy as np

from ._widen import narrow, total, widen
from .cross_entropy import _is_label, _put_loss, _row_weight, _scale
from .log_softmax import shifted


def _bent(log_p, p, u, alpha, gamma, q, epsilon):
    """What a row costs, and s."""
    # From the logarithm where p is 0 or nearly so, and its power need not be.
    power = np.where(p > 1e-300, p**q, np.exp(q * log_p)) if q else np.ones_like(p)
    surprise = -np.expm1(q * log_p) / q if q else -log_p
    focus = u**gamma if gamma else np.ones_like(u)
    # surprise / u is 1 in the limit of u = 0, and p * surprise is 0 in that of p = 0.
    steep = gamma * np.where(p > 0, p * np.where(u > 0, surprise / u, 1.0), 0.0)
    loss = epsilon * u + (alpha * focus * surprise if alpha else 0.0)
    if epsilon < 0:  # power is (power - p) + p: nothing cancels for epsilon = -alpha
        slope = alpha * focus * ((power - p if q else u) + steep) + (alpha * focus + epsilon) * p
    else:
        slope = alpha * focus * (power + steep) + epsilon * p
    return loss, slope


def _rows(logits, target, weight, ignore_index, alpha, gamma, q, epsilon, beta):
    """Loss and gradient of each row, (outer, n or 1, inner), and which rows count."""
    n = logits.shape[1]
    labels = np.full((logits.shape[0], logits.shape[2]), -1) if target is None else target
    w, kept = (a[:, None] for a in _row_weight(labels, weight, ignore_index))
    if target is None:
        w, kept = np.zeros(w.shape), np.ones(kept.shape, bool)
    is_label = _is_label(labels, n)
    x = np.where(kept, widen(logits), 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        _, gap, below, rest = shifted(x)
        log_total = np.log1p(rest if n else np.nan)  # no class, no distribution
        log_p = -gap - log_total
        p = below / (1 + rest)
        p_y, log_p_y = (np.where(is_label, a, 0.0).sum(axis=1, keepdims=True) for a in (p, log_p))
        p_y = p_y + (log_total - log_total)  # NaN without a distribution
        # Where the label has the maximum, 1 - p is what the others have.
        u = np.where(p_y > 0.5, rest / (1 + rest), 1 - p_y)
        bent, slope = _bent(log_p_y, p_y, u, alpha, gamma, q, epsilon)
        loss = np.where(w == 0, log_total - log_total, w * bent)
        pull = np.where(w == 0, log_total - log_total, w * slope)
        grad = pull * np.where(is_label, np.expm1(log_p), p)
        if beta:
            # log p + H = mean gap - gap: the log-sum drops out.
            mean_gap = total(np.where(p == 0, 0.0, p * gap))
            loss = loss - beta * (log_total + mean_gap)
            grad = grad + beta * np.where(p == 0, 0.0, p * (mean_gap - gap))
    return np.where(kept, loss, 0.0), grad, kept


def robust_losses(
    logits, target, weight, loss, *, alpha, gamma, q, epsilon, beta, denominator, ignore_index,
    threads,
):  # fmt: skip
    rows = _rows(logits, target, weight, ignore_index, alpha, gamma, q, epsilon, beta)[0]
    _put_loss(rows[:, 0], loss, denominator)


def robust_losses_backward(
    grad_loss, logits, target, weight, grad, *, alpha, gamma, q, epsilon, beta, denominator,
    ignore_index, threads,
):  # fmt: skip
    _, rows, kept = _rows(logits, target, weight, ignore_index, alpha, gamma, q, epsilon, beta)
    with np.errstate(invalid="ignore"):
        narrow(np.where(kept, rows * _scale(grad_loss, denominator), 0.0), grad)


def robust_losses_with_grad(
    logits, target, weight, loss, grad, *, alpha, gamma, q, epsilon, beta, denominator,
    ignore_index, threads,
):  # fmt: skip
    curve = alpha, gamma, q, epsilon, beta
    rows, grads, kept = _rows(logits, target, weight, ignore_index, *curve)
    _put_loss(rows[:, 0], loss, denominator)
    with np.errstate(invalid="ignore"):
        narrow(np.where(kept, grads * _scale(np.ones((1, 1)), denominator), 0.0), grad)
