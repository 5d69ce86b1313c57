"""Progress through the rows of a file, on stderr: a bar by rich where it is installed."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ._output import complain

Show = Callable[[int, float, float], None]  # rows done, MB/s, loss so far


@contextmanager
def progress(rows: int) -> Iterator[Show]:
    """Gives the function to call after each block of rows."""
    if not sys.stderr.isatty():  # a log: a line now and then
        yield _lines(rows, terminal=False)
        return
    try:
        import rich.console
        import rich.progress as bar
    except ImportError:  # the extra "cli" is not installed
        try:
            yield _lines(rows, terminal=True)
        finally:
            complain("")
        return
    columns = (
        bar.TextColumn("{task.completed:,.0f} of {task.total:,.0f} rows"),
        bar.BarColumn(),
        bar.TaskProgressColumn(),
        bar.TextColumn("{task.fields[speed]:,.0f} MB/s"),
        bar.TextColumn("loss {task.fields[loss]:.6f}"),
        bar.TimeRemainingColumn(),
    )
    with bar.Progress(*columns, console=rich.console.Console(stderr=True)) as live:
        task = live.add_task("", total=rows, speed=0.0, loss=float("nan"))

        def show(done: int, speed: float, loss: float) -> None:
            live.update(task, completed=done, speed=speed, loss=loss)

        yield show


def _lines(rows: int, terminal: bool) -> Show:
    """One line that is written over and over, or a new one every ten seconds."""
    every = 0.1 if terminal else 10.0
    due = time.monotonic() + every

    def show(done: int, speed: float, loss: float) -> None:
        nonlocal due
        if time.monotonic() >= due or (terminal and done == rows):
            due = time.monotonic() + every
            line = f"{done:,} of {rows:,} rows  {speed:,.0f} MB/s  loss {loss:.6f}"
            line = f"\r{line:<79}" if terminal else f"{line}\n"
            complain(line, end="")

    return show
