"""Attention of Dask arrays."""

from __future__ import annotations

import functools
from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import ArrayLike

import fastce

from .._inputs import attention as inputs
from .._inputs import host
from .._runtime.threads import threads_here
from ._blocks import computed, task
from ._graph import STATE, blocks, checked, chunked, given, starts

FAN_IN = 8  # results of key blocks that one task merges
LARGE_LSE = 128.0  # above it lse is kept in two numbers; its rounding in float32 is 1e-5 there


def scaled_dot_product_attention(
    q: da.Array,
    k: da.Array,
    v: da.Array,
    *,
    attn_mask: da.Array | ArrayLike | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    q_offset: int = 0,
    kv_lengths: int | None = None,
    window: tuple[int, int] | None = None,
    softcap: float = 0.0,
    return_lse: bool = False,
) -> Any:
    """`fastce.scaled_dot_product_attention` of Dask arrays: queries and keys in chunks.

    Each chunk of queries with each chunk of keys is a task. The results are merged by
    their lse, eight at a time: ``sum of exp(lse_i - lse) * out_i``.

    Parameters
    ----------
    q, k, v : dask.array.Array, shapes (..., heads, L, E), (..., kv_heads, S, E), (..., S, Ev)
        Of one dtype, and equally many axes. The last axis must be one chunk; `k` and `v` must have
        the same chunks of keys; all of them the same chunks along leading axes (those of grouped
        heads in proportion): nothing is broadcast.
    attn_mask : dask.array.Array or array_like, optional
        Broadcasts to (..., heads, L, S). It gets the chunks of queries and keys.
    is_causal, scale, enable_gqa, window, softcap
        As for `fastce.scaled_dot_product_attention`.
    q_offset, kv_lengths : int
        The same, but one for all batch entries.
    return_lse : bool, default False
        Also return the logsumexp of each query's scores.

    Returns
    -------
    out : dask.array.Array, shape (..., heads, L, Ev)
        Of q's dtype, in its chunks of queries.
    lse : dask.array.Array, shape (..., heads, L)
        Only with ``return_lse=True``.

    Raises
    ------
    TypeError, ValueError
        At once, for shapes, dtypes, chunks or options that do not fit.

    Notes
    -----
    Where keys are split, 16-bit blocks are computed in float32, and rounded once, at the end. The
    weight of a block of keys carries the rounding of its lse.

    References
    ----------
    Dao et al., "FlashAttention", 2022; blocks of keys on several devices: Liu et al., "Ring
    Attention with Blockwise Transformers", 2023.

    Examples
    --------
    >>> import numpy as np, dask.array as da, fastce.dask
    >>> q, k = da.zeros((1, 2, 4)), da.zeros((1, 3, 4), chunks=(1, 1, 4))  # the mean of the values
    >>> v = da.from_array(np.array([[[1.0], [2.0], [6.0]]]), chunks=(1, 1, 1))
    >>> fastce.dask.scaled_dot_product_attention(q, k, v).compute().ravel()
    array([3., 3.])
    """
    q, k, v = checked(q, "q"), checked(k, "k"), checked(v, "v")
    _check_operands(q, k, v, enable_gqa)
    _check_positions(k.shape[-2], q_offset, kv_lengths)
    options, _ = inputs.scalar_options(scale, window, softcap, is_causal, q.shape[-1])
    lead = tuple(range(q.ndim - 2))
    queries, keys, width, values = range(q.ndim - 2, q.ndim + 2)
    mask: tuple[Any, Any] = (None, None)
    if attn_mask is not None:
        allowed = _mask_in_chunks(attn_mask, q, k)
        mask = allowed, (*lead, queries, keys)[-allowed.ndim :]
    state = (*lead, queries, keys, STATE)
    states = blocks(
        _attention_state,
        state,
        (q, (*lead, queries, width)),
        (k, (*lead, keys, width)),
        (v, (*lead, keys, values)),
        mask,
        (starts(q, -2), (queries,)),
        (starts(k, -2), (keys,)),
        q_offset=int(q_offset),
        kv_lengths=None if kv_lengths is None else int(kv_lengths),
        split=k.numblocks[-2] > 1,
        is_causal=is_causal,
        scale=options["scale"],
        window=window,
        softcap=softcap,
        enable_gqa=enable_gqa,
        adjust_chunks={keys: 1},
        new_axes={STATE: v.shape[-1] + 2},
        dtype=host.compute_dtype(q.dtype),
    )
    merged = da.reduction(
        states,
        chunk=_same,
        combine=_merged_attention,
        aggregate=_merged_attention,
        axis=-2,
        split_every=FAN_IN,
        dtype=states.dtype,
        meta=np.empty((0,) * (states.ndim - 1), states.dtype),
    )
    out = merged[..., :-2].astype(q.dtype)
    return (out, merged[..., -2] + merged[..., -1]) if return_lse else out


