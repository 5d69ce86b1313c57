"""The one table of cases: every op with its inputs, options, truth and tolerance.

Tests run it on every backend, dtype, shape and layout.
`Case.inputs` has the classes on `axis`. The truth (`truths.py`) has them last.
"""

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import fastce
from support import truths as oracle
from support.truths import BF16, Truth, compute

DTYPES = {
    "f64": np.dtype(np.float64),
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "bf16": BF16,
}


@dataclass(frozen=True)
class Case:
    op: str  # the function's name in fastce
    name: str  # of this row of the table
    draw: Callable[..., tuple]  # (rng, shape, dtype, options) -> arguments, classes last
    options: dict[str, Any] = field(default_factory=dict)
    ulp: float = 2.0  # tolerance: ULP of float32 at the truth's scale; see `limit`
    weighted: bool = False  # draw a weight per class

    def limit(self, dtype, rows=1) -> float:
        """The tolerance for one dtype, and for a reduction over so many rows.

        Sums of float32 are made in float64, but those of float64 have nothing wider: the plain
        sum of a block of rows, or of their weights, errs by up to rows / 4 ULP.
        """
        if dtype != np.float64:
            return self.ulp
        reduced = self.is_loss and self.options.get("reduction") != "none"
        return 1.5 * self.ulp + (rows / 4 if reduced else 0)

    def __str__(self) -> str:
        return f"{self.op}-{self.name}" if self.name else self.op

    def inputs(self, shape, dtype, axis=-1, seed=0) -> tuple[tuple, dict[str, Any]]:
        """Arguments and options of one call; another seed, shape or dtype draws other numbers."""
        key = f"{self} {shape} {np.dtype(dtype)} {axis % len(shape)} {seed}"
        rng = np.random.default_rng(zlib.crc32(key.encode()))
        last = (*shape[:axis], *shape[axis:][1:], shape[axis])
        options = dict(self.options)
        if self.weighted:
            weight = rng.uniform(0.25, 2, shape[axis]).astype(compute(dtype))
            options["alpha" if self.op.startswith("focal") else "weight"] = weight
        arguments = self.draw(rng, last, np.dtype(dtype), options)
        return tuple(
            np.ascontiguousarray(np.moveaxis(a, -1, axis)) if np.shape(a) == last else a
            for a in arguments
        ), options

    def run(self, arguments, options, axis=-1, **more) -> tuple:
        """What fastce gives, always a tuple."""
        result = getattr(fastce, self.op)(*arguments, axis=axis, **options, **more)
        return result if isinstance(result, tuple) else (result,)

    def truth(self, arguments, options, axis=-1) -> tuple[Truth, ...]:
        """What is right, in the shape of the results."""
        arguments = [np.asarray(a) for a in arguments]
        shape = max((a.shape for a in arguments), key=len)
        last = [np.moveaxis(a, axis, -1) if a.shape == shape else a for a in arguments]
        result = getattr(oracle, self.op)(*last, **options)
        result = result if type(result) is tuple else (result,)
        return tuple(
            Truth(*(np.moveaxis(v, -1, axis) for v in t)) if np.ndim(t.value) == len(shape) else t
            for t in result
        )

    def check(self, shape, dtype, axis=-1, relaid=lambda a: a, seed=0) -> float:
        """Run once and compare with the truth; `relaid` changes the layout of the inputs."""
        arguments, options = self.inputs(shape, dtype, axis, seed)
        arguments = tuple(relaid(a) if np.shape(a) == shape else a for a in arguments)
        return self.compare(self.run(arguments, options, axis), arguments, options, axis)

    def compare(self, results, arguments, options, axis=-1) -> float:
        """The largest error in ULP; more than `limit` is an AssertionError."""
        truths = self.truth(arguments, options, axis)
        assert len(results) == len(truths)
        shape = max((np.shape(a) for a in arguments), key=len)
        rows = math.prod(shape) // max(1, shape[axis])
        what = f"{self} {shape} axis={axis}"
        return max(
            oracle.assert_close(r, t, self.limit(r.dtype, rows), f"{what} result {i}")
            for i, (r, t) in enumerate(zip(results, truths, strict=True))
        )

    @property
    def out_like(self) -> int | None:
        """Which argument has the shape and dtype of `out`; None where there is no such `out`."""
        if self.op == "logsumexp" or (self.is_loss and not self.op.endswith(("backward", "grad"))):
            return None
        return -1 - self.is_loss

    @property
    def is_loss(self) -> bool:
        return any(word in self.op for word in ("cross_entropy", "loss", "penalty"))


# --- inputs -------------------------------------------------------------------------------


def _logits(rng, shape, dtype, options):
    return ((3 * rng.standard_normal(shape)).astype(dtype),)


def _scores(rng, shape):
    """In float32: their truth is computed in float64, 7 times as fast as in longdouble."""
    return (2 * rng.standard_normal(shape)).astype(np.float32)


def _grad_and_p(rng, shape, dtype, options):
    y = oracle.softmax(_scores(rng, shape)).value
    return rng.standard_normal(shape).astype(dtype), y.astype(dtype)


def _grad_and_log_p(rng, shape, dtype, options):
    y = oracle.log_softmax(_scores(rng, shape)).value
    return rng.standard_normal(shape).astype(dtype), y.astype(dtype)


