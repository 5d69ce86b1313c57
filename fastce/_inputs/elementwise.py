"""The arguments of a loss of single elements, checked and in canonical form.

Canonical form is one axis of all elements in the order in which they lie in memory, see
``fastce.kernels``. Any dense layout (C, Fortran, transposed) is a view; others are copied once, or
an error on a GPU.
"""

import math
from typing import Any

from .._runtime.options import get_validation
from . import host
from .loss import LossCall, check_reduction
from .memory import memory_of


class ElementInputs(LossCall):
    """A call on numbers and a target for each."""

    one = (1,)
    file = "binary_cross_entropy"

    def __init__(
        self,
        function: str,
        name: str,
        x: Any,
        target: Any,
        weights: dict[str, Any],
        reduction: str,
        out: Any = None,
    ) -> None:
        check_reduction(reduction)
        self.memory = memory = memory_of(x, self.file, function)
        self.function, self.name, self.reduction = function, name, reduction
        self.given, self.out, self.out_array = x, out, None
        a = memory.floating(x, name)
        self.shape, self.dtype = a.shape, memory.compute_dtype(a.dtype)
        self.order = memory.order_of(a)
        if out is not None:
            self.out_array = memory.check_out(out, a.shape, a.dtype, first=a)
            self.order = memory.order_of(self.out_array)
            memory.flat_out(self.out_array, self.order)  # raises where it would have to be copied
            a = memory.apart(a, self.out_array, name)
        self.first = a
        self.x = memory.flat_in(a, self.order, name)
        self.target = self._target(target)
        self.weights = [self._weight(w, which) for which, w in weights.items()]
        self.options = {
            "denominator": float(math.prod(self.shape)) if reduction == "mean" else 1.0,
            "threads": memory.num_threads(),
        }

    @property
    def inputs(self) -> tuple[Any, ...]:
        return self.x, self.target, *self.weights

    def _target(self, target: Any) -> Any:
        t = self.memory.inspect(target, "target", self.first)
        other = t.dtype != self.first.dtype
        if other and not self._holds_numbers(t.dtype):
            raise TypeError(
                "target must hold numbers from 0 to 1, got dtype " + self.memory.described(t)
            )
        if t.shape != self.shape:
            raise ValueError(
                f"target must have the shape of {self.name}, {self.shape}, got {t.shape}"
            )
        if other:
            t = self.memory.target_in(t, self.first.dtype, self.name)
        if self.out_array is not None:
            t = self.memory.apart(t, self.out_array, "target")
        return self.memory.flat_in(t, self.order, "target")

    def _holds_numbers(self, dtype: Any) -> bool:
        memory = self.memory
        return memory.is_floating(dtype) or memory.is_integer(dtype) or dtype == "bool"

    def _weight(self, weight: Any, name: str) -> Any:
        """One row of weights, which repeats."""
        if weight is None:
            return None
        w = self.separate(self.memory.floating(weight, name, self.first), name)
        if w.shape != self.shape and not broadcasts(w.shape, self.shape):
            raise ValueError(
                f"{name} must have a shape that broadcasts to that of {self.name}, {self.shape}, "
                f"got {w.shape}"
            )
        same = shared_axes(w.shape, self.shape, self.order)
        return self.memory.period_in(w, self.shape, self.order, same, self.dtype, name)

    def _allocate(self, dtype: Any) -> tuple[Any, Any]:
        a, result = self.memory.allocate(self.shape, dtype, self.order, self.first)
        return self.memory.flat_out(a, self.order), result

    def new_losses(self) -> tuple[Any, Any]:
        return self._allocate(self.dtype)

    def new_grad(self) -> tuple[Any, Any]:
        if self.out_array is None:
            return self._allocate(self.first.dtype)
        return self.memory.flat_out(self.out_array, self.order), self.out

    def per_loss(self, a: Any, name: str) -> Any:
        if a.shape != self.shape:
            raise ValueError(f"{name} must have shape {self.shape}, got {a.shape}")
        return self.memory.flat_in(self.separate(a, name), self.order, name, self.dtype)


class ProbabilityInputs(ElementInputs):
    """The same for probabilities, which are refused out of range; NaN is let through."""

    def run(self, suffix: str, *arrays: Any) -> None:
        # A bad one makes its loss NaN, and so the sum, where that can be read, and `out` is not
        # written by then. Only a NaN is worth another pass over the numbers.
        late = self.out is None and self.reduction != "none" and suffix != "_backward"
        if not (late := late and self.memory.READABLE):
            self.check_probabilities()
        self.memory.kernel(self.file, self.function + suffix)(*arrays, **self.options)
        if late and math.isnan(arrays[3].item()):  # after x, target and weight
            self.check_probabilities()

    def check_probabilities(self) -> None:
        if not (self.memory.READABLE or get_validation()):
            return
        stats, _owner = self.memory.new_stats(1, self.first)
        threads = self.options["threads"]
        self.memory.kernel(self.file, "scan_probabilities")(self.x, stats, threads=threads)
        at = int(self.memory.read(stats)[0])
        if at >= 0:
            place = host.place_of(at, self.shape, self.order)
            value = self.memory.element(self.x, at, self.first.dtype)
            raise bad_probability(self.name, place, value)


def broadcasts(weight: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether an array of the first shape broadcasts to the second one."""
    pairs = zip(reversed(weight), reversed(shape), strict=False)
    return len(weight) <= len(shape) and all(n in (1, own) for n, own in pairs)


def shared_axes(weight: tuple[int, ...], shape: tuple[int, ...], order: host.Order) -> int:
    """How many axes of `shape`, from the widest on, have the same weights throughout."""
    axes = range(len(shape)) if order is None else order
    missing = len(shape) - len(weight)
    same = 0
    for axis in axes:
        if shape[axis] != 1 and axis >= missing and weight[axis - missing] != 1:
            break
        same += 1
    return same


def bad_probability(name: str, place: tuple[int, ...], value: Any) -> ValueError:
    at = f"[{', '.join(map(str, place))}]" if place else ""
    return ValueError(
        f"{name}{at} is {value}, and a probability is from 0 to 1; for scores there is "
        "binary_cross_entropy_with_logits"
    )
