"""Scaled dot-product attention, of padded batches and of packed sequences, with its gradient."""

from __future__ import annotations  # help() then says ArrayLike, not what that stands for

import math
from typing import Any

from numpy.typing import ArrayLike

from ._inputs import attention as inputs
from ._inputs import host
from ._inputs.attention import AttentionInputs


def scaled_dot_product_attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    attn_mask: ArrayLike | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    q_offset: ArrayLike = 0,
    kv_lengths: ArrayLike | None = None,
    window: tuple[int, int] | None = None,
    softcap: float = 0.0,
    return_lse: bool = False,
    out: Any = None,
) -> Any:
    """Attention of queries to keys: ``softmax(scale * q k^T + mask) v``, over the keys allowed.

    The array of queries by keys is never made: memory beyond inputs and result is a few tiles
    for each thread.

    Parameters
    ----------
    q : array_like, shape (..., heads, L, E)
        Queries: float64, float32, float16 or bfloat16. Any strides but in the last axis.
    k : array_like, shape (..., kv_heads, S, E)
        Keys, of the same dtype. The leading axes of `q`, `k` and `v` broadcast.
    v : array_like, shape (..., kv_heads, S, Ev)
        Values.
    attn_mask : array_like, optional
        Broadcasts to (..., heads, L, S). Boolean: True where the query may see the key.
        Floating, of q's dtype: added to the scores.
    is_causal : bool, default False
        Query i may see key j where ``j <= i + q_offset``; with `attn_mask`, where both allow it.
    scale : float, optional
        Factor of the scores. Default: ``1 / sqrt(E)``.
    enable_gqa : bool, default False
        Each key head serves ``heads / kv_heads`` neighbouring query heads.
    q_offset : int, or one for each batch entry, default 0
        Position of the first query among the keys, for `is_causal` and `window`. It may be
        negative. Decoding from a cache of S keys has ``q_offset=S - L``.
    kv_lengths : int, or one for each batch entry, optional
        How many keys count; those behind are not read.
    window : (int, int), optional
        A query at position i sees the keys from ``i - left`` to ``i + right``; -1 is unbounded.
    softcap : float, default 0
        Scores become ``softcap * tanh(score / softcap)``, before any mask; 0 leaves them.
    return_lse : bool, default False
        Also return the logsumexp of each query's scores, which the gradient needs.
    out : array, optional
        Where to put the result: its shape, dtype of `q`, contiguous in its last axis.

    Returns
    -------
    out : array, shape (..., heads, L, Ev)
        Of q's dtype. A query that may see no key gets 0.
    lse : array, shape (..., heads, L)
        Only with ``return_lse=True``, in nats: float64 for float64, else float32. ``-inf`` for a
        query that may see no key.

    Raises
    ------
    TypeError, ValueError
        For shapes, dtypes or options that do not fit. The message shows what was received.

    Notes
    -----
    Names, defaults and meaning are those of ``torch.nn.functional.scaled_dot_product_attention``,
    which has neither `q_offset`, `kv_lengths`, `window`, `softcap` nor lse, and refuses
    `is_causal` beside `attn_mask`.

    References
    ----------
    Vaswani et al., "Attention Is All You Need", 2017. Dao et al., "FlashAttention", 2022.

    Examples
    --------
    >>> import numpy as np, fastce
    >>> q, k = np.zeros((1, 2, 4)), np.zeros((1, 3, 4))  # equal scores: the mean of the values
    >>> v = np.array([[[1.0], [2.0], [6.0]]])
    >>> fastce.scaled_dot_product_attention(q, k, v)
    array([[[3.],
            [3.]]])
    """
    p = inputs.padded_batch(
        *(q, k, v, attn_mask, is_causal, scale, enable_gqa, q_offset, kv_lengths, window, softcap)
    )
    return _forward(p, return_lse, out)


