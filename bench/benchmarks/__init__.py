"""The asv suite: fastce over time, beside its reference and beside the speed of memory.

asv runs today's suite on every commit: it uses fastce's public functions only, and what a commit
lacks is n/a there.
"""

import itertools
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np

import fastce

from ._cases import Case, make_call, make_data, traffic

TINY = bool(os.environ.get("FASTCE_BENCH_TINY"))  # to test the suite itself
CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
DTYPES = ["float32"] if TINY else ["float32", "float64", "float16", "bfloat16"]
BACKENDS = ["cython", "numba", "reference"]
THREADS = sorted({1, CPUS})
REFERENCE_LIMIT = 2**22  # elements; it takes 0.1 s per million, and 100 bytes for each
SMALL = 2**14  # elements; one thread is enough
IN_CACHE = 0 if TINY else 32e6  # bytes; work on fewer says nothing about memory


def seconds(function: Callable[[], Any]) -> float:
    """Median time of a call, after one to warm up, over at least 5 calls and 50 ms."""
    function()
    taken: list[float] = []
    while len(taken) < 5 or sum(taken) < 0.05:
        start = time.perf_counter()
        function()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def copy_bandwidth(threads: int) -> float:
    """Bytes per second, read and written, of NumPy's copy in so many Python threads."""
    source = np.ones(2**16 if TINY else 2**25)
    target = np.empty_like(source)
    pairs = list(zip(np.array_split(target, threads), np.array_split(source, threads), strict=True))
    with ThreadPoolExecutor(threads) as pool:
        taken = seconds(lambda: list(pool.map(lambda pair: np.copyto(*pair), pairs)))
    return 2 * source.nbytes / taken


class _Suite:
    """Time, peak memory, and speed beside the reference and memory.

    A subclass lists `cases`, at float32: each is one value of the parameter "case". Large results
    go to a given array, so that no new memory is timed.
    """

    cases: ClassVar[list[Case]] = []
    param_names = ("case", "dtype", "backend", "threads")
    timeout = 300
    rounds, repeat, warmup_time = 1, (5, 20, 1.0), 0.1  # up to 1 second for each combination

    def __init_subclass__(cls) -> None:
        cases = [case.tiny() for case in cls.cases] if TINY else cls.cases
        cls.named = {str(case): case for case in cases}
        cls.params = (list(cls.named), DTYPES, BACKENDS, THREADS)

    def setup(self, name: str, dtype: str, backend: str, threads: int) -> None:
        case = self.named[name]._replace(dtype=dtype)
        size = int(np.prod(case.shape))
        if size < SMALL and threads > 1:
            raise NotImplementedError("as with one thread")  # asv shows n/a
        if backend == "reference" and (size > REFERENCE_LIMIT or threads > 1 or dtype != "float32"):
            raise NotImplementedError("for comparison, in float32 and one thread")
        if backend == "numba" and size >= SMALL and threads < THREADS[-1]:
            raise NotImplementedError("as many threads as there are")
        self.threads_before = fastce.get_num_threads()
        self.chosen = fastce.use_backend(backend)
        try:
            self.chosen.__enter__()
        except (ImportError, ValueError) as error:  # not built here, or not known at that commit
            raise NotImplementedError(str(error)) from error
        fastce.set_num_threads(threads)
        try:
            data = make_data(case)
            self.call, self.bytes = make_call(case, data), traffic(case, data)
        except AttributeError as error:
            self.leave()
            raise NotImplementedError("no such op at that commit") from error
        self.flops = case.flops if case.is_products else 0

    def leave(self) -> None:
        fastce.set_num_threads(self.threads_before)
        self.chosen.__exit__(None, None, None)

    def teardown(self, *params: Any) -> None:
        if hasattr(self, "call"):
            self.leave()
            del self.call

    def time_op(self, *params: Any) -> None:
        self.call()

    def peakmem_op(self, *params: Any) -> None:
        self.call()

    def track_ratio_to_reference(self, name, dtype, backend, threads) -> float:
        """Time over the reference's: asv takes more for worse."""
        if backend == "reference" or np.prod(self.named[name].shape) > REFERENCE_LIMIT:
            return float("nan")
        with fastce.use_backend("reference"):
            reference = seconds(self.call)
        return seconds(self.call) / reference

    track_ratio_to_reference.unit = "of the reference's time"

    def track_fraction_of_copy_bandwidth(self, name, dtype, backend, threads) -> float:
        """Here more is better, so asv's verdict on a change is the wrong way round."""
        if not self.bytes or self.bytes < IN_CACHE:
            return float("nan")
        return self.bytes / seconds(self.call) / copy_bandwidth(threads)

    track_fraction_of_copy_bandwidth.unit = "of copy bandwidth"


class _ProductsSuite(_Suite):
    """Of ops that are bound by matrix products."""

    def track_gflops(self, name, dtype, backend, threads) -> float:
        """Here more is better, so asv's verdict on a change is the wrong way round."""
        return self.flops / seconds(self.call) / 1e9

    track_gflops.unit = "GFLOP/s"


def combine(ops: list[str], shapes: list[tuple[int, ...]], **options: Any) -> list[Case]:
    """Every op on every shape; large results go to a given array."""
    return [Case(op, shape, into="out", **options) for op, shape in itertools.product(ops, shapes)]
