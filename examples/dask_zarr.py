"""Streams a Zarr store of logits that is larger than a worker's memory limit.

    python examples/dask_zarr.py [--megabytes 600] [--chunk-megabytes 8] [--worker-megabytes 256]

Writes logits and labels like those of a language model in chunks of rows and of classes, and
computes cross-entropy and perplexity on a cluster of two processes with
`fastce.dask.cross_entropy`: a worker holds a few chunks at a time. The result is compared with the
one computed here, block by block. It needs Linux, whose /proc has the peak memory.
"""

import argparse
import tempfile
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import zarr
from distributed import Client, LocalCluster, progress

import fastce
import fastce.dask as fd

CLASSES = 32_000
PARTS = 4  # chunks of classes in a row


def write(folder: Path, megabytes: float, chunk_megabytes: float) -> None:
    """Logits in float32, in compressed chunks, and labels that correlate with them."""
    rows = max(1, int(chunk_megabytes * 1e6 * PARTS / (4 * CLASSES)))  # of a chunk
    total = max(rows, int(megabytes * 1e6 / (4 * CLASSES)))
    logits = zarr.create_array(
        folder / "logits.zarr", shape=(total, CLASSES), chunks=(rows, CLASSES // PARTS), dtype="f4"
    )
    labels = zarr.create_array(folder / "labels.zarr", shape=(total,), chunks=(rows,), dtype="i4")
    rng = np.random.default_rng(0)
    for start in range(0, total, rows):
        here = slice(start, min(start + rows, total))
        x = rng.standard_normal((here.stop - start, CLASSES), np.float32)
        t = rng.integers(0, CLASSES, len(x))
        x[np.arange(len(x)), t] += rng.choice([0.0, 12.0], len(x))
        logits[here], labels[here] = x, t


def streamed(folder: Path, limit: str) -> tuple[float, list[float]]:
    """The mean loss, and the peak memory of each worker in MB."""
    logits = da.from_zarr(folder / "logits.zarr")
    labels = da.from_zarr(folder / "labels.zarr")
    loss = fd.cross_entropy(logits, labels)  # nothing is read yet
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, memory_limit=limit, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        before = client.run(peak_megabytes)
        future = client.compute(loss)
        progress(future, notebook=False)
        mean = future.result()
        peaks = client.run(peak_megabytes)
    print(f"\nbefore: {', '.join(f'{p:.0f}' for p in before.values())} MB in each worker")
    return float(mean), list(peaks.values())


def peak_megabytes() -> float:
    """The most memory that this process has had resident. (ru_maxrss would be its parent's.)"""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


def block_by_block(folder: Path) -> float:
    logits, labels = (zarr.open_array(folder / f"{n}.zarr", mode="r") for n in ("logits", "labels"))
    rows = logits.chunks[0]
    total = 0.0
    for start in range(0, labels.shape[0], rows):
        here = slice(start, start + rows)
        loss = fastce.cross_entropy(logits[here], labels[here], reduction="none")
        total += loss.sum(dtype=np.float64)
    return total / labels.shape[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megabytes", type=float, default=600, help="of logits")
    parser.add_argument("--chunk-megabytes", type=float, default=8)
    parser.add_argument("--worker-megabytes", type=float, default=256, help="the memory limit")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, args.megabytes, args.chunk_megabytes)
        # A worker pauses at 80 % of its limit, and is killed at 95 %. Nothing spills to disk here.
        with dask.config.set({"distributed.worker.memory.spill": False}):
            mean, peaks = streamed(folder, f"{args.worker_megabytes:.0f}MB")
        print(f"cross-entropy  {mean:.6f} nats, perplexity {np.exp(mean):.2f}")
        print(f"peak memory    {', '.join(f'{p:.0f}' for p in peaks)} MB")
        print(f"logits         {args.megabytes:.0f} MB, limit {args.worker_megabytes:.0f} MB")
        expected = block_by_block(folder)
        assert abs(mean - expected) < 1e-6 * expected, (mean, expected)
        assert max(peaks) < args.worker_megabytes, peaks
        print("The same as block by block, and no worker reached its limit.")


if __name__ == "__main__":
    main()
