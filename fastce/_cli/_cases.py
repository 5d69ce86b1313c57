"""What `fastce bench` and bench/peers measure: ops, shapes, dtypes and where results go."""

import math
import os
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

import fastce

# Of the robust losses: one trip, as cross-entropy.
ROBUST = {
    name + which: traffic
    for name in (
        "focal_loss",
        "generalized_cross_entropy",
        "symmetric_cross_entropy",
        "poly_cross_entropy",
        "confidence_penalty",
    )
    for which, traffic in (("", (1, 0)), ("_backward", (1, 1)), ("_with_grad", (1, 1)))
}
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
    **ROBUST,
    "binary_cross_entropy": (2, 0),
    "binary_cross_entropy_backward": (2, 1),
    "binary_cross_entropy_with_grad": (2, 1),
    "binary_cross_entropy_with_logits": (2, 0),
    "binary_cross_entropy_with_logits_backward": (2, 1),
    "binary_cross_entropy_with_logits_with_grad": (2, 1),
    "sigmoid_focal_loss": (2, 0),
    "sigmoid_focal_loss_backward": (2, 1),
    "sigmoid_focal_loss_with_grad": (2, 1),
    "categorical_cross_entropy": (1, 0),
    "categorical_cross_entropy_backward": (1, 1),
    "categorical_cross_entropy_with_grad": (1, 1),
    "linear_cross_entropy": (0, 0),  # these are bound by arithmetic, see Case.flops
    "linear_cross_entropy_backward": (0, 0),
    "linear_cross_entropy_with_grad": (0, 0),
    "scaled_dot_product_attention": (0, 0),
    "scaled_dot_product_attention_backward": (0, 0),
    "information.entropy": (1, 0),
    "information.kl_divergence": (2, 0),
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
    keys: int = 0  # of attention, whose shape is (batch, heads, queries, width)
    causal: bool = False
    width: int = 0  # of what a linear layer gets; the shape is that of its logits

    @property
    def label(self) -> str:
        """Everything but the op, for a table."""
        words = [str(self.shape)]
        words += [f"{self.keys} keys"] if self.keys and self.keys != self.shape[-2] else []
        words += [f"width {self.width}"] if self.width else []
        words += ["causal"] if self.causal else []
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
    def robust(self) -> bool:
        return self.op in ROBUST

    @property
    def is_binary(self) -> bool:
        """Of single numbers, without classes."""
        return self.op.startswith(("binary", "sigmoid"))

    @property
    def classes(self) -> int:
        return self.shape[self.axis]

    @property
    def rows(self) -> int:
        return math.prod(self.shape) // self.classes

    @property
    def is_products(self) -> bool:
        """Whether matrix products are most of the work."""
        return bool(self.keys or self.width)

    @property
    def flops(self) -> float:
        """Floating-point operations of the products. Attention has 2 forward and 5 backward, a
        linear layer 1 and 2.
        """
        if self.width:
            products = 1 if self.op == "linear_cross_entropy" else 3
            return 2 * products * math.prod(self.shape) * self.width
        batch, heads, length, width = self.shape
        pairs = batch * heads * length * self.keys * (0.5 if self.causal else 1)
        return 4 * pairs * width * (3.5 if self.op.endswith("_backward") else 1)

    @property
    def nbytes(self) -> int:
        """Of the input."""
        if self.width:
            return (self.rows + self.classes) * self.width * ITEMSIZE[self.dtype]
        if self.keys:
            batch, heads, length, width = self.shape
            return batch * heads * (length + 2 * self.keys) * width * ITEMSIZE[self.dtype]
        return math.prod(self.shape) * ITEMSIZE[self.dtype]

    @property
    def traffic(self) -> int:
        """Bytes that must go through memory, read and written."""
        if self.width:
            return 0
        if self.keys:  # one query reads all keys and values, and that is its limit
            return self.nbytes if self.shape[-2] == 1 else 0
        read, written = TRAFFIC[self.op]
        read += self.target == "probabilities"
        labelled = "loss" in self.op or self.op.startswith("c") or self.robust
        labels = self.rows * 8 if labelled else 0
        return (read + written) * self.nbytes + labels

    @property
    def writes(self) -> bool:
        return TRAFFIC[self.op][1] > 0

    def tiny(self) -> "Case":
        """The same at a size that takes no time: to test the benchmarks themselves."""
        if self.keys:
            shape = tuple(min(d, 7) for d in self.shape)
            return replace(self, shape=shape, keys=min(self.keys, 9))
        if self.width:
            return replace(self, shape=(3, 40), width=5)
        axis = self.axis % len(self.shape)
        return replace(
            self, shape=tuple(min(d, 40 if i == axis else 3) for i, d in enumerate(self.shape))
        )


_WHICH = ("", "_backward", "_with_grad")


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
        *_robust_cases(),
        *_binary_cases(),
        *(Case(f"categorical_cross_entropy{which}", (65536, 1000)) for which in _WHICH),
        *_linear_cases(),
        *_attention_cases(),
        *(
            Case(f"information.{name}", shape)
            for name in ("entropy", "kl_divergence")
            for shape in ((65536, 1000), (4096, 32000), (1_000_000, 10))
        ),
    ]


