"""Cross-entropy from probabilities instead of logits, as Keras calls it."""

from __future__ import annotations  # help() then says ArrayLike, not what that stands for

from typing import Any

from numpy.typing import ArrayLike

from ._inputs import host
from ._inputs.loss import LossInputs, check_smoothing
from .cross_entropy import Reduction


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
        rows or other probabilities, floating and of the shape of `probs`. Probabilities of another
        dtype than `probs` are converted once: to float64 beside float64, else to float32.
    weight : array_like, optional
        One weight per class, shape ``(C,)``.
    ignore_index : int, default -100
        Rows with this label add nothing to the loss and have gradient 0, whatever they hold.
    reduction : {"mean", "sum", "none"}
        The mean of class-index targets is the sum divided by the sum of ``weight[y]`` over the
        rows that are not ignored; that of probabilities is divided by the number of rows.
    label_smoothing : float, default 0
        From 0 to 1: the share of the target that is spread evenly over the classes.
    epsilon : float, default 1e-7
        The bounds of the clip, at least 0 and less than 0.5. It keeps a loss finite: of a class of
        probability 0 that is 16.1. It is a number of the dtype of the loss, so that float16 has
        1e-7 too, and in float32 ``1 - 1e-7`` is 1 - 1.19e-7. With 0 nothing is clipped, and the
        loss is infinite where the target class has probability 0.
    axis : int, default -1
        The axis of the classes.

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
        For shapes, dtypes or options that do not fit, before anything is written. The message
        shows what was received.
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
    return _inputs(
        probs, target, weight, ignore_index, reduction, axis, label_smoothing, epsilon
    ).loss()


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
        As for `categorical_cross_entropy`, with the same errors.
    out : array, optional
        Memory for the gradient: shape and dtype of `probs`. It may be `probs` itself.

    Returns
    -------
    array
        Of the shape and dtype of `probs`: ``grad_loss * (sum(u * q) / s - u * q / p)``, in the
        terms of `categorical_cross_entropy`, where u is 1 for a class within the bounds of the clip
        or exactly on one of them, and 0 for a class that is clipped.

    Examples
    --------
    >>> import fastce
    >>> fastce.categorical_cross_entropy_backward(1.0, [[0.25, 0.75]], [0])
    array([[-3.,  1.]])
    """
    return _inputs(
        probs, target, weight, ignore_index, reduction, axis, label_smoothing, epsilon, out
    ).grad(grad_loss)


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
    """`categorical_cross_entropy` and its gradient with respect to the probabilities.

    Parameters
    ----------
    probs, target, weight, ignore_index, reduction, label_smoothing, epsilon, axis
        As for `categorical_cross_entropy`, with the same errors.
    out : array, optional
        Memory for the gradient: shape and dtype of `probs`. ``out=probs`` overwrites the
        probabilities, which allocates nothing.

    Returns
    -------
    loss, grad : scalar or array, and array
        As from `categorical_cross_entropy` and, for a `grad_loss` of 1,
        `categorical_cross_entropy_backward`.

    Examples
    --------
    >>> import fastce
    >>> loss, grad = fastce.categorical_cross_entropy_with_grad([[0.25, 0.75]], [0])
    >>> round(float(loss), 6), grad
    (1.386294, array([[-3.,  1.]]))
    """
    return _inputs(
        probs, target, weight, ignore_index, reduction, axis, label_smoothing, epsilon, out
    ).loss_and_grad()


def _inputs(
    probs: Any, target: Any, weight: Any, ignore_index: Any, reduction: str, axis: Any,
    label_smoothing: Any, epsilon: Any, out: Any = None,
) -> LossInputs:  # fmt: skip
    op = "categorical_cross_entropy"
    p = LossInputs(op, op, probs, ignore_index, reduction, axis, out, "probs")
    if not 0.0 <= host.number(epsilon, "epsilon") < 0.5:
        raise ValueError(f"epsilon must be at least 0 and less than 0.5, got {epsilon!r}")
    p.options["epsilon"] = float(epsilon)
    p.options["label_smoothing"] = check_smoothing(label_smoothing)
    p.take_target(target, weight)
    return p
