"""The arguments of a loss, checked and in canonical form, and room for its results."""

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from .._runtime.dispatch import kernel
from .._runtime.threads import get_num_threads
from . import gpu, host

_INT64 = np.dtype(np.int64)


def check_options(ignore_index: Any, reduction: str, label_smoothing: float, z_loss: float) -> int:
    """Refuse what has no meaning; `ignore_index` as a plain integer."""
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
    if not 0.0 <= host.number(label_smoothing, "label_smoothing") <= 1.0:
        raise ValueError(f"label_smoothing must be from 0 to 1, got {label_smoothing!r}")
    if not math.isfinite(host.number(z_loss, "z_loss")):
        raise ValueError(f"z_loss must be finite, got {z_loss!r}")
    try:
        ignore_index = int(operator.index(ignore_index))  # of a bool, a bool
    except TypeError:
        raise TypeError(f"ignore_index must be an integer, got {ignore_index!r}") from None
    if not -(2**63) <= ignore_index < 2**63:
        raise ValueError(f"ignore_index must fit 64 bits, got {ignore_index}")
    return ignore_index


def no_ignored_row(ignore_index: int) -> ValueError:
    return ValueError(
        f"ignore_index={ignore_index} has no meaning for a target of probabilities; "
        "give the rows to ignore a target of zeros"
    )


def wrong_labels(shape: tuple, name: str, logits: tuple, rest: tuple) -> ValueError:
    hint = "; one-hot targets must be floating" if shape == logits else ""
    if shape == logits[:1] + logits[2:]:  # PyTorch's
        hint = "; for classes on the second axis pass axis=1"
    return ValueError(
        f"target of class indices must have shape {rest}, that of {name} {logits} without the "
        f"class axis, got {shape}{hint}"
    )


def target_dtype(target: np.dtype, logits: np.dtype) -> np.dtype:
    """In what kernels take a target of probabilities: the dtype of the logits where it has that,
    else what they compute in. 16 bits would cost a float32 target up to 2e-3 of the loss.
    """
    return logits if target == logits else host.compute_dtype(logits)


def no_weight() -> ValueError:
    return ValueError("weight has no meaning without a target")


def only_labels(op: str, dtype: Any) -> TypeError:
    return TypeError(f"target of {op} must hold class indices, got dtype {dtype}")


