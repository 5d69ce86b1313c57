"""Columns: rows whose classes are `inner` elements apart in memory.

The 32 threads of a warp work on 32 neighbouring columns, so that they read neighbouring elements.
Up to HEIGHT threads share a column: thread y takes the classes y, y + height, and so on.
"""

from functools import cache

import numpy as np
from numba import cuda

from . import _ptx
from ._math import State, add_compensated, device, namespace
from ._storage import storage_of

WIDTH, HEIGHT = 32, 16
PLACES = 3  # numbers of each thread in shared memory
AT_ONCE = 4


@device
def first_of_column(column, inner, step):
    """The first element of a column, where planes lie `step` elements apart."""
    plane = column // inner
    return plane * step + (column - plane * inner)


@cache
def columns_of(name):
    """Reductions over the threads of a column. `column_state` is called before any sum."""
    storage = storage_of(name)
    zero, lowest, number = storage.real(0), storage.real(-np.inf), storage.real_size
    empty_state = storage.empty_state
    kind, load, add_values = storage.type, storage.load, storage.adder_of(AT_ONCE)
    maximum, rescaled = storage.maximum, storage.rescaled
    shared_load, shared_store = storage.shared_load, storage.shared_store

    @device
    def at(place, y):
        """Where, in shared memory, thread y of this column has its numbers."""
        index = (place * HEIGHT + y) * WIDTH + cuda.threadIdx.x
        return np.uint32(_ptx.dynamic_shared() + index * number)

    @device
    def gather_column(x, step, n):
        """The state of what this thread reads of a column, from address x on, with classes `step`
        bytes apart. AT_ONCE elements together, so that the state is rescaled less often.
        """
        state = empty_state
        v = cuda.local.array(AT_ONCE, kind)
        height = cuda.blockDim.y
        k = np.int64(cuda.threadIdx.y)
        while k < n:
            for j in range(AT_ONCE):
                at = k + j * height
                v[j] = load(x + at * step) if at < n else lowest
            state = add_values(v, state)
            k += AT_ONCE * height
        return state

    @device
    def column_sum(value):
        cuda.syncthreads()  # until here, others may still read what the last call left
        shared_store(at(0, cuda.threadIdx.y), value)
        cuda.syncthreads()
        total = zero
        for y in range(cuda.blockDim.y):
            total += shared_load(at(0, y))
        return total

    @device
    def column_state(state):
        """The state of all elements of the column."""
        shared_store(at(0, cuda.threadIdx.y), state.row_max)
        shared_store(at(1, cuda.threadIdx.y), state.sumexp_below)
        shared_store(at(2, cuda.threadIdx.y), state.max_count)
        cuda.syncthreads()
        row_max, sumexp_below, error, max_count = shared_load(at(0, 0)), zero, zero, zero
        for y in range(1, cuda.blockDim.y):
            row_max = maximum(row_max, shared_load(at(0, y)))
        for y in range(cuda.blockDim.y):
            part = State(shared_load(at(0, y)), shared_load(at(1, y)), shared_load(at(2, y)))
            part = rescaled(part, row_max)
            sumexp_below, error = add_compensated(sumexp_below, error, part.sumexp_below)
            max_count += part.max_count
        return State(row_max, sumexp_below + error, max_count)

    return namespace(gather_column, column_sum, column_state)
