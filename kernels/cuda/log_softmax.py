"""logsumexp, softmax, log_softmax and their gradients on NVIDIA GPUs.

Each is three kernels, for three shapes of work (`_launch.py` chooses):

rows     Classes are neighbours in memory: a group of lanes, from 4 to a whole block, works on one
         row, in words of 16 bytes. A few long rows are shared by several blocks, in two launches.
tiles    Classes are neighbours, and few: a block brings many rows to shared memory, where each
         of its threads works on one.
columns  Classes are `inner` elements apart: neighbours work on neighbouring columns, and several
         threads share a column.

Each element is read once and written once, but for rows that do not fit in shared memory and for
columns, whose second reading comes from L2 at best. `_math.py` has the state that the lanes of a
group merge, `_rows.py` how they go along a row.
"""

from functools import cache
from types import SimpleNamespace

import numpy as np
from numba import cuda

from . import _arrays, _launch, _ptx
from ._columns import WIDTH, columns_of, first_of_column
from ._math import add_compensated, device
from ._reduce import SCRATCH, reduce_of
from ._rows import Part, place, rows_of, share, writer_of
from ._softmax import softmax_of
from ._storage import storage_of
from ._tiles import tiles_of


def logsumexp(x, out, *, threads):
    with _arrays.on_device((x,), (out,)) as (x, out):
        _launch.run(_forward(x.dtype, "logsumexp"), _launch.plan_for(x), x, (x, out), maps=False)


def log_softmax(x, out, *, threads):
    with _arrays.on_device((x,), (out,)) as (x, out):
        _launch.run(_forward(x.dtype, "log_softmax"), _launch.plan_for(x), x, (x, out))


def softmax(x, out, *, threads):
    with _arrays.on_device((x,), (out,)) as (x, out):
        _launch.run(_forward(x.dtype, "softmax"), _launch.plan_for(x), x, (x, out))


def softmax_backward(grad, y, out, *, threads):
    with _arrays.on_device((grad, y), (out,)) as (grad, y, out):
        _run_backward("softmax_backward", grad, y, out)


def log_softmax_backward(grad, y, out, *, threads):
    with _arrays.on_device((grad, y), (out,)) as (grad, y, out):
        _run_backward("log_softmax_backward", grad, y, out)


def _run_backward(op, grad, y, out):
    plan = _launch.plan_for(y, keeps=2, tiled=2, splits=False)
    _launch.run(_backward(y.dtype, op), plan, y, (grad, y, out))


