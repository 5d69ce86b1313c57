"""Device functions for `cuda.jit` kernels of your own: one row, by a warp or by a block.

All 32 lanes of the warp call, or all threads of the block, which has one dimension and whole warps,
with the same arguments, and get the same result. `x`, `out` and `grad` are arrays of one axis, of
float64, float32 or float16, in any stride; `out` and `grad` may be `x`. Functions of a block take
`scratch`: shared memory of the caller, 96 numbers of the type of computation (float64 for float64,
else float32). Nothing is checked: the label is from 0 to the length of the row less 1.
"""

import math
from functools import cache
from inspect import signature

import numpy as np
from numba import cuda, types
from numba.cuda.extending import overload

from ._math import State, device, namespace
from ._reduce import WARP, reduce_of
from ._softmax import softmax_of
from ._softmax_loss.formulas import GradTerms, loss_of
from ._storage import storage_of

_NAMES = {types.float64: "float64", types.float32: "float32", types.float16: "float16"}


@cache
def _row(name):
    """The functions for one dtype, of a lane of a group of `lanes`."""
    storage, softmax, loss = storage_of(name), softmax_of(name), loss_of(name, "label")
    real, add_value, exp_below = storage.real, storage.add_value, storage.exp_below
    warp_state, empty_state = reduce_of(name).warp_state, storage.empty_state
    zero, one = storage.real(0), storage.real(1)
    sumexp_m1_of, logit_grad = softmax.sumexp_m1_of, loss.logit_grad

    @device
    def lane_state(x, lane, lanes):
        state = empty_state
        i = lane
        while i < x.shape[0]:
            state = add_value(real(x[i]), state)
            i += lanes
        return warp_state(state, WARP)

    @device
    def block_state(x, scratch):
        thread = np.int64(cuda.threadIdx.x)
        lane, warp = thread & 31, thread >> 5
        state = lane_state(x, thread, np.int64(cuda.blockDim.x))
        cuda.syncthreads()  # until here, others may still read what the last call left
        if lane == 0:
            scratch[warp] = state.row_max
            scratch[WARP + warp] = state.sumexp_below
            scratch[2 * WARP + warp] = state.max_count
        cuda.syncthreads()
        state = empty_state
        if lane < (cuda.blockDim.x + 31) >> 5:
            state = State(scratch[lane], scratch[WARP + lane], scratch[2 * WARP + lane])
        return warp_state(state, WARP)

    @device
    def write_softmax(x, out, state, lane, lanes):
        inv_sumexp = one / (one + sumexp_m1_of(state))
        i = lane
        while i < x.shape[0]:
            out[i] = exp_below(real(x[i]), state.row_max) * inv_sumexp
            i += lanes

    @device
    def write_log_softmax(x, out, state, lane, lanes):
        log_sumexp = math.log1p(sumexp_m1_of(state))
        i = lane
        while i < x.shape[0]:
            out[i] = (real(x[i]) - state.row_max) - log_sumexp
            i += lanes

    @device
    def loss_of_row(x, label, state):
        return (state.row_max - real(x[label])) + math.log1p(sumexp_m1_of(state))

    @device
    def write_grad(x, label, grad, state, lane, lanes):
        sumexp_m1 = sumexp_m1_of(state)
        terms = GradTerms(state.row_max, math.log1p(sumexp_m1), one / (one + sumexp_m1), one, zero)
        i = lane
        while i < x.shape[0]:
            grad[i] = logit_grad(real(x[i]), one if i == label else zero, terms)
            i += lanes

    return namespace(
        *(lane_state, block_state, loss_of_row),
        *(write_softmax, write_log_softmax, write_grad),
        lse_of=softmax.logsumexp[0],
    )


def _of(x):
    if not (isinstance(x, types.Array) and x.ndim == 1 and x.dtype in _NAMES):
        raise TypeError(f"x must be a row of float64, float32 or float16, got {x}")
    return _row(_NAMES[x.dtype])


