"""What the results should be: the formulas in wider arithmetic, and errors in ULP.

Written without a look at any kernel. float64 inputs are computed in longdouble (80 bits on
x86), all others in float64. Classes lie on the last axis here. A formula returns

``value``
    the result;
``scale``
    the sum of the absolute values of the terms that it is made of. Where they do not cancel
    that is abs(value); where they do, no arithmetic in the input's own precision can be
    exact in ULP of the value, and errors are counted in ULP of the scale.
"""

from typing import NamedTuple

import ml_dtypes
import numpy as np

BF16 = np.dtype(ml_dtypes.bfloat16)
# dtype -> bits of the significand (the hidden one included), exponent of the least subnormal
FORMATS = {
    np.dtype(np.float64): (53, -1074),
    np.dtype(np.float32): (24, -149),
    np.dtype(np.float16): (11, -24),
    BF16: (8, -133),
}


class Truth(NamedTuple):
    value: np.ndarray
    scale: np.ndarray


def compute(dtype):
    """The dtype in which kernels compute, and give losses."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def widen(a):
    a = np.asarray(a)
    return a.astype(np.longdouble if a.dtype.kind == "f" and a.itemsize >= 8 else np.float64)


# --- errors -------------------------------------------------------------------------------


def _float64_or_wider(a):
    """Without `widen`'s longdouble for what is a truth already: it takes several times as long."""
    a = np.asarray(a)
    return a if a.dtype.kind == "f" and a.itemsize >= 8 else a.astype(np.float64)


def ulp(value, dtype):
    """The distance between numbers of `dtype` at `value`."""
    bits, least = FORMATS[np.dtype(dtype)]
    value = np.abs(_float64_or_wider(value))
    _, exponent = np.frexp(np.where(np.isfinite(value), value, 0))
    exponent = np.where(value == 0, least, np.maximum(exponent - bits, least))
    return np.ldexp(np.ones_like(value), exponent)


