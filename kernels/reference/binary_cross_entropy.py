"""Binary cross-entropy from logits and from probabilities, and the sigmoid focal loss, with
gradients, as the formulas read.

For one element with logit x, target t, label smoothing s, weight w and positive weight v:

    t' = t * (1 - s) + s / 2,   u = 1 - t',   a = w * v * t',   b = w * u
    softplus(x) = log(1 + exp(x)) = max(x, 0) + log1p(exp(-|x|))

    loss     = a * softplus(-x) + b * softplus(x)
    dloss/dx = b * sigmoid(x) - a * sigmoid(-x)

With probabilities p, where the logarithms are no less than -100 and a denominator no less than
1e-12:

    loss     = -w * (t * log(p) + (1 - t) * log(1 - p))
    dloss/dp = w * (p - t) / (p * (1 - p))

The sigmoid focal loss: with p = sigmoid(x), u = t * (1 - p) + (1 - t) * p, that is 1 - p_t, and
A = positive * t + negative * (1 - t), let ``bce`` be the loss above without options. Then

    loss     = A * u**gamma * bce
    dloss/dx = A * (u**gamma * dbce/dx + gamma * u**(gamma - 1) * bce * du/dx)

where du/dx = (1 - 2 * t) * p * (1 - p), and the gradient at u = 0 is 0, for gamma < 1 too.

A term whose factor is 0 adds exactly 0, also where its softplus is infinite; NaN stays NaN. Element
i has the weight ``weight[i % len(weight)]``. The sum over the elements is divided by
``denominator``.
"""

import numpy as np

from ._loss import put_grad, put_loss
from ._widen import widen

LOG_FLOOR = -100.0
LEAST_SLOPE = 1e-12  # of p * (1 - p)


def scan_probabilities(probs, stats, *, threads):
    """stats[0]: the first element that is below 0 or above 1, or -1. NaN is neither."""
    bad = np.flatnonzero((widen(probs) < 0) | (widen(probs) > 1))
    stats[0] = bad[0] if bad.size else -1


def _each(weight, n):
    """One weight for each of n elements."""
    return 1.0 if weight is None else np.resize(weight.astype(np.float64), n)


# ---- probabilities ---------------------------------------------------------------------------


def _of_probabilities(probs, target, weight):
    """The loss and the gradient of each element."""
    p, t, w = widen(probs), widen(target), _each(weight, probs.size)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_p, log_q = (np.maximum(log, LOG_FLOOR) for log in (np.log(p), np.log1p(-p)))
        loss = -w * (t * log_p + (1 - t) * log_q)
        return loss, w * (p - t) / np.maximum(p * (1 - p), LEAST_SLOPE)


def binary_cross_entropy(probs, target, weight, loss, *, denominator, threads):
    put_loss(_of_probabilities(probs, target, weight)[0], loss, denominator)


def binary_cross_entropy_backward(
    grad_loss, probs, target, weight, grad, *, denominator, threads
):  # fmt: skip
    _, slopes = _of_probabilities(probs, target, weight)
    put_grad(slopes, grad_loss, denominator, grad)


def binary_cross_entropy_with_grad(
    probs, target, weight, loss, grad, *, denominator, threads
):  # fmt: skip
    losses, slopes = _of_probabilities(probs, target, weight)
    put_loss(losses, loss, denominator)
    put_grad(slopes, 1.0, denominator, grad)


# ---- logits ----------------------------------------------------------------------------------


def _of_logits(logits, target, weight, pos_weight, label_smoothing):
    """The loss and the gradient of each element."""
    x, t, w = widen(logits), widen(target), _each(weight, logits.size)
    target_scale, uniform_share = 1 - label_smoothing, label_smoothing / 2
    a = w * _each(pos_weight, x.size) * (target_scale * t + uniform_share)
    b = w * (target_scale * (1 - t) + uniform_share)
    e = np.exp(-np.abs(x))
    with np.errstate(invalid="ignore"):
        below, above = (
            np.where(factor == 0, 0.0, factor * np.maximum(side, 0.0))
            for factor, side in ((a, -x), (b, x))
        )
        loss = below + above + (a + b) * np.log1p(e)
        larger, smaller = 1 / (1 + e), e / (1 + e)
        slope = np.where(x < 0, b * smaller - a * larger, b * larger - a * smaller)
    return loss, slope


def binary_cross_entropy_with_logits(
    logits, target, weight, pos_weight, loss, *, denominator, label_smoothing, threads
):  # fmt: skip
    losses, _ = _of_logits(logits, target, weight, pos_weight, label_smoothing)
    put_loss(losses, loss, denominator)


def binary_cross_entropy_with_logits_backward(
    grad_loss, logits, target, weight, pos_weight, grad, *, denominator, label_smoothing, threads
):  # fmt: skip
    _, slopes = _of_logits(logits, target, weight, pos_weight, label_smoothing)
    put_grad(slopes, grad_loss, denominator, grad)


def binary_cross_entropy_with_logits_with_grad(
    logits, target, weight, pos_weight, loss, grad, *, denominator, label_smoothing, threads
):  # fmt: skip
    losses, slopes = _of_logits(logits, target, weight, pos_weight, label_smoothing)
    put_loss(losses, loss, denominator)
    put_grad(slopes, 1.0, denominator, grad)


# ---- sigmoid focal loss ----------------------------------------------------------------------


def _focal(logits, target, gamma, positive, negative):
    """The loss and the gradient of each element."""
    x, t = widen(logits), widen(target)
    e = np.exp(-np.abs(x))
    # c is the factor of the class on whose wrong side x is, `other` that of its own side.
    c, other = np.where(x < 0, t, 1 - t), np.where(x < 0, 1 - t, t)
    factor = positive * t + negative * (1 - t)
    with np.errstate(invalid="ignore", divide="ignore"):
        power = np.power((c + other * e) / (1 + e), gamma)
        far = np.where(c * factor * power == 0, 0.0, c * factor * power * np.abs(x))
        loss = factor * power * np.log1p(e) + far
        bce = c * np.abs(x) + np.log1p(e)
        # u'/u = sign(x) * (c - other) * e / (1 + e) / (c + other * e): nothing where e = 0
        steeper = np.where(e == 0, 0.0, gamma * bce * (c - other) * (e / (c + other * e)))
        slope = factor * power * (c - other * e + steeper) / (1 + e)
    return loss, np.where(x < 0, -slope, slope)


def sigmoid_focal_loss(
    logits, target, loss, *, denominator, gamma, positive, negative, threads
):  # fmt: skip
    put_loss(_focal(logits, target, gamma, positive, negative)[0], loss, denominator)


def sigmoid_focal_loss_backward(
    grad_loss, logits, target, grad, *, denominator, gamma, positive, negative, threads
):  # fmt: skip
    _, slopes = _focal(logits, target, gamma, positive, negative)
    put_grad(slopes, grad_loss, denominator, grad)


def sigmoid_focal_loss_with_grad(
    logits, target, loss, grad, *, denominator, gamma, positive, negative, threads
):  # fmt: skip
    losses, slopes = _focal(logits, target, gamma, positive, negative)
    put_loss(losses, loss, denominator)
    put_grad(slopes, 1.0, denominator, grad)
