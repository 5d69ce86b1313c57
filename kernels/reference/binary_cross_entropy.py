"""Binary cross-entropy from logits and from probabilities, with gradients, as the formulas read.

For one element with logit x, target t, label smoothing s, weight w and positive weight v:

    t' = t * (1 - s) + s / 2,   u = 1 - t',   a = w * v * t',   b = w * u
    softplus(x) = log(1 + exp(x)) = max(x, 0) + log1p(exp(-|x|))

    loss     = a * softplus(-x) + b * softplus(x)
    dloss/dx = b * sigmoid(x) - a * sigmoid(-x)

With probabilities p, where the logarithms are no less than -100 and a denominator no less than
1e-12:

    loss     = -w * (t * log(p) + (1 - t) * log(1 - p))
    dloss/dp = w * (p - t) / (p * (1 - p))

A term whose factor is 0 adds exactly 0, also where its softplus is infinite; NaN stays NaN. Element
i has the weight ``weight[i % len(weight)]``. The sum over the elements is divided by
``denominator``.
"""

import numpy as np

from ._widen import narrow, widen

LOG_FLOOR = -100.0
LEAST_SLOPE = 1e-12  # of p * (1 - p)


def scan_probabilities(probs, stats, *, threads):
    """stats[0]: the first element that is below 0 or above 1, or -1. NaN is neither."""
    bad = np.flatnonzero((widen(probs) < 0) | (widen(probs) > 1))
    stats[0] = bad[0] if bad.size else -1


def _each(weight, n):
    """One weight for each of n elements."""
    return 1.0 if weight is None else np.resize(weight.astype(np.float64), n)


def _put_loss(each, loss, denominator):
    with np.errstate(invalid="ignore"):  # 0 / 0: the mean over nothing is NaN
        narrow(each if loss.size == each.size else np.sum(each) / np.float64(denominator), loss)


def _scale(grad_loss, denominator):
    with np.errstate(invalid="ignore", divide="ignore"):
        return widen(grad_loss) / np.float64(denominator)


# ---- probabilities ---------------------------------------------------------------------------


def _of_probabilities(probs, target, weight):
    """The loss and the gradient of each element."""
    p, t, w = widen(probs), widen(target), _each(weight, probs.size)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_p, log_q = (np.maximum(log, LOG_FLOOR) for log in (np.log(p), np.log1p(-p)))
        loss = -w * (t * log_p + (1 - t) * log_q)
        return loss, w * (p - t) / np.maximum(p * (1 - p), LEAST_SLOPE)


def binary_cross_entropy(probs, target, weight, loss, *, denominator, threads):
    _put_loss(_of_probabilities(probs, target, weight)[0], loss, denominator)


def binary_cross_entropy_backward(
    grad_loss, probs, target, weight, grad, *, denominator, threads
):  # fmt: skip
    each = _of_probabilities(probs, target, weight)[1]
    with np.errstate(invalid="ignore"):
        narrow(each * _scale(grad_loss, denominator), grad)


def binary_cross_entropy_with_grad(
    probs, target, weight, loss, grad, *, denominator, threads
):  # fmt: skip
    losses, slopes = _of_probabilities(probs, target, weight)
    _put_loss(losses, loss, denominator)
    with np.errstate(invalid="ignore"):
        narrow(slopes * _scale(np.ones(1), denominator), grad)


# ---- logits ----------------------------------------------------------------------------------


def _of_logits(logits, target, weight, pos_weight, label_smoothing):
    """The loss and the gradient of each element."""
    x, t, w = widen(logits), widen(target), _each(weight, logits.size)
    hard, soft = 1 - label_smoothing, label_smoothing / 2
    a = w * _each(pos_weight, x.size) * (hard * t + soft)
    b = w * (hard * (1 - t) + soft)
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
    _put_loss(losses, loss, denominator)


def binary_cross_entropy_with_logits_backward(
    grad_loss, logits, target, weight, pos_weight, grad, *, denominator, label_smoothing, threads
):  # fmt: skip
    _, slopes = _of_logits(logits, target, weight, pos_weight, label_smoothing)
    with np.errstate(invalid="ignore"):
        narrow(slopes * _scale(grad_loss, denominator), grad)


def binary_cross_entropy_with_logits_with_grad(
    logits, target, weight, pos_weight, loss, grad, *, denominator, label_smoothing, threads
):  # fmt: skip
    losses, slopes = _of_logits(logits, target, weight, pos_weight, label_smoothing)
    _put_loss(losses, loss, denominator)
    with np.errstate(invalid="ignore"):
        narrow(slopes * _scale(np.ones(1), denominator), grad)
