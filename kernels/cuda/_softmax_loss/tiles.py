"""Losses of many short rows: see `_tiles.py`."""

from functools import cache

import numpy as np
from numba import cuda

from .. import _ptx
from .._reduce import SCRATCH, reduce_of
from .._storage import storage_of
from .._tiles import tiles_of
from .formulas import IGNORED, VALID, LossOptions, grad_scale_of, loss_of, writes_loss


@cache
def tiles_kernel_of(name, mode, grads):
    storage, tiles, loss = storage_of(name), tiles_of(name), loss_of(name, mode)
    real, size, number, load = storage.real, storage.size, storage.real_size, storage.load
    zero, nan = real(0), real(np.nan)
    empty_state, no_sums = storage.empty_state, loss.no_sums
    shared_load, shared_store = storage.shared_load, storage.shared_store
    load_tile, store_tile, row_state = tiles.load_tile, tiles.store_tile, tiles.row_state
    load_target_tile = tiles_of("float32").load_tile if mode == "wide" else load_tile
    target_size = loss.target_size
    label_of, label_prob, put_loss = loss.label_of, loss.label_prob, loss.put_loss
    target_prob, add_gap = loss.target_prob, loss.add_gap
    transformed_prob, grad_terms = loss.transformed_prob, loss.grad_terms
    logit_grad = loss.logit_grad
    sum_f64 = reduce_of("float64").group_sum
    is_probs, is_pick, is_label = loss.is_probs, loss.is_pick, loss.is_label

    @cuda.jit
    def tiles_kernel(
        logits, target, grad, step, target_step, grad_step, count, n, options: LossOptions,
        inverse, pitch,
    ):  # fmt: skip
        thread = np.int64(cuda.threadIdx.x)
        begin = np.int64(cuda.blockIdx.x) * cuda.blockDim.x
        rows_here = min(np.int64(cuda.blockDim.x), count - begin)
        row = begin + thread
        tile = np.int64(_ptx.dynamic_shared()) + SCRATCH
        to_t = cuda.blockDim.x * pitch * number if is_probs else np.int64(0)
        if not is_pick:
            load_tile(logits + begin * step * size, step, rows_here, n, inverse, pitch, tile)
        if is_probs:
            t = target + begin * target_step * target_size
            load_target_tile(t, target_step, rows_here, n, inverse, pitch, tile + to_t)
        my_row = tile + thread * pitch * number
        value = np.float64(0)
        if thread < rows_here:
            y, label_status = label_of(target, row, n, options)
            is_valid = label_status == VALID
            q_y, x_y = zero, zero
            if is_valid and not is_probs:
                q_y = label_prob(y, options)
                if is_pick:
                    x_y = load(logits + (row * step + y) * size) if not grads else zero
                else:
                    x_y = shared_load(np.uint32(my_row + y * number))
            state, sums = empty_state, no_sums
            if not is_pick:
                state = row_state(my_row, n)
            if not is_pick and not is_label:
                for k in range(n):
                    at = my_row + k * number
                    t_k = shared_load(np.uint32(at + to_t))
                    q = target_prob(t_k, k, options)
                    sums = add_gap(shared_load(np.uint32(at)), q, state.row_max, sums)
            if writes_loss(options):
                value = put_loss(row, label_status, state, sums, x_y, q_y, options)
            if grads:
                grad_scale = real(grad_scale_of(options, row))
                fill_value = zero if label_status == IGNORED else nan
                if is_pick:
                    for k in range(n):
                        grad_k = zero if is_valid else fill_value
                        shared_store(np.uint32(my_row + k * number), grad_k)
                    if is_valid:
                        shared_store(np.uint32(my_row + y * number), -q_y * grad_scale)
                else:
                    q_y = transformed_prob(q_y, state, x_y, options)
                    terms = grad_terms(state, sums, q_y, options)
                    for k in range(n):
                        at = my_row + k * number
                        q = zero
                        if not is_label:
                            t_k = shared_load(np.uint32(at + to_t))
                            q = target_prob(t_k, k, options)
                        if not is_probs and k == y:
                            q += q_y
                        x_k = shared_load(np.uint32(at))
                        grad_k = logit_grad(x_k, q, terms) * grad_scale
                        shared_store(np.uint32(at), grad_k if is_valid else fill_value)
        if options.sums != 0:
            value = sum_f64(value, np.int64(cuda.blockDim.x))
            if thread == 0:
                _ptx.store_f64(options.sums + 8 * cuda.blockIdx.x, value)
        if grads:
            out = grad + begin * grad_step * size
            store_tile(out, grad_step, rows_here, n, inverse, pitch, tile)

    return tiles_kernel
