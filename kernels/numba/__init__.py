"""Just-in-time CPU kernels: plain loops that Numba compiles when they are first called.

The functions ``row_*`` are for loops in compiled code of your own (``@njit``, prange included), one
row at a time, of float64 or float32 in any stride. They check nothing: a label that is not from 0
to n - 1, ignored ones too, or an `out` of another length reads and writes beyond the arrays. They
need no memory that grows with the row.
"""

from numba import config

if config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set, and nothing here works without compiling")

from ._one_row import (
    row_cross_entropy,
    row_cross_entropy_with_grad,
    row_log_softmax,
    row_logsumexp,
    row_softmax,
)

__all__ = [
    "row_cross_entropy",
    "row_cross_entropy_with_grad",
    "row_log_softmax",
    "row_logsumexp",
    "row_softmax",
]
