"""fastce on a GPU: bandwidth beside that of a device copy, and time beside PyTorch's and Liger's.

    python bench/studies/gpu.py [--quick] [--save figures.json]

Needs PyTorch with CUDA; Liger (the package liger-kernel) where it is installed. Medians of device
events; the calls alternate in one process, with arrays larger than the cache. Each op into its
output, or in place, as each library can.
"""

import argparse
import json
import statistics
import time

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional

import fastce

CLASSES = (1024, 4096, 8192, 16384, 32768, 65536, 131072)
BYTES = 1 << 30  # of one array


def milliseconds(calls, rounds=15):
    """The median time of each call on the GPU; the calls alternate."""
    for call in calls.values():
        call(), call()
    taken = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            end.synchronize()
            taken[name].append(begin.elapsed_time(end))
    return {name: statistics.median(times) for name, times in taken.items()}


def bandwidth(dtype, classes, size):
    """GB/s of fastce's ops and of a copy, over an array of `size` bytes."""
    rows = size // (classes * dtype.itemsize)
    x = torch.randn(rows, classes, device="cuda", dtype=dtype)
    out, target = torch.empty_like(x), torch.randint(classes, (rows,), device="cuda")
    taken = milliseconds(
        {
            "copy": lambda: out.copy_(x),
            "softmax": lambda: fastce.softmax(x, out=out),
            "log_softmax": lambda: fastce.log_softmax(x, out=out),
            "with_grad": lambda: fastce.cross_entropy_with_grad(out, target, out=out),
            "cross_entropy": lambda: fastce.cross_entropy(x, target),
        }
    )
    moved = {name: x.nbytes * (1 if name == "cross_entropy" else 2) for name in taken}
    return {name: moved[name] / ms / 1e6 for name, ms in taken.items()}


def peers(rows, classes, dtype):
    """Milliseconds of losses with gradient, and of log_softmax, of fastce and others."""
    x = torch.randn(rows, classes, device="cuda", dtype=dtype)
    out, target = torch.empty_like(x), torch.randint(classes, (rows,), device="cuda")
    leaf = x.detach().clone().requires_grad_()

    def torch_loss():
        leaf.grad = None
        functional.cross_entropy(leaf, target).backward()

    losses = {
        "fastce": lambda: fastce.cross_entropy_with_grad(x, target),
        "fastce in place": lambda: fastce.cross_entropy_with_grad(out, target, out=out),
        "torch": torch_loss,
    }
    try:
        from liger_kernel.transformers.functional import liger_cross_entropy
    except ImportError:
        print("liger-kernel is not installed: it is left out")
    else:
        other = x.detach().clone().requires_grad_()  # it writes the gradient over the logits

        def liger():
            other.grad = None
            liger_cross_entropy(other, target).backward()

        losses["liger"] = liger
    maps = {
        "fastce": lambda: fastce.log_softmax(x, out=out),
        "torch": lambda: torch.log_softmax(x, 1, out=out),
    }
    return {"loss and gradient": milliseconds(losses), "log_softmax": milliseconds(maps)}


def host_microseconds():
    """Of one small call, until it returns."""
    x = torch.randn(32, 1000, device="cuda")
    target = torch.zeros(32, dtype=torch.int64, device="cuda")
    calls = {
        "softmax": (lambda: fastce.softmax(x), lambda: torch.softmax(x, 1)),
        "cross_entropy": (
            lambda: fastce.cross_entropy(x, target),
            lambda: functional.cross_entropy(x, target),
        ),
    }
    result = {}
    for name, pair in calls.items():
        taken = ([], [])
        for _ in range(9):
            for call, times in zip(pair, taken, strict=True):
                call()
                torch.cuda.synchronize()
                begin = time.perf_counter()
                for _ in range(200):
                    call()
                times.append((time.perf_counter() - begin) / 200 * 1e6)
                torch.cuda.synchronize()
        result[name] = dict(zip(("fastce", "torch"), map(statistics.median, taken), strict=True))
    return result


def show(title, columns, rows):
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row))
    Console(width=110).print(table)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller arrays, fewer shapes")
    parser.add_argument("--save", help="write the figures to this file, as JSON")
    args = parser.parse_args()
    figures = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    size, classes = (BYTES >> 3, CLASSES[::3]) if args.quick else (BYTES, CLASSES)
    figures["bandwidth"] = {
        f"{str(dtype).removeprefix('torch.')} {n}": bandwidth(dtype, n, size)
        for dtype in (torch.bfloat16, torch.float32)
        for n in classes
    }
    names = next(iter(figures["bandwidth"].values()))
    show(
        f"share of the bandwidth of a copy, {figures['gpu']}",
        ["", "copy GB/s", *[name for name in names if name != "copy"]],
        [
            [what, g["copy"], *[g[name] / g["copy"] for name in g if name != "copy"]]
            for what, g in figures["bandwidth"].items()
        ],
    )
    shapes = [(1024, 131072), (1000000, 10)] if args.quick else [(8192, 131072), (1000000, 10)]
    for rows, n in shapes:
        dtype = torch.bfloat16 if n > 10 else torch.float32
        figures[f"{rows} x {n}"] = peers(rows, n, dtype)
        for op, taken in figures[f"{rows} x {n}"].items():
            best = min(ms for name, ms in taken.items() if name.startswith("fastce"))
            show(
                f"{op}, {rows} x {n} {dtype}",
                ["", "ms", "times fastce's best"],
                [[name, ms, ms / best] for name, ms in taken.items()],
            )
    figures["host"] = host_microseconds()
    show(
        "one call on (32, 1000), time of the host",
        ["", "fastce us", "torch us"],
        [[op, t["fastce"], t["torch"]] for op, t in figures["host"].items()],
    )
    if args.save:
        with open(args.save, "w") as file:
            json.dump(figures, file, indent=2)


if __name__ == "__main__":
    main()
