"""fastce's functions inside compiled code: ``fastce.log_softmax(x)`` in a function with ``@njit``.

Numba calls `register` when it first compiles something, through the entry point
``numba_extensions``. What is declared here has the names, parameters and results of the Python
functions, on arrays of float64 and float32 (Numba has no float16 and no bfloat16 on processors);
arrays that are not C-contiguous are copied once. A call runs on threads where the function that
contains it is compiled with ``parallel=True``, else on one.

A label out of range makes its row NaN, as on GPUs. An exception would be lost where the caller, or
a caller of that one, is inside a ``prange``: Numba goes on, and returns what was in memory, or a
SystemError. Compiled code cannot know where it is called from.
"""


def register() -> None:
    """For Numba; importing these modules declares everything."""
    from . import attention, losses  # noqa: F401