def scaled_dot_product_attention_backward(
    grad_out: ArrayLike,
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    out: ArrayLike,
    lse: ArrayLike,
    *,
    attn_mask: ArrayLike | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    q_offset: ArrayLike = 0,
    kv_lengths: ArrayLike | None = None,
    window: tuple[int, int] | None = None,
    softcap: float = 0.0,
    grad_mask: bool = False,
) -> Any:
    """Gradients of `scaled_dot_product_attention` with respect to q, k and v.

    Parameters
    ----------
    grad_out : array_like, shape (..., heads, L, Ev)
        Gradient with respect to the result, of q's dtype.
    q, k, v, attn_mask, is_causal, scale, enable_gqa, q_offset, kv_lengths, window, softcap
        As given to `scaled_dot_product_attention`.
    out, lse : array_like
        What it returned with ``return_lse=True``.
    grad_mask : bool, default False
        Also return the gradient with respect to a floating `attn_mask`.

    Returns
    -------
    dq, dk, dv : arrays
        Of the shapes and dtype of `q`, `k` and `v`. 0 where nothing was allowed.
    dmask : array
        Only with ``grad_mask=True``: of the shape and dtype of `attn_mask`, summed over the axes
        along which that was broadcast.

    Raises
    ------
    TypeError, ValueError
        As `scaled_dot_product_attention`.

    Notes
    -----
    The weights are computed again from lse, in tiles. Where lse is so large (above 177) that its
    rounding would be seen, they come from the scores alone, of the keys that are given here. The
    result is the same to the last bit for any number of threads.

    Examples
    --------
    >>> import numpy as np, fastce
    >>> q, k, v = np.zeros((1, 2, 4)), np.zeros((1, 3, 4)), np.zeros((1, 3, 1))
    >>> out, lse = fastce.scaled_dot_product_attention(q, k, v, return_lse=True)
    >>> g = np.ones((1, 2, 1))
    >>> dq, dk, dv = fastce.scaled_dot_product_attention_backward(g, q, k, v, out, lse)
    >>> dv.ravel()  # two queries give a third of their attention to each
    array([0.66666667, 0.66666667, 0.66666667])
    """
    p = inputs.padded_batch(
        *(q, k, v, attn_mask, is_causal, scale, enable_gqa, q_offset, kv_lengths, window, softcap)
    )
    return _backward(p, grad_out, out, lse, grad_mask)


def attention_varlen(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    cu_seqlens_q: ArrayLike,
    cu_seqlens_k: ArrayLike,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    q_offset: ArrayLike = 0,
    window: tuple[int, int] | None = None,
    softcap: float = 0.0,
    return_lse: bool = False,
    out: Any = None,
) -> Any:
    """`scaled_dot_product_attention` of sequences of various lengths, packed one after the other.

    Parameters
    ----------
    q : array_like, shape (total_q, heads, E)
        The queries of all sequences.
    k, v : array_like, shapes (total_k, kv_heads, E) and (total_k, kv_heads, Ev)
        Their keys and values.
    cu_seqlens_q, cu_seqlens_k : array_like of int, shape (sequences + 1,)
        Sequence i has the rows from ``cu_seqlens[i]`` to ``cu_seqlens[i + 1]``. They rise from 0
        to the number of rows.
    is_causal, scale, enable_gqa, window, softcap, return_lse
        As for `scaled_dot_product_attention`.
    q_offset : int, or one for each sequence, default 0
        Position of a sequence's first query among its keys.
    out : array, optional
        Where to put the result.

    Returns
    -------
    out : array, shape (total_q, heads, Ev)
    lse : array, shape (total_q, heads)
        Only with ``return_lse=True``.

    Raises
    ------
    TypeError, ValueError
        For arguments that do not fit.

    Examples
    --------
    >>> import numpy as np, fastce
    >>> q = k = np.zeros((3, 1, 4))
    >>> v = np.array([[[1.0]], [[3.0]], [[7.0]]])
    >>> fastce.attention_varlen(q, k, v, [0, 2, 3], [0, 2, 3]).ravel()
    array([2., 2., 7.])
    """
    options = is_causal, scale, enable_gqa, q_offset, window, softcap
    p = inputs.packed(q, k, v, cu_seqlens_q, cu_seqlens_k, *options)
    return _forward(p, return_lse, out)


