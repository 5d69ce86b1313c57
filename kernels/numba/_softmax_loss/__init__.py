"""The losses of a softmax with their gradients, in a single pass over memory: the code that
cross_entropy, robust_losses and linear_cross_entropy share.

The formulas are in kernels/reference/cross_entropy.py. Per row: its state (read _rows.py, then
_panels.py), from which the loss is a few scalars; then, while the row is in the cache, the gradient
``grad_scale * (p_factor * softmax(x) - q)``, where q is the target probability times the weight. q
is 0 but for the target class where neither label smoothing nor a target of probabilities is given,
and that one element is written last.
"""

from typing import NamedTuple

import numpy as np

from .._class_loss import class_loss, put_reduced
from .._compile import threaded
from .._jit_options import internal
from .._panels import is_panelled, task_count
from .._storage import compute_dtype, flat_out, planes_out, streams
from .loss_transform import PLAIN, LossTransform
from .panels import panels_loss
from .rows import rows_loss


class Rows(NamedTuple):
    """Arrays with one element for each row, and the weights, one for each class."""

    labels: np.ndarray  # empty for a target of probabilities
    weight: np.ndarray  # empty for ones, but in full if options.every_class
    grad_loss: np.ndarray  # empty for 1; of one element, or one for each row
    loss: np.ndarray  # empty where the loss is reduced
    lse: np.ndarray  # NaN where a row is ignored
    row_max: np.ndarray  # the state of each row, see _rows.py
    sumexp_m1: np.ndarray


class Options(NamedTuple):
    ignore_index: int
    denominator: float
    target_scale: float  # 1 - label_smoothing
    uniform_share: float  # label_smoothing / n
    every_class: bool  # whether q is not 0 everywhere but at the target class
    uniform_total: float  # uniform_share * (sum of the weights)
    z_loss: float
    streaming: bool  # whether the gradient is written past the caches
    transform: LossTransform  # of losses without label smoothing, z_loss and probabilities


@internal
def softmax_loss_task(x, target, grad, rows, options, outer, n, inner, sums, task):
    """Leaves the sum of its losses in `sums`."""
    if is_panelled(n, inner):
        sums[task] = panels_loss(x, target, grad, rows, options, outer, n, inner, task)
    else:
        sums[task] = rows_loss(x, target, grad, rows, options, outer, n, task)


run = threaded(softmax_loss_task)


def softmax_loss(
    logits, target, weight, *, loss=None, lse=None, grad_loss=None, grad=None, denominator,
    ignore_index, label_smoothing=0.0, z_loss=0.0, transform=PLAIN, state=(None, None), threads,
):  # fmt: skip
    """Loss, lse, gradient and `state` (row_max and sumexp_m1 of each row), whichever are given."""
    planes, rows, options = class_loss(
        logits, target, weight, loss, grad_loss, denominator=denominator,
        ignore_index=ignore_index, label_smoothing=label_smoothing,
    )  # fmt: skip
    _, weights, _, losses = rows
    *_, uniform_share, _ = options
    dtype = compute_dtype(logits)
    rows = Rows(*rows, *(flat_out(a, dtype) for a in (lse, *state)))
    options = Options(
        *options,
        uniform_share * float(weights.sum(dtype=np.longdouble)) if label_smoothing else 0.0,
        float(z_loss),
        grad is not None and streams(grad, logits),
        transform,
    )
    sums = np.zeros(task_count(*logits.shape))
    planes = *planes, planes_out(grad, logits.dtype)
    run(threads, logits.size, sums.size, *planes, rows, options, *logits.shape, sums)
    if loss is not None and not losses.size:
        put_reduced(sums, denominator, loss)
