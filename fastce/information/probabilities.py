"""Measures of distributions."""

from __future__ import annotations  # help() then says ArrayLike, not what that stands for

from typing import Any

from numpy.typing import ArrayLike

from ._measure import of_one, of_two


def entropy(
    p: ArrayLike, *, axis: int = -1, base: float | None = None, keepdims: bool = False
) -> Any:
    """Shannon entropy of distributions, ``-sum(p * log(p))``.

    Parameters
    ----------
    p : array_like
        Not negative; need not sum to 1. float64, float32, float16 or bfloat16; integers (counts)
        are taken as float64. Any layout.
    axis : int, default -1
        The axis of the outcomes.
    base : float, optional
        Of the logarithm, above 1: 2 for bits. Without it, nats.
    keepdims : bool, default False
        Keep the axis of the outcomes, with length 1.

    Returns
    -------
    array
        Of the shape of `p` without `axis`; float64 for float64, else float32. From 0, where one
        outcome is certain, to ``log(n)``, where all n are equally likely. NaN where `p` holds a
        negative number, NaN or infinity, or sums to 0.

    Raises
    ------
    TypeError, ValueError
        For a dtype, axis or base that does not fit. The message shows what was received.

    Notes
    -----
    Where one outcome is nearly certain its own ``log(p)`` comes from ``log1p`` of the others, so
    that small entropies are as exact as large ones. ``scipy.stats.entropy`` has the default
    ``axis=0``.

    References
    ----------
    C. E. Shannon, "A Mathematical Theory of Communication", 1948.

    Examples
    --------
    >>> import fastce
    >>> fastce.information.entropy([0.5, 0.25, 0.25], base=2)
    np.float64(1.5)
    >>> fastce.information.entropy([[2, 1, 1], [4, 0, 0]], base=2)
    array([1.5, 0. ])
    """
    return of_one("entropy", "p", p, axis, base, keepdims, exponential=False)


def cross_entropy(
    p: ArrayLike,
    q: ArrayLike,
    *,
    axis: int = -1,
    base: float | None = None,
    keepdims: bool = False,
) -> Any:
    """Cross-entropy of two distributions, ``-sum(p * log(q))``.

    The mean length of a message about outcomes of `p` in a code made for `q`. It is
    ``entropy(p) + kl_divergence(p, q)``: at least ``entropy(p)``, and exactly that, not 0, for
    ``q = p``. For logits and targets there is `fastce.cross_entropy`.

    Parameters
    ----------
    p, q : array_like
        As for `entropy`. Their shapes are broadcast against each other. Of different dtypes, both
        are taken as float64 where one is, else as float32.
    axis, base, keepdims
        As for `entropy`; `axis` is that of the broadcast shape.

    Returns
    -------
    array
        As `entropy` returns it; ``inf`` where ``p > 0`` at an outcome with ``q == 0``.

    Raises
    ------
    TypeError, ValueError
        As `entropy`, and for shapes that cannot be broadcast.

    Examples
    --------
    >>> import fastce
    >>> p, q = [0.5, 0.25, 0.25], [0.25, 0.5, 0.25]
    >>> fastce.information.cross_entropy(p, q, base=2)
    np.float64(1.75)
    >>> fastce.information.cross_entropy(p, p, base=2)
    np.float64(1.5)
    """
    return of_two("cross_entropy_of", p, q, axis, base, keepdims, exponential=False)


def kl_divergence(
    p: ArrayLike,
    q: ArrayLike,
    *,
    axis: int = -1,
    base: float | None = None,
    keepdims: bool = False,
) -> Any:
    """Kullback-Leibler divergence (relative entropy), ``sum(p * log(p / q))``.

    Parameters
    ----------
    p, q, axis, base, keepdims
        As for `cross_entropy`, with the same errors.

    Returns
    -------
    array
        As `entropy` returns it. Not negative; 0 where the distributions are equal; ``inf`` where
        ``p > 0`` at an outcome with ``q == 0``. Not symmetric.

    Notes
    -----
    Summed as ``p * log(p / q) - p + q``, none of which is negative: the result keeps its leading
    digits where `p` and `q` are nearly equal, which the plain sum loses.
    ``scipy.stats.entropy(p, q)`` is this divergence, not a cross-entropy.

    References
    ----------
    S. Kullback and R. A. Leibler, "On Information and Sufficiency", 1951.

    Examples
    --------
    >>> import fastce
    >>> fastce.information.kl_divergence([0.5, 0.25, 0.25], [0.25, 0.5, 0.25], base=2)
    np.float64(0.25)
    """
    return of_two("kl_divergence", p, q, axis, base, keepdims)


def js_divergence(
    p: ArrayLike,
    q: ArrayLike,
    *,
    axis: int = -1,
    base: float | None = None,
    keepdims: bool = False,
) -> Any:
    """Jensen-Shannon divergence, ``(KL(p, m) + KL(q, m)) / 2`` with ``m = (p + q) / 2``.

    Parameters
    ----------
    p, q, axis, base, keepdims
        As for `cross_entropy`, with the same errors.

    Returns
    -------
    array
        As `entropy` returns it. Symmetric, from 0 for equal distributions to ``log(2)`` for those
        that have no outcome in common.

    Notes
    -----
    This is the divergence. ``scipy.spatial.distance.jensenshannon`` is its square root, which is a
    metric.

    References
    ----------
    J. Lin, "Divergence Measures Based on the Shannon Entropy", 1991.

    Examples
    --------
    >>> import fastce
    >>> fastce.information.js_divergence([1, 0], [0, 1], base=2)
    np.float64(1.0)
    """
    return of_two("js_divergence", p, q, axis, base, keepdims)


def perplexity(
    p: ArrayLike, q: ArrayLike | None = None, *, axis: int = -1, keepdims: bool = False
) -> Any:
    """Exponential of the entropy of `p`, or of the cross-entropy of `p` and `q`.

    As many equally likely outcomes would be as uncertain. It has no base: ``2**H`` in bits and
    ``exp(H)`` in nats are the same number.

    Parameters
    ----------
    p, axis, keepdims
        As for `entropy`.
    q : array_like, optional
        As for `cross_entropy`: the distribution that predicts outcomes of `p`.

    Returns
    -------
    array
        As `entropy` returns it: from 1 to n for `p` alone, ``inf`` where the cross-entropy is.

    Raises
    ------
    TypeError, ValueError
        As `cross_entropy`.

    Examples
    --------
    >>> import fastce
    >>> round(float(fastce.information.perplexity([1, 1, 1, 1, 1, 1])), 12)  # a die
    6.0
    """
    if q is None:
        return of_one("entropy", "p", p, axis, None, keepdims, exponential=True)
    return of_two("cross_entropy_of", p, q, axis, None, keepdims, exponential=True)