def attention_varlen_backward(
    grad_out: ArrayLike,
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    out: ArrayLike,
    lse: ArrayLike,
    cu_seqlens_q: ArrayLike,
    cu_seqlens_k: ArrayLike,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    q_offset: ArrayLike = 0,
    window: tuple[int, int] | None = None,
    softcap: float = 0.0,
) -> Any:
    """Gradients of `attention_varlen` with respect to q, k and v.

    Parameters
    ----------
    grad_out : array_like, shape (total_q, heads, Ev)
        Gradient with respect to the result, of q's dtype.
    q, k, v, cu_seqlens_q, cu_seqlens_k, is_causal, scale, enable_gqa, q_offset, window, softcap
        As given to `attention_varlen`.
    out, lse : array_like
        What it returned with ``return_lse=True``.

    Returns
    -------
    dq, dk, dv : arrays
        Of the shapes and dtype of `q`, `k` and `v`.

    Raises
    ------
    TypeError, ValueError
        As `attention_varlen`.

    Examples
    --------
    >>> import numpy as np, fastce
    >>> q, k, v, ends = np.zeros((3, 1, 4)), np.zeros((3, 1, 4)), np.zeros((3, 1, 1)), [0, 2, 3]
    >>> out, lse = fastce.attention_varlen(q, k, v, ends, ends, return_lse=True)
    >>> grads = fastce.attention_varlen_backward(np.ones((3, 1, 1)), q, k, v, out, lse, ends, ends)
    >>> grads[2].ravel()
    array([1., 1., 1.])
    """
    options = is_causal, scale, enable_gqa, q_offset, window, softcap
    p = inputs.packed(q, k, v, cu_seqlens_q, cu_seqlens_k, *options)
    return _backward(p, grad_out, out, lse)


def _forward(p: AttentionInputs, return_lse: bool, out: Any) -> Any:
    memory, q, first = p.memory, p.given[0], p.arrays[0]
    if out is None:
        result, array = memory.new(q, p.shape, first.dtype, like=first)
    else:
        result, array = out, memory.check_out(out, p.shape, first.dtype)
        p = p.apart_from(array)
    lse = lse_view = None
    if return_lse:
        lse, lse_array = memory.new(q, p.shape[:-1], memory.compute_dtype(first.dtype))
        lse_view = p.view(lse_array, p.full_shape[:-1])
    if 0 not in p.shape:
        memory.kernel("attention")(
            *p.views(),
            p.spans,
            p.view(array, p.full_shape),
            lse_view,
            **p.options,
            threads=memory.num_threads(),
        )
    result = host.like(q, result) if out is None else out
    return (result, host.like(q, lse)) if return_lse else result


def _backward(
    p: AttentionInputs, grad_out: Any, out: Any, lse: Any, grad_mask: bool = False
) -> tuple[Any, ...]:
    memory, (*arrays, mask) = p.memory, p.arrays
    dtype = arrays[0].dtype
    compute = memory.compute_dtype(dtype)
    if grad_mask and (mask is None or mask.dtype in (bool, "bool")):
        raise ValueError("grad_mask needs a floating attn_mask")
    saved = []
    for x, name in ((grad_out, "grad_out"), (out, "out"), (lse, "lse")):
        a, shape, full_shape, expected = memory.floating(x, name), p.shape, p.full_shape, dtype
        if name == "lse":
            a, shape, full_shape = memory.converted(a, compute), shape[:-1], full_shape[:-1]
            expected = compute
        if a.shape != shape or a.dtype != expected:
            raise ValueError(
                f"{name} must have shape {shape} and dtype {expected}, got {a.shape} and {a.dtype}"
            )
        a = a if name == "lse" else memory.contiguous(a, name)
        saved.append(p.view(a, full_shape))
    views = p.views()
    nothing = any(0 in a.shape for a in views[:3])
    results, grads, sums = [], [], []
    for i, a in enumerate(arrays):
        zero = nothing or memory.adds_to_grads or (i > 0 and not p.all_keys)
        result, grad = memory.new(p.given[i], a.shape, dtype, like=a, zero=zero)
        results.append(result)
        full_shape = p.shapes[i]
        if p.sequences is None and not nothing and math.prod(a.shape) != math.prod(full_shape):
            # It was broadcast: a gradient for each place that it was used in, then their sum.
            full = memory.workspace(full_shape, dtype, like=a, zero=zero)
            sums.append((full, grad))
            grad = full
        grads.append(p.view(grad, full_shape))
    mask_grad = None
    if grad_mask:
        result, grad = memory.new(p.given[3], mask.shape, dtype, zero=True)
        results.append(result)
        if dtype != compute:
            full = memory.workspace(mask.shape, compute, zero=True)
            sums.append((full, grad))
            grad = full
        mask_grad = p.view(grad, p.shapes[3])
    if not nothing:
        memory.kernel("attention_backward")(
            saved[0],
            *views,
            p.spans,
            *saved[1:],
            *grads,
            mask_grad,
            **p.options,
            threads=memory.num_threads(),
        )
        for full, grad in sums:
            memory.sum_into(full, grad)
    return tuple(host.like(x, result) for x, result in zip(p.given, results, strict=False))
