"""Parameters of large grids of cases.

Most axes of a grid are independent in the code: layouts are resolved in `fastce._inputs` before any
kernel, options act on numbers that are float32 or float64 by then, and a dtype decides how a kernel
loads and stores. A grid of three such axes needs every pair of values, not every triple.
"""

import itertools

import pytest

from support.cases import DTYPES


def _named(axis):
    return list(axis.items()) if isinstance(axis, dict) else [(str(value), value) for value in axis]


def with_one_dtype(names, *axes, dtypes=DTYPES):
    """Parametrize with every combination of the axes, each with one dtype: the next one for the
    next value of any axis, so that each value of an axis of four or more comes up with all dtypes.
    """
    kinds, rows = list(dtypes), []
    for row in itertools.product(*(enumerate(_named(axis)) for axis in axes)):
        kind = kinds[sum(i for i, _ in row) % len(kinds)]
        name = "-".join([*(name for _, (name, _) in row), kind])
        rows.append(pytest.param(*(value for _, (_, value) in row), dtypes[kind], id=name))
    return pytest.mark.parametrize((*names.split(), "dtype"), rows)
