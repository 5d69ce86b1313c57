"""Entropies and divergences over Dask arrays, in blocks of rows and of outcomes.

``fastce.dask.information.entropy(p)`` and so on: the functions of `fastce.information` of the same
names. Where the outcomes of a row lie in several blocks, the chain rule puts them together: with
P the shares of the blocks and p|b the distribution within block b,

    H(p)        = H(P) + sum of P[b] * H(p|b)
    H(p, q)     = H(P, Q) + sum of P[b] * H(p|b, q|b)
    KL(p || q)  = KL(P || Q) + sum of P[b] * KL(p|b || q|b)
    JS(p, q)    = JS(P, Q) + sum of (P[b] * KL(p|b || m|b) + Q[b] * KL(q|b || m|b)) / 2

No term is negative, so nothing cancels.
"""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np

import fastce

from .. import information as of_arrays
from .._inputs import host
from ..information._measure import nats_in_unit
from ._blocks import call, computed, in_strips, max_and_log_sum, task
from ._graph import STATE, SUMS, axis_of, blocks, checked, expanded, is_whole, last, states

__all__ = [
    "cross_entropy",
    "entropy",
    "entropy_from_logits",
    "js_divergence",
    "kl_divergence",
    "kl_divergence_from_logits",
]


def entropy(
    p: da.Array, *, axis: int = -1, base: float | None = None, keepdims: bool = False
) -> da.Array:
    """`fastce.information.entropy` of a Dask array.

    Parameters
    ----------
    p : dask.array.Array
        Not negative; need not sum to 1. Any chunks.
    axis, base, keepdims
        As for `fastce.information.entropy`.

    Returns
    -------
    dask.array.Array
        Of the shape of `p` without `axis`; float64 for float64 and integers, else float32.

    Raises
    ------
    TypeError, ValueError
        For what is no Dask array, chunks of unknown size, a dtype, axis or base that does not fit.

    Examples
    --------
    >>> import dask.array as da, fastce.dask
    >>> fastce.dask.information.entropy(da.ones(8, chunks=3), base=2).compute()
    np.float64(3.0)
    """
    return _measure("entropy", {"p": p}, axis, base, keepdims)


def cross_entropy(
    p: da.Array,
    q: da.Array,
    *,
    axis: int = -1,
    base: float | None = None,
    keepdims: bool = False,
) -> da.Array:
    """`fastce.information.cross_entropy` of two Dask arrays of distributions.

    For logits and targets there is `fastce.dask.cross_entropy`.

    Parameters
    ----------
    p, q : dask.array.Array
        As for `entropy`; of the same shape and chunks.
    axis, base, keepdims
        As for `entropy`.

    Returns
    -------
    dask.array.Array
        As `entropy` returns it.

    Raises
    ------
    TypeError, ValueError
        As `entropy`, and for other shapes or chunks of `q`.

    Examples
    --------
    >>> import dask.array as da, fastce.dask
    >>> p = da.ones(8, chunks=4)
    >>> fastce.dask.information.cross_entropy(p, p, base=2).compute()
    np.float64(3.0)
    """
    return _measure("cross_entropy", {"p": p, "q": q}, axis, base, keepdims)


def kl_divergence(
    p: da.Array,
    q: da.Array,
    *,
    axis: int = -1,
    base: float | None = None,
    keepdims: bool = False,
) -> da.Array:
    """`fastce.information.kl_divergence` of two Dask arrays of distributions.

    Parameters
    ----------
    p, q, axis, base, keepdims
        As for `cross_entropy`, with the same errors.

    Returns
    -------
    dask.array.Array
        As `entropy` returns it.

    Examples
    --------
    >>> import numpy as np, dask.array as da, fastce.dask
    >>> p = da.from_array(np.array([0.5, 0.25, 0.25]), chunks=2)
    >>> q = da.from_array(np.array([0.25, 0.5, 0.25]), chunks=2)
    >>> round(float(fastce.dask.information.kl_divergence(p, q, base=2).compute()), 12)
    0.25
    """
    return _measure("kl_divergence", {"p": p, "q": q}, axis, base, keepdims)


