"""How many CPU threads the kernels may use.

``set_num_threads`` > ``FASTCE_NUM_THREADS`` > ``OMP_NUM_THREADS`` > what the operating system
grants this process (affinity and, in a container, the cgroup's share of processors and the threads
that it may still start). The kernels take fewer where the work is small.
"""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

MOST = 4096
_num_threads = 0  # 0: not asked for yet
_here: ContextVar[int] = ContextVar("fastce_num_threads", default=0)  # 0: as in the whole process


def get_num_threads() -> int:
    """The number of CPU threads that kernels may use.

    Examples
    --------
    >>> import fastce
    >>> fastce.get_num_threads() >= 1
    True
    """
    return _here.get() or _num_threads or set_num_threads(_default())


def set_num_threads(n: int) -> int:
    """Set the number of CPU threads that kernels may use, in the whole process.

    Results do not depend on it, not even in the last bit.

    Parameters
    ----------
    n : int
        At least 1.

    Returns
    -------
    int
        `n`.

    Raises
    ------
    ValueError
        If `n` is less than 1.

    Examples
    --------
    >>> import fastce
    >>> before = fastce.get_num_threads()
    >>> fastce.set_num_threads(1)
    1
    >>> fastce.set_num_threads(before) == before
    True
    """
    global _num_threads
    if isinstance(n, bool) or not hasattr(n, "__index__"):
        raise TypeError(f"the number of threads must be an integer, got {n!r}")
    n = n.__index__()
    if not 1 <= n <= MOST:
        raise ValueError(f"the number of threads must be 1 to {MOST}, got {n}")
    _num_threads = n
    return n


@contextmanager
def threads_here(n: int) -> Iterator[None]:
    """At most `n` threads for the calls that this Python thread makes in a ``with`` block.

    For who runs several Python threads, each of which calls kernels: `fastce.dask`.
    """
    token = _here.set(n)
    try:
        yield
    finally:
        _here.reset(token)


def _default() -> int:
    for variable in ("FASTCE_NUM_THREADS", "OMP_NUM_THREADS"):
        value = os.environ.get(variable, "").split(",")[0].strip()
        if value:
            if not (value.isascii() and value.isdigit() and 1 <= int(value) <= MOST):
                raise ValueError(f"{variable} must be an integer from 1 to {MOST}, got {value!r}")
            return int(value)
    if hasattr(os, "sched_getaffinity"):
        granted = len(os.sched_getaffinity(0))
    else:
        granted = os.cpu_count() or 1
    return max(1, min(granted, _cgroup_limit(), 1 + _threads_left()))


def _cgroup_limit(folder: Path = Path("/sys/fs/cgroup")) -> int:
    """CPUs that a container may use: quota over period, rounded up (cgroup v2, then v1)."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (folder / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return MOST
    if not quota.isdigit():  # "max" in v2, "-1" in v1: no limit
        return MOST
    return max(1, math.ceil(int(quota) / int(period)))


def _threads_left(folder: Path = Path("/sys/fs/cgroup")) -> int:
    """Threads that a container may still start (cgroup v2, then v1).

    OpenMP ends the process that cannot start one.
    """
    for place in folder, folder / "pids":
        try:
            most = (place / "pids.max").read_text().strip()
            now = (place / "pids.current").read_text().strip()
        except OSError:
            continue
        return int(most) - int(now) if most.isdigit() and now.isdigit() else MOST
    return MOST
