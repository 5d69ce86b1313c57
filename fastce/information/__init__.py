"""Entropies, divergences and mutual information of probabilities, tables, labels and logits.

``fastce.information.entropy(p)`` and so on. Distributions need not sum to 1, they are divided by
their sum; ``0 * log(0)`` is 0; results are in nats unless there is a `base`.
"""

from __future__ import annotations  # help() then says ArrayLike, not what that stands for

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple
from numpy.typing import ArrayLike

from .._inputs import gpu, host
from .._runtime.dispatch import gpu_kernel, kernel
from .._runtime.threads import get_num_threads

__all__ = [
    "conditional_entropy",
    "conditional_entropy_from_samples",
    "cross_entropy",
    "entropy",
    "entropy_from_logits",
    "entropy_from_logits_with_grad",
    "entropy_from_samples",
    "joint_entropy",
    "joint_entropy_from_samples",
    "js_divergence",
    "kl_divergence",
    "kl_divergence_from_logits",
    "kl_divergence_from_logits_with_grad",
    "mutual_information",
    "mutual_information_from_samples",
    "perplexity",
]

CELLS = 1 << 24  # of a table of counts, 128 MB; what is larger is counted without its empty cells


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
    return _of_one("entropy", p, axis, base, keepdims, exponential=False)


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
    return _of_two("cross_entropy_of", p, q, axis, base, keepdims, exponential=False)


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
        As for `cross_entropy`.

    Returns
    -------
    array
        As `entropy` returns it. Not negative; 0 where the distributions are equal; ``inf`` where
        ``p > 0`` at an outcome with ``q == 0``. Not symmetric.

    Raises
    ------
    TypeError, ValueError
        As `cross_entropy`.

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
    return _of_two("kl_divergence", p, q, axis, base, keepdims)


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
        As for `cross_entropy`.

    Returns
    -------
    array
        As `entropy` returns it. Symmetric, from 0 for equal distributions to ``log(2)`` for those
        that have no outcome in common.

    Raises
    ------
    TypeError, ValueError
        As `cross_entropy`.

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
    return _of_two("js_divergence", p, q, axis, base, keepdims)


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
        return _of_one("entropy", p, axis, None, keepdims, exponential=True)
    return _of_two("cross_entropy_of", p, q, axis, None, keepdims, exponential=True)


# ---- tables ----------------------------------------------------------------------------------


def joint_entropy(
    table: ArrayLike, *, axis: Sequence[int] = (-2, -1), base: float | None = None
) -> Any:
    """Entropy of the joint distribution of several variables.

    Parameters
    ----------
    table : array_like
        Joint probabilities or counts, as for `entropy`, with an axis for each variable.
    axis : sequence of int, default (-2, -1)
        The axes of the variables, two or more. The others are those of separate tables.
    base : float, optional
        As for `entropy`.

    Returns
    -------
    array
        Of the shape of `table` without `axis`.

    Raises
    ------
    TypeError, ValueError
        As `entropy`.

    Examples
    --------
    >>> import fastce
    >>> fastce.information.joint_entropy([[1, 1], [1, 1]], base=2)
    np.float64(2.0)
    """
    tables, shape = _tables(table, axis, "entropy")
    rows = tables.reshape(len(tables), math.prod(tables.shape[1:]), 1)
    result = np.empty((len(tables), 1), host.compute_dtype(tables.dtype))
    _run("entropy", base, rows, result, exponential=False)
    return host.like(table, result.reshape(shape))


