"""Cross-entropy and nll_loss, forward, backward and both in a single pass, on NVIDIA GPUs.

`_softmax_loss/` has the kernels. Labels are not checked (that needs the host): one out of range
makes its row NaN, and nothing is read for it.
"""

import numpy as np
from numba import cuda

from . import _arrays, _launch, _ptx
from ._loss import number_fields
from ._math import device
from ._reduce import reduce_of
from ._softmax_loss.formulas import INVALID, VALID, read_label
from ._softmax_loss.launch import run
from ._storage import load_number

INF = np.float64(np.inf)
_sum_f64, _max_f64 = reduce_of("float64").group_sum, reduce_of("float64").block_max


def scan_target(target, weight, stats, *, classes, ignore_index, threads):
    with _arrays.on_device((target, weight), (stats,)) as (target, weight, stats):
        labels = (target.address, target.code, *number_fields(weight), classes, ignore_index)
        count = target.shape[0] * target.shape[1]
        _launch.over_rows(_scan, _scan_again, count, 2, target, labels, (stats.address,))


def cross_entropy(
    logits, target, weight, loss, lse, *, denominator, ignore_index, label_smoothing, z_loss,
    threads,
):  # fmt: skip
    with _arrays.on_device((logits, target, weight), (loss, lse)) as views:
        logits, target, weight, loss, lse = views
        run(
            _mode(logits, target, label_smoothing), logits, target, weight, loss, None, lse=lse,
            denominator=denominator, ignore_index=ignore_index, label_smoothing=label_smoothing,
            z_loss=z_loss,
        )  # fmt: skip


def cross_entropy_backward(
    grad_loss, logits, target, weight, grad, *, denominator, ignore_index, label_smoothing, z_loss,
    threads,
):  # fmt: skip
    with _arrays.on_device((grad_loss, logits, target, weight), (grad,)) as views:
        grad_loss, logits, target, weight, grad = views
        run(
            _mode(logits, target, label_smoothing), logits, target, weight, None, grad,
            grad_loss=grad_loss, denominator=denominator, ignore_index=ignore_index,
            label_smoothing=label_smoothing, z_loss=z_loss,
        )  # fmt: skip


def cross_entropy_with_grad(
    logits, target, weight, loss, grad, *, denominator, ignore_index, label_smoothing, z_loss,
    threads,
):  # fmt: skip
    with _arrays.on_device((logits, target, weight), (loss, grad)) as views:
        logits, target, weight, loss, grad = views
        run(
            _mode(logits, target, label_smoothing), logits, target, weight, loss, grad,
            denominator=denominator, ignore_index=ignore_index, label_smoothing=label_smoothing,
            z_loss=z_loss,
        )  # fmt: skip


def nll_loss(log_probs, target, weight, loss, *, denominator, ignore_index, threads):
    with _arrays.on_device((log_probs, target, weight), (loss,)) as views:
        log_probs, target, weight, loss = views
        options = {"denominator": denominator, "ignore_index": ignore_index}
        run("pick", log_probs, target, weight, loss, None, **options)


def nll_loss_backward(grad_loss, target, weight, grad, *, denominator, ignore_index, threads):
    with _arrays.on_device((grad_loss, target, weight), (grad,)) as views:
        grad_loss, target, weight, grad = views
        options = {"denominator": denominator, "ignore_index": ignore_index}
        run("pick", grad, target, weight, None, grad, grad_loss=grad_loss, **options)


def _mode(logits, target, label_smoothing):
    if len(target.shape) == 3:
        return "probs" if target.dtype == logits.dtype else "wide"
    return "smooth" if label_smoothing else "label"


@cuda.jit
def _scan(labels, code, weight, weight_code, classes, ignore_index, count, each, out, stats):
    """The first row with a label out of range, and the sum of the weights of the others."""
    begin = np.int64(cuda.blockIdx.x) * each
    end = min(begin + each, count)
    first, total = -INF, np.float64(0)  # minus the row's number: the first row has the largest
    row = begin + cuda.threadIdx.x
    while row < end:
        y, label_status = read_label(labels, row, code, classes, ignore_index)
        if label_status == INVALID:
            first = max(first, -np.float64(row))
        elif label_status == VALID:
            total += load_number(weight, y, weight_code) if weight != 0 else np.float64(1)
        row += cuda.blockDim.x
    _write_scan(first, total, out, stats)


@cuda.jit
def _scan_again(pairs, count, each, out, stats):
    """The same, of the results of blocks."""
    first, total = -INF, np.float64(0)
    i = np.int64(cuda.threadIdx.x)
    while i < count:
        first = max(first, _ptx.load_f64(pairs + 16 * i))
        total += _ptx.load_f64(pairs + 16 * i + 8)
        i += cuda.blockDim.x
    _write_scan(first, total, out, stats)


@device
def _write_scan(first, total, out, stats):
    first = _max_f64(first)
    total = _sum_f64(total, np.int64(cuda.blockDim.x))
    if cuda.threadIdx.x == 0:
        if out != 0:
            _ptx.store_f64(out + 16 * cuda.blockIdx.x, first)
            _ptx.store_f64(out + 16 * cuda.blockIdx.x + 8, total)
        else:
            _ptx.store_f64(stats, np.float64(-1) if first == -INF else -first)
            _ptx.store_f64(stats + 8, total)