def js_divergence(
    p: da.Array,
    q: da.Array,
    *,
    axis: int = -1,
    base: float | None = None,
    keepdims: bool = False,
) -> da.Array:
    """`fastce.information.js_divergence` of two Dask arrays of distributions.

    Where rows are split, their chunks stay in memory until their sums are known.

    Parameters
    ----------
    p, q, axis, base, keepdims
        As for `cross_entropy`, with the same errors.

    Returns
    -------
    dask.array.Array
        As `entropy` returns it.

    Examples
    --------
    >>> import numpy as np, dask.array as da, fastce.dask
    >>> p, q = (da.from_array(np.array(a), chunks=1) for a in ([1, 0], [0, 1]))
    >>> fastce.dask.information.js_divergence(p, q, base=2).compute()
    np.float64(1.0)
    """
    return _measure("js_divergence", {"p": p, "q": q}, axis, base, keepdims)


def entropy_from_logits(
    logits: da.Array, *, axis: int = -1, base: float | None = None, keepdims: bool = False
) -> da.Array:
    """`fastce.information.entropy_from_logits` of a Dask array.

    Parameters
    ----------
    logits : dask.array.Array
        Of any chunks.
    axis, base, keepdims
        As for `entropy`, with the same errors.

    Returns
    -------
    dask.array.Array
        As `entropy` returns it.

    Examples
    --------
    >>> import dask.array as da, fastce.dask
    >>> fastce.dask.information.entropy_from_logits(da.zeros(8, chunks=3), base=2).compute()
    np.float64(3.0)
    """
    return _measure("entropy_from_logits", {"logits": logits}, axis, base, keepdims)


def kl_divergence_from_logits(
    p_logits: da.Array,
    q_logits: da.Array,
    *,
    axis: int = -1,
    base: float | None = None,
    keepdims: bool = False,
) -> da.Array:
    """`fastce.information.kl_divergence_from_logits` of two Dask arrays.

    Parameters
    ----------
    p_logits, q_logits : dask.array.Array
        Of the same shape and chunks.
    axis, base, keepdims
        As for `cross_entropy`, with the same errors.

    Returns
    -------
    dask.array.Array
        As `entropy` returns it.

    Examples
    --------
    >>> import dask.array as da, fastce.dask
    >>> x = da.zeros(8, chunks=3)
    >>> fastce.dask.information.kl_divergence_from_logits(x, x + 1).compute()
    np.float64(0.0)
    """
    arrays = {"p_logits": p_logits, "q_logits": q_logits}
    return _measure("kl_divergence_from_logits", arrays, axis, base, keepdims)


def _measure(
    name: str, given: dict[str, Any], axis: int, base: float | None, keepdims: bool
) -> da.Array:
    arrays = {of: checked(x, of) for of, x in given.items()}
    (first, x), *others = arrays.items()
    for other, y in others:
        if y.chunks != x.chunks:
            raise ValueError(
                f"{first} and {other} must have the same shape and chunks, got {x.chunks} and "
                f"{y.chunks}"
            )
    axis = axis_of(x, axis, first)
    nats_in_unit(base)  # raises
    options: Any = {"function": getattr(of_arrays, name), "base": base}
    dtype = np.result_type(*(host.compute_dtype(a.dtype) for a in arrays.values()))
    ix = tuple(range(x.ndim))
    rows = [last(a, axis) for a in arrays.values()]
    pairs: list[tuple] = [(a, ix) for a in rows]
    if is_whole(rows[0]):
        result = blocks(call, ix[:-1], *pairs, **options, dtype=dtype)
    else:
        if name.endswith("_from_logits"):
            state, merge, fields = _state_of_logits, _merged_logits, 2 * len(rows) + 1
        else:
            state, merge, fields = _state, _merged, len(rows) + 1
        if name == "js_divergence":
            sums = states(_masses, ix, len(rows), *pairs)
            sums = blocks(_totals, (*ix[:-1], STATE), (sums, (*ix, STATE)), dtype=np.float64)
            pairs.append((sums, (*ix[:-1], SUMS)))
            state, merge = _state_of_mixture, _merged_mixture
        merging = states(state, ix, fields, *pairs, **options), (*ix, STATE)
        result = blocks(merge, ix[:-1], merging, **options, dtype=np.float64).astype(dtype)
    return expanded(result, axis) if keepdims else result


