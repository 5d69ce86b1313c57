"""What one task of `fastce.dask` computes: of a block, or of the states of the blocks of a row.

NumPy arrays in and out, the classes last. A row that is split by classes has for each block a
*state*, float64 numbers on the last axis:

    top      the largest logit of the block
    log_sum  log(sum(exp(x - top))), so that the block's own lse is top + log_sum
    cost     sum(q * (lse - x)) with that lse, where q is what the target wants of each class
    pull     sum(q)

With above = (lse of the row) - (lse of the block), which is -log_softmax of the blocks' lse,

    loss     = sum over blocks of (cost + pull * above)  +  z_loss * lse**2
    gradient = (what fastce gives for the block alone)  +  extra * softmax(block)
    extra    = (pull of all others + 2 * z_loss * lse) * exp(-above)  +  pull * expm1(-above)

No term of the loss cancels, nor does the gradient at a label whose probability is nearly 1: both
of its terms are small there, and of one sign.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import fastce

from .._inputs import host
from .._runtime.threads import threads_here

STRIP = 1 << 20  # bytes of a block to take at once, so that what is computed of them stays small
IGNORED = -1  # a label that is not in the block


def task(function: Callable) -> Callable:
    """On so many threads of fastce; NaN and infinity are data, so no warnings."""

    @functools.wraps(function)
    def limited(*arrays: Any, threads: int, **options: Any) -> Any:
        with threads_here(threads), np.errstate(all="ignore"):
            return function(*arrays, **options)

    return limited


def strips(x: np.ndarray) -> Iterator[Any]:
    """Indices that cut the first axis, if that is not the classes."""
    if x.ndim < 2 or not len(x):
        yield ...
        return
    step = max(1, STRIP * len(x) // max(1, x.nbytes))
    for start in range(0, len(x), step):
        yield slice(start, start + step)


def computed(x: np.ndarray) -> np.ndarray:
    """In the dtype in which fastce computes: parts of a row are not rounded to 16 bits."""
    return x.astype(host.compute_dtype(x.dtype), copy=False)


@task
def call(*arrays: Any, function: Callable, **options: Any) -> Any:
    """One block of whole rows."""
    return function(*arrays, **options)


@task
def loss_of_rows(
    x: np.ndarray, target: np.ndarray, weight: np.ndarray | None, **options: Any
) -> np.ndarray:
    return np.asarray(fastce.cross_entropy(x, target, weight=weight, reduction="none", **options))


@task
def gradient_of_rows(
    x: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None,
    scale: np.ndarray | float,
    **options: Any,
) -> np.ndarray:
    return fastce.cross_entropy_backward(
        scale, x, target, weight=weight, reduction="none", **options
    )


@task
def checked_labels(
    target: np.ndarray, *starts: np.ndarray, classes: int, ignore_index: int
) -> np.ndarray:
    """The labels of a block, whose first is at `starts` of the whole array."""
    target = host.to_numpy(target, "target")  # refuses masked arrays
    bad = (target != ignore_index) & ((target < 0) | (target >= classes))
    if bad.any():
        at = tuple(np.argwhere(bad)[0])
        place = ", ".join(str(int(i) + int(s[0])) for i, s in zip(at, starts, strict=True))
        raise IndexError(
            f"target[{place}] is {target[at]}, out of range for {classes} classes "
            f"(ignore_index is {ignore_index})"
        )
    return target


@task
def row_weights(target: np.ndarray, weight: np.ndarray | None, *, ignore_index: int) -> np.ndarray:
    """What each row counts in a mean."""
    kept = target != ignore_index
    if weight is None:
        return kept.astype(np.float64)
    return np.where(kept, weight.astype(np.float64)[np.where(kept, target, 0)], 0.0)


@task
def quotient(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """NaN for 0 / 0, the mean over no row at all."""
    return np.divide(total, count, dtype=np.float64)


# --- states of the blocks of a row --------------------------------------------------------


def top_and_log_sum(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each row; and the rows themselves, with 0 in those that are -inf throughout.

    The cost of the largest logit is log_sum with all its digits, where lse - top would cancel.
    """
    largest = x.argmax(-1)
    top = np.take_along_axis(x, np.expand_dims(largest, -1), -1)[..., 0]
    empty = np.isneginf(top)
    if empty.any():
        x = np.where(np.expand_dims(empty, -1), x.dtype.type(0), x)
    return top, np.asarray(fastce.cross_entropy(x, largest, reduction="none")), x


