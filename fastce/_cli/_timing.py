"""Times calls that alternate in one process, so that their ratios can be trusted.

A machine's speed changes by more than the differences of interest: from second to second with
other processes, and from minute to minute with its temperature. Alternating calls see the same
changes; calls that are timed one after another do not.
"""

import gc
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np

# Before a call is timed the process must be idle for PAUSE seconds: the idle threads of the library
# before it spin, those of OpenMP for 1 to 3 ms, of OpenBLAS for 25 ms on one processor and for more
# than 100 on another. Attention that followed them took 50 ms instead of 22.
PAUSE = 0.01
LONGEST_PAUSE = 1.0  # a library whose threads never sleep is timed as it is
SERIES = 0.01  # seconds; calls that take less are repeated until their series is as long
MIN_ROUNDS, MAX_ROUNDS = 5, 50
SLOW_ROUNDS = 3  # of a call that alone takes a tenth of the time for all


class Call(NamedTuple):
    """One library's work on one case, ready to be timed."""

    run: Callable[[], Any]
    context: Callable[[], AbstractContextManager[Any]] = nullcontext  # entered around a series
    finish: Callable[[Any], Any] = lambda result: result  # untimed: to what fastce returns


class Timing(NamedTuple):
    """Seconds for one call: the median of the rounds, and the quartiles about it."""

    median: float
    q1: float
    q3: float
    rounds: list[float]

    @classmethod
    def of(cls, rounds: list[float]) -> "Timing":
        q1, median, q3 = (float(q) for q in np.percentile(rounds, (25, 50, 75)))
        return cls(median, q1, q3, rounds)


def alternate(calls: Mapping[str, Call], budget: float) -> dict[str, Timing]:
    """Time the calls alternately, for about `budget` seconds in all.

    Every call has been made once before, which compiled what needs compiling.
    """
    repeats = {name: _repeats(call) for name, call in calls.items()}
    rounds: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    if not names:
        return {}
    collecting = gc.isenabled()
    gc.disable()
    try:
        end = time.perf_counter() + budget
        for done in range(MAX_ROUNDS):
            over = time.perf_counter() - end
            if over > (0 if done >= MIN_ROUNDS else 3 * budget) and done >= SLOW_ROUNDS:
                break
            first = done % len(names)  # so that none always follows the same one
            for name in names[first:] + names[:first]:
                taken = rounds[name]
                if len(taken) >= SLOW_ROUNDS and min(taken) > budget / 10:
                    continue
                _wait_until_idle()
                taken.append(_series(calls[name], repeats[name]))
    finally:
        if collecting:
            gc.enable()
    return {name: Timing.of(taken) for name, taken in rounds.items()}


def _wait_until_idle() -> None:
    end = time.perf_counter() + LONGEST_PAUSE
    while time.perf_counter() < end:
        before = time.process_time()  # of all threads
        time.sleep(PAUSE)
        if time.process_time() - before < PAUSE / 10:
            return


def _repeats(call: Call) -> int:
    """How many calls make a series."""
    with call.context():
        if _loop(call, 1) > 3 * SERIES:  # else it may only have been cold
            return 1
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < SERIES:
            call.run()
            count += 1
    return count


def _series(call: Call, repeats: int) -> float:
    """Seconds for one call, on average over one series."""
    with call.context():
        if repeats > 1:
            call.run()  # threads and caches are cold after the pause
        seconds, done, part = 0.0, 0, max(1, repeats // 8)
        # On a busy machine, threads that wait for each other can be a thousand times slower.
        while not done or (done < repeats and seconds < 5 * SERIES):
            seconds += _loop(call, part)
            done += part
        return seconds / done


def _loop(call: Call, count: int) -> float:
    run = call.run
    start = time.perf_counter()
    for _ in range(count):
        run()
    return time.perf_counter() - start


def limit_call(nbytes: int, writes: bool, flops: float, threads: int) -> Call | None:
    """What the machine takes for as many bytes, or operations; None for so few that they say
    nothing about memory (which a cache holds), or about products (where the call itself counts).
    """
    if nbytes >= 32e6:
        return _memory_call(nbytes, writes, threads)
    return _products_call(flops) if flops >= 5e8 else None


def _memory_call(nbytes: int, writes: bool, threads: int) -> Call:
    """Copy half of so many bytes to the other half, or read them.

    NumPy works in one thread but releases the GIL, so each Python thread gets a part.
    """
    source = np.ones(nbytes // 8 // (1 + writes), np.int64)
    sources = np.array_split(source, threads)
    targets = np.array_split(np.empty_like(source), threads) if writes else sources
    function = np.copyto if writes else _read
    pool = ThreadPoolExecutor(threads)
    return Call(lambda: list(pool.map(function, targets, sources)))


def _read(_: np.ndarray, source: np.ndarray) -> None:
    source.max()  # of all reductions the fastest: 49 GB/s where sums of float32 reach 41


def _products_call(flops: float) -> Call:
    """As many operations in NumPy's float32 matrix products (BLAS)."""
    side = 1024
    depth = max(1, round(flops / (2 * side * side)))
    times, depth = max(1, depth // side), min(depth, side)
    a, b = np.ones((side, depth), np.float32), np.ones((depth, side), np.float32)
    out = np.empty((side, side), np.float32)

    def multiply() -> None:
        for _ in range(times):
            np.matmul(a, b, out=out)

    return Call(multiply)
