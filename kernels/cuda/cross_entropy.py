"""Cross-entropy and nll_loss, forward, backward and both in one trip, on NVIDIA GPUs.

The three shapes of work of `log_softmax.py` are in `_cross_entropy_*.py`; `_loss.py` has what a row
costs and its slope, and the four kinds of target, for each of which kernels are compiled with and
without gradient. Here is what calls them, and what adds up the rows: losses that are summed go to
memory as one float64 for each row or block, which `_add_up` adds in a fixed order.

Labels are not checked (that needs the host): one out of range makes its row NaN, and nothing is
read for it.
"""

from functools import cache
from types import SimpleNamespace

import numpy as np
from numba import cuda

from . import _arrays, _device, _launch, _ptx
from ._cross_entropy_columns import columns_kernel_of
from ._cross_entropy_rows import dense_rows_kernel_of, rows_kernel_of
from ._cross_entropy_tiles import tiles_kernel_of
from ._loss import BAD, COUNTS, PROBABILITIES, denominator_of, read_label
from ._math import device
from ._reduce import reduce_of
from ._storage import load_number

PLAIN = (1.0, 0.0, 0.0, 0.0, 0.0)  # a curve, see `_curves.py`
INF = np.float64(np.inf)
_sum_f64, _max_f64 = reduce_of("float64").group_sum, reduce_of("float64").block_max


def scan_target(target, weight, stats, *, classes, ignore_index, threads):
    with _arrays.on_device((target, weight), (stats,)) as (target, weight, stats):
        labels = (target.address, target.code, *_number(weight), classes, ignore_index)
        count = target.shape[0] * target.shape[1]
        _launch.over_rows(_scan, _scan_again, count, 2, target, labels, (stats.address,))


def cross_entropy(
    logits,
    target,
    weight,
    loss,
    lse,
    *,
    denominator,
    ignore_index,
    label_smoothing,
    z_loss,
    threads,
):
    with _arrays.on_device((logits, target, weight), (loss, lse)) as views:
        logits, target, weight, loss, lse = views
        mode = _mode(logits, target, label_smoothing)
        options = denominator, ignore_index, label_smoothing, z_loss
        _run(mode, logits, target, weight, loss, None, options, lse=lse)


def cross_entropy_backward(
    grad_loss,
    logits,
    target,
    weight,
    grad,
    *,
    denominator,
    ignore_index,
    label_smoothing,
    z_loss,
    threads,
):
    with _arrays.on_device((grad_loss, logits, target, weight), (grad,)) as views:
        grad_loss, logits, target, weight, grad = views
        mode = _mode(logits, target, label_smoothing)
        options = denominator, ignore_index, label_smoothing, z_loss
        _run(mode, logits, target, weight, None, grad, options, grad_loss=grad_loss)


def cross_entropy_with_grad(
    logits,
    target,
    weight,
    loss,
    grad,
    *,
    denominator,
    ignore_index,
    label_smoothing,
    z_loss,
    threads,
):
    with _arrays.on_device((logits, target, weight), (loss, grad)) as views:
        logits, target, weight, loss, grad = views
        mode = _mode(logits, target, label_smoothing)
        options = denominator, ignore_index, label_smoothing, z_loss
        _run(mode, logits, target, weight, loss, grad, options)


def nll_loss(log_probs, target, weight, loss, *, denominator, ignore_index, threads):
    with _arrays.on_device((log_probs, target, weight), (loss,)) as views:
        log_probs, target, weight, loss = views
        options = denominator, ignore_index, 0.0, 0.0
        _run("pick", log_probs, target, weight, loss, None, options)


def nll_loss_backward(grad_loss, target, weight, grad, *, denominator, ignore_index, threads):
    with _arrays.on_device((grad_loss, target, weight), (grad,)) as views:
        grad_loss, target, weight, grad = views
        options = denominator, ignore_index, 0.0, 0.0
        _run("pick", grad, target, weight, None, grad, options, grad_loss=grad_loss)


def _mode(logits, target, label_smoothing):
    if len(target.shape) == 3:
        return "probs" if target.dtype == logits.dtype else "wide"
    return "smooth" if label_smoothing else "label"


def _number(view):
    """(address, code) of an array that is read one number at a time, or zeros."""
    return (0, 0) if view is None else (view.address, view.code)


