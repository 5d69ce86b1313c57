"""The arguments of a loss, checked and in canonical form; its results; and calls of its kernels."""

import math
import operator
from abc import ABC, abstractmethod
from typing import Any

from .._runtime.options import get_validation
from . import host
from .memory import Memory, memory_of

# ---- options ---------------------------------------------------------------------------------


def check_reduction(reduction: str) -> None:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")


def check_smoothing(label_smoothing: float) -> float:
    if 0.0 <= (number := host.number(label_smoothing, "label_smoothing")) <= 1.0:
        return number
    raise ValueError(f"label_smoothing must be from 0 to 1, got {label_smoothing!r}")


def check_z_loss(z_loss: float) -> float:
    if math.isfinite(number := host.number(z_loss, "z_loss")):
        return number
    raise ValueError(f"z_loss must be finite, got {z_loss!r}")


def check_ignore_index(ignore_index: Any) -> int:
    if type(ignore_index) is not int:
        try:
            ignore_index = int(operator.index(ignore_index))  # of a bool, a bool
        except TypeError:
            raise TypeError(f"ignore_index must be an integer, got {ignore_index!r}") from None
    if not -(2**63) <= ignore_index < 2**63:
        raise ValueError(f"ignore_index must fit 64 bits, got {ignore_index}")
    return ignore_index


def check_options(ignore_index: Any, reduction: str, label_smoothing: float, z_loss: float) -> int:
    """Refuse what has no meaning; `ignore_index` as a plain integer."""
    check_reduction(reduction)
    check_smoothing(label_smoothing)
    check_z_loss(z_loss)
    return check_ignore_index(ignore_index)


def check_number(value: Any, name: str, least: float = -math.inf, most: float = math.inf) -> float:
    number = host.number(value, name)
    if math.isfinite(number) and least <= number <= most:
        return number
    allowed = ["finite"]
    allowed += [f"at least {least:g}"] if least > -math.inf else []
    allowed += [f"at most {most:g}"] if most < math.inf else []
    raise ValueError(f"{name} must be {' and '.join(allowed)}, got {value!r}")


# ---- errors ----------------------------------------------------------------------------------


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


def bad_label(place: tuple[int, ...], label: Any, classes: int, ignore_index: int) -> IndexError:
    at = f"[{', '.join(map(str, place))}]" if place else ""
    return IndexError(
        f"target{at} is {label}, out of range for {classes} classes "
        f"(ignore_index is {ignore_index})"
    )


# ---- calls -----------------------------------------------------------------------------------


class LossCall(ABC):
    """One call of a loss, of its gradient, or of both: `run` their kernels on `inputs`.

    A subclass checks the arguments in its constructor, so that nothing has been written when an
    error is raised, and allocates the results. `out` is the user's array for the gradient.
    """

    memory: Memory
    first: Any  # the main input, as `memory` takes it
    given: Any  # and as the user passed it
    name: str  # its name, for messages
    out: Any
    out_array: Any  # `out`, as `memory` takes it
    reduction: str
    dtype: Any  # of the loss
    one: tuple[int, ...]  # shape of a single loss in canonical form
    file: str  # of the kernels
    function: str  # name of the forward kernel there
    options: dict[str, Any]

    def loss(self) -> Any:
        loss, result = self.new_loss()
        self.run("", *self.inputs, loss)
        return host.like(self.given, result)

    def grad(self, grad_loss: Any) -> Any:
        upstream = self.grad_loss(grad_loss)
        grad, result = self.new_grad()
        self.run("_backward", upstream, *self.inputs, grad)
        return host.like(self.given, result) if self.out is None else self.out

    def loss_and_grad(self) -> tuple[Any, Any]:
        loss, result = self.new_loss()
        grad, grad_result = self.new_grad()
        self.run("_with_grad", *self.inputs, loss, grad)
        grad_result = host.like(self.given, grad_result) if self.out is None else self.out
        return host.like(self.given, result), grad_result

    def run(self, suffix: str, *arrays: Any) -> None:
        self.memory.kernel(self.file, self.function + suffix)(*arrays, **self.options)

    def new_loss(self) -> tuple[Any, Any]:
        """Memory for the loss: in canonical form, and as the user sees it."""
        if self.reduction == "none":
            return self.new_losses()
        return self.memory.new_number(self.one, self.dtype, self.first)

    @property
    @abstractmethod
    def inputs(self) -> tuple[Any, ...]:
        """What every kernel takes, in canonical form."""

    @abstractmethod
    def new_losses(self) -> tuple[Any, Any]:
        """The same for one number for each loss."""

    @abstractmethod
    def new_grad(self) -> tuple[Any, Any]:
        """Memory for the gradient, in `out` where that was given."""

    @abstractmethod
    def per_loss(self, a: Any, name: str) -> Any:
        """An input of the user with one number for each loss, in canonical form."""

    def grad_loss(self, grad_loss: Any) -> Any:
        """The upstream gradient: one number for each loss, one for all, or one of the host."""
        g = self.memory.upstream(grad_loss, self.reduction, self.name, self.first)
        if isinstance(g, float):
            return g
        reduced = self.reduction != "none"
        if not g.shape or (reduced and math.prod(g.shape) == 1):
            return self.memory.number_in(self.separate(g, "grad_loss"), self.one, self.dtype)
        if reduced:
            raise ValueError(
                f"grad_loss must be a scalar for reduction={self.reduction!r}, got shape {g.shape}"
            )
        return self.per_loss(g, "grad_loss")

    def separate(self, a: Any, name: str) -> Any:
        """`a`, not where `out` is written while the kernel still reads it."""
        return a if self.out_array is None else self.memory.separate(a, self.out_array, name)


