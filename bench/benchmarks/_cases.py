"""What bench/benchmarks and bench/peers measure: an op, its inputs, and fastce's call.

asv runs this on past versions of fastce, so it uses public names only.
"""

import functools
import math
from collections.abc import Callable
from operator import attrgetter
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

import fastce

SMOOTHING = 0.1
ITEMSIZE = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
BINARY = ("binary_cross_entropy", "binary_cross_entropy_with_logits", "sigmoid_focal_loss")
ATTENTION = "scaled_dot_product_attention"


class Case(NamedTuple):
    """One op on one input. Large results go `into` "fresh" memory, a given "out", or "in place"."""

    op: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    into: str = "fresh"
    axis: int = -1
    target: str = "index"  # or "probabilities"
    options: bool = False  # class weights and label smoothing
    keys: int = 0  # of attention, whose shape is (batch, heads, queries, width)
    causal: bool = False
    width: int = 0  # of the input of a linear layer; the shape is that of its logits

    def __str__(self) -> str:
        return f"{self.op} {self.label}"

    @property
    def label(self) -> str:
        """Everything but the op, for a table."""
        words = [
            str(self.shape),
            f"{self.keys} keys" if self.keys and self.keys != self.shape[-2] else "",
            f"width {self.width}" if self.width else "",
            "causal" if self.causal else "",
            self.dtype if self.dtype != "float32" else "",
            f"axis={self.axis}" if self.axis != -1 else "",
            "probabilities" if self.target == "probabilities" else "",
            "weights, smoothing" if self.options else "",
            ("out=" if self.into == "out" else self.into) if self.writes else "",
        ]
        return ", ".join(filter(None, words))

    @property
    def loss(self) -> str:
        """The op without what follows its name for gradients."""
        return self.op.removesuffix("_with_grad").removesuffix("_backward")

    @property
    def gradient(self) -> str:
        """Which gradient the op gives: "", "_backward" or "_with_grad"."""
        return self.op.removeprefix(self.loss)

    @property
    def is_products(self) -> bool:
        """Whether matrix products are most of the work."""
        return bool(self.keys or self.width)

    @property
    def writes(self) -> bool:
        """Whether a result has the shape of the input."""
        maps = self.op in ("softmax", "log_softmax")
        return not self.is_products and (maps or bool(self.gradient))

    @property
    def classes(self) -> int:
        return self.shape[self.axis]

    @property
    def rows(self) -> int:
        return math.prod(self.shape) // self.classes

    @property
    def nbytes(self) -> int:
        """Of the input; of attention, of q, k and v."""
        size = math.prod(self.shape)
        if self.width:
            size = (self.rows + self.classes) * self.width
        if self.keys:
            size += 2 * math.prod(self.shape[:2]) * self.keys * self.shape[3]
        return size * ITEMSIZE[self.dtype]

    @property
    def flops(self) -> float:
        """Operations of the products. A linear layer has 1 forward and 2 backward; attention has
        2 and 5, and a case of its backward is both, since that is how libraries give gradients.
        """
        if self.width:
            return 2 * (3 if self.gradient else 1) * math.prod(self.shape) * self.width
        pairs = math.prod(self.shape[:3]) * self.keys * (0.5 if self.causal else 1)
        return 4 * pairs * self.shape[3] * (3.5 if self.gradient else 1)

    def tiny(self) -> "Case":
        """At a size that takes no time: to test the benchmarks themselves."""
        axis = self.axis % len(self.shape)
        shape = [min(d, 40 if i == axis else 3) for i, d in enumerate(self.shape)]
        keys, width = min(self.keys, 9), min(self.width, 5)
        return self._replace(shape=tuple(shape), keys=keys, width=width)


def normal(shape: tuple[int, ...], name: str, seed: int) -> np.ndarray:
    """Standard normal; a million draws are repeated, which is as good as new ones for speed."""
    dtype: Any = name
    if name == "bfloat16":
        import ml_dtypes

        dtype = ml_dtypes.bfloat16
    count = min(math.prod(shape), 1_000_003)
    draws = np.random.default_rng(seed).standard_normal(count, dtype=np.float32)
    return np.resize(draws.astype(dtype), shape)


