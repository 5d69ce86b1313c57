"""Cross-entropy of logits with its gradient, see _softmax_loss/__init__.py; the check of labels;
and nll_loss, which reads one element of a row.
"""

import numpy as np
from numba.extending import register_jitable

from ._class_loss import in_order, put_reduced
from ._compile import threaded
from ._jit_options import internal
from ._math import cast
from ._rows import BLOCK
from ._softmax_loss import softmax_loss
from ._storage import compute_dtype, flat_in, flat_out, narrow, planes_in, planes_out, widen


def cross_entropy(logits, target, weight, loss, lse, *, denominator, ignore_index,
                  label_smoothing, z_loss, threads):  # fmt: skip
    softmax_loss(
        logits, target, weight, loss=loss, lse=lse, denominator=denominator,
        ignore_index=ignore_index, label_smoothing=label_smoothing, z_loss=z_loss,
        threads=threads,
    )  # fmt: skip


def cross_entropy_backward(grad_loss, logits, target, weight, grad, *, denominator, ignore_index,
                           label_smoothing, z_loss, threads):  # fmt: skip
    softmax_loss(
        logits, target, weight, grad_loss=grad_loss, grad=grad, denominator=denominator,
        ignore_index=ignore_index, label_smoothing=label_smoothing, z_loss=z_loss,
        threads=threads,
    )  # fmt: skip


def cross_entropy_with_grad(logits, target, weight, loss, grad, *, denominator, ignore_index,
                            label_smoothing, z_loss, threads):  # fmt: skip
    softmax_loss(
        logits, target, weight, loss=loss, grad=grad, denominator=denominator,
        ignore_index=ignore_index, label_smoothing=label_smoothing, z_loss=z_loss,
        threads=threads,
    )  # fmt: skip


# ---- labels, in blocks -----------------------------------------------------------------------


@register_jitable
def block_count(rows):
    return -(-rows // BLOCK)


@internal
def scan_task(labels, weight, classes, ignore_index, sums, bad, block):
    """Sum of the weights of the rows that count, and the first label that is no class."""
    total = 0.0
    for r in range(block * BLOCK, min(labels.size, (block + 1) * BLOCK)):
        label = labels[r]
        if label == ignore_index:
            continue
        if label < 0 or label >= classes:
            bad[block] = r
            return
        total += weight[label] if weight.size else 1
    sums[block] = total


@internal
def nll_task(x, labels, weight, losses, n, inner, denominator, ignore_index, sums, block):
    """Sum of the losses of a block of rows; each goes to `losses`, unless that is empty."""
    total = 0.0
    for r in range(block * BLOCK, min(labels.size, (block + 1) * BLOCK)):
        label, loss = labels[r], 0.0
        if label != ignore_index:
            at = x.first + r // inner * x.step + label * inner + r % inner
            loss = -float(widen(x.data[at])) * (weight[label] if weight.size else 1)
        total += loss
        if losses.size:
            losses[r] = loss / denominator
    sums[block] = total


@internal
def zeros_task(grad, n, inner, plane):
    at = grad.first + plane * grad.step
    grad.data[at : at + n * inner] = 0  # also the bits of a half float


@internal
def nll_gradient_task(grad_loss, labels, weight, grad, inner, denominator, ignore_index, block):
    """-grad_loss * weight at the labels of a block of rows."""
    for r in range(block * BLOCK, min(labels.size, (block + 1) * BLOCK)):
        label = labels[r]
        if label != ignore_index:
            value = -grad_loss[r if grad_loss.size > 1 else 0] / denominator
            value *= weight[label] if weight.size else 1
            at = grad.first + r // inner * grad.step + label * inner + r % inner
            grad.data[at] = narrow(cast(grad_loss[0], value), grad.data)


run_scan, run_nll = threaded(scan_task), threaded(nll_task)
run_zeros, run_nll_gradient = threaded(zeros_task), threaded(nll_gradient_task)


def scan_target(target, weight, stats, *, classes, ignore_index, threads):
    labels, weight = flat_in(target, np.int64), flat_in(weight, np.float32)
    sums, bad = np.zeros(block_count(labels.size)), np.full(block_count(labels.size), -1)
    run_scan(threads, labels.size, sums.size, labels, weight, classes, ignore_index, sums, bad)
    wrong = bad[bad >= 0]
    stats[:] = (wrong[0], 0) if wrong.size else (-1, in_order(sums))


def nll_loss(log_probs, target, weight, loss, *, denominator, ignore_index, threads):
    (_, n, inner), dtype = log_probs.shape, compute_dtype(log_probs)
    per_row = loss.shape == target.shape
    sums = np.zeros(block_count(target.size))
    run_nll(
        threads, target.size, sums.size, planes_in(log_probs), flat_in(target, np.int64),
        flat_in(weight, dtype), flat_out(loss if per_row else None, dtype), n, inner,
        float(denominator), ignore_index, sums,
    )  # fmt: skip
    if not per_row:
        put_reduced(sums, denominator, loss)


def nll_loss_backward(grad_loss, target, weight, grad, *, denominator, ignore_index, threads):
    (outer, n, inner), dtype = grad.shape, compute_dtype(grad)
    planes = planes_out(grad)
    run_zeros(threads, grad.size, outer, planes, n, inner)
    run_nll_gradient(
        threads, grad.size, block_count(target.size), flat_in(grad_loss, dtype),
        flat_in(target, np.int64), flat_in(weight, dtype), planes, inner, float(denominator),
        ignore_index,
    )  # fmt: skip
