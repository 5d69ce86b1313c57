"""Cross-entropy of a linear layer in the benchmarks: inputs, and each library's best way to do it.

The gradients go to new arrays, as in the libraries.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import fastce

from ._cases import Case, normal, tensor
from ._timing import Call

REFERENCE_LIMIT = 1e9  # floating-point operations


class Layer(NamedTuple):
    """The arrays of a case; the weights are such that logits are of the size of `input`."""

    input: np.ndarray
    weight: np.ndarray
    target: np.ndarray


def make_layer(case: Case) -> Layer:
    rows, classes = case.shape
    x = normal((rows, case.width), case.dtype, 0)
    w = normal((classes, case.width), case.dtype, 1)
    w *= w.dtype.type(case.width**-0.5)
    return Layer(x, w, np.random.default_rng(2).integers(0, classes, rows))


def _fastce(case: Case, data: Layer) -> Call:
    function = functools.partial(getattr(fastce, case.op), *data)
    if case.op.endswith("_backward"):
        function = functools.partial(fastce.linear_cross_entropy_backward, 1.0, *data)
    elif not case.op.endswith("_with_grad"):
        return Call(function)
    return Call(lambda: function()[:-1])  # there is no bias


def _reference(case: Case, data: Layer) -> Call | None:
    if case.flops > REFERENCE_LIMIT:
        return None
    return _fastce(case, data)._replace(context=lambda: fastce.use_backend("reference"))


def _numba(case: Case, data: Layer) -> Call:
    """fastce's own kernels in Numba, around NumPy's products."""
    return _fastce(case, data)._replace(context=lambda: fastce.use_backend("numba"))


def _torch(case: Case, data: Layer) -> Call:
    """All logits at once, which is PyTorch's fastest way."""
    import torch
    from torch.nn.functional import cross_entropy

    x, w, target = map(tensor, data)
    if case.op == "linear_cross_entropy":
        return Call(lambda: cross_entropy(x @ w.T, target), torch.inference_mode)
    x.requires_grad_()
    w.requires_grad_()

    def with_gradient() -> tuple[Any, ...]:
        loss = cross_entropy(x @ w.T, target)
        grads = torch.autograd.grad(loss, (x, w))
        return grads if case.op.endswith("_backward") else (loss, *grads)

    return Call(with_gradient)


LINEAR: dict[str, Callable[[Case, Layer], Call | None]] = {
    "fastce": _fastce,
    "reference": _reference,
    "numba": _numba,
    "torch": _torch,
}
