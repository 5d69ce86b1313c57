"""Cross-entropy from probabilities instead of logits, as Keras calls it."""

from __future__ import annotations  # help() then says ArrayLike, not what that stands for

from typing import Any

from numpy.typing import ArrayLike

from ._inputs import gpu, host
from ._inputs.loss import LossInputs
from ._runtime.dispatch import gpu_kernel
from .cross_entropy import Reduction

_OP = "categorical_cross_entropy"


def categorical_cross_entropy(
    probs: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    epsilon: float = 1e-7,
    axis: int = -1,
) -> Any:
    """Cross-entropy between probabilities and target classes, in nats.

    For a row of probabilities p with sum s, the loss is ``-sum(q * log(c))`` with
    ``c = clip(p / s, epsilon, 1 - epsilon)``; q is made of the target, `label_smoothing` and
    `weight` as in `cross_entropy`. Where there are logits, `cross_entropy` is faster and more
    exact.

    Parameters
    ----------
    probs : array_like
        Probabilities, such as those that `softmax` gives: float64, float32, float16 or bfloat16,
        any layout. Their sum need not be 1.
    target : array_like
        Class indices, of any integer dtype and of the shape of `probs` without `axis`; or one-hot
        rows or other probabilities, floating and of the shape of `probs`. What is not of the dtype
        of `probs` is converted once: to float64 beside float64, else to float32.
    weight : array_like, optional
        One weight per class, shape ``(C,)``.
    ignore_index : int, default -100
        Rows with this label cost nothing and have gradient 0, whatever they hold.
    reduction : {"mean", "sum", "none"}
        The mean of class-index targets is the sum divided by the sum of ``weight[y]`` over the
        rows that count; that of probabilities is divided by the number of rows.
    label_smoothing : float, default 0
        From 0 to 1: how much of the target is spread evenly over the classes.
    epsilon : float, default 1e-7
        The bounds of the clip, at least 0 and less than 0.5. It keeps a loss finite: of a class of
        probability 0 that is 16.1. It is a number of the dtype of the loss, so that float16 has
        1e-7 too, and in float32 ``1 - 1e-7`` is 1 - 1.19e-7. With 0 nothing is clipped, and a
        wanted class of probability 0 costs infinity.
    axis : int, default -1
        Where the classes are.

    Returns
    -------
    scalar, or array of the shape of `probs` without `axis` for ``reduction="none"``
        float64 for float64 probabilities, else float32. The mean over no row at all is NaN. So is
        the loss of a row that holds NaN, infinity or a negative number, or whose sum is 0.

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
    The meaning is that of ``keras.losses.categorical_crossentropy`` and
    ``sparse_categorical_crossentropy`` with ``from_logits=False``, which take the target first and
    give one loss per row: ``reduction="none"``. On TensorFlow, Keras clips before it divides by the
    sum where the target is sparse; here one-hot and sparse targets give the same.

    Examples
    --------
    >>> import fastce
    >>> probs = [[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]
    >>> round(float(fastce.categorical_cross_entropy(probs, [0, 1])), 6)  # -(log 0.5 + log 0.8) / 2
    0.458145
    >>> one_hot = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    >>> round(float(fastce.categorical_cross_entropy(probs, one_hot)), 6)
    0.458145
    """
    p, options = _inputs(
        probs, target, weight, ignore_index, reduction, axis, None, label_smoothing, epsilon
    )
    loss_rows, loss = p.new_loss()
    p.kernel(_OP, _OP)(p.logits, p.target, p.weight, loss_rows, **options)
    return host.like(probs, loss)


def categorical_cross_entropy_backward(
    grad_loss: ArrayLike,
    probs: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    epsilon: float = 1e-7,
    axis: int = -1,
    out: Any = None,
) -> Any:
    """Gradient of `categorical_cross_entropy` with respect to the probabilities.

    Parameters
    ----------
    grad_loss : array_like
        Gradient with respect to the loss: a scalar, or for ``reduction="none"`` one per row.
    probs, target, weight, ignore_index, reduction, label_smoothing, epsilon, axis
        As given to `categorical_cross_entropy`.
    out : array, optional
        Where to put the gradient: shape and dtype of `probs`. It may be `probs` itself.

    Returns
    -------
    array
        Of the shape and dtype of `probs`: ``grad_loss * (sum(u * q) / s - u * q / p)``, in the
        terms of `categorical_cross_entropy`, where u is 1 for a class within the bounds of the clip
        or exactly on one of them, and 0 for a class that is clipped.

    Raises
    ------
    IndexError, TypeError, ValueError, BackendError
        As `categorical_cross_entropy`; nothing is written then.

    Examples
    --------
    >>> import fastce
    >>> fastce.categorical_cross_entropy_backward(1.0, [[0.25, 0.75]], [0])
    array([[-3.,  1.]])
    """
    p, options = _inputs(
        probs, target, weight, ignore_index, reduction, axis, out, label_smoothing, epsilon
    )
    upstream = p.grad_loss(grad_loss)
    grad_rows, grad = p.new_grad()
    p.kernel(f"{_OP}_backward", _OP)(upstream, p.logits, p.target, p.weight, grad_rows, **options)
    return host.like(probs, grad) if out is None else out


def categorical_cross_entropy_with_grad(
    probs: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    epsilon: float = 1e-7,
    axis: int = -1,
    out: Any = None,
) -> tuple[Any, Any]:
    """`categorical_cross_entropy` and its gradient with respect to the probabilities, together.

    Parameters
    ----------
    probs, target, weight, ignore_index, reduction, label_smoothing, epsilon, axis
        As for `categorical_cross_entropy`.
    out : array, optional
        Where to put the gradient: shape and dtype of `probs`. ``out=probs`` overwrites the
        probabilities, which needs no memory.

    Returns
    -------
    loss : scalar or array
        As `categorical_cross_entropy` returns it.
    grad : array
        Of the shape and dtype of `probs`. For ``reduction="none"``, the gradient of each row's own
        loss.

    Raises
    ------
    IndexError, TypeError, ValueError, BackendError
        As `categorical_cross_entropy`; nothing is written then.

    Examples
    --------
    >>> import fastce
    >>> loss, grad = fastce.categorical_cross_entropy_with_grad([[0.25, 0.75]], [0])
    >>> round(float(loss), 6), grad
    (1.386294, array([[-3.,  1.]]))
    """
    p, options = _inputs(
        probs, target, weight, ignore_index, reduction, axis, out, label_smoothing, epsilon
    )
    loss_rows, loss = p.new_loss()
    grad_rows, grad = p.new_grad()
    p.kernel(f"{_OP}_with_grad", _OP)(p.logits, p.target, p.weight, loss_rows, grad_rows, **options)
    return host.like(probs, loss), host.like(probs, grad) if out is None else out


def _inputs(
    probs: Any,
    target: Any,
    weight: Any,
    ignore_index: int,
    reduction: str,
    axis: int,
    out: Any,
    label_smoothing: float,
    epsilon: float,
) -> tuple[LossInputs, dict[str, Any]]:
    """The inputs, checked and in canonical form, and the options of a kernel."""
    if gpu.is_on_gpu(probs):
        gpu_kernel(_OP, _OP)  # raises, and says why
    if not 0.0 <= host.number(epsilon, "epsilon") < 0.5:
        raise ValueError(f"epsilon must be at least 0 and less than 0.5, got {epsilon!r}")
    p = LossInputs(
        probs, target, weight, ignore_index, reduction, axis, out, label_smoothing, name="probs"
    )
    more = {"label_smoothing": float(label_smoothing), "epsilon": float(epsilon)}
    return p, p.options | more
