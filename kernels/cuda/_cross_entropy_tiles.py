"""Cross-entropy of many short rows: see `cross_entropy.py` and `_tiles.py`."""

from functools import cache

import numpy as np
from numba import cuda

from . import _ptx
from ._loss import COUNTS, IGNORED, PROBABILITIES, loss_of, scale_of
from ._reduce import SCRATCH, reduce_of
from ._storage import storage_of
from ._tiles import tiles_of


@cache
def tiles_kernel_of(name, mode, grads):
    storage, tiles, loss = storage_of(name), tiles_of(name), loss_of(name, mode)
    real, size, number, load = storage.real, storage.size, storage.real_size, storage.load
    zero, nan, lowest = real(0), real(np.nan), real(-np.inf)
    shared_load, shared_store = storage.shared_load, storage.shared_store
    bring, take, walk = tiles.bring, tiles.take, tiles.walk
    bring_target = tiles_of("float32").bring if mode == "wide" else bring
    target_size = loss.target_size
    label_of, label_share, put_row = loss.label_of, loss.label_share, loss.put_row
    wanted, add_cost, loss_and_lse = loss.wanted, loss.add_cost, loss.loss_and_lse
    pulls, slope, sum_f64 = loss.pulls, loss.slope, reduce_of("float64").group_sum
    steepened, is_probs, is_pick = loss.steepened, mode in PROBABILITIES, mode == "pick"
    is_label = mode in ("label", "curve")  # nothing is wanted of the other classes

    @cuda.jit
    def tiles_kernel(
        logits, target, grad, step, target_step, grad_step, count, n,
        code, weight, weight_code, lses, losses, sums, grad_loss, grad_loss_code,
        grad_loss_step, upstream, denominator, stats, ignore_index, keep, spread, z_loss,
        alpha, gamma, power, epsilon, beta,
        inverse, pitch,
    ):  # fmt: skip
        curve, beta_ = (alpha, gamma, power, epsilon, beta), real(beta)
        thread = np.int64(cuda.threadIdx.x)
        begin = np.int64(cuda.blockIdx.x) * cuda.blockDim.x
        rows_here = min(np.int64(cuda.blockDim.x), count - begin)
        row = begin + thread
        tile = np.int64(_ptx.dynamic_shared()) + SCRATCH
        to_t = cuda.blockDim.x * pitch * number if is_probs else np.int64(0)
        if not is_pick:
            bring(logits + begin * step * size, step, rows_here, n, inverse, pitch, tile)
        if is_probs:
            t = target + begin * target_step * target_size
            bring_target(t, target_step, rows_here, n, inverse, pitch, tile + to_t)
        mine = tile + thread * pitch * number
        value = np.float64(0)
        if thread < rows_here:
            y, says = label_of(target, row, code, n, ignore_index)
            counts = says == COUNTS
            keep_, spread_ = real(keep), real(spread)
            q_y, x_y = zero, zero
            if counts and not is_probs:
                q_y = label_share(y, weight, weight_code, keep_)
                if is_pick:
                    x_y = load(logits + (row * step + y) * size) if not grads else zero
                else:
                    x_y = shared_load(np.uint32(mine + y * number))
            top, below, ties, cost, mass = lowest, zero, zero, zero, zero
            if not is_pick:
                top, below, ties = walk(mine, n)
            if not is_pick and not is_label:
                for k in range(n):
                    at = mine + k * number
                    t_k = shared_load(np.uint32(at + to_t))
                    q = wanted(t_k, k, weight, weight_code, keep_, spread_)
                    cost, mass = add_cost(shared_load(np.uint32(at)), q, top, cost, mass)
            if losses != 0 or sums != 0 or lses != 0:
                row_loss, row_lse = loss_and_lse(
                    top, below, ties, cost, mass, x_y, q_y, real(z_loss), curve
                )
                value = put_row(row, says, row_loss, row_lse, losses, lses, denominator, stats)
            if grads:
                scale = real(
                    scale_of(
                        grad_loss, grad_loss_code, row, grad_loss_step, upstream, denominator, stats
                    )
                )
                nothing = zero if says == IGNORED else nan
                if is_pick:
                    for k in range(n):
                        at_k = zero if counts else nothing
                        shared_store(np.uint32(mine + k * number), at_k)
                    if counts:
                        shared_store(np.uint32(mine + y * number), -q_y * scale)
                else:
                    q_y = steepened(q_y, top, below, ties, x_y, curve)
                    log_total, part_of, pull = pulls(
                        top, below, ties, cost, mass, q_y, real(z_loss), beta_
                    )
                    for k in range(n):
                        at = mine + k * number
                        q = zero
                        if not is_label:
                            t_k = shared_load(np.uint32(at + to_t))
                            q = wanted(t_k, k, weight, weight_code, keep_, spread_)
                        if not is_probs and k == y:
                            q += q_y
                        x_k = shared_load(np.uint32(at))
                        at_k = slope(x_k, q, top, log_total, part_of, pull, beta_) * scale
                        shared_store(np.uint32(at), at_k if counts else nothing)
        if sums != 0:
            value = sum_f64(value, np.int64(cuda.blockDim.x))
            if thread == 0:
                _ptx.store_f64(sums + 8 * cuda.blockIdx.x, value)
        if grads:
            take(grad + begin * grad_step * size, grad_step, rows_here, n, inverse, pitch, tile)

    return tiles_kernel
