"""Measures of the frequencies of labels."""

from __future__ import annotations  # help() then says ArrayLike, not what that stands for

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .._inputs import host
from .probabilities import entropy
from .tables import conditional_entropy, mutual_information

CELLS = 1 << 24  # of a table of counts, 128 MB; what is larger is counted without its empty cells


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
