"""Cross-entropy of logits with its gradient, in one trip through memory; and nll_loss.

The formulas are in kernels/reference/cross_entropy.py. Per row: its state (read _rows.py, then
_panels.py), from which the loss is a few scalars; then, while the row is in the cache, the
gradient ``upstream * (pull * softmax(x) - q)``. q is 0 but for the target class where neither label
smoothing nor a target of probabilities is given, and that one element is written last.

The losses of fixed tasks are summed in float64 and added in order. What is not given is an empty
array.
"""

from typing import NamedTuple

import numpy as np
from numba.extending import register_jitable

from ._compile import threaded
from ._cross_entropy_panels import panels_task
from ._cross_entropy_rows import rows_task
from ._curves import PLAIN, Curve
from ._labels import block_count, nll_gradient_task, nll_task, scan_task, zeros_task
from ._panels import is_panelled, task_count
from ._parts import INNER, inner
from ._storage import frozen, no_planes, planes_in, planes_out, streams


class Rows(NamedTuple):
    """Arrays with one element for each row, and the weights, one for each class."""

    labels: np.ndarray  # empty for a target of probabilities
    weight: np.ndarray  # empty for ones, but in full where every class is wanted
    upstream: np.ndarray  # empty for 1; of one element, or one for each row
    loss: np.ndarray  # empty where the loss is reduced
    lse: np.ndarray  # NaN where a row is ignored
    top: np.ndarray  # the state of each row, see _rows.py
    rest: np.ndarray


class Options(NamedTuple):
    ignore_index: int
    denominator: float
    z_loss: float
    hard: float  # 1 - label_smoothing: of the target
    soft: float  # label_smoothing / n: of every class
    soft_total: float  # soft * (sum of the weights)
    every_class: bool  # whether q is not 0 everywhere but at the target class
    streaming: bool  # whether the gradient is written past the caches
    curve: Curve  # of the robust losses, which have no label smoothing, z_loss or probabilities


@inner
def rows_or_panels_task(x, target, grad, rows, options, outer, n, inner, sums, task):
    """Leaves the sum of its losses in `sums`."""
    if is_panelled(n, inner):
        sums[task] = panels_task(x, target, grad, rows, options, outer, n, inner, task)
    else:
        sums[task] = rows_task(x, target, grad, rows, options, outer, n, task)


run = threaded(rows_or_panels_task)


@register_jitable(**INNER)
def in_order(sums):
    """Their sum, the same in NumPy and in compiled code."""
    return np.cumsum(sums)[-1] if sums.size else 0.0


def _compute(
    logits, target, weight, loss, lse, upstream, grad, *, denominator, ignore_index,
    label_smoothing=0.0, z_loss=0.0, curve=PLAIN, state=None, threads
):  # fmt: skip
    """Loss, lse, gradient and `state` (top and rest of each row), whichever are not None."""
    outer, n, inner = logits.shape
    wide = np.float64 if logits.dtype == np.float64 else np.float32
    probabilities = target is not None and target.ndim == 3
    no_labels = target is None or probabilities
    every_class = probabilities or label_smoothing != 0
    if every_class and weight is None:
        weight = np.ones(n, wide)
    per_row = loss is not None and loss.shape == (outer, inner)
    none, none_in = np.empty(0, wide), frozen(np.empty(0, wide))
    rows = Rows(
        frozen(np.empty(0, np.int64) if no_labels else target.reshape(-1)),
        none_in if weight is None else frozen(weight),
        none_in if upstream is None else frozen(upstream.reshape(-1)),
        loss.reshape(-1) if per_row else none,
        none if lse is None else lse.reshape(-1),
        *((none, none) if state is None else state),
    )
    soft = label_smoothing / n if n else 0.0
    options = Options(
        int(ignore_index),
        float(denominator),
        float(z_loss),
        1.0 - label_smoothing,
        soft,
        soft * float(weight.sum(dtype=np.longdouble)) if label_smoothing else 0.0,
        every_class,
        grad is not None and streams(grad, logits),
        curve,
    )
    planes = (
        planes_in(logits),
        planes_in(target) if probabilities else no_planes(logits.dtype),
        no_planes(logits.dtype, True) if grad is None else planes_out(grad),
    )
    sums = np.zeros(task_count(outer, n, inner))
    run(threads, logits.size, sums.size, *planes, rows, options, outer, n, inner, sums)
    if loss is not None and not per_row:
        loss[0, 0] = np.divide(in_order(sums), denominator)


