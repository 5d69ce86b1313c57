"""The two memories that attention's arrays may be in: the host's, and that of a GPU.

The host copies what a kernel cannot take. On a GPU nothing is copied and the host does not wait:
there, that is an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.lib.stride_tricks import as_strided

from .._runtime.dispatch import gpu_kernel, kernel
from .._runtime.options import get_allow_tf32
from .._runtime.threads import get_num_threads
from . import attention_spans, gpu, host
from .attention_spans import Excess, Given
from .gpu import DeviceArray

Shape = tuple[int, ...]


class Memory(Protocol):
    """What attention needs of a memory. An array is an ndarray or a `DeviceArray`; a view is what
    a kernel takes: an ndarray, bfloat16 as uint16, or an `AttentionArray`.
    """

    groups_one_head: bool  # whether a key head that all heads share is passed as one
    adds_to_grads: bool  # whether kernels do not write all of a gradient

    def kernel(self, name: str) -> Callable[..., None]: ...

    def num_threads(self) -> int: ...

    def floating(self, x: Any, name: str) -> Any:
        """An argument of the user as an array. `q` comes first."""

    def contiguous(self, a: Any, name: str) -> Any:
        """`a` with its last axis contiguous."""

    def converted(self, a: Any, dtype: Any) -> Any:
        """`a` in that dtype, where that may be done."""

    def mask(self, x: Any, dtype: Any) -> Any:
        """The mask for scores of that dtype."""

    def compute_dtype(self, dtype: Any) -> Any: ...

    def broadcast(self, a: Any, shape: Shape) -> Any:
        """A view of `a`, also where it will be written."""

    def per_sequence(self, a: Any, count: int) -> Any:
        """A view of a packed array (total, heads, ...), the same for each of `count` entries."""

    def new(
        self, x: Any, shape: Shape, dtype: Any, like: Any = None, zero: bool = False
    ) -> tuple[Any, Any]:
        """A new array of the kind of `x`, with the axes of `like` in the same order in memory:
        the object to return, and the array.
        """

    def workspace(self, shape: Shape, dtype: Any, like: Any = None, zero: bool = False) -> Any:
        """An array that is not returned."""

    def check_out(self, out: Any, shape: Shape, dtype: Any) -> Any:
        """The user's `out` as an array."""

    def apart(self, a: Any, out: Any, name: str) -> Any:
        """`a`, which `out` must not overlap."""

    def sum_into(self, full: Any, result: Any) -> None:
        """Sum the axes of `full` along which `result` has length 1, or does not have."""

    def spans(self, entries: int, queries: int, keys: int, given: Given, excess: Excess) -> Any: ...


def memory_of(x: Any) -> Memory:
    return GPU() if type(x) is not np.ndarray and gpu.is_on_gpu(x) else HOST


def check_mask_dtype(dtype: Any, of_q: Any, got: str) -> None:
    if dtype not in (bool, "bool", of_q):
        raise TypeError(f"attn_mask must be boolean or have q's dtype {of_q}, got {got}")


def _order(a: Any, shape: Shape) -> list[int] | None:
    """The axes of `a` in the order in which they lie in memory, but the last one last; None where
    a new array of `shape` has its own.
    """
    if a is None or len(a.shape) != len(shape):
        return None
    last = len(shape) - 1
    strides = a.strides
    order = sorted(range(last), key=lambda i: -abs(strides[i]) if a.shape[i] > 1 else 0)
    return None if order == sorted(order) else [*order, last]


def _broadcast_strides(a: Any, shape: Shape) -> Shape:
    new = (0,) * (len(shape) - len(a.shape))
    pairs = zip(a.shape, shape[len(new) :], a.strides, strict=True)
    return (*new, *(0 if n == 1 and want != 1 else s for n, want, s in pairs))


def _sequence_axes(a: Any, count: int) -> tuple[Shape, Shape]:
    (rows, heads, *rest), (row, head, *behind) = a.shape, a.strides
    return (count, heads, rows, *rest), (0, head, row, *behind)


