"""fastce's losses, log-softmax and attention as differentiable functions of PyTorch tensors.

    import fastce.torch as ft

    loss = ft.cross_entropy(model(x), target)  # in place of torch.nn.functional.cross_entropy
    loss.backward()

Each has the arguments and the class axis of its namesake in `torch.nn.functional`. Tensors share
their memory with the arrays that fastce computes on; only layouts that its kernels do not read,
such as every second column, are copied there. Tensors on a GPU are computed there.

A loss that is to be differentiated computes its gradient at once, in the same trip through memory,
and keeps that instead of the input; but not for float16, which would round it to 0 before the
factor of a scaled loss arrives. There are no gradients of gradients: a backward with
``create_graph=True`` is refused.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.autograd.forward_ad import unpack_dual

import fastce

__all__ = [
    "cross_entropy",
    "linear_cross_entropy",
    "log_softmax",
    "scaled_dot_product_attention",
]


# --- functions ----------------------------------------------------------------------------


def log_softmax(
    input: torch.Tensor, dim: int = -1, *, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """`torch.nn.functional.log_softmax`.

    Parameters
    ----------
    input : Tensor
        float64, float32, float16 or bfloat16; any shape and strides.
    dim : int, default -1
        The axis of the classes. (PyTorch's default depends on the number of axes, with a warning.)
    dtype : torch.dtype, optional
        Convert the input to this first. Under autocast on a GPU that is float32, as in PyTorch, but
        for float64.

    Returns
    -------
    Tensor
        Of the shape of `input`; in nats.

    Raises
    ------
    TypeError, ValueError
        As `fastce.log_softmax`.

    Examples
    --------
    >>> import torch, fastce.torch
    >>> fastce.torch.log_softmax(torch.tensor([50.0, 0, 0, 0]))[0]  # PyTorch's is 0
    tensor(-5.7862e-22)
    """
    _require_tensors(input=input)
    if not isinstance(dim, int):
        raise TypeError(f"dim must be an integer, got {dim!r}")
    if dtype is None and input.is_cuda and _autocast_dtype(input) is not None:
        dtype = torch.promote_types(input.dtype, torch.float32)
    if dtype is not None:
        input = input.to(dtype)
    return _LogSoftmax.apply(input, dim)


def cross_entropy(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> torch.Tensor:
    """`torch.nn.functional.cross_entropy`, and its gradient in the same trip through memory.

    Parameters
    ----------
    input : Tensor, shape (C,), (N, C) or (N, C, ...)
        Logits, the classes on the axis on which PyTorch has them; any strides.
    target : Tensor
        Class indices of any integer dtype, of the shape of `input` without the classes; or, of its
        shape, the probabilities of the classes.
    weight : Tensor, shape (C,), optional
        A weight for each class.
    ignore_index : int, default -100
        Rows of this class count nothing.
    reduction : {"mean", "sum", "none"}
        As in PyTorch.
    label_smoothing : float, default 0
        From 0 to 1.
    z_loss : float, default 0
        Factor of the square of the row's logsumexp, which is added.

    Returns
    -------
    Tensor
        In nats; float64 for float64 input, else float32, also where PyTorch's loss has 16 bits.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `fastce.cross_entropy`; ValueError where target or weight require a gradient.

    Examples
    --------
    >>> import torch, fastce.torch
    >>> x = torch.zeros(2, 4, requires_grad=True)
    >>> fastce.torch.cross_entropy(x, torch.tensor([0, 3])).backward()
    >>> x.grad
    tensor([[-0.3750,  0.1250,  0.1250,  0.1250],
            [ 0.1250,  0.1250,  0.1250, -0.3750]])
    """
    _require_tensors(input=input, target=target, weight=weight)
    _refuse_gradients(target=target, weight=weight)
    options: dict[str, Any] = {
        "ignore_index": ignore_index,
        "reduction": reduction,
        "label_smoothing": label_smoothing,
        "z_loss": z_loss,
        "axis": min(1, input.ndim - 1),
    }
    if not _differentiates(input):
        given = _given(input), _given(target)
        return _tensor(fastce.cross_entropy(*given, weight=_given(weight), **options), input)
    if not _in_one_trip(input, reduction):
        return _CrossEntropy.apply(input, target, weight, options)

    def compute(x: Any) -> tuple:
        return fastce.cross_entropy_with_grad(x, _given(target), weight=_given(weight), **options)

    return _InOneTrip.apply(compute, input)


def linear_cross_entropy(
    input: torch.Tensor,
    linear_weight: torch.Tensor,
    target: torch.Tensor,
    *,
    linear_bias: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float = 0.0,
) -> torch.Tensor:
    """Cross-entropy of ``input @ linear_weight.T + linear_bias``, whose logits never exist.

    Parameters
    ----------
    input : Tensor, shape (..., D)
        What the last linear layer is given.
    linear_weight : Tensor, shape (C, D)
        That layer's weight: one row for each class.
    target : Tensor, shape (...)
        Class indices.
    linear_bias : Tensor, shape (C,), optional
        That layer's bias.
    weight, ignore_index, reduction, label_smoothing, z_loss
        As for `cross_entropy`.
    softcap : float, default 0
        Logits x become ``softcap * tanh(x / softcap)``; 0 leaves them.

    Returns
    -------
    Tensor
        As from `cross_entropy`.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `fastce.linear_cross_entropy`; ValueError where `weight` requires a gradient. On a GPU,
        where there is no such kernel yet, RuntimeError.

    Examples
    --------
    >>> import torch, fastce.torch
    >>> x, w = torch.ones(2, 3, requires_grad=True), torch.zeros(5, 3, requires_grad=True)
    >>> loss = fastce.torch.linear_cross_entropy(x, w, torch.tensor([0, 4]))
    >>> loss.backward()
    >>> loss, w.grad[0]
    (tensor(1.6094, grad_fn=<_InOneTripBackward>), tensor([-0.3000, -0.3000, -0.3000]))
    """
    _require_tensors(
        input=input,
        linear_weight=linear_weight,
        target=target,
        linear_bias=linear_bias,
        weight=weight,
    )
    _refuse_gradients(weight=weight)
    input, linear_weight, linear_bias = _autocast(input, linear_weight, linear_bias)
    options: dict[str, Any] = {
        "ignore_index": ignore_index,
        "reduction": reduction,
        "label_smoothing": label_smoothing,
        "z_loss": z_loss,
        "softcap": softcap,
    }
    layer = input, linear_weight, linear_bias
    if not _differentiates(*layer):
        given = _given(input), _given(linear_weight), _given(target)
        loss = fastce.linear_cross_entropy(
            *given, linear_bias=_given(linear_bias), weight=_given(weight), **options
        )
        return _tensor(loss, input)
    if not _in_one_trip(input, reduction):
        return _LinearCrossEntropy.apply(*layer, target, weight, options)

    def compute(x: Any, w: Any, bias: Any) -> tuple:
        return fastce.linear_cross_entropy_with_grad(
            x, w, _given(target), linear_bias=bias, weight=_given(weight), **options
        )

    return _InOneTrip.apply(compute, *layer)


def scaled_dot_product_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    window: tuple[int, int] | None = None,
    softcap: float = 0.0,
) -> torch.Tensor:
    """`torch.nn.functional.scaled_dot_product_attention`, without dropout.

    Parameters
    ----------
    query, key, value : Tensor, shape (..., heads, length, width)
        float64, float32, float16 or bfloat16; under autocast, its dtype.
    attn_mask : Tensor, optional
        Booleans, True where a key takes part, or numbers of the dtype of `query` that are added to
        the scores; under autocast, of any.
    dropout_p : float
        Only 0: there is no dropout here.
    is_causal, scale, enable_gqa
        As in PyTorch.
    window, softcap
        As for `fastce.scaled_dot_product_attention`.

    Returns
    -------
    Tensor
        Of the dtype of `query`.

    Raises
    ------
    TypeError, ValueError
        As `fastce.scaled_dot_product_attention`; ValueError for dropout, and where the mask
        requires a gradient.

    Examples
    --------
    >>> import torch, fastce.torch
    >>> q = torch.randn(1, 2, 5, 8, requires_grad=True)
    >>> fastce.torch.scaled_dot_product_attention(q, q, q, is_causal=True).sum().backward()
    >>> q.grad.shape
    torch.Size([1, 2, 5, 8])
    """
    if dropout_p:
        raise ValueError(f"dropout_p must be 0, there is no dropout here, got {dropout_p!r}")
    _require_tensors(query=query, key=key, value=value, attn_mask=attn_mask)
    _refuse_gradients(attn_mask=attn_mask)
    query, key, value, attn_mask = _autocast(query, key, value, attn_mask)
    options: dict[str, Any] = {
        "is_causal": is_causal,
        "scale": scale,
        "enable_gqa": enable_gqa,
        "window": window,
        "softcap": softcap,
    }
    if not _differentiates(query, key, value):
        given = _given(query), _given(key), _given(value)
        mask = _given(attn_mask)
        out = fastce.scaled_dot_product_attention(*given, attn_mask=mask, **options)
        return _tensor(out, query)
    return _Attention.apply(query, key, value, attn_mask, options)


# --- autograd -----------------------------------------------------------------------------


def _first_order(backward: Callable) -> Callable:
    """`torch.autograd.function.once_differentiable` lets a backward pass for a constant where what
    arrives does not depend on the input but what was saved does: silently a part of the gradient.
    """

    @functools.wraps(backward)
    def refusing(ctx: Any, *grads: torch.Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "fastce.torch has no gradients of gradients, got a backward with create_graph=True"
            )
        return backward(ctx, *grads)

    return refusing


class _LogSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, dim: int) -> torch.Tensor:
        y = _tensor(fastce.log_softmax(_given(input), axis=dim), input)
        ctx.save_for_backward(y)
        ctx.dim = dim
        return y

    @staticmethod
    @_first_order
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (y,) = ctx.saved_tensors
        result = fastce.log_softmax_backward(_given(grad), _given(y), axis=ctx.dim)
        return _tensor(result, y), None


def _in_one_trip(input: torch.Tensor, reduction: str) -> bool:
    """Whether the gradient of a loss is computed with it, before its factor is known.

    Not that of each row's own loss; nor float16, whose smallest number is 6e-8: of a mean over 8192
    rows and 4000 classes, 43% of the gradient were 0, whatever factor came later.
    """
    return reduction != "none" and input.dtype != torch.float16


class _InOneTrip(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, compute: Callable, *layer: torch.Tensor | None) -> torch.Tensor:
        """`compute` gives the loss, and its gradient for each tensor of `layer`."""
        loss, *grads = compute(*map(_given, layer))
        ctx.save_for_backward(*(None if g is None else _tensor(g, layer[0]) for g in grads))
        ctx.handed_out = False
        return _tensor(loss, layer[0])

    @staticmethod
    @_first_order
    def backward(ctx: Any, grad_loss: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grads = ctx.saved_tensors  # an error if what was handed out has been changed since
        if grad_loss.device.type == "cpu" and grad_loss.item() == 1 and not ctx.handed_out:
            ctx.handed_out = True  # once, so that no two results are the same memory
            return None, *grads  # another trip through memory less
        return None, *(None if g is None else g * grad_loss for g in grads)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: torch.Tensor,
        target: torch.Tensor,
        weight: torch.Tensor | None,
        options: dict,
    ) -> torch.Tensor:
        ctx.save_for_backward(input, target, weight)
        ctx.options = options
        given = _given(input), _given(target)
        return _tensor(fastce.cross_entropy(*given, weight=_given(weight), **options), input)

    @staticmethod
    @_first_order
    def backward(ctx: Any, grad_loss: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        input, target, weight = map(_given, ctx.saved_tensors)
        grad = fastce.cross_entropy_backward(
            _given(grad_loss), input, target, weight=weight, **ctx.options
        )
        return _tensor(grad, ctx.saved_tensors[0]), None, None, None


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: torch.Tensor,
        linear_weight: torch.Tensor,
        linear_bias: torch.Tensor | None,
        target: torch.Tensor,
        weight: torch.Tensor | None,
        options: dict,
    ) -> torch.Tensor:
        ctx.save_for_backward(input, linear_weight, target, linear_bias, weight)
        ctx.options = options
        given = _given(input), _given(linear_weight), _given(target)
        loss = fastce.linear_cross_entropy(
            *given, linear_bias=_given(linear_bias), weight=_given(weight), **options
        )
        return _tensor(loss, input)

    @staticmethod
    @_first_order
    def backward(ctx: Any, grad_loss: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        input, layer, target, bias, weight = map(_given, ctx.saved_tensors)
        grads = fastce.linear_cross_entropy_backward(
            _given(grad_loss), input, layer, target, linear_bias=bias, weight=weight, **ctx.options
        )
        like = ctx.saved_tensors[0]
        return (*(None if g is None else _tensor(g, like) for g in grads), None, None, None)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None,
        options: dict,
    ) -> torch.Tensor:
        out, lse = fastce.scaled_dot_product_attention(
            _given(query), _given(key), _given(value),
            attn_mask=_given(attn_mask), return_lse=True, **options,
        )  # fmt: skip
        out = _tensor(out, query)
        ctx.save_for_backward(query, key, value, out, _tensor(lse, query), attn_mask)
        ctx.options = options
        return out

    @staticmethod
    @_first_order
    def backward(ctx: Any, grad_out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, out, lse, mask = map(_given, ctx.saved_tensors)
        grads = fastce.scaled_dot_product_attention_backward(
            _given(grad_out), query, key, value, out, lse, attn_mask=mask, **ctx.options
        )
        like = ctx.saved_tensors[0]
        return (*(_tensor(g, like) for g in grads), None, None)


# --- tensors ------------------------------------------------------------------------------


def _given(tensor: torch.Tensor | None) -> Any:
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


def _tensor(result: Any, like: torch.Tensor) -> torch.Tensor:
    """What fastce computed from `like`, as a tensor of the same memory."""
    if isinstance(result, torch.Tensor):
        return result
    array = np.asarray(result)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _differentiates(*tensors: torch.Tensor | None) -> bool:
    """In forward mode too, which autograd functions without it refuse."""
    given = [t for t in tensors if t is not None]
    return (torch.is_grad_enabled() and any(t.requires_grad for t in given)) or any(
        unpack_dual(t).tangent is not None for t in given
    )


_OPTIONAL = "weight", "linear_bias", "attn_mask"


def _require_tensors(**tensors: Any) -> None:
    for name, tensor in tensors.items():
        if not (isinstance(tensor, torch.Tensor) or (tensor is None and name in _OPTIONAL)):
            raise TypeError(f"{name} must be a Tensor, got {type(tensor).__name__}")


def _refuse_gradients(**tensors: torch.Tensor | None) -> None:
    for name, tensor in tensors.items():
        if _differentiates(tensor):
            raise ValueError(f"{name} requires a gradient, which is not computed; detach() it")


def _autocast_dtype(tensor: torch.Tensor) -> torch.dtype | None:
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def _autocast(*tensors: torch.Tensor | None) -> tuple[Any, ...]:
    """The tensors, of the dtype of autocast where that is on: but for float64, as in PyTorch."""
    assert tensors[0] is not None
    dtype = _autocast_dtype(tensors[0])
    if dtype is None:
        return tensors
    return tuple(
        t if t is None or not t.is_floating_point() or t.dtype == torch.float64 else t.to(dtype)
        for t in tensors
    )
