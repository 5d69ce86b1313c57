"""What all losses share: the gradient of the loss, the denominator, and the sum over rows.

Losses that are summed go to memory as one float64 for each row or block, which `sum_losses` adds in
a fixed order.
"""

import numpy as np
from numba import cuda

from . import _launch, _ptx
from ._math import device
from ._reduce import reduce_of
from ._storage import load_number

_sum_f64 = reduce_of("float64").group_sum


def number_fields(view):
    """(address, code) of an array that a kernel reads one number at a time; zeros for None."""
    return (0, 0) if view is None else (view.address, view.code)


def grad_loss_fields(grad_loss):
    """`grad_loss`, a number, an array or None, as (address, code, step, number)."""
    if grad_loss is None or isinstance(grad_loss, float):
        return 0, 0, 0, 1.0 if grad_loss is None else grad_loss
    return *number_fields(grad_loss), int(any(n > 1 for n in grad_loss.shape)), 1.0


@device
def grad_loss_of(options, row):
    """The gradient of the loss of a row, as the caller gave it."""
    if options.grad_loss != 0:
        return load_number(options.grad_loss, row * options.grad_loss_step, options.grad_loss_code)
    return options.grad_loss_number


@device
def denominator_of(denominator, stats):
    """A number, or the one that `scan_target` wrote."""
    return load_number(stats, 1, 8) if stats != 0 else denominator


def sum_losses(sums, count, loss, denominator, stats, where):
    """Write the sum of `count` float64 at address `sums`, over the denominator, to `loss`."""
    last = loss.address, loss.code, denominator, stats
    _launch.over_rows(add_up, add_up, count, 1, where, (sums,), last)


@cuda.jit
def add_up(values, count, each, out, loss, loss_code, denominator: float, stats):
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
