"""How many threads a loop gets.

libgomp's threads do not survive a fork, and a child that waits for them hangs. A process that
was forked after this module was loaded therefore runs on one thread.
"""

from posix.unistd cimport getpid, pid_t

cdef enum:
    # Fewer elements than this run on one thread. Of 32,000, two threads save a microsecond in ten
    # on an idle machine, and cost milliseconds where another process holds the second processor.
    SERIAL_BELOW = 1 << 16

cdef pid_t LOADED_BY = getpid()


cdef int team(int threads, Py_ssize_t elements) noexcept nogil:
    if threads <= 1 or elements < SERIAL_BELOW or getpid() != LOADED_BY:
        return 1
    return threads
