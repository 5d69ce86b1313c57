"""Global and shared memory of the machine of `ptx_machine.py`. They check every access.

- It must be in memory that was allocated, aligned, and read only what has been written.
- Two threads of a block that touch the same byte of shared memory, one of them writing, must have a
  barrier between them.
"""

import numpy as np

from support.ptx_text import PTXError

BASE = 1 << 40  # where memory begins, so that a forgotten address is not one by chance


class Memory:
    """Bytes, of which some are allocated and some of these written."""

    def __init__(self, size=1 << 22):
        self.bytes = np.zeros(size, np.uint8)
        self.allocated = np.zeros(size, bool)
        self.written = np.zeros(size, bool)
        self.end = 256

    def allocate(self, size):
        """The address of so many bytes, which begin at a multiple of 256 as on hardware."""
        begin = self.end
        self.end += -(-(size + 64) // 256) * 256  # with a gap behind it
        while self.end > len(self.bytes):
            for name in ("bytes", "allocated", "written"):
                old = getattr(self, name)
                setattr(self, name, np.concatenate([old, np.zeros_like(old)]))
        self.allocated[begin : begin + size] = True
        return BASE + begin

    def free(self, address, size):
        at = address - BASE
        self.allocated[at : at + size] = self.written[at : at + size] = False

    def write(self, address, data):
        at = address - BASE
        self.bytes[at : at + data.nbytes] = data.reshape(-1).view(np.uint8)
        self.written[at : at + data.nbytes] = True

    def read(self, address, out):
        at = address - BASE
        if not self.written[at : at + out.nbytes].all():
            raise PTXError("a result was not written")
        out.reshape(-1).view(np.uint8)[:] = self.bytes[at : at + out.nbytes]

    def check(self, addresses, size, text, reading):
        if (addresses % size).any():
            raise PTXError(f"misaligned: {text}")
        at = addresses.astype(np.int64) - BASE
        if (at < 0).any() or (at + size > len(self.bytes)).any():
            raise PTXError(f"outside of memory: {text}")
        at_bytes = at[:, None] + np.arange(size)
        if not self.allocated[at_bytes].all():
            raise PTXError(f"out of bounds: {text}")
        if reading and not self.written[at_bytes].all():
            raise PTXError(f"read before it was written: {text}")
        return at

    def load(self, addresses, type, offset=0):
        at = (addresses + offset) // type().itemsize
        return self.bytes.view(type)[at]

    def store(self, at, values, offset=0):
        values = np.ascontiguousarray(values)
        self.bytes.view(values.dtype)[(at + offset) // values.itemsize] = values
        for i in range(values.itemsize):
            self.written[at + offset + i] = True


_WARPS, _ALL = 1 << 40, 1 << 50  # readers of one warp: _WARPS + its number; of several: _ALL


class Shared:
    """Shared memory of all blocks, which notices accesses that no barrier keeps apart."""

    def __init__(self, blocks, size, threads):
        self.size = size
        self.bytes = np.zeros(blocks * size + 16, np.uint8)
        self.written = np.zeros(len(self.bytes), bool)
        # The thread that last wrote a byte, or read it, since the last barrier of its block.
        self.writer = np.full(len(self.bytes), -1)
        self.reader = np.full(len(self.bytes), -1)
        # Of a byte that was copied, the group of the copy, and the thread, which must wait for it.
        self.copy = np.full(len(self.bytes), -1)
        self.copier = np.zeros(len(self.bytes), np.int64)
        self.group = np.zeros(threads, np.int64)  # of each thread: the group that it is filling
        self.arrived = np.zeros(threads, np.int64)  # and the first that may still be under way

    def warp_barrier(self, warps):
        """The lanes of these warps see what the others of theirs have written."""
        mine = np.zeros(len(self.group) // 32, bool)
        mine[warps] = True
        known = np.flatnonzero(self.writer >= 0)
        self.writer[known[mine[self.writer[known] >> 5]]] = -1
        known = np.flatnonzero((self.reader >= 0) & (self.reader < _ALL))
        reader = self.reader[known]
        warp = np.where(reader >= _WARPS, reader - _WARPS, reader >> 5)
        self.reader[known[mine[warp]]] = -1

    def barrier(self, blocks):
        for block in blocks:
            self.writer[block * self.size : (block + 1) * self.size] = -1
            self.reader[block * self.size : (block + 1) * self.size] = -1

    def check(self, addresses, size, text, threads, blocks, reading):
        if (addresses % size).any():
            raise PTXError(f"misaligned: {text}")
        if (addresses + size > self.size).any():
            raise PTXError(f"out of bounds: {text}")
        at = addresses.astype(np.int64) + blocks * self.size
        byte = at[:, None] + np.arange(size)
        threads = np.broadcast_to(threads[:, None], byte.shape)
        if reading and not self.written[byte].all():
            raise PTXError(f"read before it was written: {text}")
        copied = self.copy[byte]
        if (copied >= self.arrived[self.copier[byte]])[copied >= 0].any():
            verb = "read" if reading else "written"
            raise PTXError(f"{verb} before its copy was waited for: {text}")
        writer = self.writer[byte]
        if ((writer >= 0) & (writer != threads)).any():
            raise PTXError(f"race: {text}")
        if reading:
            # Of several readers, whether they are of one warp is remembered.
            reader = self.reader[byte]
            self.reader[byte] = threads
            mixed = (reader >= 0) & (reader != threads) | (self.reader[byte] != threads)
            if mixed.any():
                warp = _WARPS + (threads >> 5)
                self.reader[byte[mixed]] = warp[mixed]
                one = (reader < 0) | (reader == warp) | (reader >> 5 == threads >> 5)
                many = mixed & (~one | (self.reader[byte] != warp))
                self.reader[byte[many]] = _ALL
        else:
            reader = self.reader[byte]
            if ((reader >= 0) & (reader != threads)).any():
                raise PTXError(f"race: {text}")
            self.writer[byte] = threads
            if (self.writer[byte] != threads).any():
                raise PTXError(f"race: {text}")
            self.written[byte] = True
            self.copy[byte] = -1
            self.copier[byte] = threads
        return at

    def load(self, at, type, offset=0):
        return self.bytes.view(type)[(at + offset) // type().itemsize]

    def store(self, at, values, offset=0):
        values = np.ascontiguousarray(values)
        self.bytes.view(values.dtype)[(at + offset) // values.itemsize] = values
