"""Draws the pictures of speed in docs/speed from the measurements that are committed beside them:
one of all cases, and one for the page of each op.

    python docs/speed.py

`fastce bench --json FILE` writes such measurements on your machine; `--plot FILE` draws them.
"""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from fastce._cli._report import COLOURS

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
    cases = measured()
    (DOCS / "speed").mkdir(exist_ok=True)
    draw(cases, DOCS / "speed" / "all.png")
    for page in PAGES:
        its = {case: r for case, r in cases.items() if page_of(case.split(" ")[0]) == page}
        draw(its, DOCS / "speed" / f"{page}.png")


if __name__ == "__main__":
    main()