def _check_out_strides(shape: Shape, strides: Shape, itemsize: int) -> None:
    if shape[-1] > 1 and strides[-1] != itemsize and 0 not in shape:
        raise ValueError(f"out must be contiguous in its last axis, got strides {strides} bytes")
    host.check_no_overlap(shape, strides, itemsize)


class Host:
    groups_one_head, adds_to_grads = False, True
    num_threads = staticmethod(get_num_threads)
    floating = staticmethod(host.floating)
    compute_dtype = staticmethod(host.compute_dtype)
    spans = staticmethod(attention_spans.on_host)

    def kernel(self, name: str) -> Callable[..., None]:
        return kernel("attention", name)

    def contiguous(self, a: np.ndarray, name: str) -> np.ndarray:
        return host.row_contiguous(a)

    def converted(self, a: np.ndarray, dtype: np.dtype) -> np.ndarray:
        return a.astype(dtype, copy=False)

    def mask(self, x: Any, dtype: np.dtype) -> np.ndarray:
        mask = host.to_numpy(x, "attn_mask")
        native = mask.dtype.newbyteorder("=")
        check_mask_dtype(native, dtype, host.described(mask))
        mask = mask.astype(native, copy=not mask.flags.aligned)
        return host.row_contiguous(mask) if mask.ndim else mask

    def broadcast(self, a: np.ndarray, shape: Shape) -> np.ndarray:
        a = host.bits(a)
        if a.shape == shape:
            return a
        if a.size == math.prod(shape):
            return a.reshape(shape)  # with axes of length 1
        return as_strided(a, shape, _broadcast_strides(a, shape))

    def per_sequence(self, a: np.ndarray, count: int) -> np.ndarray:
        a = host.bits(a)
        return as_strided(a, *_sequence_axes(a, count))

    def new(
        self, x: Any, shape: Shape, dtype: Any, like: Any = None, zero: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        a = self.workspace(shape, dtype, like, zero)
        return a, a

    def workspace(
        self, shape: Shape, dtype: Any, like: Any = None, zero: bool = False
    ) -> np.ndarray:
        make = np.zeros if zero else np.empty
        order = None if like is None or like.flags.c_contiguous else _order(like, shape)
        if order is None:
            return make(shape, dtype)
        return make([shape[i] for i in order], dtype).transpose(np.argsort(order))

    def check_out(self, out: Any, shape: Shape, dtype: Any) -> np.ndarray:
        a = host.check_out(out, shape, dtype)
        _check_out_strides(shape, a.strides, a.itemsize)
        return a

    def apart(self, a: np.ndarray, out: np.ndarray, name: str) -> np.ndarray:
        return host.separate(a, out)

    def sum_into(self, full: np.ndarray, result: np.ndarray) -> None:
        front = full.ndim - result.ndim
        behind = zip(result.shape, full.shape[front:], strict=True)
        axes = (*range(front), *(front + i for i, (n, of) in enumerate(behind) if n == 1 != of))
        if axes:
            full = full.sum(axes, host.compute_dtype(full.dtype)).reshape(result.shape)
        with np.errstate(over="ignore"):  # beyond the range of a dtype is infinity
            result[...] = full


HOST = Host()


class GPU:
    """Of one call, on the device and stream of its first array."""

    groups_one_head, adds_to_grads = True, False
    compute_dtype = staticmethod(gpu.compute_dtype)

    def __init__(self) -> None:
        self.kernel("attention")  # raises, and says why, where it cannot be used
        self.first: Any = None  # the `DeviceArray` of q
        self.kept: list[Any] = []  # memory that kernels use

    def kernel(self, name: str) -> Callable[..., None]:
        return gpu_kernel("attention", name)

    def num_threads(self) -> int:
        return 1

    def _checked(self, a: DeviceArray, name: str) -> DeviceArray:
        self.first = self.first or a
        gpu.check_device(self.first, a, name)
        return a

    def floating(self, x: Any, name: str) -> DeviceArray:
        return self._checked(gpu.floating(x, name), name)

    def contiguous(self, a: DeviceArray, name: str) -> DeviceArray:
        if a.shape and a.shape[-1] > 1 and a.strides[-1] != gpu._SIZES[a.dtype]:
            raise ValueError(
                f"{name} must be contiguous in its last axis, got strides {a.strides} bytes: "
                "nothing is copied on a GPU"
            )
        return a

    def converted(self, a: DeviceArray, dtype: str) -> DeviceArray:
        return a

    def mask(self, x: Any, dtype: str) -> DeviceArray:
        mask = self._checked(gpu.inspect_array(x, "attn_mask", booleans=True), "attn_mask")
        check_mask_dtype(mask.dtype, dtype, mask.dtype)
        return mask

    def _view(self, a: DeviceArray, shape: Shape, strides: Shape) -> Any:
        from ..kernels.cuda.attention.arrays import AttentionArray

        tf32 = a.dtype == "float32" and get_allow_tf32()
        dtype = "tfloat32" if tf32 else a.dtype
        return AttentionArray(a.address, shape, strides, dtype, self.first.stream, a.device)

    def broadcast(self, a: DeviceArray, shape: Shape) -> Any:
        return self._view(a, shape, _broadcast_strides(a, shape))

    def per_sequence(self, a: DeviceArray, count: int) -> Any:
        return self._view(a, *_sequence_axes(a, count))

    def new(
        self, x: Any, shape: Shape, dtype: str, like: Any = None, zero: bool = False
    ) -> tuple[Any, DeviceArray]:
        order = _order(like, shape)
        if order is None:
            result = gpu.empty(x, self.first, shape, dtype)
        else:
            result = gpu.empty(x, self.first, tuple(shape[i] for i in order), dtype)
            result = gpu.permuted(result, tuple(int(i) for i in np.argsort(order)))
        a = gpu.inspect_array(result, "result")
        return result, self._cleared(a) if zero else a

    def workspace(
        self, shape: Shape, dtype: str, like: Any = None, zero: bool = False
    ) -> DeviceArray:
        from ..kernels.cuda import _device

        device, stream, size = self.first.device, self.first.stream, gpu._SIZES[dtype]
        self.kept.append(_device.allocate(math.prod(shape) * size, stream, device))
        address = _device.address(self.kept[-1])
        a = DeviceArray(address, shape, gpu._dense(shape, size), dtype, device, stream)
        return self._cleared(a) if zero else a

    def _cleared(self, a: DeviceArray) -> DeviceArray:
        from ..kernels.cuda import _device

        size = math.prod(a.shape) * gpu._SIZES[a.dtype]
        _device.clear(a.address, size, self.first.stream, self.first.device)
        return a

    def check_out(self, out: Any, shape: Shape, dtype: str) -> DeviceArray:
        a = self._checked(gpu.check_out(out, shape, dtype), "out")
        _check_out_strides(shape, a.strides, gpu._SIZES[dtype])
        return a

    def apart(self, a: DeviceArray, out: DeviceArray, name: str) -> DeviceArray:
        (low, high), (out_low, out_high) = gpu._extent(a), gpu._extent(out)
        if low < out_high and out_low < high:
            raise ValueError(f"out overlaps {name}: nothing is copied on a GPU")
        return a

    def sum_into(self, full: DeviceArray, result: DeviceArray) -> None:
        from ..kernels.cuda.attention.extras import sum_members

        shape = (1,) * (2 - len(full.shape)) + full.shape
        sum_members(self.broadcast(full, shape), self.broadcast(result, shape))

    def spans(self, entries: int, queries: int, keys: int, given: Given, excess: Excess) -> Any:
        if not any(gpu.is_on_gpu(x) for x, _ in given.values()):
            return attention_spans.on_host(entries, queries, keys, given, excess)
        a, kept = attention_spans.on_gpu(self.first, entries, queries, keys, given, excess)
        self.kept += kept
        return self._view(a, a.shape, a.strides)
