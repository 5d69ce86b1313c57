"""Cross-entropy of a linear layer as the formula reads, with all logits in float64.

z = input @ linear_weight.T + linear_bias,  then softcap * tanh(z / softcap)
loss = cross_entropy(z, target), see _softmax.py

d_input = dz @ linear_weight,  d_linear_weight = dz.T @ input,  d_linear_bias = sum of dz
"""

import numpy as np

from ._loss import put_grad, put_loss
from ._softmax import softmax_loss
from ._widen import narrow, widen


def _logits(input, linear_weight, linear_bias, target, ignore_index, softcap):
    """Logits of all rows (rows, classes, 1), 0 where ignored, and their slope below softcap."""
    kept = (target != ignore_index)[:, None]
    with np.errstate(invalid="ignore", over="ignore"):
        z = np.where(kept, widen(input), 0.0) @ widen(linear_weight).T
        if linear_bias is not None:
            z = z + widen(linear_bias)
        slope = np.ones_like(z)
        if softcap:
            t = np.tanh(z / softcap)
            z, slope = softcap * t, 1 - t * t
    return z[:, :, None], slope


def linear_cross_entropy(
    input, linear_weight, linear_bias, target, weight, loss, *, denominator, ignore_index,
    label_smoothing, z_loss, softcap, threads,
):  # fmt: skip
    z, _ = _logits(input, linear_weight, linear_bias, target, ignore_index, softcap)
    losses, _, _, _ = softmax_loss(
        z, target[:, None], weight, ignore_index, label_smoothing, z_loss
    )  # fmt: skip
    put_loss(losses[:, 0, 0], loss, denominator)


def linear_cross_entropy_backward(
    grad_loss, input, linear_weight, linear_bias, target, weight, d_input, d_linear_weight,
    d_linear_bias, *, denominator, ignore_index, label_smoothing, z_loss, softcap, threads,
):  # fmt: skip
    z, slope = _logits(input, linear_weight, linear_bias, target, ignore_index, softcap)
    _, _, rows, kept = softmax_loss(
        z, target[:, None], weight, ignore_index, label_smoothing, z_loss
    )  # fmt: skip
    dz = np.empty_like(z)
    put_grad(rows, grad_loss[:, None], denominator, dz, kept)
    with np.errstate(invalid="ignore", over="ignore"):
        dz, kept = dz[:, :, 0] * slope, kept[:, :, 0]
        narrow(np.where(kept, dz @ widen(linear_weight), 0.0), d_input)
        narrow(dz.T @ np.where(kept, widen(input), 0.0), d_linear_weight)
        if d_linear_bias is not None:
            narrow(dz.sum(axis=0), d_linear_bias)


def linear_cross_entropy_with_grad(
    input, linear_weight, linear_bias, target, weight, loss, d_input, d_linear_weight,
    d_linear_bias, *, denominator, ignore_index, label_smoothing, z_loss, softcap, threads,
):  # fmt: skip
    options = {
        "denominator": denominator, "ignore_index": ignore_index,
        "label_smoothing": label_smoothing, "z_loss": z_loss, "softcap": softcap,
        "threads": threads,
    }  # fmt: skip
    inputs = input, linear_weight, linear_bias, target, weight
    outputs = d_input, d_linear_weight, d_linear_bias
    linear_cross_entropy(*inputs, loss, **options)
    linear_cross_entropy_backward(np.ones(1), *inputs, *outputs, **options)
