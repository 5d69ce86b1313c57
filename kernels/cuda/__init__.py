"""Kernels for NVIDIA GPUs, written in Python, compiled by numba-cuda when they are first called.

`log_softmax.py` explains how they work. `_ptx.py` has the inline PTX, `_launch.py` the launch
configurations, and `_device.py` all calls of the driver. Compiling needs no GPU: fastce's tests
compile every kernel to PTX, assemble it, and run it on an interpreter in NumPy.

The functions ``warp_*`` and ``block_*`` are for kernels of your own (`_one_row.py`).
"""

try:
    from numba import cuda
    from numba.cuda.extending import overload  # noqa: F401 (numba alone does not have it)
except ImportError as error:
    raise ImportError(
        "the package numba-cuda is not installed (fastce has it in its extras cuda12 and cuda13)"
    ) from error

from ._one_row import (
    block_cross_entropy,
    block_cross_entropy_with_grad,
    block_log_softmax,
    block_logsumexp,
    block_softmax,
    warp_cross_entropy,
    warp_cross_entropy_with_grad,
    warp_log_softmax,
    warp_logsumexp,
    warp_softmax,
)

__all__ = [
    "block_cross_entropy",
    "block_cross_entropy_with_grad",
    "block_log_softmax",
    "block_logsumexp",
    "block_softmax",
    "warp_cross_entropy",
    "warp_cross_entropy_with_grad",
    "warp_log_softmax",
    "warp_logsumexp",
    "warp_softmax",
]


def require():
    """Raise ImportError where there is no GPU to compute with, and say why."""
    if not cuda.is_available():
        raise ImportError(f"there is no NVIDIA GPU: {_reason()}")
    capability = cuda.get_current_device().compute_capability
    if capability < (8, 0):
        raise ImportError(f"GPUs from compute capability 8.0 on are needed, this has {capability}")


def _reason():
    try:
        cuda.current_context()
    except Exception as error:  # of any type: its message is passed on
        return " ".join(str(error).split()).rstrip(" :")
    return "the driver and this version of numba-cuda do not fit"
