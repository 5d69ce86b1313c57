"""Cross-entropy of a linear layer, whose logits are never in memory as a whole."""

from __future__ import annotations  # help() then says ArrayLike, not what that stands for

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ._inputs import host
from ._inputs.loss import Targets, check_smoothing, check_z_loss
from ._inputs.memory import memory_of
from .cross_entropy import Reduction

_OP = "linear_cross_entropy"
_NAMES = ("d_input", "d_linear_weight", "d_linear_bias")


def linear_cross_entropy(
    input: ArrayLike,
    linear_weight: ArrayLike,
    target: ArrayLike,
    *,
    linear_bias: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float = 0.0,
) -> Any:
    """Cross-entropy of ``input @ linear_weight.T + linear_bias``, in nats.

    The same as `cross_entropy` of those logits, but they are computed and used in blocks of rows:
    54 MB at most, where those of 8192 rows and 128256 classes would take 4.2 GB.

    Parameters
    ----------
    input : array_like, shape (..., D)
        Input of the linear layer: float64, float32, float16 or bfloat16.
    linear_weight : array_like, shape (C, D)
        One row for each class, of the dtype of `input`.
    target : array_like of int, shape (...)
        Class indices.
    linear_bias : array_like, shape (C,), optional
        Added to the logits; of the dtype of `input`.
    weight : array_like, shape (C,), optional
        One weight per class.
    ignore_index : int, default -100
        Rows with this label are never read, add nothing to the loss, and have gradient 0.
    reduction : {"mean", "sum", "none"}
        The mean is the sum divided by the sum of ``weight[y]`` over the rows that are not
        ignored.
    label_smoothing : float, default 0
        From 0 to 1: the share of the target that is spread evenly over the classes.
    z_loss : float, default 0
        Adds ``z_loss * lse**2`` to each row that is not ignored.
    softcap : float, default 0
        Unless 0, the logits z become ``softcap * tanh(z / softcap)``.

    Returns
    -------
    scalar, or array of the shape of `target` for ``reduction="none"``
        float64 for float64 input, else float32. The mean over no row at all is NaN.

    Raises
    ------
    IndexError
        For a label that is neither a class nor `ignore_index`. It names the first bad one.
    TypeError, ValueError
        For shapes, dtypes or options that do not fit, before anything is written. The message
        shows what was received.
    BackendError
        For arrays on a GPU: there are no kernels for them yet.

    Notes
    -----
    Logits are computed and kept in float32 (float64 for float64 input), also where the input has
    16 bits, so losses are more exact than those of logits rounded to 16 bits.

    References
    ----------
    Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models", 2024.
    Softcap: Gemma Team, "Gemma 2: Improving Open Language Models at a Practical Size", 2024.

    Examples
    --------
    >>> import numpy as np, fastce
    >>> x, w = np.eye(2), np.log([[0.5, 0.2], [0.25, 0.2], [0.25, 0.6]])
    >>> round(float(fastce.linear_cross_entropy(x, w, [0, 2])), 6)  # -(log 0.5 + log 0.6) / 2
    0.601986
    """
    p = LinearInputs(
        input, linear_weight, target, linear_bias, weight, ignore_index, reduction,
        label_smoothing, z_loss, softcap,
    )  # fmt: skip
    return p.loss()


def linear_cross_entropy_backward(
    grad_loss: ArrayLike,
    input: ArrayLike,
    linear_weight: ArrayLike,
    target: ArrayLike,
    *,
    linear_bias: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float = 0.0,
    out: tuple[Any, Any, Any] | None = None,
) -> tuple[Any, Any, Any]:
    """Gradients of `linear_cross_entropy`.

    The logits are computed again. For both loss and gradients, where `grad_loss` is one factor,
    prefer `linear_cross_entropy_with_grad`.

    Parameters
    ----------
    grad_loss : array_like
        Gradient with respect to the loss: a scalar, or for ``reduction="none"`` one per row.
    input, linear_weight, target, linear_bias, weight, ignore_index, reduction, label_smoothing
        As for `linear_cross_entropy`, and so are `z_loss` and `softcap`; with the same errors.
    out : tuple of three arrays or None, optional
        Memory for the gradients, see `linear_cross_entropy_with_grad`.

    Returns
    -------
    d_input, d_linear_weight, d_linear_bias : arrays
        See `linear_cross_entropy_with_grad`.

    Examples
    --------
    >>> import numpy as np, fastce
    >>> x, w = np.ones((1, 2)), np.zeros((2, 2))
    >>> dx, dw, _ = fastce.linear_cross_entropy_backward(1.0, x, w, [0])
    >>> dw
    array([[-0.5, -0.5],
           [ 0.5,  0.5]])
    """
    p = LinearInputs(
        input, linear_weight, target, linear_bias, weight, ignore_index, reduction,
        label_smoothing, z_loss, softcap, out,
    )  # fmt: skip
    return p.grad(grad_loss)