def cross_entropy(logits, target, weight, loss, lse, *, denominator, ignore_index,
                  label_smoothing, z_loss, threads):  # fmt: skip
    with np.errstate(invalid="ignore"):  # the mean over no row at all is NaN
        _compute(
            logits, target, weight, loss, lse, None, None, denominator=denominator,
            ignore_index=ignore_index, label_smoothing=label_smoothing, z_loss=z_loss,
            threads=threads,
        )  # fmt: skip


def cross_entropy_backward(grad_loss, logits, target, weight, grad, *, denominator, ignore_index,
                           label_smoothing, z_loss, threads):  # fmt: skip
    _compute(
        logits, target, weight, None, None, grad_loss, grad, denominator=denominator,
        ignore_index=ignore_index, label_smoothing=label_smoothing, z_loss=z_loss,
        threads=threads,
    )  # fmt: skip


def cross_entropy_with_grad(logits, target, weight, loss, grad, *, denominator, ignore_index,
                            label_smoothing, z_loss, threads):  # fmt: skip
    with np.errstate(invalid="ignore"):
        _compute(
            logits, target, weight, loss, None, None, grad, denominator=denominator,
            ignore_index=ignore_index, label_smoothing=label_smoothing, z_loss=z_loss,
            threads=threads,
        )  # fmt: skip


# ---- labels ----------------------------------------------------------------------------------


run_scan, run_nll = threaded(scan_task), threaded(nll_task)
run_zeros, run_nll_gradient = threaded(zeros_task), threaded(nll_gradient_task)


def _weights(weight, like):
    wide = np.float64 if like.dtype == np.float64 else np.float32
    return frozen(np.empty(0, wide) if weight is None else weight)


def scan_target(target, weight, stats, *, classes, ignore_index, threads):
    weight = frozen(np.empty(0, np.float32)) if weight is None else frozen(weight)
    labels = frozen(target.reshape(-1))
    sums, bad = np.zeros(block_count(labels.size)), np.full(block_count(labels.size), -1)
    run_scan(threads, target.size, sums.size, labels, weight, classes, ignore_index, sums, bad)
    wrong = bad[bad >= 0]
    stats[:] = (wrong[0], 0) if wrong.size else (-1, in_order(sums))


def nll_loss(log_probs, target, weight, loss, *, denominator, ignore_index, threads):
    _, n, inner = log_probs.shape
    per_row = loss.shape == target.shape
    sums = np.zeros(block_count(target.size))
    run_nll(
        threads, target.size, sums.size, planes_in(log_probs), frozen(target.reshape(-1)),
        _weights(weight, log_probs), loss.reshape(-1) if per_row else loss[0, :0], n, inner,
        float(denominator), ignore_index, sums,
    )  # fmt: skip
    if not per_row:
        with np.errstate(invalid="ignore"):
            loss[0, 0] = np.divide(in_order(sums), denominator)


def nll_loss_backward(grad_loss, target, weight, grad, *, denominator, ignore_index, threads):
    (outer, n, inner), planes = grad.shape, planes_out(grad)
    run_zeros(threads, grad.size, outer, planes, n, inner)
    run_nll_gradient(
        threads, grad.size, block_count(target.size), frozen(grad_loss.reshape(-1)),
        frozen(target.reshape(-1)), _weights(weight, grad), planes, inner, float(denominator),
        ignore_index,
    )  # fmt: skip