def conditional_entropy(
    table: ArrayLike, *, axis: Sequence[int] = (-2, -1), base: float | None = None
) -> Any:
    """Entropy H(Y | X) of one variable that is left when another is known.

    ``sum over x of P(x) * entropy(Y given x)``, which is H(X, Y) - H(X).

    Parameters
    ----------
    table : array_like
        Joint probabilities or counts, as for `entropy`: ``table[..., x, y]``.
    axis : pair of int, default (-2, -1)
        The axis of X, which is given, and then that of Y. ``axis=(-1, -2)`` is the entropy of
        what the rows stand for, given the column. The other axes are those of separate tables.
    base : float, optional
        As for `entropy`.

    Returns
    -------
    array
        Of the shape of `table` without `axis`. From 0, where X decides Y, to H(Y), where the two
        are independent.

    Raises
    ------
    TypeError, ValueError
        As `entropy`.

    Examples
    --------
    >>> import fastce
    >>> table = [[0.25, 0.25], [0.5, 0.0]]  # a fair bit where x = 0, nothing open where x = 1
    >>> fastce.information.conditional_entropy(table, base=2)
    np.float64(0.5)
    """
    return _of_pairs("conditional_entropy", table, axis, base)


def mutual_information(
    table: ArrayLike, *, axis: Sequence[int] = (-2, -1), base: float | None = None
) -> Any:
    """Mutual information I(X; Y) of two variables: what one says about the other.

    ``H(X) + H(Y) - H(X, Y)``, the KL divergence of the joint distribution from the product of its
    margins.

    Parameters
    ----------
    table : array_like
        Joint probabilities or counts, as for `entropy`, with an axis for each variable.
    axis : pair of int, default (-2, -1)
        The axes of the two variables. The others are those of separate tables.
    base : float, optional
        As for `entropy`.

    Returns
    -------
    array
        Of the shape of `table` without `axis`. Not negative; 0 where the two are independent.

    Raises
    ------
    TypeError, ValueError
        As `entropy`.

    Notes
    -----
    Computed as the divergence, not as the difference of entropies, which cancels where the
    variables are nearly independent.

    Examples
    --------
    >>> import fastce
    >>> fastce.information.mutual_information([[1, 0], [0, 1]], base=2)
    np.float64(1.0)
    >>> fastce.information.mutual_information([[2, 4], [3, 6]])
    np.float64(0.0)
    """
    return _of_pairs("mutual_information", table, axis, base)


# ---- samples ---------------------------------------------------------------------------------


def entropy_from_samples(x: ArrayLike, *, base: float | None = None) -> Any:
    """Entropy of the frequencies of labels.

    Parameters
    ----------
    x : array_like
        Labels of any dtype that can be sorted, one axis. All NaN are one label.
    base : float, optional
        As for `entropy`.

    Returns
    -------
    float64
        NaN for no samples. Of few samples it is too small on average, as every estimate by
        frequencies is.

    Raises
    ------
    TypeError, ValueError
        For labels or a base that do not fit.

    Examples
    --------
    >>> import fastce
    >>> fastce.information.entropy_from_samples(["a", "b", "a", "b"], base=2)
    np.float64(1.0)
    """
    codes, count = _labels(x, "x")
    return entropy(np.bincount(codes, minlength=count), base=base)


def joint_entropy_from_samples(x: ArrayLike, y: ArrayLike, *, base: float | None = None) -> Any:
    """Entropy H(X, Y) of the frequencies of pairs of labels.

    Parameters
    ----------
    x, y : array_like
        Labels as for `entropy_from_samples`, as many of each.
    base : float, optional
        As for `entropy`.

    Returns
    -------
    float64

    Raises
    ------
    TypeError, ValueError
        As `entropy_from_samples`, and for another number of labels.

    Examples
    --------
    >>> import fastce
    >>> fastce.information.joint_entropy_from_samples([0, 0, 1, 1], [0, 1, 0, 1], base=2)
    np.float64(2.0)
    """
    return entropy(_Pairs(x, y, "y").counts(), base=base)


