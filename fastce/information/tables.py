"""Measures of joint distributions of several variables."""

from __future__ import annotations  # help() then says ArrayLike, not what that stands for

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple
from numpy.typing import ArrayLike

from .._inputs import host
from ._measure import floating, run


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
    return _of_tables("entropy", table, axis, base)


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
        As for `entropy`, with the same errors.

    Returns
    -------
    array
        Of the shape of `table` without `axis`. From 0, where X decides Y, to H(Y), where the two
        are independent.

    Examples
    --------
    >>> import fastce
    >>> table = [[0.25, 0.25], [0.5, 0.0]]  # a fair bit where x = 0, nothing open where x = 1
    >>> fastce.information.conditional_entropy(table, base=2)
    np.float64(0.5)
    """
    return _of_tables("conditional_entropy", table, axis, base)


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
        As for `entropy`, with the same errors.

    Returns
    -------
    array
        Of the shape of `table` without `axis`. Not negative; 0 where the two are independent.

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
    return _of_tables("mutual_information", table, axis, base)


def _of_tables(function: str, table: Any, axis: Any, base: Any) -> Any:
    a = floating(table, "table", function)
    if a.ndim < 2:
        raise ValueError(f"table must have two axes or more, got shape {a.shape}")
    try:
        axes = normalize_axis_tuple(tuple(axis), a.ndim)
    except TypeError:
        raise TypeError(f"axis must be a sequence of integers, got {axis!r}") from None
    if len(axes) < 2 or (function != "entropy" and len(axes) > 2):
        least = "at least " if function == "entropy" else ""
        raise ValueError(f"axis must name {least}two axes, got {axis!r}")
    behind = np.moveaxis(a, axes, range(a.ndim - len(axes), a.ndim))
    shape, sizes = behind.shape[: -len(axes)], behind.shape[-len(axes) :]
    sizes = sizes if a.size else (0,) * len(sizes)  # without a walk along the empty rows
    # For the kernel, all other axes are one in front.
    tables = np.ascontiguousarray(behind).reshape(math.prod(shape), *sizes)
    tables = tables.view(np.uint16) if host.is_bfloat16(a.dtype) else tables
    result = np.empty(len(tables), host.compute_dtype(tables.dtype))
    if function == "entropy":
        rows = tables.reshape(len(tables), math.prod(sizes), 1)
        run(function, base, rows, result[:, None], exponential=False)
    else:
        run(function, base, tables, result)
    return host.like(table, result.reshape(shape))
