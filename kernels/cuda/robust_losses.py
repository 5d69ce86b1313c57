"""Losses for noisy labels and rare classes, forward, backward and both in a single pass, on NVIDIA
GPUs.

All are functions of the probability of the row's class, so the gradient is that of cross-entropy
times one number per row: two modes of `_softmax_loss/`, whose `loss_transform.py` computes that.
"""

from . import _arrays
from ._softmax_loss.launch import run


def robust_losses(
    logits, target, weight, loss, *, alpha, gamma, q, epsilon, beta, denominator, ignore_index,
    threads,
):  # fmt: skip
    with _arrays.on_device((logits, target, weight), (loss,)) as (logits, target, weight, loss):
        run(
            _mode(beta), logits, target, weight, loss, None, denominator=denominator,
            ignore_index=ignore_index, transform=_floats(alpha, gamma, q, epsilon, beta),
        )  # fmt: skip


def robust_losses_backward(
    grad_loss, logits, target, weight, grad, *, alpha, gamma, q, epsilon, beta, denominator,
    ignore_index, threads,
):  # fmt: skip
    with _arrays.on_device((grad_loss, logits, target, weight), (grad,)) as views:
        grad_loss, logits, target, weight, grad = views
        run(
            _mode(beta), logits, target, weight, None, grad, denominator=denominator,
            ignore_index=ignore_index, grad_loss=grad_loss,
            transform=_floats(alpha, gamma, q, epsilon, beta),
        )  # fmt: skip


def robust_losses_with_grad(
    logits, target, weight, loss, grad, *, alpha, gamma, q, epsilon, beta, denominator,
    ignore_index, threads,
):  # fmt: skip
    with _arrays.on_device((logits, target, weight), (loss, grad)) as views:
        logits, target, weight, loss, grad = views
        run(
            _mode(beta), logits, target, weight, loss, grad, denominator=denominator,
            ignore_index=ignore_index, transform=_floats(alpha, gamma, q, epsilon, beta),
        )  # fmt: skip


def _mode(beta):
    return "entropy" if beta else "transform"


def _floats(*numbers):
    return tuple(map(float, numbers))
