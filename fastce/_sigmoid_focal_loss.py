"""The focal loss of single logits: see `robust_losses.py`."""

from __future__ import annotations  # help() then says ArrayLike, not what that stands for

from typing import Any

from numpy.typing import ArrayLike

from ._curves import number_of
from ._inputs import host
from ._inputs.elementwise import element_inputs
from .cross_entropy import Reduction


def _inputs(
    logits: Any, target: Any, gamma: Any, alpha: Any, reduction: str, out: Any = None
) -> tuple[Any, dict[str, float]]:
    """The arguments in canonical form, and the options of the kernels."""
    options = {"gamma": number_of(gamma, "gamma", 0), "positive": 1.0, "negative": 1.0}
    if alpha is not None:
        balance = number_of(alpha, "alpha", 0, 1)
        options |= {"positive": balance, "negative": 1 - balance}
    p = element_inputs("binary_cross_entropy", "logits", logits, target, {}, reduction, out)
    return p, p.options | options


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
    logits : array_like
        Log-odds: float64, float32, float16 or bfloat16, any shape and layout.
    target : array_like
        The wanted probabilities, of the shape of `logits`: floating, or 0 and 1 (False and True) of
        any integer or boolean dtype. A floating one not of the dtype of `logits` is converted
        once: to float64 beside float64, else to float32.
        That they are from 0 to 1 is not checked; elsewhere the loss means nothing, and may be NaN.
    gamma : float, default 2
        At least 0; 0 is binary cross-entropy with the balance `alpha`. 0, 1 and 2 are fastest.
    alpha : float or None, default 0.25
        From 0 to 1: what targets of 1 count, where those of 0 count ``1 - alpha``. None is no
        balance: both count 1.
    reduction : {"mean", "sum", "none"}
        The mean divides by the number of elements.

    Returns
    -------
    scalar, or array of the shape of `logits` for ``reduction="none"``
        float64 for float64 logits, else float32. The mean over no element is NaN.

    Raises
    ------
    TypeError, ValueError
        For shapes, dtypes or options that do not fit. The message shows what was received.

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
    p, options = _inputs(logits, target, gamma, alpha, reduction)
    losses, loss = p.new_loss()
    p.kernel("sigmoid_focal_loss")(p.x, p.target, losses, **options)
    return host.like(logits, loss)


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
    """Gradient of `sigmoid_focal_loss` with respect to the logits.

    Parameters
    ----------
    grad_loss : array_like
        Gradient with respect to the loss: a scalar, or for ``reduction="none"`` one per element.
    logits, target, gamma, alpha, reduction
        As given to `sigmoid_focal_loss`.
    out : array, optional
        Where to put the gradient: shape and dtype of `logits`. It may be `logits` itself.

    Returns
    -------
    array
        Of the shape and dtype of `logits`: `grad_loss` times
        ``alpha_t * (u**gamma * (p - t) + gamma * u**(gamma - 1) * bce * v)`` with ``u = 1 - p_t``,
        ``v = (1 - 2 * t) * p * (1 - p)`` and the terms of `sigmoid_focal_loss`. It is 0 where u is
        0, except for a gamma of 0.

    Raises
    ------
    TypeError, ValueError
        As `sigmoid_focal_loss`; nothing is written then.

    Examples
    --------
    >>> import fastce
    >>> fastce.sigmoid_focal_loss_backward(1.0, [0.0, 0.0], [0, 1], reduction="sum").round(6)
    array([ 0.223715, -0.074572])
    """
    p, options = _inputs(logits, target, gamma, alpha, reduction, out)
    upstream = p.grad_loss(grad_loss)
    slopes, grad = p.new_grad()
    p.kernel("sigmoid_focal_loss_backward")(upstream, p.x, p.target, slopes, **options)
    return host.like(logits, grad) if out is None else out


def sigmoid_focal_loss_with_grad(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    gamma: float = 2.0,
    alpha: float | None = 0.25,
    reduction: Reduction = "mean",
    out: Any = None,
) -> tuple[Any, Any]:
    """`sigmoid_focal_loss` and its gradient, in one trip through memory.

    Parameters
    ----------
    logits, target, gamma, alpha, reduction
        As for `sigmoid_focal_loss`.
    out : array, optional
        Where to put the gradient: shape and dtype of `logits`. ``out=logits`` overwrites the
        logits, which is the fastest and needs no memory.

    Returns
    -------
    loss : scalar or array
        As `sigmoid_focal_loss` returns it.
    grad : array
        Of the shape and dtype of `logits`. For ``reduction="none"``, the gradient of each element's
        own loss.

    Raises
    ------
    TypeError, ValueError
        As `sigmoid_focal_loss`; nothing is written then.

    Examples
    --------
    >>> import fastce
    >>> loss, grad = fastce.sigmoid_focal_loss_with_grad([0.0, 0.0], [0, 1], reduction="sum")
    >>> round(float(loss), 6), grad.round(6)
    (0.173287, array([ 0.223715, -0.074572]))
    """
    p, options = _inputs(logits, target, gamma, alpha, reduction, out)
    losses, loss = p.new_loss()
    slopes, grad = p.new_grad()
    p.kernel("sigmoid_focal_loss_with_grad")(p.x, p.target, losses, slopes, **options)
    return host.like(logits, loss), host.like(logits, grad) if out is None else out
