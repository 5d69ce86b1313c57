"""The losses and softmax in compiled code of users."""

import numpy as np
from numba import types
from numba.core.errors import TypingError

import fastce

from ..kernels.numba import _softmax_loss, log_softmax
from ..kernels.numba._class_loss import in_order
from ..kernels.numba._math import add_compensated
from ..kernels.numba._panels import task_count
from ..kernels.numba._storage import contiguous_in, contiguous_out, read_only
from ..kernels.numba.cross_entropy import block_count, run_scan
from .types import (
    constant,
    declared,
    float_array,
    fold_shape,
    is_none,
    jitable,
    loop_over,
    no_planes,
    per_row_result,
    planes_of,
    raising,
    result_array,
    separate,
)

# ---- softmax ---------------------------------------------------------------------------------


@declared(fastce.logsumexp)
def _logsumexp(x, axis=-1, keepdims=False, out=None):
    dtype = float_array(x, "x")
    if not is_none(out):
        raise TypingError("in compiled code logsumexp has no out")
    loop = loop_over(log_softmax.run_logsumexp)
    shaped = per_row_result(x.ndim, constant(keepdims, "keepdims", bool))

    def logsumexp(x, axis=-1, keepdims=False, out=None):
        fold, axis = fold_shape(x.shape, axis)
        flat = np.empty(fold[0] * fold[2], dtype)
        loop(x.size, task_count(*fold), planes_of(x, fold[1] * fold[2]), flat, *fold)
        return shaped(flat, x.shape, axis)

    return logsumexp


def _map_rows(function, run):
    """Declares softmax or log_softmax."""

    @declared(function)
    def types_of(x, axis=-1, out=None):
        float_array(x, "x")
        result_of, loop = result_array(out, x), loop_over(run)

        def mapped(x, axis=-1, out=None):
            fold, _ = fold_shape(x.shape, axis)
            result, step = result_of(out, x.shape), fold[1] * fold[2]
            planes = planes_of(separate(x, result), step), contiguous_out(result, step)
            loop(x.size, task_count(*fold) if x.size else 0, *planes, *fold, False)
            return result

        return mapped


_map_rows(fastce.softmax, log_softmax.run_softmax)
_map_rows(fastce.log_softmax, log_softmax.run_log_softmax)


# ---- cross-entropy ---------------------------------------------------------------------------


@jitable
def _fits(target, shape, axis):
    """Whether labels have a shape without its axis."""
    at = 0
    for length in target.shape:
        at += at == axis
        if length != shape[at]:
            return False
        at += 1
    return True


def _targets(target, logits):
    """A function (target, shape, axis, ignore_index, grad) that gives labels and the planes of
    probabilities, one of them empty.
    """
    dtype = logits.dtype
    if isinstance(target, types.Integer) and logits.ndim == 1:
        return jitable(
            lambda target, shape, axis, ignore_index, grad: (
                _signed(np.full(1, target), ignore_index),
                no_planes(dtype),
            )
        )
    if isinstance(target, types.Array) and isinstance(target.dtype, types.Integer):
        fits = _fits if target.ndim else jitable(lambda target, shape, axis: True)

        @raising
        def of_labels(target, shape, axis, ignore_index, grad):
            if not fits(target, shape, axis):
                raise ValueError("target must have the shape of the logits without the class axis")
            labels = np.ascontiguousarray(target).reshape(-1)
            return _signed(labels, ignore_index), no_planes(dtype)

        if target.ndim == logits.ndim - 1:
            return of_labels
    elif isinstance(target, types.Array) and (target.dtype, target.ndim) == (
        logits.dtype,
        logits.ndim,
    ):

        @raising
        def of_probabilities(target, shape, axis, ignore_index, grad):
            if target.shape != shape:
                raise ValueError("target of probabilities must have the shape of the logits")
            if ignore_index >= 0:
                raise ValueError(
                    f"ignore_index={ignore_index} has no meaning for a target of probabilities; "
                    "give the rows to ignore a target of zeros"
                )
            t = np.ascontiguousarray(target)
            if t.size and grad.size and t.ctypes.data == grad.ctypes.data:
                raise ValueError("out may not be the target")
            _, n, inner = fold_shape(shape, axis)[0]
            return np.empty(0, np.int64), contiguous_in(separate(t, grad), n * inner)

        return of_probabilities
    raise TypingError(
        "in compiled code target must hold class indices, of the shape of the logits without the "
        f"class axis, or probabilities of their shape and dtype; got {target} for {logits}"
    )


@jitable
def _signed(labels, ignore_index):
    """A copy as int64. What does not fit is out of range there, too: -1 or -2."""
    result = labels.astype(np.int64)
    for row in range(labels.size):
        if labels[row] > 0 and result[row] < 0:  # of uint64
            result[row] = -1 if ignore_index != -1 else -2
    return result


@jitable
def _ignore_invalid(labels, classes, ignore_index):
    """The rows whose labels are out of range, which become rows to ignore."""
    wrong = (labels != ignore_index) & ((labels < 0) | (labels >= classes))
    labels[wrong] = ignore_index
    return np.nonzero(wrong)[0]


@jitable
def _fill_with_nan(wrong, grad, classes, inner):
    flat = grad.reshape(-1)
    for row in wrong:
        first = row // inner * classes * inner + row % inner
        for k in range(classes):
            flat[first + k * inner] = np.nan


