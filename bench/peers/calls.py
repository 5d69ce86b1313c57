"""What the libraries share: PyTorch's tensors and losses, and where a result goes."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

import fastce
from fastce._cli._timing import Call

from ..benchmarks._cases import Case


def tensor(a: np.ndarray) -> Any:
    import torch

    torch.set_num_threads(fastce.get_num_threads())
    if a.dtype.name == "bfloat16":
        return torch.from_numpy(a.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(a)


def torch_loss(case: Case, loss: Callable[..., Any], x: Any, *inputs: Any) -> Call:
    """A loss, or its gradient by autograd, as everyone writes it."""
    import torch

    if not case.gradient:
        return Call(functools.partial(loss, x, *inputs), torch.inference_mode)
    x = x.detach().requires_grad_()
    if case.gradient == "_backward":
        kept = loss(x, *inputs)  # with what autograd needs for the gradient
        return Call(functools.partial(torch.autograd.grad, kept, x, retain_graph=True))

    def with_grad() -> tuple[Any, Any]:
        value = loss(x, *inputs)
        return value, torch.autograd.grad(value, x)[0]

    return Call(with_grad)


def placed(
    case: Case, x: Any, copy: Callable[[Any], Any], empty_like: Callable[[Any], Any]
) -> tuple[Any, Callable[[], Any]]:
    """The input to use, and what gives the array of each call's result."""
    if case.into == "in place":
        x = copy(x)
        return x, lambda: x
    if case.into == "out":
        out = empty_like(x)
        return x, lambda: out
    return x, lambda: empty_like(x)
