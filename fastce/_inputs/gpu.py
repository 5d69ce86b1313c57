"""Arrays on a GPU: from what a user passes to what the cuda kernels take, and back.

The same functions as in `host`, see `memory.Memory`; but nothing is copied, and the host does not
wait: what the kernels cannot take as it lies is an error. `LIBRARIES` has two functions for the
arrays of each library; others are viewed by ``__cuda_array_interface__``, or by DLPack through
cuda.core. A library is imported only for its arrays.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .._runtime import dispatch
from . import host
from .host import Layout, Order

FLOATS = ("float64", "float32", "float16", "bfloat16")
INTEGERS = tuple(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64))
_SIZES = {name: int(name.lstrip("bufloatin")) // 8 for name in (*FLOATS, *INTEGERS)}
_CUDA = 2  # kDLCUDA

READABLE = False
kernel = dispatch.gpu_kernel


class DeviceArray(NamedTuple):
    """An array on a GPU."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # bytes
    dtype: str
    device: int
    stream: int  # on which its owner works with it now
    readonly: bool = False
    owner: Any = None  # the user's array; new ones are of its kind


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
    except Exception:  # as of an array that is gone; `host.to_numpy` says why
        return False


def _root(x: Any) -> str:
    """The package that the type of `x` is from."""
    return type(x).__module__.partition(".")[0]


@functools.cache
def _name(dtype: np.dtype) -> str:
    return dtype.name


def inspect_array(x: Any, name: str, booleans: bool = False, first: Any = None) -> DeviceArray:
    """Where the array `x` lies, and what it is. Its kernels are put on the stream of `first`."""
    if not is_on_gpu(x):
        raise TypeError(
            f"{name} must be on the GPU, as the other arrays are, got {type(x).__name__}"
        )
    a = LIBRARIES.get(_root(x), _ANY).inspect(x)
    size = 1 if booleans and a.dtype == "bool" else _SIZES.get(a.dtype)
    if size is None:
        raise TypeError(f"{name} must be of a floating or integer dtype, got {a.dtype}")
    if any(number % size for number in (a.address, *a.strides)):
        raise ValueError(f"{name} is not aligned to its dtype {a.dtype}")
    if first is None:
        return a._replace(owner=x)
    check_device(first, a, name)
    return a._replace(owner=x, stream=first.stream)


def inspect(x: Any, name: str, first: Any = None) -> DeviceArray:
    return inspect_array(x, name, True, first)


def empty(x: Any, a: DeviceArray, shape: tuple[int, ...], dtype: str) -> Any:
    """A new array of the kind of `x`, on its GPU."""
    return LIBRARIES.get(_root(x), _ANY).empty(x, a, shape, dtype)


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


def _empty_torch(x: Any, a: DeviceArray, shape: tuple[int, ...], dtype: str) -> Any:
    import torch

    return torch.empty(shape, dtype=getattr(torch, dtype), device=x.device)


def _inspect_cupy(x: Any) -> DeviceArray:
    import cupy

    with x.device:
        stream = cupy.cuda.get_current_stream().ptr
    return DeviceArray(x.data.ptr, x.shape, x.strides, _name(x.dtype), x.device.id, stream)


def _empty_cupy(x: Any, a: DeviceArray, shape: tuple[int, ...], dtype: str) -> Any:
    import cupy

    with x.device:
        return cupy.empty(shape, _numpy_dtype(dtype))


def _inspect_numba(x: Any) -> DeviceArray:
    stream = getattr(x.stream, "handle", x.stream)
    stream = int(getattr(stream, "value", stream) or 0)
    device = x.gpu_data.context.device.id if hasattr(x, "gpu_data") else 0
    address = x.__cuda_array_interface__["data"][0]
    return DeviceArray(address, x.shape, x.strides, _name(x.dtype), device, stream)


def _empty_numba(x: Any, a: DeviceArray, shape: tuple[int, ...], dtype: str) -> Any:
    from numba import cuda

    with cuda.gpus[a.device]:
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


