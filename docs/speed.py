"""Draws the pictures of speed in docs/speed from the measurements that are committed beside them,
one of all cases and one for the page of each op, and writes the table in README.md from the same.

    python docs/speed.py

`fastce bench --json FILE` writes such measurements on your machine; `--plot FILE` draws them.
"""

import json
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from fastce._cli._report import COLOURS, seconds

DOCS = Path(__file__).parent
MACHINES = {"zen4": "filled: with AVX-512 (Zen 4)", "zen3": "open: with AVX2 (Zen 3)"}
LEAST, MOST = 0.35, 90  # of the axis, the same on every page
# A page's ops, without what follows their names for gradients.
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
# Rows of README's table; those in which fastce loses are all among them.
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


def page_of(op: str) -> str:
    plain = op.removesuffix("_with_grad").removesuffix("_backward")
    return next(page for page, ops in PAGES.items() if plain in ops)


def ratios(result: dict) -> dict[str, float]:
    """The times of the other libraries divided by fastce's."""
    ours = result["seconds"]["fastce"]["median"]
    return {
        library: taken["median"] / ours
        for library, taken in result["seconds"].items()
        if library in COLOURS
    }


def measured() -> dict[str, dict[str, dict[str, float]]]:
    """Of each case, by machine, the ratios by library."""
    cases: dict[str, dict[str, dict[str, float]]] = {}
    for machine in MACHINES:
        file = DOCS / "measurements" / f"{machine}.json"
        for result in json.loads(file.read_text())["results"]:
            if found := ratios(result):
                assert all(LEAST < ratio < MOST for ratio in found.values()), "too short an axis"
                cases.setdefault(result["case"]["name"], {})[machine] = found
    return cases


def table() -> list[str]:
    """The lines of README's table."""
    results = json.loads((DOCS / "measurements" / "zen4.json").read_text())["results"]
    found = {result["case"]["name"]: result for result in results}
    lines = ["| | fastce | PyTorch | SciPy | others |", "|---|---|---|---|---|"]
    for row in ROWS:
        cells = {library: _times(ratio) for library, ratio in ratios(found[row]).items()}
        main = [cells.pop(library, "") for library in ("torch", "scipy")]
        others = ", ".join(f"{NAMES.get(name, name)} {cell}" for name, cell in cells.items())
        op, rest = row.split(" ", 1)
        taken = seconds(found[row]["seconds"]["fastce"]["median"])
        lines.append(f"| `{op}` {rest} | {taken} | {' | '.join(main)} | {others} |")
    return lines


NAMES = {"jax": "JAX", "numpy": "NumPy"}


def _times(ratio: float) -> str:
    if ratio < 1:
        return f"**{ratio:.2f}x**"
    return f"{ratio:.1f}x" if ratio < 9.95 else f"{ratio:.0f}x"


def write_table(readme: Path) -> None:
    lines = "\n".join(table())
    old = re.compile(r"^\| \| fastce \| PyTorch .*\n(\|.*\n)+", re.MULTILINE)
    readme.write_text(old.sub(lambda _: lines + "\n", readme.read_text(), count=1))


def draw(cases: dict[str, dict[str, dict[str, float]]], file: Path) -> None:
    figure, axes = plt.subplots(figsize=(8.5, 0.24 * len(cases) + 1.2), layout="constrained")
    for y, machines in enumerate(reversed(cases.values())):
        axes.axhline(y, color="0.93", linewidth=4, zorder=0)
        for machine, found in machines.items():
            filled = machine == "zen4"
            height, style = y + (0.12 if filled else -0.12), "full" if filled else "none"
            for library, ratio in found.items():
                axes.plot(ratio, height, "o", color=COLOURS[library], fillstyle=style, markersize=4)
    libraries = {library for machines in cases.values() for r in machines.values() for library in r}
    for library in filter(libraries.__contains__, COLOURS):
        axes.plot([], [], "o", color=COLOURS[library], label=library)
    axes.set_yticks(range(len(cases)), list(cases)[::-1], fontsize=7)
    axes.set(xscale="log", xlabel="time of the library / time of fastce", ylim=(-1, len(cases)))
    axes.set_xlim(LEAST, MOST)
    axes.axvline(1, color="C3", linewidth=1)
    axes.set_xticks([0.5, 1, 2, 5, 10, 20, 50], ["0.5x", "1x", "2x", "5x", "10x", "20x", "50x"])
    axes.minorticks_off()
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("; ".join(MACHINES.values()), fontsize=7, loc="left")
    figure.legend(frameon=False, loc="outside upper right", ncols=len(COLOURS), fontsize=8)
    figure.savefig(file, dpi=70)
    plt.close(figure)


def main() -> None:
    write_table(DOCS.parent / "README.md")
    cases = measured()
    (DOCS / "speed").mkdir(exist_ok=True)
    draw(cases, DOCS / "speed" / "all.png")
    for page in PAGES:
        its = {case: r for case, r in cases.items() if page_of(case.split(" ")[0]) == page}
        draw(its, DOCS / "speed" / f"{page}.png")


if __name__ == "__main__":
    main()
