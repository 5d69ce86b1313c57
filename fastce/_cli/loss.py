"""Mean cross-entropy, perplexity and accuracy of logits in a file, of any size.

LOGITS and TARGETS are .npy files, or .npz files of one array (of several: choose by name with
--key-logits and --key-targets). Targets are class indices, of the shape of the logits without
the class axis, or probabilities, of the shape of the logits. Perplexity is exp of the loss without
label smoothing.

With --dask the blocks are read and computed by the workers of a Dask cluster, which must all see
the files; there LOGITS and TARGETS may also be Zarr stores.

The files are read block by block, in memory that does not grow with them. Only a compressed
array in Fortran order, or with the classes before other axes, is unpacked first, into a
temporary file. Checksums are verified of compressed arrays; an uncompressed one is taken as it is,
like an .npy file, which has none. Progress goes to stderr.
"""

import argparse
import json
import math
import time
from typing import Any

import numpy as np

from fastce.cross_entropy import cross_entropy

from ._loss import check, numbers, results_of
from ._npy import ArrayFile, Index, open_array, row_blocks
from ._output import CommandError
from ._progress import progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("logits", metavar="LOGITS", help="unnormalised log-probabilities, .npy or .npz")
    add("targets", metavar="TARGETS", help="class indices or probabilities, .npy or .npz")
    add("--axis", type=int, default=-1, help="where the classes are (default: the last axis)")
    add("--ignore-index", type=label, default=-100, metavar="LABEL",
        help="label of rows that do not count (default: -100)")  # fmt: skip
    add("--label-smoothing", type=fraction, default=0.0, metavar="S",
        help="0 to 1: how much of the target is spread over all classes (default: 0)")  # fmt: skip
    add("--dtype", choices=["bfloat16"],
        help="how to read an array of raw 2-byte values; NumPy saves bfloat16 as such")  # fmt: skip
    add("--key-logits", metavar="NAME", help="the array of an .npz that holds the logits")
    add("--key-targets", metavar="NAME", help="the array of an .npz that holds the targets")
    add("--chunk-mb", type=megabytes, default=32.0, metavar="MB",
        help="how much of the logits to read at once (default: 32); more is faster in Fortran "
        "order, or with the classes first")  # fmt: skip
    add("--dask", type=_address, metavar="ADDRESS",
        help="compute on the Dask cluster whose scheduler is there (tcp://host:8786), or on one of "
        "processes here: local")  # fmt: skip
    add("--json", action="store_true",
        help='print one JSON object; there, "NaN" and "Infinity" are strings')  # fmt: skip


def run(args: argparse.Namespace) -> int:
    began = time.perf_counter()
    results, size = _here(args) if args.dask is None else _on_a_cluster(args)
    seconds = results.setdefault("seconds", time.perf_counter() - began)
    results["mb_per_second"] = size / 1e6 / seconds
    if args.json:
        print(json.dumps({key: _json_value(value) for key, value in results.items()}, indent=2))
    else:
        print("\n".join(_lines(results, args)))
    return 0


