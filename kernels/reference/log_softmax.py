"""logsumexp, softmax, log_softmax and their gradients, as the formulas read."""

import numpy as np

from ._widen import narrow, widen


def shifted(x):
    """Split `x` of shape (outer, n, inner) into a maximum and what lies below it.

    Returns ``top``, the maximum over the classes; ``gap = top - x``; and ``log_total``, the
    logarithm of ``sum(exp(x - top))``. One maximal element is left out of the sum and comes
    back through log1p: where it dominates, the sum of the others is all there is to see.
    """
    if x.shape[1] == 0:
        top = np.full((x.shape[0], 1, x.shape[2]), -np.inf)
        return top, x, np.zeros_like(top)
    with np.errstate(invalid="ignore"):
        top = np.max(x, axis=1, keepdims=True)
        gap = top - x
        below = np.exp(-gap)
        np.put_along_axis(below, np.argmax(x, axis=1, keepdims=True), 0.0, axis=1)
        log_total = np.log1p(np.sum(below, axis=1, keepdims=True))
    return top, gap, np.where(np.isinf(top), np.nan, log_total)


def logsumexp(x, out, *, threads):
    top, _, log_total = shifted(widen(x))
    lse = np.where(np.isinf(top), top, top + log_total)
    has_nan = np.isnan(widen(x)).any(axis=1, keepdims=True)
    narrow(np.where(has_nan, np.nan, lse)[:, 0], out)


def log_softmax(x, out, *, threads):
    _, gap, log_total = shifted(widen(x))
    narrow(-gap - log_total, out)


def softmax(x, out, *, threads):
    _, gap, log_total = shifted(widen(x))
    narrow(np.exp(-gap) / np.exp(log_total), out)


def softmax_backward(grad, y, out, *, threads):
    grad, y = widen(grad), widen(y)
    with np.errstate(invalid="ignore"):
        narrow(y * (grad - np.sum(grad * y, axis=1, keepdims=True)), out)


def log_softmax_backward(grad, y, out, *, threads):
    grad, y = widen(grad), widen(y)
    with np.errstate(invalid="ignore", over="ignore"):
        narrow(grad - np.exp(y) * np.sum(grad, axis=1, keepdims=True), out)
