"""Whether the queries, keys and values of `fastce.dask` fit each other, chunks included."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np

from .._inputs import attention as inputs
from ._graph import chunked, given


def check_operands(q: da.Array, k: da.Array, v: da.Array, enable_gqa: bool) -> None:
    shapes = [a.shape for a in (q, k, v)]
    inputs.check_operands([a.dtype for a in (q, k, v)], shapes)
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


def check_positions(keys: int, q_offset: Any, kv_lengths: Any) -> None:
    for name, value in (("q_offset", q_offset), ("kv_lengths", kv_lengths)):
        if not (isinstance(value, (int, np.integer)) or (name, value) == ("kv_lengths", None)):
            raise TypeError(f"{name} must be one integer for all batch entries, got {value!r}")
    if kv_lengths is not None and not 0 <= kv_lengths <= keys:
        raise ValueError(f"kv_lengths must be from 0 to the {keys} keys, got {kv_lengths}")


def mask_in_chunks(mask: Any, q: da.Array, k: da.Array) -> da.Array:
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
