"""Cross-entropy of logits, and the negative log-likelihood of log-probabilities."""

from __future__ import annotations  # help() then says ArrayLike, not what that stands for

from typing import Any, Literal

from numpy.typing import ArrayLike

from ._inputs import host
from ._inputs.loss import LossInputs, check_smoothing, check_z_loss

Reduction = Literal["none", "mean", "sum"]


def cross_entropy(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    axis: int = -1,
    return_lse: bool = False,
) -> Any:
    """Cross-entropy between logits and target classes, in nats.

    For a row with logits x, ``p = softmax(x)``, ``lse = logsumexp(x)`` and C classes, the loss
    is ``-sum(q * log(p)) + z_loss * lse**2``, where q is made of the target, the label
    smoothing s and the class weights w:

    - class index y: ``q[k] = (1 - s) * (k == y) * w[y] + s / C * w[k]``
    - probabilities t: ``q[k] = ((1 - s) * t[k] + s / C) * w[k]``

    Parameters
    ----------
    logits : array_like
        Unnormalised log-probabilities: float64, float32, float16 or bfloat16, any layout.
    target : array_like
        Class indices, of any integer dtype and of the shape of `logits` without `axis`; or
        probabilities, floating and of the shape of `logits`. Probabilities of another dtype than
        `logits` are converted once: to float64 beside float64, else to float32.
    weight : array_like, optional
        One weight per class, shape ``(C,)``.
    ignore_index : int, default -100
        Rows with this label are never read, add nothing to the loss, and have gradient 0.
    reduction : {"mean", "sum", "none"}
        The mean of class-index targets is the sum divided by the sum of ``w[y]`` over the rows
        that are not ignored; that of probabilities is divided by the number of rows.
    label_smoothing : float, default 0
        From 0 to 1: the share of the target that is spread evenly over the classes.
    z_loss : float, default 0
        Adds ``z_loss * lse**2`` to each row that is not ignored, which keeps lse near 0.
    axis : int, default -1
        The axis of the classes. (PyTorch has them on axis 1.)
    return_lse : bool, default False
        Also return the logsumexp of each row: NaN where ignored, since nothing is read there.

    Returns
    -------
    loss : scalar, or array of the shape of `logits` without `axis` for ``reduction="none"``
        float64 for float64 logits, else float32. The mean over no row at all is NaN.
    lse : array
        Only with ``return_lse=True``; of the same dtype.

    Raises
    ------
    IndexError
        For a label that is neither a class nor `ignore_index`. It names the first bad one. (On a
        GPU its row becomes NaN instead, see `set_validation`.)
    TypeError, ValueError
        For shapes, dtypes or options that do not fit, before anything is written. The message
        shows what was received.

    Notes
    -----
    Names, defaults and meaning are those of ``torch.nn.functional.cross_entropy``, except for
    `axis`, and that a class with ``q == 0`` adds exactly 0 even where its logit is ``-inf``
    (PyTorch gives NaN there for probability targets).

    References
    ----------
    Label smoothing: Szegedy et al., "Rethinking the Inception Architecture", 2016.
    z-loss: Chowdhery et al., "PaLM: Scaling Language Modeling with Pathways", 2022.

    Examples
    --------
    >>> import numpy as np, fastce
    >>> logits = np.log([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]])
    >>> round(float(fastce.cross_entropy(logits, [0, 1])), 6)  # -(log 0.5 + log 0.8) / 2
    0.458145
    """
    p = _inputs(logits, target, weight, ignore_index, reduction, label_smoothing, z_loss, axis)
    loss, result = p.new_loss()
    lse, lse_result = p.new_losses() if return_lse else (None, None)
    p.run("", *p.inputs, loss, lse)
    result = host.like(logits, result)
    return (result, host.like(logits, lse_result)) if return_lse else result


def cross_entropy_backward(
    grad_loss: ArrayLike,
    logits: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    axis: int = -1,
    lse: ArrayLike | None = None,
    out: Any = None,
) -> Any:
    """Gradient of `cross_entropy` with respect to the logits.

    Parameters
    ----------
    grad_loss : array_like
        Gradient with respect to the loss: a scalar, or for ``reduction="none"`` one per row.
    logits, target, weight, ignore_index, reduction, label_smoothing, z_loss, axis
        As for `cross_entropy`, with the same errors.
    lse : array_like, optional
        What ``cross_entropy(..., return_lse=True)`` returned. Its shape is checked, its values are
        not used: rounded to one number it would cost digits, and save no pass over the row.
    out : array, optional
        Memory for the gradient: shape and dtype of `logits`. It may be `logits` itself.

    Returns
    -------
    array
        Of the shape and dtype of `logits`:
        ``grad_loss * ((sum(q) + 2 * z_loss * lse) * softmax(x) - q)``, in the terms of
        `cross_entropy`.

    Examples
    --------
    >>> import fastce
    >>> fastce.cross_entropy_backward(1.0, [[0.0, 0.0]], [0])
    array([[-0.5,  0.5]])
    """
    p = _inputs(logits, target, weight, ignore_index, reduction, label_smoothing, z_loss, axis, out)
    if lse is not None:
        p.per_loss(p.memory.floating(lse, "lse", p.first), "lse")
    return p.grad(grad_loss)


