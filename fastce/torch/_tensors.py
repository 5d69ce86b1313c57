"""Tensors as fastce takes them, and back; what is asked of them first."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.autograd.forward_ad import unpack_dual


def as_array(tensor: torch.Tensor | None) -> Any:
    """The same memory, as fastce takes it."""
    if tensor is None:
        return None
    # A copy where it is the negative, or conjugate, of what it shows.
    tensor = tensor.detach().resolve_conj().resolve_neg()
    if tensor.device.type != "cpu":
        return tensor
    if tensor.dtype == torch.bfloat16:  # which NumPy does not know
        from ml_dtypes import bfloat16

        return tensor.view(torch.uint16).numpy().view(bfloat16)
    return tensor.numpy()


def as_tensor(result: Any) -> Any:
    """What fastce computed, as a tensor of the same memory."""
    if result is None or isinstance(result, torch.Tensor):
        return result
    array = np.asarray(result)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def differentiates(*tensors: torch.Tensor | None) -> bool:
    """In forward mode too, which autograd functions without it refuse."""
    given = [t for t in tensors if t is not None]
    return (torch.is_grad_enabled() and any(t.requires_grad for t in given)) or any(
        unpack_dual(t).tangent is not None for t in given
    )


_OPTIONAL = "weight", "linear_bias", "attn_mask"


def require(**tensors: Any) -> None:
    for name, tensor in tensors.items():
        if not (isinstance(tensor, torch.Tensor) or (tensor is None and name in _OPTIONAL)):
            raise TypeError(f"{name} must be a Tensor, got {type(tensor).__name__}")


def refuse_gradients(**tensors: torch.Tensor | None) -> None:
    for name, tensor in tensors.items():
        if differentiates(tensor):
            raise ValueError(f"{name} requires a gradient, which is not computed; detach() it")


def autocast_dtype(tensor: torch.Tensor) -> torch.dtype | None:
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def autocast(*tensors: torch.Tensor | None) -> tuple[Any, ...]:
    """The tensors, of the dtype of autocast where that is on: but for float64, as in PyTorch."""
    assert tensors[0] is not None
    dtype = autocast_dtype(tensors[0])
    if dtype is None:
        return tensors
    return tuple(
        t if t is None or not t.is_floating_point() or t.dtype == torch.float64 else t.to(dtype)
        for t in tensors
    )
