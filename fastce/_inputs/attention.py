"""The arguments of attention, checked and in canonical form (see ``fastce.kernels``)."""

from __future__ import annotations

import functools
import math
import numbers
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from . import attention_spans
from .attention_memory import Memory, memory_of
from .attention_spans import FAR, Excess

Shape = tuple[int, ...]
INPUTS = "q", "k", "v", "attn_mask"


class AttentionInputs(NamedTuple):
    """Of one call, on arrays in either memory."""

    memory: Memory
    given: tuple[Any, ...]  # q, k, v and the mask of the user
    arrays: tuple[Any, ...]  # the same in `memory`; the mask may be None
    shapes: tuple[Shape, ...]  # to which these are broadcast; of packed sequences () each
    spans: Any  # (batch entries, 5)
    options: dict[str, Any]
    shape: Shape  # of the result
    full_shape: Shape  # the same with all axes
    sequences: int | None = None  # packed in each array
    all_keys: bool = True  # whether each key is in a span

    def view(self, a: Any, shape: Shape) -> Any:
        """An array as kernels take it: broadcast to `shape`, or the same for each sequence."""
        if self.sequences is None:
            return self.memory.broadcast(a, shape)
        return self.memory.per_sequence(a, self.sequences)

    def views(self) -> list[Any]:
        """Of q, k, v and the mask."""
        pairs = zip(self.arrays, self.shapes, strict=True)
        return [None if a is None else self.view(a, shape) for a, shape in pairs]

    def apart_from(self, out: Any) -> AttentionInputs:
        """With no input in memory that will be written."""
        pairs = zip(self.arrays, INPUTS, strict=True)
        arrays = (a if a is None else self.memory.apart(a, out, name) for a, name in pairs)
        return self._replace(arrays=tuple(arrays))


def padded_batch(
    q: Any,
    k: Any,
    v: Any,
    attn_mask: Any,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    q_offset: Any,
    kv_lengths: Any,
    window: Any,
    softcap: float,
) -> AttentionInputs:
    """As `scaled_dot_product_attention` takes them."""
    memory, arrays = _arrays(q, k, v)
    of_q, of_k, of_v = (a.shape for a in arrays)
    batch, shapes, full, shape = _padded_shapes(
        of_q, of_k, of_v, bool(enable_gqa), memory.groups_one_head
    )
    arrays = [memory.contiguous(a, name) for a, name in zip(arrays, INPUTS, strict=False)]
    options, excess = scalar_options(scale, window, softcap, is_causal, of_q[-1])
    mask = None
    if attn_mask is not None:
        mask, scores = memory.mask(attn_mask, arrays[0].dtype), shapes[3]
        if not mask.shape or _broadcast([mask.shape, scores], "attn_mask and the scores") != scores:
            raise ValueError(f"attn_mask must broadcast to {scores}, got shape {mask.shape}")
    if 0 in full[-3:] and kv_lengths is None and type(q_offset) is int:
        batch = (0,) * len(batch)  # there may be 2**40 entries without a query: none has a span
    positions = {"kv_lengths": (kv_lengths, batch), "q_offset": (q_offset, batch)}
    spans = memory.spans(math.prod(batch), full[-2], of_k[-2], positions, excess)
    return AttentionInputs(
        memory,
        (q, k, v, attn_mask),
        (*arrays, mask),
        shapes,
        spans,
        options,
        shape,
        full,
        all_keys=kv_lengths is None,
    )


@functools.lru_cache(maxsize=256)  # a fifth of the time of a call on a few numbers
def _padded_shapes(
    q: Shape, k: Shape, v: Shape, enable_gqa: bool, group_one_head: bool
) -> tuple[Shape, tuple[Shape, ...], Shape, Shape]:
    """The batch axes, the shapes to which q, k, v and the mask are broadcast, and that of the
    result: with all axes, and for the user.
    """
    check_shapes(q, k, v)
    flat = len(q) == len(k) == len(v) == 2
    q, k, v = (shape if len(shape) > 2 else (1, *shape) for shape in (q, k, v))
    batch, heads, kv_heads = head_counts(q, k, v, enable_gqa)
    if group_one_head and k[-3] == v[-3] == 1:
        kv_heads = 1
    rows, keys = (*batch, heads, q[-2]), (*batch, kv_heads, k[-2])
    shapes = (*rows, q[-1]), (*keys, k[-1]), (*keys, v[-1]), (*rows, k[-2])
    full = *rows, v[-1]
    return batch, shapes, full, full[1:] if flat else full


