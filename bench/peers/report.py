"""Makes the tables and pictures of speed in README.md and docs/ from docs/measurements.

    python -m bench.peers.report

`python -m bench.peers --json FILE` writes such measurements.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastce._cli._results import Result, seconds, times

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
# One colour per library in every picture.
COLOURS = {
    "reference": "#9d9d9d",
    "numba": "#54a24b",
    "numpy": "#4c78a8",
    "scipy": "#72b7b2",
    "scikit-learn": "#d9a520",
    "torch": "#e45756",
    "torch by hand": "#ff9da6",
    "jax": "#b279a2",
}
NAMES = {"numpy": "NumPy", "scipy": "SciPy", "torch": "PyTorch", "jax": "JAX", "limit": "of limit"}
MACHINES = {"zen4": "AMD EPYC (Zen 4, AVX-512)", "zen3": "AMD EPYC (Zen 3, AVX2)"}
SPAN = 0.5, 100.0  # of the axis, the same on every page
# The ops of a page's picture, without what follows their names for gradients.
PAGES = {
    "log_softmax": ("logsumexp", "log_softmax", "softmax"),
    "cross_entropy": ("cross_entropy",),
    "binary_cross_entropy": (
        "binary_cross_entropy",
        "binary_cross_entropy_with_logits",
        "sigmoid_focal_loss",
    ),
    "categorical_cross_entropy": ("categorical_cross_entropy",),
    "robust_losses": ("focal_loss",),
    "linear_cross_entropy": ("linear_cross_entropy",),
    "attention": ("scaled_dot_product_attention",),
    "information": ("information.entropy", "information.kl_divergence"),
}
# Rows of README's table; those in which fastce is slower are all among them.
ROWS = (
    "cross_entropy (4096, 32000)",
    "cross_entropy (65536, 1000)",
    "cross_entropy (1024, 128256)",
    "cross_entropy (64, 1000, 32, 32), axis=1",
    "cross_entropy (32, 1000)",
    "cross_entropy_with_grad (4096, 32000), fresh",
    "cross_entropy_with_grad (4096, 32000), in place",
    "cross_entropy_with_grad (65536, 1000), fresh",
    "cross_entropy_with_grad (65536, 1000), in place",
    "cross_entropy_with_grad (1000000, 10), out=",
    "logsumexp (4096, 32000)",
    "log_softmax (4096, 32000), out=",
    "log_softmax (4096, 32000), fresh",
    "log_softmax (64, 1000, 32, 32), axis=1, out=",
    "log_softmax (4096, 32000), bfloat16, out=",
    "log_softmax (4096, 16000), float64, out=",
    "log_softmax (1, 10), fresh",
    "log_softmax (32, 1000), fresh",
    "softmax (4096, 32000), out=",
    "softmax (1000000, 10), out=",
    "softmax (1, 10), fresh",
    "focal_loss_with_grad (65536, 1000), fresh",
    "binary_cross_entropy_with_logits (20000000,)",
    "binary_cross_entropy_with_logits (1000,)",
    "binary_cross_entropy_with_logits_with_grad (20000000,), out=",
    "sigmoid_focal_loss (20000000,)",
    "categorical_cross_entropy (65536, 1000)",
    "information.entropy (65536, 1000)",
    "information.kl_divergence (65536, 1000)",
    "linear_cross_entropy (2048, 32000), width 1024",
    "linear_cross_entropy_with_grad (2048, 32000), width 1024",
    "linear_cross_entropy_with_grad (2048, 32000), width 1024, bfloat16",
)

Ratios = dict[str, float]  # time of each library divided by fastce's


def measured(machine: str) -> dict[str, Any]:
    """The committed measurements of a machine."""
    return json.loads((DOCS / "measurements" / f"{machine}.json").read_text())


def ratios(medians: dict[str, float]) -> Ratios:
    return {name: taken / medians["fastce"] for name, taken in medians.items() if name != "fastce"}


def cases_of(machine: str) -> dict[str, dict[str, float]]:
    """Of each case, the median seconds of each library, and of the limit."""
    return {
        result["name"]: {name: taken[0] for name, taken in result["seconds"].items()}
        for result in measured(machine)["results"]
    }


def table(machine: str, names: Iterable[str] | None = None, limit: bool = True) -> str:
    """Of these cases, or of all, in Markdown."""
    cases = cases_of(machine)
    columns = [*(["limit"] if limit else []), "torch", "scipy"]
    lines = [
        f"| | fastce | {' | '.join(NAMES[name] for name in columns)} | others |",
        f"|---|{'---|' * (len(columns) + 2)}",
    ]
    for case in names or cases:
        found = ratios(cases[case])
        share = found.pop("limit", None)
        cells = {name: _times(ratio) for name, ratio in found.items()}
        cells["limit"] = f"{share:.0%}" if share else ""
        main = [cells.pop(name, "") for name in ("limit", "torch", "scipy")][-len(columns) :]
        others = ", ".join(f"{NAMES.get(name, name)} {cell}" for name, cell in cells.items())
        op, label = case.split(" ", 1)
        ours = seconds(cases[case]["fastce"])
        lines.append(f"| `{op}` {label} | {ours} | {' | '.join(main)} | {others} |")
    return "".join(f"{line}\n" for line in lines)


def _times(ratio: float) -> str:
    if ratio < 1:
        return f"**{ratio:.2f}x**"
    return f"{ratio:.1f}x" if ratio < 9.95 else f"{ratio:.0f}x"


def tables() -> dict[Path, dict[str, str]]:
    """Of each file, its tables by the name in the comment above them."""
    return {
        ROOT / "README.md": {"zen4": table("zen4", ROWS, limit=False)},
        DOCS / "benchmarks.md": {machine: table(machine) for machine in MACHINES},
    }


def with_tables(text: str, found: dict[str, str]) -> str:
    """`text` where the table under each `<!-- measurements: NAME -->` is the one found."""
    for name, lines in found.items():
        mark = f"<!-- measurements: {name} -->\n\n"
        old = re.compile(rf"{mark}(\|.*\n)*")
        assert len(old.findall(text)) == 1, f"not one {mark}"
        text = old.sub(lambda _, new=mark + lines: new, text)
    return text


def page(name: str) -> tuple[str, dict[str, Ratios]]:
    """The machine of a page's picture, and its cases."""
    for machine in MACHINES:
        found = {
            case: {name: r for name, r in ratios(medians).items() if name in COLOURS}
            for case, medians in cases_of(machine).items()
            if re.sub("_with_grad$|_backward$", "", case.split(" ")[0]) in PAGES[name]
        }
        if found:
            return machine, found
    raise ValueError(f"no measurements of {name}")


