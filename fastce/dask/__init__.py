"""fastce over Dask arrays, in blocks of rows, of classes, or of keys: larger than any memory.

    import dask.array as da
    import fastce.dask as fd

    loss = fd.cross_entropy(logits, target)  # a Dask array; nothing is computed yet
    loss.compute()

Every function is lazy and gives Dask arrays. A task computes one block, or merges the few numbers
that each block of a row has left behind; no chunk is larger than those that come in. Whole rows
are calls of the function of the same name in `fastce`. A row whose classes lie in several chunks
is never put together: its blocks give (max, sum) states, which are merged exactly.

Each task runs on one thread of fastce, since Dask runs as many tasks as it has threads; for more,
``dask.config.set({"fastce.num-threads": 4})``. The same bits for any number of workers and threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np

try:
    import dask.array as da
except ImportError as error:
    raise ImportError('fastce.dask needs Dask: pip install "dask[array,distributed]"') from error
from numpy.typing import ArrayLike

import fastce

from .._inputs import attention as heads
from .._inputs import host
from ..cross_entropy import Reduction
from . import _blocks
from . import _information as information
from ._attention import check_operands, check_positions, mask_in_chunks
from ._graph import STATE, axis_of, back, blocks, checked, expanded, is_whole, last, starts
from ._loss import LossInputs

__all__ = [
    "cross_entropy",
    "cross_entropy_with_grad",
    "information",
    "log_softmax",
    "logsumexp",
    "scaled_dot_product_attention",
    "softmax",
]

FAN_IN = 8  # results of key blocks that one task merges


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
        result = blocks(_blocks.call, ix[:-1], rows, ix, function=fastce.logsumexp, dtype=x.dtype)
    else:
        states = _states(rows), (*ix, STATE)
        result = blocks(_blocks.merged_lse, ix[:-1], *states, dtype=np.float64)
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
        As for `log_softmax`.

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
    >>> fastce.dask.softmax(da.zeros(4, chunks=2)).compute()
    array([0.25, 0.25, 0.25, 0.25])
    """
    return _of_elements(x, axis, log=False)


def cross_entropy(
    logits: da.Array,
    target: da.Array | ArrayLike,
    *,
    weight: da.Array | ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    axis: int = -1,
) -> da.Array:
    """`fastce.cross_entropy` of a Dask array of logits, in chunks of rows and of classes.

    Parameters
    ----------
    logits : dask.array.Array
        float64, float32, float16 or bfloat16; any chunks.
    target : dask.array.Array or array_like
        Class indices, of the shape of `logits` without `axis`: they get the chunks of the rows.
        Or probabilities of the shape of `logits`, which as a Dask array must have its chunks.
    weight : dask.array.Array or array_like, optional
        One weight per class.
    ignore_index, reduction, label_smoothing, z_loss, axis
        As for `fastce.cross_entropy`.

    Returns
    -------
    dask.array.Array
        float64 for float64 logits, else float32: without axes, or for ``reduction="none"`` one
        number per row.

    Raises
    ------
    TypeError, ValueError
        At once, for shapes, dtypes, chunks or options that do not fit.
    IndexError
        When it is computed, for a label out of range; with its place in the whole array.

    Notes
    -----
    Losses of rows have the dtype of the result, and are added in float64, in the order of the
    chunks. An array of NumPy goes into the graph as it is: large targets should be Dask arrays.

    References
    ----------
    Classes over several devices: Shoeybi et al., "Megatron-LM", 2019.

    Examples
    --------
    >>> import numpy as np, dask.array as da, fastce.dask
    >>> logits = da.zeros((6, 8), chunks=(2, 4))
    >>> loss = fastce.dask.cross_entropy(logits, np.arange(6))
    >>> round(float(loss.compute()), 6)  # log 8
    2.079442
    """
    p = LossInputs(logits, target, weight, ignore_index, reduction, label_smoothing, z_loss, axis)
    return p.loss()


def cross_entropy_with_grad(
    logits: da.Array,
    target: da.Array | ArrayLike,
    *,
    weight: da.Array | ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    axis: int = -1,
) -> tuple[da.Array, da.Array]:
    """`cross_entropy` and its gradient with respect to the logits.

    Compute both together (``dask.compute(loss, grad)``): each chunk of logits is then made once. A
    gradient as large as the logits is best stored as it comes (``da.store``, ``to_zarr``). Where
    rows are split, the chunks of a row stay in memory until their states are merged.

    Parameters
    ----------
    logits, target, weight, ignore_index, reduction, label_smoothing, z_loss, axis
        As for `cross_entropy`.

    Returns
    -------
    loss : dask.array.Array
        As `cross_entropy` returns it.
    grad : dask.array.Array
        Of the shape, dtype and chunks of `logits`. For ``reduction="none"``, the gradient of each
        row's own loss.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `cross_entropy`.

    Examples
    --------
    >>> import dask, dask.array as da, fastce.dask
    >>> loss, grad = fastce.dask.cross_entropy_with_grad(da.zeros((1, 2), chunks=1), [0])
    >>> dask.compute(grad)
    (array([[-0.5,  0.5]]),)
    """
    p = LossInputs(logits, target, weight, ignore_index, reduction, label_smoothing, z_loss, axis)
    return p.loss(), p.grad()


