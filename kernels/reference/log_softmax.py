"""logsumexp, softmax, log_softmax and their gradients, as the formulas read."""

import numpy as np

from ._softmax import shifted
from ._widen import narrow, total, widen


def logsumexp(x, out, *, threads):
    row_max, _, _, sumexp_m1 = shifted(widen(x))
    narrow(np.where(np.isinf(row_max), row_max, row_max + np.log1p(sumexp_m1))[:, 0], out)


def log_softmax(x, out, *, threads):
    _, gap, _, sumexp_m1 = shifted(widen(x))
    value = -gap - np.log1p(sumexp_m1)
    # A log-sum of 1e-20 is lost in a gap of 100, but decides how a tie of float16 is rounded.
    lost = (value == -gap) & (sumexp_m1 > 0)
    narrow(np.where(lost, np.nextafter(value, -np.inf), value), out)


def softmax(x, out, *, threads):
    _, _, below, sumexp_m1 = shifted(widen(x))
    narrow(below / (1 + sumexp_m1), out)


def softmax_backward(grad, y, out, *, threads):
    grad, y = widen(grad), widen(y)
    with np.errstate(invalid="ignore"):
        narrow(y * (grad - total(grad * y)), out)


def log_softmax_backward(grad, y, out, *, threads):
    grad, y = widen(grad), widen(y)
    with np.errstate(invalid="ignore", over="ignore"):
        narrow(grad - np.exp(y) * total(grad), out)