class LossInputs:
    """Inputs of one call on logits (or log-probabilities) and targets, ready for a kernel.

    Everything is checked in the constructor, labels included, so that nothing has been written
    when an error is raised.

    `labels_of` names an op that takes no probabilities; `optional` is whether it takes no target
    at all, when every row counts. `alpha` takes the place of `weight`, but does not enter what a
    mean divides by.
    """

    def __init__(
        self,
        logits: Any,
        target: Any,
        weight: Any,
        ignore_index: int,
        reduction: str,
        axis: int,
        out: Any = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        name: str = "logits",
        labels_of: str = "",
        alpha: Any = None,
        optional: bool = False,
    ) -> None:
        ignore_index = check_options(ignore_index, reduction, label_smoothing, z_loss)
        x = host.floating(logits, name)
        self.result: np.ndarray | None = None
        shaped = x
        if out is not None:
            self.result = shaped = host.check_out(out, x.shape, x.dtype)
            x = host.apart(x, shaped)
        self.layout = host.layout_of(shaped, axis, name)
        self.array = x
        self.reduction = reduction
        self.dtype = host.compute_dtype(x.dtype)
        self.weight = self._weight(weight, "weight")
        self.target: np.ndarray | None = None
        rows: float = self.layout.shape[0] * self.layout.shape[2]
        if target is not None or not optional:
            self.target, rows = self._target(target, ignore_index, name, labels_of)
        elif weight is not None:
            raise no_weight()
        if alpha is not None:
            self.weight = self._weight(alpha, "alpha")
        self.folded = self.layout
        self.options = {
            "denominator": rows if reduction == "mean" else 1.0,
            "ignore_index": ignore_index,
            "threads": get_num_threads(),
        }
        if not x.size:
            self._fold_empty()

    def _fold_empty(self) -> None:
        """Kernels work, and take memory, for each class where there is no row, and for each row
        where there is no class: of either there may be 2**40.
        """
        labelled = self.target is not None and self.target.ndim == 2
        outer, _, inner = self.layout.shape
        if not outer * inner:
            self.folded = self.layout._replace(shape=(0, 0, 1))
        elif self.reduction != "none" and not labelled:  # all rows cost the same: one is computed
            self.folded = self.layout._replace(shape=(1, 0, 1))
            self.options["denominator"] /= outer * inner
        if self.target is not None and not labelled:
            self.target = self.target.reshape(self.folded.shape)

    def _weight(self, weight: Any, name: str) -> np.ndarray | None:
        if weight is None:
            return None
        w = host.floating(weight, name)
        classes = self.layout.shape[1]
        if w.shape != (classes,):
            raise ValueError(f"{name} must have shape ({classes},), one per class, got {w.shape}")
        return self._apart(np.ascontiguousarray(w, self.dtype))

    def _apart(self, a: np.ndarray) -> np.ndarray:
        """`a`, or a copy where `out` is written while the kernel still reads it."""
        if self.result is None or not np.may_share_memory(a, self.result):
            return a
        return a.copy()

    def _target(
        self, target: Any, ignore_index: int, name: str, labels_of: str
    ) -> tuple[np.ndarray, float]:
        """The target in canonical form, and what a mean divides by."""
        t = target if type(target) is np.ndarray else host.to_numpy(target, "target")
        outer, classes, inner = self.layout.shape
        if not t.flags.aligned:
            t = t.copy()
        if t.dtype.kind in "iu":
            if t.shape != self.layout.rest_shape:
                raise wrong_labels(t.shape, name, self.array.shape, self.layout.rest_shape)
            if t.dtype.char in "LQ" and t.size and t.max() > np.iinfo(np.int64).max:
                raise self._bad_label(t, ignore_index)
            rows = self._apart(host.row_in(t, self.layout, _INT64))
            stats = np.empty(2)
            kernel("cross_entropy", "scan_target")(
                rows,
                self.weight,
                stats,
                classes=classes,
                ignore_index=ignore_index,
                threads=get_num_threads(),
            )
            if stats[0] >= 0:
                raise self._bad_label(t, ignore_index)
            return rows, stats[1]
        if labels_of:
            raise only_labels(labels_of, host.described(t))
        if t.dtype.kind != "f" and not host.is_bfloat16(t.dtype):
            raise TypeError(
                "target must hold class indices or probabilities, got dtype " + host.described(t)
            )
        if t.shape != self.array.shape:
            raise ValueError(
                f"target of probabilities must have the shape of {name}, {self.array.shape}, "
                f"got {t.shape}; class indices must be integers, got {t.dtype}"
            )
        if ignore_index >= 0:
            raise no_ignored_row(ignore_index)
        if self.result is not None:
            t = host.apart(t, self.result)
            if t.size and t.__array_interface__ == self.result.__array_interface__:
                raise ValueError("out may not be the target")
        t = t.astype(target_dtype(t.dtype, self.array.dtype), copy=False)
        return host.rows_in(t, self.layout), outer * inner

    def _bad_label(self, target: np.ndarray, ignore_index: int) -> IndexError:
        classes = self.layout.shape[1]
        bad = (target != ignore_index) & ((target < 0) | (target >= classes))
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        place = f"[{', '.join(map(str, where))}]" if where else ""
        return IndexError(
            f"target{place} is {target[where]}, out of range for {classes} classes "
            f"(ignore_index is {ignore_index})"
        )

    @property
    def logits(self) -> np.ndarray:
        return host.rows_in(self.array, self.folded)

    def kernel(self, name: str, op: str = "cross_entropy") -> Callable[..., None]:
        compute = kernel(op, name)
        if not self.array.size and name.endswith("_backward"):
            return _nothing  # is written
        return compute

    def new_loss(self) -> tuple[np.ndarray, np.ndarray]:
        """Room for the loss: canonical, and as the user sees it."""
        if self.reduction == "none":
            return host.row_out(self.layout, self.dtype)
        loss = np.empty((1, 1), self.dtype)
        return loss, loss.reshape(())

    def new_lse(self) -> tuple[np.ndarray, np.ndarray]:
        if self.folded is not self.layout and self.folded.shape[0]:
            lse = np.full(self.layout.rest_shape, -np.inf, self.dtype)
            return np.empty((1, 1), self.dtype), lse
        return host.row_out(self.layout, self.dtype)

    def new_grad(self) -> tuple[np.ndarray, np.ndarray]:
        """Room for the gradient, in `out` where that was given."""
        if self.result is None:
            shape, order = self.array.shape, self.layout.order
            if order is None:
                self.result = np.empty(shape, self.array.dtype)
            else:
                # As the target and the loss were folded: NumPy's own choice (empty_like) may
                # differ where an axis has length 1.
                folded = np.empty([shape[i] for i in order], self.array.dtype)
                self.result = folded.transpose(np.argsort(order))
        return host.rows_out(self.result, self.folded), self.result

    def per_row(self, a: Any, name: str) -> np.ndarray:
        """A per-row input of the user, in canonical form."""
        a = host.floating(a, name)
        if a.shape != self.layout.rest_shape:
            raise ValueError(f"{name} must have shape {self.layout.rest_shape}, got {a.shape}")
        return self._apart(host.row_in(a, self.layout, self.dtype))

    def grad_loss(self, grad_loss: Any) -> np.ndarray:
        """The upstream gradient: one per row, or (1, 1)."""
        g = host.floating(grad_loss, "grad_loss")
        if g.ndim == 0 or (self.reduction != "none" and g.size == 1):
            return self._apart(np.ascontiguousarray(g.reshape(1, 1), self.dtype))
        if self.reduction != "none":
            raise ValueError(
                f"grad_loss must be a scalar for reduction={self.reduction!r}, got shape {g.shape}"
            )
        return self.per_row(g, "grad_loss")


def _nothing(*arrays: Any, **options: Any) -> None:
    """The gradient of no elements."""


def loss_inputs(logits: Any, *arguments: Any, **options: Any) -> Any:
    """`LossInputs`, or what has the same methods for logits on a GPU."""
    if type(logits) is not np.ndarray and gpu.is_on_gpu(logits):
        from .loss_gpu import GPULossInputs

        return GPULossInputs(logits, *arguments, **options)
    return LossInputs(logits, *arguments, **options)