def scaled_dot_product_attention(
    q: da.Array,
    k: da.Array,
    v: da.Array,
    *,
    attn_mask: da.Array | ArrayLike | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    q_offset: int = 0,
    kv_lengths: int | None = None,
    window: tuple[int, int] | None = None,
    softcap: float = 0.0,
    return_lse: bool = False,
) -> Any:
    """`fastce.scaled_dot_product_attention` of Dask arrays: queries and keys in chunks.

    Each chunk of queries meets each chunk of keys in a task of its own. The results are merged by
    their lse, eight at a time: ``sum of exp(lse_i - lse) * out_i``.

    Parameters
    ----------
    q, k, v : dask.array.Array, shapes (..., heads, L, E), (..., kv_heads, S, E), (..., S, Ev)
        Of one dtype, and equally many axes. The last axis must be one chunk; `k` and `v` must have
        the same chunks of keys; all of them the same chunks along leading axes (those of grouped
        heads in proportion): nothing is broadcast.
    attn_mask : dask.array.Array or array_like, optional
        Broadcasts to (..., heads, L, S). It gets the chunks of queries and keys.
    is_causal, scale, enable_gqa, window, softcap
        As for `fastce.scaled_dot_product_attention`.
    q_offset, kv_lengths : int
        The same, but one for all batch entries.
    return_lse : bool, default False
        Also return the logsumexp of each query's scores.

    Returns
    -------
    out : dask.array.Array, shape (..., heads, L, Ev)
        Of q's dtype, in its chunks of queries.
    lse : dask.array.Array, shape (..., heads, L)
        Only with ``return_lse=True``.

    Raises
    ------
    TypeError, ValueError
        At once, for shapes, dtypes, chunks or options that do not fit.

    Notes
    -----
    Where keys are split, 16-bit blocks are computed in float32, and rounded once, at the end. The
    weight of a block of keys carries the rounding of its lse.

    References
    ----------
    Dao et al., "FlashAttention", 2022; blocks of keys on several devices: Liu et al., "Ring
    Attention with Blockwise Transformers", 2023.

    Examples
    --------
    >>> import numpy as np, dask.array as da, fastce.dask
    >>> q, k = da.zeros((1, 2, 4)), da.zeros((1, 3, 4), chunks=(1, 1, 4))  # the mean of the values
    >>> v = da.from_array(np.array([[[1.0], [2.0], [6.0]]]), chunks=(1, 1, 1))
    >>> fastce.dask.scaled_dot_product_attention(q, k, v).compute().ravel()
    array([3., 3.])
    """
    q, k, v = checked(q, "q"), checked(k, "k"), checked(v, "v")
    check_operands(q, k, v, enable_gqa)
    check_positions(k.shape[-2], q_offset, kv_lengths)
    numbers = heads.numbers(scale, window, softcap, is_causal, q.shape[-1])
    lead = tuple(range(q.ndim - 2))
    queries, keys, width, values = range(q.ndim - 2, q.ndim + 2)
    mask: tuple[Any, Any] = (None, None)
    if attn_mask is not None:
        allowed = mask_in_chunks(attn_mask, q, k)
        mask = allowed, (*lead, queries, keys)[-allowed.ndim :]
    state = (*lead, queries, keys, STATE)
    states = blocks(
        _blocks.attention_state,
        state,
        *(q, (*lead, queries, width)),
        *(k, (*lead, keys, width)),
        *(v, (*lead, keys, values)),
        *mask,
        *(starts(q, -2), (queries,)),
        *(starts(k, -2), (keys,)),
        q_offset=int(q_offset),
        kv_lengths=None if kv_lengths is None else int(kv_lengths),
        split=k.numblocks[-2] > 1,
        is_causal=is_causal,
        scale=numbers["scale"],
        window=window,
        softcap=softcap,
        enable_gqa=enable_gqa,
        adjust_chunks={keys: 1},
        new_axes={STATE: v.shape[-1] + 2},
        dtype=host.compute_dtype(q.dtype),
    )
    merged = da.reduction(
        states,
        chunk=_blocks.same,
        combine=_blocks.merged_attention,
        aggregate=_blocks.merged_attention,
        axis=-2,
        split_every=FAN_IN,
        dtype=states.dtype,
        meta=np.empty((0,) * (states.ndim - 1), states.dtype),
    )
    out = merged[..., :-2].astype(q.dtype)
    return (out, merged[..., -2] + merged[..., -1]) if return_lse else out


def _states(x: da.Array) -> da.Array:
    """What each block of a row comes to, all of a row in one chunk."""
    ix = tuple(range(x.ndim))
    states = blocks(
        _blocks.state,
        (*ix, STATE),
        *(x, ix),
        adjust_chunks={ix[-1]: 1},
        new_axes={STATE: 2},
        dtype=np.float64,
    )
    return states.rechunk({ix[-1]: -1})


def _of_elements(x: da.Array, axis: int, log: bool) -> da.Array:
    x = checked(x, "x")
    axis = axis_of(x, axis, "x")
    rows = last(x, axis)
    ix = tuple(range(x.ndim))
    if is_whole(rows):
        function = fastce.log_softmax if log else fastce.softmax
        result = blocks(_blocks.call, ix, rows, ix, function=function, dtype=x.dtype)
    else:
        states = _states(rows), (*ix, STATE)
        above = blocks(_blocks.merged_above, ix, *states, dtype=np.float64)
        above = above.rechunk({ix[-1]: 1})
        result = blocks(
            _blocks.split_softmax, ix, *(rows, ix), *(above, ix), log=log, dtype=x.dtype
        )
    return back(result, axis)