def _check_operands(q: da.Array, k: da.Array, v: da.Array, enable_gqa: bool) -> None:
    shapes = [a.shape for a in (q, k, v)]
    inputs.check_dtypes(q, k, v)
    inputs.check_shapes(*shapes)
    if len(set(map(len, shapes))) > 1:
        raise ValueError(f"q, k and v must have equally many axes, got shapes {shapes}")
    heads = kv_heads = 1
    if q.ndim > 2:
        _, heads, kv_heads = inputs.head_counts(shapes[0], shapes[1], shapes[2], enable_gqa)
    served = heads // kv_heads if kv_heads else 1
    for name, a in (("k", k), ("v", v)):
        lead = [*a.chunks[:-2]]
        if lead:
            lead[-1] = tuple(served * n for n in lead[-1])
        if tuple(lead) != q.chunks[:-2]:
            raise ValueError(
                f"q and {name} must have the same chunks along their leading axes (of heads, in "
                f"proportion), got {q.chunks[:-2]} and {a.chunks[:-2]}"
            )
    if k.chunks[-2] != v.chunks[-2]:
        raise ValueError(
            f"k and v must have the same chunks of keys, got {k.chunks[-2]} and {v.chunks[-2]}"
        )
    for name, a in (("q", q), ("k", k), ("v", v)):
        if a.numblocks[-1] != 1:
            raise ValueError(f"the last axis of {name} must be one chunk, got {a.chunks[-1]}")


def _check_positions(keys: int, q_offset: Any, kv_lengths: Any) -> None:
    for name, value in (("q_offset", q_offset), ("kv_lengths", kv_lengths)):
        if not (isinstance(value, (int, np.integer)) or (name, value) == ("kv_lengths", None)):
            raise TypeError(f"{name} must be one integer for all batch entries, got {value!r}")
    if kv_lengths is not None and not 0 <= kv_lengths <= keys:
        raise ValueError(f"kv_lengths must be from 0 to the {keys} keys, got {kv_lengths}")


def _mask_in_chunks(mask: Any, q: da.Array, k: da.Array) -> da.Array:
    """In the chunks of queries and keys; an axis of length 1 stays one."""
    m = given(mask, "attn_mask")
    if not m.ndim:
        m = m.reshape(1)
    if m.dtype not in (np.dtype(bool), q.dtype):
        raise TypeError(f"attn_mask must be boolean or of q's dtype {q.dtype}, got {m.dtype}")
    full = (*q.shape[:-1], k.shape[-2])
    ends = full[max(0, len(full) - m.ndim) :]
    if m.ndim > len(full) or any(have not in (1, n) for have, n in zip(m.shape, ends, strict=True)):
        raise ValueError(f"attn_mask must broadcast to {full}, got shape {m.shape}")
    chunks = (*q.chunks[:-1], k.chunks[-2])[len(full) - m.ndim :]
    own = tuple((1,) if n == 1 else c for n, c in zip(m.shape, chunks, strict=True))
    return chunked(m, own)


# --- tasks --------------------------------------------------------------------------------


@task
def _attention_state(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    mask: np.ndarray | None,
    q_start: np.ndarray,
    k_start: np.ndarray,
    *,
    q_offset: int,
    kv_lengths: int | None,
    split: bool,
    **options: Any,
) -> np.ndarray:
    """(..., L, 1, Ev + 2): of a block of keys the result, and behind it two numbers whose sum is
    lse. One number of the size of -1e9, a mask of padding, would be the same for any count of keys.
    """
    if split:  # parts of a result are not rounded to 16 bits
        q, k, v = computed(q), computed(k), computed(v)
        mask = mask if mask is None or mask.dtype == bool else mask.astype(q.dtype)
    if kv_lengths is not None:
        kv_lengths = min(max(kv_lengths - int(k_start[0]), 0), k.shape[-2])
    attention = functools.partial(
        fastce.scaled_dot_product_attention,
        q,
        k,
        v,
        q_offset=q_offset + int(q_start[0]) - int(k_start[0]),
        kv_lengths=kv_lengths,
        return_lse=True,
        **options,
    )
    out, lse = attention(attn_mask=mask)
    shift = np.zeros_like(lse)
    for _ in range(3 if split else 0):  # a mask of the lowest number takes two
        large = np.isfinite(lse) & (np.abs(lse) > LARGE_LSE)
        if not large.any():
            break
        more = np.where(large, lse, lse.dtype.type(0))
        minus = 0 - np.expand_dims(more, -1)
        if mask is None:
            mask = minus
        elif mask.dtype == bool:
            mask = np.where(mask, minus, -lse.dtype.type(np.inf))
        else:
            mask = mask + minus
        shift += more
        out, lse = attention(attn_mask=mask)
    packed = np.concatenate([computed(out), np.stack([shift, lse], axis=-1)], axis=-1)
    return np.expand_dims(packed, -2)


def _same(states: np.ndarray, axis: Any, keepdims: bool) -> np.ndarray:
    return states


def _merged_attention(states: np.ndarray, axis: Any, keepdims: bool) -> np.ndarray:
    """The state of all the keys together: results weighted by their shares of exp(lse)."""
    out, shift, lse = states[..., :-2], states[..., -2].astype(np.float64), states[..., -1]
    with threads_here(1), np.errstate(all="ignore"):
        base = np.max(np.where(np.isneginf(lse), -np.inf, shift), axis=-1, keepdims=True)
        base = np.where(np.isneginf(base), 0.0, base)
        lse = np.where(np.isneginf(lse), -np.inf, (shift - base) + lse)
        share = np.where(np.isneginf(lse), 0.0, np.exp(fastce.log_softmax(lse)))
        total = np.sum(out * np.expand_dims(share, -1), axis=-2)
        packed = np.concatenate([total, base, fastce.logsumexp(lse, keepdims=True)], axis=-1)
    packed = packed.astype(states.dtype, copy=False)
    return np.expand_dims(packed, -2) if keepdims else packed
