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

from ._loss import is_label, put_grad, put_loss, row_weight
from ._softmax import shifted
from ._widen import total, widen


def _transform_loss(log_p, p, u, alpha, gamma, q, epsilon):
    """The loss of a row without weight and entropy, and s."""
    # From the logarithm where p is 0 or nearly so, and its p_power need not be.
    p_power = np.where(p > 1e-300, p**q, np.exp(q * log_p)) if q else np.ones_like(p)
    base_loss = -np.expm1(q * log_p) / q if q else -log_p
    modulation = u**gamma if gamma else np.ones_like(u)
    # base_loss / u is 1 in the limit of u = 0, and p * base_loss is 0 in that of p = 0.
    steeper = gamma * np.where(p > 0, p * np.where(u > 0, base_loss / u, 1.0), 0.0)
    scale = alpha * modulation
    loss = epsilon * u + (scale * base_loss if alpha else 0.0)
    if epsilon < 0:  # p_power is (p_power - p) + p: nothing cancels for epsilon = -alpha
        slope = (
            alpha * modulation * ((p_power - p if q else u) + steeper)
            + (alpha * modulation + epsilon) * p
        )
    else:
        slope = alpha * modulation * (p_power + steeper) + epsilon * p
    return loss, slope


def _rows(logits, target, weight, ignore_index, alpha, gamma, q, epsilon, beta):
    """Loss and gradient of each row, (outer, n or 1, inner), and which rows count."""
    n = logits.shape[1]
    labels = np.full((logits.shape[0], logits.shape[2]), -1) if target is None else target
    w, kept = (a[:, None] for a in row_weight(labels, weight, ignore_index))
    if target is None:
        w, kept = np.zeros(w.shape), np.ones(kept.shape, bool)
    at_label = is_label(labels, n)
    x = np.where(kept, widen(logits), 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        _, gap, below, sumexp_m1 = shifted(x)
        log_sum = np.log1p(sumexp_m1 if n else np.nan)  # no class, no distribution
        valid = log_sum - log_sum  # 0, or NaN without a distribution
        log_p = -gap - log_sum
        p = below / (1 + sumexp_m1)
        p_y, log_p_y = (np.where(at_label, a, 0.0).sum(axis=1, keepdims=True) for a in (p, log_p))
        p_y = p_y + valid
        # Where the label has the maximum, 1 - p is the probability of the others.
        u = np.where(p_y > 0.5, sumexp_m1 / (1 + sumexp_m1), 1 - p_y)
        loss, slope = _transform_loss(log_p_y, p_y, u, alpha, gamma, q, epsilon)
        loss, slope = (np.where(w == 0, valid, w * a) for a in (loss, slope))
        grad = slope * np.where(at_label, np.expm1(log_p), p)
        if beta:
            # log p + H = mean gap - gap: the log-sum drops out.
            mean_gap = total(np.where(p == 0, 0.0, p * gap))
            loss = loss - beta * (log_sum + mean_gap)
            grad = grad + beta * np.where(p == 0, 0.0, p * (mean_gap - gap))
    return np.where(kept, loss, 0.0), grad, kept


def robust_losses(
    logits, target, weight, loss, *, alpha, gamma, q, epsilon, beta, denominator, ignore_index,
    threads,
):  # fmt: skip
    losses = _rows(logits, target, weight, ignore_index, alpha, gamma, q, epsilon, beta)[0]
    put_loss(losses[:, 0], loss, denominator)


def robust_losses_backward(
    grad_loss, logits, target, weight, grad, *, alpha, gamma, q, epsilon, beta, denominator,
    ignore_index, threads,
):  # fmt: skip
    _, rows, kept = _rows(logits, target, weight, ignore_index, alpha, gamma, q, epsilon, beta)
    put_grad(rows, grad_loss, denominator, grad, kept)


def robust_losses_with_grad(
    logits, target, weight, loss, grad, *, alpha, gamma, q, epsilon, beta, denominator,
    ignore_index, threads,
):  # fmt: skip
    transform = alpha, gamma, q, epsilon, beta
    losses, rows, kept = _rows(logits, target, weight, ignore_index, *transform)
    put_loss(losses[:, 0], loss, denominator)
    put_grad(rows, 1.0, denominator, grad, kept)
