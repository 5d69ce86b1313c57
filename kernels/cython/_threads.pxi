"""How many threads a loop gets, and what memory a thread has beside its stack.

libgomp's threads do not survive a fork, and a child that waits for them hangs: `_forks.py` has the
process that may use them.
"""

from posix.unistd cimport getpid, pid_t

from ._forks import OWNER

cdef extern from "scratch.h" nogil:
    # A macro: `bytes` is a constant.
    char* thread_memory "THREAD_MEMORY"(int number, size_t bytes)

cdef enum:
    # Fewer elements than this run on one thread. With 32,000, a second one saves 1 us of 10 on an
    # idle machine, and loses milliseconds where another process holds the second processor.
    SERIAL_BELOW = 1 << 16

cdef enum:  # numbers of thread_memory; a tile is computed as a panel, so both are in use at once
    OF_ROW
    OF_TILE
    OF_PANEL

cdef pid_t THREADS_OF = OWNER


cdef int threads_for(int threads, Py_ssize_t elements) noexcept nogil:
    if threads <= 1 or elements < SERIAL_BELOW or getpid() != THREADS_OF:
        return 1
    return threads
