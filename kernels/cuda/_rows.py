"""A row whose classes are neighbours in memory, read and written by a group of lanes.

Aligned words (16 bytes) of the row are moved whole; the few elements before the first and after the
last word, the edges, are moved one by one, each by another lane. Lane l takes the words l,
l + lanes, and so on: neighbours read neighbours. Where the row, its target and its result have
different alignments to 16 bytes, there are no words, and every element is an edge.

A row is read from global memory once: the first `kept` of its words are copied to shared memory,
where each lane finds its own again for the second pass. Eight words of each lane are on their way
while it computes with the next: a block that waited for its whole row first would leave the memory
idle half of the time. What does not fit is read again, mostly from L2 (132 rows of 131072 float32
less 208 KB each are 40 of 50 MB on an H100).
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from numba import cuda

from . import _ptx
from ._math import State, device, namespace
from ._reduce import reduce_of
from ._storage import storage_of


class Part(NamedTuple):
    """What a lane of a group works on: every `lanes`-th word and edge of a part of a row."""

    first: int  # word
    last: int  # the word after the last
    edges: int
    head: int  # elements of the row before its first word
    words: int  # of the row
    lane: int
    lanes: int


@device
def place(lanes, parts):
    """(row, part of it, lane, group) of a thread, where `parts` groups share a row."""
    thread = np.int32(cuda.threadIdx.x)
    group = thread // np.int32(lanes)
    unit = np.int64(cuda.blockIdx.x) * (np.int32(cuda.blockDim.x) // np.int32(lanes)) + group
    lane = np.int64(thread - group * np.int32(lanes))
    if parts == 1:
        return unit, np.int64(0), lane, np.int64(group)
    row = unit // parts
    return row, unit - row * parts, lane, np.int64(group)


@device
def share(part, parts, words):
    """Of the words of a row, the first of a part and the one after its last."""
    each = (words + parts - 1) // parts if parts > 1 else words
    first = part * each
    return first, min(first + each, words)


@device
def begin_copy(start, w, first, end, slots):
    """Begin to copy word w to its place in shared memory; an empty group from `end` on."""
    if w < end:
        _ptx.copy_word_async(np.uint32(slots + 16 * (w - first)), start + 16 * w)
    _ptx.group_copies()


@cache
def rows_of(name):
    """Functions on rows of one dtype."""
    storage = storage_of(name)
    size, per_word, kind = storage.size, storage.per_word, storage.type
    load, unpack = storage.load, storage.unpack
    maximum, rescaled, add_value = storage.maximum, storage.rescaled, storage.add_value
    add_values, empty_state = storage.adder_of(per_word), storage.empty_state
    group_state = reduce_of(name).group_state
    get_number, put_number, number = storage.get_number, storage.put_number, storage.real_size

    @device
    def split(address, n, unequal):
        """(elements before the first word, words) of a row. `unequal` has the bits in which its
        address differs from those of the arrays that are read or written along with it.
        """
        if unequal & 15:
            return n, np.int64(0)
        head = min(n, ((16 - (address & 15)) & 15) // size)
        return head, (n - head) // per_word

    @device
    def edge(j, head, words):
        """The index in the row of the j-th edge."""
        return j if j < head else j + words * per_word

    @device
    def add_word(word, state):
        v = cuda.local.array(per_word, kind)
        unpack(word, v)
        return add_values(v, state)

    @device
    def gather(address, part, slots, kept):
        """The state of what this lane reads. Words before `kept` stay in shared memory, from
        `slots` on.
        """
        first, last, edges, head, words, lane, lanes = part
        start, end = address + head * size, min(kept, last)
        state = empty_state
        ahead = first + lane
        for _ in range(_ptx.AHEAD):
            begin_copy(start, ahead, first, end, slots)
            ahead += lanes
        j = np.int64(lane)
        while j < edges:
            state = add_value(load(address + edge(j, head, words) * size), state)
            j += lanes
        w = first + lane
        while w < end:
            begin_copy(start, ahead, first, end, slots)
            _ptx.wait_for_copies()
            word = _ptx.shared_load_word(np.uint32(slots + 16 * (w - first)))
            state = add_word(word, state)
            w, ahead = w + lanes, ahead + lanes
        if w < last:  # the next word is under way while one is computed
            following = _ptx.load_word(start + 16 * w)
            while w < last:
                word = following
                w += lanes
                if w < last:
                    following = _ptx.load_word(start + 16 * w)
                state = add_word(word, state)
        return state

    @device
    def read_states(states, row, parts, lane, lanes):
        """The state of a row whose parts other blocks have gathered."""
        states += 3 * row * parts * number
        row_max, sumexp_below, max_count = empty_state
        p = np.int64(lane)
        while p < parts:
            row_max = maximum(row_max, get_number(states + 3 * p * number))
            p += lanes
        p = np.int64(lane)
        while p < parts:
            part = State(
                get_number(states + 3 * p * number),
                get_number(states + (3 * p + 1) * number),
                get_number(states + (3 * p + 2) * number),
            )
            part = rescaled(part, row_max)
            sumexp_below += part.sumexp_below
            max_count += part.max_count
            p += lanes
        return group_state(State(row_max, sumexp_below, max_count), lanes)

    @device
    def write_state(states, part, state):
        put_number(states + 3 * part * number, state.row_max)
        put_number(states + (3 * part + 1) * number, state.sumexp_below)
        put_number(states + (3 * part + 2) * number, state.max_count)

    return namespace(split, edge, gather, read_states, write_state)


@cache
def writer_of(name, value):
    """`write(x, out, part, slots, kept, row_max, a)`: out[k] = value(x[k], row_max, a) for the
    words and edges of a lane.
    """
    rows, storage = rows_of(name), storage_of(name)
    size, per_word, kind = storage.size, storage.per_word, storage.type
    edge, unpack, store_word = rows.edge, storage.unpack, storage.store_word
    load, store = storage.load, storage.store

    @device
    def write_word(word, address, row_max, a):
        v = cuda.local.array(per_word, kind)
        unpack(word, v)
        for j in range(per_word):
            v[j] = value(v[j], row_max, a)
        store_word(address, v)

    @device
    def write(x, out, part, slots, kept, row_max, a):
        first, last, edges, head, words, lane, lanes = part
        start, to = x + head * size, out + head * size
        w = first + lane
        while w < min(kept, last):
            word = _ptx.shared_load_word(np.uint32(slots + 16 * (w - first)))
            write_word(word, to + 16 * w, row_max, a)
            w += lanes
        while w < last:
            write_word(_ptx.load_word(start + 16 * w), to + 16 * w, row_max, a)
            w += lanes
        j = np.int64(lane)
        while j < edges:
            k = edge(j, head, words)
            store(out + k * size, value(load(x + k * size), row_max, a))
            j += lanes

    return write
