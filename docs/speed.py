"""Draws docs/speed.png from the measurements that are committed beside it.

    python docs/speed.py

`fastce bench --json FILE` writes such a file on your machine; `--plot FILE` draws it at once.
"""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DOCS = Path(__file__).parent
COLORS = {"torch": "C1", "scipy": "C0", "jax": "C2", "scikit-learn": "C4"}


def ratios(results: list[dict]) -> dict[str, dict[str, float]]:
    """Of each case: the times of the other libraries divided by fastce's."""
    return {
        result["case"]["name"].replace("_cross_entropy", "_ce"): {
            library: taken["median"] / result["seconds"]["fastce"]["median"]
            for library, taken in result["seconds"].items()
            if library in COLORS
        }
        for result in results
    }


def main() -> None:
    measured = json.loads((DOCS / "measurements" / "zen4.json").read_text())
    cases = {k: v for k, v in ratios(measured["results"]).items() if v}
    figure, axes = plt.subplots(figsize=(8.5, 0.21 * len(cases) + 1), layout="constrained")
    for y, found in enumerate(reversed(cases.values())):
        axes.plot([1, max(*found.values(), 1)], [y, y], color="0.9", linewidth=4, zorder=0)
        for library, ratio in found.items():
            axes.plot(ratio, y, "o", color=COLORS[library], markersize=5)
    for library, color in COLORS.items():
        axes.plot([], [], "o", color=color, label=library)
    axes.set_yticks(range(len(cases)), list(cases)[::-1], fontsize=7)
    axes.set(xscale="log", xlabel="time of the library / time of fastce", ylim=(-1, len(cases)))
    axes.axvline(1, color="C3", linewidth=1)
    axes.set_xticks([0.5, 1, 2, 5, 10, 20, 50], ["0.5x", "1x", "2x", "5x", "10x", "20x", "50x"])
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(DOCS / "speed.png", dpi=70)


if __name__ == "__main__":
    main()