@task
def state(x: np.ndarray) -> np.ndarray:
    """(..., 1, 2): top and log_sum."""
    result = np.empty((*x.shape[:-1], 1, 2))
    result[..., 0], result[..., 1] = -np.inf, 0.0
    if x.shape[-1]:
        for at in strips(x):
            result[at][..., 0, 0], result[at][..., 0, 1], _ = top_and_log_sum(computed(x[at]))
    return result


def wanted(
    x: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None,
    start: np.ndarray,
    classes: int,
    ignore_index: int,
    label_smoothing: float,
) -> tuple[list[tuple[float, dict[str, Any]]], np.ndarray]:
    """What the target wants of a strip of a block, and the sum of that over its classes.

    As (factor, arguments of cross_entropy): the target itself, and the share of the smoothing.
    """
    n = x.shape[-1]
    weights = np.ones(n) if weight is None else weight.astype(np.float64)
    shared: dict[str, Any] = {"weight": weight, "ignore_index": IGNORED}
    if target.ndim == x.ndim:
        kept = np.ones(x.shape[:-1], bool)
        labels = computed(target)
        pull = np.sum(labels * weights, axis=-1)
    else:
        kept = target != ignore_index
        labels = np.where(kept, target, 0).astype(np.int64) - int(start[0])
        inside = kept & (labels >= 0) & (labels < n)
        labels = np.where(inside, labels, IGNORED)
        pull = np.where(inside, weights[np.where(inside, labels, 0)], 0.0)
    parts: list[tuple[float, dict[str, Any]]] = []
    if label_smoothing < 1:  # 0 times a cost of inf would be NaN
        parts.append((1.0 - label_smoothing, {"target": labels, **shared}))
    if label_smoothing:
        of_all = {"target": np.where(kept, 0, IGNORED), "label_smoothing": 1.0, **shared}
        parts.append((label_smoothing * n / classes, of_all))
        pull = (1.0 - label_smoothing) * pull
        pull = pull + np.where(kept, label_smoothing / classes * weights.sum(), 0.0)
    return parts, pull


@task
def loss_state(
    x: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None,
    start: np.ndarray,
    **options: Any,
) -> np.ndarray:
    """(..., 1, 4): top, log_sum, cost and pull."""
    result = np.zeros((*x.shape[:-1], 1, 4))
    result[..., 0] = -np.inf
    if x.shape[-1]:
        for at in strips(x):
            top, log_sum, rows = top_and_log_sum(computed(x[at]))
            parts, pull = wanted(rows, target[at], weight, start, **options)
            cost = sum(
                factor * np.asarray(fastce.cross_entropy(rows, reduction="none", **part), float)
                for factor, part in parts
            )
            for i, field in enumerate((top, log_sum, cost, pull)):
                result[at][..., 0, i] = field
    return result


