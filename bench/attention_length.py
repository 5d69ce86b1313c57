"""Draws docs/attention.png: time and memory of attention against length, beside the formula.

    python bench/attention_length.py [FILE]

Each point is a process of its own, so its peak memory is its own. One head of width 64, float32.
"""

import resource
import subprocess
import sys
import time

import numpy as np

LENGTHS = [256, 512, 1024, 2048, 4096, 8192, 16384, 32768]
LONGEST = {"formula": 16384}  # beyond, its scores alone would take 4 GB
COLOURS = {"formula": "#4c78a8", "fastce": "#e45756"}


def formula(q, k, v):
    """softmax(q k^T / sqrt(E)) v, as it reads."""
    s = q @ k.T / np.float32(np.sqrt(q.shape[1]))
    p = np.exp(s - s.max(-1, keepdims=True))
    return (p / p.sum(-1, keepdims=True)) @ v


def point(name: str, length: int) -> None:
    """Prints seconds, and bytes beyond the inputs at the peak."""
    import fastce

    function = formula if name == "formula" else fastce.scaled_dot_product_attention
    q, k, v = (np.random.default_rng(i).standard_normal((length, 64), dtype="f4") for i in range(3))
    function(q[:64], k[:64], v[:64])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    taken = []
    while len(taken) < 3 or (sum(taken) < 0.3 and len(taken) < 50):
        start = time.perf_counter()
        function(q, k, v)
        taken.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(np.median(taken), (peak - before) * 1024)


def measure(name: str) -> list[tuple[int, float, float]]:
    points = []
    for length in LENGTHS:
        if length <= LONGEST.get(name, length):
            command = [sys.executable, __file__, "--point", name, str(length)]
            shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            seconds, nbytes = map(float, shown.split())
            points.append((length, seconds, nbytes))
            print(f"{name:8} {length:6} {seconds * 1e3:10.3f} ms {nbytes / 1e6:10.1f} MB")
    return points


def main(path: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for name, colour in COLOURS.items():
        lengths, seconds, nbytes = zip(*measure(name), strict=True)
        left.loglog(lengths, np.array(seconds) * 1e3, "o-", color=colour, label=name)
        right.loglog(lengths, np.array(nbytes) / 1e6 + 0.1, "o-", color=colour, label=name)
    left.set(title="time", ylabel="ms", xlabel="queries and keys")
    right.set(title="memory beyond the inputs, at the peak", ylabel="MB", xlabel="queries and keys")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--point"]:
        point(sys.argv[2], int(sys.argv[3]))
    else:
        main(*(sys.argv[1:2] or ["docs/attention.png"]))
