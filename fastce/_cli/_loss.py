"""What `fastce loss` does here and on a Dask cluster alike: checks of its arrays, and results."""

import argparse
import math
from typing import Any

import numpy as np

from ._npy import ArrayFile
from ._output import CommandError

RAW = np.dtype("V2")  # what NumPy makes of bfloat16 in a file


def check(logits: ArrayFile, targets: ArrayFile, args: argparse.Namespace) -> int:
    """The class axis, counted from 0, once the two arrays are known to fit."""
    axes = len(logits.shape)
    if not -axes <= args.axis < axes:
        raise CommandError(f"{logits.name} has shape {logits.shape}: no axis {args.axis}")
    axis = args.axis % axes
    rows = logits.shape[:axis] + logits.shape[axis + 1 :]
    if targets.shape not in (rows, logits.shape):
        raise CommandError(
            f"{targets.name} has shape {targets.shape}; for logits {logits.shape} and axis "
            f"{args.axis} it must be {rows} (class indices) or {logits.shape} (probabilities)"
        )
    if args.dtype and logits.dtype in (np.uint16, np.int16):
        logits.dtype = RAW
    if args.dtype and logits.dtype != RAW:
        raise CommandError(f"{logits.name} holds {logits.dtype}, not {args.dtype}")
    _check_numbers(logits, args.dtype)
    if targets.shape == logits.shape:
        if targets.dtype.kind not in "fV":
            raise CommandError(
                f"{targets.name} has the shape of the logits, so it must hold probabilities, "
                f"not {targets.dtype}"
            )
        if args.ignore_index >= 0:
            raise CommandError("--ignore-index has no meaning where the targets are probabilities")
        _check_numbers(targets, args.dtype)
    elif targets.dtype.kind not in "iu":
        raise CommandError(f"{targets.name} must hold integer class indices, not {targets.dtype}")
    return axis


def _check_numbers(array: ArrayFile, given: str | None) -> None:
    if array.dtype == RAW:
        if given is None:
            raise CommandError(
                f"{array.name} holds raw 2-byte values; if it was saved as bfloat16, say so with "
                "--dtype bfloat16"
            )
    elif array.dtype.kind not in "iuf" or array.dtype.itemsize > 8:
        raise CommandError(
            f"{array.name} must hold float64, float32, float16 or bfloat16, not {array.dtype}"
        )


def numbers(a: np.ndarray) -> np.ndarray:
    """`a` exactly, in native byte order and a dtype that NumPy itself has."""
    if a.dtype.kind == "V":  # bfloat16 is the upper half of float32
        return (a.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if a.dtype.kind == "f":
        return a.astype(a.dtype.newbyteorder("="), copy=False)
    return a.astype(np.float64)


def results_of(
    total: float,
    plain: float,
    rows: int,
    counted: int,
    correct: int,
    first_nan: list[int] | None,
) -> dict[str, Any]:
    """What is printed. `total` and `plain` are the sums of the loss with label smoothing and
    without, whose exp is the perplexity.
    """
    mean = total / counted if counted else math.nan
    with np.errstate(over="ignore"):
        perplexity = float(np.exp(plain / counted)) if counted else math.nan
    return {
        "cross_entropy": mean,
        "cross_entropy_bits": mean / math.log(2),
        "perplexity": perplexity,
        "accuracy": correct / counted if counted else math.nan,
        "correct": correct,
        "counted": counted,
        "ignored": rows - counted,
        "first_nan_row": first_nan,
    }
