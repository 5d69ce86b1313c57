"""Losses for noisy labels and rare classes, with their gradients, in a single pass over memory.

The formulas are in kernels/reference/robust_losses.py. All are a transform of the probability of
the row's class, so the gradient is that of cross-entropy times one number per row: the compiled
code is that of cross_entropy, and _softmax_loss/loss_transform.py has what is done once per row.
"""

from ._softmax_loss import softmax_loss
from ._softmax_loss.loss_transform import LossTransform


def robust_losses(
    logits, target, weight, loss, *, alpha, gamma, q, epsilon, beta, denominator, ignore_index,
    threads,
):  # fmt: skip
    softmax_loss(
        logits, target, weight, loss=loss, denominator=denominator, ignore_index=ignore_index,
        transform=LossTransform(True, alpha, gamma, q, epsilon, beta), threads=threads,
    )  # fmt: skip


def robust_losses_backward(
    grad_loss, logits, target, weight, grad, *, alpha, gamma, q, epsilon, beta, denominator,
    ignore_index, threads,
):  # fmt: skip
    softmax_loss(
        logits, target, weight, grad_loss=grad_loss, grad=grad, denominator=denominator,
        ignore_index=ignore_index,
        transform=LossTransform(True, alpha, gamma, q, epsilon, beta), threads=threads,
    )  # fmt: skip


def robust_losses_with_grad(
    logits, target, weight, loss, grad, *, alpha, gamma, q, epsilon, beta, denominator,
    ignore_index, threads,
):  # fmt: skip
    softmax_loss(
        logits, target, weight, loss=loss, grad=grad, denominator=denominator,
        ignore_index=ignore_index,
        transform=LossTransform(True, alpha, gamma, q, epsilon, beta), threads=threads,
    )  # fmt: skip
