"""Cross-entropy of Dask arrays: its arguments, checked, and the tasks of loss and gradient."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np

from .._inputs import host, loss
from . import _blocks
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
)


class LossInputs:
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
            pairs = [pair for i in self.ix[:-1] for pair in (starts(t, i), (i,))]
            return blocks(
                _blocks.checked_labels,
                self.ix[:-1],
                *(t, self.ix[:-1]),
                *pairs,
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
        return last(t.astype(loss.target_dtype(t.dtype, self.x.dtype)), self.axis)

    def _weight(self, weight: Any) -> da.Array:
        classes = self.x.shape[-1]
        w = given(weight, "weight")
        if w.shape != (classes,):
            raise ValueError(f"weight must have shape ({classes},), one per class, got {w.shape}")
        w = chunked(w, self.x.chunks[-1:])
        return checked(w, "weight").astype(self.dtype)

    def _given(self) -> list[Any]:
        """The target and the weights of each block, for `blocks`."""
        target = self.target, self.ix[: self.target.ndim]
        return [*target, self.weight, None if self.weight is None else self.ix[-1:]]

    def _states(self) -> da.Array:
        classes = self.ix[-1]
        states = blocks(
            _blocks.loss_state,
            (*self.ix, STATE),
            *(self.x, self.ix),
            *self._given(),
            *(starts(self.x, -1), (classes,)),
            classes=self.x.shape[-1],
            **self.options,
            adjust_chunks={classes: 1},
            new_axes={STATE: 4},
            dtype=np.float64,
        )
        return states.rechunk({classes: -1})

    def _count(self) -> Any:
        """What a mean divides by: it needs the target only."""
        if not self.labels:
            return np.float64(np.prod(self.x.shape[:-1]))
        weight = None if self.weight is None else self.weight.rechunk(-1)
        rows = blocks(
            _blocks.row_weights,
            self.ix[:-1],
            *(self.target, self.ix[:-1]),
            *(weight, None if weight is None else self.ix[-1:]),
            ignore_index=self.options["ignore_index"],
            dtype=np.float64,
        )
        return rows.sum()

    def _per_count(self, total: Any) -> da.Array:
        pairs = [
            pair
            for a in (total, self._count())
            for pair in (a, () if isinstance(a, da.Array) else None)
        ]
        return blocks(_blocks.quotient, (), *pairs, dtype=np.float64)

    def loss(self) -> da.Array:
        if is_whole(self.x):
            rows = blocks(
                _blocks.loss_of_rows,
                self.ix[:-1],
                *(self.x, self.ix),
                *self._given(),
                z_loss=self.z_loss,
                **self.options,
                dtype=self.dtype,
            )
        else:
            rows = blocks(
                _blocks.merged_loss,
                self.ix[:-1],
                *(self._states(), (*self.ix, STATE)),
                *((self.target, self.ix[:-1]) if self.labels else (None, None)),
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
                _blocks.gradient_of_rows,
                self.ix,
                *(self.x, self.ix),
                *self._given(),
                *scale,
                z_loss=self.z_loss,
                **self.options,
                dtype=self.x.dtype,
            )
            return back(grad, self.axis)
        extra = blocks(
            _blocks.merged_extra,
            self.ix,
            *(self._states(), (*self.ix, STATE)),
            z_loss=self.z_loss,
            dtype=np.float64,
        ).rechunk({self.ix[-1]: 1})
        grad = blocks(
            _blocks.split_gradient,
            self.ix,
            *(self.x, self.ix),
            *(extra, self.ix),
            *self._given(),
            *(starts(self.x, -1), self.ix[-1:]),
            *scale,
            classes=self.x.shape[-1],
            **self.options,
            dtype=self.x.dtype,
        )
        return back(grad, self.axis)
