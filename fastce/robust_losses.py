"""Losses for noisy labels and rare classes, from logits, each in a single pass.

Each is a function of the probability of the row's class, so its gradient is that of cross-entropy
times one number per row; the confidence penalty is the entropy of the row. The sigmoid focal loss
is of single logits: its kernels are in the files of binary cross-entropy.
"""

from __future__ import annotations  # help() then says ArrayLike, not what that stands for

from numbers import Real
from typing import Any, NamedTuple

from numpy.typing import ArrayLike

from ._inputs.elementwise import ElementInputs
from ._inputs.loss import LossInputs, check_number
from .cross_entropy import Reduction


class LossTransform(NamedTuple):
    """Loss of a row as a function of its probability: see `kernels/reference/robust_losses.py`."""

    alpha: float = 1.0
    gamma: float = 0.0
    q: float = 0.0
    epsilon: float = 0.0
    beta: float = 0.0


def _inputs(
    op: str, transform: LossTransform, logits: Any, target: Any, weight: Any, ignore_index: Any,
    reduction: str, axis: Any, out: Any = None,
) -> LossInputs:  # fmt: skip
    p = LossInputs("robust_losses", "robust_losses", logits, ignore_index, reduction, axis, out)
    p.options |= transform._asdict()
    if target is not None or op != "confidence_penalty":
        p.take_labels(target, weight, op)
    elif weight is not None:
        raise ValueError("weight has no meaning without a target")
    return p


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
    logits, target, ignore_index, reduction, axis
        As for `cross_entropy`, with the same errors, but `target` holds class indices only.
    gamma : float, default 2
        At least 0; 0 is cross-entropy.
    alpha : float or array_like, optional
        A factor for all classes, or one for each, of shape ``(C,)``. It does not enter the
        denominator of a mean, which is the number of rows that are not ignored.

    Returns
    -------
    scalar, or array of the shape of `logits` without `axis` for ``reduction="none"``
        float64 for float64 logits, else float32. The mean over no row at all is NaN.

    References
    ----------
    Lin et al., "Focal Loss for Dense Object Detection", 2017.

    Examples
    --------
    >>> import fastce
    >>> round(float(fastce.focal_loss([[0.0, 0.0]], [0])), 6)
    0.173287
    """
    return _focal(logits, target, gamma, alpha, ignore_index, reduction, axis).loss()


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
    """Gradient of `focal_loss` with respect to the logits, of their shape and dtype.

    It is `grad_loss` times ``alpha[y] * s * (p - onehot(y))`` with
    ``s = (1 - p[y])**gamma * (1 - gamma * p[y] * log(p[y]) / (1 - p[y]))``. `grad_loss` and `out`
    are as in `cross_entropy_backward`, all else as in `focal_loss`.

    Examples
    --------
    >>> import fastce
    >>> fastce.focal_loss_backward(1.0, [[0.0, 0.0]], [0]).round(6)
    array([[-0.298287,  0.298287]])
    """
    return _focal(logits, target, gamma, alpha, ignore_index, reduction, axis, out).grad(grad_loss)


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
    """`focal_loss` and its gradient, in a single pass.

    `out` and the results are as in `cross_entropy_with_grad`, all else as in `focal_loss`.

    Examples
    --------
    >>> import fastce
    >>> loss, grad = fastce.focal_loss_with_grad([[0.0, 0.0]], [0])
    >>> round(float(loss), 6), grad.round(6)
    (0.173287, array([[-0.298287,  0.298287]]))
    """
    return _focal(logits, target, gamma, alpha, ignore_index, reduction, axis, out).loss_and_grad()


def _focal(
    logits: Any, target: Any, gamma: Any, alpha: Any, ignore_index: Any, reduction: str, axis: Any,
    out: Any = None,
) -> LossInputs:  # fmt: skip
    number = alpha is None or isinstance(alpha, Real)
    transform = LossTransform(
        gamma=check_number(gamma, "gamma", 0),
        alpha=1.0 if alpha is None or not number else check_number(alpha, "alpha", 0),
    )
    p = _inputs("focal_loss", transform, logits, target, None, ignore_index, reduction, axis, out)
    if not number:
        p.weight = p.per_class(alpha, "alpha")
    return p


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
    The loss of a wrong label is at most ``1 / q``, and its gradient vanishes with p.

    Parameters
    ----------
    logits, target, weight, ignore_index, reduction, axis
        As for `cross_entropy`, with the same errors, but `target` holds class indices only.
    q : float, default 0.7
        From 0, which is cross-entropy, to 1, which is half of the mean absolute error.

    Returns
    -------
    scalar, or array of the shape of `logits` without `axis` for ``reduction="none"``
        float64 for float64 logits, else float32. The mean over no row at all is NaN.

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
    return _general(q, logits, target, weight, ignore_index, reduction, axis).loss()


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
    """Gradient of `generalized_cross_entropy` with respect to the logits, of their shape and dtype.

    It is `grad_loss` times ``w[y] * p[y]**q * (p - onehot(y))``. `grad_loss` and `out` are as in
    `cross_entropy_backward`, all else as in `generalized_cross_entropy`.

    Examples
    --------
    >>> import fastce
    >>> fastce.generalized_cross_entropy_backward(1.0, [[0.0, 0.0]], [0], q=1.0).round(6)
    array([[-0.25,  0.25]])
    """
    return _general(q, logits, target, weight, ignore_index, reduction, axis, out).grad(grad_loss)


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
    """`generalized_cross_entropy` and its gradient, in a single pass.

    `out` and the results are as in `cross_entropy_with_grad`, all else as in
    `generalized_cross_entropy`.

    Examples
    --------
    >>> import fastce
    >>> loss, grad = fastce.generalized_cross_entropy_with_grad([[0.0, 0.0]], [0], q=1.0)
    >>> round(float(loss), 6), grad.round(6)
    (0.5, array([[-0.25,  0.25]]))
    """
    return _general(q, logits, target, weight, ignore_index, reduction, axis, out).loss_and_grad()


def _general(q: Any, *arguments: Any) -> LossInputs:
    transform = LossTransform(q=check_number(q, "q", 0, 1))
    return _inputs("generalized_cross_entropy", transform, *arguments)


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
    """Symmetric cross-entropy: cross-entropy plus that of the labels under the prediction.

    For a row of class y with ``p = softmax(logits)`` it is
    ``w[y] * (-alpha * log(p[y]) - beta * log_zero * (1 - p[y]))``.

    Parameters
    ----------
    logits, target, weight, ignore_index, reduction, axis
        As for `cross_entropy`, with the same errors, but `target` holds class indices only.
    alpha, beta : float, default 0.1 and 1
        Factors of the cross-entropy and of the reverse one; at least 0.
    log_zero : float, default -4
        Stands for log(0), at most 0, in the reverse cross-entropy ``-sum(p * log(onehot))``.

    Returns
    -------
    scalar, or array of the shape of `logits` without `axis` for ``reduction="none"``
        float64 for float64 logits, else float32. The mean over no row at all is NaN.

    References
    ----------
    Wang et al., "Symmetric Cross Entropy for Robust Learning with Noisy Labels", 2019.

    Examples
    --------
    >>> import fastce
    >>> round(float(fastce.symmetric_cross_entropy([[0.0, 0.0]], [0])), 6)
    2.069315
    """
    return _symmetric(
        alpha, beta, log_zero, logits, target, weight, ignore_index, reduction, axis
    ).loss()


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
    """Gradient of `symmetric_cross_entropy` with respect to the logits, of their shape and dtype.

    It is `grad_loss` times ``w[y] * (alpha - beta * log_zero * p[y]) * (p - onehot(y))``.
    `grad_loss` and `out` are as in `cross_entropy_backward`, all else as in
    `symmetric_cross_entropy`.

    Examples
    --------
    >>> import fastce
    >>> fastce.symmetric_cross_entropy_backward(1.0, [[0.0, 0.0]], [0]).round(6)
    array([[-1.05,  1.05]])
    """
    return _symmetric(
        alpha, beta, log_zero, logits, target, weight, ignore_index, reduction, axis, out
    ).grad(grad_loss)


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
    """`symmetric_cross_entropy` and its gradient, in a single pass.

    `out` and the results are as in `cross_entropy_with_grad`, all else as in
    `symmetric_cross_entropy`.

    Examples
    --------
    >>> import fastce
    >>> loss, grad = fastce.symmetric_cross_entropy_with_grad([[0.0, 0.0]], [0])
    >>> round(float(loss), 6), grad.round(6)
    (2.069315, array([[-1.05,  1.05]]))
    """
    return _symmetric(
        alpha, beta, log_zero, logits, target, weight, ignore_index, reduction, axis, out
    ).loss_and_grad()


def _symmetric(alpha: Any, beta: Any, log_zero: Any, *arguments: Any) -> LossInputs:
    alpha, beta = check_number(alpha, "alpha", 0), check_number(beta, "beta", 0)
    transform = LossTransform(alpha, epsilon=-beta * check_number(log_zero, "log_zero", most=0))
    return _inputs("symmetric_cross_entropy", transform, *arguments)


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
    logits, target, weight, ignore_index, reduction, axis
        As for `cross_entropy`, with the same errors, but `target` holds class indices only.
    epsilon : float, default 1
        At least -1; 0 is cross-entropy.

    Returns
    -------
    scalar, or array of the shape of `logits` without `axis` for ``reduction="none"``
        float64 for float64 logits, else float32. The mean over no row at all is NaN.

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
    return _poly(epsilon, logits, target, weight, ignore_index, reduction, axis).loss()


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
    """Gradient of `poly_cross_entropy` with respect to the logits, of their shape and dtype.

    It is `grad_loss` times ``w[y] * (1 + epsilon * p[y]) * (p - onehot(y))``. `grad_loss` and `out`
    are as in `cross_entropy_backward`, all else as in `poly_cross_entropy`.

    Examples
    --------
    >>> import fastce
    >>> fastce.poly_cross_entropy_backward(1.0, [[0.0, 0.0]], [0]).round(6)
    array([[-0.75,  0.75]])
    """
    return _poly(epsilon, logits, target, weight, ignore_index, reduction, axis, out).grad(
        grad_loss
    )


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
    """`poly_cross_entropy` and its gradient, in a single pass.

    `out` and the results are as in `cross_entropy_with_grad`, all else as in `poly_cross_entropy`.

    Examples
    --------
    >>> import fastce
    >>> loss, grad = fastce.poly_cross_entropy_with_grad([[0.0, 0.0]], [0])
    >>> round(float(loss), 6), grad.round(6)
    (1.193147, array([[-0.75,  0.75]]))
    """
    return _poly(
        epsilon, logits, target, weight, ignore_index, reduction, axis, out
    ).loss_and_grad()


def _poly(epsilon: Any, *arguments: Any) -> LossInputs:
    transform = LossTransform(epsilon=check_number(epsilon, "epsilon", -1))
    return _inputs("poly_cross_entropy", transform, *arguments)


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
    ``-beta * H``, plus ``-w[y] * log(p[y])`` for class y. The entropy has no weight; a mean divides
    it by the same number as the cross-entropy.

    Parameters
    ----------
    logits, target, weight, ignore_index, reduction, axis
        As for `cross_entropy`, with the same errors, but `target` holds class indices only.
        Without a target it is the entropy alone, of every row.
    beta : float, default 0.1
        Factor of the entropy; a negative one rewards confidence.

    Returns
    -------
    scalar, or array of the shape of `logits` without `axis` for ``reduction="none"``
        float64 for float64 logits, else float32. The mean over no row at all is NaN.

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
    return _penalty(beta, logits, target, weight, ignore_index, reduction, axis).loss()


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
    """Gradient of `confidence_penalty` with respect to the logits, of their shape and dtype.

    It is `grad_loss` times ``beta * p * (log(p) + H)``, plus ``w[y] * (p - onehot(y))``.
    `grad_loss` and `out` are as in `cross_entropy_backward`, all else as in `confidence_penalty`.

    Examples
    --------
    >>> import fastce
    >>> fastce.confidence_penalty_backward(1.0, [[0.0, 0.0]], [0], beta=0.5).round(6)
    array([[-0.5,  0.5]])
    """
    return _penalty(beta, logits, target, weight, ignore_index, reduction, axis, out).grad(
        grad_loss
    )


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
    """`confidence_penalty` and its gradient, in a single pass.

    `out` and the results are as in `cross_entropy_with_grad`, all else as in `confidence_penalty`.

    Examples
    --------
    >>> import fastce
    >>> loss, grad = fastce.confidence_penalty_with_grad([[0.0, 0.0]], [0], beta=0.5)
    >>> round(float(loss), 6), grad.round(6)
    (0.346574, array([[-0.5,  0.5]]))
    """
    return _penalty(
        beta, logits, target, weight, ignore_index, reduction, axis, out
    ).loss_and_grad()


def _penalty(beta: Any, *arguments: Any) -> LossInputs:
    return _inputs("confidence_penalty", LossTransform(beta=check_number(beta, "beta")), *arguments)


def sigmoid_focal_loss(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    gamma: float = 2.0,
    alpha: float | None = 0.25,
    reduction: Reduction = "mean",
) -> Any:
    """Focal loss of single logits, in nats: binary cross-entropy in which easy examples count less.

    For an element with ``p = sigmoid(logit)`` and target t it is
    ``alpha_t * (1 - p_t)**gamma * bce``, where ``p_t = p * t + (1 - p) * (1 - t)``,
    ``alpha_t = alpha * t + (1 - alpha) * (1 - t)``, and ``bce`` is
    `binary_cross_entropy_with_logits`. For classes that exclude each other there is `focal_loss`.

    Parameters
    ----------
    logits, target, reduction
        As for `binary_cross_entropy_with_logits`. That targets are from 0 to 1 is not checked;
        elsewhere the loss has no meaning, and may be NaN.
    gamma : float, default 2
        At least 0; 0 is binary cross-entropy with the balance `alpha`. 0, 1 and 2 are fastest.
    alpha : float or None, default 0.25
        From 0 to 1: the factor of targets of 1, where those of 0 have ``1 - alpha``. None is no
        balance: both have the factor 1.

    Returns
    -------
    scalar, or array of the shape of `logits` for ``reduction="none"``
        float64 for float64 logits, else float32. The mean over no element is NaN.

    Raises
    ------
    TypeError, ValueError
        For shapes, dtypes or options that do not fit, before anything is written. The message
        shows what was received.

    Notes
    -----
    Names, defaults and formula are those of ``torchvision.ops.sigmoid_focal_loss``, except that
    ``reduction`` is ``"mean"`` here and that no balance is None, not a negative `alpha`.

    References
    ----------
    Lin et al., "Focal Loss for Dense Object Detection", 2017.

    Examples
    --------
    >>> import fastce
    >>> loss = fastce.sigmoid_focal_loss([0.0, 0.0], [0, 1], reduction="none")
    >>> loss.round(6)  # log(2) / 4, times 0.75 and 0.25
    array([0.129965, 0.043322])
    """
    return _sigmoid_focal(logits, target, gamma, alpha, reduction).loss()


def sigmoid_focal_loss_backward(
    grad_loss: ArrayLike,
    logits: ArrayLike,
    target: ArrayLike,
    *,
    gamma: float = 2.0,
    alpha: float | None = 0.25,
    reduction: Reduction = "mean",
    out: Any = None,
) -> Any:
    """Gradient of `sigmoid_focal_loss` with respect to the logits, of their shape and dtype.

    It is `grad_loss` times ``alpha_t * (u**gamma * (p - t) + gamma * u**(gamma - 1) * bce * v)``
    with ``u = 1 - p_t``, ``v = (1 - 2 * t) * p * (1 - p)`` and the terms of `sigmoid_focal_loss`.
    It is 0 where u is 0, except for a gamma of 0. `grad_loss` and `out` are as in
    `binary_cross_entropy_with_logits_backward`, all else as in `sigmoid_focal_loss`.

    Examples
    --------
    >>> import fastce
    >>> fastce.sigmoid_focal_loss_backward(1.0, [0.0, 0.0], [0, 1], reduction="sum").round(6)
    array([ 0.223715, -0.074572])
    """
    return _sigmoid_focal(logits, target, gamma, alpha, reduction, out).grad(grad_loss)


def sigmoid_focal_loss_with_grad(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    gamma: float = 2.0,
    alpha: float | None = 0.25,
    reduction: Reduction = "mean",
    out: Any = None,
) -> tuple[Any, Any]:
    """`sigmoid_focal_loss` and its gradient, in a single pass.

    `out` and the results are as in `binary_cross_entropy_with_logits_with_grad`, all else as in
    `sigmoid_focal_loss`.

    Examples
    --------
    >>> import fastce
    >>> loss, grad = fastce.sigmoid_focal_loss_with_grad([0.0, 0.0], [0, 1], reduction="sum")
    >>> round(float(loss), 6), grad.round(6)
    (0.173287, array([ 0.223715, -0.074572]))
    """
    return _sigmoid_focal(logits, target, gamma, alpha, reduction, out).loss_and_grad()


def _sigmoid_focal(
    logits: Any, target: Any, gamma: Any, alpha: Any, reduction: str, out: Any = None
) -> ElementInputs:
    gamma = check_number(gamma, "gamma", 0)
    positive = 1.0 if alpha is None else check_number(alpha, "alpha", 0, 1)
    p = ElementInputs("sigmoid_focal_loss", "logits", logits, target, {}, reduction, out)
    negative = 1.0 if alpha is None else 1 - positive
    p.options |= {"gamma": gamma, "positive": positive, "negative": negative}
    return p
