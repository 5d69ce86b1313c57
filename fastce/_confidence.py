"""Cross-entropy that is changed by how sure the prediction is: see `robust_losses.py`."""

from __future__ import annotations  # help() then says ArrayLike, not what that stands for

from typing import Any

from numpy.typing import ArrayLike

from ._curves import Curve, grad_of, loss_and_grad_of, loss_of, number_of
from ._inputs.loss import loss_inputs
from .cross_entropy import Reduction


def _poly(epsilon: Any) -> Curve:
    return Curve(epsilon=number_of(epsilon, "epsilon", -1))


def poly_cross_entropy(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    epsilon: float = 1.0,
    weight: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    axis: int = -1,
) -> Any:
    """Cross-entropy with another first coefficient of its polynomial in 1 - p (Poly-1).

    For a row of class y with ``p = softmax(logits)`` it is
    ``w[y] * (-log(p[y]) + epsilon * (1 - p[y]))``.

    Parameters
    ----------
    logits : array_like
        Unnormalised log-probabilities: float64, float32, float16 or bfloat16, any layout.
    target : array_like of int
        Class indices, of any integer dtype and of the shape of `logits` without `axis`.
    epsilon : float, default 1
        At least -1; 0 is cross-entropy.
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
    Leng et al., "PolyLoss: A Polynomial Expansion Perspective of Classification Loss Functions",
    2022.

    Examples
    --------
    >>> import fastce
    >>> round(float(fastce.poly_cross_entropy([[0.0, 0.0]], [0])), 6)
    1.193147
    """
    curve = _poly(epsilon)
    p = loss_inputs(
        logits, target, weight, ignore_index, reduction, axis, labels_of="poly_cross_entropy"
    )
    return loss_of(p, curve, logits)


def poly_cross_entropy_backward(
    grad_loss: ArrayLike,
    logits: ArrayLike,
    target: ArrayLike,
    *,
    epsilon: float = 1.0,
    weight: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    axis: int = -1,
    out: Any = None,
) -> Any:
    """Gradient of `poly_cross_entropy` with respect to the logits.

    Parameters
    ----------
    grad_loss : array_like
        Gradient with respect to the loss: a scalar, or for ``reduction="none"`` one per row.
    logits, target, epsilon, weight, ignore_index, reduction, axis
        As given to `poly_cross_entropy`.
    out : array, optional
        Where to put the gradient: shape and dtype of `logits`. It may be `logits` itself.

    Returns
    -------
    array
        Of the shape and dtype of `logits`: `grad_loss` times
        ``w[y] * (1 + epsilon * p[y]) * (p - onehot(y))``.

    Raises
    ------
    IndexError, TypeError, ValueError
        As `poly_cross_entropy`; nothing is written then.

    Examples
    --------
    >>> import fastce
    >>> fastce.poly_cross_entropy_backward(1.0, [[0.0, 0.0]], [0]).round(6)
    array([[-0.75,  0.75]])
    """
    curve = _poly(epsilon)
    p = loss_inputs(
        logits, target, weight, ignore_index, reduction, axis, out, labels_of="poly_cross_entropy"
    )
    return grad_of(p, curve, grad_loss, logits, out)


def poly_cross_entropy_with_grad(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    epsilon: float = 1.0,
    weight: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    axis: int = -1,
    out: Any = None,
) -> tuple[Any, Any]:
    """`poly_cross_entropy` and its gradient for the logits, in one trip through memory.

    Parameters
    ----------
    logits, target, epsilon, weight, ignore_index, reduction, axis
        As for `poly_cross_entropy`.
    out : array, optional
        Where to put the gradient: shape and dtype of `logits`. ``out=logits`` overwrites the
        logits, which is the fastest and needs no memory.

    Returns
    -------
    loss : scalar or array
        As `poly_cross_entropy` returns it.
    grad : array
        Of the shape and dtype of `logits`. For ``reduction="none"``, the gradient of each
        row's own loss.

    Raises
    ------
    IndexError, TypeError, ValueError
        As `poly_cross_entropy`; nothing is written then.

    Examples
    --------
    >>> import fastce
    >>> loss, grad = fastce.poly_cross_entropy_with_grad([[0.0, 0.0]], [0])
    >>> round(float(loss), 6), grad.round(6)
    (1.193147, array([[-0.75,  0.75]]))
    """
    curve = _poly(epsilon)
    p = loss_inputs(
        logits, target, weight, ignore_index, reduction, axis, out, labels_of="poly_cross_entropy"
    )
    return loss_and_grad_of(p, curve, logits, out)