def linear_cross_entropy_with_grad(
    input: ArrayLike,
    linear_weight: ArrayLike,
    target: ArrayLike,
    *,
    linear_bias: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float = 0.0,
    out: tuple[Any, Any, Any] | None = None,
) -> tuple[Any, Any, Any, Any]:
    """`linear_cross_entropy` and its gradients, computed together.

    Parameters
    ----------
    input, linear_weight, target, linear_bias, weight, ignore_index, reduction, label_smoothing
        As for `linear_cross_entropy`, and so are `z_loss` and `softcap`; with the same errors.
    out : tuple of three arrays or None, optional
        Memory for `d_input`, `d_linear_weight` and `d_linear_bias`; None is a new array. They must
        have contiguous rows; an input that overlaps one is copied.

    Returns
    -------
    loss : scalar or array
        As `linear_cross_entropy` returns it.
    d_input : array
        Of the shape and dtype of `input`; 0 where a row is ignored.
    d_linear_weight : array
        Of the shape and dtype of `linear_weight`, summed in float32 (float64 for float64) in the
        same order for any number of threads.
    d_linear_bias : array or None
        Of the shape and dtype of `linear_bias`; None where that is.

        For ``reduction="none"`` these are the gradients of the sum of the losses.

    Examples
    --------
    >>> import numpy as np, fastce
    >>> x, w = np.ones((1, 2)), np.zeros((2, 2))
    >>> loss, dx, dw, db = fastce.linear_cross_entropy_with_grad(x, w, [0], linear_bias=np.zeros(2))
    >>> round(float(loss), 6), db
    (0.693147, array([-0.5,  0.5]))
    """
    p = LinearInputs(
        input, linear_weight, target, linear_bias, weight, ignore_index, reduction,
        label_smoothing, z_loss, softcap, out,
    )  # fmt: skip
    return p.loss_and_grad()


