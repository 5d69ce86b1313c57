"""Arrays on a GPU: from what a user passes to what the cuda kernels take, and back.

What `_arrays.py` is for arrays on the host, but that nothing is copied and nobody waits: a layout
that the kernels cannot take is an error. Each library's arrays are known by two functions in
`LIBRARIES`; what is not there but has ``__cuda_array_interface__``, or DLPack, is viewed through
cuda.core. Nothing here is imported before an array is seen that needs it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from . import host
from .host import Layout

FLOATS = ("float64", "float32", "float16", "bfloat16")
INTEGERS = tuple(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64))
_SIZES = {name: int(name.lstrip("bufloatin")) // 8 for name in (*FLOATS, *INTEGERS)}
_CUDA = 2  # kDLCUDA


class DeviceArray(NamedTuple):
    """An array on a GPU."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # bytes
    dtype: str
    device: int
    stream: int  # on which its owner works with it now
    readonly: bool = False


class Library(NamedTuple):
    inspect: Callable[[Any], DeviceArray]
    empty: Callable[[Any, DeviceArray, tuple[int, ...], str], Any]  # like an array; shape and dtype


def is_on_gpu(x: Any) -> bool:
    """Whether `x` is an array in memory of a GPU."""
    root = _root(x)
    if root == "numpy":
        return False
    if root == "torch":
        return bool(getattr(x, "is_cuda", False))
    if root in LIBRARIES or host.has(x, "__cuda_array_interface__"):
        return hasattr(type(x), "__cuda_array_interface__") or root not in LIBRARIES
    try:
        return hasattr(x, "__dlpack_device__") and x.__dlpack_device__()[0] == _CUDA
    except Exception:  # of an array that is gone, for one; why, says `_arrays.to_numpy`
        return False


def _root(x: Any) -> str:
    """The package that the type of `x` is from."""
    return type(x).__module__.partition(".")[0]


@functools.cache
def _name(dtype: np.dtype) -> str:
    return dtype.name


def inspect_array(x: Any, name: str, booleans: bool = False) -> DeviceArray:
    """Where the array `x` lies, and what it is."""
    if not is_on_gpu(x):
        raise TypeError(
            f"{name} must be on the GPU, as the other arrays are, got {type(x).__name__}"
        )
    seen = LIBRARIES.get(_root(x), _ANY).inspect(x)
    size = 1 if booleans and seen.dtype == "bool" else _SIZES.get(seen.dtype)
    if size is None:
        raise TypeError(f"{name} must be of a floating or integer dtype, got {seen.dtype}")
    if any(number % size for number in (seen.address, *seen.strides)):
        raise ValueError(f"{name} is not aligned to its dtype {seen.dtype}")
    return seen


def empty(x: Any, seen: DeviceArray, shape: tuple[int, ...], dtype: str) -> Any:
    """A new array of the kind of `x`, on its GPU."""
    return LIBRARIES.get(_root(x), _ANY).empty(x, seen, shape, dtype)


# ---- libraries -------------------------------------------------------------------------------