def digest(machine: str, cases: dict[str, Ratios]) -> str:
    """What a picture keeps of the figures it was drawn from."""
    figures = hashlib.sha256(json.dumps(cases).encode()).hexdigest()
    return f"docs/measurements/{machine}.json, sha256 of the figures {figures}"


def title(name: str, facts: dict[str, Any], cases: dict[str, Ratios]) -> str:
    """The machine, and the versions of the libraries that take part."""
    shown = {name for found in cases.values() for name in found}
    versions = {"numpy": facts["numpy"], **facts["libraries"]}
    libraries = [f"{NAMES.get(n, n)} {v}" for n, v in versions.items() if n in shown]
    threads = "1 thread" if facts["threads"] == 1 else f"{facts['threads']} threads"
    return f"{name}, {threads}; {', '.join(libraries)}"


def draw_results(path: str, facts: dict[str, Any], results: list[Result]) -> None:
    """A picture of results that were just measured."""
    cases = {
        f"{result.op} {result.label}": {
            name: ratio for name in COLOURS if (ratio := result.ratio(name)) is not None
        }
        for result in results
    }
    draw(path, title(facts["processor"], facts, cases), cases)


def draw(
    path: str | Path,
    heading: str,
    cases: dict[str, Ratios],
    span: tuple[float, float] | None = None,
    source: str = "",
) -> None:
    """Bars on a logarithmic axis, legible at a width of 750 pixels; cases grouped by op."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    height, gap, line = 0.17, 0.1, 0.27  # inches: of a bar, between cases, of an op's name
    y, ops, labels, bars = 0.0, {}, {}, []
    for case, found in cases.items():
        op, label = case.split(" ", 1)
        if op not in ops.values():
            ops[y + line / 2] = op
            y += line
        labels[y + len(found) * height / 2] = label
        for name in filter(found.__contains__, COLOURS):
            bars.append((y + height / 2, name, found[name]))
            y += height
        y += gap
    low = min([0.8, *(0.6 * ratio for _, _, ratio in bars)])
    high = max([1.25, *(2 * ratio for _, _, ratio in bars)])
    low, high = span or (low, high)
    assert all(low < ratio < high for _, _, ratio in bars), f"the axis ends at {high}"
    figure = Figure(figsize=(7.5, y + 1.3), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for place, name, ratio in bars:
        wins = ratio >= 1
        axes.barh(place, ratio - 1, height * 0.85, left=1, color=COLOURS[name])
        axes.annotate(
            times(ratio), (ratio, place), (3 if wins else -3, 0), textcoords="offset points",
            va="center_baseline", ha="left" if wins else "right", fontsize=8,
            color="black" if wins else "#c00000",
        )  # fmt: skip
    axes.set(xscale="log", xlim=(low, high), ylim=(y, 0))
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlabel("time of the library / time of fastce (above 1x, fastce is faster)", fontsize=9)
    axes.set_xticks([t for t in (0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if low <= t <= high])
    axes.xaxis.set_major_formatter(lambda ratio, _: f"{ratio:g}x")
    axes.minorticks_off()
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.set_yticks([*ops, *labels], [*ops.values(), *labels.values()], fontsize=9)
    for tick in axes.get_yticklabels()[: len(ops)]:
        tick.set_fontweight("bold")
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=9)
    axes.spines[["left", "right", "top"]].set_visible(False)
    figure.suptitle(heading, fontsize=8.5, x=0.01, ha="left", wrap=True)
    shown = [name for name in COLOURS if any(name in found for found in cases.values())]
    figure.legend(
        handles=[Patch(color=COLOURS[name], label=NAMES.get(name, name)) for name in shown],
        loc="outside lower center", ncols=min(4, len(shown)), fontsize=9, frameon=False,
    )  # fmt: skip
    metadata = {"Source": source} if source else None
    figure.savefig(path, dpi=130, metadata=metadata)


def main() -> None:
    for file, found in tables().items():
        file.write_text(with_tables(file.read_text(), found))
    for name in PAGES:
        machine, cases = page(name)
        heading = title(MACHINES[machine], measured(machine)["machine"], cases)
        file = DOCS / "speed" / f"{name}.png"
        draw(file, heading, cases, SPAN, digest(machine, cases))


if __name__ == "__main__":
    main()
