"""Which process may use OpenMP's threads: those of libgomp do not survive a fork.

A module may be loaded long after the first one, in a child of the process that computed with that
one, so this is found out once, for all modules.
"""

import os
from pathlib import Path

PF_FORKNOEXEC = 0x40  # of include/linux/sched.h: forked, and has started no program since


def lost_threads() -> bool:
    """Whether this process was forked, maybe from one that had threads of libgomp.

    libgomp is shared with PyTorch and scikit-learn, so their threads count as well. It has no
    function that says whether it has threads; where it is not loaded, it has none.
    """
    try:
        stat = Path("/proc/self/stat").read_bytes()
        forked = int(stat.rpartition(b")")[2].split()[6]) & PF_FORKNOEXEC
        return bool(forked) and b"/libgomp" in Path("/proc/self/maps").read_bytes()
    except OSError:  # not Linux
        return False


# The process that loads this before any module, and with it libgomp; no process has the number 0.
OWNER = 0 if lost_threads() else os.getpid()
