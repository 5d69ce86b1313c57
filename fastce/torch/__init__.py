"""fastce's losses, log-softmax and attention as differentiable functions of PyTorch tensors.

    import fastce.torch as ft

    loss = ft.cross_entropy(model(x), target)  # in place of torch.nn.functional.cross_entropy
    loss.backward()

Each has the arguments and the class axis of its namesake in `torch.nn.functional`. fastce computes
in the memory of the tensors, on a GPU too; only layouts that its kernels do not read, such as every
second column, are copied.

A loss that is to be differentiated computes its gradient at once, in the same pass over memory, and
keeps that instead of the input; but not for float16, which would round it to 0 before the factor of
a scaled loss arrives. There are no gradients of gradients: a backward with ``create_graph=True`` is
refused.
"""

from __future__ import annotations

from typing import Any

import torch

import fastce

from . import _autograd, _tensors

__all__ = [
    "cross_entropy",
    "linear_cross_entropy",
    "log_softmax",
    "scaled_dot_product_attention",
]


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
    _tensors.require(input=input)
    if not isinstance(dim, int):
        raise TypeError(f"dim must be an integer, got {dim!r}")
    if dtype is None and input.is_cuda and _tensors.autocast_dtype(input) is not None:
        dtype = torch.promote_types(input.dtype, torch.float32)
    if dtype is not None:
        input = input.to(dtype)
    return _autograd.LogSoftmax.apply(input, dim)


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
    """`torch.nn.functional.cross_entropy`, with its gradient in a single pass over memory.

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
        Rows of this class are left out.
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
    _tensors.require(input=input, target=target, weight=weight)
    _tensors.refuse_gradients(target=target, weight=weight)
    return _autograd.compute_loss(
        "cross_entropy",
        {"logits": input},
        {"target": target, "weight": weight},
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        axis=min(1, input.ndim - 1),
    )


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
        Of the last linear layer.
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
    >>> loss
    tensor(1.6094, grad_fn=<LinearCrossEntropyWithGradBackward>)
    >>> w.grad[0]
    tensor([-0.3000, -0.3000, -0.3000])
    """
    _tensors.require(
        input=input,
        linear_weight=linear_weight,
        target=target,
        linear_bias=linear_bias,
        weight=weight,
    )
    _tensors.refuse_gradients(weight=weight)
    input, linear_weight, linear_bias = _tensors.autocast(input, linear_weight, linear_bias)
    return _autograd.compute_loss(
        "linear_cross_entropy",
        {"input": input, "linear_weight": linear_weight, "linear_bias": linear_bias},
        {"target": target, "weight": weight},
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        softcap=softcap,
    )


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
    _tensors.require(query=query, key=key, value=value, attn_mask=attn_mask)
    _tensors.refuse_gradients(attn_mask=attn_mask)
    query, key, value, attn_mask = _tensors.autocast(query, key, value, attn_mask)
    options: dict[str, Any] = {
        "is_causal": is_causal,
        "scale": scale,
        "enable_gqa": enable_gqa,
        "window": window,
        "softcap": softcap,
    }
    tensors = query, key, value, attn_mask
    if _tensors.differentiates(query, key, value):
        return _autograd.ScaledDotProductAttention.apply(options, *tensors)
    *qkv, mask = map(_tensors.as_array, tensors)
    return _tensors.as_tensor(fastce.scaled_dot_product_attention(*qkv, attn_mask=mask, **options))
