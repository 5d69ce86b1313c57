"""Measures of softmax(logits), without forming the probabilities."""

from __future__ import annotations  # help() then says ArrayLike, not what that stands for

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .._inputs import host
from ._measure import alike, finished, floating, new_grad, of_one, of_two, run

_NAMES = "p_logits", "q_logits"


def entropy_from_logits(
    logits: ArrayLike, *, axis: int = -1, base: float | None = None, keepdims: bool = False
) -> Any:
    """Entropy of ``softmax(logits)``, without forming the probabilities.

    Parameters
    ----------
    logits : array_like
        float64, float32, float16 or bfloat16; integers are taken as float64. Any layout.
    axis, base, keepdims
        As for `entropy`.

    Returns
    -------
    array
        As `entropy` returns it. NaN where the logits are ``-inf`` throughout, or hold NaN or
        ``inf``.

    Raises
    ------
    TypeError, ValueError
        As `entropy`.

    Notes
    -----
    ``log1p(s) + sum(p * (max - logits))`` with ``s = sum(exp(logits - max)) - 1``: no term is
    negative, so where one logit dominates, the small entropy keeps its digits.

    Examples
    --------
    >>> import fastce
    >>> fastce.information.entropy_from_logits([0.0, 0.0], base=2)
    np.float64(1.0)
    >>> print(f"{fastce.information.entropy_from_logits([50, 0, 0, 0]):.3g}")
    2.95e-20
    """
    return of_one("entropy_from_logits", "logits", logits, axis, base, keepdims)


def entropy_from_logits_with_grad(
    logits: ArrayLike,
    *,
    axis: int = -1,
    base: float | None = None,
    keepdims: bool = False,
    out: Any = None,
) -> tuple[Any, Any]:
    """`entropy_from_logits` and its gradient with respect to the logits.

    Parameters
    ----------
    logits, axis, base, keepdims
        As for `entropy_from_logits`.
    out : array, optional
        Where to put the gradient: shape and dtype of `logits`. It may be `logits` itself.

    Returns
    -------
    entropy : array
        As `entropy_from_logits` returns it.
    grad : array
        Of the shape and dtype of `logits`: of each row's own entropy H, ``-p * (log(p) + H)``.
        For the gradient of a loss, multiply it by the gradient with respect to each entropy.

    Raises
    ------
    TypeError, ValueError
        As `entropy_from_logits`, and for an `out` that does not fit.

    Examples
    --------
    >>> import fastce
    >>> fastce.information.entropy_from_logits_with_grad([0.0, 0.0], base=2)
    (np.float64(1.0), array([0., 0.]))
    """
    name = "entropy_from_logits_with_grad"
    a, grad, layout = new_grad(floating(logits, "logits", name), axis, out, "logits")
    rows, result = host.row_out(layout, host.compute_dtype(a.dtype))
    run(name, base, host.rows_in(a, layout), rows, host.rows_out(grad, layout))
    result = finished(logits, result, layout, keepdims)
    return result, host.like(logits, grad) if out is None else out


def kl_divergence_from_logits(
    p_logits: ArrayLike,
    q_logits: ArrayLike,
    *,
    axis: int = -1,
    base: float | None = None,
    keepdims: bool = False,
) -> Any:
    """KL divergence of ``softmax(p_logits)`` from ``softmax(q_logits)``.

    Parameters
    ----------
    p_logits, q_logits : array_like
        As for `entropy_from_logits`; shapes and dtypes as for `cross_entropy`.
    axis, base, keepdims
        As for `entropy`.

    Returns
    -------
    array
        As `kl_divergence` returns it. NaN where either logits are ``-inf`` throughout, or hold
        NaN or ``inf``.

    Raises
    ------
    TypeError, ValueError
        As `cross_entropy`.

    Notes
    -----
    PyTorch's ``kl_div(input, target)`` takes log-probabilities, and the arguments the other way
    round: this is ``kl_div(log_q, log_p, log_target=True)``, summed over the classes.

    Examples
    --------
    >>> import fastce
    >>> fastce.information.kl_divergence_from_logits([0.0, 0.0], [1.0, 1.0])
    np.float64(0.0)
    """
    name = "kl_divergence_from_logits"
    return of_two(name, p_logits, q_logits, axis, base, keepdims, _NAMES)


def kl_divergence_from_logits_with_grad(
    p_logits: ArrayLike,
    q_logits: ArrayLike,
    *,
    axis: int = -1,
    base: float | None = None,
    keepdims: bool = False,
    p_grad: bool = False,
    out: Any = None,
) -> tuple[Any, ...]:
    """`kl_divergence_from_logits` and its gradient with respect to `q_logits`.

    Parameters
    ----------
    p_logits, q_logits, axis, base, keepdims
        As for `kl_divergence_from_logits`.
    p_grad : bool, default False
        Also give the gradient with respect to `p_logits`.
    out : array, optional
        Where to put the gradient with respect to `q_logits`: of the broadcast shape, and the dtype
        of the logits. It may be either of them.

    Returns
    -------
    kl : array
        As `kl_divergence_from_logits` returns it.
    q_grad : array
        Of the broadcast shape and the dtype of the logits: of each row's own divergence, ``q - p``.
        For the gradient of a loss, multiply it by the gradient with respect to each divergence.
    p_grad : array
        Only with ``p_grad=True``: ``p * (log(p / q) - kl)``, likewise.

    Raises
    ------
    TypeError, ValueError
        As `kl_divergence_from_logits`, and for an `out` that does not fit.

    Examples
    --------
    >>> import fastce
    >>> kl, grad = fastce.information.kl_divergence_from_logits_with_grad([0.0, 0.0], [2.0, 0.0])
    >>> round(float(kl), 6), grad.round(6)
    (0.433781, array([ 0.380797, -0.380797]))
    """
    name = "kl_divergence_from_logits_with_grad"
    p, q = alike(name, p_logits, q_logits, _NAMES)
    q, grad, layout = new_grad(q, axis, out, "q_logits")
    p = p if out is None else host.apart(p, grad)
    rows, result = host.row_out(layout, host.compute_dtype(p.dtype))
    other = np.empty_like(grad) if p_grad else None
    grads = host.rows_out(grad, layout), None if other is None else host.rows_out(other, layout)
    run(name, base, host.rows_in(p, layout), host.rows_in(q, layout), rows, *grads)
    result = finished(p_logits, result, layout, keepdims)
    results = result, host.like(q_logits, grad) if out is None else out
    return results if other is None else (*results, host.like(p_logits, other))
