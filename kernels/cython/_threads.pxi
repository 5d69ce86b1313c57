"""How many threads a loop gets, and what memory a thread has beside its stack.

libgomp's threads do not survive a fork, and a child that waits for them hangs: `_forks.py` says
which process may use them.
"""

from posix.unistd cimport getpid, pid_t

from ._forks import OWNER

cdef extern from "scratch.h" nogil:
    # A macro: `bytes` is a constant.
    char* thread_memory "THREAD_MEMORY"(int number, size_t bytes)

cdef enum:
    # Fewer elements than this run on one thread. Of 32,000, two threads save a microsecond in ten
    # on an idle machine, and cost milliseconds where another process holds the second processor.
    SERIAL_BELOW = 1 << 16

cdef enum:  # numbers of thread_memory; a tile is computed as a panel, so both are in use at once
    OF_ROW
    OF_TILE
    OF_PANEL

cdef pid_t THREADS_OF = OWNER


cdef int team(int threads, Py_ssize_t elements) noexcept nogil:
    if threads <= 1 or elements < SERIAL_BELOW or getpid() != THREADS_OF:
        return 1
    return threads
