"""Losses that forgive wrong labels: see `robust_losses.py`."""

from __future__ import annotations  # help() then says ArrayLike, not what that stands for

from typing import Any

from numpy.typing import ArrayLike

from ._curves import Curve, grad_of, loss_and_grad_of, loss_of, number_of
from ._inputs.loss import loss_inputs
from .cross_entropy import Reduction


def _generalized(q: Any) -> Curve:
    return Curve(q=number_of(q, "q", 0, 1))


def generalized_cross_entropy(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    q: float = 0.7,
    weight: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    axis: int = -1,
) -> Any:
    """Generalized cross-entropy: between cross-entropy and mean absolute error.

    For a row of class y with ``p = softmax(logits)`` it is ``w[y] * (1 - p[y]**q) / q``.
    A wrong label costs at most ``1 / q``, and its gradient vanishes with p.

    Parameters
    ----------
    logits : array_like
        Unnormalised log-probabilities: float64, float32, float16 or bfloat16, any layout.
    target : array_like of int
        Class indices, of any integer dtype and of the shape of `logits` without `axis`.
    q : float, default 0.7
        From 0, which is cross-entropy, to 1, which is half of the mean absolute error.
    weight : array_like, optional
        One weight w per class, shape ``(C,)``. The mean divides by the sum of ``w[y]``.
    ignore_index, reduction, axis
        As for `cross_entropy`.

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
    Zhang and Sabuncu, "Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy
    Labels", 2018.

    Examples
    --------
    >>> import fastce
    >>> round(float(fastce.generalized_cross_entropy([[0.0, 0.0]], [0], q=1.0)), 6)
    0.5
    """
    curve = _generalized(q)
    p = loss_inputs(
        logits, target, weight, ignore_index, reduction, axis, labels_of="generalized_cross_entropy"
    )
    return loss_of(p, curve, logits)


def generalized_cross_entropy_backward(
    grad_loss: ArrayLike,
    logits: ArrayLike,
    target: ArrayLike,
    *,
    q: float = 0.7,
    weight: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    axis: int = -1,
    out: Any = None,
) -> Any:
    """Gradient of `generalized_cross_entropy` with respect to the logits.

    Parameters
    ----------
    grad_loss : array_like
        Gradient with respect to the loss: a scalar, or for ``reduction="none"`` one per row.
    logits, target, q, weight, ignore_index, reduction, axis
        As given to `generalized_cross_entropy`.
    out : array, optional
        Where to put the gradient: shape and dtype of `logits`. It may be `logits` itself.

    Returns
    -------
    array
        Of the shape and dtype of `logits`: `grad_loss` times
        ``w[y] * p[y]**q * (p - onehot(y))``.

    Raises
    ------
    IndexError, TypeError, ValueError
        As `generalized_cross_entropy`; nothing is written then.

    Examples
    --------
    >>> import fastce
    >>> fastce.generalized_cross_entropy_backward(1.0, [[0.0, 0.0]], [0], q=1.0).round(6)
    array([[-0.25,  0.25]])
    """
    curve = _generalized(q)
    p = loss_inputs(
        logits,
        target,
        weight,
        ignore_index,
        reduction,
        axis,
        out,
        labels_of="generalized_cross_entropy",
    )
    return grad_of(p, curve, grad_loss, logits, out)


def generalized_cross_entropy_with_grad(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    q: float = 0.7,
    weight: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    axis: int = -1,
    out: Any = None,
) -> tuple[Any, Any]:
    """`generalized_cross_entropy` and its gradient for the logits, in one trip through memory.

    Parameters
    ----------
    logits, target, q, weight, ignore_index, reduction, axis
        As for `generalized_cross_entropy`.
    out : array, optional
        Where to put the gradient: shape and dtype of `logits`. ``out=logits`` overwrites the
        logits, which is the fastest and needs no memory.

    Returns
    -------
    loss : scalar or array
        As `generalized_cross_entropy` returns it.
    grad : array
        Of the shape and dtype of `logits`. For ``reduction="none"``, the gradient of each
        row's own loss.

    Raises
    ------
    IndexError, TypeError, ValueError
        As `generalized_cross_entropy`; nothing is written then.

    Examples
    --------
    >>> import fastce
    >>> loss, grad = fastce.generalized_cross_entropy_with_grad([[0.0, 0.0]], [0], q=1.0)
    >>> round(float(loss), 6), grad.round(6)
    (0.5, array([[-0.25,  0.25]]))
    """
    curve = _generalized(q)
    p = loss_inputs(
        logits,
        target,
        weight,
        ignore_index,
        reduction,
        axis,
        out,
        labels_of="generalized_cross_entropy",
    )
    return loss_and_grad_of(p, curve, logits, out)


def _symmetric(alpha: Any, beta: Any, log_zero: Any) -> Curve:
    alpha, beta = number_of(alpha, "alpha", 0), number_of(beta, "beta", 0)
    return Curve(alpha, epsilon=-beta * number_of(log_zero, "log_zero", most=0))