@cache
def _forward(name, op):
    """The kernels of logsumexp, log_softmax or softmax for one dtype."""
    storage, rows, tiles = storage_of(name), rows_of(name), tiles_of(name)
    result_of, value = getattr(softmax_of(name), op)
    maps = value is not None  # to as many numbers as there are; else to one for each row
    value = value or softmax_of(name).softmax[1]
    size, per_word, number = storage.size, storage.per_word, storage.real_size
    load, store = storage.load, storage.store
    shared_load, shared_store = storage.shared_load, storage.shared_store
    split, gather, write = rows.split, rows.gather, writer_of(name, value)
    read_states, write_state = rows.read_states, rows.write_state
    group_state, columns = reduce_of(name).group_state, columns_of(name)
    column_state, gather_column = columns.column_state, columns.gather_column
    load_tile, store_tile, row_state = tiles.load_tile, tiles.store_tile, tiles.row_state

    @cuda.jit
    def rows_kernel(x, out, x_step, out_step, count, n, lanes, parts, gathered, states, capacity):
        row, part, lane, group = place(lanes, parts)
        live = row < count
        classes = n if live else np.int64(0)
        x += row * x_step * size
        out += row * out_step * size
        head, words = split(x, classes, x ^ out if maps else np.int64(0))
        first, last = share(part, parts, words)
        edges = classes - words * per_word if part == 0 else np.int64(0)
        mine = Part(first, last, edges, head, words, lane, lanes)
        slots = _ptx.dynamic_shared() + SCRATCH + group * capacity * 16
        kept = first + capacity
        if gathered > 0:
            kept = first
            state = read_states(states, row, gathered, lane, lanes)
        else:
            state = group_state(gather(x, mine, slots, kept), lanes)
        if gathered == 0 and states != 0:
            if lane == 0:
                write_state(states, row * parts + part, state)
            return
        a = result_of(state)
        if maps:
            write(x, out, mine, slots, kept, state.row_max, a)
        elif live and lane == 0:
            store(out + row * size, a)  # which has no planes: out_step is 0

    @cuda.jit
    def tiles_kernel(x, out, x_step, out_step, count, n, inverse, pitch):
        begin = np.int64(cuda.blockIdx.x) * cuda.blockDim.x
        rows = min(np.int64(cuda.blockDim.x), count - begin)
        tile = np.int64(_ptx.dynamic_shared()) + SCRATCH
        load_tile(x + begin * x_step * size, x_step, rows, n, inverse, pitch, tile)
        mine = tile + cuda.threadIdx.x * pitch * number
        if cuda.threadIdx.x < rows:
            state = row_state(mine, n)
            a = result_of(state)
            if maps:
                for k in range(n):
                    at = np.uint32(mine + k * number)
                    shared_store(at, value(shared_load(at), state.row_max, a))
            else:
                store(out + (begin + cuda.threadIdx.x) * size, a)
        if maps:
            store_tile(out + begin * out_step * size, out_step, rows, n, inverse, pitch, tile)

    @cuda.jit
    def columns_kernel(x, out, x_step, out_step, count, n, inner):
        column = np.int64(cuda.blockIdx.x) * WIDTH + cuda.threadIdx.x
        live = column < count
        classes = n if live else np.int64(0)
        x += first_of_column(column, inner, x_step) * size
        state = column_state(gather_column(x, inner * size, classes))
        a = result_of(state)
        if maps:
            out += first_of_column(column, inner, out_step) * size
            k = np.int64(cuda.threadIdx.y)
            while k < classes:
                at = k * inner * size
                store(out + at, value(load(x + at), state.row_max, a))
                k += cuda.blockDim.y
        elif live and cuda.threadIdx.y == 0:
            store(out + column * size, a)

    return SimpleNamespace(rows=rows_kernel, tiles=tiles_kernel, columns=columns_kernel)


