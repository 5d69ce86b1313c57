"""Tiles: many short rows that a block brings to shared memory, to work on one with each thread.

Neighbours read neighbouring elements of global memory, whatever the length of a row. In shared
memory the rows are `pitch` numbers apart, which is odd, so that threads that go along their
rows in step have no bank conflicts. Numbers lie there in the type of computation.
"""

from functools import cache

import numpy as np
from numba import cuda

from ._math import State, add_compensated, device, namespace
from ._storage import storage_of


@cache
def tiles_of(name):
    storage = storage_of(name)
    size, real_size = storage.size, np.int64(storage.real_size)
    load, store = storage.load, storage.store
    shared_load, shared_store = storage.shared_load, storage.shared_store
    maximum, exp_below = storage.maximum, storage.exp_below
    zero, one, lowest = storage.real(0), storage.real(1), storage.real(-np.inf)

    @device
    def load_tile(x, step, rows, n, inverse, pitch, tile):
        """Copy `rows` rows, `step` elements apart from address x on, to the tile.

        `inverse` is 2**32 / n rounded up: i * inverse >> 32 is i // n for i < 2**32 / n.
        """
        i = np.int64(cuda.threadIdx.x)
        while i < rows * n:
            row = (i * inverse) >> 32
            k = i - row * n
            value = load(x + (row * step + k) * size)
            shared_store(np.uint32(tile + (row * pitch + k) * real_size), value)
            i += cuda.blockDim.x
        cuda.syncthreads()

    @device
    def store_tile(out, step, rows, n, inverse, pitch, tile):
        """Write the tile to rows of global memory."""
        cuda.syncthreads()
        i = np.int64(cuda.threadIdx.x)
        while i < rows * n:
            row = (i * inverse) >> 32
            k = i - row * n
            value = shared_load(np.uint32(tile + (row * pitch + k) * real_size))
            store(out + (row * step + k) * size, value)
            i += cuda.blockDim.x

    @device
    def row_state(row, n):
        """The state of a row of the tile, whose maximum is found first."""
        row_max = lowest
        for k in range(n):
            row_max = maximum(row_max, shared_load(np.uint32(row + k * real_size)))
        sumexp_below, error, max_count = zero, zero, zero
        for k in range(n):
            x = shared_load(np.uint32(row + k * real_size))
            if x == row_max:
                max_count += one
            else:
                e = exp_below(x, row_max)
                sumexp_below, error = add_compensated(sumexp_below, error, e)
        return State(row_max, sumexp_below + error, max_count)

    return namespace(load_tile, store_tile, row_state)
