"""From products of queries and keys to scores, and from scores to weights.

A lane has `row_tiles * columns / 2` of them, in the order that `_attention_tiles.py` tells. Every
function here goes over them in that order, in loops that are unrolled.

On tensor cores, weights are made by ``ex2.approx`` of what the products differ by, which are not
scaled before (`unit`). They are rounded to 11 bits or fewer after that. Others are exact to 1 ULP.
"""

import math
from functools import cache
from types import SimpleNamespace

import numpy as np
from numba import cuda
from numba.cuda.libdevice import dmul_rn, fmul_rn

from .. import _ptx
from .._math import device
from .._reduce import ALL
from .._storage import storage_of
from .tiles import row_at, unrolled, uses_tensor_cores

_LOG2_E = np.float32(math.log2(math.e))


def natural_of(tiling, scale):
    """The true value of a score of 1, as the kernels of `tiling` have scores: see `unit_of`."""
    return float(scale) if uses_tensor_cores(tiling.dtype) and not tiling.general else 1.0


@cache
def scores_of(tiling):
    storage = storage_of(tiling.dtype)
    general, fast = tiling.general, uses_tensor_cores(tiling.dtype)
    columns, tiles, rows = tiling.columns, tiling.columns // 8, 2 * tiling.row_tiles
    number = storage.real_size
    load_pair = _ptx.shared_load_f64_pair if number == 8 else _ptx.shared_load_f32_pair
    count = tiling.row_tiles * tiles * 4
    real, load, maximum, exp_below = storage.real, storage.load, storage.maximum, storage.exp_below
    zero, one, lowest = real(0), real(1), real(-np.inf)
    is_raw = fast and not general
    # Rounded, as the largest score is: not in one instruction with a subtraction that follows.
    times = dmul_rn if number == 8 else fmul_rn

    @device
    def unit_of(scale):
        """By what a score is multiplied in `weight`, and by what to have its true value."""
        if is_raw:
            return real(scale) * _LOG2_E, real(scale)
        return (_LOG2_E if fast else one), one

    @device
    def weight(score, top, unit):
        """exp(score - top). The difference comes first: it is exactly 0 for the largest score,
        which a product less a rounded product, in one instruction, would not be.
        """
        if fast:
            return _ptx.exp2_approx((score - top) * unit)
        return exp_below(score, top)

    @device
    def capped(score, softcap):
        return real(softcap) * math.tanh(score / real(softcap))

    @device
    def seen(score, p, column, low, high, mask, step):
        """A score, with its element of the mask; -inf where its column is not seen."""
        if not low <= column < high:
            return lowest
        if general and p.mask != 0:
            if p.of_bytes:
                return score if _ptx.load_u8(mask + column * step) else lowest
            return score + load(mask + column * step)
        return score

    @device
    def finish_row(row, s, p, scale, softcap, first, is_edge, limits, masks, first_row, step):
        k = ((row >> 1) * tiles) * 4 + 2 * (row & 1)
        if not is_raw:
            for n in range(tiles):
                s[k + 4 * n] = times(s[k + 4 * n], real(scale))
                s[k + 4 * n + 1] = times(s[k + 4 * n + 1], real(scale))
        if general and softcap != 0:
            for n in range(tiles):
                s[k + 4 * n] = capped(s[k + 4 * n], softcap)
                s[k + 4 * n + 1] = capped(s[k + 4 * n + 1], softcap)
        if is_edge or (general and p.mask != 0):
            _ptx.stay()
            column = first + 2 * np.int32(cuda.threadIdx.x & 3)
            at = np.uint32(limits + 8 * (8 * row + np.int32(cuda.threadIdx.x >> 2 & 7)))
            from_ = np.int32(np.int32(_ptx.shared_load_u32(at)) - column)
            to = np.int32(np.int32(_ptx.shared_load_u32(np.uint32(at + 4))) - column)
            at = np.int64(0)
            if general and p.mask != 0:
                at = row_at(masks, first_row + 8 * row) + column * step
            for n in range(tiles):
                s[k + 4 * n] = seen(s[k + 4 * n], p, 8 * n, from_, to, at, step)
                s[k + 4 * n + 1] = seen(s[k + 4 * n + 1], p, 8 * n + 1, from_, to, at, step)

    finish_rows = unrolled(rows, finish_row)

    @device
    def finish(s, p, scale, softcap, first, is_edge, limits, masks, first_row, step):
        """Scores of the products `s`, in place, of columns from `first` on; -inf where a row does
        not see a column. `limits` is where `keep_limits` has left them for the warp, `masks` tells
        where the rows of the mask are (`row_at`), of which `first_row` is the lane's first, and
        `step` the bytes from column to column.
        """
        finish_rows(s, p, scale, softcap, first, is_edge, limits, masks, first_row, step)

    @device
    def keep_limits(limits, row, low, high):
        """Leave the columns that a row may see, [low, high), in shared memory: registers are full,
        and only tiles at an edge need them.
        """
        if cuda.threadIdx.x & 3 == 0:
            at = limits + 8 * (8 * row + np.int32(cuda.threadIdx.x >> 2 & 7))
            _ptx.shared_store_u32(np.uint32(at), np.uint32(low))
            _ptx.shared_store_u32(np.uint32(at + 4), np.uint32(high))

    @device
    def row_max(s, row):
        """Of a row, known to the four lanes that share it."""
        largest = lowest
        for n in range(tiles):
            k = ((row >> 1) * tiles + n) * 4 + 2 * (row & 1)
            largest = maximum(largest, maximum(s[k], s[k + 1]))
        largest = maximum(largest, cuda.shfl_xor_sync(ALL, largest, 1))
        return maximum(largest, cuda.shfl_xor_sync(ALL, largest, 2))

    @device
    def shared_sum(value):
        """Over the four lanes that share a row."""
        value += cuda.shfl_xor_sync(ALL, value, 1)
        return value + cuda.shfl_xor_sync(ALL, value, 2)

    @device
    def weights(s, row, top, unit):
        """Weights of a row in place of its scores, and the sum of this lane's."""
        total = zero
        for n in range(tiles):
            k = ((row >> 1) * tiles + n) * 4 + 2 * (row & 1)
            s[k] = weight(s[k], top, unit)
            s[k + 1] = weight(s[k + 1], top, unit)
            total += s[k] + s[k + 1]
        return total

    # ---- of gradients

    @device
    def given_weight(score, top, log_sum, natural):
        """exp(score - top), at most 1, however `top` was rounded, over the sum whose logarithm is
        given. What `top` and `log_sum` are: `norm_at` in _attention_backward.py.
        """
        gap = score - top
        gap = zero if gap > zero else gap  # NaN stays
        if fast:
            return _ptx.exp2_approx(gap * (natural * _LOG2_E) - log_sum)
        return exp_below(gap, log_sum)

    @device
    def log_of(total):
        """As `given_weight` takes it."""
        return math.log(total) * (_LOG2_E if fast else one)

    @device
    def keep_slopes(s, slopes, scale, softcap):
        """d(score) / d(scaled product), of the products `s`, where there is a softcap."""
        if general and softcap != 0:
            for e in range(count):
                slopes[e] = slope(s[e], scale, softcap)

    @device
    def slope(product, scale, softcap):
        tanh = math.tanh(product * real(scale) / real(softcap))
        return one - tanh * tanh

    @device
    def grad(k, s, ds, slopes, top, log_sum, delta, natural, softcap):
        """A weight in place of its score, the gradient of the score in place of dO V'."""
        s[k] = given_weight(s[k], top, log_sum, natural)
        ds[k] = s[k] * (ds[k] - delta)
        if general and softcap != 0:
            ds[k] *= slopes[k]

    @device
    def grads_of_row(row, s, ds, slopes, tops, log_sums, deltas, natural, softcap):
        for n in range(tiles):
            k = ((row >> 1) * tiles + n) * 4 + 2 * (row & 1)
            for i in range(2):
                grad(k + i, s, ds, slopes, tops[row], log_sums[row], deltas[row], natural, softcap)

    grads_of_rows = unrolled(rows, grads_of_row)

    @device
    def grads_of_column(n, s, ds, slopes, at, natural, softcap):
        """The same, where columns are queries, of which all that is known is in shared memory."""
        at += (8 * n + 2 * np.int32(cuda.threadIdx.x & 3)) * number
        top = load_pair(np.uint32(at))
        log_sum = load_pair(np.uint32(at + columns * number))
        delta = load_pair(np.uint32(at + 2 * columns * number))
        for row in range(rows):
            k = ((row >> 1) * tiles + n) * 4 + 2 * (row & 1)
            for i in range(2):
                grad(k + i, s, ds, slopes, top[i], log_sum[i], delta[i], natural, softcap)

    grads_of_columns = unrolled(tiles, grads_of_column)

    return SimpleNamespace(
        unit_of=unit_of,
        weight=weight,
        finish=finish,
        keep_limits=keep_limits,
        row_max=row_max,
        shared_sum=shared_sum,
        weights=weights,
        given_weight=given_weight,
        log_of=log_of,
        keep_slopes=keep_slopes,
        grads_of_rows=grads_of_rows,
        grads_of_columns=grads_of_columns,
    )
