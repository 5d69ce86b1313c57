"""``fastce.scaled_dot_product_attention`` in compiled code of users.

On one thread: for more, spread batch entries over a prange, or call it from Python. The batch axes
of queries, keys and values must be equal there.
"""

import math

import numpy as np
from numba import types
from numba.core.errors import TypingError

import fastce

from .._inputs.attention_spans import FAR
from ..kernels.numba._storage import read_only
from ..kernels.numba.attention import problem
from ..kernels.numba.attention.forward import part_size, run_forward, run_merge, splits_of
from .types import (
    constant,
    declared,
    float_array,
    is_none,
    jitable,
    overlap,
    raising,
    result_array,
)

_PLACES = problem.LSE + 1


def _per_entry(a, name, axes):
    """A function (value, shape, batches, default) -> one integer for each batch entry, of so many
    batch axes.
    """
    if is_none(a):
        return jitable(lambda a, shape, batches, default: np.full(batches, default))
    if isinstance(a, types.Integer | types.Omitted | int):
        return jitable(lambda a, shape, batches, default: np.full(batches, a))
    if not (isinstance(a, types.Array) and isinstance(a.dtype, types.Integer) and a.ndim == axes):
        raise TypingError(
            f"in compiled code {name} must be an integer or an array with the {axes} batch axes of "
            f"q, got {a}"
        )

    @raising
    def of_array(a, shape, batches, default):
        if a.shape != shape:
            raise ValueError(f"{name} must have one element for each batch entry")
        return np.ascontiguousarray(a).reshape(-1).astype(np.int64)

    return of_array


