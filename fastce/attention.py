"""Scaled dot-product attention, of padded batches and of packed sequences, with its gradient."""

from __future__ import annotations  # help() then says ArrayLike, not what that stands for

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ._inputs import attention as heads
from ._inputs import attention_gpu, gpu, host
from ._inputs.attention import Heads
from ._runtime.dispatch import kernel
from ._runtime.threads import get_num_threads

INPUTS = ("q", "k", "v", "mask")


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
    options: Any = (
        *(attn_mask, is_causal, scale, enable_gqa),
        *(q_offset, kv_lengths, window, softcap),
    )
    if type(q) is not np.ndarray and gpu.is_on_gpu(q):
        call = attention_gpu.padded_batch(q, k, v, *options)
        return attention_gpu.forward(call, q, return_lse, out, attn_mask)
    arrays = heads.operands(q, k, v)
    p = heads.padded_batch(*arrays, *options)
    squeeze = max(a.ndim for a in arrays) == 2
    shape = p.shape[1:] if squeeze else p.shape
    if out is None:
        result = heads.result_like(arrays[0], shape, arrays[0].dtype)
    else:
        result = heads.check_result(out, shape, arrays[0].dtype)
        p = p._replace(**{name: heads.apart(getattr(p, name), result) for name in INPUTS})
    lse = np.empty(p.shape[:-1], host.compute_dtype(result.dtype)) if return_lse else None
    _forward(p, result[None] if squeeze else result, lse)
    result = host.like(q, result) if out is None else out
    if lse is None:
        return result
    return result, host.like(q, lse[0] if squeeze else lse)


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
    options: Any = (
        *(attn_mask, is_causal, scale, enable_gqa),
        *(q_offset, kv_lengths, window, softcap),
    )
    if type(q) is not np.ndarray and gpu.is_on_gpu(q):
        call = attention_gpu.padded_batch(q, k, v, *options)
        whole = kv_lengths is None
        return attention_gpu.backward(
            call, (q, k, v), grad_out, out, lse, attn_mask, grad_mask, whole
        )
    arrays = heads.operands(q, k, v)
    p = heads.padded_batch(*arrays, *options)
    squeeze = max(a.ndim for a in arrays) == 2
    shape = p.shape[1:] if squeeze else p.shape
    g, o, norm = _results(grad_out, out, lse, shape, shape[:-1], arrays[0].dtype)
    if squeeze:
        g, o, norm = g[None], o[None], norm[None]
    dmask = mask_room = None
    if grad_mask:
        if p.mask is None or p.mask.dtype == bool:
            raise ValueError("grad_mask needs a floating attn_mask")
        dmask = np.zeros(host.to_numpy(attn_mask, "attn_mask").shape, norm.dtype)
        mask_room = heads.spread(dmask, p.mask.shape)
    grads = _backward(p, arrays, g, o, norm, mask_room)
    results = [host.like(given, grad) for given, grad in zip((q, k, v), grads, strict=True)]
    if dmask is not None:
        results.append(host.like(attn_mask, heads.cast(dmask, arrays[0].dtype)))
    return tuple(results)


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
    ends = cu_seqlens_q, cu_seqlens_k
    options: Any = is_causal, scale, enable_gqa, q_offset, window, softcap
    if type(q) is not np.ndarray and gpu.is_on_gpu(q):
        call = attention_gpu.packed(q, k, v, *ends, *options)
        return attention_gpu.forward(call, q, return_lse, out)
    arrays = heads.operands(q, k, v, 0)
    p = heads.packed(*arrays, *ends, *options)
    if out is None:
        result = heads.result_like(arrays[0], p.shape, arrays[0].dtype)
    else:
        result = heads.check_result(out, p.shape, arrays[0].dtype)
        copies = [heads.per_sequence(heads.apart(a, result), len(p.spans)) for a in arrays]
        p = p._replace(q=copies[0], k=copies[1], v=copies[2])
    lse = np.empty(p.shape[:-1], host.compute_dtype(result.dtype)) if return_lse else None
    count = len(p.spans)
    norms = None if lse is None else heads.per_sequence(lse, count)
    _forward(p, heads.per_sequence(result, count), norms)
    result = host.like(q, result) if out is None else out
    return result if lse is None else (result, host.like(q, lse))


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
    ends = cu_seqlens_q, cu_seqlens_k
    options: Any = is_causal, scale, enable_gqa, q_offset, window, softcap
    if type(q) is not np.ndarray and gpu.is_on_gpu(q):
        call = attention_gpu.packed(q, k, v, *ends, *options)
        return attention_gpu.backward(call, (q, k, v), grad_out, out, lse)
    arrays = heads.operands(q, k, v, 0)
    p = heads.packed(*arrays, *ends, *options)
    g, o, norm = _results(grad_out, out, lse, p.shape, p.shape[:-1], arrays[0].dtype)
    count = len(p.spans)
    grads = [heads.result_like(a, a.shape, a.dtype, np.zeros) for a in arrays]
    kernel("attention", "attention_backward")(
        *(heads.per_sequence(a, count) for a in (g,)),
        *p[:4],
        p.spans,
        heads.per_sequence(o, count),
        heads.per_sequence(norm, count),
        *(heads.per_sequence(a, count) for a in grads),
        None,
        **p.options,
        threads=get_num_threads(),
    )
    return tuple(host.like(given, grad) for given, grad in zip((q, k, v), grads, strict=True))


def _results(
    grad_out: Any,
    out: Any,
    lse: Any,
    shape: tuple[int, ...],
    rows: tuple[int, ...],
    dtype: np.dtype,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the backward takes from the forward, checked."""
    found = []
    for a, name in ((grad_out, "grad_out"), (out, "out")):
        a = host.floating(a, name)
        if a.shape != shape or a.dtype != dtype:
            raise ValueError(
                f"{name} must have shape {shape} and dtype {dtype}, got {a.shape} and {a.dtype}"
            )
        found.append(heads.row_contiguous(a))
    norm = host.floating(lse, "lse")
    if norm.shape != rows:
        raise ValueError(f"lse must have shape {rows}, got {norm.shape}")
    return found[0], found[1], norm.astype(host.compute_dtype(dtype), copy=False)


def _forward(p: Heads, result: np.ndarray, lse: np.ndarray | None) -> None:
    if not result.size:
        return
    kernel("attention", "attention")(
        p.q,
        p.k,
        p.v,
        p.mask,
        p.spans,
        heads.bits(result),
        lse,
        **p.options,
        threads=get_num_threads(),
    )


def _backward(
    p: Heads,
    arrays: Sequence[np.ndarray],
    grad_out: np.ndarray,
    out: np.ndarray,
    lse: np.ndarray,
    dmask: np.ndarray | None,
) -> list[np.ndarray]:
    """Gradients in the shapes of `arrays`; an input that was broadcast gets the sum."""
    if not out.size:
        return [heads.result_like(a, a.shape, a.dtype, np.zeros) for a in arrays]
    grads, rooms = [], []
    for a, full in zip(arrays, p[:3], strict=True):
        shape = a.shape if a.size == full.size else full.shape
        grads.append(heads.result_like(a, shape, a.dtype, np.zeros))
        rooms.append(heads.spread(heads.bits(grads[-1]), full.shape))
    kernel("attention", "attention_backward")(
        heads.bits(grad_out),
        p.q,
        p.k,
        p.v,
        p.mask,
        p.spans,
        heads.bits(out),
        lse,
        *rooms,
        dmask,
        **p.options,
        threads=get_num_threads(),
    )
    return [heads.summed(g, a.shape) for g, a in zip(grads, arrays, strict=True)]