def make_data(case: Case) -> SimpleNamespace:
    """The arrays of a case, in the order in which its op takes them."""
    draw = functools.partial(normal, case.shape, case.dtype)
    if case.keys:
        keys = (*case.shape[:2], case.keys, case.shape[3])
        k, v = (normal(keys, case.dtype, seed) for seed in (1, 2))
        return SimpleNamespace(q=draw(0), k=k, v=v, grad=draw(3))
    target = np.random.default_rng(2).integers(0, case.classes, np.delete(case.shape, case.axis))
    if case.width:
        x, weight = (normal((n, case.width), case.dtype, n) for n in case.shape)
        weight *= weight.dtype.type(case.width**-0.5)  # logits of the size of the inputs
        return SimpleNamespace(x=x, weight=weight, target=target)
    if case.op.startswith("information."):
        arrays = [draw(0)] if ".entropy" in case.op else [draw(0), draw(1)]
        if "logits" not in case.op:  # the sums need not be 1
            arrays = [np.abs(a, out=a) for a in arrays]
        return SimpleNamespace(**dict(zip("pq", arrays, strict=False)))
    if case.op.endswith("softmax_backward"):
        y = getattr(fastce, case.loss)(draw(0), axis=case.axis)
        return SimpleNamespace(grad=draw(1), y=y)
    x = draw(0)
    if case.op in ("logsumexp", "softmax", "log_softmax"):
        return SimpleNamespace(x=x)
    if case.loss in BINARY:
        if case.loss == "binary_cross_entropy":
            x = (0.5 + 0.5 * np.tanh(x.astype(np.float32) / 2)).astype(x.dtype)
        return SimpleNamespace(x=x, target=(draw(1) > 0).astype(x.dtype))
    if case.op.startswith("categorical"):
        x = fastce.softmax(x)
    if case.target == "probabilities":
        target = fastce.softmax(draw(3), axis=case.axis)
    data = SimpleNamespace(x=x, target=target)
    if case.options:
        data.weight = np.random.default_rng(4).uniform(0.5, 1.5, case.classes).astype(case.dtype)
    return data


def traffic(case: Case, data: SimpleNamespace) -> int:
    """Bytes that must be read and written; 0 where products are the limit."""
    if case.is_products:  # one query reads all keys and values
        return case.nbytes if case.keys and case.shape[-2] == 1 else 0
    read = sum(a.nbytes for a in vars(data).values())
    return read - case.op.startswith("nll") * case.nbytes + case.writes * case.nbytes


def make_call(case: Case, data: SimpleNamespace) -> Callable[[], Any]:
    """fastce's call. A case of attention's backward is the forward and the backward."""
    function = attrgetter(case.op)(fastce)
    if case.keys:
        q, k, v, grad = vars(data).values()
        forward = functools.partial(getattr(fastce, ATTENTION), q, k, v, is_causal=case.causal)
        if not case.gradient:
            return forward

        def both() -> Any:
            out, lse = forward(return_lse=True)
            return function(grad, q, k, v, out, lse, is_causal=case.causal)

        return both
    options: dict[str, Any] = {"axis": case.axis} if case.axis != -1 else {}
    inputs = list(vars(data).values())
    if case.options:
        options |= {"weight": inputs.pop(), "label_smoothing": SMOOTHING}
    if case.into == "in place":
        inputs[0] = inputs[0].copy()
    if case.into != "fresh" and case.writes:
        options["out"] = inputs[0] if case.into == "in place" else np.empty_like(inputs[0])
    if case.op == "cross_entropy_backward":
        options["lse"] = fastce.logsumexp(data.x, axis=case.axis)
    if case.gradient == "_backward" and "softmax" not in case.op:
        inputs.insert(0, 1.0)  # the gradient of the loss
    call = functools.partial(function, *inputs, **options)
    if case.width and case.gradient:
        return lambda: call()[:-1]  # without that of the bias
    return call
