"""Losses for noisy labels and rare classes, with their gradients, in one trip through memory.

The formulas are in kernels/reference/robust_losses.py. All are a curve over the probability of the
row's class, so the gradient is that of cross-entropy times one number per row: the compiled code is
that of cross_entropy.py, and _curves.py has what is done once in a row.
"""

import numpy as np

from ._curves import Curve
from .cross_entropy import _compute


def robust_losses(
    logits, target, weight, loss, *, alpha, gamma, q, epsilon, beta, denominator, ignore_index,
    threads,
):  # fmt: skip
    curve = Curve(True, alpha, gamma, q, epsilon, beta)
    with np.errstate(invalid="ignore"):  # the mean over no row at all is NaN
        _compute(
            logits, target, weight, loss, None, None, None, denominator=denominator,
            ignore_index=ignore_index, curve=curve, threads=threads,
        )  # fmt: skip


def robust_losses_backward(
    grad_loss, logits, target, weight, grad, *, alpha, gamma, q, epsilon, beta, denominator,
    ignore_index, threads,
):  # fmt: skip
    _compute(
        logits, target, weight, None, None, grad_loss, grad, denominator=denominator,
        ignore_index=ignore_index, curve=Curve(True, alpha, gamma, q, epsilon, beta),
        threads=threads,
    )  # fmt: skip


def robust_losses_with_grad(
    logits, target, weight, loss, grad, *, alpha, gamma, q, epsilon, beta, denominator,
    ignore_index, threads,
):  # fmt: skip
    curve = Curve(True, alpha, gamma, q, epsilon, beta)
    with np.errstate(invalid="ignore"):
        _compute(
            logits, target, weight, loss, None, None, grad, denominator=denominator,
            ignore_index=ignore_index, curve=curve, threads=threads,
        )  # fmt: skip
