"""The losses and softmax in compiled code of users."""

import numba
import numpy as np
from numba import types
from numba.core.errors import TypingError
from numba.core.targetconfig import ConfigStack
from numba.extending import overload, register_jitable
from numba.np.unsafe.ndarray import to_fixed_tuple

import fastce

from ..kernels.numba import cross_entropy as ce
from ..kernels.numba import log_softmax as ls
from ..kernels.numba._compile import SERIAL_BELOW
from ..kernels.numba._labels import block_count
from ..kernels.numba._math import add_compensated
from ..kernels.numba._panels import task_count
from ..kernels.numba._parts import INNER, OPTIONS
from ..kernels.numba._storage import contiguous_in, contiguous_out, read_only

# ---- what is known when a call is compiled ---------------------------------------------------

# Compiled in the same way wherever it is called: a user's fastmath would otherwise be inherited.
_jitable = register_jitable(**INNER)
# For exceptions with numbers in them, see INNER.
_raising = register_jitable(**OPTIONS)


def _declared(function):
    """Declares the decorated function as what `function` is in compiled code."""
    return overload(function, prefer_literal=True, jit_options=INNER)


def _float_array(a, name):
    if not (isinstance(a, types.Array) and isinstance(a.dtype, types.Float) and a.ndim):
        raise TypingError(
            f"in compiled code {name} must be an array of float64 or float32, got {a}"
        )
    return a.dtype


def _like(a, x, name):
    """Whether `a` is None; else it must be C-contiguous, of the dtype and number of axes of `x`."""
    if _is_none(a):
        return True
    fits = isinstance(a, types.Array) and (a.dtype, a.ndim, a.layout) == (x.dtype, x.ndim, "C")
    if not fits or not a.mutable:
        raise TypingError(
            f"in compiled code {name} must be a writable C-contiguous array of {x.dtype} with "
            f"{x.ndim} axes, got {a}"
        )
    return False


def _is_none(a):
    return a is None or isinstance(a, types.NoneType) or getattr(a, "value", 0) is None


def _constant(a, name, kinds):
    """The value of an argument that decides what is compiled."""
    a = getattr(a, "literal_value", getattr(a, "value", a))
    if not isinstance(a, kinds):
        raise TypingError(f"in compiled code {name} must be a constant, got {a}")
    return a


def _loop(run):
    """A function (elements, count, *arguments) that calls `run` of kernels/numba: over threads, or
    not.

    Numba's workqueue layer cannot start a loop within a loop, so there it never is over threads.
    """
    start, flags = run.start, ConfigStack.top_or_none()
    if flags is None or not flags.auto_parallel.enabled or _workqueue():
        return _jitable(lambda elements, count, *arguments: start(False, count, *arguments))
    return _jitable(
        lambda elements, count, *arguments: start(elements >= SERIAL_BELOW, count, *arguments)
    )


def _workqueue() -> bool:
    numba.get_num_threads()  # starts the threads, so that the layer is known
    return numba.threading_layer() == "workqueue"


# ---- shapes ----------------------------------------------------------------------------------


@_raising
def _fold(shape, axis):
    """(outer, n, inner) and the axis counted from 0."""
    count = len(shape)
    if axis < -count or axis >= count:
        raise ValueError(f"axis {axis} is out of range for {count} axes")
    axis = axis % count
    outer, inner = 1, 1
    for i in range(axis):
        outer *= shape[i]
    for i in range(axis + 1, count):
        inner *= shape[i]
    return (outer, shape[axis], inner), axis


@_jitable
def _planes(x, fold):
    return contiguous_in(np.ascontiguousarray(x), fold[1] * fold[2])


@_jitable
def _apart(a, out):
    """`a` C-contiguous, in memory of its own unless that is exactly the memory of `out`."""
    a = np.ascontiguousarray(a)
    first, other = a.ctypes.data, out.ctypes.data
    same = first == other and a.nbytes == out.nbytes
    if not same and first < other + out.nbytes and other < first + a.nbytes:
        return a.copy()
    return a


@_jitable
def _no_planes(dtype):
    """What stands for an array that is not given."""
    return contiguous_in(np.empty(0, dtype), 0)


def _rows_result(ndim, keepdims=False):
    """A function (flat, shape, axis) that gives per-row numbers the shape without the axis."""
    if ndim == 1 and not keepdims:
        return _jitable(lambda flat, shape, axis: flat[0])
    axes = ndim if keepdims else ndim - 1

    @_jitable
    def shaped(flat, shape, axis):
        lengths = np.empty(axes, np.intp)
        at = 0
        for i in range(len(shape)):
            if i != axis or keepdims:
                lengths[at] = 1 if i == axis else shape[i]
                at += 1
        return flat.reshape(to_fixed_tuple(lengths, axes))

    return shaped


@_raising
def _check_out(out, x):
    if out.shape != x.shape:
        raise ValueError("out must have the shape of the input")


