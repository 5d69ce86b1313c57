"""Binary cross-entropy, of probabilities and of logits."""

from __future__ import annotations  # help() then says ArrayLike, not what that stands for

from typing import Any

from numpy.typing import ArrayLike

from ._inputs.elementwise import ElementInputs, ProbabilityInputs
from ._inputs.loss import check_smoothing
from .cross_entropy import Reduction


def binary_cross_entropy(
    probs: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Any:
    """Binary cross-entropy between probabilities and targets, in nats.

    For an element with probability p, target t and weight w the loss is
    ``-w * (t * log(p) + (1 - t) * log(1 - p))``, where neither logarithm counts as less than -100.
    If you have the logits, `binary_cross_entropy_with_logits` is faster and more exact.

    Parameters
    ----------
    probs : array_like
        Probabilities from 0 to 1: float64, float32, float16 or bfloat16, any shape and layout.
    target : array_like
        Target probabilities, of the shape of `probs`: floating, or 0 and 1 (False and True) of
        any integer or boolean dtype. A floating one not of the dtype of `probs` is converted
        once: to float64 beside float64, else to float32.
        That they are from 0 to 1 is not checked: the loss is linear in them.
    weight : array_like, optional
        A weight for each element: of any shape that broadcasts to that of `probs`.
    reduction : {"mean", "sum", "none"}
        The mean divides by the number of elements, whatever their weights.

    Returns
    -------
    scalar, or array of the shape of `probs` for ``reduction="none"``
        float64 for float64 probabilities, else float32. The mean over no element is NaN.

    Raises
    ------
    ValueError
        For a number that is no probability. It names the first one. (On a GPU its loss becomes NaN
        instead, see `set_validation`.) NaN is let through.
    TypeError, ValueError
        For shapes, dtypes or options that do not fit, before anything is written. The message
        shows what was received.

    Notes
    -----
    Names, defaults and meaning are those of ``torch.nn.functional.binary_cross_entropy``.

    Examples
    --------
    >>> import fastce
    >>> round(float(fastce.binary_cross_entropy([0.5, 0.8], [0, 1])), 6)  # -(log 0.5 + log 0.8) / 2
    0.458145
    """
    return _probabilities(probs, target, weight, reduction).loss()


def binary_cross_entropy_backward(
    grad_loss: ArrayLike,
    probs: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    reduction: Reduction = "mean",
    out: Any = None,
) -> Any:
    """Gradient of `binary_cross_entropy` with respect to the probabilities.

    Parameters
    ----------
    grad_loss : array_like
        Gradient with respect to the loss: a scalar, or for ``reduction="none"`` one per element.
    probs, target, weight, reduction
        As for `binary_cross_entropy`, with the same errors.
    out : array, optional
        Memory for the gradient: shape and dtype of `probs`. It may be `probs` itself.

    Returns
    -------
    array
        Of the shape and dtype of `probs`: ``grad_loss * w * (p - t) / max(p * (1 - p), 1e-12)``.
        It knows nothing of the bound of the logarithms, as in PyTorch.

    Examples
    --------
    >>> import fastce
    >>> fastce.binary_cross_entropy_backward(1.0, [0.5, 0.75], [0, 1], reduction="sum")
    array([ 2.        , -1.33333333])
    """
    return _probabilities(probs, target, weight, reduction, out).grad(grad_loss)


def binary_cross_entropy_with_grad(
    probs: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    reduction: Reduction = "mean",
    out: Any = None,
) -> tuple[Any, Any]:
    """`binary_cross_entropy` and its gradient, in a single pass.

    Parameters
    ----------
    probs, target, weight, reduction
        As for `binary_cross_entropy`, with the same errors.
    out : array, optional
        Memory for the gradient: shape and dtype of `probs`. It may be `probs` itself.

    Returns
    -------
    loss, grad : scalar or array, and array
        As from `binary_cross_entropy` and, for a `grad_loss` of 1, `binary_cross_entropy_backward`.

    Examples
    --------
    >>> import fastce
    >>> loss, grad = fastce.binary_cross_entropy_with_grad([0.5, 0.5], [0, 1])
    >>> round(float(loss), 6), grad
    (0.693147, array([ 1., -1.]))
    """
    return _probabilities(probs, target, weight, reduction, out).loss_and_grad()


def binary_cross_entropy_with_logits(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    pos_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
) -> Any:
    """Binary cross-entropy between logits and targets, in nats.

    For an element with logit x, target t, weight w and positive weight v, and for the label
    smoothing s, which makes ``t' = t * (1 - s) + s / 2`` of a target, the loss is
    ``w * (v * t' * softplus(-x) + (1 - t') * softplus(x))`` with ``softplus(x) = log(1 + exp(x))``.
    That is `binary_cross_entropy` of ``sigmoid(x)``, exact for logits of any size.

    Parameters
    ----------
    logits : array_like
        Log-odds: float64, float32, float16 or bfloat16, any shape and layout.
    target : array_like
        Target probabilities, of the shape of `logits`: floating, or 0 and 1 (False and True) of
        any integer or boolean dtype. A floating one not of the dtype of `logits` is converted
        once: to float64 beside float64, else to float32.
        That they are from 0 to 1 is not checked: the loss is linear in them.
    weight : array_like, optional
        A weight for each element: of any shape that broadcasts to that of `logits`.
    pos_weight : array_like, optional
        What positive targets count, against 1 for negative ones: as `weight`. One number for each
        label of rows of labels, often negatives / positives.
    label_smoothing : float, default 0
        From 0 to 1: how far targets are moved towards 1/2.
    reduction : {"mean", "sum", "none"}
        The mean divides by the number of elements, whatever their weights.

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
    Names, defaults and meaning are those of
    ``torch.nn.functional.binary_cross_entropy_with_logits``, except that a term whose factor is 0
    adds exactly 0 even where its logit is infinite (PyTorch gives NaN). Label smoothing is that of
    Keras.

    References
    ----------
    Label smoothing: Szegedy et al., "Rethinking the Inception Architecture", 2016.

    Examples
    --------
    >>> import numpy as np, fastce
    >>> logits = np.log([1.0, 4.0])  # of probabilities 0.5 and 0.8
    >>> round(float(fastce.binary_cross_entropy_with_logits(logits, [0, 1])), 6)
    0.458145
    """
    return _logits(logits, target, weight, pos_weight, label_smoothing, reduction).loss()


def binary_cross_entropy_with_logits_backward(
    grad_loss: ArrayLike,
    logits: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    pos_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    out: Any = None,
) -> Any:
    """Gradient of `binary_cross_entropy_with_logits` with respect to the logits.

    Parameters
    ----------
    grad_loss : array_like
        Gradient with respect to the loss: a scalar, or for ``reduction="none"`` one per element.
    logits, target, weight, pos_weight, label_smoothing, reduction
        As for `binary_cross_entropy_with_logits`, with the same errors.
    out : array, optional
        Memory for the gradient: shape and dtype of `logits`. It may be `logits` itself.

    Returns
    -------
    array
        Of the shape and dtype of `logits`:
        ``grad_loss * w * ((1 - t') * sigmoid(x) - v * t' * sigmoid(-x))``, in the terms of
        `binary_cross_entropy_with_logits`. Without weights that is ``sigmoid(x) - t'``.

    Examples
    --------
    >>> import fastce
    >>> fastce.binary_cross_entropy_with_logits_backward(1.0, [0.0, 0.0], [0, 1])
    array([ 0.25, -0.25])
    """
    return _logits(logits, target, weight, pos_weight, label_smoothing, reduction, out).grad(
        grad_loss
    )


def binary_cross_entropy_with_logits_with_grad(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    pos_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    out: Any = None,
) -> tuple[Any, Any]:
    """`binary_cross_entropy_with_logits` and its gradient, in a single pass.

    Parameters
    ----------
    logits, target, weight, pos_weight, label_smoothing, reduction
        As for `binary_cross_entropy_with_logits`, with the same errors.
    out : array, optional
        Memory for the gradient: shape and dtype of `logits`. ``out=logits`` overwrites the
        logits, which is fastest and allocates nothing.

    Returns
    -------
    loss, grad : scalar or array, and array
        As from `binary_cross_entropy_with_logits` and, for a `grad_loss` of 1,
        `binary_cross_entropy_with_logits_backward`.

    Examples
    --------
    >>> import fastce
    >>> loss, grad = fastce.binary_cross_entropy_with_logits_with_grad([0.0, 0.0], [0, 1])
    >>> round(float(loss), 6), grad
    (0.693147, array([ 0.25, -0.25]))
    """
    return _logits(
        logits, target, weight, pos_weight, label_smoothing, reduction, out
    ).loss_and_grad()


def _probabilities(
    probs: Any, target: Any, weight: Any, reduction: str, out: Any = None
) -> ProbabilityInputs:
    weights = {"weight": weight}
    op = "binary_cross_entropy"
    return ProbabilityInputs(op, "probs", probs, target, weights, reduction, out)


def _logits(
    logits: Any, target: Any, weight: Any, pos_weight: Any, label_smoothing: Any, reduction: str,
    out: Any = None,
) -> ElementInputs:  # fmt: skip
    smoothing = check_smoothing(label_smoothing)
    weights = {"weight": weight, "pos_weight": pos_weight}
    op = "binary_cross_entropy_with_logits"
    p = ElementInputs(op, "logits", logits, target, weights, reduction, out)
    p.options["label_smoothing"] = smoothing
    return p