def _penalty(beta: Any) -> Curve:
    return Curve(beta=number_of(beta, "beta"))


def confidence_penalty(
    logits: ArrayLike,
    target: ArrayLike | None = None,
    *,
    beta: float = 0.1,
    weight: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    axis: int = -1,
) -> Any:
    """Negative entropy of the prediction, beside cross-entropy where a target is given.

    For a row with ``p = softmax(logits)`` and entropy ``H = -sum(p * log(p))`` it is
    ``-beta * H``, plus ``-w[y] * log(p[y])`` for class y.

    Parameters
    ----------
    logits : array_like
        Unnormalised log-probabilities: float64, float32, float16 or bfloat16, any layout.
    target : array_like of int, optional
        Class indices, of any integer dtype and of the shape of `logits` without `axis`. Without
        them it is the entropy alone, of every row.
    beta : float, default 0.1
        How much to punish confidence; a negative one rewards it.
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

    Notes
    -----
    The entropy has no weight; a mean divides it by what it divides the cross-entropy by.

    References
    ----------
    Pereyra et al., "Regularizing Neural Networks by Penalizing Confident Output Distributions",
    2017.

    Examples
    --------
    >>> import fastce
    >>> round(float(fastce.confidence_penalty([[0.0, 0.0]], [0], beta=0.5)), 6)
    0.346574
    """
    curve = _penalty(beta)
    p = loss_inputs(
        logits,
        target,
        weight,
        ignore_index,
        reduction,
        axis,
        labels_of="confidence_penalty",
        optional=True,
    )
    return loss_of(p, curve, logits)


def confidence_penalty_backward(
    grad_loss: ArrayLike,
    logits: ArrayLike,
    target: ArrayLike | None = None,
    *,
    beta: float = 0.1,
    weight: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    axis: int = -1,
    out: Any = None,
) -> Any:
    """Gradient of `confidence_penalty` with respect to the logits.

    Parameters
    ----------
    grad_loss : array_like
        Gradient with respect to the loss: a scalar, or for ``reduction="none"`` one per row.
    logits, target, beta, weight, ignore_index, reduction, axis
        As given to `confidence_penalty`.
    out : array, optional
        Where to put the gradient: shape and dtype of `logits`. It may be `logits` itself.

    Returns
    -------
    array
        Of the shape and dtype of `logits`: `grad_loss` times
        ``beta * p * (log(p) + H)``, plus ``w[y] * (p - onehot(y))``.

    Raises
    ------
    IndexError, TypeError, ValueError
        As `confidence_penalty`; nothing is written then.

    Examples
    --------
    >>> import fastce
    >>> fastce.confidence_penalty_backward(1.0, [[0.0, 0.0]], [0], beta=0.5).round(6)
    array([[-0.5,  0.5]])
    """
    curve = _penalty(beta)
    p = loss_inputs(
        logits,
        target,
        weight,
        ignore_index,
        reduction,
        axis,
        out,
        labels_of="confidence_penalty",
        optional=True,
    )
    return grad_of(p, curve, grad_loss, logits, out)


def confidence_penalty_with_grad(
    logits: ArrayLike,
    target: ArrayLike | None = None,
    *,
    beta: float = 0.1,
    weight: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    axis: int = -1,
    out: Any = None,
) -> tuple[Any, Any]:
    """`confidence_penalty` and its gradient for the logits, in one trip through memory.

    Parameters
    ----------
    logits, target, beta, weight, ignore_index, reduction, axis
        As for `confidence_penalty`.
    out : array, optional
        Where to put the gradient: shape and dtype of `logits`. ``out=logits`` overwrites the
        logits, which is the fastest and needs no memory.

    Returns
    -------
    loss : scalar or array
        As `confidence_penalty` returns it.
    grad : array
        Of the shape and dtype of `logits`. For ``reduction="none"``, the gradient of each
        row's own loss.

    Raises
    ------
    IndexError, TypeError, ValueError
        As `confidence_penalty`; nothing is written then.

    Examples
    --------
    >>> import fastce
    >>> loss, grad = fastce.confidence_penalty_with_grad([[0.0, 0.0]], [0], beta=0.5)
    >>> round(float(loss), 6), grad.round(6)
    (0.346574, array([[-0.5,  0.5]]))
    """
    curve = _penalty(beta)
    p = loss_inputs(
        logits,
        target,
        weight,
        ignore_index,
        reduction,
        axis,
        out,
        labels_of="confidence_penalty",
        optional=True,
    )
    return loss_and_grad_of(p, curve, logits, out)
