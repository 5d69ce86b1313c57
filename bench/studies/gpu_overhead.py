"""The time of a call on the host before the driver is called. No GPU is needed: launches and memory
are replaced by functions that do nothing.

    python bench/studies/gpu_overhead.py
"""

import statistics
import time
from types import SimpleNamespace

import numpy as np

import fastce
from fastce._inputs import gpu
from fastce.kernels import cuda
from fastce.kernels.cuda import _device


class Array:
    """Looks like a C-contiguous array on a GPU."""

    def __init__(self, shape, dtype, address=4096):
        self.seen = gpu.DeviceArray(
            address, shape, gpu._dense(shape, np.dtype(dtype).itemsize), dtype, 0, 0
        )

    __cuda_array_interface__ = None  # marks a device array; LIBRARIES' `inspect` reads it


def without_a_gpu():
    arrays = {}

    def empty(x, seen, shape, dtype):
        return arrays.setdefault((shape, dtype), Array(shape, dtype))

    gpu.LIBRARIES[Array.__module__.partition(".")[0]] = gpu.Library(lambda x: x.seen, empty)
    cuda.require = lambda: None
    limits = SimpleNamespace(multiprocessors=132, shared=227 * 1024)
    _device.limits = lambda device: limits
    _device.launch = lambda *arguments: None
    _device.allocate = lambda *arguments: SimpleNamespace(handle=4096)


def microseconds(call, times=2000):
    call()
    taken = []
    for _ in range(7):
        begin = time.perf_counter()
        for _ in range(times):
            call()
        taken.append((time.perf_counter() - begin) / times)
    return statistics.median(taken) * 1e6


def main():
    without_a_gpu()
    x, target = Array((32, 1000), "float32"), Array((32,), "int64", address=1 << 20)
    for name, call in {
        "softmax": lambda: fastce.softmax(x),
        "softmax(out=)": lambda: fastce.softmax(x, out=x),
        "cross_entropy": lambda: fastce.cross_entropy(x, target),
        "cross_entropy_with_grad(out=logits)": lambda: fastce.cross_entropy_with_grad(
            x, target, out=x
        ),
    }.items():
        print(f"{microseconds(call):6.1f} us  {name}")


if __name__ == "__main__":
    main()
