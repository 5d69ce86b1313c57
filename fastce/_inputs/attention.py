"""The arguments of attention, checked and in canonical form (see ``fastce.kernels``)."""

import math
import numbers as abc_numbers
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from . import host

FAR = 2**60  # twice as long as any array; sums of a few do not overflow


class Heads(NamedTuple):
    """Inputs of one call, ready for a kernel. All arrays have the same batch axes in front."""

    q: np.ndarray  # (..., heads, L, E)
    k: np.ndarray  # (..., kv_heads, S, E)
    v: np.ndarray  # (..., kv_heads, S, Ev)
    mask: np.ndarray | None  # (..., heads, L, S)
    spans: np.ndarray  # (batch entries, 5)
    options: dict[str, Any]
    shape: tuple[int, ...]  # of the result


def operands(
    q: Any, k: Any, v: Any, key_axis: int = -2
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The three inputs as arrays of one dtype whose last axis is contiguous."""
    arrays = [host.floating(a, name) for a, name in ((q, "q"), (k, "k"), (v, "v"))]
    check_operands([a.dtype for a in arrays], [a.shape for a in arrays], key_axis)
    first, second, third = map(row_contiguous, arrays)
    return first, second, third


def check_operands(dtypes: list[Any], shapes: list[tuple[int, ...]], key_axis: int = -2) -> None:
    """Whether q, k and v are of one dtype, and their widths and numbers of keys fit."""
    if len(set(dtypes)) > 1:
        raise TypeError(f"q, k and v must have one dtype, got {', '.join(map(str, dtypes))}")
    if min(map(len, shapes)) < 2:
        raise ValueError(f"q, k and v must have at least 2 axes, got shapes {_listed(shapes)}")
    if shapes[0][-1] != shapes[1][-1]:
        raise ValueError(f"q and k must agree in their last axis, got {shapes[0]} and {shapes[1]}")
    if shapes[1][key_axis] != shapes[2][key_axis]:
        raise ValueError(f"k and v must hold as many keys, got {shapes[1]} and {shapes[2]}")
    if 0 in (shapes[0][-1], shapes[2][-1]):
        raise ValueError(f"the last axis may not be empty, got shapes {_listed(shapes)}")


def _listed(shapes: list[tuple[int, ...]]) -> str:
    return ", ".join(map(str, shapes))


def row_contiguous(a: np.ndarray) -> np.ndarray:
    """`a`, or a copy where its last axis is not contiguous."""
    return a if a.strides[-1] == a.itemsize or a.shape[-1] == 1 else np.ascontiguousarray(a)


def bits(a: np.ndarray) -> np.ndarray:
    """As kernels take it: bfloat16 as uint16."""
    return a.view(np.uint16) if host.is_bfloat16(a.dtype) else a


def spread(a: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """`a` broadcast to `shape`, also where it will be written."""
    if a.shape == shape:
        return a
    a = a.reshape((1,) * (len(shape) - a.ndim) + a.shape)
    strides = [
        0 if have == 1 and want != 1 else s
        for have, want, s in zip(a.shape, shape, a.strides, strict=True)
    ]
    return as_strided(a, shape, strides)


def numbers(
    scale: float | None, window: Any, softcap: float, is_causal: bool, width: int
) -> dict[str, Any]:
    """The scalar options of the kernels."""
    scale = 1 / math.sqrt(width) if scale is None else scale
    for value, name in ((scale, "scale"), (softcap, "softcap")):
        if not isinstance(value, abc_numbers.Real):
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
        raise ValueError(f"window must not be below -1, which is without bound, got {window!r}")
    return {
        "scale": float(scale),
        "left": min(left, FAR),
        "right": 0 if is_causal else min(right, FAR),
        "softcap": float(softcap),
    }


def beyond(window: Any, is_causal: bool) -> tuple[int, int]:
    """What `numbers` takes from a window, which must be taken from offsets as well."""
    left, right = (-1, -1) if window is None else map(operator.index, window)
    return max(0, left - FAR), 0 if is_causal else max(0, right - FAR)


def _nearer(offset: int, less: tuple[int, int]) -> int:
    """An offset without what its window has lost at the side that counts, if it is so far."""
    if abs(offset) <= FAR // 2:
        return offset
    return max(offset - less[0], FAR // 2) if offset > 0 else min(offset + less[1], -FAR // 2)


def per_entry(value: Any, batch: tuple[int, ...], name: str, less: tuple[int, int] = (0, 0)) -> Any:
    """Integers for each batch entry, flat, or one for all; none is beyond 2 * FAR. `less` is what
    their window has lost.
    """
    if type(value) is int:
        return max(-2 * FAR, min(2 * FAR, _nearer(value, less)))
    a = host.to_numpy(value, name)
    if a.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got dtype {host.described(a)}")
    if any(less):
        a = np.array([per_entry(int(n), batch, name, less) for n in a.flat], np.int64)
        a = a.reshape(np.shape(value))
    elif a.dtype == np.uint64:
        a = np.minimum(a, 2 * FAR)
    try:
        return np.broadcast_to(a.astype(np.int64).clip(-2 * FAR, 2 * FAR), batch).ravel()
    except ValueError:
        raise ValueError(
            f"{name} must be one integer, or one for each batch entry {batch}, got shape {a.shape}"
        ) from None


def _broadcast(shapes: list[tuple[int, ...]], what: str) -> tuple[int, ...]:
    if len(set(shapes)) == 1:
        return shapes[0]
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        raise ValueError(f"{what} do not broadcast: {_listed(shapes)}") from None


def head_counts(
    q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...], enable_gqa: bool
) -> tuple[tuple[int, ...], int, int]:
    """From the shapes of a padded batch: its batch axes, heads of queries, heads of keys."""
    batch = _broadcast([shape[:-3] for shape in (q, k, v)], "the batch axes of q, k and v")
    heads, kv_heads = q[-3], k[-3]
    if enable_gqa:
        if k[-3] != v[-3] or not kv_heads or heads % kv_heads:
            raise ValueError(
                "with enable_gqa, k and v must have equally many heads, which divide those of q; "
                f"got {heads}, {kv_heads} and {v[-3]}"
            )
        return batch, heads, kv_heads
    sizes = {shape[-3] for shape in (q, k, v)} - {1} or {1}
    if len(sizes) > 1:
        raise ValueError(
            f"q, k and v have {heads}, {kv_heads} and {v[-3]} heads; grouped heads need "
            "enable_gqa=True"
        )
    heads = sizes.pop()
    return batch, heads, heads


def spans_of(
    batch: tuple[int, ...],
    length: int,
    keys: int,
    q_offset: Any,
    kv_lengths: Any,
    less: tuple[int, int],
) -> np.ndarray:
    """What each entry of a padded batch has of its queries and keys (see ``fastce.kernels``)."""
    spans = np.zeros((math.prod(batch), 5), np.int64)
    spans[:, 1] = length
    spans[:, 3] = keys
    if kv_lengths is not None:
        spans[:, 3] = per_entry(kv_lengths, batch, "kv_lengths")
        bad = (spans[:, 3] < 0) | (spans[:, 3] > keys)
        if bad.any():
            wrong = np.broadcast_to(np.asarray(kv_lengths), batch).ravel()[bad.argmax()]
            raise ValueError(f"kv_lengths must be from 0 to the {keys} keys, got {wrong}")
    spans[:, 4] = per_entry(q_offset, batch, "q_offset", less)
    return spans


def padded_batch(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    attn_mask: Any,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    q_offset: Any,
    kv_lengths: Any,
    window: Any,
    softcap: float,
) -> Heads:
    """Queries and keys as `scaled_dot_product_attention` takes them."""
    options = numbers(scale, window, softcap, is_causal, q.shape[-1])
    q, k, v = (a if a.ndim > 2 else a[None] for a in (q, k, v))
    batch, heads, kv_heads = head_counts(q.shape, k.shape, v.shape, enable_gqa)
    length, keys = q.shape[-2], k.shape[-2]
    mask = None
    if attn_mask is not None:
        mask = _mask(attn_mask, q.dtype, (*batch, heads, length, keys))
    shape = (*batch, heads, length, v.shape[-1])
    if 0 in (heads, length) and kv_lengths is None and type(q_offset) is int:
        batch = (0,) * len(batch)  # there may be 2**40 entries without a query: none has a span
    spans = spans_of(batch, length, keys, q_offset, kv_lengths, beyond(window, is_causal))
    return Heads(
        spread(bits(q), (*batch, heads, *q.shape[-2:])),
        spread(bits(k), (*batch, kv_heads, *k.shape[-2:])),
        spread(bits(v), (*batch, kv_heads, *v.shape[-2:])),
        mask if mask is None else spread(mask, (*batch, heads, length, keys)),
        spans,
        options,
        shape,
    )


def check_mask(dtype: Any, of_q: Any, mask: np.ndarray | None = None) -> None:
    if dtype not in (bool, "bool", of_q):
        got = dtype if mask is None else host.described(mask)
        raise TypeError(f"attn_mask must be boolean or have q's dtype {of_q}, got {got}")


def check_mask_shape(mask: tuple[int, ...], scores: tuple[int, ...]) -> None:
    if not mask or _broadcast([mask, scores], "attn_mask and the scores") != scores:
        raise ValueError(f"attn_mask must broadcast to {scores}, got shape {mask}")


def _mask(attn_mask: Any, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    mask = host.to_numpy(attn_mask, "attn_mask")
    check_mask(mask.dtype.newbyteorder("="), dtype, mask)
    check_mask_shape(mask.shape, shape)
    if not (mask.flags.aligned and mask.dtype.isnative):
        mask = mask.astype(mask.dtype.newbyteorder("="))
    return spread(bits(row_contiguous(mask)), shape)


def check_packed(
    q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...], enable_gqa: bool
) -> None:
    """Whether the shapes of packed sequences fit."""
    if not len(q) == len(k) == len(v) == 3:
        raise ValueError(f"q, k and v must have 3 axes, got {_listed([q, k, v])}")
    if k[1] != v[1] or not k[1] or q[1] % k[1]:
        raise ValueError(
            f"k and v must have equally many heads, which divide those of q; got {q[1]}, "
            f"{k[1]} and {v[1]}"
        )
    if not enable_gqa and q[1] != k[1]:
        raise ValueError(f"q has {q[1]} heads, k and v have {k[1]}: that needs enable_gqa=True")


def packed(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    q_offset: Any,
    window: Any,
    softcap: float,
) -> Heads:
    """Queries and keys as `attention_varlen` takes them: each sequence is a batch entry."""
    check_packed(q.shape, k.shape, v.shape, enable_gqa)
    options = numbers(scale, window, softcap, is_causal, q.shape[-1])
    less = beyond(window, is_causal)
    spans = packed_spans(cu_seqlens_q, cu_seqlens_k, q.shape[0], k.shape[0], q_offset, less)
    count = len(spans)
    return Heads(
        per_sequence(q, count),
        per_sequence(k, count),
        per_sequence(v, count),
        None,
        spans,
        options,
        (*q.shape[:2], v.shape[2]),
    )


def packed_spans(
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    queries: int,
    keys: int,
    q_offset: Any,
    less: tuple[int, int],
) -> np.ndarray:
    """What each packed sequence has of all queries and keys (see ``fastce.kernels``)."""
    ends_q = _ends(cu_seqlens_q, queries, "cu_seqlens_q")
    ends_k = _ends(cu_seqlens_k, keys, "cu_seqlens_k")
    if len(ends_q) != len(ends_k):
        raise ValueError(
            f"cu_seqlens_q and cu_seqlens_k must be equally long, got {len(ends_q)} and "
            f"{len(ends_k)}"
        )
    spans = np.empty((len(ends_q) - 1, 5), np.int64)
    spans[:, 0], spans[:, 1] = ends_q[:-1], ends_q[1:]
    spans[:, 2], spans[:, 3] = ends_k[:-1], ends_k[1:]
    spans[:, 4] = per_entry(q_offset, (len(spans),), "q_offset", less)
    return spans


def per_sequence(a: np.ndarray, count: int) -> np.ndarray:
    """A packed array (total, heads, ...), the same for each of `count` batch entries."""
    a = bits(np.moveaxis(a, 1, 0))
    return as_strided(a, (count, *a.shape), (0, *a.strides))


def _ends(cu_seqlens: Any, total: int, name: str) -> np.ndarray:
    ends = host.to_numpy(cu_seqlens, name)
    if ends.dtype.kind not in "iu" or ends.ndim != 1 or not ends.size:
        raise TypeError(
            f"{name} must be a one-dimensional array of integers, got {ends.dtype} of shape "
            f"{ends.shape}"
        )
    ends = ends.astype(np.int64)
    if ends[0] != 0 or ends[-1] != total or np.any(np.diff(ends) < 0):
        raise ValueError(
            f"{name} must rise from 0 to {total}, the number of rows, got {cu_seqlens!r}"
        )
    return ends


def memory_order(shape: tuple[int, ...], strides: tuple[int, ...]) -> list[int]:
    """Axes in the order in which they lie in memory, but the last one last."""
    last = len(shape) - 1
    return [*sorted(range(last), key=lambda i: -abs(strides[i]) if shape[i] > 1 else 0), last]


def result_like(
    a: np.ndarray, shape: tuple[int, ...], dtype: np.dtype, new: Callable[..., Any] = np.empty
) -> np.ndarray:
    """A new array whose axes lie in memory in the order of those of `a`, the last one last."""
    if a.ndim != len(shape) or a.flags.c_contiguous:
        return new(shape, dtype)
    order = memory_order(a.shape, a.strides)
    return new([shape[i] for i in order], dtype).transpose(np.argsort(order))


def check_result(out: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """`out` of the user, whose rows must be contiguous."""
    result = host.check_out(out, shape, dtype)
    if row_contiguous(result) is not result and result.size:
        raise ValueError(
            f"out must be contiguous in its last axis, got strides {result.strides} for "
            f"{result.dtype}"
        )
    check_no_overlap(shape, result.strides, result.itemsize)
    return result


def check_no_overlap(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> None:
    """Whether each element of `out` has a place of its own."""
    extent = itemsize
    for stride, n in sorted((abs(s), n) for s, n in zip(strides, shape, strict=True)):
        if n > 1 and stride < extent and 0 not in shape:
            raise ValueError(f"out with shape {shape} and strides {strides} overlaps itself")
        extent += stride * (n - 1)


def apart(a: Any, result: np.ndarray) -> Any:
    """`a`, or a copy where `result` would be written over it."""
    return a if a is None or not np.may_share_memory(a, result) else a.copy()


def cast(a: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """`a` in another dtype; beyond its range is infinity, as it should be."""
    with np.errstate(over="ignore"):
        return a.astype(dtype, copy=False)


def summed(grad: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The gradient of an input that was broadcast: the sum over the axes it was spread along."""
    if grad.shape == shape:
        return grad
    front = grad.ndim - len(shape)
    axes = tuple(range(front)) + tuple(
        front + i for i, n in enumerate(shape) if n == 1 and grad.shape[front + i] != 1
    )
    return (
        grad.sum(axis=axes, dtype=host.compute_dtype(grad.dtype)).reshape(shape).astype(grad.dtype)
    )
