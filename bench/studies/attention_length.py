"""Draws docs/attention.png: time and memory of attention against length, beside the formula.

    python bench/studies/attention_length.py

It keeps the measurements in docs/measurements/attention_length.json; with --draw the picture is
drawn from there. Each point is a process of its own, so its peak memory is its own. One head of
width 64, float32, on one thread, whose time counts only while it runs: that is the same where
others use the processor. Needs Linux, which can forget the peak of a process before the call that
is measured. It counts the pages of a thread by batches: small numbers are known to some 0.2 MB.
"""

import ctypes
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

LENGTHS = [256, 512, 1024, 2048, 4096, 8192, 16384, 32768]
LONGEST = {"formula": 16384}  # beyond, its scores alone would take 4 GB
ROOT = Path(__file__).parents[2]
MEASURED = ROOT / "docs" / "measurements" / "attention_length.json"
WIDTH = 64
COLOURS = {"formula": "#4c78a8", "fastce": "#e45756"}


def formula(q, k, v):
    """softmax(q k^T / sqrt(E)) v, as it reads."""
    s = q @ k.T / np.float32(np.sqrt(q.shape[1]))
    p = np.exp(s - s.max(-1, keepdims=True))
    return (p / p.sum(-1, keepdims=True)) @ v


def resident(field: str) -> int:
    """Bytes of this process in memory now (VmRSS), or at the peak (VmHWM)."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])


def point(name: str, length: int) -> None:
    """Prints seconds, and bytes beyond the inputs at the peak, the result among them."""
    import fastce

    fastce.set_num_threads(1)
    function = formula if name == "formula" else fastce.scaled_dot_product_attention
    q, k, v = (
        np.random.default_rng(i).standard_normal((length, WIDTH), dtype="f4") for i in range(3)
    )
    function(q[:64], k[:64], v[:64])
    ctypes.CDLL(None).malloc_trim(0)  # what the call before has left
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident("VmRSS")
    function(q, k, v)
    nbytes = resident("VmHWM") - before
    taken = []
    while len(taken) < 3 or (sum(taken) < 0.3 and len(taken) < 50):
        start = time.process_time()
        function(q, k, v)
        taken.append(time.process_time() - start)
    print(min(taken), nbytes)


def measure(name: str) -> dict[str, list[float]]:
    points: dict[str, list[float]] = {"length": [], "seconds": [], "bytes": []}
    env = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    for length in LENGTHS:
        if length <= LONGEST.get(name, length):
            command = [sys.executable, __file__, "--point", name, str(length)]
            done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
            seconds, nbytes = map(float, done.stdout.split())
            for key, value in zip(points, (length, seconds, nbytes), strict=True):
                points[key].append(value)
            print(f"{name:8} {length:6} {seconds * 1e3:10.3f} ms {nbytes / 1e6:10.2f} MB")
    return points


def draw(measured: dict[str, dict[str, list[float]]]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    results = [length * WIDTH * 4 / 1e6 for length in LENGTHS]
    right.loglog(LENGTHS, results, "--", color="0.6", label="the result alone")
    for name, colour in COLOURS.items():
        lengths, seconds, nbytes = (np.array(column) for column in measured[name].values())
        left.loglog(lengths, seconds * 1e3, "o-", color=colour, label=name)
        right.loglog(lengths, nbytes / 1e6, "o-", color=colour, label=name)
    left.set(title="time of one thread", ylabel="ms", xlabel="queries and keys")
    right.set(title="memory beyond the inputs, at the peak", ylabel="MB", xlabel="queries and keys")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(ROOT / "docs" / "attention.png", dpi=110)


def main() -> None:
    if sys.argv[1:2] == ["--point"]:
        point(sys.argv[2], int(sys.argv[3]))
        return
    if sys.argv[1:] != ["--draw"]:
        MEASURED.write_text(json.dumps({name: measure(name) for name in COLOURS}, indent=2) + "\n")
    draw(json.loads(MEASURED.read_text()))


if __name__ == "__main__":
    main()