# --- tasks --------------------------------------------------------------------------------


def _mass(x: np.ndarray) -> np.ndarray:
    """The sum of each row; NaN where it is no distribution."""
    if not x.shape[-1]:
        return np.zeros(x.shape[:-1])
    x = computed(x)
    mass = x.sum(-1, dtype=np.float64)
    return np.where((x.min(-1) >= 0) & (x.max(-1) < np.inf), mass, np.nan)


@task
def _masses(*arrays: np.ndarray) -> np.ndarray:
    return in_strips(arrays[0], len(arrays), lambda at: [_mass(a[at]) for a in arrays])


@task
def _totals(masses: np.ndarray) -> np.ndarray:
    return masses.sum(-2)


@task
def _state(*arrays: np.ndarray, function: Any, base: float | None) -> np.ndarray:
    """The sums of the block's p and q, and the measure of p|b and q|b."""

    def fields(at: Any) -> list[np.ndarray]:
        masses = [_mass(a[at]) for a in arrays]
        inner = function(*(a[at] for a in arrays), base=base)
        return [*masses, np.where(np.equal(masses, 0).any(axis=0), 0.0, inner)]

    return in_strips(arrays[0], len(arrays) + 1, fields)


@task
def _merged(states: np.ndarray, *, function: Any, base: float | None) -> np.ndarray:
    masses, inner = np.moveaxis(states[..., :-1], -1, 0), states[..., -1]
    share = masses[0] / masses[0].sum(-1, keepdims=True)
    return function(*masses, base=base) + np.sum(np.where(share == 0, 0.0, share * inner), -1)


@task
def _state_of_mixture(
    p: np.ndarray, q: np.ndarray, sums: np.ndarray, *, function: Any, base: float | None
) -> np.ndarray:
    """The sums of p and q in the block, and what they add within it."""

    def fields(at: Any) -> list[np.ndarray]:
        a, b = (x[at] / sums[at][..., i, None] for i, x in enumerate((p, q)))
        masses = _mass(a), _mass(b)
        kl = (of_arrays.kl_divergence(x, a + b, base=base) for x in (a, b))
        inner = [np.where(m == 0, 0.0, m * d) for m, d in zip(masses, kl, strict=True)]
        return [*masses, (inner[0] + inner[1]) / 2]

    return in_strips(p, 3, fields)


@task
def _merged_mixture(states: np.ndarray, *, function: Any, base: float | None) -> np.ndarray:
    p, q, inner = np.moveaxis(states, -1, 0)
    return function(p, q, base=base) + inner.sum(-1)


@task
def _state_of_logits(*arrays: np.ndarray, function: Any, base: float | None) -> np.ndarray:
    """block_max and log_sum of the block's logits, and the measure within the block."""

    def fields(at: Any) -> list:
        if not arrays[0].shape[-1]:
            return [*[-np.inf, 0.0] * len(arrays), 0.0]
        parts = [max_and_log_sum(computed(a[at])) for a in arrays]
        sums = [field for block_max, log_sum, _ in parts for field in (block_max, log_sum)]
        return [*sums, function(*(rows for *_, rows in parts), base=base)]

    return in_strips(arrays[0], 2 * len(arrays) + 1, fields)


@task
def _merged_logits(states: np.ndarray, *, function: Any, base: float | None) -> np.ndarray:
    inner = states[..., -1]
    pairs = [(states[..., i], states[..., i + 1]) for i in range(0, states.shape[-1] - 1, 2)]
    logits = [most - most.max(-1, keepdims=True) + log_sum for most, log_sum in pairs]
    share = fastce.softmax(logits[0])
    return function(*logits, base=base) + np.sum(np.where(share == 0, 0.0, share * inner), -1)