def _robust_cases() -> list[Case]:
    many = [Case("focal_loss_with_grad", shape) for shape in ((4096, 32000), (1_000_000, 10))]
    return [*many, *(Case(op, (65536, 1000)) for op in ROBUST)]


def _binary_cases() -> list[Case]:
    shape, probs, logits = (20_000_000,), "binary_cross_entropy", "binary_cross_entropy_with_logits"
    return [
        Case(logits, shape),
        Case(logits, shape, "bfloat16"),
        Case(logits, (1000,)),
        Case(f"{logits}_with_grad", shape),
        Case(f"{logits}_with_grad", shape, into="out"),
        Case(f"{logits}_with_grad", shape, "bfloat16", "out"),
        Case(f"{logits}_backward", shape),
        Case(probs, shape),
        Case(f"{probs}_with_grad", shape),
        Case(f"{probs}_with_grad", shape, into="out"),
        Case(f"{probs}_backward", shape),
        Case("sigmoid_focal_loss", shape),
        Case("sigmoid_focal_loss_with_grad", shape),
        Case("sigmoid_focal_loss_backward", shape),
    ]


def _linear_cases() -> list[Case]:
    shape, op = (2048, 32000), "linear_cross_entropy"
    return [
        Case(op, shape, width=1024),
        Case(f"{op}_backward", shape, width=1024),
        Case(f"{op}_with_grad", shape, width=1024),
        Case(f"{op}_with_grad", shape, "bfloat16", width=1024),
    ]


def _attention_cases() -> list[Case]:
    forward, backward = "scaled_dot_product_attention", "scaled_dot_product_attention_backward"
    cases = [
        Case(forward, (1, 8, 1024, 64), keys=1024),
        Case(forward, (1, 8, 2048, 64), keys=2048, causal=True),
        Case(forward, (1, 8, 2048, 128), keys=2048),
        Case(forward, (16, 8, 128, 64), keys=128),
        Case(forward, (1, 1, 16384, 64), keys=16384, causal=True),
        Case(forward, (1, 8, 128, 64), keys=128),
        Case(forward, (1, 8, 2048, 128), "bfloat16", keys=2048),
    ]
    decode = Case(forward, (1, 32, 1, 128), keys=4096)
    return [
        *cases,
        decode,
        replace(decode, dtype="bfloat16"),
        *(replace(case, op=backward) for case in cases),
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
        Case("focal_loss_with_grad", (8192, 1000)),
        Case("binary_cross_entropy_with_logits", (2_000_000,)),
        Case("binary_cross_entropy_with_logits_with_grad", (2_000_000,), into="out"),
        Case("linear_cross_entropy_with_grad", (256, 8000), width=256),
        Case("scaled_dot_product_attention", (1, 8, 1024, 64), keys=1024),
        Case("scaled_dot_product_attention_backward", (1, 8, 1024, 64), keys=1024, causal=True),
        Case("information.entropy", (8192, 1000)),
        Case("information.kl_divergence", (8192, 1000)),
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


def normal(shape: tuple[int, ...], name: str, seed: int) -> np.ndarray:
    """Standard normal; a million draws are repeated, which is as good as new ones for speed."""
    if name == "bfloat16":
        import ml_dtypes

        dtype = np.dtype(ml_dtypes.bfloat16)
    else:
        dtype = np.dtype(name)
    count = min(math.prod(shape), 1_000_003)
    draws = np.random.default_rng(seed).standard_normal(count, dtype=np.float32)
    return np.resize(draws.astype(dtype), shape)


def _normal(case: Case, seed: int) -> np.ndarray:
    return normal(case.shape, case.dtype, seed)


def make_data(case: Case) -> Data:
    x = _normal(case, 0)
    grad = y = weight = None
    if case.op in ("softmax_backward", "log_softmax_backward"):
        grad, y = (
            _normal(case, 1),
            getattr(fastce, case.op.removesuffix("_backward"))(x, axis=case.axis),
        )
    if case.is_binary:
        if "logits" not in case.op and "focal" not in case.op:
            x = (0.5 + 0.5 * np.tanh(x.astype(np.float32) / 2)).astype(x.dtype)
        return Data(x, (_normal(case, 1) > 0).astype(x.dtype), None, None, None)
    rng = np.random.default_rng(2)
    if case.op.startswith("categorical"):
        x = fastce.softmax(x)
    if case.target == "probabilities":
        target = fastce.softmax(_normal(case, 3), axis=case.axis)
    else:
        target = rng.integers(0, case.classes, np.delete(case.shape, case.axis))
    if case.options:
        weight = rng.uniform(0.5, 1.5, case.classes).astype(case.dtype)
    return Data(x, target, weight, grad, y)


def tensor(a: np.ndarray) -> Any:
    import torch

    torch.set_num_threads(fastce.get_num_threads())
    if a.dtype.name == "bfloat16":
        return torch.from_numpy(a.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(a)
