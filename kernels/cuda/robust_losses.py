"""Losses for noisy labels and rare classes, forward, backward and both in one trip, on NVIDIA GPUs.

All are a curve over the probability of the row's class, so the gradient is that of cross-entropy
times one number per row: the kernels are those of `cross_entropy.py`, compiled for two more modes
of `_loss.py`; `_curves.py` has what is done once in a row.
"""

from . import _arrays
from .cross_entropy import _run


def robust_losses(
    logits, target, weight, loss, *, alpha, gamma, q, epsilon, beta, denominator, ignore_index,
    threads,
):  # fmt: skip
    with _arrays.on_device((logits, target, weight), (loss,)) as (logits, target, weight, loss):
        _run(
            _mode(beta), logits, target, weight, loss, None, (denominator, ignore_index, 0.0, 0.0),
            curve=_floats(alpha, gamma, q, epsilon, beta),
        )  # fmt: skip


def robust_losses_backward(
    grad_loss, logits, target, weight, grad, *, alpha, gamma, q, epsilon, beta, denominator,
    ignore_index, threads,
):  # fmt: skip
    with _arrays.on_device((grad_loss, logits, target, weight), (grad,)) as views:
        grad_loss, logits, target, weight, grad = views
        _run(
            _mode(beta), logits, target, weight, None, grad, (denominator, ignore_index, 0.0, 0.0),
            grad_loss=grad_loss, curve=_floats(alpha, gamma, q, epsilon, beta),
        )  # fmt: skip


def robust_losses_with_grad(
    logits, target, weight, loss, grad, *, alpha, gamma, q, epsilon, beta, denominator,
    ignore_index, threads,
):  # fmt: skip
    with _arrays.on_device((logits, target, weight), (loss, grad)) as views:
        logits, target, weight, loss, grad = views
        _run(
            _mode(beta), logits, target, weight, loss, grad, (denominator, ignore_index, 0.0, 0.0),
            curve=_floats(alpha, gamma, q, epsilon, beta),
        )  # fmt: skip


def _mode(beta):
    return "entropy" if beta else "curve"


def _floats(*numbers):
    return tuple(map(float, numbers))
