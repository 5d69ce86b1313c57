"""Shows benchmark results: a table by rich, a picture by matplotlib."""

from collections.abc import Iterator
from itertools import groupby
from statistics import median
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ._measure import LIMIT, Result

WIDTH = 124  # columns of the full table; a narrower terminal breaks lines rather than lose figures
# One colour per library in every picture.
COLOURS = {
    "reference": "#bdbdbd",
    "numba": "#54a24b",
    "numpy": "#4c78a8",
    "scipy": "#72b7b2",
    "scikit-learn": "#eeca3b",
    "torch": "#e45756",
    "torch by hand": "#ff9da6",
    "jax": "#b279a2",
}


def show(console: Console, facts: dict[str, Any], results: list[Result]) -> None:
    """The table, and under it what it was measured on."""
    others = [name for name in COLOURS if any(name in r.timings | r.problems for r in results)]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("case", min_width=30)
    for heading in ("fastce", "speed", "of limit", *others):
        lines = heading.replace(" ", "\n").replace("-", "-\n")
        table.add_column(lines, justify="right", no_wrap=True)
    for op, group in groupby(results, key=lambda result: result.case.op):
        table.add_row(f"[bold]{op}[/]")
        for result in group:
            table.add_row(f"  {escape(result.case.label)}", *_cells(result, others))
        table.add_section()
    console.width = max(console.width, WIDTH)
    console.print(table)
    for line in _notes(facts, results, others):
        console.print(line, highlight=False)


def _cells(result: Result, others: list[str]) -> Iterator[str]:
    ours = result.timings.get("fastce")
    if ours is None:
        yield "-"
        return
    spread = (ours.q3 - ours.q1) / 2 / ours.median
    yield f"{seconds(ours.median)} [dim]±{spread:3.0%}[/]"
    speed, flops, fraction = (
        result.bytes_per_second(),
        result.flops_per_second(),
        result.ratio(LIMIT),
    )
    yield (f"{speed / 1e9:.1f} GB/s" if speed else f"{flops / 1e9:.0f} GFLOP/s" if flops else "")
    yield f"{fraction:.0%}" if fraction else ""
    for name in others:
        ratio = result.ratio(name)
        if ratio is None:
            yield "[red]left out[/]" if name in result.problems else ""
        else:
            yield f"[red]{times(ratio)}[/]" if ratio < 1 else times(ratio)


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


def _threads(facts: dict[str, Any]) -> str:
    return "1 thread" if facts["threads"] == 1 else f"{facts['threads']} threads"


def _notes(facts: dict[str, Any], results: list[Result], names: list[str]) -> Iterator[str]:
    yield (
        f"{escape(facts['processor'])}, {_threads(facts)}, {facts['isa_level']}, "
        f"backend {facts['backend']}; {escape(facts['platform'])}"
    )
    versions = {"python": facts["python"], "numpy": facts["numpy"], **facts["libraries"]}
    versions |= {"fastce": facts["fastce"]}
    shown = {name: v for name, v in versions.items() if name not in ("reference", "torch by hand")}
    yield ", ".join(f"{name} {version}" for name, version in shown.items())
    yield (
        "Under a library: its time divided by fastce's, above 1 where fastce is faster. "
        "±: half the distance between the quartiles."
    )
    speeds = [
        f"{what} {median(found):.1f} GB/s"
        for what, writes in (("copying", True), ("reading", False))
        if (found := [s for r in results if r.case.writes == writes for s in _memory_speed(r)])
    ]
    if speeds:
        yield (
            "Limit: memory copies as many bytes, or reads them for an op that writes none; in turn "
            f"with the libraries, on median {', '.join(speeds)}."
        )
    products = [s / 1e9 for r in results if (s := r.flops_per_second(LIMIT))]
    if products:
        yield (
            "Limit of products: NumPy's matrix products of float32 in as many operations, on "
            f"median {median(products):.0f} GFLOP/s."
        )
    if "torch by hand" in names:
        yield "torch: its functions and autograd; by hand: the same written over one reused array."
    if "jax" in names:
        yield "jax runs on as many threads as XLA takes, and like scipy has no out=."
    for result in results:
        if result.skipped:
            yield f"[yellow]skipped {escape(f'{result.case}: {result.skipped}')}[/]"
        for name, problem in result.problems.items():
            yield f"[red]{name} left out of {escape(f'{result.case}: {problem}')}[/]"


def _memory_speed(result: Result) -> list[float]:
    speed = result.bytes_per_second(LIMIT)
    return [speed / 1e9] if speed else []


def plot(path: str, facts: dict[str, Any], results: list[Result]) -> None:
    """One bar per case and library: its time divided by fastce's, on a logarithmic axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    ratios = {
        result.case: {name: r for name in COLOURS if (r := result.ratio(name)) is not None}
        for result in results
    }
    ratios = {case: bars for case, bars in ratios.items() if bars}
    values = [ratio for bars in ratios.values() for ratio in bars.values()] or [1.0]
    height, gap = 0.16, 0.22  # inches: of a bar, and between two cases
    inches = sum(len(bars) * height + gap for bars in ratios.values())
    figure = Figure(figsize=(9, inches + 1.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    y, ticks = gap / 2, []
    for bars in ratios.values():
        ticks.append(y + len(bars) * height / 2)
        for name, ratio in bars.items():
            wins = ratio >= 1
            middle = y + height / 2
            axes.barh(middle, ratio - 1, height * 0.86, left=1, color=COLOURS[name])
            axes.annotate(
                times(ratio), (ratio, middle), (3 if wins else -3, 0),
                textcoords="offset points", va="center_baseline", ha="left" if wins else "right",
                fontsize=7, color="black" if wins else "#c00000",
            )  # fmt: skip
            y += height
        y += gap
        axes.axhline(y - gap / 2, color="#e0e0e0", linewidth=0.6, zorder=0)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlim(min(0.8, min(values) * 0.6), max(1.25, max(values) * 1.4))
    axes.xaxis.set_major_formatter(lambda ratio, _: f"{ratio:g}x")
    axes.xaxis.set_minor_formatter("")
    axes.set_ylim(y - gap / 2, 0)
    axes.set_yticks(ticks, [f"{case.op}\n{case.label}" for case in ratios], fontsize=8)
    axes.tick_params(axis="y", length=0)
    title = f"fastce {facts['fastce']}, {facts['processor']}, {_threads(facts)}"
    axes.set_title(title, fontsize=9)
    axes.spines[["left", "right", "top"]].set_visible(False)
    axes.set_xlabel("time of the library / time of fastce   (right of the line: fastce is faster)")
    names = [name for name in COLOURS if any(name in bars for bars in ratios.values())]
    figure.legend(
        handles=[Patch(color=COLOURS[name], label=name) for name in names],
        loc="outside upper center", ncols=len(names), fontsize=8, frameon=False,
    )  # fmt: skip
    figure.savefig(path, dpi=150)
