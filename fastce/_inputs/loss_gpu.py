"""The arguments of a loss on a GPU, checked and in canonical form, and room for its results."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .._runtime.dispatch import gpu_kernel
from .._runtime.options import get_validation
from . import gpu
from .loss import check_options, no_ignored_row, no_weight, only_labels, wrong_labels


class GPULossInputs:
    """What `_loss.LossInputs` is for arrays on the host.

    Labels are not checked, as the host would have to wait for the GPU, unless validation is on. For
    the same reason the sum of weights by which a mean is divided stays on the GPU.
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
        gpu_kernel("cross_entropy", "cross_entropy")  # raises, and says why, if it is not there
        self.kind, self.name, self.reduction = logits, name, reduction
        self.seen = shaped = gpu.floating(logits, name)
        self.result, self.result_seen = out, None  # type: Any, Any
        if out is not None:
            self.result_seen = shaped = gpu.check_out(out, self.seen.shape, self.seen.dtype)
            self._check_apart(self.seen, name, same=True)
        self.layout = gpu.layout_of(shaped, axis, name)
        self.logits = gpu.planes(self.seen, self.layout, name)
        self.dtype = gpu.compute_dtype(self.seen.dtype)
        self.weight = None if weight is None else self._weight(weight, "weight")
        self.target: Any = None
        if target is not None or not optional:
            self.target = self._target(target, ignore_index, labels_of)
        elif weight is not None:
            raise no_weight()
        self._ignore_index = ignore_index
        self._denominator = self._denominator_of()
        if alpha is not None:
            self.weight = self._weight(alpha, "alpha")

    @property
    def options(self) -> dict[str, Any]:
        return {
            "denominator": self._denominator,
            "ignore_index": self._ignore_index,
            "threads": 1,
        }

    def kernel(self, name: str, op: str = "cross_entropy") -> Callable[..., None]:
        return gpu_kernel(op, name)

    def _check_apart(self, a: gpu.DeviceArray, name: str, same: bool = False) -> None:
        gpu.check_device(self.seen, a, name)
        if self.result_seen is None:
            return
        if not same and a.address == self.result_seen.address and 0 not in a.shape:
            raise ValueError(f"out may not be the {name}")
        gpu.check_device(self.seen, self.result_seen, "out")
        gpu.check_apart(a, self.result_seen, name)

    def _weight(self, weight: Any, name: str) -> Any:
        w, classes = gpu.floating(weight, name), self.layout.shape[1]
        if w.shape != (classes,):
            raise ValueError(f"{name} must have shape ({classes},), one per class, got {w.shape}")
        self._check_apart(w, name)
        layout = gpu.layout_of(w, 0, name)
        return gpu.planes(w, layout, name)

    def _target(self, target: Any, ignore_index: int, labels_of: str) -> Any:
        t = gpu.inspect_array(target, "target")
        self._check_apart(t, "target")
        if t.dtype in gpu.INTEGERS:
            if t.shape != self.layout.rest_shape:
                raise wrong_labels(t.shape, self.name, self.seen.shape, self.layout.rest_shape)
            return self._per_row(t, "target")
        if labels_of:
            raise only_labels(labels_of, t.dtype)
        if t.shape != self.seen.shape or t.dtype not in (self.seen.dtype, self.dtype):
            raise ValueError(
                f"target of probabilities must have the shape and dtype of {self.name}, "
                f"{self.seen.shape} {self.seen.dtype}, or be {self.dtype}, got {t.shape} "
                f"{t.dtype}; class indices must be integers"
            )
        if ignore_index >= 0:
            raise no_ignored_row(ignore_index)
        return gpu.planes(t, self.layout, "target")

    def _denominator_of(self) -> Any:
        """What a mean divides by: a number, or where the GPU will have it."""
        outer, classes, inner = self.layout.shape
        mean = self.reduction == "mean"
        if self.target is None or len(self.target.shape) == 3:
            return float(outer * inner) if mean else 1.0
        if not (mean or get_validation()):
            return 1.0
        from ..kernels.cuda import _device

        # Kept until the kernels that use it are on their way. No array of the user's library, which
        # may have no float64.
        self._stats = _device.allocate(16, self.seen.stream, self.seen.device)
        stats_view = self.logits._replace(
            address=_device.address(self._stats), shape=(1, 2), step=0, dtype="float64"
        )
        gpu_kernel("cross_entropy", "scan_target")(
            self.target,
            self.weight,
            stats_view,
            classes=classes,
            ignore_index=self._ignore_index,
            threads=1,
        )
        if get_validation():
            self._validate(stats_view)
        return stats_view if mean else 1.0

    def _validate(self, stats: Any) -> None:
        from ..kernels.cuda import _device

        found = np.empty(2)
        _device.read(stats.address, found, stats.stream, stats.device)
        if found[0] < 0:
            return
        row, size = int(found[0]), np.dtype(self.target.dtype).itemsize
        label = np.empty(1, self.target.dtype)
        _device.read(self.target.address + row * size, label, stats.stream, stats.device)
        raise IndexError(
            f"target of row {row} is {label[0]}, out of range for {self.layout.shape[1]} classes "
            f"(ignore_index is {self._ignore_index})"
        )

    def new_loss(self) -> tuple[Any, Any]:
        """Room for the loss: canonical, and as the user sees it."""
        if self.reduction == "none":
            return self.new_lse()
        loss = gpu.empty(self.kind, self.seen, (), self.dtype)
        view = self.logits._replace(
            address=gpu.inspect_array(loss, "loss").address, shape=(1, 1), step=0, dtype=self.dtype
        )
        return view, loss

    def new_lse(self) -> tuple[Any, Any]:
        return gpu.new_rows(self.kind, self.seen, self.layout, self.dtype)

    def new_grad(self) -> tuple[Any, Any]:
        """Room for the gradient, in `out` where that was given."""
        if self.result is None:
            self.result, self.result_seen = gpu.new_like(self.kind, self.seen, self.layout)
        grad = gpu.planes(self.result_seen, self.layout, "out")
        return grad._replace(stream=self.logits.stream), self.result

    def per_row(self, a: Any, name: str) -> Any:
        """A per-row input of the user, in canonical form."""
        return self._per_row(gpu.floating(a, name), name)

    def _per_row(self, a: gpu.DeviceArray, name: str) -> Any:
        self._check_apart(a, name)
        return gpu.per_row(a, self.layout, name)._replace(stream=self.logits.stream)

    def grad_loss(self, grad_loss: Any) -> Any:
        """The upstream gradient: one per row, or (1, 1), or a number of the host."""
        if not gpu.is_on_gpu(grad_loss):
            number = np.asarray(grad_loss)
            fits = number.ndim == 0 or (number.size == 1 and self.reduction != "none")
            if not fits or number.dtype.kind not in "fiu":
                raise TypeError(
                    "grad_loss must be a number, or on the GPU as the logits are, got "
                    f"{type(grad_loss).__name__} of shape {number.shape}"
                )
            return float(number.reshape(()))
        g = gpu.floating(grad_loss, "grad_loss")
        if math.prod(g.shape) == 1 and (not g.shape or self.reduction != "none"):
            self._check_apart(g, "grad_loss")
            return self.logits._replace(address=g.address, shape=(1, 1), step=0, dtype=g.dtype)
        if self.reduction != "none":
            raise ValueError(
                f"grad_loss must be a scalar for reduction={self.reduction!r}, got shape {g.shape}"
            )
        return self._per_row(g, "grad_loss")