def merged(states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """lse of each row, and `above` of each of its blocks. NaN as log_softmax has it."""
    top, log_sum = states[..., 0], states[..., 1]
    most = top.max(-1, keepdims=True)
    log_sums = (top - most) + log_sum  # of the blocks, below the largest logit of the row
    return most[..., 0] + fastce.logsumexp(log_sums), 0.0 - fastce.log_softmax(log_sums)


@task
def merged_lse(states: np.ndarray) -> np.ndarray:
    most = np.max(states[..., 0], axis=-1)
    return np.where(np.isinf(most), most, merged(states)[0])


@task
def merged_above(states: np.ndarray) -> np.ndarray:
    return merged(states)[1]


@task
def merged_loss(
    states: np.ndarray, target: np.ndarray | None, *, ignore_index: int, z_loss: float
) -> np.ndarray:
    """The loss of each row. `target`: the labels, if it is those."""
    lse, above = merged(states)
    cost, pull = states[..., 2], states[..., 3]
    loss = np.sum(np.where(pull == 0, cost, cost + pull * above), axis=-1)
    loss = loss + z_loss * lse**2 if z_loss else loss
    loss = np.where(np.isnan(above).any(-1), np.nan, loss)
    return loss if target is None else np.where(target == ignore_index, 0.0, loss)


@task
def merged_extra(states: np.ndarray, *, z_loss: float) -> np.ndarray:
    """The factor of each block's softmax in its gradient."""
    lse, above = merged(states)
    pull = states[..., 3]
    others = np.sum(pull, axis=-1, keepdims=True) - pull
    others = others + 2 * z_loss * np.expand_dims(lse, -1) if z_loss else others
    return others * np.exp(-above) + pull * np.expm1(-above)


# --- arrays of the shape of the logits ----------------------------------------------------


@task
def split_softmax(x: np.ndarray, above: np.ndarray, *, log: bool) -> np.ndarray:
    """log_softmax or softmax of a block, given how far the row's lse is above its own."""
    result = np.empty_like(x, subok=False)
    for at in strips(x) if x.size else ():
        _, _, rows = top_and_log_sum(computed(x[at]))
        if log:
            result[at] = fastce.log_softmax(rows) - above[at]
        else:
            result[at] = fastce.softmax(rows) * np.exp(-above[at])
    return result


@task
def split_gradient(
    x: np.ndarray,
    extra: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None,
    start: np.ndarray,
    scale: np.ndarray | float,
    *,
    ignore_index: int,
    **options: Any,
) -> np.ndarray:
    """Gradient of a block, times `scale`."""
    result = np.empty_like(x, subok=False)
    for at in strips(x) if x.size else ():
        _, _, rows = top_and_log_sum(computed(x[at]))
        parts, _ = wanted(rows, target[at], weight, start, ignore_index=ignore_index, **options)
        grad = fastce.softmax(rows) * extra[at]
        for factor, part in parts:
            grad += factor * fastce.cross_entropy_backward(1.0, rows, reduction="none", **part)
        grad *= scale
        if target.ndim < x.ndim:
            grad[target[at] == ignore_index] = 0.0
        result[at] = grad
    return result


# --- attention ----------------------------------------------------------------------------

LARGE_LSE = 128.0  # above it lse is kept in two numbers; its rounding in float32 is 1e-5 there


@task
def attention_state(
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


def same(states: np.ndarray, axis: Any, keepdims: bool) -> np.ndarray:
    return states


def merged_attention(states: np.ndarray, axis: Any, keepdims: bool) -> np.ndarray:
    """The state of all the keys together: results weighted by their shares of exp(lse)."""
    out, shift, lse = states[..., :-2], states[..., -2].astype(np.float64), states[..., -1]
    with threads_here(1), np.errstate(all="ignore"):
        base = np.max(np.where(np.isneginf(lse), -np.inf, shift), axis=-1, keepdims=True)
        base = np.where(np.isneginf(base), 0.0, base)
        lse = np.where(np.isneginf(lse), -np.inf, (shift - base) + lse)
        above = 0.0 - fastce.log_softmax(lse)
        share = np.where(np.isneginf(lse), 0.0, np.exp(-above))
        total = np.sum(out * np.expand_dims(share, -1), axis=-2)
        packed = np.concatenate([total, base, fastce.logsumexp(lse, keepdims=True)], axis=-1)
    packed = packed.astype(states.dtype, copy=False)
    return np.expand_dims(packed, -2) if keepdims else packed