def _empty_any(x: Any, a: DeviceArray, shape: tuple[int, ...], dtype: str) -> Any:
    if not hasattr(x, "__array_namespace__"):
        return _empty_numba(x, a, shape, dtype)
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


# ---- inputs ----------------------------------------------------------------------------------


def compute_dtype(dtype: str) -> str:
    return "float64" if dtype == "float64" else "float32"


def is_floating(dtype: str) -> bool:
    return dtype in FLOATS


def is_integer(dtype: str) -> bool:
    return dtype in INTEGERS


def described(a: DeviceArray) -> str:
    return a.dtype


def num_threads() -> int:
    """Kernels have no use for it."""
    return 1


def floating(x: Any, name: str, first: Any = None) -> DeviceArray:
    a = inspect_array(x, name, False, first)
    if a.dtype not in FLOATS:
        raise TypeError(f"{name} must be float64, float32, float16 or bfloat16, got {a.dtype}")
    return a


def upstream(x: Any, reduction: str, name: str, first: Any = None) -> DeviceArray | float:
    """`grad_loss`: on the GPU, or a number of the host."""
    if is_on_gpu(x):
        return floating(x, "grad_loss", first)
    number = np.asarray(x)
    fits = number.ndim == 0 or (number.size == 1 and reduction != "none")
    if not fits or number.dtype.kind not in "fiu":
        raise TypeError(
            f"grad_loss must be a number, or on the GPU as {name} is, got {type(x).__name__} of "
            f"shape {number.shape}"
        )
    return float(number.reshape(()))


def target_in(t: DeviceArray, dtype: str, name: str) -> DeviceArray:
    if t.dtype in FLOATS and t.dtype not in (dtype, compute_dtype(dtype)):
        wide = "" if dtype == compute_dtype(dtype) else f", or {compute_dtype(dtype)}"
        raise ValueError(
            f"target must have the dtype of {name}, {dtype}{wide}, or an integer one, got "
            f"{t.dtype}: nothing is converted on a GPU"
        )
    return t


def check_device(a: DeviceArray, other: DeviceArray, name: str) -> None:
    if a.device != other.device:
        raise ValueError(f"{name} is on GPU {other.device}, and not on GPU {a.device}")


# ---- canonical form --------------------------------------------------------------------------


def layout_of(a: DeviceArray, axis: int, name: str) -> Layout:
    """The folding of `a` about `axis`."""
    dense = a.strides == _dense(a.shape, _SIZES[a.dtype])
    try:
        return host.fold(a.shape, None if dense else a.strides, axis, name)
    except TypeError:
        raise TypeError(f"axis must be an integer, got {axis!r}") from None


def _view(a: DeviceArray, shape: tuple[int, ...], step: int = 0) -> Any:
    """As a kernel takes it; booleans are numbers."""
    from ..kernels.cuda._arrays import View

    dtype = "uint8" if a.dtype == "bool" else a.dtype
    return View(a.address, shape, step, dtype, a.stream, a.device)


def rows_in(a: DeviceArray, layout: Layout, name: str = "") -> Any:
    """`a` as (outer, n, inner)."""
    step = _step(a.shape, a.strides, _SIZES[a.dtype], layout)
    if step is None:
        raise ValueError(
            f"{name} of shape {a.shape} and strides {a.strides} bytes cannot be used without a "
            "copy, and on a GPU nothing is copied: make it contiguous first"
        )
    return _view(a, layout.shape, step)


def rows_out(out: DeviceArray, layout: Layout) -> Any:
    rows = rows_in(out, layout, "out")
    outer, n, inner = layout.shape
    if outer > 1 and abs(rows.step) < n * inner:
        raise ValueError(
            f"out with shape {out.shape} and strides {out.strides} bytes overlaps itself"
        )
    return rows


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


