"""The driver: memory, copies and launches. The only file that calls it, through cuda.core.

Nothing here waits for the GPU but `read` and `upload`, which copy. They are called for NumPy
arrays, where labels are validated, and for tables of attention (`attention/arrays.py`).
"""

import threading
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace

import numpy as np
from cuda.bindings import driver
from cuda.core import Device, LaunchConfig, Stream
from cuda.core import launch as _launch
from numba import types as nb


@cache
def limits(device):
    """Of a GPU: its multiprocessors, the most bytes of shared memory that a block can have, and its
    compute capability.
    """
    properties = _device(device).properties
    return SimpleNamespace(
        capability=tuple(_device(device).compute_capability),
        multiprocessors=properties.multiprocessor_count,
        shared=properties.max_shared_memory_per_block_optin,
    )


@cache
def _device(number):
    device = Device(number)
    with _current(number):
        return device


@contextmanager
def _current(number):
    """Make a GPU current in this thread, then the previous one; where there is one GPU, once."""
    if _gpus() == 1:
        if not hasattr(_thread, "is_ready"):
            Device(number).set_current()
            _thread.is_ready = True
        yield
        return
    before = Device()
    Device(number).set_current()
    try:
        yield
    finally:
        if before.device_id != number:
            before.set_current()


_thread = threading.local()


def current():
    """The number of the GPU that is current in this thread; the first one, where none is."""
    with _current(Device().device_id):
        return Device().device_id


@cache
def _gpus():
    return len(Device.get_all_devices())


@cache
def _stream(handle):
    return Stream.from_handle(handle)


def allocate(size, stream, device):
    """Memory of the GPU, freed in stream order when the buffer is garbage."""
    with _current(device):
        return _device(device).allocate(max(size, 1), stream=_stream(stream))


def address(buffer):
    return int(buffer.handle)


def upload(array, stream, device):
    """A copy of a NumPy array in memory of the GPU."""
    array = np.ascontiguousarray(array)
    buffer = allocate(array.nbytes, stream, device)
    if array.nbytes:
        with _current(device):
            to = address(buffer)
            _check(driver.cuMemcpyHtoDAsync(to, array.ctypes.data, array.nbytes, stream))
            _stream(stream).sync()  # the caller may free or change the array then
    return buffer


def read(address, array, stream, device):
    """Copy from the GPU to a C-contiguous NumPy array, and wait for the copy."""
    if array.nbytes:
        with _current(device):
            _check(driver.cuMemcpyDtoHAsync(array.ctypes.data, address, array.nbytes, stream))
            _stream(stream).sync()


def clear(address, size, stream, device):
    """Write zeros."""
    if size:
        with _current(device):
            _check(driver.cuMemsetD8Async(address, 0, size, stream))


def launch(kernel, blocks, threads, shared, stream, device, arguments):
    """Run a kernel with integers (int64), floats (float64) and NamedTuples of these."""
    with _current(device):
        compiled = _compiled(kernel, tuple(map(type, arguments)), device, shared > 48 * 1024)
        config = _config(blocks, threads, shared)
        _launch(_stream(stream), config, compiled, *flat(arguments))


def flat(arguments):
    """The numbers that a kernel gets: a NamedTuple is passed as its fields."""
    for a in arguments:
        if isinstance(a, tuple):
            yield from a
        else:
            yield a


@cache
def _config(blocks, threads, shared):
    return LaunchConfig(grid=blocks, block=threads, shmem_size=shared)


@cache
def _compiled(kernel, types, device, much_shared):
    code = kernel.compile(signature(types))._codelibrary.get_cufunc().kernel
    if much_shared:  # more than 48 KB must be asked for, once for each kernel
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        most = limits(device).shared
        _check(driver.cuKernelSetAttribute(attribute, most, code.handle, device))
    return code


def signature(types):
    return nb.void(*map(_type, types))


_NUMBERS = {int: nb.int64, float: nb.float64}


def _type(t):
    if t in _NUMBERS:
        return _NUMBERS[t]
    if not issubclass(t, tuple):  # the bits of others would be misread as an integer
        raise TypeError(f"a kernel takes int, float and NamedTuples of these, got {t}")
    return nb.BaseTuple.from_types([_NUMBERS[f] for f in t.__annotations__.values()], t)


def _check(answer):
    error = answer[0]
    if error != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"the CUDA driver answered {error.name}")
