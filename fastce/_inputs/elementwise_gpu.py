"""The arguments of a loss of single elements on a GPU, in canonical form, and room for results."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .._runtime.dispatch import gpu_kernel
from .._runtime.options import get_validation
from . import gpu
from .elementwise import Order, bad_probability, check_reduction, shared_axes, wrong_weight


def _order_of(a: gpu.DeviceArray) -> Order:
    """The order of the axes, from the widest stride to the narrowest; None: as they are."""
    if a.strides == gpu._dense(a.shape, gpu._SIZES[a.dtype]):
        return None
    return tuple(sorted(range(len(a.shape)), key=lambda i: -abs(a.strides[i])))


class GPUElementInputs:
    """What `_elementwise.ElementInputs` is for arrays on the host; nothing is copied."""

    must_check_first = True  # without waiting for the loss

    def __init__(
        self,
        op: str,
        name: str,
        x: Any,
        target: Any,
        weights: dict[str, Any],
        reduction: str,
        out: Any = None,
    ) -> None:
        check_reduction(reduction)
        gpu_kernel(op, op)  # raises, and says why, if it is not there
        self.op, self.name, self.reduction, self.kind = op, name, reduction, x
        self.seen = gpu.floating(x, name)
        self.shape, self.dtype = self.seen.shape, gpu.compute_dtype(self.seen.dtype)
        self.result, self.result_seen = out, None  # type: Any, Any
        if out is not None:
            self.result_seen = gpu.check_out(out, self.shape, self.seen.dtype)
            self._check_apart(self.seen, name)
        self.order = _order_of(self.seen if out is None else self.result_seen)
        self.x = self._flat(self.seen, name)
        self.target = self._target(target)
        self.weights = [self._weight(w, which) for which, w in weights.items()]

    @property
    def options(self) -> dict[str, Any]:
        mean = self.reduction == "mean"
        return {"denominator": float(math.prod(self.shape)) if mean else 1.0, "threads": 1}

    def kernel(self, name: str) -> Callable[..., None]:
        return gpu_kernel(self.op, name)

    def _check_apart(self, a: gpu.DeviceArray, name: str, may_be_out: bool = True) -> None:
        gpu.check_device(self.seen, a, name)
        if self.result_seen is None:
            return
        if not may_be_out and a.address == self.result_seen.address and 0 not in a.shape:
            raise ValueError(f"out may not be the {name}")
        gpu.check_device(self.seen, self.result_seen, "out")
        gpu.check_apart(a, self.result_seen, name)

    def _flat(self, a: gpu.DeviceArray, name: str) -> Any:
        """All elements in one axis, in the order of `self.order`, as they must lie in memory."""
        order = range(len(a.shape)) if self.order is None else self.order
        return self._row(a, name, [a.shape[i] for i in order], [a.strides[i] for i in order])

    def _row(self, a: gpu.DeviceArray, name: str, shape: list[int], strides: list[int]) -> Any:
        from ..kernels.cuda._arrays import View

        size = 1 if a.dtype == "bool" else gpu._SIZES[a.dtype]
        axes = tuple(range(len(shape)))
        if 0 not in shape and not gpu._is_dense(tuple(shape), tuple(strides), size, axes):
            raise ValueError(
                f"{name} of shape {a.shape} and strides {a.strides} bytes must lie densely in "
                f"memory, in the order of the axes of {self.name}: nothing is copied on a GPU"
            )
        dtype = "uint8" if a.dtype == "bool" else a.dtype
        return View(a.address, (math.prod(shape),), 0, dtype, self.seen.stream, a.device)

    def _target(self, target: Any) -> Any:
        t = gpu.inspect_array(target, "target", booleans=True)
        self._check_apart(t, "target")
        if t.shape != self.shape:
            raise ValueError(
                f"target must have the shape of {self.name}, {self.shape}, got {t.shape}"
            )
        if t.dtype in gpu.FLOATS and t.dtype not in (self.seen.dtype, self.dtype):
            wide = f", or {self.dtype}" if self.seen.dtype != self.dtype else ""
            raise ValueError(
                f"target must have the dtype of {self.name}, {self.seen.dtype}{wide}, or an "
                f"integer or boolean one, got {t.dtype}: nothing is converted on a GPU"
            )
        return self._flat(t, "target")

    def _weight(self, weight: Any, name: str) -> Any:
        """One row of weights, which the elements have again and again."""
        if weight is None:
            return None
        w = gpu.floating(weight, name)
        self._check_apart(w, name, may_be_out=False)
        try:
            fits = np.broadcast_shapes(w.shape, self.shape) == self.shape
        except ValueError:
            fits = False
        if not fits:
            raise wrong_weight(name, self.name, w.shape, self.shape)
        same = shared_axes(w.shape, self.shape, self.order)
        order = tuple(range(len(self.shape))) if self.order is None else self.order
        missing = len(self.shape) - len(w.shape)
        axes = [i - missing for i in order[same:] if i >= missing]
        shape = [w.shape[i] for i in axes]
        if math.prod(shape) != math.prod(self.shape[i] for i in order[same:]):
            raise ValueError(
                f"{name} of shape {w.shape} must vary along the last axes of {self.name} in "
                f"memory, {self.shape}: nothing is copied on a GPU, so expand it first"
            )
        return self._row(w, name, shape, [w.strides[i] for i in axes])

    def _new(self, dtype: str) -> Any:
        """An array of the shape and order of axes of the input."""
        order = range(len(self.shape)) if self.order is None else self.order
        array = gpu.empty(self.kind, self.seen, tuple(self.shape[i] for i in order), dtype)
        if self.order is None:
            return array
        return gpu.permuted(array, tuple(int(i) for i in np.argsort(self.order)))

    def new_loss(self) -> tuple[Any, Any]:
        """Room for the loss: canonical, and as the user sees it."""
        if self.reduction == "none":
            loss = self._new(self.dtype)
            return self._flat(gpu.inspect_array(loss, "loss"), "loss"), loss
        loss = gpu.empty(self.kind, self.seen, (), self.dtype)
        return self._row(gpu.inspect_array(loss, "loss"), "loss", [], []), loss

    def new_grad(self) -> tuple[Any, Any]:
        """Room for the gradient, in `out` where that was given."""
        if self.result is None:
            grad = self._new(self.seen.dtype)
            return self._flat(gpu.inspect_array(grad, "grad"), "grad"), grad
        return self._flat(self.result_seen, "out"), self.result

    def grad_loss(self, grad_loss: Any) -> Any:
        """The upstream gradient: one for each element, one for all, or a number of the host."""
        if not gpu.is_on_gpu(grad_loss):
            number = np.asarray(grad_loss)
            if number.size != 1 or number.dtype.kind not in "fiu":
                raise TypeError(
                    f"grad_loss must be a number, or on the GPU as {self.name} is, got "
                    f"{type(grad_loss).__name__} of shape {number.shape}"
                )
            return float(number.reshape(()))
        g = gpu.floating(grad_loss, "grad_loss")
        self._check_apart(g, "grad_loss", may_be_out=False)
        if math.prod(g.shape) == 1 and (not g.shape or self.reduction != "none"):
            return self._row(g, "grad_loss", [], [])
        if self.reduction != "none":
            raise ValueError(
                f"grad_loss must be a scalar for reduction={self.reduction!r}, got shape {g.shape}"
            )
        if g.shape != self.shape:
            raise ValueError(f"grad_loss must have shape {self.shape}, got {g.shape}")
        return self._flat(g, "grad_loss")

    def check_probabilities(self) -> None:
        """Refuse numbers that are no probabilities, if validation is on."""
        if not get_validation():
            return
        from ..kernels.cuda import _device

        # No array of the user's library, which may have no float64.
        buffer = _device.allocate(8, self.seen.stream, self.seen.device)
        view = self.x._replace(address=_device.address(buffer), shape=(1,), dtype="float64")
        gpu_kernel(self.op, "scan_probabilities")(self.x, view, threads=1)
        found = np.empty(1)
        _device.read(view.address, found, view.stream, view.device)
        if found[0] < 0:
            return
        at, size = int(found[0]), gpu._SIZES[self.seen.dtype]
        value = np.empty(1, gpu._numpy_dtype(self.seen.dtype))
        _device.read(self.x.address + at * size, value, view.stream, view.device)
        order = range(len(self.shape)) if self.order is None else self.order
        place = np.unravel_index(at, [self.shape[i] for i in order])
        where = tuple(int(place[k]) for k in np.argsort(order))
        raise bad_probability(self.name, where, value[0])
