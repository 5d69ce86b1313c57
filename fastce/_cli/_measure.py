"""Measures cases in several libraries, each result verified before it is timed."""

import gc
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import fastce
from fastce._runtime.config import config
from fastce._runtime.dispatch import kernel

from ._attention import products_call
from ._cases import Case, is_tiny
from ._timing import Call, Timing, alternate, memory_call
from .peers import PEERS, disagreement, make_inputs, sample

SECONDS, QUICK_SECONDS, TINY_SECONDS = 6.0, 0.5, 0.01  # for the rounds of one case
# Beside the libraries: as many bytes copied, or read by ops that write none; or, for products, as
# many operations in NumPy's products of float32.
LIMIT = "limit"
IN_CACHE = 32e6  # bytes; a case that moves fewer says nothing about memory
IN_CALL = 5e8  # operations; with fewer, the call itself counts
ARRAYS = 14  # of the input's size: what all libraries together hold at most (measured: 12)


class Result(NamedTuple):
    """One case in several libraries."""

    case: Case
    timings: dict[str, Timing]
    problems: dict[str, str]  # library -> why it was not timed, though it has the op
    skipped: str = ""  # why nothing was timed

    def ratio(self, name: str) -> float | None:
        """Time of a library divided by fastce's."""
        if name not in self.timings or "fastce" not in self.timings:
            return None
        return self.timings[name].median / self.timings["fastce"].median

    def flops_per_second(self, name: str = "fastce") -> float | None:
        """Of attention that is bound by arithmetic."""
        if not self.case.is_products or self.case.traffic or name not in self.timings:
            return None
        return self.case.flops / self.timings[name].median

    def bytes_per_second(self, name: str = "fastce") -> float | None:
        """What a library moves through memory; None where the work fits in a cache."""
        if self.case.traffic < IN_CACHE or name not in self.timings:
            return None
        return self.case.traffic / self.timings[name].median


def measure(
    case: Case, names: list[str], quick: bool, tick: Callable[[str], None] = lambda name: None
) -> Result:
    """Make, verify and time one case in each of these libraries.

    `tick` is told which library is at work.
    """
    budget = TINY_SECONDS if is_tiny() else QUICK_SECONDS if quick else SECONDS
    needed = ARRAYS * case.nbytes
    if needed > _free_memory():
        return Result(case, {}, {}, f"needs {needed / 1e9:.0f} GB of free memory")
    try:
        data = make_inputs(case)
    except ImportError as error:  # ml_dtypes, for bfloat16
        return Result(case, {}, {}, str(error))
    ours = PEERS["fastce"].call("fastce", replace(case, into="fresh"), data)
    assert ours is not None
    expected = sample(ours.run())
    calls: dict[str, Call] = {}
    problems: dict[str, str] = {}
    for name in names:
        tick(name)
        try:
            call = PEERS[name].call(name, case, data)
            if call is None:
                continue
            with call.context():
                problem = disagreement(case, call.finish(call.run()), expected)
        except Exception as error:  # another library's failure must not stop the others
            problems[name] = f"{type(error).__name__}: {error}"
            continue
        if problem is None:
            calls[name] = call
        else:
            problems[name] = problem
    if case.traffic >= IN_CACHE:
        calls[LIMIT] = memory_call(case.traffic, case.writes, fastce.get_num_threads())
    elif case.is_products and case.flops >= IN_CALL:
        calls[LIMIT] = products_call(case.flops)
    timings = alternate(calls, budget, tick)
    del calls
    gc.collect()
    return Result(case, timings, problems)


def _free_memory() -> float:
    """Bytes that can still be allocated, as far as Linux says; elsewhere no limit."""
    free = float("inf")
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(s.split()[1]) * 1024 for s in lines if s.startswith("MemAvailable"))
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())  # "max" where there is none
        return min(free, limit - int((group / "memory.current").read_text()))
    except (OSError, ValueError, StopIteration):
        return free


def machine(versions: dict[str, str]) -> dict[str, Any]:
    """What the figures depend on: processor, threads, backend and versions."""
    facts = config()
    chosen = ("fastce", "python", "numpy", "platform", "processor", "isa_level", "threads")
    return {name: facts[name] for name in chosen} | {
        "backend": kernel("cross_entropy", "cross_entropy").__module__.split(".")[2],
        "libraries": versions,
    }


def to_json(facts: dict[str, Any], results: list[Result]) -> dict[str, Any]:
    """Every figure, for json.dump."""
    return {
        "machine": facts,
        "results": [
            {
                "case": asdict(result.case) | {"name": str(result.case)},
                "seconds": {name: t._asdict() for name, t in result.timings.items()},
                "ratio": {name: result.ratio(name) for name in result.timings},
                "bytes": result.case.traffic,
                "bytes_per_second": result.bytes_per_second(),
                "flops_per_second": result.flops_per_second(),
                "problems": result.problems,
                "skipped": result.skipped,
            }
            for result in results
        ],
    }