def symmetric_cross_entropy(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    alpha: float = 0.1,
    beta: float = 1.0,
    log_zero: float = -4.0,
    weight: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    axis: int = -1,
) -> Any:
    """Symmetric cross-entropy: cross-entropy, and that of the labels as the prediction sees them.

    For a row of class y with ``p = softmax(logits)`` it is
    ``w[y] * (-alpha * log(p[y]) - beta * log_zero * (1 - p[y]))``.

    Parameters
    ----------
    logits : array_like
        Unnormalised log-probabilities: float64, float32, float16 or bfloat16, any layout.
    target : array_like of int
        Class indices, of any integer dtype and of the shape of `logits` without `axis`.
    alpha, beta : float, default 0.1 and 1
        How much of the cross-entropy and of the reverse one; at least 0.
    log_zero : float, default -4
        What stands for log(0), at most 0, in the reverse cross-entropy ``-sum(p * log(onehot))``.
    weight : array_like, optional
        One weight w per class, shape ``(C,)``. The mean divides by the sum of ``w[y]``.
    ignore_index, reduction, axis
        As for `cross_entropy`.

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
    Wang et al., "Symmetric Cross Entropy for Robust Learning with Noisy Labels", 2019.

    Examples
    --------
    >>> import fastce
    >>> round(float(fastce.symmetric_cross_entropy([[0.0, 0.0]], [0])), 6)
    2.069315
    """
    curve = _symmetric(alpha, beta, log_zero)
    p = loss_inputs(
        logits, target, weight, ignore_index, reduction, axis, labels_of="symmetric_cross_entropy"
    )
    return loss_of(p, curve, logits)


def symmetric_cross_entropy_backward(
    grad_loss: ArrayLike,
    logits: ArrayLike,
    target: ArrayLike,
    *,
    alpha: float = 0.1,
    beta: float = 1.0,
    log_zero: float = -4.0,
    weight: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    axis: int = -1,
    out: Any = None,
) -> Any:
    """Gradient of `symmetric_cross_entropy` with respect to the logits.

    Parameters
    ----------
    grad_loss : array_like
        Gradient with respect to the loss: a scalar, or for ``reduction="none"`` one per row.
    logits, target, alpha, beta, log_zero, weight, ignore_index, reduction, axis
        As given to `symmetric_cross_entropy`.
    out : array, optional
        Where to put the gradient: shape and dtype of `logits`. It may be `logits` itself.

    Returns
    -------
    array
        Of the shape and dtype of `logits`: `grad_loss` times
        ``w[y] * (alpha - beta * log_zero * p[y]) * (p - onehot(y))``.

    Raises
    ------
    IndexError, TypeError, ValueError
        As `symmetric_cross_entropy`; nothing is written then.

    Examples
    --------
    >>> import fastce
    >>> fastce.symmetric_cross_entropy_backward(1.0, [[0.0, 0.0]], [0]).round(6)
    array([[-1.05,  1.05]])
    """
    curve = _symmetric(alpha, beta, log_zero)
    p = loss_inputs(
        logits,
        target,
        weight,
        ignore_index,
        reduction,
        axis,
        out,
        labels_of="symmetric_cross_entropy",
    )
    return grad_of(p, curve, grad_loss, logits, out)


def symmetric_cross_entropy_with_grad(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    alpha: float = 0.1,
    beta: float = 1.0,
    log_zero: float = -4.0,
    weight: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    axis: int = -1,
    out: Any = None,
) -> tuple[Any, Any]:
    """`symmetric_cross_entropy` and its gradient for the logits, in one trip through memory.

    Parameters
    ----------
    logits, target, alpha, beta, log_zero, weight, ignore_index, reduction, axis
        As for `symmetric_cross_entropy`.
    out : array, optional
        Where to put the gradient: shape and dtype of `logits`. ``out=logits`` overwrites the
        logits, which is the fastest and needs no memory.

    Returns
    -------
    loss : scalar or array
        As `symmetric_cross_entropy` returns it.
    grad : array
        Of the shape and dtype of `logits`. For ``reduction="none"``, the gradient of each
        row's own loss.

    Raises
    ------
    IndexError, TypeError, ValueError
        As `symmetric_cross_entropy`; nothing is written then.

    Examples
    --------
    >>> import fastce
    >>> loss, grad = fastce.symmetric_cross_entropy_with_grad([[0.0, 0.0]], [0])
    >>> round(float(loss), 6), grad.round(6)
    (2.069315, array([[-1.05,  1.05]]))
    """
    curve = _symmetric(alpha, beta, log_zero)
    p = loss_inputs(
        logits,
        target,
        weight,
        ignore_index,
        reduction,
        axis,
        out,
        labels_of="symmetric_cross_entropy",
    )
    return loss_and_grad_of(p, curve, logits, out)