def packed(
    q: Any,
    k: Any,
    v: Any,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    q_offset: Any,
    window: Any,
    softcap: float,
) -> AttentionInputs:
    """As `attention_varlen` takes them: each sequence is a batch entry."""
    memory, arrays = _arrays(q, k, v)
    of_q, of_k, of_v = (a.shape for a in arrays)
    check_shapes(of_q, of_k, of_v, key_axis=0)
    arrays = [memory.contiguous(a, name) for a, name in zip(arrays, INPUTS, strict=False)]
    if not len(of_q) == len(of_k) == len(of_v) == 3:
        raise ValueError(f"q, k and v must have 3 axes, got {_listed([of_q, of_k, of_v])}")
    if of_k[1] != of_v[1] or not of_k[1] or of_q[1] % of_k[1]:
        raise ValueError(
            f"k and v must have equally many heads, which divide those of q; got {of_q[1]}, "
            f"{of_k[1]} and {of_v[1]}"
        )
    if not enable_gqa and of_q[1] != of_k[1]:
        heads = f"q has {of_q[1]} heads, k and v have {of_k[1]}"
        raise ValueError(f"{heads}: that needs enable_gqa=True")
    options, excess = scalar_options(scale, window, softcap, is_causal, of_q[-1])
    count = attention_spans.count(cu_seqlens_q)
    positions = {
        "cu_seqlens_q": (cu_seqlens_q, (count + 1,)),
        "cu_seqlens_k": (cu_seqlens_k, (count + 1,)),
        "q_offset": (q_offset, (count,)),
    }
    spans = memory.spans(count, of_q[0], of_k[0], positions, excess)
    shape = (*of_q[:2], of_v[2])
    given, shapes = (q, k, v, None), ((),) * 4
    return AttentionInputs(
        *(memory, given, (*arrays, None), shapes, spans, options, shape, shape),
        sequences=count,
    )


def _arrays(q: Any, k: Any, v: Any) -> tuple[Memory, list[Any]]:
    memory = memory_of(q)
    arrays = [memory.floating(q, "q"), memory.floating(k, "k"), memory.floating(v, "v")]
    check_dtypes(*arrays)
    return memory, arrays


def check_dtypes(q: Any, k: Any, v: Any) -> None:
    if not q.dtype == k.dtype == v.dtype:
        raise TypeError(f"q, k and v must have one dtype, got {q.dtype}, {k.dtype}, {v.dtype}")


def check_shapes(q: Shape, k: Shape, v: Shape, key_axis: int = -2) -> None:
    """Whether widths and numbers of keys fit."""
    if min(len(q), len(k), len(v)) < 2:
        raise ValueError(f"q, k and v must have at least 2 axes, got shapes {_listed([q, k, v])}")
    if q[-1] != k[-1]:
        raise ValueError(f"q and k must agree in their last axis, got {q} and {k}")
    if k[key_axis] != v[key_axis]:
        raise ValueError(f"k and v must hold as many keys, got {k} and {v}")
    if 0 in (q[-1], v[-1]):
        raise ValueError(f"the last axis may not be empty, got shapes {_listed([q, k, v])}")


def _listed(shapes: Sequence[Shape]) -> str:
    return ", ".join(map(str, shapes))


def _broadcast(shapes: list[Shape], what: str) -> Shape:
    if shapes.count(shapes[0]) == len(shapes):
        return shapes[0]
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        raise ValueError(f"{what} do not broadcast: {_listed(shapes)}") from None


def head_counts(q: Shape, k: Shape, v: Shape, enable_gqa: bool) -> tuple[Shape, int, int]:
    """From the shapes of a padded batch: its batch axes, heads of queries, heads of keys."""
    batch = _broadcast([q[:-3], k[:-3], v[:-3]], "the batch axes of q, k and v")
    heads, kv_heads = q[-3], k[-3]
    if enable_gqa:
        if k[-3] != v[-3] or not kv_heads or heads % kv_heads:
            raise ValueError(
                "with enable_gqa, k and v must have equally many heads, which divide those of q; "
                f"got {heads}, {kv_heads} and {v[-3]}"
            )
        return batch, heads, kv_heads
    sizes = {heads, kv_heads, v[-3]} - {1} or {1}
    if len(sizes) > 1:
        raise ValueError(
            f"q, k and v have {heads}, {kv_heads} and {v[-3]} heads; grouped heads need "
            "enable_gqa=True"
        )
    heads = sizes.pop()
    return batch, heads, heads


def scalar_options(
    scale: float | None, window: Any, softcap: float, is_causal: bool, width: int
) -> tuple[dict[str, Any], Excess]:
    """Of the kernels; and how far the window reaches beyond `FAR`."""
    scale = 1 / math.sqrt(width) if scale is None else scale
    for value, name in ((scale, "scale"), (softcap, "softcap")):
        if not isinstance(value, numbers.Real):
            raise TypeError(f"{name} must be a number, got {value!r}")
    if not math.isfinite(scale):
        raise ValueError(f"scale must be finite, got {scale!r}")
    if not (softcap >= 0 and math.isfinite(softcap)):
        raise ValueError(f"softcap must be finite and not negative, got {softcap!r}")
    try:
        left, right = (-1, -1) if window is None else map(operator.index, window)
    except (TypeError, ValueError):
        raise TypeError(f"window must be a pair of integers, got {window!r}") from None
    if min(left, right) < -1:
        raise ValueError(f"window must not be below -1, which is unbounded, got {window!r}")
    right = 0 if is_causal else right
    options = {
        "scale": float(scale),
        "left": min(left, FAR),
        "right": min(right, FAR),
        "softcap": float(softcap),
    }
    return options, (max(0, left - FAR), max(0, right - FAR))
