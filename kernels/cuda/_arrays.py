"""Arrays in canonical form, in the memory of a GPU.

A kernel function takes, in each place, a `View` of memory of the GPU, any other array there that
has ``__cuda_array_interface__``, or a NumPy array, which is copied there and, if it is an output,
back. bfloat16 is uint16, but in a `View`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from . import _device
from ._storage import FLOAT_CODES, LABEL_CODES


class View(NamedTuple):
    """An array in memory of a GPU: (outer, n, inner), or (outer, inner) and C-contiguous."""

    address: int
    shape: tuple[int, ...]
    step: int  # elements from plane to plane
    dtype: str  # also "bfloat16"
    stream: int  # handle of the stream that orders the work with it
    device: int

    @property
    def code(self) -> int:
        """The dtype, for kernels that read the array one number at a time."""
        return FLOAT_CODES.get(self.dtype) or LABEL_CODES[self.dtype]


@contextmanager
def on_device(inputs, outputs) -> Iterator[tuple]:
    """A tuple of the views of the inputs and outputs; None for None."""
    first = next((a for a in (*inputs, *outputs) if isinstance(a, View)), None)
    if first is not None or not any(isinstance(a, np.ndarray) for a in inputs):
        kept = View | float | None  # a number is a grad_loss
        yield tuple(a if isinstance(a, kept) else view(a) for a in (*inputs, *outputs))
        return
    device, stream = _device.current(), 0
    buffers, written = [], []  # references that keep the memory

    def place(a, filled):
        if a is None:
            return None
        if filled:
            buffers.append(_device.upload(a, stream, device))
        else:
            buffers.append(_device.allocate(a.nbytes, stream, device))
            written.append((buffers[-1], a))
        return _of_buffer(buffers[-1], a, stream, device)

    yield (*(place(a, True) for a in inputs), *(place(a, False) for a in outputs))
    for buffer, out in written:
        if out.flags.c_contiguous:
            _device.read(_device.address(buffer), out, stream, device)
        else:
            host = np.empty(out.shape, out.dtype)
            _device.read(_device.address(buffer), host, stream, device)
            out[...] = host


def _of_buffer(buffer, a, stream, device):
    name = "bfloat16" if a.dtype == np.uint16 else a.dtype.name
    step = a.shape[1] * a.shape[2] if a.ndim == 3 else 0
    return View(_device.address(buffer), a.shape, step, name, stream, device)


def view(a) -> View:
    """The view of an array with ``__cuda_array_interface__`` that is in canonical form."""
    interface = a.__cuda_array_interface__
    dtype = np.dtype(interface["typestr"])
    shape, strides = interface["shape"], interface.get("strides")
    step = shape[1] * shape[2] if len(shape) == 3 else 0
    if strides is not None:
        dense = [dtype.itemsize] * len(shape)
        for i in range(len(shape) - 2, -1, -1):
            dense[i] = dense[i + 1] * max(shape[i + 1], 1)
        free = 1 if len(shape) == 3 else 0
        if (
            any(shape[i] > 1 and strides[i] != dense[i] for i in range(free, len(shape)))
            or strides[0] % dtype.itemsize
        ):
            raise ValueError(f"planes must be C-contiguous, got shape {shape}, strides {strides}")
        if free and shape[0] > 1:
            step = strides[0] // dtype.itemsize
    name = "bfloat16" if dtype == np.uint16 else dtype.name
    stream = interface.get("stream") or 0
    return View(interface["data"][0], tuple(shape), step, name, stream, _device.current())