def _labels(rng, shape, dtype, options):
    target = rng.integers(0, shape[-1], shape[:-1])
    if "ignore_index" in options:  # a quarter of the rows
        target[rng.random(target.shape) < 0.25] = options["ignore_index"]
    return (*_logits(rng, shape, dtype, options), target)


def _probabilities(rng, shape, dtype, options):
    target = oracle.softmax(_scores(rng, shape)).value
    return (*_logits(rng, shape, dtype, options), target.astype(dtype))


def _log_p_and_labels(rng, shape, dtype, options):
    logits, target = _labels(rng, shape, dtype, options)
    return oracle.log_softmax(logits.astype(np.float32)).value.astype(dtype), target


def _grad_loss(draw):
    def with_grad_loss(rng, shape, dtype, options):
        rows = shape[:-1] if options.get("reduction") == "none" else ()
        grad_loss = rng.uniform(-2, 2, rows).astype(compute(dtype))
        return (grad_loss, *draw(rng, shape, dtype, options))

    return with_grad_loss


# --- the table ----------------------------------------------------------------------------

# name, options, weighted: each row for the loss, its backward and both in one pass
_INDEX = [
    ("mean", {}, False),
    ("sum", {"reduction": "sum"}, False),
    ("none", {"reduction": "none"}, False),
    ("ignore", {"ignore_index": -1}, False),
    ("weight", {"ignore_index": 0}, True),
    ("smooth", {"label_smoothing": 0.1, "reduction": "sum"}, False),
    ("zloss", {"z_loss": 1e-2}, False),
    (
        "all",
        {"label_smoothing": 0.2, "z_loss": 1e-3, "ignore_index": 0, "reduction": "none"},
        True,
    ),
]
_PROBABILITY = [
    ("probs", {}, False),
    ("probs-weight", {"reduction": "none"}, True),
    ("probs-all", {"label_smoothing": 0.3, "z_loss": 1e-2, "reduction": "sum"}, True),
]
_NLL = [("mean", {}, False), ("none", {"ignore_index": 0, "reduction": "none"}, True)]


def _losses(ops, rows, draw):
    draws = {op: _grad_loss(draw) if op.endswith("backward") else draw for op in ops}
    return [
        Case(op, name, draws[op], options, ulp, weighted)
        for op, ulp in ops.items()
        for name, options, weighted in rows
    ]


# Tolerances hold for the shapes of test_shapes.py. Measured there, in float32 and float64:
# 1.4 1.5, 3.2 3.8, 3.5 3.1, 2.0 2.3, 1.7 1.9 ULP for these; 2.9 3.4 for losses, 5.6 8.2 for their
# gradients. log_softmax exceeds 2 where log p is about -0.5, most where the class axis is not the
# last in memory; test_exactness.py has the closer bounds for what users mostly do.
LOG_SOFTMAX = [
    Case("logsumexp", "", _logits, ulp=2),
    Case("softmax", "", _logits, ulp=4),
    Case("log_softmax", "", _logits, ulp=4),
    Case("softmax_backward", "", _grad_and_p, ulp=3),
    Case("log_softmax_backward", "", _grad_and_log_p, ulp=3),
]
_CE = {"cross_entropy": 4, "cross_entropy_backward": 7, "cross_entropy_with_grad": 7}
CROSS_ENTROPY = [
    *_losses(_CE, _INDEX, _labels),
    *_losses(_CE, _PROBABILITY, _probabilities),
    *_losses({"nll_loss": 2, "nll_loss_backward": 2}, _NLL, _log_p_and_labels),
]

# Measured as above: 2.5 2.9 ULP for losses, 5.6 8.6 for their gradients.
_ROBUST = {
    "focal_loss": [
        ("mean", {}, False),
        ("sharp", {"gamma": 5.0, "alpha": 0.25, "reduction": "sum"}, False),
        ("blunt", {"gamma": 0.5, "reduction": "none"}, False),
        ("all", {"gamma": 1.5, "ignore_index": 0, "reduction": "none"}, True),
    ],
    "generalized_cross_entropy": [
        ("mean", {}, False),
        ("absolute", {"q": 1.0, "reduction": "sum"}, False),
        ("all", {"q": 0.3, "ignore_index": 0, "reduction": "none"}, True),
    ],
    "symmetric_cross_entropy": [
        ("mean", {}, False),
        ("reverse", {"alpha": 0.0, "beta": 0.5, "log_zero": -6.0, "reduction": "none"}, False),
        ("all", {"alpha": 0.5, "ignore_index": 0, "reduction": "sum"}, True),
    ],
    "poly_cross_entropy": [
        ("mean", {}, False),
        ("less", {"epsilon": -1.0, "reduction": "none"}, False),
        ("all", {"epsilon": 2.0, "ignore_index": 0}, True),
    ],
    "confidence_penalty": [
        ("mean", {}, False),
        ("reward", {"beta": -0.5, "reduction": "sum"}, False),
        ("all", {"beta": 2.0, "ignore_index": 0, "reduction": "none"}, True),
    ],
}
ROBUST_LOSSES = [
    case
    for op, rows in _ROBUST.items()
    for case in _losses({op: 4, f"{op}_backward": 7, f"{op}_with_grad": 7}, rows, _labels)
]
# They share the loops of cross-entropy, so one of each kind goes over all shapes and layouts.
CASES = LOG_SOFTMAX + CROSS_ENTROPY
CASES += [c for c in ROBUST_LOSSES if c.name == "all" and c.op.endswith("with_grad")]
PLAIN = [c for c in CASES if c.name in ("", "mean")]  # each op once
