"""Cross-entropy of Dask arrays.

A row that is split by classes has two more numbers in each block's state (see `_blocks`):

    loss        sum(q * (lse - x)) with the block's own lse, where q are the target probabilities
    target_sum  sum(q)

With diff = (lse of the row) - (lse of the block), which is -log_softmax of the blocks' lse,

    loss     = sum over blocks of (loss + target_sum * diff)  +  z_loss * lse**2
    gradient = (what fastce gives for the block alone)  +  factor * softmax(block)
    factor   = (target_sum of all others + 2 * z_loss * lse) * exp(-diff)
               + target_sum * expm1(-diff)

No term of the loss cancels, nor does the gradient at a label whose probability is nearly 1: both
of its terms are small there, and of one sign.
"""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import ArrayLike

import fastce

from .._inputs import host, loss
from ..cross_entropy import Reduction
from ._blocks import computed, in_strips, max_and_log_sum, merged, strips, task
from ._graph import (
    STATE,
    axis_of,
    back,
    blocks,
    checked,
    chunked,
    given,
    is_whole,
    last,
    starts,
    states,
)

IGNORED = -1  # a label that is not in the block


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
    p = ChunkedLossInputs(
        *(logits, target, weight, ignore_index, reduction, label_smoothing, z_loss, axis)
    )
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
        As for `cross_entropy`, with the same errors.

    Returns
    -------
    loss : dask.array.Array
        As `cross_entropy` returns it.
    grad : dask.array.Array
        Of the shape, dtype and chunks of `logits`. For ``reduction="none"``, the gradient of each
        row's own loss.

    Examples
    --------
    >>> import dask, dask.array as da, fastce.dask
    >>> loss, grad = fastce.dask.cross_entropy_with_grad(da.zeros((1, 2), chunks=1), [0])
    >>> dask.compute(grad)
    (array([[-0.5,  0.5]]),)
    """
    p = ChunkedLossInputs(
        *(logits, target, weight, ignore_index, reduction, label_smoothing, z_loss, axis)
    )
    return p.loss(), p.grad()


class ChunkedLossInputs:
    """Of one call. Classes are on the last axis here."""

    def __init__(
        self,
        logits: Any,
        target: Any,
        weight: Any,
        ignore_index: int,
        reduction: str,
        label_smoothing: float,
        z_loss: float,
        axis: int,
    ) -> None:
        ignore_index = loss.check_options(ignore_index, reduction, label_smoothing, z_loss)
        x = checked(logits, "logits")
        self.axis = axis_of(x, axis, "logits")
        self.x = last(x, self.axis)
        self.ix = tuple(range(x.ndim))
        self.dtype = host.compute_dtype(x.dtype)
        self.reduction = reduction
        self.options: dict[str, Any] = {
            "ignore_index": ignore_index,
            "label_smoothing": float(label_smoothing),
        }
        self.z_loss = float(z_loss)
        self.target = self._target(target, x)
        self.labels = self.target.ndim < x.ndim
        self.weight = None if weight is None else self._weight(weight)

    def _target(self, target: Any, logits: da.Array) -> da.Array:
        t = given(target, "target")
        rows = self.x.shape[:-1]
        if t.dtype.kind in "iu":
            if t.shape != rows:
                raise loss.wrong_labels(t.shape, "logits", logits.shape, rows)
            t = chunked(t, self.x.chunks[:-1])
            places = [(starts(t, i), (i,)) for i in self.ix[:-1]]
            return blocks(
                _checked_labels,
                self.ix[:-1],
                (t, self.ix[:-1]),
                *places,
                classes=self.x.shape[-1],
                ignore_index=self.options["ignore_index"],
                dtype=t.dtype,
            )
        if t.dtype.kind != "f" and not host.is_bfloat16(t.dtype):
            raise TypeError(f"target must hold class indices or probabilities, got dtype {t.dtype}")
        if t.shape != logits.shape:
            raise ValueError(
                f"target of probabilities must have the shape of logits, {logits.shape}, got "
                f"{t.shape}; class indices must be integers, got {t.dtype}"
            )
        if self.options["ignore_index"] >= 0:
            raise loss.no_ignored_row(self.options["ignore_index"])
        if not isinstance(t, da.Array):
            t = da.from_array(t, chunks=logits.chunks)
        if t.chunks != logits.chunks:
            raise ValueError(
                f"target of probabilities must have the chunks of logits, {logits.chunks}, got "
                f"{t.chunks}; target.rechunk(logits.chunks) moves them"
            )
        return last(t.astype(host.target_dtype(t.dtype, self.x.dtype)), self.axis)

    def _weight(self, weight: Any) -> da.Array:
        classes = self.x.shape[-1]
        w = given(weight, "weight")
        if w.shape != (classes,):
            raise ValueError(f"weight must have shape ({classes},), one per class, got {w.shape}")
        w = chunked(w, self.x.chunks[-1:])
        return checked(w, "weight").astype(self.dtype)

    def _given(self) -> list[Any]:
        """The target and the weights of each block, for `blocks`."""
        weight = self.weight, None if self.weight is None else self.ix[-1:]
        return [(self.target, self.ix[: self.target.ndim]), weight]

    def _states(self) -> da.Array:
        return states(
            _loss_state,
            self.ix,
            4,
            (self.x, self.ix),
            *self._given(),
            (starts(self.x, -1), self.ix[-1:]),
            classes=self.x.shape[-1],
            **self.options,
        )

    def _denominator(self) -> Any:
        """Of a mean: it needs the target only."""
        if not self.labels:
            return np.float64(np.prod(self.x.shape[:-1]))
        weight = None if self.weight is None else self.weight.rechunk(-1)
        rows = blocks(
            _row_weights,
            self.ix[:-1],
            (self.target, self.ix[:-1]),
            (weight, None if weight is None else self.ix[-1:]),
            ignore_index=self.options["ignore_index"],
            dtype=np.float64,
        )
        return rows.sum()

    def _per_count(self, total: Any) -> da.Array:
        numbers = total, self._denominator()
        pairs = [(a, () if isinstance(a, da.Array) else None) for a in numbers]
        return blocks(_quotient, (), *pairs, dtype=np.float64)

    def loss(self) -> da.Array:
        if is_whole(self.x):
            rows = blocks(
                _loss_of_rows,
                self.ix[:-1],
                (self.x, self.ix),
                *self._given(),
                z_loss=self.z_loss,
                **self.options,
                dtype=self.dtype,
            )
        else:
            rows = blocks(
                _merged_loss,
                self.ix[:-1],
                (self._states(), (*self.ix, STATE)),
                ((self.target, self.ix[:-1]) if self.labels else (None, None)),
                ignore_index=self.options["ignore_index"],
                z_loss=self.z_loss,
                dtype=np.float64,
            )
        if self.reduction == "none":
            return rows.astype(self.dtype)
        total = rows.sum(dtype=np.float64)
        return (self._per_count(total) if self.reduction == "mean" else total).astype(self.dtype)

    def grad(self) -> da.Array:
        scale: Any = (1.0, None)
        if self.reduction == "mean":
            scale = (self._per_count(1.0), ())
        if is_whole(self.x):
            grad = blocks(
                _gradient_of_rows,
                self.ix,
                (self.x, self.ix),
                *self._given(),
                scale,
                z_loss=self.z_loss,
                **self.options,
                dtype=self.x.dtype,
            )
            return back(grad, self.axis)
        factor = blocks(
            _softmax_factor,
            self.ix,
            (self._states(), (*self.ix, STATE)),
            z_loss=self.z_loss,
            dtype=np.float64,
        ).rechunk({self.ix[-1]: 1})
        grad = blocks(
            _split_gradient,
            self.ix,
            (self.x, self.ix),
            (factor, self.ix),
            *self._given(),
            (starts(self.x, -1), self.ix[-1:]),
            scale,
            classes=self.x.shape[-1],
            **self.options,
            dtype=self.x.dtype,
        )
        return back(grad, self.axis)


# --- tasks --------------------------------------------------------------------------------


@task
def _loss_of_rows(
    x: np.ndarray, target: np.ndarray, weight: np.ndarray | None, **options: Any
) -> np.ndarray:
    return np.asarray(fastce.cross_entropy(x, target, weight=weight, reduction="none", **options))


@task
def _gradient_of_rows(
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
def _checked_labels(
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
def _row_weights(target: np.ndarray, weight: np.ndarray | None, *, ignore_index: int) -> np.ndarray:
    """The weight of each row in a mean."""
    kept = target != ignore_index
    if weight is None:
        return kept.astype(np.float64)
    return np.where(kept, weight.astype(np.float64)[np.where(kept, target, 0)], 0.0)


@task
def _quotient(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """NaN for 0 / 0, the mean over no row at all."""
    return np.divide(total, count, dtype=np.float64)


def _targets(
    x: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None,
    start: np.ndarray,
    classes: int,
    ignore_index: int,
    label_smoothing: float,
) -> tuple[list[tuple[float, dict[str, Any]]], np.ndarray]:
    """Target probabilities of a strip of a block, as (factor, arguments of cross_entropy) of the
    target itself and of the smoothing; and their sum over the classes of the block.
    """
    n = x.shape[-1]
    weights = np.ones(n) if weight is None else weight.astype(np.float64)
    shared: dict[str, Any] = {"weight": weight, "ignore_index": IGNORED}
    if target.ndim == x.ndim:
        kept = np.ones(x.shape[:-1], bool)
        labels = computed(target)
        target_sum = np.sum(labels * weights, axis=-1)
    else:
        kept = target != ignore_index
        labels = np.where(kept, target, 0).astype(np.int64) - int(start[0])
        inside = kept & (labels >= 0) & (labels < n)
        labels = np.where(inside, labels, IGNORED)
        target_sum = np.where(inside, weights[np.where(inside, labels, 0)], 0.0)
    parts: list[tuple[float, dict[str, Any]]] = []
    if label_smoothing < 1:  # 0 times a loss of inf would be NaN
        parts.append((1.0 - label_smoothing, {"target": labels, **shared}))
    if label_smoothing:
        of_all = {"target": np.where(kept, 0, IGNORED), "label_smoothing": 1.0, **shared}
        parts.append((label_smoothing * n / classes, of_all))
        target_sum = (1.0 - label_smoothing) * target_sum
        target_sum = target_sum + np.where(kept, label_smoothing / classes * weights.sum(), 0.0)
    return parts, target_sum


@task
def _loss_state(
    x: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None,
    start: np.ndarray,
    **options: Any,
) -> np.ndarray:
    """(..., 1, 4): block_max, log_sum, loss and target_sum."""

    def fields(at: Any) -> tuple:
        if not x.shape[-1]:
            return -np.inf, 0.0, 0.0, 0.0
        block_max, log_sum, rows = max_and_log_sum(computed(x[at]))
        parts, target_sum = _targets(rows, target[at], weight, start, **options)
        loss = sum(
            factor * np.asarray(fastce.cross_entropy(rows, reduction="none", **part), float)
            for factor, part in parts
        )
        return block_max, log_sum, loss, target_sum

    return in_strips(x, 4, fields)


@task
def _merged_loss(
    states: np.ndarray, target: np.ndarray | None, *, ignore_index: int, z_loss: float
) -> np.ndarray:
    """The loss of each row. `target`: the labels, if it is those."""
    lse, diff = merged(states)
    block_loss, target_sum = states[..., 2], states[..., 3]
    terms = np.where(target_sum == 0, block_loss, block_loss + target_sum * diff)
    loss = np.sum(terms, axis=-1)
    loss = loss + z_loss * lse**2 if z_loss else loss
    loss = np.where(np.isnan(diff).any(-1), np.nan, loss)
    return loss if target is None else np.where(target == ignore_index, 0.0, loss)


@task
def _softmax_factor(states: np.ndarray, *, z_loss: float) -> np.ndarray:
    """The factor of each block's softmax in its gradient."""
    lse, diff = merged(states)
    target_sum = states[..., 3]
    others = np.sum(target_sum, axis=-1, keepdims=True) - target_sum
    others = others + 2 * z_loss * np.expand_dims(lse, -1) if z_loss else others
    return others * np.exp(-diff) + target_sum * np.expm1(-diff)


@task
def _split_gradient(
    x: np.ndarray,
    softmax_factor: np.ndarray,
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
        _, _, rows = max_and_log_sum(computed(x[at]))
        parts, _ = _targets(rows, target[at], weight, start, ignore_index=ignore_index, **options)
        grad = fastce.softmax(rows) * softmax_factor[at]
        for factor, part in parts:
            grad += factor * fastce.cross_entropy_backward(1.0, rows, reduction="none", **part)
        grad *= scale
        if target.ndim < x.ndim:
            grad[target[at] == ignore_index] = 0.0
        result[at] = grad
    return result