def row_in(a: DeviceArray, layout: Layout, dtype: Any, name: str = "") -> Any:
    """`a`, with one number for each row, as (outer, inner)."""
    outer, _, inner = layout.shape
    order = layout.rest_order or tuple(range(len(a.shape)))
    if 0 not in a.shape and not _is_dense(a.shape, a.strides, _SIZES[a.dtype], order):
        raise ValueError(
            f"{name} of shape {a.shape} and strides {a.strides} bytes must lie in memory as the "
            "rows of the logits do, without gaps: nothing is copied on a GPU"
        )
    return _view(a, (outer, inner))


def labels_in(t: DeviceArray, layout: Layout, ignore_index: int) -> Any:
    return row_in(t, layout, t.dtype, "target")


def row_out(
    layout: Layout, dtype: str, out: Any = None, keepdims: bool = False, first: Any = None
) -> tuple[Any, Any]:
    """One number for each row: in canonical form, and as the user sees it."""
    outer, _, inner = layout.shape
    at, shape, order = layout.axis, layout.rest_shape, layout.rest_order
    if out is not None:
        if len(out.shape) > len(shape):  # keepdims
            out = out._replace(shape=shape, strides=(*out.strides[:at], *out.strides[at + 1 :]))
        return row_in(out, layout, dtype, "out"), out.owner
    if keepdims:
        shape, order = (*shape[:at], 1, *shape[at:]), layout.order
    a, result = allocate(shape, dtype, order, first)
    return _view(a, (outer, inner)), result


def vector_in(a: DeviceArray, dtype: Any, name: str = "") -> Any:
    return rows_in(a, layout_of(a, 0, name), name)


def number_in(a: DeviceArray, shape: tuple[int, ...], dtype: Any) -> Any:
    return _view(a, shape)


# ---- canonical form of elementwise ops -------------------------------------------------------


def order_of(a: DeviceArray) -> Order:
    if a.strides == _dense(a.shape, _SIZES[a.dtype]):
        return None
    return tuple(sorted(range(len(a.shape)), key=lambda i: -abs(a.strides[i])))


def flat_in(a: DeviceArray, order: Order, name: str = "", dtype: Any = None) -> Any:
    return _flat(a, order or tuple(range(len(a.shape))), name)


def flat_out(out: DeviceArray, order: Order) -> Any:
    return flat_in(out, order, "out")


def _flat(a: DeviceArray, axes: tuple[int, ...], name: str) -> Any:
    shape = tuple(a.shape[i] for i in axes)
    strides = tuple(a.strides[i] for i in axes)
    size = _SIZES.get(a.dtype, 1)  # 1: bool
    if 0 not in shape and not _is_dense(shape, strides, size, tuple(range(len(shape)))):
        raise ValueError(
            f"{name} of shape {a.shape} and strides {a.strides} bytes must lie densely in memory, "
            "in the order of the axes of the input: nothing is copied on a GPU"
        )
    return _view(a, (math.prod(shape),))


def period_in(
    w: DeviceArray, shape: tuple[int, ...], order: Order, same: int, dtype: Any, name: str
) -> Any:
    axes = (order or tuple(range(len(shape))))[same:]
    missing = len(shape) - len(w.shape)
    own = tuple(i - missing for i in axes if i >= missing)
    if math.prod(w.shape[i] for i in own) != math.prod(shape[i] for i in axes):
        raise ValueError(
            f"{name} of shape {w.shape} must vary along the last axes in memory of the input, "
            f"{shape}: nothing is copied on a GPU, so expand it first"
        )
    return _flat(w, own, name)


# ---- outputs ---------------------------------------------------------------------------------


def allocate(
    shape: tuple[int, ...], dtype: str, order: Order = None, first: Any = None
) -> tuple[DeviceArray, Any]:
    """A new array of the kind of `first`, its axes in this order: where it lies, and itself."""
    if not order:
        result = empty(first.owner, first, shape, dtype)
    else:
        folded = empty(first.owner, first, tuple(shape[i] for i in order), dtype)
        result = permuted(folded, tuple(int(i) for i in np.argsort(order)))
    return inspect_array(result, "result", first=first), result