@cache
def _backward(name, op):
    """The kernels of a gradient for one dtype: of softmax, or of log_softmax."""
    storage, rows, tiles = storage_of(name), rows_of(name), tiles_of(name)
    is_log = op == "log_softmax_backward"
    size, per_word, number = storage.size, storage.per_word, storage.real_size
    kind, zero, exp_below = storage.type, storage.real(0), storage.exp_below
    load, store = storage.load, storage.store
    unpack, store_word = storage.unpack, storage.store_word
    shared_load, shared_store = storage.shared_load, storage.shared_store
    split, edge = rows.split, rows.edge
    group_sum, column_sum = reduce_of(name).group_sum, columns_of(name).column_sum
    load_tile, store_tile = tiles.load_tile, tiles.store_tile

    @device
    def term(g, y):
        return g if is_log else g * y

    @device
    def value(g, y, total):
        return g - exp_below(y, zero) * total if is_log else y * (g - total)

    @device
    def word_term(grad_word, y_word):
        g, y = cuda.local.array(per_word, kind), cuda.local.array(per_word, kind)
        unpack(grad_word, g)
        unpack(y_word, y)
        total = zero
        for j in range(per_word):
            total += term(g[j], y[j])
        return total

    @device
    def begin_copies(grad_words, y_words, w, kept, slots, y_slots):
        if w < kept:
            _ptx.copy_word_async(np.uint32(slots + 16 * w), grad_words + 16 * w)
            _ptx.copy_word_async(np.uint32(y_slots + 16 * w), y_words + 16 * w)
        _ptx.group_copies()

    @device
    def write_word(grad_word, y_word, address, total):
        g, y = cuda.local.array(per_word, kind), cuda.local.array(per_word, kind)
        unpack(grad_word, g)
        unpack(y_word, y)
        for j in range(per_word):
            g[j] = value(g[j], y[j], total)
        store_word(address, g)

    @cuda.jit
    def rows_kernel(
        grad, y, out, grad_step, y_step, out_step, count, n,
        lanes, parts, gathered, states, capacity,
    ):  # fmt: skip
        row, _, lane, group = place(lanes, np.int64(1))
        classes = n if row < count else np.int64(0)
        grad += row * grad_step * size
        y += row * y_step * size
        out += row * out_step * size
        head, words = split(y, classes, (grad ^ y) | (y ^ out))
        edges = classes - words * per_word
        kept = min(words, capacity)
        # The kept words of grad, then those of y.
        slots = np.int64(_ptx.dynamic_shared()) + SCRATCH + group * capacity * 32
        y_slots = slots + capacity * 16
        grad_words, y_words, out_words = grad + head * size, y + head * size, out + head * size
        ahead = lane
        for _ in range(_ptx.AHEAD):
            begin_copies(grad_words, y_words, ahead, kept, slots, y_slots)
            ahead += lanes
        total = zero
        j = lane
        while j < edges:
            at = edge(j, head, words) * size
            total += term(load(grad + at), load(y + at))
            j += lanes
        w = lane
        while w < kept:
            begin_copies(grad_words, y_words, ahead, kept, slots, y_slots)
            _ptx.wait_for_copies()
            total += word_term(
                _ptx.shared_load_word(np.uint32(slots + 16 * w)),
                _ptx.shared_load_word(np.uint32(y_slots + 16 * w)),
            )
            w, ahead = w + lanes, ahead + lanes
        while w < words:
            total += word_term(
                _ptx.load_word(grad_words + 16 * w), _ptx.load_word(y_words + 16 * w)
            )
            w += lanes
        total = group_sum(total, lanes)
        w = lane
        while w < kept:
            write_word(
                _ptx.shared_load_word(np.uint32(slots + 16 * w)),
                _ptx.shared_load_word(np.uint32(y_slots + 16 * w)),
                out_words + 16 * w,
                total,
            )
            w += lanes
        while w < words:
            write_word(
                _ptx.load_word(grad_words + 16 * w),
                _ptx.load_word(y_words + 16 * w),
                out_words + 16 * w,
                total,
            )
            w += lanes
        j = lane
        while j < edges:
            at = edge(j, head, words) * size
            store(out + at, value(load(grad + at), load(y + at), total))
            j += lanes

    @cuda.jit
    def tiles_kernel(grad, y, out, grad_step, y_step, out_step, count, n, inverse, pitch):
        begin = np.int64(cuda.blockIdx.x) * cuda.blockDim.x
        rows = min(np.int64(cuda.blockDim.x), count - begin)
        tile = np.int64(_ptx.dynamic_shared()) + SCRATCH
        y_tile = tile + cuda.blockDim.x * pitch * number
        load_tile(grad + begin * grad_step * size, grad_step, rows, n, inverse, pitch, tile)
        load_tile(y + begin * y_step * size, y_step, rows, n, inverse, pitch, y_tile)
        first = tile + cuda.threadIdx.x * pitch * number
        to_y = y_tile - tile
        if cuda.threadIdx.x < rows:
            total, error = zero, zero
            for k in range(n):
                at = first + k * number
                one = term(shared_load(np.uint32(at)), shared_load(np.uint32(at + to_y)))
                total, error = add_compensated(total, error, one)
            if error == error:  # else the sum is infinite, and stays so
                total += error
            for k in range(n):
                at = first + k * number
                g = value(shared_load(np.uint32(at)), shared_load(np.uint32(at + to_y)), total)
                shared_store(np.uint32(at), g)
        store_tile(out + begin * out_step * size, out_step, rows, n, inverse, pitch, tile)

    @cuda.jit
    def columns_kernel(grad, y, out, grad_step, y_step, out_step, count, n, inner):
        column = np.int64(cuda.blockIdx.x) * WIDTH + cuda.threadIdx.x
        classes = n if column < count else np.int64(0)
        grad += first_of_column(column, inner, grad_step) * size
        y += first_of_column(column, inner, y_step) * size
        out += first_of_column(column, inner, out_step) * size
        total = zero
        k = np.int64(cuda.threadIdx.y)
        while k < classes:
            at = k * inner * size
            total += term(load(grad + at), load(y + at))
            k += cuda.blockDim.y
        total = column_sum(total)
        k = np.int64(cuda.threadIdx.y)
        while k < classes:
            at = k * inner * size
            store(out + at, value(load(grad + at), load(y + at), total))
            k += cuda.blockDim.y

    return SimpleNamespace(rows=rows_kernel, tiles=tiles_kernel, columns=columns_kernel)
