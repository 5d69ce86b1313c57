"""The arguments of a loss of single elements, checked and in canonical form, and room for results.

Canonical form is one axis of all elements in the order in which they lie in memory, see
``fastce.kernels``. Any dense layout (C, Fortran, transposed) is a view; others are copied once. An
output never is.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from .._runtime.dispatch import kernel
from .._runtime.threads import get_num_threads
from . import gpu, host
from .loss import target_dtype

# A short row of weights is repeated up to so many, so that kernels work on long stretches.
STRETCH = 4096

Order = tuple[int, ...] | None  # axes from the widest stride to the narrowest; None: as they are


def check_reduction(reduction: str) -> None:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")


def check_smoothing(label_smoothing: float) -> float:
    if not 0.0 <= host.number(label_smoothing, "label_smoothing") <= 1.0:
        raise ValueError(f"label_smoothing must be from 0 to 1, got {label_smoothing!r}")
    return float(label_smoothing)


def order_of(a: np.ndarray) -> Order:
    """The order of the axes of a dense array; None for one that is not."""
    if a.flags.c_contiguous:
        return None
    order = tuple(sorted(range(a.ndim), key=lambda i: -abs(a.strides[i])))
    return order if a.transpose(order).flags.c_contiguous else None


def flat_in(a: np.ndarray, order: Order) -> np.ndarray:
    """An input in canonical form: a view where it lies in this order, else a copy."""
    a = a if order is None else a.transpose(order)
    return host._bits(np.ascontiguousarray(a).reshape(-1))


def flat_out(out: np.ndarray, order: Order) -> np.ndarray:
    """An output in canonical form: always a view."""
    flat = out if order is None else out.transpose(order)
    if not flat.flags.c_contiguous:
        raise ValueError(
            f"out with shape {out.shape} and strides {out.strides} cannot be written without a "
            "copy; it must lie densely in memory, in any order of its axes"
        )
    return host._bits(flat.reshape(-1))


def new(shape: tuple[int, ...], order: Order, dtype: np.dtype) -> np.ndarray:
    """Room for a result whose axes lie in this order."""
    if order is None:
        return np.empty(shape, dtype)
    return np.empty([shape[i] for i in order], dtype).transpose(np.argsort(order))


def wrong_weight(name: str, of: str, got: tuple[int, ...], shape: tuple[int, ...]) -> ValueError:
    return ValueError(
        f"{name} must have a shape that broadcasts to that of {of}, {shape}, got {got}"
    )


def shared_axes(weight: tuple[int, ...], shape: tuple[int, ...], order: Order) -> int:
    """How many axes of `shape`, from the widest on, have the same weights throughout."""
    axes = range(len(shape)) if order is None else order
    missing = len(shape) - len(weight)
    same = 0
    for axis in axes:
        if shape[axis] != 1 and axis >= missing and weight[axis - missing] != 1:
            break
        same += 1
    return same


class ElementInputs:
    """Inputs of one call on numbers and a target for each, ready for a kernel."""

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
        self.op, self.name, self.reduction = op, name, reduction
        a = host.floating(x, name)
        self.shape, self.dtype = a.shape, host.compute_dtype(a.dtype)
        self.result: np.ndarray | None = None
        self.order = order_of(a)
        if out is not None:
            self.result = host.check_out(out, a.shape, a.dtype)
            self.order = order_of(self.result)
            flat_out(self.result, self.order)  # raises where it would have to be copied
            a = host.apart(a, self.result)
        self.own_dtype = a.dtype
        self.x = flat_in(a, self.order)
        self.target = flat_in(self._target(target), self.order)
        self.weights = [self._weight(w, which) for which, w in weights.items()]

    def _apart(self, a: np.ndarray) -> np.ndarray:
        """`a`, or a copy where `out` is written while the kernel still reads it."""
        if self.result is None or not np.may_share_memory(a, self.result):
            return a
        return a.copy()

    def _target(self, target: Any) -> np.ndarray:
        t = host.to_numpy(target, "target")
        if t.dtype.kind not in "fiub" and not host.is_bfloat16(t.dtype):
            raise TypeError(f"target must hold numbers from 0 to 1, got dtype {host.described(t)}")
        if t.shape != self.shape:
            raise ValueError(
                f"target must have the shape of {self.name}, {self.shape}, got {t.shape}"
            )
        labels = t.dtype.kind in "iub"
        dtype = self.own_dtype if labels else target_dtype(t.dtype, self.own_dtype)
        t = t.astype(dtype, copy=not t.flags.aligned)
        return t if self.result is None else host.apart(t, self.result)

    def _weight(self, weight: Any, name: str) -> np.ndarray | None:
        """One row of weights, which the elements have again and again."""
        if weight is None:
            return None
        w = host.floating(weight, name)
        try:
            whole = np.broadcast_to(w, self.shape)
        except ValueError:
            raise wrong_weight(name, self.name, w.shape, self.shape) from None
        same = shared_axes(w.shape, self.shape, self.order)
        whole = whole if self.order is None else whole.transpose(self.order)
        if not whole.size:
            return np.ones(1, self.dtype)
        row = np.ascontiguousarray(whole[(0,) * same], self.dtype).reshape(-1)
        times = min(STRETCH // row.size, -(-whole.size // row.size))
        return np.tile(row, times) if times > 1 else self._apart(row)

    @property
    def options(self) -> dict[str, Any]:
        return {
            "denominator": float(self.x.size) if self.reduction == "mean" else 1.0,
            "threads": get_num_threads(),
        }

    def kernel(self, name: str) -> Callable[..., None]:
        return kernel(self.op, name)

    def new_loss(self) -> tuple[np.ndarray, np.ndarray]:
        """Room for the loss: canonical, and as the user sees it."""
        if self.reduction == "none":
            loss = new(self.shape, self.order, self.dtype)
            return flat_out(loss, self.order), loss
        loss = np.empty(1, self.dtype)
        return loss, loss.reshape(())

    def new_grad(self) -> tuple[np.ndarray, np.ndarray]:
        """Room for the gradient, in `out` where that was given."""
        grad = new(self.shape, self.order, self.own_dtype) if self.result is None else self.result
        return flat_out(grad, self.order), grad

    def grad_loss(self, grad_loss: Any) -> np.ndarray:
        """The upstream gradient: one for each element, or one for all."""
        g = host.floating(grad_loss, "grad_loss")
        if g.ndim == 0 or (self.reduction != "none" and g.size == 1):
            return self._apart(np.ascontiguousarray(g.reshape(1), self.dtype))
        if self.reduction != "none":
            raise ValueError(
                f"grad_loss must be a scalar for reduction={self.reduction!r}, got shape {g.shape}"
            )
        if g.shape != self.shape:
            raise ValueError(f"grad_loss must have shape {self.shape}, got {g.shape}")
        return self._apart(flat_in(g.astype(self.dtype, copy=False), self.order))

    @property
    def must_check_first(self) -> bool:
        """Whether a bad probability could not be seen after the computation, by a loss of NaN:
        `out` would be written by then, and of many losses each would have to be looked at.
        """
        return self.result is not None or self.reduction == "none"

    def check_probabilities(self) -> None:
        """Refuse numbers that are no probabilities; NaN is let through."""
        stats = np.empty(1)
        self.kernel("scan_probabilities")(self.x, stats, threads=get_num_threads())
        if stats[0] >= 0:
            raise bad_probability(self.name, self._place(int(stats[0])), self._value(int(stats[0])))

    def _place(self, at: int) -> tuple[int, ...]:
        """Where in the user's array an element is."""
        order = range(len(self.shape)) if self.order is None else self.order
        found = np.unravel_index(at, [self.shape[i] for i in order])
        return tuple(int(found[k]) for k in np.argsort(order))

    def _value(self, at: int) -> Any:
        return self.x[at : at + 1].view(self.own_dtype)[0]


def bad_probability(name: str, place: tuple[int, ...], value: Any) -> ValueError:
    at = f"[{', '.join(map(str, place))}]" if place else ""
    return ValueError(
        f"{name}{at} is {value}, and a probability is from 0 to 1; for scores there is "
        "binary_cross_entropy_with_logits"
    )


def element_inputs(op: str, name: str, x: Any, *arguments: Any) -> Any:
    """`ElementInputs`, or what has the same methods for arrays on a GPU."""
    if type(x) is not np.ndarray and gpu.is_on_gpu(x):
        from .elementwise_gpu import GPUElementInputs

        return GPUElementInputs(op, name, x, *arguments)
    return ElementInputs(op, name, x, *arguments)
