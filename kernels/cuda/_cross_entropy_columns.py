"""Cross-entropy where classes lie apart in memory: see `cross_entropy.py` and `_columns.py`."""

from functools import cache

import numpy as np
from numba import cuda

from . import _ptx
from ._columns import WIDTH, columns_of, first_of_column
from ._loss import COUNTS, IGNORED, PROBABILITIES, loss_of, scale_of
from ._reduce import reduce_of
from ._storage import storage_of


@cache
def columns_kernel_of(name, mode, grads):
    storage, columns, loss = storage_of(name), columns_of(name), loss_of(name, mode)
    real, size, load, store = storage.real, storage.size, storage.load, storage.store
    zero, one, nan, lowest = real(0), real(1), real(np.nan), real(-np.inf)
    gather_column, column_state = columns.gather_column, columns.column_state
    column_sum, warp_sum_f64 = columns.column_sum, reduce_of("float64").warp_sum
    label_of, label_share, put_row = loss.label_of, loss.label_share, loss.put_row
    load_target, target_size = loss.load_target, loss.target_size
    wanted, add_wanted, moved = loss.wanted, loss.add_wanted, loss.moved
    loss_and_lse, pulls, slope = loss.loss_and_lse, loss.pulls, loss.slope
    steepened, is_probs, is_pick = loss.steepened, mode in PROBABILITIES, mode == "pick"
    is_label = mode in ("label", "curve")  # nothing is wanted of the other classes

    @cuda.jit
    def columns_kernel(
        logits, target, grad, step, target_step, grad_step, count, n,
        code, weight, weight_code, lses, losses, sums, grad_loss, grad_loss_code,
        grad_loss_step, upstream, denominator, stats, ignore_index, keep, spread, z_loss,
        alpha, gamma, power, epsilon, beta,
        inner,
    ):  # fmt: skip
        curve, beta_ = (alpha, gamma, power, epsilon, beta), real(beta)
        column = np.int64(cuda.blockIdx.x) * WIDTH + cuda.threadIdx.x
        height, y_thread = cuda.blockDim.y, np.int64(cuda.threadIdx.y)
        live = column < count
        says, y = IGNORED, np.int64(0)
        if live:
            y, says = label_of(target, column, code, n, ignore_index)
        counts = says == COUNTS
        classes = n if live else np.int64(0)
        x = logits + first_of_column(column, inner, step) * size
        t = target + first_of_column(column, inner, target_step) * target_size if is_probs else x
        keep_, spread_ = real(keep), real(spread)
        q_y, x_y = zero, zero
        if counts and not is_probs:
            q_y = label_share(y, weight, weight_code, keep_)
            if not (is_pick and grads):
                x_y = load(x + y * inner * size)
        top, below, ties, cost, mass = lowest, zero, zero, zero, zero
        if not is_pick:
            if is_label and counts:
                top, below, ties = gather_column(x, inner * size, classes)
            k = y_thread
            while k < classes and counts and not is_label:
                t_k = load_target(t, k * inner) if is_probs else zero
                q = wanted(t_k, k, weight, weight_code, keep_, spread_)
                x_k = load(x + k * inner * size)
                top, below, ties, cost, mass = add_wanted(x_k, q, top, below, ties, cost, mass)
                k += height
            new_top, new_below, new_ties = column_state(top, below, ties)
            if not is_label:
                cost = moved(cost, mass, below, ties, top, new_top)
                cost, mass = column_sum(cost), column_sum(mass)
            top, below, ties = new_top, new_below, new_ties
        value = np.float64(0)
        if live and y_thread == 0 and (losses != 0 or sums != 0 or lses != 0):
            row_loss, row_lse = loss_and_lse(
                top, below, ties, cost, mass, x_y, q_y, real(z_loss), curve
            )
            value = put_row(column, says, row_loss, row_lse, losses, lses, denominator, stats)
        if sums != 0 and y_thread == 0:  # which is one warp
            value = warp_sum_f64(value, WIDTH)
            if cuda.threadIdx.x == 0:
                _ptx.store_f64(sums + 8 * cuda.blockIdx.x, value)
        if grads:
            out = grad + first_of_column(column, inner, grad_step) * size
            nothing = zero if says == IGNORED else nan
            scale = one
            if counts:
                scale = real(
                    scale_of(
                        grad_loss,
                        grad_loss_code,
                        column,
                        grad_loss_step,
                        upstream,
                        denominator,
                        stats,
                    )
                )
            q_y = steepened(q_y, top, below, ties, x_y, curve)
            log_total, part_of, pull = pulls(top, below, ties, cost, mass, q_y, real(z_loss), beta_)
            k = y_thread
            while k < classes:
                at = k * inner * size
                at_k = nothing
                if counts:
                    if is_pick:
                        at_k = -q_y * scale if k == y else zero
                    else:
                        q = zero
                        if not is_label:
                            t_k = load_target(t, k * inner) if is_probs else zero
                            q = wanted(t_k, k, weight, weight_code, keep_, spread_)
                        if not is_probs and k == y:
                            q += q_y
                        at_k = slope(load(x + at), q, top, log_total, part_of, pull, beta_) * scale
                store(out + at, at_k)
                k += height

    return columns_kernel