@functools.lru_cache(maxsize=256)
def _dense(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    strides = [itemsize] * len(shape)
    for i in range(len(shape) - 2, -1, -1):
        strides[i] = strides[i + 1] * max(shape[i + 1], 1)
    return tuple(strides)


def _inspect_torch(x: Any) -> DeviceArray:
    import torch

    if x.requires_grad:
        raise TypeError("a tensor that requires grad would lose it here: use tensor.detach()")
    if x.layout != torch.strided:
        raise TypeError(f"a tensor must be dense, got layout {x.layout}")
    if x.is_neg():
        raise TypeError(
            "a tensor that is the negative of its memory (is_neg()) cannot be used without a copy, "
            "and on a GPU nothing is copied: use tensor.resolve_neg()"
        )
    address, size, device = x.data_ptr(), x.element_size(), x.device.index
    if not address and x.numel():
        raise TypeError(f"a {type(x).__name__} without memory of its own cannot be used")
    return DeviceArray(
        address,
        tuple(x.shape),
        tuple(s * size for s in x.stride()),
        str(x.dtype).removeprefix("torch."),
        device,
        torch.cuda.current_stream(device).cuda_stream,
    )


def _empty_torch(x: Any, seen: DeviceArray, shape: tuple[int, ...], dtype: str) -> Any:
    import torch

    return torch.empty(shape, dtype=getattr(torch, dtype), device=x.device)


def _inspect_cupy(x: Any) -> DeviceArray:
    import cupy

    with x.device:
        stream = cupy.cuda.get_current_stream().ptr
    return DeviceArray(x.data.ptr, x.shape, x.strides, _name(x.dtype), x.device.id, stream)


def _empty_cupy(x: Any, seen: DeviceArray, shape: tuple[int, ...], dtype: str) -> Any:
    import cupy

    with x.device:
        return cupy.empty(shape, _numpy_dtype(dtype))


def _inspect_numba(x: Any) -> DeviceArray:
    stream = getattr(x.stream, "handle", x.stream)
    stream = int(getattr(stream, "value", stream) or 0)
    device = x.gpu_data.context.device.id if hasattr(x, "gpu_data") else 0
    address = x.__cuda_array_interface__["data"][0]
    return DeviceArray(address, x.shape, x.strides, _name(x.dtype), device, stream)


def _empty_numba(x: Any, seen: DeviceArray, shape: tuple[int, ...], dtype: str) -> Any:
    from numba import cuda

    with cuda.gpus[seen.device]:
        return cuda.device_array(shape, _numpy_dtype(dtype), stream=getattr(x, "stream", 0))


def _numpy_dtype(name: str) -> np.dtype:
    if name != "bfloat16":
        return np.dtype(name)
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


def _inspect_any(x: Any) -> DeviceArray:
    """By DLPack: the owner's work is put before that on the legacy default stream, which is used
    here. Else by ``__cuda_array_interface__``, which names no GPU: the current one, then.
    """
    if not hasattr(x, "__dlpack__"):
        interface = x.__cuda_array_interface__
        dtype, shape = np.dtype(interface["typestr"]), tuple(interface["shape"])
        address, readonly = interface["data"]
        strides = interface.get("strides") or _dense(shape, dtype.itemsize)
        stream = interface.get("stream") or 0
        if interface.get("mask") is not None:
            raise TypeError(f"{type(x).__name__} has a mask, which would be ignored; fill it first")
        return DeviceArray(address, shape, tuple(strides), dtype.name, _current(), stream, readonly)
    from cuda.core.utils import StridedMemoryView

    view = StridedMemoryView.from_dlpack(x, stream_ptr=1)
    size = view.dtype.itemsize
    strides = view.strides or tuple(s // size for s in _dense(view.shape, size))
    return DeviceArray(
        view.ptr,
        tuple(view.shape),
        tuple(s * size for s in strides),
        view.dtype.name,
        view.device_id,
        1,
        view.readonly,
    )


def _empty_any(x: Any, seen: DeviceArray, shape: tuple[int, ...], dtype: str) -> Any:
    if not hasattr(x, "__array_namespace__"):
        return _empty_numba(x, seen, shape, dtype)
    return x.__array_namespace__().empty(shape, dtype=_numpy_dtype(dtype), device=x.device)


def _current() -> int:
    from ..kernels.cuda import _device

    return _device.current()


_ANY = Library(_inspect_any, _empty_any)
#: By the name of the package that an array's type is from.
LIBRARIES = {
    "torch": Library(_inspect_torch, _empty_torch),
    "cupy": Library(_inspect_cupy, _empty_cupy),
    "numba": Library(_inspect_numba, _empty_numba),
    "numba_cuda": Library(_inspect_numba, _empty_numba),
}


# ---- canonical form --------------------------------------------------------------------------


def layout_of(a: DeviceArray, axis: int, name: str) -> Layout:
    """The folding of `a` about `axis`."""
    dense = a.strides == _dense(a.shape, _SIZES[a.dtype])
    try:
        return host.fold(a.shape, None if dense else a.strides, axis, name)
    except TypeError:
        raise TypeError(f"axis must be an integer, got {axis!r}") from None


def floating(x: Any, name: str) -> DeviceArray:
    a = inspect_array(x, name)
    if a.dtype not in FLOATS:
        raise TypeError(f"{name} must be float64, float32, float16 or bfloat16, got {a.dtype}")
    return a


def compute_dtype(dtype: str) -> str:
    return "float64" if dtype == "float64" else "float32"


def planes(a: DeviceArray, layout: Layout, name: str) -> Any:
    """`a` as (outer, n, inner). It must lie so in memory: nothing is copied on a GPU."""
    from ..kernels.cuda._arrays import View

    step = _step(a.shape, a.strides, _SIZES[a.dtype], layout)
    if step is None:
        raise ValueError(
            f"{name} of shape {a.shape} and strides {a.strides} bytes cannot be used without a "
            "copy, and on a GPU nothing is copied: make it contiguous first"
        )
    outer, n, inner = layout.shape
    if name == "out" and outer > 1 and abs(step) < n * inner:
        raise ValueError(f"out with shape {a.shape} and strides {a.strides} bytes overlaps itself")
    return View(a.address, layout.shape, step, a.dtype, a.stream, a.device)


@functools.lru_cache(maxsize=256)
def _step(shape: tuple, strides: tuple, size: int, layout: Layout) -> int | None:
    """Elements from plane to plane; None where the planes are not dense, or do not follow so."""
    outer, n, inner = layout.shape
    if 0 in layout.shape:
        return n * inner
    order = layout.order or tuple(range(len(shape)))
    at = order.index(layout.axis)
    stride = _folded(shape, strides, order[:at])
    if stride is None or not _is_dense(shape, strides, size, order[at:]):
        return None
    return stride // size if outer > 1 else n * inner


def _folded(shape: tuple, strides: tuple, axes: tuple) -> int | None:
    """The stride of these axes as one, 0 where they have one element; None if there is none."""
    first, expected = 0, None
    for i in reversed(axes):
        if shape[i] == 1:
            continue
        if expected is None:
            first = strides[i]
        elif strides[i] != expected:
            return None
        expected = strides[i] * shape[i]
    return first


@functools.lru_cache(maxsize=256)
def _is_dense(shape: tuple, strides: tuple, size: int, axes: tuple) -> bool:
    return all(shape[i] == 1 for i in axes) or _folded(shape, strides, axes) == size


def per_row(a: DeviceArray, layout: Layout, name: str) -> Any:
    """`a`, with one number for each row, as (outer, inner)."""
    from ..kernels.cuda._arrays import View

    outer, _, inner = layout.shape
    if a.shape != layout.rest_shape:
        raise ValueError(f"{name} must have shape {layout.rest_shape}, got {a.shape}")
    order = layout.rest_order or tuple(range(len(a.shape)))
    if 0 not in a.shape and not _is_dense(a.shape, a.strides, _SIZES[a.dtype], order):
        raise ValueError(
            f"{name} of shape {a.shape} and strides {a.strides} bytes must lie in memory as the "
            "rows of the logits do, without gaps: nothing is copied on a GPU"
        )
    return View(a.address, (outer, inner), 0, a.dtype, a.stream, a.device)


def check_out(out: Any, shape: tuple[int, ...], dtype: str) -> DeviceArray:
    a = inspect_array(out, "out")
    if a.shape != shape or a.dtype != dtype:
        raise ValueError(
            f"out must have shape {shape} and dtype {dtype}, got {a.shape} and {a.dtype}"
        )
    if a.readonly:
        raise ValueError("out is read-only")
    return a


def check_apart(a: DeviceArray, out: DeviceArray, name: str) -> None:
    """`out` may be `a`, but not a part of it: nothing is copied on a GPU."""
    if a.address == out.address and (a.shape, a.dtype) == (out.shape, out.dtype):
        pairs = zip(a.strides, out.strides, a.shape, strict=True)
        if all(one == other or n == 1 for one, other, n in pairs):
            return
    (low, high), (out_low, out_high) = _extent(a), _extent(out)
    if low < out_high and out_low < high:
        raise ValueError(f"out overlaps {name} in part")


def _extent(a: DeviceArray) -> tuple[int, int]:
    """The first byte of an array, and the one after its last."""
    if 0 in a.shape:
        return a.address, a.address
    steps = [(n - 1) * s for n, s in zip(a.shape, a.strides, strict=True)]
    low = a.address + sum(s for s in steps if s < 0)
    return low, a.address + sum(s for s in steps if s > 0) + _SIZES.get(a.dtype, 1)  # 1: bool


def new_like(x: Any, a: DeviceArray, layout: Layout) -> tuple[Any, DeviceArray]:
    """A new array of the shape, dtype and order of axes of `a`."""
    order = layout.order
    if order is None:
        result = empty(x, a, a.shape, a.dtype)
    else:
        folded = empty(x, a, tuple(a.shape[i] for i in order), a.dtype)
        result = permuted(folded, tuple(int(i) for i in np.argsort(order)))
    return result, inspect_array(result, "result")


def permuted(x: Any, axes: tuple[int, ...]) -> Any:
    """A view of `x` with its axes in another order."""
    if _root(x) in ("numba", "numba_cuda"):  # whose transpose copies
        from numba.cuda.cudadrv.devicearray import DeviceNDArray

        shape, strides = (tuple(of[i] for i in axes) for of in (x.shape, x.strides))
        return DeviceNDArray(shape, strides, x.dtype, stream=x.stream, gpu_data=x.gpu_data)
    return x.permute(axes) if hasattr(x, "permute") else x.transpose(axes)


def new_rows(
    x: Any, a: DeviceArray, layout: Layout, dtype: str, keepdims: bool = False
) -> tuple[Any, Any]:
    """One number for each row: in canonical form, and as the user sees it."""
    from ..kernels.cuda._arrays import View

    outer, _, inner = layout.shape
    at, shape = layout.axis, layout.rest_shape
    order = layout.rest_order or tuple(range(len(shape)))
    folded = tuple(shape[i] for i in order) + (1,) * keepdims
    axes = [int(i) for i in np.argsort(order)] if order else []
    if keepdims:
        axes.insert(at, len(order))
    if layout.rest_order is None:  # C-contiguous, where an axis of length 1 may stand anywhere
        result = empty(x, a, tuple(folded[i] for i in axes), dtype)
    else:
        result = permuted(empty(x, a, folded, dtype), tuple(axes))
    seen = inspect_array(result, "result")
    return View(seen.address, (outer, inner), 0, dtype, a.stream, a.device), result


def check_device(a: DeviceArray, other: DeviceArray, name: str) -> None:
    if a.device != other.device:
        raise ValueError(f"{name} is on GPU {other.device}, and not on GPU {a.device}")


# ---- softmax ---------------------------------------------------------------------------------


def map_rows(x: Any, axis: int, out: Any) -> tuple[Any, Any, Any]:
    """Canonical input, canonical output and result, for an op from a shape to the same shape."""
    a = floating(x, "x")
    layout, to, result = _room(x, a, {"x": a}, axis, out)
    return planes(a, layout, "x"), to, result


def map_pairs(grad: Any, y: Any, axis: int, out: Any) -> tuple[Any, Any, Any, Any]:
    """The same for an op of two arrays of one shape."""
    g, p = floating(grad, "grad"), floating(y, "y")
    if g.shape != p.shape or g.dtype != p.dtype:
        raise ValueError(
            "grad and y must have the same shape and dtype, got "
            f"{g.shape} {g.dtype} and {p.shape} {p.dtype}"
        )
    check_device(g, p, "y")
    layout, to, result = _room(y, p, {"grad": g, "y": p}, axis, out)
    return planes(g, layout, "grad"), planes(p, layout, "y"), to, result


def _room(
    x: Any, a: DeviceArray, inputs: dict[str, DeviceArray], axis: int, out: Any
) -> tuple[Layout, Any, Any]:
    """The layout of a result like `x`, seen as `a`; its canonical form; and itself, which is
    `out` where that was given. It goes on the stream of the first input.
    """
    name, first = next(iter(inputs.items()))
    if out is None:
        layout = layout_of(a, axis, name)
        result, to = new_like(x, a, layout)
    else:
        result, to = out, check_out(out, a.shape, a.dtype)
        check_device(first, to, "out")
        for which, seen in inputs.items():
            check_apart(seen, to, which)
        layout = layout_of(to, axis, name)
    if 0 in a.shape:
        layout = host.without_rows(layout)
    return layout, planes(to, layout, "out")._replace(stream=first.stream), result
