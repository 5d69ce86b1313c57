"""Tasks that several functions of `fastce.dask` have in common.

NumPy arrays in and out, the classes last. A row that is split by classes has for each block a
*state*, float64 numbers on the last axis, of which the first are

    block_max  the largest logit of the block
    log_sum    log(sum(exp(x - block_max))), so that the block's own lse is block_max + log_sum
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import fastce

from .._inputs import host
from .._runtime.threads import threads_here

STRIP = 1 << 20  # bytes of a block to take at once, so that temporary arrays stay small


def task(function: Callable) -> Callable:
    """A function with `threads` for fastce. NaN and infinity are data, so there are no warnings."""

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


def in_strips(x: np.ndarray, fields: int, compute: Callable) -> np.ndarray:
    """(..., 1, fields), of what `compute` gives for each strip."""
    result = np.empty((*x.shape[:-1], 1, fields))
    for at in strips(x):
        for i, field in enumerate(compute(at)):
            result[at][..., 0, i] = field
    return result


def computed(x: np.ndarray) -> np.ndarray:
    """In the dtype in which fastce computes: parts of a row are not rounded to 16 bits."""
    return x.astype(host.compute_dtype(x.dtype), copy=False)


@task
def call(*arrays: Any, function: Callable, **options: Any) -> Any:
    """One block of whole rows."""
    return function(*arrays, **options)


def max_and_log_sum(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each row; and the rows themselves, with 0 in those that are -inf throughout.

    The loss of the largest logit is log_sum with all its digits, where lse - max would cancel.
    """
    largest = x.argmax(-1)
    block_max = np.take_along_axis(x, np.expand_dims(largest, -1), -1)[..., 0]
    empty = np.isneginf(block_max)
    if empty.any():
        x = np.where(np.expand_dims(empty, -1), x.dtype.type(0), x)
    return block_max, np.asarray(fastce.cross_entropy(x, largest, reduction="none")), x


@task
def block_state(x: np.ndarray) -> np.ndarray:
    """(..., 1, 2): block_max and log_sum."""

    def fields(at: Any) -> tuple:
        return max_and_log_sum(computed(x[at]))[:2] if x.shape[-1] else (-np.inf, 0.0)

    return in_strips(x, 2, fields)


def merged(states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """lse of each row; and lse of the row - lse of the block, NaN where log_softmax has it."""
    block_max, log_sum = states[..., 0], states[..., 1]
    row_max = block_max.max(-1, keepdims=True)
    log_sums = (block_max - row_max) + log_sum  # of the blocks, below the row's maximum
    return row_max[..., 0] + fastce.logsumexp(log_sums), 0.0 - fastce.log_softmax(log_sums)


@task
def merged_lse(states: np.ndarray) -> np.ndarray:
    row_max = np.max(states[..., 0], axis=-1)
    return np.where(np.isinf(row_max), row_max, merged(states)[0])


@task
def merged_diff(states: np.ndarray) -> np.ndarray:
    return merged(states)[1]
