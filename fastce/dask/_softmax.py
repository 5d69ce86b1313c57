"""Softmax and logsumexp of Dask arrays."""

from __future__ import annotations

import dask.array as da
import numpy as np

import fastce

from ._blocks import (
    block_state,
    call,
    computed,
    max_and_log_sum,
    merged_diff,
    merged_lse,
    strips,
    task,
)
from ._graph import STATE, axis_of, back, blocks, checked, expanded, is_whole, last, states


def logsumexp(x: da.Array, *, axis: int = -1, keepdims: bool = False) -> da.Array:
    """`fastce.logsumexp` of a Dask array.

    Parameters
    ----------
    x : dask.array.Array
        float64, float32, float16 or bfloat16; integers are taken as float64. Any chunks.
    axis : int, default -1
        The axis to sum over.
    keepdims : bool, default False
        Keep the summed axis, with length 1.

    Returns
    -------
    dask.array.Array
        Of the dtype of `x`, in its chunks without `axis`.

    Raises
    ------
    TypeError, ValueError
        For what is no Dask array, chunks of unknown size, a dtype or axis that does not fit.

    Examples
    --------
    >>> import numpy as np, dask.array as da, fastce.dask
    >>> x = da.from_array(np.full((2, 4), 1000.0), chunks=(1, 2))
    >>> fastce.dask.logsumexp(x).compute().round(6)
    array([1001.386294, 1001.386294])
    """
    x = checked(x, "x")
    axis = axis_of(x, axis, "x")
    rows = last(x, axis)
    ix = tuple(range(x.ndim))
    if is_whole(rows):
        result = blocks(call, ix[:-1], (rows, ix), function=fastce.logsumexp, dtype=x.dtype)
    else:
        state = states(block_state, ix, 2, (rows, ix)), (*ix, STATE)
        result = blocks(merged_lse, ix[:-1], state, dtype=np.float64)
        result = result.astype(x.dtype)
    return expanded(result, axis) if keepdims else result


def log_softmax(x: da.Array, *, axis: int = -1) -> da.Array:
    """`fastce.log_softmax` of a Dask array.

    Parameters
    ----------
    x, axis
        As for `logsumexp`. Where `axis` lies in several chunks, those of a row stay in memory until
        their states are merged.

    Returns
    -------
    dask.array.Array
        Of the shape, dtype and chunks of `x`.

    Raises
    ------
    TypeError, ValueError
        As `logsumexp`.

    Examples
    --------
    >>> import numpy as np, dask.array as da, fastce.dask
    >>> x = da.from_array(np.array([50.0, 0, 0, 0]), chunks=2)
    >>> fastce.dask.log_softmax(x).compute()
    array([-5.78624954e-22, -5.00000000e+01, -5.00000000e+01, -5.00000000e+01])
    """
    return _of_elements(x, axis, log=True)


def softmax(x: da.Array, *, axis: int = -1) -> da.Array:
    """`fastce.softmax` of a Dask array.

    Parameters
    ----------
    x, axis
        As for `log_softmax`, with the same errors.

    Returns
    -------
    dask.array.Array
        Of the shape, dtype and chunks of `x`.

    Examples
    --------
    >>> import numpy as np, dask.array as da, fastce.dask
    >>> fastce.dask.softmax(da.zeros(4, chunks=2)).compute()
    array([0.25, 0.25, 0.25, 0.25])
    """
    return _of_elements(x, axis, log=False)


def _of_elements(x: da.Array, axis: int, log: bool) -> da.Array:
    x = checked(x, "x")
    axis = axis_of(x, axis, "x")
    rows = last(x, axis)
    ix = tuple(range(x.ndim))
    if is_whole(rows):
        function = fastce.log_softmax if log else fastce.softmax
        result = blocks(call, ix, (rows, ix), function=function, dtype=x.dtype)
    else:
        state = states(block_state, ix, 2, (rows, ix)), (*ix, STATE)
        diff = blocks(merged_diff, ix, state, dtype=np.float64).rechunk({ix[-1]: 1})
        result = blocks(_split_softmax, ix, (rows, ix), (diff, ix), log=log, dtype=x.dtype)
    return back(result, axis)


@task
def _split_softmax(x: np.ndarray, diff: np.ndarray, *, log: bool) -> np.ndarray:
    """log_softmax or softmax of a block, given `diff`: lse of the row - lse of the block."""
    result = np.empty_like(x, subok=False)
    for at in strips(x) if x.size else ():
        _, _, rows = max_and_log_sum(computed(x[at]))
        if log:
            result[at] = fastce.log_softmax(rows) - diff[at]
        else:
            result[at] = fastce.softmax(rows) * np.exp(-diff[at])
    return result