def conditional_entropy_from_samples(
    x: ArrayLike, given: ArrayLike, *, base: float | None = None
) -> Any:
    """Entropy H(X | given) of labels that is left when others are known.

    Parameters
    ----------
    x : array_like
        Labels as for `entropy_from_samples`.
    given : array_like
        The labels that are known, as many.
    base : float, optional
        As for `entropy`.

    Returns
    -------
    float64

    Raises
    ------
    TypeError, ValueError
        As `joint_entropy_from_samples`.

    Examples
    --------
    >>> import fastce
    >>> x, y = [0, 1, 2, 2], [0, 0, 1, 1]
    >>> fastce.information.conditional_entropy_from_samples(x, given=y, base=2)
    np.float64(0.5)
    """
    pairs = _Pairs(x, given, "given")
    if pairs.cells <= CELLS:
        return conditional_entropy(pairs.table(), axis=(1, 0), base=base)
    margin = np.bincount(pairs.y)
    return entropy(pairs.counts(), base=base) - entropy(margin, base=base)


def mutual_information_from_samples(
    x: ArrayLike, y: ArrayLike, *, base: float | None = None
) -> Any:
    """Mutual information I(X; Y) of the frequencies of pairs of labels.

    Parameters
    ----------
    x, y : array_like
        Labels as for `entropy_from_samples`, as many of each.
    base : float, optional
        As for `entropy`.

    Returns
    -------
    float64
        In nats the number of ``sklearn.metrics.mutual_info_score``. For labels that are
        independent it is above 0 by chance.

    Raises
    ------
    TypeError, ValueError
        As `joint_entropy_from_samples`.

    Examples
    --------
    >>> import fastce
    >>> x, y = [0, 0, 1, 1], ["a", "a", "b", "b"]
    >>> fastce.information.mutual_information_from_samples(x, y, base=2)
    np.float64(1.0)
    """
    pairs = _Pairs(x, y, "y")
    if pairs.cells <= CELLS:
        return mutual_information(pairs.table(), base=base)
    margins = (np.bincount(codes) for codes in (pairs.x, pairs.y))
    of_x, of_y = (entropy(margin, base=base) for margin in margins)
    return of_x + of_y - entropy(pairs.counts(), base=base)


def _labels(x: Any, name: str) -> tuple[np.ndarray, int]:
    """Labels as numbers from 0, and a number above all of them."""
    a = host.to_numpy(x, name)
    if a.ndim != 1:
        raise ValueError(f"{name} must have one axis, got shape {a.shape}")
    if a.dtype.kind in "iub" and a.size:
        low, high = int(a.min()), int(a.max())
        if high - low < a.size:  # no sorting; the numbers in between count 0
            lowest = a.dtype.type(low) if a.dtype.kind == "u" else low
            wide = a if a.dtype.kind == "u" else a.astype(np.int64)
            return (wide - lowest).astype(np.intp), high - low + 1
    if host.is_bfloat16(a.dtype):
        a = a.astype(np.float32)  # which sorts its NaN last
    # So do floats, but no objects: among those a NaN breaks the order of the others. <NA> of pandas
    # is neither equal to itself nor different.
    known = np.ones(len(a), bool)
    if a.dtype.kind == "O":
        known[:] = [equal is True or equal is np.True_ for equal in np.equal(a, a, dtype=object)]
    try:
        labels, codes = np.unique(a[known], return_inverse=True)
    except TypeError as error:
        raise TypeError(f"{name} has labels that cannot be sorted: {error}") from error
    numbers = np.full(len(a), len(labels))  # all NaN are one label, the last
    numbers[known] = codes
    return numbers, len(labels) + 1


class _Pairs:
    """Two arrays of labels as numbers, and how often each pair occurs."""

    def __init__(self, x: Any, y: Any, name: str) -> None:
        self.x, self.rows = _labels(x, "x")
        self.y, self.columns = _labels(y, name)
        if self.x.size != self.y.size:
            raise ValueError(
                f"x and {name} must have the same length, got {self.x.size} and {self.y.size}"
            )
        self.cells = self.rows * self.columns  # at most the square of the length
        self.codes = self.x * self.columns + self.y

    def table(self) -> np.ndarray:
        return np.bincount(self.codes, minlength=self.cells).reshape(self.rows, self.columns)

    def counts(self) -> np.ndarray:
        """Of all pairs, or of those that occur."""
        if self.cells <= CELLS:
            return self.table().reshape(-1)
        return np.unique(self.codes, return_counts=True)[1]


