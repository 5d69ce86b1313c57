"""Robust losses and Keras' categorical cross-entropy: their formulas in PyTorch."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from ..benchmarks._cases import Case
from .calls import Call, tensor, torch_loss


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


def _categorical(p: Any, t: Any) -> Any:
    """Probabilities are normalised and clipped; one of each row is looked up."""
    import torch

    p = (p / p.sum(1, keepdim=True)).clip(1e-7, 1 - 1e-7)
    return -torch.log(p.gather(1, t[:, None]))


# The loss of each row, with fastce's default options.
FORMULAS: dict[str, Callable[[Any, Any], Any]] = {
    "focal_loss": _focal,
    "generalized_cross_entropy": _generalized,
    "symmetric_cross_entropy": _symmetric,
    "poly_cross_entropy": _poly,
    "confidence_penalty": _penalty,
    "categorical_cross_entropy": _categorical,
}


def _torch(case: Case, data: SimpleNamespace) -> Call:
    """Autograd of the formula, as everyone writes it."""
    formula = FORMULAS[case.loss]
    return torch_loss(case, lambda x, t: formula(x, t).mean(), tensor(data.x), tensor(data.target))


LIBRARIES = {"torch": _torch}