def new_number(shape: tuple[int, ...], dtype: str, first: Any = None) -> tuple[Any, Any]:
    a, result = allocate((), dtype, None, first)
    return _view(a, shape), result


def permuted(x: Any, axes: tuple[int, ...]) -> Any:
    """A view of `x` with its axes in another order."""
    if _root(x) in ("numba", "numba_cuda"):  # whose transpose copies
        from numba.cuda.cudadrv.devicearray import DeviceNDArray

        shape, strides = (tuple(of[i] for i in axes) for of in (x.shape, x.strides))
        return DeviceNDArray(shape, strides, x.dtype, stream=x.stream, gpu_data=x.gpu_data)
    return x.permute(axes) if hasattr(x, "permute") else x.transpose(axes)


def check_out(
    out: Any, shape: tuple[int, ...], dtype: str, name: str = "out", first: Any = None
) -> DeviceArray:
    a = inspect_array(out, name, first=first)
    if a.shape != shape or a.dtype != dtype:
        raise ValueError(
            f"{name} must have shape {shape} and dtype {dtype}, got {a.shape} and {a.dtype}"
        )
    if a.readonly:
        raise ValueError(f"{name} is read-only")
    return a


def apart(a: DeviceArray, out: DeviceArray, name: str = "", same: bool = True) -> DeviceArray:
    """`a`, which may be `out` where `same` is true, but not overlap it in part."""
    if not same and a.address == out.address and 0 not in a.shape:
        raise ValueError(f"out may not be the {name}")
    if a.address == out.address and (a.shape, a.dtype) == (out.shape, out.dtype):
        pairs = zip(a.strides, out.strides, a.shape, strict=True)
        if all(one == other or n == 1 for one, other, n in pairs):
            return a
    (low, high), (out_low, out_high) = _extent(a), _extent(out)
    if low < out_high and out_low < high:
        raise ValueError(f"out overlaps {name} in part")
    return a


def separate(a: DeviceArray, out: DeviceArray, name: str = "") -> DeviceArray:
    return apart(a, out, name, same=False)


def _extent(a: DeviceArray) -> tuple[int, int]:
    """The first byte of an array, and the one after its last."""
    if 0 in a.shape:
        return a.address, a.address
    steps = [(n - 1) * s for n, s in zip(a.shape, a.strides, strict=True)]
    low = a.address + sum(s for s in steps if s < 0)
    return low, a.address + sum(s for s in steps if s > 0) + _SIZES.get(a.dtype, 1)  # 1: bool


# ---- values of inputs, for which the host must wait ------------------------------------------


def new_stats(n: int, first: Any = None) -> tuple[Any, Any]:
    """Not an array of the user's library, which may have no float64."""
    from ..kernels.cuda import _device

    buffer = _device.allocate(8 * n, first.stream, first.device)
    found = first._replace(address=_device.address(buffer), dtype="float64")
    return _view(found, (1, n)), buffer


def read(stats: Any) -> np.ndarray:
    return _read(stats, 0, stats.shape[1])


def element(flat: Any, at: int, dtype: str) -> Any:
    return _read(flat, at, 1)[0]


def _read(view: Any, at: int, n: int) -> np.ndarray:
    from ..kernels.cuda import _device

    found = np.empty(n, _numpy_dtype(view.dtype))
    _device.read(view.address + at * found.itemsize, found, view.stream, view.device)
    return found


def bad_label(
    t: DeviceArray, row: int, layout: Layout, classes: int, ignore_index: int
) -> tuple[tuple[int, ...], Any]:
    """Where the label of this row is in the user's array, and its value."""
    place = host.place_of(row, layout.rest_shape, layout.rest_order)
    return place, element(_view(t, t.shape), row, t.dtype)
