"""One row of each op, for loops in compiled code of the user."""

import math

import numpy as np
from numba import types
from numba.core.errors import TypingError
from numba.extending import overload

from ._compile import compiled
from ._jit_options import INTERNAL
from ._math import cast
from ._rows import BLOCK, log_total, row_state, write_log_softmax, write_softmax
from ._storage import stack_scratch


def elements(x):
    """A row, or a TypingError: the kernels below take integers for the bits of half floats, and
    Numba has no float16 on processors."""
    raise NotImplementedError("for compiled code")


@overload(elements, jit_options=INTERNAL)
def _elements(x):
    if not (isinstance(x, types.Array) and x.ndim == 1 and isinstance(x.dtype, types.Float)):
        raise TypingError(f"a row must be a 1-d array of float64 or float32, got {x}")
    return lambda x: x


@compiled
def row_logsumexp(x):
    """log(sum(exp(x))) of a row, in nats, in the type of its elements.

    Parameters
    ----------
    x : array of float64 or float32, shape (n,)

    Returns
    -------
    float
        As `fastce.logsumexp`: NaN if there is a NaN, -inf for no element at all.

    Examples
    --------
    >>> import numba, numpy as np
    >>> from fastce.kernels.numba import row_logsumexp
    >>> @numba.njit(parallel=True)
    ... def of_rows(x):
    ...     result = np.empty(len(x), x.dtype)
    ...     for r in numba.prange(len(x)):
    ...         result[r] = row_logsumexp(x[r])
    ...     return result
    >>> of_rows(np.zeros((2, 4))).round(4)
    array([1.3863, 1.3863])
    """
    x = elements(x)
    memory = stack_scratch(x, BLOCK)
    row_max, sumexp_m1 = row_state(x, memory, memory[:0])
    return cast(row_max, row_max + math.log1p(sumexp_m1))


@compiled
def row_softmax(x, out):
    """The softmax of a row into `out`, which may be `x`.

    Parameters
    ----------
    x, out : arrays of float64 or float32, shape (n,)

    Examples
    --------
    >>> import numpy as np
    >>> from fastce.kernels.numba import row_softmax
    >>> row = np.zeros(4)
    >>> row_softmax(row, row)
    >>> row
    array([0.25, 0.25, 0.25, 0.25])
    """
    x, y = elements(x), elements(out)
    memory = stack_scratch(x, BLOCK)
    exps = stack_scratch(x, BLOCK)[: x.size if x.size <= BLOCK else 0]
    row_max, sumexp_m1 = row_state(x, memory, exps)
    write_softmax(x, y, row_max, sumexp_m1, exps, False)


@compiled
def row_log_softmax(x, out):
    """The log-softmax of a row, in nats, into `out`, which may be `x`.

    Parameters
    ----------
    x, out : arrays of float64 or float32, shape (n,)

    Examples
    --------
    >>> import numpy as np
    >>> from fastce.kernels.numba import row_log_softmax
    >>> row = np.array([50.0, 0.0, 0.0, 0.0])
    >>> row_log_softmax(row, row)
    >>> print(f"{row[0]:.3g}")
    -5.79e-22
    """
    x, y = elements(x), elements(out)
    memory = stack_scratch(x, BLOCK)
    row_max, sumexp_m1 = row_state(x, memory, memory[:0])
    write_log_softmax(x, y, row_max, sumexp_m1, False)


@compiled
def row_cross_entropy(x, label):
    """The cross-entropy of a row of logits and its class, in nats, as a float64.

    Parameters
    ----------
    x : array of float64 or float32, shape (n,)
    label : int
        From 0 to n - 1, which is not checked.

    Examples
    --------
    >>> import numpy as np
    >>> from fastce.kernels.numba import row_cross_entropy
    >>> round(row_cross_entropy(np.zeros(2), 0), 6)
    0.693147
    """
    x = elements(x)
    memory = stack_scratch(x, BLOCK)
    row_max, sumexp_m1 = row_state(x, memory, memory[:0])
    return np.float64(row_max) - np.float64(x[label]) + log_total(row_max, sumexp_m1)


@compiled
def row_cross_entropy_with_grad(x, label, grad):
    """`row_cross_entropy`, and its gradient softmax(x) - (k == label) into `grad`.

    Parameters
    ----------
    x : array of float64 or float32, shape (n,)
    label : int
        From 0 to n - 1, which is not checked.
    grad : array of shape (n,)
        Of a type that `x` may have. It may be `x`.

    Returns
    -------
    float

    Examples
    --------
    >>> import numpy as np
    >>> from fastce.kernels.numba import row_cross_entropy_with_grad
    >>> grad = np.empty(2)
    >>> round(row_cross_entropy_with_grad(np.zeros(2), 0, grad), 6), grad
    (0.693147, array([-0.5,  0.5]))
    """
    x, y = elements(x), elements(grad)
    memory = stack_scratch(x, BLOCK)
    exps = stack_scratch(x, BLOCK)[: x.size if x.size <= BLOCK else 0]
    row_max, sumexp_m1 = row_state(x, memory, exps)
    loss = np.float64(row_max) - np.float64(x[label]) + log_total(row_max, sumexp_m1)
    write_softmax(x, y, row_max, sumexp_m1, exps, False)
    # p - 1 by expm1: nothing cancels where p is nearly 1.
    y[label] = math.expm1(-loss)
    return loss