class Targets(LossCall):
    """A call with a target for each row of logits of a shape: the target, weights and options.

    Without `take_target` or `take_labels` there is no target, and every row counts.
    """

    one: tuple[int, ...] = (1, 1)

    def __init__(
        self,
        memory: Memory,
        first: Any,
        shape: tuple[int, ...],
        layout: host.Layout,
        ignore_index: Any,
        reduction: str,
        name: str = "logits",
    ) -> None:
        check_reduction(reduction)
        self.memory, self.first, self.name = memory, first, name
        self.shape, self.layout, self.reduction = shape, layout, reduction
        self.classes, self.rows = shape[layout.axis], math.prod(layout.rest_shape)
        self.dtype = memory.compute_dtype(first.dtype)
        self.weight: Any = None
        self.target: Any = None
        self.options = {
            "denominator": float(self.rows) if reduction == "mean" else 1.0,
            "ignore_index": check_ignore_index(ignore_index),
            "threads": memory.num_threads(),
        }

    def take_target(self, target: Any, weight: Any) -> None:
        """A target of class indices or probabilities, with weights of classes."""
        if weight is not None:
            self.weight = self.per_class(weight, "weight")
        t = self.memory.inspect(target, "target", self.first)
        if self.memory.is_integer(t.dtype):
            self._labels(t)
        else:
            self._probabilities(t)

    def take_labels(self, target: Any, weight: Any, op: str) -> None:
        """The same for an op that takes no probabilities."""
        if weight is not None:
            self.weight = self.per_class(weight, "weight")
        t = self.memory.inspect(target, "target", self.first)
        if not self.memory.is_integer(t.dtype):
            raise TypeError(
                f"target of {op} must hold class indices, got dtype {self.memory.described(t)}"
            )
        self._labels(t)

    def per_class(self, weight: Any, name: str) -> Any:
        """One number for each class, in canonical form."""
        w = self.memory.floating(weight, name, self.first)
        if w.shape != (self.classes,):
            raise ValueError(
                f"{name} must have shape ({self.classes},), one per class, got {w.shape}"
            )
        return self.memory.vector_in(self.separate(w, name), self.dtype, name)

    def _labels(self, t: Any) -> None:
        if t.shape != self.layout.rest_shape:
            raise wrong_labels(t.shape, self.name, self.shape, self.layout.rest_shape)
        t = self.separate(t, "target")
        self.target = self.memory.labels_in(t, self.layout, self.options["ignore_index"])
        self.check_labels(t)

    def check_labels(self, t: Any) -> None:
        """Refuse labels out of range, and find what a mean divides by: the sum of the weights.

        On a GPU that sum stays there, and labels are only looked at with validation on: the host
        would have to wait.
        """
        memory, mean = self.memory, self.reduction == "mean"
        check = memory.READABLE or get_validation()
        if not (mean or check):
            return
        classes, ignore_index = self.classes, self.options["ignore_index"]
        # Kept until the kernels that read it have been launched.
        stats, self._stats = memory.new_stats(2, self.first)
        memory.kernel("cross_entropy", "scan_target")(
            self.target,
            self.weight,
            stats,
            classes=classes,
            ignore_index=ignore_index,
            threads=self.options["threads"],
        )
        if check and (row := memory.read(stats)[0]) >= 0:
            place, label = memory.bad_label(t, int(row), self.layout, classes, ignore_index)
            raise bad_label(place, label, classes, ignore_index)
        if mean:
            self.options["denominator"] = stats[1] if memory.READABLE else stats

    def _probabilities(self, t: Any) -> None:
        if not self.memory.is_floating(t.dtype):
            raise TypeError(
                "target must hold class indices or probabilities, got dtype "
                + self.memory.described(t)
            )
        if t.shape != self.shape:
            raise ValueError(
                f"target of probabilities must have the shape of {self.name}, {self.shape}, "
                f"got {t.shape}; class indices must be integers, got {t.dtype}"
            )
        if self.options["ignore_index"] >= 0:
            raise no_ignored_row(self.options["ignore_index"])
        if self.out_array is not None:
            t = self.memory.apart(t, self.out_array, "target", same=False)
        t = self.memory.target_in(t, self.first.dtype, self.name)
        self.target = self.memory.rows_in(t, self.layout, "target")

    def new_losses(self) -> tuple[Any, Any]:
        return self.memory.row_out(self.layout, self.dtype, first=self.first)

    def per_loss(self, a: Any, name: str) -> Any:
        if a.shape != self.layout.rest_shape:
            raise ValueError(f"{name} must have shape {self.layout.rest_shape}, got {a.shape}")
        return self.memory.row_in(self.separate(a, name), self.layout, self.dtype, name)


