"""Measure each op on this machine against the reference and whichever peers are installed.

The libraries take turns in one process, each in its best form, and every result is first held
against fastce's. Ratios are the other library's time divided by fastce's: above 1, fastce is
faster. Compare ratios, not times: a machine's speed drifts, and the libraries see the same drift.
"""

import argparse
import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import fastce

from . import CommandError, printable
from ._cases import TRAFFIC, cases
from ._measure import Result, machine, measure, to_json
from .peers import PEERS, installed

if TYPE_CHECKING:
    from rich.console import Console

OTHERS = [name for name in PEERS if name != "fastce"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--quick", action="store_true", help="fewer and smaller cases, in under 40 seconds")
    add("--op", nargs="+", choices=list(TRAFFIC), metavar="NAME", help="only these ops")
    add("--peer", nargs="+", choices=OTHERS, metavar="NAME",
        help=f"only these libraries, of: {', '.join(map(repr, OTHERS))}")  # fmt: skip
    add("--threads", type=int, metavar="N", help="CPU threads (default: what fastce uses)")
    add("--plot", metavar="FILE", help="save a picture: .png, .svg or .pdf")
    add("--json", metavar="FILE", help="save every figure; - is stdout, with all else on stderr")


def run(args: argparse.Namespace) -> int:
    for package in ("rich", "matplotlib") if args.plot else ("rich",):
        if importlib.util.find_spec(package) is None:
            raise CommandError(
                f"needs {package}, of the extra cli: pip install '.[cli]' in a clone of fastce"
            )
    if args.plot:
        from matplotlib.backend_bases import FigureCanvasBase

        known = sorted(FigureCanvasBase.get_supported_filetypes())
        if Path(args.plot).suffix[1:].lower() not in known:
            raise CommandError(f"cannot write {args.plot}: known endings: {', '.join(known)}")
    for name in (args.plot, args.json):  # better now than after minutes of measuring
        if name not in (None, "-"):
            try:
                open(name, "ab").close()
            except OSError as error:
                raise CommandError(f"cannot write {name}: {error.strerror}") from error
    before = fastce.get_num_threads()
    try:
        fastce.set_num_threads(before if args.threads is None else args.threads)
    except ValueError as error:
        raise CommandError(f"--threads: {error}") from error
    try:
        return _run(args)
    finally:
        fastce.set_num_threads(before)


def _run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from ._report import plot, show

    stream = sys.stderr if args.json == "-" else sys.stdout
    console = Console(file=stream, width=None if stream.isatty() else 130)
    versions, missing = installed(["fastce", *(args.peer or OTHERS)])
    for name, reason in missing.items():
        console.print(f"{name} is not here: {printable(reason)}", markup=False, highlight=False)
    results = _measure_all(args, list(versions), console)
    facts = machine(versions)
    show(console, facts, results)
    if args.plot:
        plot(args.plot, facts, results)
        console.print(f"picture: {printable(args.plot)}", markup=False, highlight=False)
    if args.json:
        text = json.dumps(to_json(facts, results), indent=2) + "\n"
        if args.json == "-":
            sys.stdout.write(text)
        else:
            Path(args.json).write_text(text)
    # Where its own backends disagree, fastce is wrong, and its speed worth nothing.
    ours = {"fastce", "reference", "numba"}
    return int(any(ours & set(result.problems) for result in results))


def _measure_all(args: argparse.Namespace, names: list[str], console: "Console") -> list[Result]:
    """The cases one after another, with a bar that is redrawn between turns, never during one."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    chosen = [case for case in cases(args.quick) if not args.op or case.op in args.op]
    columns = (
        BarColumn(30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    results = []
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as progress:
        task = progress.add_task("", total=len(chosen))
        drawn = time.monotonic()

        def tick(name: str) -> None:
            nonlocal drawn
            progress.update(task, description=f"{case}: {name}")
            if time.monotonic() - drawn > 0.1:
                progress.refresh()
                drawn = time.monotonic()

        for case in chosen:
            results.append(measure(case, names, args.quick, tick))
            progress.advance(task)
    return results