# ---- logits ----------------------------------------------------------------------------------


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
    ``log1p(rest) + sum(p * (max - logits))``, of which no term is negative: where one logit
    dominates, the small entropy keeps its digits.

    Examples
    --------
    >>> import fastce
    >>> fastce.information.entropy_from_logits([0.0, 0.0], base=2)
    np.float64(1.0)
    >>> print(f"{fastce.information.entropy_from_logits([50, 0, 0, 0]):.3g}")
    2.95e-20
    """
    a = _floating(logits, "logits", "entropy_from_logits")
    layout = host.layout_of(a, axis, "logits")
    rows, result = host.row_out(layout, host.compute_dtype(a.dtype))
    _run("entropy_from_logits", base, host.rows_in(a, layout), rows)
    return _finished(logits, result, layout, keepdims)


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
    a = _floating(logits, "logits", "entropy_from_logits_with_grad")
    a, grad, layout = _room(a, axis, out, "logits")
    rows, result = host.row_out(layout, host.compute_dtype(a.dtype))
    _run(
        "entropy_from_logits_with_grad",
        base,
        host.rows_in(a, layout),
        rows,
        host.rows_out(grad, layout),
    )
    return _finished(logits, result, layout, keepdims), _given_or_like(out, logits, grad)


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
    return _of_two(name, p_logits, q_logits, axis, base, keepdims, names=("p_logits", "q_logits"))


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
    p, q = _broadcast(p_logits, q_logits, name, ("p_logits", "q_logits"))
    q, grad, layout = _room(q, axis, out, "q_logits")
    p = p if out is None else host.apart(p, grad)
    rows, result = host.row_out(layout, host.compute_dtype(p.dtype))
    grads = [grad, np.empty_like(grad)] if p_grad else [grad]
    to = [host.rows_out(g, layout) for g in grads] + [None] * (2 - len(grads))
    _run(name, base, host.rows_in(p, layout), host.rows_in(q, layout), rows, *to)
    results = [_finished(p_logits, result, layout, keepdims), _given_or_like(out, q_logits, grad)]
    return *results, *(host.like(p_logits, g) for g in grads[1:])


# ---- from arguments to kernels ---------------------------------------------------------------


def _floating(x: Any, name: str, wanted: str) -> np.ndarray:
    if type(x) is not np.ndarray and gpu.is_on_gpu(x):
        gpu_kernel("information", wanted)  # raises
    return host.floating(x, name)


def _unit(base: Any) -> float:
    """Nats in the unit of the result."""
    if base is None:
        return 1.0
    if not isinstance(base, (int, float, np.integer, np.floating)):
        raise TypeError(f"base must be a number, got {base!r}")
    if not 1 < base < math.inf:
        raise ValueError(f"base must be a finite number above 1, got {base!r}")
    return math.log(base)


def _run(name: str, base: Any, *arrays: Any, **options: Any) -> None:
    compute: Callable[..., None] = kernel("information", name)
    compute(*arrays, unit=_unit(base), **options, threads=get_num_threads())


def _finished(x: Any, result: np.ndarray, layout: host.Layout, keepdims: bool) -> Any:
    return host.like(x, np.expand_dims(result, layout.axis) if keepdims else result)


def _given_or_like(out: Any, x: Any, result: np.ndarray) -> Any:
    return host.like(x, result) if out is None else out


def _of_one(name: str, p: Any, axis: int, base: Any, keepdims: bool, **options: Any) -> Any:
    a = _floating(p, "p", name)
    layout = host.layout_of(a, axis, "p")
    rows, result = host.row_out(layout, host.compute_dtype(a.dtype))
    _run(name, base, host.rows_in(a, layout), rows, **options)
    return _finished(p, result, layout, keepdims)


def _broadcast(
    p: Any, q: Any, wanted: str, names: tuple[str, str]
) -> tuple[np.ndarray, np.ndarray]:
    """Both of one shape and dtype."""
    a, b = _floating(p, names[0], wanted), _floating(q, names[1], wanted)
    if a.dtype != b.dtype:
        wide = np.float64 if np.float64 in (a.dtype, b.dtype) else np.float32
        a, b = a.astype(wide, copy=False), b.astype(wide, copy=False)
    if a.shape != b.shape:
        try:
            shape = np.broadcast_shapes(a.shape, b.shape)
        except ValueError:
            raise ValueError(
                f"{names[0]} and {names[1]} must have shapes that can be broadcast, got {a.shape} "
                f"and {b.shape}"
            ) from None
        a, b = (v if v.shape == shape else np.broadcast_to(v, shape) for v in (a, b))
    return a, b


def _of_two(
    name: str,
    p: Any,
    q: Any,
    axis: int,
    base: Any,
    keepdims: bool,
    names: tuple[str, str] = ("p", "q"),
    **options: Any,
) -> Any:
    a, b = _broadcast(p, q, name, names)
    fuller = b if 0 in a.strides and 0 not in b.strides else a
    layout = host.layout_of(fuller, axis, names[0])
    if 0 in fuller.strides:  # both are broadcast: as the result lies in memory
        layout = host.fold(fuller.shape, None, axis, names[0])
    rows, result = host.row_out(layout, host.compute_dtype(a.dtype))
    _run(name, base, host.rows_in(a, layout), host.rows_in(b, layout), rows, **options)
    return _finished(p, result, layout, keepdims)


def _room(
    a: np.ndarray, axis: int, out: Any, name: str
) -> tuple[np.ndarray, np.ndarray, host.Layout]:
    """The logits, room for their gradient, and the layout of that."""
    host.layout_of(a, axis, name)
    if out is None:
        dense = a.flags.c_contiguous or 0 not in a.strides
        grad = np.empty_like(a, subok=False) if dense else np.empty(a.shape, a.dtype)
    else:
        grad = host.check_out(out, a.shape, a.dtype)
        a = host.apart(a, grad)
    return a, grad, host.layout_of(grad, axis, name)


def _tables(table: Any, axis: Any, wanted: str) -> tuple[np.ndarray, tuple[int, ...]]:
    """Tables as a kernel takes them, all other axes in one in front; and the shape of those."""
    a = _floating(table, "table", wanted)
    if a.ndim < 2:
        raise ValueError(f"table must have two axes or more, got shape {a.shape}")
    try:
        axes = normalize_axis_tuple(tuple(axis), a.ndim)
    except TypeError:
        raise TypeError(f"axis must be a sequence of integers, got {axis!r}") from None
    if len(axes) < 2 or (wanted != "entropy" and len(axes) > 2):
        least = "at least " if wanted == "entropy" else ""
        raise ValueError(f"axis must name {least}two axes, got {axis!r}")
    behind = np.moveaxis(a, axes, range(a.ndim - len(axes), a.ndim))
    shape, sizes = behind.shape[: -len(axes)], behind.shape[-len(axes) :]
    sizes = sizes if a.size else (0,) * len(sizes)  # without a walk along the empty rows
    tables = np.ascontiguousarray(behind).reshape(math.prod(shape), *sizes)
    return tables.view(np.uint16) if host.is_bfloat16(a.dtype) else tables, shape


def _of_pairs(name: str, table: Any, axis: Any, base: Any) -> Any:
    tables, shape = _tables(table, axis, name)
    result = np.empty(len(tables), host.compute_dtype(tables.dtype))
    _run(name, base, tables, result)
    return host.like(table, result.reshape(shape))