@device
def _warp_lane():
    return np.int64(cuda.threadIdx.x & 31), np.int64(WARP)


@device
def _block_lane():
    return np.int64(cuda.threadIdx.x), np.int64(cuda.blockDim.x)


@device
def _sync_warp():
    cuda.syncwarp()


@device
def _sync_block():
    cuda.syncthreads()


def _group(row, scratch):
    """(state_of, lane_of, sync) of a warp, or of a block, which has `scratch`."""
    if scratch:
        return row.block_state, _block_lane, _sync_block
    lane_state = row.lane_state

    @device
    def warp_state(x):
        lane, lanes = _warp_lane()
        return lane_state(x, lane, lanes)

    return warp_state, _warp_lane, _sync_warp


def _declared(make):
    """Declare the decorated function for device code. There it is `make(functions of the dtype,
    group)`, which takes scratch as a last argument, or none.
    """

    def declare(function):
        names = list(signature(function).parameters)
        is_block = names[-1] == "scratch"
        names = names[: len(names) - is_block]
        scope = {"make": make, "group": _group, "of": _of, "is_block": is_block}
        text = f"def chosen({', '.join(names)}, *scratch):\n    row = of(x)\n"
        exec(text + "    return make(row, *group(row, is_block))", scope)
        overload(function)(scope["chosen"])
        return function

    return declare


def _logsumexp(row, state_of, lane_of, sync):
    lse_of = row.lse_of

    def logsumexp(x, *scratch):
        return lse_of(state_of(x, *scratch))

    return logsumexp


def _map(which):
    def make(row, state_of, lane_of, sync):
        write = getattr(row, which)

        def of_row(x, out, *scratch):
            lane, lanes = lane_of()
            write(x, out, state_of(x, *scratch), lane, lanes)

        return of_row

    return make


def _loss(row, state_of, lane_of, sync):
    loss_of_row = row.loss_of_row

    def cross_entropy(x, label, *scratch):
        return loss_of_row(x, label, state_of(x, *scratch))

    return cross_entropy


def _loss_and_grad(row, state_of, lane_of, sync):
    loss_of_row, write = row.loss_of_row, row.write_grad

    def cross_entropy_with_grad(x, label, grad, *scratch):
        state = state_of(x, *scratch)
        loss = loss_of_row(x, label, state)
        sync()  # all have read x[label], which may be overwritten now
        lane, lanes = lane_of()
        write(x, label, grad, state, lane, lanes)
        return loss

    return cross_entropy_with_grad


@_declared(_logsumexp)
def warp_logsumexp(x):
    """Logarithm of the sum of exponentials of a row, in nats, by one warp."""


@_declared(_logsumexp)
def block_logsumexp(x, scratch):
    """Logarithm of the sum of exponentials of a row, in nats, by one block."""


@_declared(_map("write_softmax"))
def warp_softmax(x, out):
    """Write the softmax of a row, by one warp."""


@_declared(_map("write_softmax"))
def block_softmax(x, out, scratch):
    """Write the softmax of a row, by one block."""


@_declared(_map("write_log_softmax"))
def warp_log_softmax(x, out):
    """Write the logarithm of the softmax of a row, in nats, by one warp."""


@_declared(_map("write_log_softmax"))
def block_log_softmax(x, out, scratch):
    """Write the logarithm of the softmax of a row, in nats, by one block."""


@_declared(_loss)
def warp_cross_entropy(x, label):
    """Cross-entropy of a row of logits, in nats, by one warp."""


@_declared(_loss)
def block_cross_entropy(x, label, scratch):
    """Cross-entropy of a row of logits, in nats, by one block."""


@_declared(_loss_and_grad)
def warp_cross_entropy_with_grad(x, label, grad):
    """Cross-entropy of a row of logits, in nats, and its gradient into `grad`, by one warp."""


@_declared(_loss_and_grad)
def block_cross_entropy_with_grad(x, label, grad, scratch):
    """Cross-entropy of a row of logits, in nats, and its gradient into `grad`, by one block."""
