"""The focal loss of logits: see `robust_losses.py`."""

from __future__ import annotations  # help() then says ArrayLike, not what that stands for

from numbers import Real
from typing import Any

from numpy.typing import ArrayLike

from ._curves import Curve, grad_of, loss_and_grad_of, loss_of, number_of
from ._inputs.loss import loss_inputs
from .cross_entropy import Reduction


def _focal(gamma: Any, alpha: Any) -> tuple[Curve, Any]:
    """The curve, and one alpha per class."""
    gamma = number_of(gamma, "gamma", 0)
    if alpha is None:
        return Curve(gamma=gamma), None
    if isinstance(alpha, Real):
        return Curve(number_of(alpha, "alpha", 0), gamma), None
    return Curve(gamma=gamma), alpha


def focal_loss(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    gamma: float = 2.0,
    alpha: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    axis: int = -1,
) -> Any:
    """Focal loss of logits and class indices, in nats: easy examples count less.

    For a row of class y with ``p = softmax(logits)`` it is
    ``-alpha[y] * (1 - p[y])**gamma * log(p[y])``.

    Parameters
    ----------
    logits : array_like
        Unnormalised log-probabilities: float64, float32, float16 or bfloat16, any layout.
    target : array_like of int
        Class indices, of any integer dtype and of the shape of `logits` without `axis`.
    gamma : float, default 2
        At least 0; 0 is cross-entropy.
    alpha : float or array_like, optional
        A factor for all classes, or one for each, of shape ``(C,)``. It does not enter what a mean
        divides by.
    ignore_index, reduction, axis
        As for `cross_entropy`. The mean is over the rows that count.

    Returns
    -------
    scalar, or array of the shape of `logits` without `axis` for ``reduction="none"``
        float64 for float64 logits, else float32. The mean over no row at all is NaN.

    Raises
    ------
    IndexError, TypeError, ValueError
        As `cross_entropy`; TypeError for a target that is not of integers.

    References
    ----------
    Lin et al., "Focal Loss for Dense Object Detection", 2017.

    Examples
    --------
    >>> import fastce
    >>> round(float(fastce.focal_loss([[0.0, 0.0]], [0])), 6)
    0.173287
    """
    curve, each = _focal(gamma, alpha)
    p = loss_inputs(
        logits, target, None, ignore_index, reduction, axis, labels_of="focal_loss", alpha=each
    )
    return loss_of(p, curve, logits)


def focal_loss_backward(
    grad_loss: ArrayLike,
    logits: ArrayLike,
    target: ArrayLike,
    *,
    gamma: float = 2.0,
    alpha: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    axis: int = -1,
    out: Any = None,
) -> Any:
    """Gradient of `focal_loss` with respect to the logits.

    Parameters
    ----------
    grad_loss : array_like
        Gradient with respect to the loss: a scalar, or for ``reduction="none"`` one per row.
    logits, target, gamma, alpha, ignore_index, reduction, axis
        As given to `focal_loss`.
    out : array, optional
        Where to put the gradient: shape and dtype of `logits`. It may be `logits` itself.

    Returns
    -------
    array
        Of the shape and dtype of `logits`: `grad_loss` times
        ``alpha[y] * s * (p - onehot(y))``,
        ``s = (1 - p[y])**gamma * (1 - gamma * p[y] * log(p[y]) / (1 - p[y]))``.

    Raises
    ------
    IndexError, TypeError, ValueError
        As `focal_loss`; nothing is written then.

    Examples
    --------
    >>> import fastce
    >>> fastce.focal_loss_backward(1.0, [[0.0, 0.0]], [0]).round(6)
    array([[-0.298287,  0.298287]])
    """
    curve, each = _focal(gamma, alpha)
    p = loss_inputs(
        logits, target, None, ignore_index, reduction, axis, out, labels_of="focal_loss", alpha=each
    )
    return grad_of(p, curve, grad_loss, logits, out)


def focal_loss_with_grad(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    gamma: float = 2.0,
    alpha: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    axis: int = -1,
    out: Any = None,
) -> tuple[Any, Any]:
    """`focal_loss` and its gradient for the logits, in one trip through memory.

    Parameters
    ----------
    logits, target, gamma, alpha, ignore_index, reduction, axis
        As for `focal_loss`.
    out : array, optional
        Where to put the gradient: shape and dtype of `logits`. ``out=logits`` overwrites the
        logits, which is the fastest and needs no memory.

    Returns
    -------
    loss : scalar or array
        As `focal_loss` returns it.
    grad : array
        Of the shape and dtype of `logits`. For ``reduction="none"``, the gradient of each
        row's own loss.

    Raises
    ------
    IndexError, TypeError, ValueError
        As `focal_loss`; nothing is written then.

    Examples
    --------
    >>> import fastce
    >>> loss, grad = fastce.focal_loss_with_grad([[0.0, 0.0]], [0])
    >>> round(float(loss), 6), grad.round(6)
    (0.173287, array([[-0.298287,  0.298287]]))
    """
    curve, each = _focal(gamma, alpha)
    p = loss_inputs(
        logits, target, None, ignore_index, reduction, axis, out, labels_of="focal_loss", alpha=each
    )
    return loss_and_grad_of(p, curve, logits, out)
