"""Cross-entropy of a linear layer, whose logits are never in memory as a whole."""

from __future__ import annotations  # help() then says ArrayLike, not what that stands for

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ._inputs import attention as heads
from ._inputs import gpu, host
from ._inputs.loss import LossInputs
from ._runtime.dispatch import gpu_kernel, kernel
from .cross_entropy import Reduction

_OP = "linear_cross_entropy"


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

    The same as `cross_entropy` of those logits, but they are made, used and forgotten in blocks of
    rows: 54 MB at most, where those of 8192 rows and 128256 classes would take 4.2 GB.

    Parameters
    ----------
    input : array_like, shape (..., D)
        What the linear layer gets: float64, float32, float16 or bfloat16.
    linear_weight : array_like, shape (C, D)
        One row for each class, of the dtype of `input`.
    target : array_like of int, shape (...)
        Class indices.
    linear_bias : array_like, shape (C,), optional
        Added to the logits; of the dtype of `input`.
    weight : array_like, shape (C,), optional
        One weight per class.
    ignore_index : int, default -100
        Rows with this label cost nothing, no time either, are never read, and have gradient 0.
    reduction : {"mean", "sum", "none"}
        The mean is the sum divided by the sum of ``weight[y]`` over the rows that count.
    label_smoothing : float, default 0
        From 0 to 1: how much of the target is spread evenly over the classes.
    z_loss : float, default 0
        Adds ``z_loss * lse**2`` to each row that counts.
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
        For shapes, dtypes or options that do not fit. The message shows what was received.
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
    p = _inputs(
        input, linear_weight, target, linear_bias, weight, ignore_index, reduction,
        label_smoothing, z_loss, softcap,
    )  # fmt: skip
    rows, loss = p.of_loss.new_loss()
    kernel(_OP, "linear_cross_entropy")(*p.arrays, rows.reshape(-1), **p.options)
    return host.like(input, loss)


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

    The logits are computed again. Where loss and gradients are both wanted, and `grad_loss` is a
    factor, prefer `linear_cross_entropy_with_grad`.

    Parameters
    ----------
    grad_loss : array_like
        Gradient with respect to the loss: a scalar, or for ``reduction="none"`` one per row.
    input, linear_weight, target, linear_bias, weight, ignore_index, reduction, label_smoothing
        As given to `linear_cross_entropy`, and so are `z_loss` and `softcap`.
    out : tuple of three arrays or None, optional
        Where to put the gradients, see `linear_cross_entropy_with_grad`.

    Returns
    -------
    d_input, d_linear_weight, d_linear_bias : arrays
        See `linear_cross_entropy_with_grad`.

    Raises
    ------
    IndexError, TypeError, ValueError, BackendError
        As `linear_cross_entropy`; nothing is written then.

    Examples
    --------
    >>> import numpy as np, fastce
    >>> x, w = np.ones((1, 2)), np.zeros((2, 2))
    >>> dx, dw, _ = fastce.linear_cross_entropy_backward(1.0, x, w, [0])
    >>> dw
    array([[-0.5, -0.5],
           [ 0.5,  0.5]])
    """
    p = _inputs(
        input, linear_weight, target, linear_bias, weight, ignore_index, reduction,
        label_smoothing, z_loss, softcap,
    )  # fmt: skip
    p, grads, rooms = p.with_room(out)
    upstream = p.of_loss.grad_loss(grad_loss).reshape(-1)
    kernel(_OP, "linear_cross_entropy_backward")(upstream, *p.arrays, *rooms, **p.options)
    return p.results(grads, out)


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
        As for `linear_cross_entropy`, and so are `z_loss` and `softcap`.
    out : tuple of three arrays or None, optional
        Where to put `d_input`, `d_linear_weight` and `d_linear_bias`; a new array is made where an
        entry is None. They must have contiguous rows; one that overlaps an input has that copied.

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

    Raises
    ------
    IndexError, TypeError, ValueError, BackendError
        As `linear_cross_entropy`; nothing is written then.

    Examples
    --------
    >>> import numpy as np, fastce
    >>> x, w = np.ones((1, 2)), np.zeros((2, 2))
    >>> loss, dx, dw, db = fastce.linear_cross_entropy_with_grad(x, w, [0], linear_bias=np.zeros(2))
    >>> round(float(loss), 6), db
    (0.693147, array([-0.5,  0.5]))
    """
    p = _inputs(
        input, linear_weight, target, linear_bias, weight, ignore_index, reduction,
        label_smoothing, z_loss, softcap,
    )  # fmt: skip
    p, grads, rooms = p.with_room(out)
    rows, loss = p.of_loss.new_loss()
    kernel(_OP, "linear_cross_entropy_with_grad")(*p.arrays, rows.reshape(-1), *rooms, **p.options)
    return host.like(input, loss), *p.results(grads, out)


