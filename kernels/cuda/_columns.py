"""Columns: rows whose classes lie `inner` elements apart in memory.

32 threads beside each other work on 32 neighbouring columns, so that they read neighbouring
elements; HEIGHT or fewer threads share a column, each taking every so manieth class.
"""

from functools import cache
from types import SimpleNamespace

import numpy as np
from numba import cuda

from . import _ptx
from ._math import add_compensated, device
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
    """What the threads that share a column merge; `column_state` before any sum."""
    storage = storage_of(name)
    zero, lowest, number = storage.real(0), storage.real(-np.inf), storage.real_size
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
        """The state (see `_math.py`) of what this thread reads of a column, from address x on, with
        classes `step` bytes apart. Four elements at once: so fewer maxima have to give way.
        """
        top, below, ties = lowest, zero, zero
        v = cuda.local.array(AT_ONCE, kind)
        height = cuda.blockDim.y
        k = np.int64(cuda.threadIdx.y)
        while k < n:
            for j in range(AT_ONCE):
                at = k + j * height
                v[j] = load(x + at * step) if at < n else lowest
            top, below, ties = add_values(v, top, below, ties)
            k += AT_ONCE * height
        return top, below, ties

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
    def column_state(top, below, ties):
        """The state (see `_math.py`) of all elements of the column."""
        shared_store(at(0, cuda.threadIdx.y), top)
        shared_store(at(1, cuda.threadIdx.y), below)
        shared_store(at(2, cuda.threadIdx.y), ties)
        cuda.syncthreads()
        top, below, lost, ties = shared_load(at(0, 0)), zero, zero, zero
        for y in range(1, cuda.blockDim.y):
            top = maximum(top, shared_load(at(0, y)))
        for y in range(cuda.blockDim.y):
            more, more_ties = rescaled(
                shared_load(at(0, y)), shared_load(at(1, y)), shared_load(at(2, y)), top
            )
            below, lost = add_compensated(below, lost, more)
            ties += more_ties
        return top, below + lost, ties

    return SimpleNamespace(
        gather_column=gather_column, column_sum=column_sum, column_state=column_state
    )
