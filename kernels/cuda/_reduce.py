"""Reductions over a group of lanes; all of them get the result.

A group works on one row. It is 1, 2, 4, .. or 32 neighbours of a warp, or a whole block: then
`lanes` is the number of its threads. Every lane of the warp, or the block, must call. The order in
which values meet depends on `lanes` only, so results are the same to the last bit every time.

Warps of a block meet in the first SCRATCH bytes of the shared memory that the launch asked for.
(Numba cannot link two device functions that declare shared memory of their own.)
"""

from functools import cache

import numpy as np
from numba import cuda

from . import _ptx
from ._math import State, device, namespace
from ._storage import storage_of

WARP = 32
ALL = 0xFFFFFFFF  # lanes of a warp
SCRATCH = 3 * WARP * 8  # bytes


@cache
def reduce_of(name):
    """The reductions for the compute type of a dtype."""
    storage = storage_of(name)
    maximum, rescaled, number = storage.maximum, storage.rescaled, storage.real_size
    empty_state = storage.empty_state
    shared_load, shared_store = storage.shared_load, storage.shared_store
    zero, lowest = storage.real(0), storage.real(-np.inf)

    @device
    def warp_sum(value, lanes):
        step = lanes >> 1
        while step > 0:
            value += cuda.shfl_xor_sync(ALL, value, step)
            step >>= 1
        return value

    @device
    def warp_max(value, lanes):
        step = lanes >> 1
        while step > 0:
            value = maximum(value, cuda.shfl_xor_sync(ALL, value, step))
            step >>= 1
        return value

    @device
    def warp_state(state, lanes):
        """The state of all elements that `lanes` neighbours have read."""
        state = rescaled(state, warp_max(state.row_max, lanes))
        return State(
            state.row_max, warp_sum(state.sumexp_below, lanes), warp_sum(state.max_count, lanes)
        )

    @device
    def put(place, warp, value):
        shared_store(np.uint32(_ptx.dynamic_shared() + (place * WARP + warp) * number), value)

    @device
    def get(place, warp):
        return shared_load(np.uint32(_ptx.dynamic_shared() + (place * WARP + warp) * number))

    @device
    def group_sum(value, lanes):
        if lanes <= WARP:
            return warp_sum(value, lanes)
        lane, warp = cuda.threadIdx.x & 31, cuda.threadIdx.x >> 5
        value = warp_sum(value, WARP)
        cuda.syncthreads()  # until here, others may still read what the last call left
        if lane == 0:
            put(0, warp, value)
        cuda.syncthreads()
        return warp_sum(get(0, lane) if lane < (lanes >> 5) else zero, WARP)

    @device
    def block_max(value):
        """The largest value of a block."""
        lane, warp = cuda.threadIdx.x & 31, cuda.threadIdx.x >> 5
        value = warp_max(value, WARP)
        cuda.syncthreads()
        if lane == 0:
            put(0, warp, value)
        cuda.syncthreads()
        return warp_max(get(0, lane) if lane < (cuda.blockDim.x >> 5) else lowest, WARP)

    @device
    def group_state(state, lanes):
        """The state of all elements that the group has read."""
        if lanes <= WARP:
            return warp_state(state, lanes)
        lane, warp = cuda.threadIdx.x & 31, cuda.threadIdx.x >> 5
        state = warp_state(state, WARP)
        cuda.syncthreads()
        if lane == 0:
            put(0, warp, state.row_max)
            put(1, warp, state.sumexp_below)
            put(2, warp, state.max_count)
        cuda.syncthreads()
        state = empty_state
        if lane < (lanes >> 5):
            state = State(get(0, lane), get(1, lane), get(2, lane))
        return warp_state(state, WARP)

    return namespace(warp_sum, warp_state, group_sum, group_state, block_max)