class LossInputs(Targets):
    """A call on logits, or on probabilities or their logarithms, with a target for each row."""

    def __init__(
        self,
        file: str,
        function: str,
        logits: Any,
        ignore_index: Any,
        reduction: str,
        axis: int,
        out: Any = None,
        name: str = "logits",
    ) -> None:
        memory = memory_of(logits, file, function)
        x = shaped = memory.floating(logits, name)
        self.file, self.function, self.given, self.out = file, function, logits, out
        self.out_array = None
        if out is not None:
            self.out_array = shaped = memory.check_out(out, x.shape, x.dtype, first=x)
            x = memory.apart(x, shaped, name)
        layout = memory.layout_of(shaped, axis, name)
        Targets.__init__(self, memory, x, x.shape, layout, ignore_index, reduction, name)

    @property
    def inputs(self) -> tuple[Any, ...]:
        return self.memory.rows_in(self.first, self.layout, self.name), self.target, self.weight

    def run(self, suffix: str, *arrays: Any) -> None:
        if self.classes or not self._run_without_classes(suffix, arrays):
            self.memory.kernel(self.file, self.function + suffix)(*arrays, **self.options)

    def _run_without_classes(self, suffix: str, arrays: tuple[Any, ...]) -> bool:
        """Whether there is nothing left to compute. A kernel would loop over up to 2**40 rows, each
        of which has the loss NaN and the logsumexp -inf, unless its label is ignored.
        """
        if suffix == "_backward":
            return True
        labelled = self.target is not None and len(self.target.shape) == 2
        if labelled or self.reduction == "none" or not self.memory.READABLE or not self.rows:
            return False
        for output, value in zip(arrays[3:], (math.nan, -math.inf), strict=False):
            if output is not None and output.size:
                output.fill(value)
        return True

    def new_grad(self) -> tuple[Any, Any]:
        if self.out_array is not None:
            return self.memory.rows_out(self.out_array, self.layout), self.out
        grad, result = self.memory.allocate(
            self.shape, self.first.dtype, self.layout.order, self.first
        )
        return self.memory.rows_out(grad, self.layout), result