def _run(
    mode, logits, target, weight, loss, grad, options, *, lse=None, grad_loss=None, curve=PLAIN,
):  # fmt: skip
    """Work on all rows, and add up their losses where `loss` is one number."""
    denominator, ignore_index, label_smoothing, z_loss = options
    label_smoothing = float(label_smoothing)
    outer, n, inner = logits.shape
    upstream, stats = 1.0, 0
    if isinstance(grad_loss, float):
        upstream, grad_loss = grad_loss, None
    if isinstance(denominator, _arrays.View):  # on the GPU, for which the host does not wait
        denominator, stats = 1.0, denominator.address
    plan = _launch.plan_for(
        logits,
        keeps=1 if mode in ("label", "curve") else 0,
        tiled=2 if mode in PROBABILITIES else 1,
        splits=mode in ("label", "curve"),
        most_lanes=_launch.CURVED if mode in ("curve", "entropy") else 1024,
    )
    summed = loss is not None and loss.shape == (1, 1)
    sums = 0
    if summed:
        buffer = _device.allocate(8 * plan.units, logits.stream, logits.device)
        sums = _device.address(buffer)
    nothing = _arrays.View(0, (), 0, logits.dtype, 0, 0)
    _launch.run(
        _kernels(logits.dtype, mode, grad is not None),
        plan,
        logits,
        (logits, target or nothing, grad or nothing),
        (
            0 if mode in PROBABILITIES or target is None else target.code,
            *_number(weight),
            0 if lse is None else lse.address,
            0 if loss is None or summed else loss.address,
            sums,
            *_number(grad_loss),
            0 if grad_loss is None or grad_loss.shape == (1, 1) else 1,
            upstream,
            float(denominator),
            stats,
            ignore_index,
            0.0 if target is None else 1.0 - label_smoothing,  # the label's part of q
            label_smoothing / n if n else 0.0,
            float(z_loss),
            *curve,
        ),
        maps=grad is not None,
    )
    if summed:
        units = plan.units if outer * inner else 0
        last = (loss.address, loss.code, float(denominator), stats)
        _launch.over_rows(_add_up, _add_up, units, 1, logits, (sums,), last)


@cuda.jit
def _add_up(values, count, each, out, loss, loss_code, denominator, stats):
    """Sum float64 numbers; the last launch divides the sum and writes the loss."""
    begin = np.int64(cuda.blockIdx.x) * each
    end = min(begin + each, count)
    total = np.float64(0)
    i = begin + cuda.threadIdx.x
    while i < end:
        total += _ptx.load_f64(values + 8 * i)
        i += cuda.blockDim.x
    total = _sum_f64(total, np.int64(cuda.blockDim.x))
    if cuda.threadIdx.x == 0:
        if out != 0:
            _ptx.store_f64(out + 8 * cuda.blockIdx.x, total)
        else:
            total /= denominator_of(denominator, stats)
            if loss_code == 8:
                _ptx.store_f64(loss, total)
            else:
                _ptx.store_f32(loss, np.float32(total))


@cuda.jit
def _scan(labels, code, weight, weight_code, classes, ignore_index, count, each, out, stats):
    """The first row with a label out of range, and the sum of the weights of the others."""
    begin = np.int64(cuda.blockIdx.x) * each
    end = min(begin + each, count)
    first, total = -INF, np.float64(0)  # the row's number, negative: so the first is the largest
    row = begin + cuda.threadIdx.x
    while row < end:
        y, says = read_label(labels, row, code, classes, ignore_index)
        if says == BAD:
            first = max(first, -np.float64(row))
        elif says == COUNTS:
            total += load_number(weight, y, weight_code) if weight != 0 else np.float64(1)
        row += cuda.blockDim.x
    _put_scan(first, total, out, stats)


@cuda.jit
def _scan_again(pairs, count, each, out, stats):
    """The same of what blocks have found."""
    first, total = -INF, np.float64(0)
    i = np.int64(cuda.threadIdx.x)
    while i < count:
        first = max(first, _ptx.load_f64(pairs + 16 * i))
        total += _ptx.load_f64(pairs + 16 * i + 8)
        i += cuda.blockDim.x
    _put_scan(first, total, out, stats)


@device
def _put_scan(first, total, out, stats):
    first = _max_f64(first)
    total = _sum_f64(total, np.int64(cuda.blockDim.x))
    if cuda.threadIdx.x == 0:
        if out != 0:
            _ptx.store_f64(out + 16 * cuda.blockIdx.x, first)
            _ptx.store_f64(out + 16 * cuda.blockIdx.x + 8, total)
        else:
            _ptx.store_f64(stats, np.float64(-1) if first == -INF else -first)
            _ptx.store_f64(stats + 8, total)


@cache
def _kernels(name, mode, grads):
    """The kernels for one dtype and kind of target, with gradient or without."""
    dense = mode in ("smooth", *PROBABILITIES, "entropy")
    rows = dense_rows_kernel_of if dense else rows_kernel_of
    return SimpleNamespace(
        rows=rows(name, mode, grads),
        tiles=tiles_kernel_of(name, mode, grads),
        columns=columns_kernel_of(name, mode, grads),
    )
