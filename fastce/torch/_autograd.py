"""Functions of fastce that PyTorch differentiates. The name of a class is that of its `grad_fn`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

import fastce

from ._tensors import as_array, as_tensor, differentiates


def first_order(backward: Callable) -> Callable:
    """`torch.autograd.function.once_differentiable` treats a backward as constant where what
    arrives does not depend on the input but what was saved does: part of the gradient is lost.
    """

    @functools.wraps(backward)
    def refusing(ctx: Any, *grads: torch.Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "fastce.torch has no gradients of gradients, got a backward with create_graph=True"
            )
        return backward(ctx, *grads)

    return refusing


class LogSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, dim: int) -> torch.Tensor:
        y = as_tensor(fastce.log_softmax(as_array(input), axis=dim))
        ctx.save_for_backward(y)
        ctx.dim = dim
        return y

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        grad, y = as_array(grad), as_array(*ctx.saved_tensors)
        return as_tensor(fastce.log_softmax_backward(grad, y, axis=ctx.dim)), None


# --- losses -------------------------------------------------------------------------------


class Loss(NamedTuple):
    """A loss of fastce and its arguments: the names of those that are tensors, those that have
    gradients in front; and all others.
    """

    name: str
    tensors: tuple[str, ...]
    options: dict[str, Any]

    def __call__(self, kind: str, tensors: tuple[Any, ...], *grad_loss: Any) -> Any:
        arrays = dict(zip(self.tensors, map(as_array, tensors), strict=True))
        return getattr(fastce, self.name + kind)(*grad_loss, **arrays, **self.options)


class _Loss(torch.autograd.Function):
    """Its gradient is computed in the backward."""

    @staticmethod
    def forward(ctx: Any, loss: Loss, *tensors: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(*tensors)
        ctx.loss = loss
        return as_tensor(loss("", tensors))

    @staticmethod
    @first_order
    def backward(ctx: Any, grad_loss: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        tensors = ctx.saved_tensors
        grads = ctx.loss("_backward", tensors, as_array(grad_loss))
        grads = grads if isinstance(grads, tuple) else (grads,)
        return None, *map(as_tensor, grads), *[None] * (len(tensors) - len(grads))


class _LossWithGrad(torch.autograd.Function):
    """Its gradient is computed with it."""

    @staticmethod
    def forward(ctx: Any, loss: Loss, *tensors: torch.Tensor | None) -> torch.Tensor:
        result, *grads = map(as_tensor, loss("_with_grad", tensors))
        ctx.save_for_backward(*grads)
        ctx.constants, ctx.returned = len(tensors) - len(grads), False
        return result

    @staticmethod
    @first_order
    def backward(ctx: Any, grad_loss: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grads = ctx.saved_tensors  # an error if what was returned has been changed since
        if grad_loss.device.type == "cpu" and grad_loss.item() == 1 and not ctx.returned:
            ctx.returned = True  # once, so that no two results are the same memory
        else:
            grads = [None if g is None else g * grad_loss for g in grads]
        return None, *grads, *[None] * ctx.constants


class CrossEntropy(_Loss):
    pass


class CrossEntropyWithGrad(_LossWithGrad):
    pass


class LinearCrossEntropy(_Loss):
    pass


class LinearCrossEntropyWithGrad(_LossWithGrad):
    pass


_LOSSES = {
    "cross_entropy": (CrossEntropy, CrossEntropyWithGrad),
    "linear_cross_entropy": (LinearCrossEntropy, LinearCrossEntropyWithGrad),
}


def compute_loss(
    name: str, layer: dict[str, Any], constants: dict[str, Any], **options: Any
) -> torch.Tensor:
    """A loss of fastce that is differentiated with respect to the tensors of `layer`.

    Its gradient is computed with it, before its factor is known, but for that of each row's own
    loss, and for float16, whose smallest number is 6e-8: of a mean over 8192 rows and 4000 classes,
    43% of the gradient would be 0, whatever factor came later.
    """
    loss = Loss(name, (*layer, *constants), options)
    tensors = *layer.values(), *constants.values()
    if not differentiates(*layer.values()):
        return as_tensor(loss("", tensors))
    with_grad = options["reduction"] != "none" and tensors[0].dtype != torch.float16
    return _LOSSES[name][with_grad].apply(loss, *tensors)


# --- attention ----------------------------------------------------------------------------


class ScaledDotProductAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, options: dict, *tensors: torch.Tensor | None) -> torch.Tensor:
        """Of query, key, value and mask."""
        *qkv, mask = map(as_array, tensors)
        out, lse = fastce.scaled_dot_product_attention(
            *qkv, attn_mask=mask, return_lse=True, **options
        )
        out = as_tensor(out)
        ctx.save_for_backward(*tensors, out, as_tensor(lse))
        ctx.options = options
        return out

    @staticmethod
    @first_order
    def backward(ctx: Any, grad_out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, mask, out, lse = map(as_array, ctx.saved_tensors)
        grads = fastce.scaled_dot_product_attention_backward(
            as_array(grad_out), query, key, value, out, lse, attn_mask=mask, **ctx.options
        )
        return None, *map(as_tensor, grads), None
