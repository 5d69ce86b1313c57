"""What `fastce bench` and bench/peers measure: ops, shapes, dtypes and where results go."""

import math
import os
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

import fastce

ITEMSIZE = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
# What an op must read and write at least, in arrays of the shape of its input.
TRAFFIC = {
    "logsumexp": (1, 0),
    "softmax": (1, 1),
    "log_softmax": (1, 1),
    "softmax_backward": (2, 1),
    "log_softmax_backward": (2, 1),
    "cross_entropy": (1, 0),
    "cross_entropy_backward": (1, 1),
    "cross_entropy_with_grad": (1, 1),
    "nll_loss": (0, 0),
    "nll_loss_backward": (0, 1),
}


@dataclass(frozen=True)
class Case:
    """One op on one input. Big results go `into` "fresh" memory, a given "out", or "in place"."""

    op: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    into: str = "fresh"
    axis: int = -1
    target: str = "index"  # or "probabilities"
    options: bool = False  # class weights and label smoothing

    @property
    def label(self) -> str:
        """Everything but the op, for a table."""
        words = [str(self.shape)]
        words += [self.dtype] if self.dtype != "float32" else []
        words += [f"axis={self.axis}"] if self.axis != -1 else []
        words += ["probabilities"] if self.target == "probabilities" else []
        words += ["weights, smoothing"] if self.options else []
        if TRAFFIC[self.op][1]:
            words.append({"fresh": "fresh", "out": "out=", "in place": "in place"}[self.into])
        return ", ".join(words)

    def __str__(self) -> str:
        return f"{self.op} {self.label}"

    @property
    def classes(self) -> int:
        return self.shape[self.axis]

    @property
    def rows(self) -> int:
        return math.prod(self.shape) // self.classes

    @property
    def nbytes(self) -> int:
        """Of the input."""
        return math.prod(self.shape) * ITEMSIZE[self.dtype]

    @property
    def traffic(self) -> int:
        """Bytes that must go through memory, read and written."""
        read, written = TRAFFIC[self.op]
        read += self.target == "probabilities"
        labels = self.rows * 8 if "loss" in self.op or "entropy" in self.op else 0
        return (read + written) * self.nbytes + labels

    @property
    def writes(self) -> bool:
        return TRAFFIC[self.op][1] > 0

    def tiny(self) -> "Case":
        """The same at a size that takes no time: to test the benchmarks themselves."""
        axis = self.axis % len(self.shape)
        return replace(
            self, shape=tuple(min(d, 40 if i == axis else 3) for i, d in enumerate(self.shape))
        )


def _cases() -> list[Case]:
    big = [(4096, 32000), (65536, 1000), (1024, 128256)]
    planes = (64, 1000, 32, 32)
    with_grad = "cross_entropy_with_grad"
    return [
        *(Case("cross_entropy", shape) for shape in big),
        Case("cross_entropy", (32, 1000)),
        Case("cross_entropy", planes, axis=1),
        Case("cross_entropy", (65536, 1000), options=True),
        Case("cross_entropy", (65536, 1000), target="probabilities"),
        *(Case(with_grad, shape) for shape in big),
        *(Case(with_grad, shape, into="in place") for shape in big),
        *(Case(with_grad, (1_000_000, 10), into=into) for into in ("fresh", "out", "in place")),
        Case(with_grad, planes, axis=1),
        Case(with_grad, (65536, 1000), options=True),
        Case(with_grad, (65536, 1000), target="probabilities"),
        Case("cross_entropy_backward", (65536, 1000)),
        Case("logsumexp", (4096, 32000)),
        Case("logsumexp", (65536, 1000)),
        Case("log_softmax", (4096, 32000), into="out"),
        Case("log_softmax", (4096, 32000)),
        Case("log_softmax", planes, into="out", axis=1),
        Case("log_softmax", (4096, 32000), "bfloat16", "out"),
        Case("log_softmax", (4096, 32000), "float16", "out"),
        Case("log_softmax", (4096, 16000), "float64", "out"),
        Case("log_softmax", (1, 10)),
        Case("log_softmax", (32, 1000)),
        Case("softmax", (4096, 32000), into="out"),
        Case("softmax", (1_000_000, 10), into="out"),
        Case("softmax", (1, 10)),
        Case("log_softmax_backward", (4096, 32000), into="out"),
        Case("softmax_backward", (4096, 32000), into="out"),
        Case("nll_loss", (65536, 1000)),
        Case("nll_loss_backward", (65536, 1000)),
    ]


def _quick_cases() -> list[Case]:
    return [
        Case("cross_entropy", (512, 32000)),
        Case("cross_entropy", (32, 1000)),
        Case("cross_entropy_with_grad", (512, 32000)),
        Case("cross_entropy_with_grad", (512, 32000), into="in place"),
        Case("cross_entropy_with_grad", (300_000, 10)),
        Case("logsumexp", (512, 32000)),
        Case("log_softmax", (512, 32000), into="out"),
        Case("log_softmax", (512, 32000), "bfloat16", "out"),
        Case("log_softmax", (8, 1000, 32, 32), into="out", axis=1),
        Case("log_softmax", (1, 10)),
        Case("softmax", (8192, 1000), into="out"),
    ]


def is_tiny() -> bool:
    """Whether the benchmarks are only to be tried, not to measure anything."""
    return bool(os.environ.get("FASTCE_BENCH_TINY"))


def cases(quick: bool = False) -> list[Case]:
    """The cases to run; at toy sizes where ``FASTCE_BENCH_TINY`` is set."""
    chosen = _quick_cases() if quick else _cases()
    if is_tiny():
        chosen = list(dict.fromkeys(case.tiny() for case in chosen))  # some have become equal
    return chosen


class Data(NamedTuple):
    """The arrays of a case; None where the op takes no such thing."""

    x: np.ndarray  # logits, or log-probabilities for nll_loss
    target: np.ndarray
    weight: Any
    grad: Any  # for the gradients of softmax and log_softmax
    y: Any  # their results


def _normal(case: Case, seed: int) -> np.ndarray:
    """Standard normal; a million draws are repeated, which is as good as new ones for speed."""
    if case.dtype == "bfloat16":
        import ml_dtypes

        dtype = np.dtype(ml_dtypes.bfloat16)
    else:
        dtype = np.dtype(case.dtype)
    count = min(math.prod(case.shape), 1_000_003)
    draws = np.random.default_rng(seed).standard_normal(count, dtype=np.float32)
    return np.resize(draws.astype(dtype), case.shape)


def make_data(case: Case) -> Data:
    x = _normal(case, 0)
    grad = y = weight = None
    if case.op in ("softmax_backward", "log_softmax_backward"):
        grad, y = (
            _normal(case, 1),
            getattr(fastce, case.op.removesuffix("_backward"))(x, axis=case.axis),
        )
    rng = np.random.default_rng(2)
    if case.target == "probabilities":
        target = fastce.softmax(_normal(case, 3), axis=case.axis)
    else:
        target = rng.integers(0, case.classes, np.delete(case.shape, case.axis))
    if case.options:
        weight = rng.uniform(0.5, 1.5, case.classes).astype(case.dtype)
    return Data(x, target, weight, grad, y)
