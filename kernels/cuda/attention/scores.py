"""From products of queries and keys to scores, and from scores to weights.

A lane has `row_tiles * columns / 2` of them, in the order of `tiles.py`. Every function here goes
over them in that order, in unrolled loops.

On tensor cores, weights are ``ex2.approx`` of differences of products, which are not scaled before
(`scales_of`). They are rounded to 11 bits or fewer after that. Others are exact to 1 ULP.
"""

import math
from functools import cache

import numpy as np
from numba import cuda
from numba.cuda.libdevice import dmul_rn, fmul_rn

from .. import _ptx
from .._math import device, namespace
from .._reduce import ALL
from .._storage import storage_of
from .tiles import place_of_row, row_at, unrolled, uses_tensor_cores

_LOG2_E = np.float32(math.log2(math.e))


def score_scale_of(tiling, scale):
    """The second of `scales_of`, on the host."""
    return float(scale) if uses_tensor_cores(tiling.dtype) and not tiling.general else 1.0


@cache
def scores_of(tiling):
    storage = storage_of(tiling.dtype)
    general, fast = tiling.general, uses_tensor_cores(tiling.dtype)
    columns, tiles, rows = tiling.columns, tiling.columns // 8, 2 * tiling.row_tiles
    number, per_row, place_of = storage.real_size, columns // 4, place_of_row(columns)
    load_pair = _ptx.shared_load_f64_pair if number == 8 else _ptx.shared_load_f32_pair
    count = tiling.row_tiles * tiles * 4
    real, load, maximum, exp_below = storage.real, storage.load, storage.maximum, storage.exp_below
    zero, one, lowest = real(0), real(1), real(-np.inf)
    is_raw = fast and not general
    # Rounded, as the largest score is: not in one instruction with a subtraction that follows.
    times = dmul_rn if number == 8 else fmul_rn

    @device
    def scales_of(scale):
        """(exp_scale, score_scale): the factors of a score in `weight`, and to its true value."""
        if is_raw:
            return real(scale) * _LOG2_E, real(scale)
        return (_LOG2_E if fast else one), one

    @device
    def weight(score, row_max, exp_scale):
        """exp(score - row_max). The difference comes first: it is exactly 0 for the largest score,
        which a product less a rounded product, in one instruction, would not be.
        """
        if fast:
            return _ptx.exp2_approx((score - row_max) * exp_scale)
        return exp_below(score, row_max)

    @device
    def capped(score, softcap):
        return real(softcap) * math.tanh(score / real(softcap))

    @device
    def masked(score, p, column, low, high, mask):
        """A score plus its element of the mask; -inf where the row does not see the column."""
        if not low <= column < high:
            return lowest
        if general and p.mask != 0:
            at, step = mask
            if p.of_bytes:
                return score if _ptx.load_u8(at + column * step) else lowest
            return score + load(at + column * step)
        return score

    @device
    def finish_row(row, s, p, first, is_edge, limits, masks, first_row, step):
        if not is_raw:
            for e in range(per_row):
                k = place_of(row, e)
                s[k] = times(s[k], real(p.scale))
        if general and p.softcap != 0:
            for e in range(per_row):
                k = place_of(row, e)
                s[k] = capped(s[k], p.softcap)
        if is_edge or (general and p.mask != 0):
            _ptx.keep_branch()
            column = first + 2 * np.int32(cuda.threadIdx.x & 3)
            at = np.uint32(limits + 8 * (8 * row + np.int32(cuda.threadIdx.x >> 2 & 7)))
            low = np.int32(np.int32(_ptx.shared_load_u32(at)) - column)
            high = np.int32(np.int32(_ptx.shared_load_u32(np.uint32(at + 4))) - column)
            mask = np.int64(0)
            if general and p.mask != 0:
                mask = row_at(masks, first_row + 8 * row) + column * step
            for e in range(per_row):
                k = place_of(row, e)
                s[k] = masked(s[k], p, 8 * (e >> 1) + (e & 1), low, high, (mask, step))

    finish_rows = unrolled(rows, finish_row)

    @device
    def finish(s, p, first, is_edge, limits, masks, first_row, step):
        """Scores of the products `s`, in place, of columns from `first` on; -inf where a row does
        not see a column. `limits` is where `keep_limits` wrote them for the warp, `masks` has the
        rows of the mask (`row_at`), of which `first_row` is the lane's first, and `step` is in
        bytes from column to column.
        """
        finish_rows(s, p, first, is_edge, limits, masks, first_row, step)

    @device
    def keep_limits(limits, row, low, high):
        """Keep the columns that a row sees, [low, high), in shared memory: registers are full, and
        only tiles at an edge need them.
        """
        if cuda.threadIdx.x & 3 == 0:
            at = limits + 8 * (8 * row + np.int32(cuda.threadIdx.x >> 2 & 7))
            _ptx.shared_store_u32(np.uint32(at), np.uint32(low))
            _ptx.shared_store_u32(np.uint32(at + 4), np.uint32(high))

    @device
    def max_of_row(s, row):
        """The largest score of a row, for each of the four lanes that share it."""
        largest = lowest
        for n in range(tiles):
            k = place_of(row, 2 * n)
            largest = maximum(largest, maximum(s[k], s[k + 1]))
        largest = maximum(largest, cuda.shfl_xor_sync(ALL, largest, 1))
        return maximum(largest, cuda.shfl_xor_sync(ALL, largest, 2))

    @device
    def shared_sum(value):
        """The sum over the four lanes that share a row."""
        value += cuda.shfl_xor_sync(ALL, value, 1)
        return value + cuda.shfl_xor_sync(ALL, value, 2)

    @device
    def weights(s, row, row_max, exp_scale):
        """Weights of a row in place of its scores, and the sum of this lane's."""
        total = zero
        for n in range(tiles):
            k = place_of(row, 2 * n)
            s[k] = weight(s[k], row_max, exp_scale)
            s[k + 1] = weight(s[k + 1], row_max, exp_scale)
            total += s[k] + s[k + 1]
        return total

    # ---- of gradients

    @device
    def normalized_weight(score, row_max, log_sumexp, score_scale):
        """exp(score - row_max) over the sum of these, at most 1 however `row_max` was rounded. See
        `norm_at` in backward.py for `row_max` and `log_sumexp`.
        """
        gap = score - row_max
        gap = zero if gap > zero else gap  # NaN stays
        if fast:
            return _ptx.exp2_approx(gap * (score_scale * _LOG2_E) - log_sumexp)
        return exp_below(gap, log_sumexp)

    @device
    def log_of(total):
        """The logarithm in the unit that `normalized_weight` takes."""
        return math.log(total) * (_LOG2_E if fast else one)

    @device
    def softcap_slopes(s, slopes, p):
        """d(score) / d(scaled product), of the products `s`, where there is a softcap."""
        if general and p.softcap != 0:
            for e in range(count):
                tanh = math.tanh(s[e] * real(p.scale) / real(p.softcap))
                slopes[e] = one - tanh * tanh

    @device
    def grad(k, s, ds, slopes, row_max, log_sumexp, delta, score_scale, softcap):
        """A weight in place of its score, the gradient of the score in place of dO V'."""
        s[k] = normalized_weight(s[k], row_max, log_sumexp, score_scale)
        ds[k] = s[k] * (ds[k] - delta)
        if general and softcap != 0:
            ds[k] *= slopes[k]

    @device
    def grads_of_row(row, s, ds, slopes, norms, score_scale, softcap):
        row_max, log_sumexp, delta = norms
        for e in range(per_row):
            k = place_of(row, e)
            grad(k, s, ds, slopes, row_max[row], log_sumexp[row], delta[row], score_scale, softcap)

    grads_of_rows = unrolled(rows, grads_of_row)

    @device
    def grads_of_column(n, s, ds, slopes, at, score_scale, softcap):
        """The same, where columns are queries, whose `norm_at` is in shared memory."""
        at += (8 * n + 2 * np.int32(cuda.threadIdx.x & 3)) * number
        row_max = load_pair(np.uint32(at))
        log_sumexp = load_pair(np.uint32(at + columns * number))
        delta = load_pair(np.uint32(at + 2 * columns * number))
        for row in range(rows):
            k = place_of(row, 2 * n)
            for i in range(2):
                grad(
                    k + i, s, ds, slopes, row_max[i], log_sumexp[i], delta[i], score_scale, softcap
                )  # fmt: skip

    grads_of_columns = unrolled(tiles, grads_of_column)

    return namespace(
        *(scales_of, weight, weights, finish, keep_limits, max_of_row, shared_sum),
        *(normalized_weight, log_of, softcap_slopes),
        grads_of_rows=grads_of_rows,
        grads_of_columns=grads_of_columns,
    )