def rounded(value, dtype):
    """`value` rounded to `dtype` once, to nearest even; beyond its range, infinity."""
    value = _float64_or_wider(value)
    step = ulp(value, dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        result = np.where(np.isfinite(value), np.rint(value / step) * step, value)
    largest = float(ml_dtypes.finfo(dtype).max)
    return np.where(np.abs(result) > largest, np.copysign(np.inf, value), result)


def ulp_error(result, truth, scale=None, unit=None):
    """abs(result - truth) in ULP of `unit` (the result's dtype) at `scale` (the truth)."""
    result = np.asarray(result)
    unit = np.dtype(unit or result.dtype)
    wide, truth = result.astype(truth.dtype), np.asarray(truth)
    scale = np.abs(truth) if scale is None else scale
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(wide - truth)
        if unit != result.dtype:  # computed in `unit`, then rounded to the dtype of the result
            error = np.maximum(error - ulp(truth, result.dtype) / 2, 0)
        error = error / ulp(scale, unit)
        if np.isfinite(error).all():
            return error.astype(np.float64)
        same = (wide == truth) | (np.isnan(wide) & np.isnan(truth))
        same |= np.isinf(wide) & (wide == rounded(truth, result.dtype))
    return np.where(same, 0.0, np.where(np.isnan(error), np.inf, error).astype(np.float64))


def assert_close(result, truth, limit, what=""):
    """No element of `result` is further than `limit` ULP of the compute dtype from the truth."""
    result = np.asarray(result)
    value, scale = truth
    assert result.shape == value.shape, f"{what}: shape {result.shape}, not {value.shape}"
    if not result.size:
        return 0.0
    error = ulp_error(result, value, scale, compute(result.dtype))
    i = np.unravel_index(np.argmax(error), error.shape)
    assert error[i] <= limit, (
        f"{what}: element {tuple(map(int, i))} of {error.shape} is {result[i]}, "
        f"but {value[i]!r} is right: {error[i]:.3g} ULP off, not {limit}"
    )
    return float(error[i])


# --- log_softmax.py -----------------------------------------------------------------------


def _split(x):
    """max(x), x - max, and log(sum(exp(x - max))): log1p of the sum without the maximum."""
    x = widen(x)
    if not x.shape[-1]:
        none = np.zeros((*x.shape[:-1], 1), x.dtype)
        return none - np.inf, x, none
    with np.errstate(invalid="ignore"):
        row_max = x.max(axis=-1, keepdims=True)
        below = x - row_max
        powers = np.exp(below)
        powers[np.arange(x.shape[-1]) == x.argmax(axis=-1)[..., None]] = 0
        log_sum = np.log1p(powers.sum(axis=-1, keepdims=True))
        # NaN where the maximum is infinite, as in PyTorch
        return row_max, below, log_sum + (row_max - row_max)


def logsumexp(x):
    row_max, _, log_sum = _split(x)
    value = np.where(np.isinf(row_max), row_max, row_max + log_sum)[..., 0]
    value = np.where(np.isnan(widen(x)).any(axis=-1), np.nan, value)
    return Truth(value, (np.abs(row_max) + log_sum)[..., 0])


def log_softmax(x):
    _, below, log_sum = _split(x)
    value = below - log_sum
    # Strictly less than `below`, also where `log_sum` is lost: it decides how a tie is rounded.
    value = np.where((value == below) & (log_sum > 0), np.nextafter(below, -np.inf), value)
    return Truth(value, np.abs(value))


def softmax(x):
    value = np.exp(log_softmax(x).value)
    return Truth(value, value)


def softmax_backward(grad, y):
    grad, y = widen(grad), widen(y)
    dot = (grad * y).sum(axis=-1, keepdims=True)
    total = np.abs(grad * y).sum(axis=-1, keepdims=True)
    return Truth(y * (grad - dot), np.abs(y) * (np.abs(grad) + total))


def log_softmax_backward(grad, y):
    grad, p = widen(grad), np.exp(widen(y))
    total = np.abs(grad).sum(axis=-1, keepdims=True)
    return Truth(grad - p * grad.sum(axis=-1, keepdims=True), np.abs(grad) + p * total)


# --- cross_entropy.py ---------------------------------------------------------------------


def _reduced(rows, reduction, divisor):
    if reduction == "none":
        return Truth(*rows)
    divisor = divisor if reduction == "mean" else 1
    with np.errstate(invalid="ignore"):
        return Truth(*(r.sum() / np.float64(divisor) for r in rows))


def _divisor(target, classes, weight, ignore_index):
    """What a mean divides by: the weights of the labels that count."""
    counted = [int(t) for t in target.ravel() if t != ignore_index]
    return sum(1 if weight is None else widen(weight)[t] for t in counted)


def _onehot(target, classes, ignore_index):
    target = np.asarray(target)
    kept = target != ignore_index
    return (target[..., None] == np.arange(classes)) & kept[..., None], kept


def _loss_and_grad(logits, target, weight, ignore_index, label_smoothing, z_loss):
    """(loss rows, gradient rows, lse rows, divisor of the mean)."""
    x, target = widen(logits), np.asarray(target)
    n = x.shape[-1]
    w = np.ones(n, x.dtype) if weight is None else widen(weight).astype(x.dtype)
    if target.dtype.kind in "iu":
        q, kept = _onehot(target, n, ignore_index)
        divisor = _divisor(target, n, weight, ignore_index)
    else:
        q, kept = widen(target), np.ones(x.shape[:-1], bool)
        divisor = kept.size
    x = np.where(kept[..., None], x, 0)
    q = ((1 - x.dtype.type(label_smoothing)) * q + x.dtype.type(label_smoothing) / n) * w
    q = q.astype(x.dtype)
    z = x.dtype.type(z_loss)
    row_max, _, log_sum = _split(x)
    lse, lse_scale = row_max + log_sum, np.abs(row_max) + np.abs(log_sum)
    log_p = log_softmax(x).value
    with np.errstate(invalid="ignore"):
        cost = np.where((q == 0) & ~np.isnan(log_p), 0, -q * log_p)
        loss = cost.sum(axis=-1) + (z * lse**2)[..., 0]
        loss_scale = np.abs(cost).sum(axis=-1) + (np.abs(z) * lse_scale**2)[..., 0]
        p_factor = q.sum(axis=-1, keepdims=True) + 2 * z * lse
        p_factor_scale = np.abs(q).sum(axis=-1, keepdims=True) + 2 * np.abs(z) * lse_scale
        # p - 1 by expm1, since p rounds to 1 where a class dominates
        grad = q * np.expm1(log_p) + (p_factor - q) * np.exp(log_p)
        grad_scale = np.abs(q) + p_factor_scale * np.exp(log_p)
    row = kept[..., None]
    return (
        (np.where(kept, loss, 0), np.where(kept, loss_scale, 0)),
        (np.where(row, grad, 0), np.where(row, grad_scale, 0)),
        Truth(np.where(kept, lse[..., 0], np.nan), np.where(kept, lse_scale[..., 0], np.nan)),
        divisor,
    )


def _times_grad_loss(rows, grad_loss, reduction, divisor):
    """Gradient rows times `grad_loss`; a row that does not count stays exactly 0."""
    g = widen(grad_loss)
    g = g[..., None] if g.ndim else g
    with np.errstate(divide="ignore"):
        g = g / np.float64(divisor) if reduction == "mean" else g
    with np.errstate(invalid="ignore"):
        value, scale = (np.where(rows[1] == 0, 0, r * np.abs(g)) for r in rows)
        return Truth(np.where(value == 0, value, value * np.sign(g)), scale)


def cross_entropy(
    logits,
    target,
    *,
    weight=None,
    ignore_index=-100,
    reduction="mean",
    label_smoothing=0.0,
    z_loss=0.0,
    return_lse=False,
):
    loss, _, lse, divisor = _loss_and_grad(
        logits, target, weight, ignore_index, label_smoothing, z_loss
    )
    loss = _reduced(loss, reduction, divisor)
    return (loss, lse) if return_lse else loss


def cross_entropy_backward(
    grad_loss,
    logits,
    target,
    *,
    weight=None,
    ignore_index=-100,
    reduction="mean",
    label_smoothing=0.0,
    z_loss=0.0,
):
    _, grad, _, divisor = _loss_and_grad(
        logits, target, weight, ignore_index, label_smoothing, z_loss
    )
    return _times_grad_loss(grad, grad_loss, reduction, divisor)


def cross_entropy_with_grad(
    logits,
    target,
    *,
    weight=None,
    ignore_index=-100,
    reduction="mean",
    label_smoothing=0.0,
    z_loss=0.0,
):
    loss, grad, _, divisor = _loss_and_grad(
        logits, target, weight, ignore_index, label_smoothing, z_loss
    )
    return _reduced(loss, reduction, divisor), _times_grad_loss(grad, 1.0, reduction, divisor)


def nll_loss(log_probs, target, *, weight=None, ignore_index=-100, reduction="mean"):
    x = widen(log_probs)
    onehot, _ = _onehot(target, x.shape[-1], ignore_index)
    w = 1 if weight is None else widen(weight)
    rows = np.where(onehot, -w * x, 0).sum(axis=-1)
    divisor = _divisor(np.asarray(target), x.shape[-1], weight, ignore_index)
    return _reduced((rows, np.abs(rows)), reduction, divisor)


def nll_loss_backward(
    grad_loss, log_probs, target, *, weight=None, ignore_index=-100, reduction="mean"
):
    x = widen(log_probs)
    onehot, _ = _onehot(target, x.shape[-1], ignore_index)
    w = np.ones(x.shape[-1], x.dtype) if weight is None else widen(weight)
    rows = np.where(onehot, -w, 0)
    divisor = _divisor(np.asarray(target), x.shape[-1], weight, ignore_index)
    return _times_grad_loss((rows, np.abs(rows)), grad_loss, reduction, divisor)


# --- robust_losses.py ---------------------------------------------------------------------


def _of_label(logits, target, ignore_index):
    """log p, and of the label: log p, p, 1 - p; all of finite rows. And the one-hot labels."""
    n = np.shape(logits)[-1]
    onehot, kept = _onehot(target, n, ignore_index)
    x = np.where(kept[..., None], widen(logits), 0)
    log_p = log_softmax(x).value
    log_y = np.where(onehot, log_p, 0).sum(axis=-1)
    return log_p, log_y, np.exp(log_y), -np.expm1(log_y), onehot, kept


def _robust(function, logits, target, weight, ignore_index, reduction, axis_mean=True):
    """Loss and gradient from ``function(log_y, p_y, u) -> f, scale of f, -df/dlog_y``."""
    log_p, log_y, p_y, u, onehot, kept = _of_label(logits, target, ignore_index)
    n, target = log_p.shape[-1], np.asarray(target)
    w = 1 if weight is None else (onehot * widen(weight)).sum(axis=-1)
    f, scale, slope = function(log_y, p_y, u)
    loss = tuple(np.where(kept, w * a, 0) for a in (f, scale))
    slope = np.where(kept, w * slope, 0)[..., None]
    p = np.exp(log_p)
    grad = slope * np.where(onehot, np.expm1(log_p), p), slope * (p + onehot)
    divisor = _divisor(target, n, weight if axis_mean else None, ignore_index)
    return loss, grad, divisor, (log_p, p, kept)


def _both(losses, reduction):
    loss, grad, divisor = losses[:3]
    return _reduced(loss, reduction, divisor), _times_grad_loss(grad, 1.0, reduction, divisor)


def _declare(name, losses):
    """The three functions of a loss, from ``losses(logits, target, **options)``."""

    def loss(logits, target, *, reduction="mean", **options):
        return _both(losses(logits, target, reduction=reduction, **options), reduction)[0]

    def backward(grad_loss, logits, target, *, reduction="mean", **options):
        _, grad, divisor = losses(logits, target, reduction=reduction, **options)[:3]
        return _times_grad_loss(grad, grad_loss, reduction, divisor)

    def with_grad(logits, target, *, reduction="mean", **options):
        return _both(losses(logits, target, reduction=reduction, **options), reduction)

    globals().update({name: loss, f"{name}_backward": backward, f"{name}_with_grad": with_grad})


def _focal(logits, target, *, gamma=2.0, alpha=None, ignore_index=-100, reduction):
    def function(log_y, p_y, u):
        f = -(u**gamma) * log_y
        ratio = np.where(u > 0, -log_y / np.where(u > 0, u, 1), 1)
        return f, f, u**gamma * (1 + gamma * p_y * ratio)

    if np.ndim(alpha) == 0:
        alpha = np.full(np.shape(logits)[-1], 1.0 if alpha is None else alpha)
    return _robust(function, logits, target, alpha, ignore_index, reduction, axis_mean=False)


def _generalized(logits, target, *, q=0.7, weight=None, ignore_index=-100, reduction):
    def function(log_y, p_y, u):
        power = log_y.dtype.type(q)
        f = -np.expm1(power * log_y) / power
        return f, f, np.exp(power * log_y)

    return _robust(function, logits, target, weight, ignore_index, reduction)


def _symmetric(
    logits, target, *, alpha=0.1, beta=1.0, log_zero=-4.0, weight=None, ignore_index=-100, reduction
):
    def function(log_y, p_y, u):
        a, b = log_y.dtype.type(alpha), log_y.dtype.type(beta) * -log_y.dtype.type(log_zero)
        f = (-a * log_y if alpha else 0) + b * u
        return f, f, a + b * p_y

    return _robust(function, logits, target, weight, ignore_index, reduction)


def _poly(logits, target, *, epsilon=1.0, weight=None, ignore_index=-100, reduction):
    def function(log_y, p_y, u):
        f, scale = -log_y + epsilon * u, -log_y + abs(epsilon) * u
        return f, scale, u + (1 + epsilon) * p_y

    return _robust(function, logits, target, weight, ignore_index, reduction)


def _penalty(logits, target, *, beta=0.1, weight=None, ignore_index=-100, reduction):
    def function(log_y, p_y, u):
        return -log_y, -log_y, np.ones_like(log_y)

    loss, grad, divisor, (log_p, p, kept) = _robust(
        function, logits, target, weight, ignore_index, reduction
    )
    beta = log_p.dtype.type(beta)
    h = np.where(kept[..., None], -(p * log_p).sum(axis=-1, keepdims=True), 0)
    of_h = np.where(kept[..., None], beta * p * (log_p + h), 0)
    of_h_scale = np.where(kept[..., None], abs(beta) * p * (h - log_p), 0)
    loss = loss[0] - beta * h[..., 0], loss[1] + abs(beta) * h[..., 0]
    return loss, (grad[0] + of_h, grad[1] + of_h_scale), divisor


for _name, _losses in {
    "focal_loss": _focal,
    "generalized_cross_entropy": _generalized,
    "symmetric_cross_entropy": _symmetric,
    "poly_cross_entropy": _poly,
    "confidence_penalty": _penalty,
}.items():
    _declare(_name, _losses)
