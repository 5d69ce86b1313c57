"""Losses where classes are apart in memory: see `_columns.py`."""

from functools import cache

import numpy as np
from numba import cuda

from .. import _ptx
from .._columns import WIDTH, columns_of, first_of_column
from .._reduce import reduce_of
from .._storage import storage_of
from .formulas import IGNORED, VALID, LossOptions, Sums, grad_scale_of, loss_of, writes_loss


@cache
def columns_kernel_of(name, mode, grads):
    storage, columns, loss = storage_of(name), columns_of(name), loss_of(name, mode)
    real, size, load, store = storage.real, storage.size, storage.load, storage.store
    zero, one, nan = real(0), real(1), real(np.nan)
    empty_state, no_sums = storage.empty_state, loss.no_sums
    gather_column, column_state = columns.gather_column, columns.column_state
    column_sum, warp_sum_f64 = columns.column_sum, reduce_of("float64").warp_sum
    label_of, label_prob, put_loss = loss.label_of, loss.label_prob, loss.put_loss
    load_target, target_size = loss.load_target, loss.target_size
    target_prob, add_element = loss.target_prob, loss.add_element
    rescaled_sums, transformed_prob = loss.rescaled_sums, loss.transformed_prob
    grad_terms, logit_grad = loss.grad_terms, loss.logit_grad
    is_probs, is_pick, is_label = loss.is_probs, loss.is_pick, loss.is_label

    @cuda.jit
    def columns_kernel(
        logits, target, grad, step, target_step, grad_step, count, n, options: LossOptions, inner
    ):  # fmt: skip
        column = np.int64(cuda.blockIdx.x) * WIDTH + cuda.threadIdx.x
        height, y_thread = cuda.blockDim.y, np.int64(cuda.threadIdx.y)
        live = column < count
        label_status, y = IGNORED, np.int64(0)
        if live:
            y, label_status = label_of(target, column, n, options)
        is_valid = label_status == VALID
        classes = n if live else np.int64(0)
        x = logits + first_of_column(column, inner, step) * size
        t = target + first_of_column(column, inner, target_step) * target_size if is_probs else x
        q_y, x_y = zero, zero
        if is_valid and not is_probs:
            q_y = label_prob(y, options)
            if not (is_pick and grads):
                x_y = load(x + y * inner * size)
        state, sums = empty_state, no_sums
        if not is_pick:
            if is_label and is_valid:
                state = gather_column(x, inner * size, classes)
            k = y_thread
            while k < classes and is_valid and not is_label:
                t_k = load_target(t, k * inner) if is_probs else zero
                q = target_prob(t_k, k, options)
                state, sums = add_element(load(x + k * inner * size), q, state, sums)
                k += height
            column_total = column_state(state)
            if not is_label:
                sums = rescaled_sums(sums, state, column_total.row_max)
                sums = Sums(column_sum(sums.gap_sum), column_sum(sums.prob_sum))
            state = column_total
        value = np.float64(0)
        if live and y_thread == 0 and writes_loss(options):
            value = put_loss(column, label_status, state, sums, x_y, q_y, options)
        if options.sums != 0 and y_thread == 0:  # which is one warp
            value = warp_sum_f64(value, WIDTH)
            if cuda.threadIdx.x == 0:
                _ptx.store_f64(options.sums + 8 * cuda.blockIdx.x, value)
        if grads:
            out = grad + first_of_column(column, inner, grad_step) * size
            fill_value = zero if label_status == IGNORED else nan
            grad_scale = one
            if is_valid:
                grad_scale = real(grad_scale_of(options, column))
            q_y = transformed_prob(q_y, state, x_y, options)
            terms = grad_terms(state, sums, q_y, options)
            k = y_thread
            while k < classes:
                at = k * inner * size
                grad_k = fill_value
                if is_valid:
                    if is_pick:
                        grad_k = -q_y * grad_scale if k == y else zero
                    else:
                        q = zero
                        if not is_label:
                            t_k = load_target(t, k * inner) if is_probs else zero
                            q = target_prob(t_k, k, options)
                        if not is_probs and k == y:
                            q += q_y
                        grad_k = logit_grad(load(x + at), q, terms) * grad_scale
                store(out + at, grad_k)
                k += height

    return columns_kernel