def _on_a_cluster(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
    try:
        from ._dask import run_on_cluster
    except ImportError as error:
        raise CommandError(f"--dask: {error}") from error
    return run_on_cluster(args)


def _here(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
    """The numbers, and the bytes of the logits."""
    began = time.perf_counter()
    with (
        open_array(args.logits, args.key_logits) as logits,
        open_array(args.targets, args.key_targets) as targets,
    ):
        totals = Totals(logits, targets, args)
        row_bytes = logits.shape[totals.axis] * logits.dtype.itemsize
        with progress(logits.nbytes // row_bytes) as show:
            for index in row_blocks(logits.shape, totals.axis, row_bytes, int(args.chunk_mb * 1e6)):
                totals.add(index)
                speed = totals.rows * row_bytes / 1e6 / (time.perf_counter() - began)
                show(totals.rows, speed, totals.mean())
    found = (totals.total, totals.plain, totals.rows, totals.counted, totals.correct)
    return results_of(*found, totals.first_nan), logits.nbytes


class Totals:
    """The sums over the rows read so far."""

    def __init__(self, logits: ArrayFile, targets: ArrayFile, args: argparse.Namespace) -> None:
        self.logits, self.targets = logits, targets
        self.axis = check(logits, targets, args)
        self.labels = len(targets.shape) < len(logits.shape)  # else probabilities
        self.ignore_index = args.ignore_index
        self.smoothing = args.label_smoothing
        self.total = self.plain = 0.0  # in nats; plain: without label smoothing
        self.rows = self.counted = self.correct = 0
        self.first_nan: list[int] | None = None

    def add(self, index: Index) -> None:
        """Read one block and add it up."""
        place = index[: self.axis] + index[self.axis + 1 :]  # the rows' place in the whole file
        x = numbers(self.logits.block(index))
        t = self.targets.block(place if self.labels else index)
        t = t if self.labels else numbers(t)
        try:
            loss = self._loss(x, t, self.smoothing)
        except IndexError:
            raise CommandError(self._bad_label(t, place)) from None
        nan = np.isnan(loss)
        if self.first_nan is None and nan.any():
            self.first_nan = _first(nan, place)
        kept = t != self.ignore_index if self.labels else np.ones(loss.shape, bool)
        right = _argmax(x, self.axis) == (t if self.labels else _argmax(t, self.axis))
        with np.errstate(invalid="ignore"):  # inf - inf
            total = float(np.sum(loss, dtype=np.float64))
            self.total += total
            if self.smoothing:
                total = float(np.sum(self._loss(x, t, 0.0), dtype=np.float64))
            self.plain += total
        self.rows += loss.size
        self.counted += int(np.count_nonzero(kept))
        self.correct += int(np.count_nonzero(right & kept & ~nan))

    def _loss(self, x: np.ndarray, t: np.ndarray, smoothing: float) -> np.ndarray:
        """Of each row."""
        options = {"axis": self.axis, "ignore_index": self.ignore_index, "reduction": "none"}
        return np.asarray(cross_entropy(x, t, label_smoothing=smoothing, **options))

    def mean(self) -> float:
        return self.total / self.counted if self.counted else math.nan

    def _bad_label(self, t: np.ndarray, place: Index) -> str:
        classes = self.logits.shape[self.axis]
        bad = (t != self.ignore_index) & ((t < 0) | (t >= classes))
        label = t[bad].flat[0]
        return (
            f"{self.targets.name}: target{_first(bad, place)} is {label}, out of range for "
            f"{classes} classes (--ignore-index is {self.ignore_index})"
        )


def _first(mask: np.ndarray, place: Index) -> list[int]:
    """Index in the whole file of the first row for which `mask` holds in the block at `place`."""
    return [int(i) + s.start for i, s in zip(np.argwhere(mask)[0], place, strict=True)]


def _argmax(x: np.ndarray, axis: int) -> np.ndarray:
    """The first of the largest elements; anything where there is NaN."""
    if x.dtype == np.float16:  # compared as integers of the same order: 10 times faster
        bits = x.view(np.int16)
        sign = bits >> 15  # 0 or -1
        x = ((bits & 0x7FFF) ^ sign) - sign
    return x.argmax(axis)


def fraction(text: str) -> float:
    value = float(text)
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1, got {text}")
    return value


def _address(text: str) -> str:
    if not text:  # a variable of the shell that is not set
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def label(text: str) -> int:
    value = int(text)
    if not -(2**63) <= value < 2**63:
        raise argparse.ArgumentTypeError(f"must fit 64 bits, got {text}")
    return value


def megabytes(text: str) -> float:
    value = float(text)
    if not 0.0 < value * 1e6 < math.inf:
        raise argparse.ArgumentTypeError(f"must be positive, got {text}")
    return value


def _json_value(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _lines(r: dict[str, Any], args: argparse.Namespace) -> list[str]:
    plainly = " (without label smoothing)" if args.label_smoothing else ""
    lines = [
        f"cross-entropy  {r['cross_entropy']:.9g} nats ({r['cross_entropy_bits']:.9g} bits)",
        f"perplexity     {r['perplexity']:.9g}{plainly}",
        f"accuracy       {r['accuracy']:.4%} ({r['correct']:,} of {r['counted']:,} rows)",
        f"rows           {r['counted']:,} counted, {r['ignored']:,} ignored",
        f"time           {r['seconds']:.3g} s ({r['mb_per_second']:,.0f} MB/s)",
    ]
    if r["first_nan_row"] is not None:
        lines.append(f"The loss is NaN: row {r['first_nan_row']} is the first that is.")
    elif not r["counted"]:
        lines.append(
            f"Every row is ignored (label {args.ignore_index}): there is nothing to average."
        )
    return lines
