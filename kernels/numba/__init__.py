"""Just-in-time CPU kernels: plain loops that Numba compiles when they are first called.

The functions ``row_*`` are for loops in compiled code of your own (``@njit``, prange included), one
row at a time, of float64 or float32 in any stride. They check nothing, and need no memory that
grows with the row.
"""

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
