"""Programs that tests run in processes of their own, and what they have in common."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

TESTS = str(Path(__file__).parents[1])  # for sys.path of a program that imports `support`

counts_threads = pytest.mark.skipif(
    not os.path.isdir("/proc/self/task"), reason="counts threads in /proc"
)


def bits(results):
    """What two runs must have in common: shapes, dtypes and every bit."""
    return [(r.shape, r.dtype, r.tobytes()) for r in map(np.asarray, results)]


def python(code, timeout=60, **variables):
    """Run `code` in a process group of its own, all of which is killed when it hangs."""
    env = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith("FASTCE_") and "NUM_THREADS" not in k
    }
    # OpenBLAS starts threads when NumPy is imported, which are not to be counted.
    env |= {"OPENBLAS_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "16"} | variables
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, errors = process.communicate()
        pytest.fail(f"it hung; so far it said\n{output}{errors}")
    return process.returncode, output.strip(), errors


# For a program: `compute` on 4 threads, and a function to run in a forked child.
FORK = """
import os, sys, warnings
import numpy as np
warnings.simplefilter("ignore")  # Python 3.12 warns of forks of a process with threads
def compute():
    import fastce
    fastce.set_num_threads(4)
    x = np.random.default_rng(0).standard_normal((40000, 10), np.float32)
    long = x.reshape(2, -1)
    t = np.arange(40000) % 10
    results = [*fastce.cross_entropy_with_grad(x, t), fastce.nll_loss(x, t), fastce.softmax(long),
               fastce.nll_loss_backward(1.0, x, t), fastce.logsumexp(long), fastce.softmax(x)]
    return [np.asarray(r).tobytes() for r in results]
def threads():
    return len(os.listdir("/proc/self/task"))
def in_child(work):
    pid = os.fork()
    if not pid:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print("in the child:", repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
"""