@jitable
def _nearer(offset, less_left, less_right):
    """As `_inputs.attention` brings a first position nearer."""
    if offset > FAR // 2:
        offset = max(offset - less_left, FAR // 2)
    if offset < -(FAR // 2):
        offset = min(offset + less_right, -(FAR // 2))
    return max(-2 * FAR, min(2 * FAR, offset))


@jitable
def _place(places, which, shape):
    """Where a C-contiguous array of shape (..., heads, rows, width) lies."""
    heads, rows, width = shape[-3:]
    places[which, problem.HEAD] = rows * width
    places[which, problem.ROW] = width
    places[which, problem.ITEM] = 1
    for batch in range(places.shape[1] - problem.STARTS):
        places[which, problem.STARTS + batch] = batch * heads * rows * width


@raising
def _place_mask(places, shape, full):
    """The same of a mask that is broadcast to the shape `full`."""
    steps = np.zeros(len(full), np.int64)
    step = 1
    for i in range(len(shape)):  # from the last axis
        at, size = len(full) - 1 - i, shape[len(shape) - 1 - i]
        if size != 1 and size != full[at]:
            raise ValueError("attn_mask must broadcast to (..., heads, L, S)")
        steps[at] = 0 if size == 1 else step
        step *= size
    axes = len(full) - 3
    places[problem.MASK, problem.HEAD] = steps[axes]
    places[problem.MASK, problem.ROW] = steps[axes + 1]
    places[problem.MASK, problem.ITEM] = steps[axes + 2]
    for batch in range(places.shape[1] - problem.STARTS):
        left, start = batch, 0
        for i in range(axes):
            at = axes - 1 - i
            start += left % full[at] * steps[at]
            left //= full[at]
        places[problem.MASK, problem.STARTS + batch] = start


def _mask(mask, q):
    """A function (mask) -> its memory as numbers and as bytes, one of them empty."""
    dtype = q.dtype
    if is_none(mask):
        return jitable(lambda mask: (np.empty(0, dtype), np.empty(0, np.uint8)))
    if not isinstance(mask, types.Array) or mask.ndim > q.ndim:
        raise TypingError(f"in compiled code attn_mask must be an array, got {mask}")
    if mask.dtype == types.boolean:
        return jitable(
            lambda mask: (
                np.empty(0, dtype),
                np.ascontiguousarray(mask).reshape(-1).view(np.uint8),
            )
        )
    if mask.dtype != dtype:
        raise TypingError(f"attn_mask must be boolean or have q's dtype {dtype}, got {mask.dtype}")
    return jitable(lambda mask: (np.ascontiguousarray(mask).reshape(-1), np.empty(0, np.uint8)))


@jitable
def _own(a, out):
    """`a` flat, in memory of its own: `out` is written while other rows are still read."""
    a = np.ascontiguousarray(a).reshape(-1)
    return read_only(a.copy() if overlap(a, out) else a)


@raising
def _check_numbers(scale, softcap):
    if not math.isfinite(scale):
        raise ValueError("scale must be finite")
    if not (softcap >= 0 and math.isfinite(softcap)):
        raise ValueError("softcap must be finite and not negative")


@raising
def _check(q, k, v, enable_gqa):
    if q.shape[:-3] != k.shape[:-3] or k.shape[:-3] != v.shape[:-3]:
        raise ValueError("in compiled code q, k and v must have equal batch axes")
    heads, kv_heads = q.shape[-3], k.shape[-3]
    if v.shape[-3] != kv_heads or kv_heads == 0 or heads % kv_heads:
        raise ValueError(f"q, k and v have {heads}, {kv_heads} and {v.shape[-3]} heads")
    if not enable_gqa and kv_heads not in (1, heads):
        raise ValueError(f"{heads} and {kv_heads} heads: grouped heads need enable_gqa=True")
    if q.shape[-1] == 0 or v.shape[-1] == 0:
        raise ValueError("q, k and v must have a last axis that is not empty")
    if q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
        raise ValueError("q and k must have equal widths, k and v equal lengths")


@raising
def _check_window(left, right):
    if left < -1 or right < -1:
        raise ValueError("window must not be below -1, which is without bound")


@declared(fastce.scaled_dot_product_attention)
def _attention(
    q, k, v, attn_mask=None, is_causal=False, scale=None, enable_gqa=False, q_offset=0,
    kv_lengths=None, window=None, softcap=0.0, return_lse=False, out=None,
):  # fmt: skip
    dtype = float_array(q, "q")
    for a, name in (k, "k"), (v, "v"):
        if not isinstance(a, types.Array) or (a.dtype, a.ndim) != (dtype, q.ndim) or a.ndim < 3:
            raise TypingError(
                f"in compiled code q, k and v must have the same dtype and number of axes, at "
                f"least 3; q is {q}, {name} is {a}"
            )
    result_of = result_array(out, q, "out must have the shape (..., heads, L, Ev)")
    with_lse = constant(return_lse, "return_lse", bool)
    has_mask, has_window, has_scale = (not is_none(a) for a in (attn_mask, window, scale))
    numbers, lengths = _mask(attn_mask, q), _per_entry(kv_lengths, "kv_lengths", q.ndim - 3)
    offsets = _per_entry(q_offset, "q_offset", q.ndim - 3)
    forward, merge = run_forward.start, run_merge.start
    places_of, starts, empty = _PLACES, problem.STARTS, (0,) * (q.ndim - 1)

    @raising
    def spans_of(q_offset, kv_lengths, shape, batches, length, keys):
        spans = np.zeros((batches, 5), np.int64)
        spans[:, 1] = length
        spans[:, 3] = lengths(kv_lengths, shape, batches, keys)
        spans[:, 4] = offsets(q_offset, shape, batches, 0)
        for batch in range(batches):
            if not 0 <= spans[batch, 3] <= keys:
                raise ValueError(
                    f"kv_lengths must be from 0 to the {keys} keys, got {spans[batch, 3]}"
                )
        return spans

    @jitable
    def compute(q, k, v, mask, is_causal, scale, spans, left, right, softcap, out, lse):
        _check_numbers(scale, softcap)
        _check_window(left, right)
        if is_causal:
            right = 0 if right < 0 else min(right, 0)
        batches, shape = len(spans), q.shape
        for batch in range(batches):
            spans[batch, 4] = _nearer(spans[batch, 4], max(0, left - FAR), max(0, right - FAR))
        left, right = min(left, FAR), min(right, FAR)
        places = np.zeros((places_of, starts + batches), np.int64)
        _place(places, problem.Q, q.shape)
        _place(places, problem.K, k.shape)
        _place(places, problem.V, v.shape)
        _place(places, problem.OUT, out.shape)
        _place(places, problem.LSE, shape[:-1] + (1,))  # noqa: RUF005 (Numba has no star)
        values, allowed = numbers(mask)
        if has_mask:
            _place_mask(places, mask.shape, shape[:-1] + (k.shape[-2],))  # noqa: RUF005
        flat_q = _own(q, out)
        flat_k = _own(k, out)
        flat_v = _own(v, out)
        heads, kv_heads = shape[-3], k.shape[-3]
        p = problem.Problem(
            flat_q, flat_k, flat_v, read_only(values), read_only(allowed), places, spans,
            problem.first_tiles(spans, heads, kv_heads), heads, kv_heads, shape[-1], v.shape[-1],
            scale, softcap, left, right,
        )  # fmt: skip
        splits = splits_of(p)
        size = part_size(p) * splits * p.first_tile[-1] if splits > 1 else 0
        parts = np.empty(size, dtype)
        forward(False, 1, p, out.reshape(-1), lse, splits, parts, np.zeros(1, np.int64))
        if splits > 1:
            merge(False, 1, p, out.reshape(-1), lse, splits, parts, np.zeros(1, np.int64))

    def attention(
        q, k, v, attn_mask=None, is_causal=False, scale=None, enable_gqa=False, q_offset=0,
        kv_lengths=None, window=None, softcap=0.0, return_lse=False, out=None,
    ):  # fmt: skip
        _check(q, k, v, enable_gqa)
        batches = 1
        for axis in range(q.ndim - 3):
            batches *= q.shape[axis]
        result = result_of(out, q.shape[:-1] + v.shape[-1:])
        lse = np.empty(q.shape[:-1] if with_lse else empty, dtype)
        factor = float(scale) if has_scale else 1 / math.sqrt(max(1, q.shape[-1]))
        left, right = (window[0], window[1]) if has_window else (-1, -1)
        spans = spans_of(q_offset, kv_lengths, q.shape[:-3], batches, q.shape[-2], k.shape[-2])
        compute(
            q, k, v, attn_mask, is_causal, factor, spans, left, right, float(softcap), result,
            lse.reshape(-1),
        )  # fmt: skip
        if with_lse:
            return result, lse
        return result

    return attention
