"""CUDA kernels without a GPU: compiled to PTX, assembled, and run by `ptx_machine.py`."""

import functools
import inspect
from types import SimpleNamespace

import ml_dtypes  # noqa: F401 (registers bfloat16)
import numba
import numpy as np
from numba import cuda, types
from numba.cuda import compiler, dispatcher
from numba.cuda.cudadrv import nvvm

from fastce import kernels
from fastce._inputs import gpu as _gpu_arrays
from fastce._runtime import dispatch
from fastce.kernels import cuda as cuda_kernels
from fastce.kernels.cuda import _device, _launch
from fastce.kernels.cuda.attention import arrays as attention_arrays
from support.ptx_machine import Launch
from support.ptx_memory import BASE, Memory
from support.ptx_text import Program

# Where there is no GPU, Numba cannot know for which one to compile the functions that a kernel
# calls. What it makes of them is the same for all.
if not cuda.is_available():
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=(9, 0))


@functools.cache
def _library_of(kernel, argument_types):
    """A kernel in LLVM's language, of which PTX for any GPU is made. `cuda.compile` does the same,
    but would begin from Python for each.
    """
    library, _ = compiler._compile_pyfunc_with_fixup(
        kernel.py_func, _device.signature(argument_types), device=False, abi="numba", cc=(9, 0)
    )
    function = library.get_function(library._entry_name)
    nvvm.set_launch_bounds(function, kernel.targetoptions.get("launch_bounds"))
    return library


@functools.cache
def ptx_of(kernel, argument_types, cc):
    """The PTX of a `cuda.jit` kernel for a compute capability."""
    (text,) = _library_of(kernel, argument_types).get_asm_strs(cc=cc)
    return text


def argument_types(kernel):
    """As a launch has them: parameters without an annotation are integers."""
    parameters = inspect.signature(kernel.py_func).parameters.values()
    return tuple(int if p.annotation is p.empty else p.annotation for p in parameters)


@functools.cache
def program_of(kernel, argument_types):
    return Program(ptx_of(kernel, argument_types, (9, 0)))


_DEVICE = ("limits", "current", "allocate", "address", "upload", "read", "clear", "launch")


class Machine:
    """What `kernels.cuda._device` is, on the host. Like an H100, but for a slower clock."""

    def __init__(self, multiprocessors=132, shared=227 * 1024):
        self.memory = Memory()
        self._limits = SimpleNamespace(
            multiprocessors=multiprocessors, shared=shared, capability=(9, 0)
        )
        self.launches = []

    def limits(self, device):
        return self._limits

    def current(self):
        return 0

    def allocate(self, size, stream, device):
        return SimpleNamespace(handle=self.memory.allocate(size), size=size)

    def address(self, buffer):
        return buffer.handle

    def upload(self, array, stream, device):
        array = np.ascontiguousarray(array)
        buffer = self.allocate(array.nbytes, stream, device)
        if array.nbytes:
            self.memory.write(buffer.handle, array)
        return buffer

    def read(self, address, array, stream, device):
        self.memory.read(address, array)

    def clear(self, address, size, stream, device):
        self.memory.write(address, np.zeros(size, np.uint8))

    def launch(self, kernel, blocks, threads, shared, stream, device, arguments):
        program = program_of(kernel, tuple(map(type, arguments)))
        self.launches.append(SimpleNamespace(kernel=kernel, blocks=blocks, stream=stream))
        assert shared + program.shared_size <= self._limits.shared
        numbers = [*_device.flat(arguments)]
        assert {*map(type, numbers)} <= {int, float}
        Launch(program, self.memory, blocks, threads, shared, numbers).run()

    def install(self, monkeypatch):
        for name in _DEVICE:
            monkeypatch.setattr(_device, name, getattr(self, name))
        monkeypatch.setattr(cuda_kernels, "require", lambda: None)
        library = _gpu_arrays.Library(Array.inspect, Array.like)
        monkeypatch.setitem(_gpu_arrays.LIBRARIES, Array.__module__.partition(".")[0], library)
        forget()
        return self


def forget():
    """What was loaded is loaded again: whether there is a GPU is asked then."""
    kernels.load.cache_clear()
    _launch._plan.cache_clear()
    attention_arrays._tables.clear()
    dispatch._load.cache_clear()


class Array:
    """An array in the memory of a `Machine`, as a library's array on a GPU would be."""

    @property
    def __cuda_array_interface__(self):
        data = self.address, False
        kind = {"shape": self.shape, "strides": self.strides, "typestr": self.dtype.str}
        return {"version": 3, "data": data, "stream": None, **kind}

    def __init__(self, machine, shape, dtype, address=None, strides=None, stream=0):
        self.machine, self.shape, self.dtype = machine, tuple(shape), np.dtype(dtype)
        size = self.dtype.itemsize
        self.nbytes = int(np.prod(self.shape, dtype=np.int64)) * size
        self.address = machine.memory.allocate(self.nbytes) if address is None else address
        self.strides = _dense(self.shape, size) if strides is None else strides
        self.stream = stream

    def inspect(self):
        return _gpu_arrays.DeviceArray(
            self.address, self.shape, self.strides, _gpu_arrays._name(self.dtype), 0, self.stream
        )

    def like(self, first, shape, dtype):
        return Array(self.machine, shape, _gpu_arrays._numpy_dtype(dtype), stream=self.stream)

    def transpose(self, axes):
        return self._again(tuple(self.shape[i] for i in axes), tuple(self.strides[i] for i in axes))

    def _again(self, shape, strides, offset=0):
        address = self.address + offset
        return Array(self.machine, shape, self.dtype, address, tuple(strides), self.stream)

    def get(self):
        """A copy on the host."""
        memory = self.machine.memory
        offset = self.address - BASE
        at = np.full((), offset)
        for n, step in zip(self.shape, self.strides, strict=True):
            at = at[..., None] + np.arange(n) * step
        assert memory.written[at.ravel()].all(), "a result was not written"
        raw = np.lib.stride_tricks.as_strided(
            memory.bytes[offset:].view(np.uint8), (*self.shape, self.dtype.itemsize),
            (*self.strides, 1),
        )  # fmt: skip
        return np.ascontiguousarray(raw).view(self.dtype).reshape(self.shape)


def _dense(shape, size):
    return tuple(size * int(np.prod(shape[i + 1 :], dtype=np.int64)) for i in range(len(shape)))


def put(machine, a, stream=0):
    """A NumPy array, in the memory of the machine, in the same layout."""
    a = np.asarray(a)
    order = sorted(range(a.ndim), key=lambda i: -abs(a.strides[i]))
    dense = np.ascontiguousarray(a.transpose(order))
    there = Array(machine, dense.shape, a.dtype, stream=stream)
    if a.nbytes:
        machine.memory.write(there.address, dense)
    return there.transpose(tuple(int(i) for i in np.argsort(order)))


def launch_user_kernel(machine, kernel, blocks, threads, arrays):
    """Run a kernel that takes arrays. Numba passes each as seven numbers, or more."""
    signature = types.void(*(_type_of(a) for a in arrays))
    ptx, _ = cuda.compile(
        kernel.py_func, signature, device=False, abi="numba", cc=(9, 0), output="ptx"
    )
    arguments = []
    for a in arrays:
        size = a.dtype.itemsize
        arguments += [0, 0, a.nbytes // size, size, a.address, *a.shape, *a.strides]
    program = Program(ptx)
    Launch(program, machine.memory, blocks, threads, 0, arguments).run()


def _type_of(a):
    return types.Array(numba.from_dtype(a.dtype), len(a.shape), "C")
