"""The robust losses in the benchmarks: PyTorch's best way to do them."""

from collections.abc import Callable
from typing import Any

from ._cases import Case, Data, tensor
from ._timing import Call


def _picked(x: Any, t: Any) -> Any:
    """log p of each row's class; the log-probabilities are kept for the gradient."""
    import torch

    return torch.log_softmax(x, 1).gather(1, t[:, None])[:, 0]


def _focal(x: Any, t: Any) -> Any:
    """torchvision's, of one class out of many."""
    log_p = _picked(x, t)
    return -((1 - log_p.exp()) ** 2) * log_p


def _generalized(x: Any, t: Any) -> Any:
    return (1 - (0.7 * _picked(x, t)).exp()) / 0.7


def _symmetric(x: Any, t: Any) -> Any:
    log_p = _picked(x, t)
    return -0.1 * log_p + 4 * (1 - log_p.exp())


def _poly(x: Any, t: Any) -> Any:
    log_p = _picked(x, t)
    return -log_p + (1 - log_p.exp())


def _penalty(x: Any, t: Any) -> Any:
    import torch

    log_p = torch.log_softmax(x, 1)
    return -log_p.gather(1, t[:, None])[:, 0] + 0.1 * (log_p.exp() * log_p).sum(1)


# What each row costs, with fastce's default options.
TORCH: dict[str, Callable[[Any, Any], Any]] = {
    "focal_loss": _focal,
    "generalized_cross_entropy": _generalized,
    "symmetric_cross_entropy": _symmetric,
    "poly_cross_entropy": _poly,
    "confidence_penalty": _penalty,
}


def torch_call(case: Case, data: Data) -> Call:
    """Autograd of the formula, as everyone writes it."""
    import torch

    name = case.op.removesuffix("_backward").removesuffix("_with_grad")
    function = TORCH[name]
    x, t = tensor(data.x), tensor(data.target)
    if case.op == name:
        return Call(lambda: function(x, t).mean(), torch.inference_mode)
    x = x.detach().requires_grad_()
    if case.op.endswith("_backward"):
        kept = function(x, t).mean()
        return Call(lambda: torch.autograd.grad(kept, x, retain_graph=True))

    def with_grad() -> tuple[Any, Any]:
        loss = function(x, t).mean()
        return loss, torch.autograd.grad(loss, x)[0]

    return Call(with_grad)
