"""Cross-entropy of a linear layer as the formula reads, with all logits in float64.

z = input @ linear_weight.T + linear_bias,  then softcap * tanh(z / softcap)
loss = cross_entropy(z, target), see cross_entropy.py

d_input = dz @ linear_weight,  d_linear_weight = dz.T @ input,  d_linear_bias = sum of dz
"""

import numpy as np

from ._widen import narrow, widen
from .cross_entropy import cross_entropy, cross_entropy_backward


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


def _wide(weight):
    return None if weight is None else weight.astype(np.float64)


def linear_cross_entropy(
    input,
    linear_weight,
    linear_bias,
    target,
    weight,
    loss,
    *,
    denominator,
    ignore_index,
    label_smoothing,
    z_loss,
    softcap,
    threads,
):
    z, _ = _logits(input, linear_weight, linear_bias, target, ignore_index, softcap)
    cross_entropy(
        z,
        target[:, None],
        _wide(weight),
        loss[:, None],
        None,
        denominator=denominator,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        threads=threads,
    )


def linear_cross_entropy_backward(
    grad_loss,
    input,
    linear_weight,
    linear_bias,
    target,
    weight,
    d_input,
    d_linear_weight,
    d_linear_bias,
    *,
    denominator,
    ignore_index,
    label_smoothing,
    z_loss,
    softcap,
    threads,
):
    z, slope = _logits(input, linear_weight, linear_bias, target, ignore_index, softcap)
    dz = np.empty_like(z)
    cross_entropy_backward(
        grad_loss[:, None],
        z,
        target[:, None],
        _wide(weight),
        dz,
        denominator=denominator,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        threads=threads,
    )
    kept = (target != ignore_index)[:, None]
    with np.errstate(invalid="ignore", over="ignore"):
        dz = dz[:, :, 0] * slope
        narrow(np.where(kept, dz @ widen(linear_weight), 0.0), d_input)
        narrow(dz.T @ np.where(kept, widen(input), 0.0), d_linear_weight)
        if d_linear_bias is not None:
            narrow(dz.sum(axis=0), d_linear_bias)


def linear_cross_entropy_with_grad(
    input,
    linear_weight,
    linear_bias,
    target,
    weight,
    loss,
    d_input,
    d_linear_weight,
    d_linear_bias,
    *,
    denominator,
    ignore_index,
    label_smoothing,
    z_loss,
    softcap,
    threads,
):
    options = {
        "denominator": denominator,
        "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
        "z_loss": z_loss,
        "softcap": softcap,
        "threads": threads,
    }
    inputs = input, linear_weight, linear_bias, target, weight
    linear_cross_entropy(*inputs, loss, **options)
    outputs = d_input, d_linear_weight, d_linear_bias
    linear_cross_entropy_backward(np.ones(1), *inputs, *outputs, **options)