class _Inputs(NamedTuple):
    """Inputs of one call, checked and in canonical form."""

    given: tuple[Any, Any, Any]  # input, linear_weight and linear_bias of the user
    shapes: tuple[tuple[int, ...] | None, ...]  # of their gradients
    dtype: np.dtype
    arrays: tuple[Any, ...]  # input, linear_weight, linear_bias, target, weight
    of_loss: LossInputs
    options: dict[str, Any]

    def with_room(self, out: Any) -> tuple[_Inputs, list[Any], list[Any]]:
        """Room for the gradients: as the user sees it, and in canonical form; and the inputs, in
        memory of their own.
        """
        if out is None:
            out = (None, None, None)
        if not isinstance(out, tuple) or len(out) != 3:
            raise TypeError(f"out must be a tuple of three arrays, or None for each, got {out!r}")
        results: list[Any] = []
        rooms: list[Any] = []
        for name, shape, array in zip(_NAMES, self.shapes, out, strict=True):
            if shape is None:
                if array is not None:
                    raise ValueError("there is no linear_bias, and out has an array for it")
                results.append(None)
                rooms.append(None)
                continue
            if array is None:
                result = np.empty(shape, self.dtype)
            else:
                result = host.check_out(array, shape, self.dtype, f"out of {name}")
            results.append(result)
            rooms.append(_rows_out(result, name))
        for i, one in enumerate(rooms):
            for other in rooms[:i]:
                if one is not None and np.may_share_memory(one, other):
                    raise ValueError("the arrays of out overlap each other")
        arrays = tuple(
            a if a is None or not any(np.may_share_memory(a, r) for r in rooms if r is not None)
            else a.copy()
            for a in self.arrays
        )  # fmt: skip
        return self._replace(arrays=arrays), results, rooms

    def results(self, grads: list[Any], out: Any) -> Any:
        """The gradients as the user wants them."""
        return tuple(
            array if array is not None or grad is None else host.like(given, grad)
            for given, grad, array in zip(self.given, grads, out or (None,) * 3, strict=True)
        )


_NAMES = ("d_input", "d_linear_weight", "d_linear_bias")


def _rows_out(result: np.ndarray, name: str) -> np.ndarray:
    """`result` as rows, a view."""
    rows = result.reshape(-1, result.shape[-1]) if result.ndim > 1 and result.size else result
    if rows.size and (
        not np.may_share_memory(rows, result) or heads.row_contiguous(rows) is not rows
    ):
        raise ValueError(
            f"out of {name} with shape {result.shape} and strides {result.strides} cannot be "
            "written without a copy; its rows must be contiguous and equally spaced"
        )
    heads.check_no_overlap(rows.shape, rows.strides, rows.itemsize)
    if name == "d_input":
        rows = rows.reshape(math.prod(result.shape[:-1]), result.shape[-1])
    return heads.bits(rows)


def _inputs(
    input: Any,
    linear_weight: Any,
    target: Any,
    linear_bias: Any,
    weight: Any,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    z_loss: float,
    softcap: float,
) -> _Inputs:
    if any(gpu.is_on_gpu(a) for a in (input, linear_weight) if type(a) is not np.ndarray):
        gpu_kernel(_OP, _OP)  # raises, and says why
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
    dtypes = {a.dtype for a in (x, w, b) if a is not None}
    if len(dtypes) > 1:
        raise TypeError(
            "input, linear_weight and linear_bias must have the same dtype, got "
            + ", ".join(sorted(map(str, dtypes)))
        )
    labels = target if type(target) is np.ndarray else host.to_numpy(target, "target")
    if labels.dtype.kind not in "iu":
        raise TypeError(f"target must hold class indices, got dtype {host.described(labels)}")
    rows, classes = x.shape[:-1], w.shape[0]
    # It stands for the logits, of which the loss only asks the shape and the dtype.
    logits = np.broadcast_to(np.zeros((), x.dtype), (*rows, classes))
    loss = LossInputs(
        logits, labels, weight, ignore_index, reduction, -1, None, label_smoothing, z_loss
    )
    arrays = (
        heads.bits(heads.row_contiguous(x).reshape(math.prod(rows), x.shape[-1])),
        heads.bits(heads.row_contiguous(w)),
        None if b is None else heads.bits(np.ascontiguousarray(b)),
        loss.target.reshape(-1),  # type: ignore[union-attr]
        loss.weight,
    )
    options = loss.options | {
        "label_smoothing": float(label_smoothing),
        "z_loss": float(z_loss),
        "softcap": float(softcap),
    }
    shapes = x.shape, w.shape, None if b is None else b.shape
    return _Inputs((input, linear_weight, linear_bias), shapes, x.dtype, arrays, loss, options)
