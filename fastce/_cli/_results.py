"""Results of `fastce bench` and of bench/peers: as lines of a table, and as JSON."""

import argparse
import contextlib
import json
import math
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import fastce
from fastce._runtime.config import config
from fastce._runtime.dispatch import kernel

from ._output import CommandError, printable
from ._timing import Timing

LABEL = 42  # columns
LEGEND = """\
Limit: a copy of as many bytes, or a read where the op writes none; of products, NumPy's float32.
Last columns: time of the other divided by that of fastce. ±: half the interquartile range.
"""


class Result(NamedTuple):
    """The timings of one case. The limit is timed under the name "limit"."""

    op: str
    label: str
    timings: dict[str, Timing]
    nbytes: int = 0  # read and written
    flops: float = 0.0  # of products
    notes: tuple[str, ...] = ()  # what is not in the timings, and why

    def ratio(self, name: str) -> float | None:
        """Time of a library divided by fastce's."""
        if name not in self.timings or "fastce" not in self.timings:
            return None
        return self.timings[name].median / self.timings["fastce"].median

    def to_json(self) -> dict[str, Any]:
        """Every figure; of seconds the median and the two quartiles."""
        return {
            "name": f"{self.op} {self.label}",
            "seconds": {name: list(timing[:3]) for name, timing in self.timings.items()},
            "ratio": {name: self.ratio(name) for name in self.timings},
            "bytes": self.nbytes,
            "flops": self.flops,
            "notes": self.notes,
        }


def add_arguments_of(parser: argparse.ArgumentParser, ops: Iterable[str]) -> None:
    """The arguments that `run_all` takes."""
    add, names = parser.add_argument, list(dict.fromkeys(ops))
    add("--quick", action="store_true", help="fewer and smaller cases, in under 40 seconds")
    add("--op", nargs="+", choices=names, metavar="NAME", help="only these ops")
    add("--threads", type=int, metavar="N", help="CPU threads (default: what fastce uses)")
    add("--json", metavar="FILE", help="save every figure; - is stdout, with all else on stderr")


def run_all(
    args: argparse.Namespace,
    cases: Iterable[Any],
    measure: Callable[[Any, bool], Result],
    versions: dict[str, str],
    others: list[str],
) -> tuple[dict[str, Any], list[Result]]:
    """Measure the chosen cases, print each as it comes, and save the JSON."""
    if args.json not in (None, "-"):
        check_writable(args.json)
    stream = sys.stderr if args.json == "-" else sys.stdout
    before, results, op = fastce.get_num_threads(), [], ""
    try:
        fastce.set_num_threads(before if args.threads is None else args.threads)
    except ValueError as error:
        raise CommandError(f"--threads: {error}") from error
    try:
        facts = machine(versions)
        print(*heading(facts, others), sep="\n", file=stream, flush=True)
        for case in cases:
            if args.op and case.op not in args.op:
                continue
            results.append(measure(case, args.quick))
            title = [case.op] if case.op != op else []
            print(*title, *lines(results[-1], others), sep="\n", file=stream, flush=True)
            op = case.op
    finally:
        fastce.set_num_threads(before)
    print(f"\n{LEGEND}", file=stream)
    text = json.dumps({"machine": facts, "results": [r.to_json() for r in results]}, indent=1)
    if args.json == "-":
        print(text)
    elif args.json:
        Path(args.json).write_text(f"{text}\n")
    return facts, results


def machine(versions: dict[str, str]) -> dict[str, Any]:
    """What the figures depend on: processor, threads, backend and versions."""
    facts = config()
    chosen = ("fastce", "python", "numpy", "platform", "processor", "isa_level", "threads")
    return {name: facts[name] for name in chosen} | {
        "backend": kernel("cross_entropy", "cross_entropy").__module__.split(".")[2],
        "libraries": versions,
    }


def heading(facts: dict[str, Any], others: list[str]) -> list[str]:
    """What was measured on, and the names of the columns."""
    versions = {name: facts[name] for name in ("fastce", "python", "numpy")} | facts["libraries"]
    threads = "1 thread" if facts["threads"] == 1 else f"{facts['threads']} threads"
    return [
        f"{facts['processor']}, {threads}, {facts['isa_level']}, backend {facts['backend']}; "
        f"{facts['platform']}",
        ", ".join(f"{name} {version}" for name, version in versions.items()),
        "",
        _line("", ["fastce", "", "speed", "of limit", *others], others),
    ]


def lines(result: Result, others: list[str]) -> list[str]:
    """A result, under `heading`, and what is to be said of it."""
    cells = []
    if ours := result.timings.get("fastce"):
        limit = result.ratio("limit")
        rate = f"{result.nbytes / ours.median / 1e9:.3g} GB/s" if result.nbytes else ""
        rate = f"{result.flops / ours.median / 1e9:.0f} GFLOP/s" if result.flops else rate
        cells = [seconds(ours.median), f"±{(ours.q3 - ours.q1) / 2 / ours.median:.0%}"]
        cells += [rate if limit else "", f"{limit:.0%}" if limit else ""]
        ratios = [result.ratio(name) for name in others]
        cells += ["" if ratio is None else times(ratio) for ratio in ratios]
    notes = [f"    {printable(note)}" for note in result.notes]
    return [_line(result.label, cells, others), *notes]


def _line(label: str, cells: list[str], others: list[str]) -> str:
    widths = [9, 6, 13, 10, *(max(9, len(name) + 2) for name in others)]
    padded = [f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=False)]
    return f"  {label:{LABEL}}{''.join(padded)}".rstrip()


def seconds(value: float) -> str:
    """With three digits and a unit."""
    unit, size = "s", 1.0
    if value < 1:
        unit, size = ("ms", 1e-3) if value >= 1e-3 else ("µs", 1e-6)
    return f"{value / size:.3g} {unit}" if value < 1000 * size else f"{value / size:.0f} {unit}"


def times(ratio: float) -> str:
    """With three digits, none of them behind the point from 100 on."""
    decimals = 2 if ratio < 9.995 else 1 if ratio < 99.95 else 0
    return f"{ratio:.{decimals}f}x"


def check_writable(path: str) -> None:
    """Find out before minutes of measuring, not after."""
    try:
        open(path, "ab").close()
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror}") from error


def check_memory(needed: float) -> None:
    """Raise MemoryError where less is free, as far as Linux says."""
    free = math.inf
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(s.split()[1]) * 1024 for s in lines if s.startswith("MemAvailable"))
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())  # "max" where there is none
        free = min(free, limit - int((group / "memory.current").read_text()))
    if needed > free:
        raise MemoryError(f"needs {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free")