# ---- softmax ---------------------------------------------------------------------------------


@_declared(fastce.logsumexp)
def _logsumexp(x, axis=-1, keepdims=False, out=None):
    dtype = _float_array(x, "x")
    if not _is_none(out):
        raise TypingError("in compiled code logsumexp has no out")
    loop = _loop(ls.run_logsumexp)
    shaped = _rows_result(x.ndim, _constant(keepdims, "keepdims", bool))

    def logsumexp(x, axis=-1, keepdims=False, out=None):
        fold, axis = _fold(x.shape, axis)
        flat = np.empty(fold[0] * fold[2], dtype)
        loop(x.size, task_count(*fold), _planes(x, fold), flat, *fold)
        return shaped(flat, x.shape, axis)

    return logsumexp


def _map_rows(function, run):
    """Declares softmax or log_softmax."""

    @_declared(function)
    def declared(x, axis=-1, out=None):
        dtype, new = _float_array(x, "x"), _like(out, x, "out")
        loop = _loop(run)

        def of_new(x, axis=-1, out=None):
            fold, _ = _fold(x.shape, axis)
            result = np.empty(x.shape, dtype)
            planes = _planes(x, fold), contiguous_out(result, fold[1] * fold[2])
            loop(x.size, task_count(*fold) if x.size else 0, *planes, *fold, False)
            return result

        def into_out(x, axis=-1, out=None):
            _check_out(out, x)
            fold, _ = _fold(x.shape, axis)
            planes = _planes(_apart(x, out), fold), contiguous_out(out, fold[1] * fold[2])
            loop(x.size, task_count(*fold) if x.size else 0, *planes, *fold, False)
            return out

        return of_new if new else into_out


_map_rows(fastce.softmax, ls.run_softmax)
_map_rows(fastce.log_softmax, ls.run_log_softmax)


# ---- cross-entropy ---------------------------------------------------------------------------


@_jitable
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
        return _jitable(
            lambda target, shape, axis, ignore_index, grad: (
                _signed(np.full(1, target), ignore_index),
                _no_planes(dtype),
            )
        )
    if isinstance(target, types.Array) and isinstance(target.dtype, types.Integer):
        fits = _fits if target.ndim else _jitable(lambda target, shape, axis: True)

        @_raising
        def of_labels(target, shape, axis, ignore_index, grad):
            if not fits(target, shape, axis):
                raise ValueError("target must have the shape of the logits without the class axis")
            labels = np.ascontiguousarray(target).reshape(-1)
            return _signed(labels, ignore_index), _no_planes(dtype)

        if target.ndim == logits.ndim - 1:
            return of_labels
    elif isinstance(target, types.Array) and (target.dtype, target.ndim) == (
        logits.dtype,
        logits.ndim,
    ):

        @_raising
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
            _, n, inner = _fold(shape, axis)[0]
            return np.empty(0, np.int64), contiguous_in(_apart(t, grad), n * inner)

        return of_probabilities
    raise TypingError(
        "in compiled code target must hold class indices, of the shape of the logits without the "
        f"class axis, or probabilities of their shape and dtype; got {target} for {logits}"
    )


@_jitable
def _signed(labels, ignore_index):
    """A copy as int64. What does not fit is out of range there, too: -1 or -2."""
    result = labels.astype(np.int64)
    for row in range(labels.size):
        if labels[row] > 0 and result[row] < 0:  # of uint64
            result[row] = -1 if ignore_index != -1 else -2
    return result


@_jitable
def _set_aside(labels, classes, ignore_index):
    """The rows whose labels are out of range, which become rows to ignore."""
    wrong = (labels != ignore_index) & ((labels < 0) | (labels >= classes))
    labels[wrong] = ignore_index
    return np.nonzero(wrong)[0]


@_jitable
def _fill_with_nan(wrong, grad, classes, inner):
    flat = grad.reshape(-1)
    for row in wrong:
        first = row // inner * classes * inner + row % inner
        for k in range(classes):
            flat[first + k * inner] = np.nan


@_raising
def _check_smoothing(smoothing):
    if not 0 <= smoothing <= 1:
        raise ValueError("label_smoothing must be from 0 to 1, got", smoothing)


