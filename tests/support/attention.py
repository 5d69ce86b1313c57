"""What attention should give, as the formula reads and one head at a time; and a table of cases.

float64 inputs are computed in longdouble, all others in float64. Errors are measured relative to
the sum of the absolute values of the terms, as in truth.py, which here includes what the rounding
of the scores makes of each weight.
"""

import math
import zlib
from typing import NamedTuple

import ml_dtypes
import numpy as np

import fastce
from support.truths import BF16, Truth, compute, widen


def eps(dtype):
    return float(ml_dtypes.finfo(dtype).eps)


# --- the truth ----------------------------------------------------------------------------


class Head(NamedTuple):
    """One query head of one batch entry; of the keys only those that count."""

    index: tuple[int, ...]
    keys: slice
    q: np.ndarray  # (L, E)
    k: np.ndarray
    v: np.ndarray
    weights: np.ndarray  # (L, keys)
    slope: np.ndarray  # d(score) / d(scale * q k^T)
    lse: np.ndarray  # (L,)
    size: np.ndarray  # (L, keys): sum of the absolute values of the terms of a score


def _over_query_heads(q, k, v, enable_gqa):
    """All three in wide arithmetic with the leading axes of the result."""
    q, k, v = map(widen, (q, k, v))
    if enable_gqa:
        k, v = (np.repeat(a, q.shape[-3] // a.shape[-3], axis=-3) for a in (k, v))
    lead = np.broadcast_shapes(*(a.shape[:-2] for a in (q, k, v)))
    return lead, [np.broadcast_to(a, (*lead, *a.shape[-2:])) for a in (q, k, v)]


def _each_head(
    q, k, v, *, attn_mask=None, is_causal=False, scale=None, enable_gqa=False, q_offset=0,
    kv_lengths=None, window=None, softcap=0.0,
):  # fmt: skip
    lead, (q, k, v) = _over_query_heads(q, k, v, enable_gqa)
    length, count = q.shape[-2], k.shape[-2]
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    left, right = window or (-1, -1)
    if attn_mask is not None:
        attn_mask = np.asarray(attn_mask)
        if attn_mask.dtype != bool:
            attn_mask = widen(attn_mask)
        attn_mask = np.broadcast_to(attn_mask, (*lead, length, count))
    offsets = np.broadcast_to(q_offset, lead[:-1])
    counts = np.broadcast_to(count if kv_lengths is None else kv_lengths, lead[:-1])
    for index in np.ndindex(lead):
        keys = slice(0, int(counts[index[:-1]]))
        q1, k1, v1 = q[index], k[index][keys], v[index][keys]
        position = np.arange(length)[:, None] + int(offsets[index[:-1]])
        key = np.arange(keys.stop)[None]
        allowed = np.ones((length, keys.stop), bool)
        if is_causal:
            allowed &= key <= position
        if left >= 0:
            allowed &= key >= position - left
        if right >= 0:
            allowed &= key <= position + right
        scores = scale * (q1 @ k1.T)
        size = abs(scale) * (np.abs(q1) @ np.abs(k1).T)
        slope = np.ones_like(scores)
        if softcap:
            slope = 1 / np.cosh(np.minimum(np.abs(scores / softcap), 300)) ** 2
            scores = softcap * np.tanh(scores / softcap)
        if attn_mask is not None:
            mask = attn_mask[index][:, keys]
            if mask.dtype == bool:
                allowed &= mask
            else:
                allowed &= mask != -np.inf
                scores = scores + np.where(allowed, mask, 0)
                size = size + np.where(allowed, np.abs(mask), 0)
        row_max = np.max(scores, axis=1, keepdims=True, initial=-np.inf, where=allowed)
        row_max = np.where(allowed.any(axis=1, keepdims=True), row_max, 0)
        powers = np.exp(np.where(allowed, scores - row_max, -np.inf))
        total = powers.sum(axis=1, keepdims=True)
        weights = powers / np.where(total == 0, 1, total)
        with np.errstate(divide="ignore"):  # -inf for a query that may see no key
            lse = (row_max + np.log(total))[:, 0]
        yield Head(index, keys, q1, k1, v1, weights, slope, lse, size)


def truths(q, k, v, grad_out=None, **options):
    """Of out and lse and, with `grad_out`, dq, dk, dv and dmask (None without a floating mask)."""
    gqa, scale, mask = (options.get(name) for name in ("enable_gqa", "scale", "attn_mask"))
    lead, wide = _over_query_heads(q, k, v, gqa)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    length, width = wide[0].shape[-2], wide[2].shape[-1]
    finer = eps(compute(q.dtype)) / eps(q.dtype)
    # Weights below it may be lost: products of bfloat16 take them for 0.
    least = float(ml_dtypes.finfo(compute(q.dtype)).smallest_normal) / eps(q.dtype)

    def empty(*shape):
        return Truth(*(np.zeros((*lead, *shape), wide[0].dtype) for _ in range(2)))

    out, lse = empty(length, width), empty(length)
    dq, dk, dv = (empty(*a.shape[-2:]) for a in wide)
    dmask = empty(length, k.shape[-2])
    for h in _each_head(q, k, v, **options):
        i, p, keys = h.index, h.weights, h.keys
        q1, k1, v1 = map(np.abs, (h.q, h.k, h.v))
        norm = np.where(h.lse == -np.inf, 0, np.abs(h.lse))
        size = (p * h.size).sum(axis=1) + norm
        large = p * (1 + finer * (h.size + size[:, None])) + least * (p > 0)
        out.value[i], out.scale[i] = p @ h.v, large @ v1
        lse.value[i], lse.scale[i] = h.lse, 1 + size
        if grad_out is None:
            continue
        g = widen(grad_out[i])
        dp = g @ h.v.T
        ds = p * (dp - (p * dp).sum(axis=1, keepdims=True))
        dt = ds * h.slope * scale
        dmask.value[i][:, keys] = ds
        dq.value[i], dk.value[i][keys], dv.value[i][keys] = dt @ h.k, dt.T @ h.q, p.T @ g
        # The same with every term positive, and the rounding of scores and lse in each weight.
        p = p * (1 + finer * (h.size + norm[:, None])) + least * (p > 0)
        g = np.abs(g)
        dp = g @ v1.T
        ds = p * (dp + (p * dp).sum(axis=1, keepdims=True))
        dt = ds * abs(scale)
        dmask.scale[i][:, keys] = ds
        dq.scale[i], dk.scale[i][keys], dv.scale[i][keys] = dt @ k1, dt.T @ q1, p.T @ g
    if grad_out is None:
        return out, lse
    if gqa:
        dk, dv = (Truth(*(_per_group(x, b.shape[-3]) for x in a)) for a, b in ((dk, k), (dv, v)))
    given = (dq, q), (dk, k), (dv, v), (dmask, mask)
    if mask is None or np.asarray(mask).dtype == bool:
        given = given[:3]
    grads = [Truth(*(_summed(x, np.shape(b)) for x in a)) for a, b in given]
    return out, lse, *grads, *[None] * (4 - len(grads))


def truth(q, k, v, **options):
    """(out, lse)."""
    return tuple(t.value for t in truths(q, k, v, **options))


def truth_grads(grad_out, q, k, v, **options):
    """(dq, dk, dv, dmask), the last one None without a floating mask."""
    return tuple(t and t.value for t in truths(q, k, v, grad_out, **options)[2:])


def _per_group(a, kv_heads):
    """Summed over the query heads that share keys."""
    group = a.shape[-3] // kv_heads
    return a.reshape(*a.shape[:-3], kv_heads, group, *a.shape[-2:]).sum(axis=-3)


def _summed(a, shape):
    """Over the axes along which an array of this shape was broadcast."""
    a = a.sum(axis=tuple(range(a.ndim - len(shape))))
    return a.sum(axis=tuple(i for i, n in enumerate(shape) if n == 1), keepdims=True)


# --- errors -------------------------------------------------------------------------------


def assert_close(result, value, size, limit, what="", unit=None):
    """No error above `limit` times eps of the dtype `unit` (that of the result), times `size`.

    The smallest number is added, since a result below it is lost; of bfloat16, the least normal
    one times what it may be multiplied with, as AVX512-BF16 takes subnormal inputs for 0.
    """
    result = np.asarray(result)
    assert result.shape == value.shape, f"{what}: shape {result.shape}, not {value.shape}"
    unit = unit or result.dtype
    info = ml_dtypes.finfo(unit)
    least = 256 * info.smallest_normal if unit == BF16 else 16 * info.smallest_subnormal
    tolerance = limit * eps(unit) * size + float(least)
    result = widen(result)
    with np.errstate(invalid="ignore"):
        error = np.where(result == value, 0, np.abs(result - value))
        excess = np.where(size > 0, error / tolerance, np.where(error == 0, 0, np.inf))
    excess = np.where(np.isnan(excess), np.inf, excess)
    if excess.size:
        i = np.unravel_index(np.argmax(excess), excess.shape)
        assert excess[i] <= 1, (
            f"{what}: element {tuple(map(int, i))} of {excess.shape} is {result[i]}, "
            f"but {value[i]} is right: {float(excess[i] * limit):.3g} eps of {size[i]:.3g} off, "
            f"not {limit}"
        )


# In eps, at the sizes above. Measured: 1.3, of lse; 0.7 of out, 1.0 of gradients.
LIMIT = 3
NAMES = ("out", "lse", "dq", "dk", "dv", "dmask")


def compare(results, right, what=""):
    """The results, in the order of NAMES, with their truths."""
    for name, result, t in zip(NAMES, results, right, strict=False):
        assert_close(result, *t, LIMIT, f"{what} {name}".strip())


def run(grad_out, q, k, v, **options):
    """(out, lse, dq, dk, dv) of fastce and, with a floating mask, its gradient."""
    out, lse = fastce.scaled_dot_product_attention(q, k, v, return_lse=True, **options)
    mask = options.get("attn_mask")
    floating = mask is not None and np.asarray(mask).dtype != bool
    grads = fastce.scaled_dot_product_attention_backward(
        grad_out, q, k, v, out, lse, grad_mask=floating, **options
    )
    return out, lse, *grads


def check(grad_out, q, k, v, what="", **options):
    """Forward and backward once, both against the truth."""
    compare(run(grad_out, q, k, v, **options), truths(q, k, v, grad_out, **options), what)


# --- what to beat -------------------------------------------------------------------------


def naive(q, k, v, grad_out=None):
    """By NumPy in the dtype of the inputs: out, and with `grad_out` also dq, dk and dv.

    What has 16 bits is computed in float32 and rounded after every step.
    """
    kind = q.dtype

    def step(a):
        return a.astype(kind).astype(compute(kind))

    q, k, v = map(step, (q, k, v))
    scale = compute(kind).type(1 / math.sqrt(q.shape[-1]))
    scores = step(step(q @ np.swapaxes(k, -1, -2)) * scale)
    p = step(np.exp(step(scores - scores.max(axis=-1, keepdims=True))))
    p = step(p / step(p.sum(axis=-1, keepdims=True)))
    out = step(p @ v)
    if grad_out is None:
        return out.astype(kind)
    g = step(grad_out)
    dp = step(g @ np.swapaxes(v, -1, -2))
    ds = step(p * step(dp - step(step(p * dp).sum(axis=-1, keepdims=True))))
    ds = step(ds * scale)
    grads = step(ds @ k), step(np.swapaxes(ds, -1, -2) @ q), step(np.swapaxes(p, -1, -2) @ g)
    return tuple(a.astype(kind) for a in (out, *grads))


# --- the table ----------------------------------------------------------------------------


class Shape(NamedTuple):
    batch: tuple[int, ...]
    heads: int
    kv_heads: int
    length: int
    keys: int
    width: int
    value_width: int

    @property
    def scores(self):
        return (*self.batch, self.heads, self.length, self.keys)


# Each goes another way through the kernels: few queries are taken one by one; more fill tiles of up
# to 64, which go over blocks of 96 keys; heads that share keys fill a tile together; many keys are
# split where there are few tiles.
SHAPES = {
    "one": Shape((1,), 1, 1, 1, 1, 1, 1),
    "one-key": Shape((2,), 2, 2, 19, 1, 3, 2),
    "few": Shape((2,), 3, 3, 7, 13, 5, 3),
    "few-shared": Shape((3,), 8, 2, 2, 150, 20, 12),
    "decode": Shape((1,), 3, 1, 1, 5000, 12, 10),
    "tile-split": Shape((), 4, 1, 3, 1200, 6, 7),
    "heads-together": Shape((2,), 8, 2, 20, 101, 9, 16),
    "tiles": Shape((2,), 4, 2, 70, 100, 17, 9),
    "blocks": Shape((), 2, 1, 66, 400, 8, 24),
    "wide": Shape((1, 2), 1, 1, 33, 97, 130, 66),
}
# Each goes another way over the threads, and does enough to be spread.
LARGE_SHAPES = {
    "decode": Shape((2,), 4, 1, 1, 5000, 32, 32),  # few queries, split keys
    "split tiles": Shape((), 16, 2, 3, 4000, 16, 16),  # tiles of heads, split keys
    "one head": Shape((), 1, 1, 500, 700, 16, 8),  # tiles in order
    "one group": Shape((), 6, 1, 130, 300, 16, 8),  # tiles in order, over heads
    "three heads": Shape((3,), 1, 1, 260, 260, 16, 16),  # whole heads for 2 threads, not for 5
    "many heads": Shape((2,), 16, 8, 70, 200, 16, 16),  # whole heads
    "wide": Shape((), 2, 2, 40, 4500, 120, 120),  # sums of a head above 4 MiB
}


def _bools(rng, s, dtype):
    """Random, with whole rows and a whole block of which nothing is allowed."""
    mask = rng.random(s.scores) < 0.7
    mask[..., 3::5, :] = False
    mask[..., 64:128, 96:192] = False
    return mask


def _numbers(rng, shape, dtype):
    mask = rng.standard_normal(shape)
    mask[rng.random(shape) < 0.1] = -np.inf
    return mask.astype(dtype)


def _offsets(rng, s):
    return rng.integers(-2, max(1, s.keys - s.length) + 2, s.batch)


def _lengths(rng, s):
    lengths = np.asarray(rng.integers(0, s.keys + 1, s.batch))
    lengths.flat[0] = s.keys - s.keys // 3  # at least one sees something
    return lengths


def _all(rng, s, dtype):
    return {
        "attn_mask": _numbers(rng, (s.heads, 1, s.keys), dtype),
        "is_causal": True,
        "scale": 0.4,
        "q_offset": s.keys - s.length - rng.integers(0, s.keys // 4 + 1, s.batch),
        "kv_lengths": _lengths(rng, s),
        "window": (s.keys // 2, -1),
        "softcap": 2.0,
    }


# name -> function of (rng, shape, dtype) that draws the options
CASES = {
    "plain": lambda rng, s, dtype: {},
    "scale": lambda rng, s, dtype: {"scale": -0.3},
    "softcap": lambda rng, s, dtype: {"scale": 0.8, "softcap": 1.5},
    "causal": lambda rng, s, dtype: {"is_causal": True},
    "causal-offset": lambda rng, s, dtype: {"is_causal": True, "q_offset": s.keys - s.length},
    "offsets": lambda rng, s, dtype: {"is_causal": True, "q_offset": _offsets(rng, s)},
    "lengths": lambda rng, s, dtype: {"kv_lengths": _lengths(rng, s)},
    "window": lambda rng, s, dtype: {"window": (s.keys // 4, 3), "q_offset": s.keys // 2},
    "window-left": lambda rng, s, dtype: {"window": (5, -1), "q_offset": _offsets(rng, s)},
    "window-right": lambda rng, s, dtype: {"window": (-1, 2), "q_offset": -1},
    "bool-mask": lambda rng, s, dtype: {"attn_mask": _bools(rng, s, dtype)},
    "float-mask": lambda rng, s, dtype: {"attn_mask": _numbers(rng, s.scores, dtype)},
    "key-mask": lambda rng, s, dtype: {"attn_mask": rng.random(s.keys) < 0.5},
    "bias": lambda rng, s, dtype: {"attn_mask": _numbers(rng, (s.length, s.keys), dtype)},
    "all": _all,
}


def draw(case, shape, dtype, seed=0):
    """(grad_out, q, k, v) and options: the same for the same arguments."""
    rng = np.random.default_rng(zlib.crc32(f"{case} {shape} {np.dtype(dtype)} {seed}".encode()))
    s = shape
    arrays = [
        rng.standard_normal((*s.batch, *rest)).astype(dtype)
        for rest in (
            (s.heads, s.length, s.value_width),
            (s.heads, s.length, s.width),
            (s.kv_heads, s.keys, s.width),
            (s.kv_heads, s.keys, s.value_width),
        )
    ]
    options = CASES[case](rng, s, dtype)
    if s.heads != s.kv_heads:
        options["enable_gqa"] = True
    return arrays, options