def cross_entropy_with_grad(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    axis: int = -1,
    out: Any = None,
) -> tuple[Any, Any]:
    """`cross_entropy` and its gradient with respect to the logits, in a single pass.

    Parameters
    ----------
    logits, target, weight, ignore_index, reduction, label_smoothing, z_loss, axis
        As for `cross_entropy`, with the same errors.
    out : array, optional
        Memory for the gradient: shape and dtype of `logits`. ``out=logits`` overwrites the
        logits, which is fastest and allocates nothing.

    Returns
    -------
    loss, grad : scalar or array, and array
        As from `cross_entropy` and, for a `grad_loss` of 1, `cross_entropy_backward`.

    Examples
    --------
    >>> import fastce
    >>> loss, grad = fastce.cross_entropy_with_grad([[0.0, 0.0]], [0])
    >>> round(float(loss), 6), grad
    (0.693147, array([[-0.5,  0.5]]))
    """
    return _inputs(
        logits, target, weight, ignore_index, reduction, label_smoothing, z_loss, axis, out
    ).loss_and_grad()


def nll_loss(
    log_probs: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    axis: int = -1,
) -> Any:
    """Negative log-likelihood of the target classes, from log-probabilities, in nats.

    Parameters
    ----------
    log_probs : array_like
        What `log_softmax` gives: float64, float32, float16 or bfloat16.
    target : array_like of int
        Class indices, of the shape of `log_probs` without `axis`.
    weight, ignore_index, reduction, axis
        As for `cross_entropy`.

    Returns
    -------
    scalar, or array of the shape of `target` for ``reduction="none"``
        ``-weight[y] * log_probs[y]`` of each row, reduced.

    Raises
    ------
    IndexError, TypeError, ValueError
        As `cross_entropy`.

    Examples
    --------
    >>> import numpy as np, fastce
    >>> round(float(fastce.nll_loss(np.log([[0.25, 0.75]]), [1])), 6)
    0.287682
    """
    return _nll_inputs(log_probs, target, weight, ignore_index, reduction, axis).loss()


def nll_loss_backward(
    grad_loss: ArrayLike,
    log_probs: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    axis: int = -1,
    out: Any = None,
) -> Any:
    """Gradient of `nll_loss` with respect to the log-probabilities.

    Parameters
    ----------
    grad_loss : array_like
        Gradient with respect to the loss: a scalar, or for ``reduction="none"`` one per row.
    log_probs, target, weight, ignore_index, reduction, axis
        As for `nll_loss`, with the same errors. Only the shape and dtype of `log_probs` are used.
    out : array, optional
        Memory for the gradient: shape and dtype of `log_probs`. It may be `log_probs` itself.

    Returns
    -------
    array
        ``-grad_loss * weight[y]`` at the target class of each row, and 0 elsewhere.

    Examples
    --------
    >>> import fastce
    >>> fastce.nll_loss_backward(1.0, [[-0.7, -0.7]], [0])
    array([[-1.,  0.]])
    """
    p = _nll_inputs(log_probs, target, weight, ignore_index, reduction, axis, out)
    upstream = p.grad_loss(grad_loss)
    grad, result = p.new_grad()
    p.run("_backward", upstream, p.target, p.weight, grad)
    return host.like(log_probs, result) if out is None else out


def _inputs(
    logits: Any, target: Any, weight: Any, ignore_index: Any, reduction: str, label_smoothing: Any,
    z_loss: Any, axis: Any, out: Any = None,
) -> LossInputs:  # fmt: skip
    p = LossInputs("cross_entropy", "cross_entropy", logits, ignore_index, reduction, axis, out)
    p.options["label_smoothing"] = check_smoothing(label_smoothing)
    p.options["z_loss"] = check_z_loss(z_loss)
    p.take_target(target, weight)
    return p


def _nll_inputs(
    log_probs: Any, target: Any, weight: Any, ignore_index: Any, reduction: str, axis: Any,
    out: Any = None,
) -> LossInputs:  # fmt: skip
    p = LossInputs(
        "cross_entropy", "nll_loss", log_probs, ignore_index, reduction, axis, out, "log_probs"
    )
    p.take_labels(target, weight, "nll_loss")
    return p