def _compute(logits, target, weight, reduction):
    """A function that computes loss and lse, and writes the gradient unless `grad` is empty."""
    dtype = _float_array(logits, "logits")
    if not (_is_none(weight) or (isinstance(weight, types.Array) and weight.ndim == 1)):
        raise TypingError(f"in compiled code weight must be an array of one axis, got {weight}")
    no_weight = _is_none(weight)
    per_row, mean = reduction == "none", reduction == "mean"
    targets, loop, scan = _targets(target, logits), _loop(ce.run), _loop(ce.run_scan)
    labelled = not (isinstance(target, types.Array) and isinstance(target.dtype, types.Float))

    @_raising
    def weights(weight, n, every_class):
        if no_weight:
            return np.ones(n if every_class else 0, dtype)
        if weight.size != n:
            raise ValueError(f"weight must have {n} elements, one per class, got {weight.size}")
        return np.ascontiguousarray(weight).astype(dtype)

    @_jitable
    def compute(logits, target, weight, ignore_index, smoothing, z_loss, fold, axis, out):
        outer, n, inner = fold
        _check_smoothing(smoothing)
        labels, probabilities = targets(target, logits.shape, axis, ignore_index, out)
        w = weights(weight, n, smoothing != 0 or not labelled)
        denominator, wrong = float(outer * inner) if mean else 1.0, np.empty(0, np.intp)
        if labelled:
            blocks = block_count(labels.size)
            sums, bad = np.zeros(blocks), np.full(blocks, -1)
            given = read_only(labels), read_only(w)
            scan(labels.size, blocks, *given, n, ignore_index, sums, bad)
            denominator = ce.in_order(sums) if mean else 1.0
            if (bad >= 0).any():
                wrong = _set_aside(labels, n, ignore_index)
        loss = np.empty(outer * inner if per_row else 0, dtype)
        lse = np.empty(outer * inner, dtype)
        none = np.empty(0, dtype)
        rows = ce.Rows(read_only(labels), read_only(w), read_only(none), loss, lse, none, none)
        soft = smoothing / n if n else 0.0
        options = ce.Options(
            ignore_index, denominator, z_loss, 1.0 - smoothing, soft,
            soft * (_exact_sum(w) if smoothing else 0.0),
            smoothing != 0 or not labelled, False, ce.PLAIN,
        )  # fmt: skip
        sums = np.zeros(task_count(outer, n, inner))
        grad = contiguous_out(out, n * inner)
        planes = _planes(_apart(logits, out), fold), probabilities, grad
        loop(logits.size, sums.size, *planes, rows, options, outer, n, inner, sums)
        if wrong.size:
            sums[0], lse[wrong] = np.nan, np.nan
            if per_row:
                loss[wrong] = np.nan
            if out.size:
                _fill_with_nan(wrong, out, n, inner)
        return loss, ce.in_order(sums) / denominator, lse

    return compute


@_jitable
def _exact_sum(a):
    total, error = 0.0, 0.0
    for value in a:
        total, error = add_compensated(total, error, np.float64(value))
    return total + error


def _reduction(reduction):
    value = _constant(reduction, "reduction", str)
    if value not in ("none", "mean", "sum"):
        raise TypingError(f"reduction must be 'mean', 'sum' or 'none', got {value!r}")
    return value


def _loss_result(logits, reduction):
    """A function (losses of the rows, reduced loss, shape, axis) that chooses what is returned."""
    dtype, shaped = logits.dtype, _rows_result(logits.ndim)
    if _reduction(reduction) == "none":
        return _jitable(lambda loss, reduced, shape, axis: shaped(loss, shape, axis))
    return _jitable(lambda loss, reduced, shape, axis: dtype(reduced))


@_declared(fastce.cross_entropy)
def _cross_entropy(
    logits, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0,
    z_loss=0.0, axis=-1, return_lse=False,
):  # fmt: skip
    with_lse = _constant(return_lse, "return_lse", bool)
    compute, dtype = _compute(logits, target, weight, _reduction(reduction)), logits.dtype
    shaped, no_classes = _rows_result(logits.ndim), (0,) * logits.ndim
    result = _loss_result(logits, reduction)

    def cross_entropy(
        logits, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0,
        z_loss=0.0, axis=-1, return_lse=False,
    ):  # fmt: skip
        fold, at = _fold(logits.shape, axis)
        loss, reduced, lse = compute(
            logits, target, weight, ignore_index, float(label_smoothing), float(z_loss), fold, at,
            np.empty(no_classes, dtype),
        )  # fmt: skip
        if with_lse:
            return result(loss, reduced, logits.shape, at), shaped(lse, logits.shape, at)
        return result(loss, reduced, logits.shape, at)

    return cross_entropy


@_declared(fastce.cross_entropy_with_grad)
def _cross_entropy_with_grad(
    logits, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0,
    z_loss=0.0, axis=-1, out=None,
):  # fmt: skip
    compute = _compute(logits, target, weight, _reduction(reduction))
    dtype, result = logits.dtype, _loss_result(logits, reduction)
    new = _like(out, logits, "out")

    @_jitable
    def room(logits, out):
        if new:
            return np.empty(logits.shape, dtype)
        _check_out(out, logits)
        return out

    def cross_entropy_with_grad(
        logits, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0,
        z_loss=0.0, axis=-1, out=None,
    ):  # fmt: skip
        fold, at = _fold(logits.shape, axis)
        grad = room(logits, out)
        loss, reduced, _ = compute(
            logits, target, weight, ignore_index, float(label_smoothing), float(z_loss), fold, at,
            grad,
        )  # fmt: skip
        return result(loss, reduced, logits.shape, at), grad

    return cross_entropy_with_grad
