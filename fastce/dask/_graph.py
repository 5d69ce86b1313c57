"""Dask arrays as the functions of `fastce.dask` take them, and tasks on their blocks."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import dask
import dask.array as da
import numpy as np

from .._inputs import host

Pair = tuple[Any, Any]  # an array and its indices
STATE, SUMS = -1, -2  # indices of `da.blockwise` beside those of the axes, which begin at 0


def checked(x: Any, name: str) -> da.Array:
    """A Dask array of known chunks and a dtype that kernels take."""
    if not isinstance(x, da.Array):
        raise TypeError(
            f"{name} must be a Dask array, got {type(x).__name__}; for others there is fastce"
        )
    _known_chunks(x, name)
    return x.astype(host.floating(np.empty(0, x.dtype), name).dtype)


def _known_chunks(x: da.Array, name: str) -> None:
    if np.isnan(x.shape).any():
        raise ValueError(
            f"{name} must have chunks of known size, got {x.chunks}; see compute_chunk_sizes()"
        )


def axis_of(x: da.Array, axis: int, name: str) -> int:
    """`axis`, counted from 0."""
    if not hasattr(axis, "__index__"):
        raise TypeError(f"axis must be an integer, got {axis!r}")
    return host.fold((1,) * x.ndim, None, axis.__index__(), name).axis


def last(x: da.Array, axis: int) -> da.Array:
    """With `axis` behind all others."""
    return x if axis == x.ndim - 1 else da.moveaxis(x, axis, -1)


def back(x: da.Array, axis: int) -> da.Array:
    """`last` undone."""
    return x if axis == x.ndim - 1 else da.moveaxis(x, -1, axis)


def expanded(x: da.Array, axis: int) -> da.Array:
    """With a new axis of length 1. `da.expand_dims` would lose a chunk of no rows."""
    return x[(*(slice(None),) * axis, None)]


def is_whole(x: da.Array) -> bool:
    """Whether no row is split."""
    return x.numblocks[-1] == 1


def given(a: Any, name: str) -> Any:
    """A Dask array of known chunks as it is, anything else as NumPy's."""
    if not isinstance(a, da.Array):
        return host.to_numpy(a, name)
    _known_chunks(a, name)
    return a


def chunked(a: da.Array | np.ndarray, chunks: tuple[tuple[int, ...], ...]) -> da.Array:
    return a.rechunk(chunks) if isinstance(a, da.Array) else da.from_array(a, chunks=chunks)


def starts(x: da.Array, axis: int) -> da.Array:
    """Where each block begins along `axis`: one number to a chunk."""
    return da.from_array(np.cumsum((0, *x.chunks[axis][:-1])), chunks=1)


def blocks(task: Callable, out: tuple, /, *arrays: Pair, dtype: Any, **options: Any) -> da.Array:
    """`da.blockwise` of a task, which is not called to see what it gives. Blocks go together by
    their number, whatever their lengths.
    """
    return da.blockwise(
        task,
        out,
        *chain(*arrays),
        dtype=dtype,
        meta=np.empty((0,) * len(out), dtype),
        align_arrays=False,
        concatenate=True,
        threads=dask.config.get("fastce.num-threads", 1),
        **options,
    )


def states(task: Callable, ix: tuple, fields: int, /, *arrays: Pair, **options: Any) -> da.Array:
    """So many numbers for each block of a row, all of a row in one chunk."""
    result = blocks(
        task,
        (*ix, STATE),
        *arrays,
        **options,
        adjust_chunks={ix[-1]: 1},
        new_axes={STATE: fields},
        dtype=np.float64,
    )
    return result.rechunk({ix[-1]: -1})