@raising
def _check_smoothing(smoothing):
    if not 0 <= smoothing <= 1:
        raise ValueError("label_smoothing must be from 0 to 1, got", smoothing)


def _compute(logits, target, weight, reduction):
    """A function that gives loss and lse in the shapes of the results, and writes the gradient to
    `out`, unless that is empty.
    """
    dtype, reduction = float_array(logits, "logits"), constant(reduction, "reduction", str)
    if reduction not in ("none", "mean", "sum"):
        raise TypingError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
    if not (is_none(weight) or (isinstance(weight, types.Array) and weight.ndim == 1)):
        raise TypingError(f"in compiled code weight must be an array of one axis, got {weight}")
    no_weight = is_none(weight)
    per_row, mean = reduction == "none", reduction == "mean"
    targets, shaped = _targets(target, logits), per_row_result(logits.ndim)
    loop, scan = loop_over(_softmax_loss.run), loop_over(run_scan)
    labelled = not (isinstance(target, types.Array) and isinstance(target.dtype, types.Float))
    result = jitable(
        (lambda losses, reduced, shape, axis: shaped(losses, shape, axis))
        if per_row
        else (lambda losses, reduced, shape, axis: dtype(reduced))
    )

    @raising
    def weights(weight, n, every_class):
        if no_weight:
            return np.ones(n if every_class else 0, dtype)
        if weight.size != n:
            raise ValueError(f"weight must have {n} elements, one per class, got {weight.size}")
        return np.ascontiguousarray(weight).astype(dtype)

    @jitable
    def compute(logits, target, weight, ignore_index, label_smoothing, z_loss, axis, out):
        (outer, n, inner), at = fold_shape(logits.shape, axis)
        smoothing = float(label_smoothing)
        _check_smoothing(smoothing)
        labels, probabilities = targets(target, logits.shape, at, ignore_index, out)
        every_class = smoothing != 0 or not labelled
        w = weights(weight, n, every_class)
        denominator, wrong = float(outer * inner) if mean else 1.0, np.empty(0, np.intp)
        if labelled:
            blocks = block_count(labels.size)
            sums, bad = np.zeros(blocks), np.full(blocks, -1)
            given = read_only(labels), read_only(w)
            scan(labels.size, blocks, *given, n, ignore_index, sums, bad)
            denominator = in_order(sums) if mean else 1.0
            if (bad >= 0).any():
                wrong = _ignore_invalid(labels, n, ignore_index)
        losses = np.empty(outer * inner if per_row else 0, dtype)
        lse, none = np.empty(outer * inner, dtype), np.empty(0, dtype)
        rows = _softmax_loss.Rows(
            read_only(labels), read_only(w), read_only(none), losses, lse, none, none
        )
        uniform_share = smoothing / n if n else 0.0
        uniform_total = uniform_share * _exact_sum(w) if smoothing else 0.0
        options = _softmax_loss.Options(
            ignore_index, denominator, 1.0 - smoothing, uniform_share, every_class, uniform_total,
            float(z_loss), False, _softmax_loss.PLAIN,
        )  # fmt: skip
        sums = np.zeros(task_count(outer, n, inner))
        x = planes_of(separate(logits, out), n * inner)
        planes = x, probabilities, contiguous_out(out, n * inner)
        loop(logits.size, sums.size, *planes, rows, options, outer, n, inner, sums)
        if wrong.size:
            sums[0], lse[wrong] = np.nan, np.nan
            if per_row:
                losses[wrong] = np.nan
            if out.size:
                _fill_with_nan(wrong, out, n, inner)
        loss = result(losses, in_order(sums) / denominator, logits.shape, at)
        return loss, shaped(lse, logits.shape, at)

    return compute


@jitable
def _exact_sum(a):
    total, error = 0.0, 0.0
    for value in a:
        total, error = add_compensated(total, error, np.float64(value))
    return total + error


@declared(fastce.cross_entropy)
def _cross_entropy(
    logits, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0,
    z_loss=0.0, axis=-1, return_lse=False,
):  # fmt: skip
    with_lse = constant(return_lse, "return_lse", bool)
    compute, dtype = _compute(logits, target, weight, reduction), logits.dtype
    empty = (0,) * logits.ndim

    def cross_entropy(
        logits, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0,
        z_loss=0.0, axis=-1, return_lse=False,
    ):  # fmt: skip
        loss, lse = compute(
            logits, target, weight, ignore_index, label_smoothing, z_loss, axis,
            np.empty(empty, dtype),
        )  # fmt: skip
        if with_lse:
            return loss, lse
        return loss

    return cross_entropy


@declared(fastce.cross_entropy_with_grad)
def _cross_entropy_with_grad(
    logits, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0,
    z_loss=0.0, axis=-1, out=None,
):  # fmt: skip
    compute, result_of = _compute(logits, target, weight, reduction), result_array(out, logits)

    def cross_entropy_with_grad(
        logits, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0,
        z_loss=0.0, axis=-1, out=None,
    ):  # fmt: skip
        grad = result_of(out, logits.shape)
        loss, _ = compute(
            logits, target, weight, ignore_index, label_smoothing, z_loss, axis, grad
        )  # fmt: skip
        return loss, grad

    return cross_entropy_with_grad