class LinearInputs(Targets):
    """A call on the input, weight and bias of a linear layer, with a label for each row.

    `out` is a tuple of three arrays or None, and so are the gradients.
    """

    file = function = _OP
    one = (1,)

    def __init__(
        self, input: Any, linear_weight: Any, target: Any, linear_bias: Any, weight: Any,
        ignore_index: Any, reduction: str, label_smoothing: Any, z_loss: Any, softcap: Any,
        out: Any = None,
    ) -> None:  # fmt: skip
        for a in input, linear_weight:
            memory_of(a, _OP, _OP)  # raises for arrays on a GPU
        if not 0.0 <= host.number(softcap, "softcap") < math.inf:
            raise ValueError(f"softcap must be finite and at least 0, got {softcap!r}")
        x = host.floating(input, "input")
        w = host.floating(linear_weight, "linear_weight")
        b = None if linear_bias is None else host.floating(linear_bias, "linear_bias")
        if x.ndim < 1 or w.ndim != 2 or x.shape[-1] != w.shape[1]:
            raise ValueError(
                "input and linear_weight must have shapes (..., D) and (C, D), "
                f"got {x.shape} and {w.shape}"
            )
        if b is not None and b.shape != w.shape[:1]:
            raise ValueError(f"linear_bias must have shape {w.shape[:1]}, got {b.shape}")
        self.arrays = x, w, b
        dtypes = {a.dtype for a in self.arrays if a is not None}
        if len(dtypes) > 1:
            raise TypeError(
                "input, linear_weight and linear_bias must have the same dtype, got "
                + ", ".join(sorted(map(str, dtypes)))
            )
        shape = (*x.shape[:-1], w.shape[0])  # of the logits
        layout = host.fold(shape, None, -1, "logits")
        super().__init__(host, x, shape, layout, ignore_index, reduction)
        self.given, self.out, self.out_array = input, out, None
        self.all_given = input, linear_weight, linear_bias
        self.options["label_smoothing"] = check_smoothing(label_smoothing)
        self.options["z_loss"] = check_z_loss(z_loss)
        self.options["softcap"] = float(softcap)
        self.take_labels(target, weight, _OP)

    @property
    def inputs(self) -> tuple[Any, ...]:
        x, w, b = self.arrays
        return (
            host.bits(host.row_contiguous(x).reshape(self.rows, x.shape[-1])),
            host.bits(host.row_contiguous(w)),
            None if b is None else host.bits(np.ascontiguousarray(b)),
            self.target.reshape(-1),
            self.weight,
        )

    def new_losses(self) -> tuple[Any, Any]:
        loss, result = super().new_losses()
        return loss.reshape(-1), result

    def per_loss(self, a: Any, name: str) -> Any:
        return super().per_loss(a, name).reshape(-1)

    def grad(self, grad_loss: Any) -> Any:
        upstream = self.grad_loss(grad_loss)
        grads, results = self.new_grad()
        self.run("_backward", *_separate((upstream, *self.inputs), grads), *grads)
        return self._as_given(results)

    def loss_and_grad(self) -> tuple[Any, ...]:
        loss, result = self.new_loss()
        grads, results = self.new_grad()
        self.run("_with_grad", *_separate(self.inputs, grads), loss, *grads)
        return host.like(self.given, result), *self._as_given(results)

    def new_grad(self) -> tuple[Any, Any]:
        """Memory for the gradients: in canonical form, and as NumPy's arrays."""
        out = (None, None, None) if self.out is None else self.out
        if not isinstance(out, tuple) or len(out) != 3:
            raise TypeError(f"out must be a tuple of three arrays, or None for each, got {out!r}")
        grads: list[Any] = []
        results: list[Any] = []
        for name, a, array in zip(_NAMES, self.arrays, out, strict=True):
            if a is None and array is not None:
                raise ValueError("there is no linear_bias, and out has an array for it")
            if a is None:
                grad = None
            elif array is None:
                grad = np.empty(a.shape, a.dtype)
            else:
                grad = host.check_out(array, a.shape, a.dtype, f"out of {name}")
            results.append(grad)
            grads.append(None if grad is None else _rows_out(grad, name))
        for i, one in enumerate(grads):
            if one is not None and any(np.may_share_memory(one, other) for other in grads[:i]):
                raise ValueError("the arrays of out overlap each other")
        return grads, results

    def _as_given(self, results: list[Any]) -> tuple[Any, ...]:
        """Each gradient as the kind of array of its input, or the user's array of `out`."""
        out = self.out or (None, None, None)
        return tuple(
            host.like(given, result) if array is None else array
            for given, result, array in zip(self.all_given, results, out, strict=True)
        )


def _separate(inputs: tuple[Any, ...], grads: list[Any]) -> list[Any]:
    """The inputs, or a copy of those that overlap a gradient."""
    written = [grad for grad in grads if grad is not None]
    return [
        a if a is None or not any(np.may_share_memory(a, grad) for grad in written) else a.copy()
        for a in inputs
    ]


def _rows_out(result: np.ndarray, name: str) -> np.ndarray:
    """`result` as rows, a view."""
    rows = result.reshape(-1, result.shape[-1]) if result.ndim > 1 and result.size else result
    if rows.size and (
        not np.may_share_memory(rows, result) or host.row_contiguous(rows) is not rows
    ):
        raise ValueError(
            f"out of {name} with shape {result.shape} and strides {result.strides} cannot be "
            "written without a copy; its rows must be contiguous and equally spaced"
        )
    host.check_no_overlap(rows.shape, rows.strides, rows.itemsize)
    if name == "d_input":
        rows = rows.reshape(math.prod(result.shape[:-1]), result.shape[-1])
    return host.bits(rows)
