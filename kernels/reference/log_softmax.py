"""logsumexp, softmax, log_softmax and their gradients, as the formulas read."""

import numpy as np

from ._widen import narrow, total, widen


def shifted(x):
    """Split `x` of shape (outer, n, inner) into a maximum and what lies below it.

    Returns ``top``, the maximum over the classes; ``gap = top - x``; ``below = exp(x - top)``;
    and ``rest``, the sum of ``below`` without one maximal element, whose 1 comes back through
    log1p: where it dominates, the sum of the others is all there is to see.
    """
    if x.shape[1] == 0:
        top = np.full((x.shape[0], 1, x.shape[2]), -np.inf)
        return top, x, x, np.zeros_like(top)
    with np.errstate(invalid="ignore"):
        top = np.max(x, axis=1, keepdims=True)
        gap = top - x
        below = exp_gap(top, x, gap)
        others = below.copy()
        np.put_along_axis(others, np.argmax(x, axis=1, keepdims=True), 0.0, axis=1)
        rest = total(others)
    return top, gap, below, np.where(np.isinf(top), np.nan, rest)


def exp_gap(top, x, gap):
    """``exp(-gap)``, with what the rounding of ``gap = top - x`` lost put back.

    At gap = 14 that is up to 8 ULP of a float64 softmax. `lost` is exact (Knuth's two-sum).
    """
    back = gap - top
    lost = (top - (gap - back)) - (x + back)
    return np.exp(-gap) * (1 - np.where(np.isfinite(lost), lost, 0.0))


def logsumexp(x, out, *, threads):
    top, _, _, rest = shifted(widen(x))
    narrow(np.where(np.isinf(top), top, top + np.log1p(rest))[:, 0], out)


def log_softmax(x, out, *, threads):
    _, gap, _, rest = shifted(widen(x))
    value = -gap - np.log1p(rest)
    # A log-sum of 1e-20 beside a gap of 100 is lost, but decides how a tie of float16 is rounded.
    lost = (value == -gap) & (rest > 0)
    narrow(np.where(lost, np.nextafter(value, -np.inf), value), out)


def softmax(x, out, *, threads):
    _, _, below, rest = shifted(widen(x))
    narrow(below / (1 + rest), out)


def softmax_backward(grad, y, out, *, threads):
    grad, y = widen(grad), widen(y)
    with np.errstate(invalid="ignore"):
        narrow(y * (grad - total(grad * y)), out)


def log_softmax_backward(grad, y, out, *, threads):
    grad, y = widen(grad), widen(y)
    with np.errstate(invalid="ignore", over="ignore"):
        narrow(grad - np.exp(y) * total(grad), out)
