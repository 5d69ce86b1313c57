"""Blocks of labels: the check that they are classes; nll_loss, which reads one element a row."""

from numba.extending import register_jitable

from ._math import cast
from ._parts import inner
from ._rows import BLOCK
from ._storage import narrow, widen


@register_jitable
def block_count(rows):
    return -(-rows // BLOCK)


@inner
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


@inner
def nll_task(x, labels, weight, loss, n, inner, denominator, ignore_index, sums, block):
    """Sum of the losses of a block of rows; each goes to `loss`, unless that is empty."""
    total = 0.0
    for r in range(block * BLOCK, min(labels.size, (block + 1) * BLOCK)):
        label, cost = labels[r], 0.0
        if label != ignore_index:
            at = x.first + r // inner * x.step + label * inner + r % inner
            cost = -float(widen(x.data[at])) * (weight[label] if weight.size else 1)
        total += cost
        if loss.size:
            loss[r] = cost / denominator
    sums[block] = total


@inner
def zeros_task(grad, n, inner, plane):
    at = grad.first + plane * grad.step
    grad.data[at : at + n * inner] = 0  # also the bits of a half float


@inner
def nll_gradient_task(upstream, labels, weight, grad, inner, denominator, ignore_index, block):
    """-upstream * weight at the labels of a block of rows."""
    for r in range(block * BLOCK, min(labels.size, (block + 1) * BLOCK)):
        label = labels[r]
        if label != ignore_index:
            value = -upstream[r if upstream.size > 1 else 0] / denominator
            value *= weight[label] if weight.size else 1
            at = grad.first + r // inner * grad.step + label * inner + r % inner
            grad.data[at] = narrow(cast(upstream[0], value), grad.data)
