"""Arrays on the host: from what a user passes to what a kernel takes, and back.

Canonical form is ``(outer, n, inner)`` with the classes in the middle, see ``fastce.kernels``. The
axes are taken in the order in which they lie in memory, so that any dense layout (C, Fortran,
transposed) is a view; rows cut out of a wider array are one too. Other inputs (every second column,
swapped bytes) are copied once, and so are those that overlap ``out`` in part. An output never is.

`gpu` has the same functions for arrays on a GPU, see `memory.Memory`.
"""

import functools
import math
import operator
import reprlib
import sys
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.array_utils import normalize_axis_index

from .._runtime import dispatch
from .._runtime.threads import get_num_threads

# dtype of the user -> dtype in which losses, lse and weights are computed
_COMPUTE: dict[np.dtype, np.dtype] = {
    np.dtype(np.float64): np.dtype(np.float64),
    np.dtype(np.float32): np.dtype(np.float32),
    np.dtype(np.float16): np.dtype(np.float32),
}
_FLOAT32 = np.dtype(np.float32)
_FLOATS = "float64, float32, float16 or bfloat16"
_INT64 = np.dtype(np.int64)
# A row of weights is repeated up to this many numbers, so that kernels loop over long stretches.
_STRETCH = 4096

READABLE = True
NUMPY = (np.ndarray, np.generic)
kernel = dispatch.kernel
num_threads = get_num_threads

Order = tuple[int, ...] | None  # axes from the widest stride to the narrowest; None: C order


class Layout(NamedTuple):
    """How an array's axes fold into (outer, n, inner)."""

    shape: tuple[int, int, int]
    axis: int  # the class axis, counted from 0
    rest_shape: tuple[int, ...]  # shape of a per-row array as the user sees it
    order: Order
    rest_order: Order  # without the class axis, counted without it


def compute_dtype(dtype: np.dtype) -> np.dtype:
    """Float64 for float64, else float32."""
    return _COMPUTE.get(dtype, _FLOAT32)


def is_bfloat16(dtype: np.dtype) -> bool:
    # ml_dtypes registers it, of kind V (which is fast to ask); fastce need not import that.
    return dtype.kind == "V" and dtype.name == "bfloat16"


def is_floating(dtype: np.dtype) -> bool:
    return dtype.kind == "f" or is_bfloat16(dtype)


def is_integer(dtype: np.dtype) -> bool:
    return dtype.kind in "iu"


def number(value: Any, name: str) -> float:
    """`value` as a float: a number, or an array of one without axes."""
    if type(value) is float or isinstance(value, Real):
        return float(value)
    if getattr(value, "ndim", None) == 0:
        return number(value.item(), name)
    raise TypeError(f"{name} must be a number, got {value!r}")


def to_numpy(x: Any, name: str) -> np.ndarray:
    """`x` as an ndarray, without a copy where it is an array on the host already."""
    if isinstance(x, np.ndarray):
        if isinstance(x, np.ma.MaskedArray):
            raise _masked(name)
        return np.asarray(x)
    if has(x, "__cuda_array_interface__"):
        raise TypeError(f"{name} is a {type(x).__name__} on a GPU, and the other arrays are not")
    if hasattr(x, "__dlpack__"):
        return _from_dlpack(x, name)
    if _has_masks(x):
        raise _masked(name)
    try:
        return np.asarray(x)
    except (RuntimeError, TypeError) as error:  # of elements that are tensors, for one
        raise TypeError(_no_view(x, name, error)) from error


def has(x: Any, attribute: str) -> bool:
    """`hasattr`, also where the attribute raises another error, as that of a sparse tensor does."""
    try:
        return hasattr(x, attribute)
    except Exception:
        return False


def _masked(name: str) -> TypeError:
    return TypeError(f"{name} is a masked array, whose mask would be ignored; fill it first")


def _has_masks(x: Any) -> bool:
    """Whether a list holds masked arrays, at any depth; NumPy would drop the masks."""
    if not isinstance(x, list | tuple):
        return False
    kinds = set(map(type, x))  # a list of numbers has one, which is found in C
    if any(issubclass(kind, np.ma.MaskedArray) for kind in kinds):
        return True
    return any(issubclass(kind, list | tuple) for kind in kinds) and any(map(_has_masks, x))


def is_negative(x: Any) -> bool:
    """Whether `x` is a tensor whose memory holds -x: PyTorch exports that all the same."""
    return hasattr(x, "is_neg") and x.is_neg()


def _from_dlpack(x: Any, name: str) -> np.ndarray:
    try:
        a = np.from_dlpack(x.resolve_neg() if is_negative(x) else x)
    except Exception as error:  # whatever kind the exporter raises, it is passed on in words
        if "bfloat16" not in str(getattr(x, "dtype", "")):
            raise TypeError(_no_view(x, name, error)) from error
        return _bfloat16(x, name)
    if a.size and a.flags.owndata:  # NumPy's own memory, unwritten, where the exporter's is nowhere
        raise TypeError(f"{name} is a {type(x).__name__} without memory that NumPy could view")
    return a


def _bfloat16(x: Any, name: str) -> np.ndarray:
    """DLPack hands none to NumPy, but JAX makes an array of ml_dtypes of it."""
    try:
        return np.asarray(x)
    except Exception as error:
        hint = "; use tensor.float()" if hasattr(x, "float") else ""
        raise TypeError(_no_view(x, name, error) + hint) from error


def _no_view(x: Any, name: str, error: Exception) -> str:
    """Of what others wrote about it, the first line."""
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return f"{name}: NumPy cannot view this {type(x).__name__}: {reason}"


def like(x: Any, result: Any) -> Any:
    """`result` as the kind of array that `x` is; a NumPy scalar where it has no axes. What is not
    NumPy's, on a GPU, is of that kind already. Where the library of `x` takes no DLPack, as pyarrow
    takes none, it stays NumPy's.
    """
    if not isinstance(result, np.ndarray):
        return result
    if type(x) is np.ndarray or isinstance(x, NUMPY) or not hasattr(x, "__dlpack__"):
        return result if result.ndim else result[()]
    if hasattr(x, "__array_namespace__"):
        namespaces = [x.__array_namespace__()]
    else:
        packages = (str(base.__module__).partition(".")[0] for base in type(x).__mro__)
        namespaces = [sys.modules.get(package) for package in packages]
    for namespace in namespaces:
        if hasattr(namespace, "from_dlpack"):
            bfloat16 = is_bfloat16(result.dtype)  # which NumPy does not export
            return namespace.asarray(result) if bfloat16 else namespace.from_dlpack(result)
    return result if result.ndim else result[()]


def described(a: np.ndarray) -> str:
    """The dtype of an array that does not fit, for a message, and what may be the matter."""
    if a.dtype.str == "|V2":
        return f"{a.dtype} (np.load gives bfloat16 so: use .view(ml_dtypes.bfloat16))"
    if a.dtype.kind == "O" and a.size:
        numbers = (int, float, np.number, np.bool_)
        at = next((i for i, value in enumerate(a.flat) if not isinstance(value, numbers)), 0)
        where = np.unravel_index(at, a.shape)
        place = f"element [{', '.join(str(int(i)) for i in where)}] is " if where else ""
        return f"object ({place}{reprlib.repr(a.flat[at])})"
    return str(a.dtype)


def last_axis(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """`x` in canonical form, the same of a new result, and that, where kernels take `x` as it lies.

    The common case by the shortest way: a call on (1, 10) is all overhead.
    """
    dtype, flags = x.dtype, x.flags
    if not (dtype in _COMPUTE and flags.c_contiguous and flags.aligned and x.size and x.ndim):
        return None
    result = np.empty(x.shape, dtype)
    n = x.shape[-1]
    shape = (x.size // n, n, 1)
    return x.reshape(shape), result.reshape(shape), result


def inspect(x: Any, name: str, first: Any = None) -> np.ndarray:
    """`x` as an aligned ndarray, of any dtype."""
    a = x if type(x) is np.ndarray else to_numpy(x, name)
    return a if a.flags.aligned else a.copy()


def floating(x: Any, name: str, first: Any = None) -> np.ndarray:
    """`x` as an ndarray of a dtype that kernels take, in native byte order."""
    a = x if type(x) is np.ndarray else to_numpy(x, name)
    if a.dtype in _COMPUTE and a.flags.aligned:  # native: dtypes of other byte orders differ
        return a
    if not (a.dtype.isnative and a.flags.aligned):
        a = a.astype(a.dtype.newbyteorder("="))
    if a.dtype in _COMPUTE or is_bfloat16(a.dtype):
        return a
    if a.dtype.kind in "iub":
        return a.astype(np.float64)  # as NumPy's own exp and log do
    raise TypeError(f"{name} must be {_FLOATS}, got dtype {described(a)}")


def upstream(x: Any, reduction: str, name: str, first: Any = None) -> np.ndarray:
    """`grad_loss` as an array."""
    return floating(x, "grad_loss")


def target_dtype(target: np.dtype, logits: np.dtype) -> np.dtype:
    """In what kernels take a target of probabilities: the dtype of the logits where it has that,
    else the compute dtype. 16 bits would change the loss of a float32 target by up to 0.2%.
    """
    return logits if target == logits else compute_dtype(logits)


def target_in(t: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    """A target of numbers, for an input of this dtype: converted where kernels do not take it."""
    to = target_dtype(t.dtype, dtype) if is_floating(t.dtype) else dtype
    return t.astype(to, copy=False)


# ---- canonical form --------------------------------------------------------------------------


def layout_of(a: np.ndarray, axis: int, name: str) -> Layout:
    """The folding of `a` about `axis`."""
    try:
        return fold(a.shape, None if a.flags.c_contiguous else a.strides, axis, name)
    except TypeError:
        raise TypeError(f"axis must be an integer, got {axis!r}") from None


@functools.lru_cache(maxsize=256, typed=True)  # a third of the time of a call on a few numbers
def fold(shape: tuple[int, ...], strides: tuple[int, ...] | None, axis: int, name: str) -> Layout:
    if len(shape) == 0:
        raise ValueError(f"{name} must have at least one axis, got a 0-d array")
    axis = normalize_axis_index(operator.index(axis), len(shape))
    if strides is None:
        outer, inner = list(range(axis)), list(range(axis + 1, len(shape)))
    else:
        others = sorted((i for i in range(len(shape)) if i != axis), key=lambda i: -abs(strides[i]))
        inner = [i for i in others if shape[i] > 1 and abs(strides[i]) < abs(strides[axis])]
        outer = [i for i in others if i not in inner]
    layout = Layout(
        (math.prod(shape[i] for i in outer), shape[axis], math.prod(shape[i] for i in inner)),
        axis,
        shape[:axis] + shape[axis + 1 :],
        None if strides is None else (*outer, axis, *inner),
        None if strides is None else tuple(i - (i > axis) for i in outer + inner),
    )
    return without_rows(layout) if 0 in layout.rest_shape else layout


def without_rows(layout: Layout) -> Layout:
    """For an array without elements, where no number is written for each row: a kernel would loop
    for 7 s over 2**32 rows of no classes, or allocate memory for each of 2**40 classes.
    """
    return layout._replace(shape=(0, 0, 1))


def _planes(a: np.ndarray, layout: Layout) -> tuple[np.ndarray, bool]:
    """`a` folded to (outer, n, inner), and whether each plane is C-contiguous."""
    if layout.order is None and a.flags.c_contiguous:
        return a.reshape(layout.shape), True
    rows = a.transpose(layout.order or range(a.ndim)).reshape(layout.shape)
    _, n, inner = layout.shape
    item = a.itemsize
    dense = (inner == 1 or rows.strides[2] == item) and (n == 1 or rows.strides[1] == inner * item)
    return rows, dense or rows.size == 0


def bits(a: np.ndarray) -> np.ndarray:
    """As kernels take it: bfloat16 as uint16."""
    return a.view(np.uint16) if is_bfloat16(a.dtype) else a


def check_no_overlap(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> None:
    """Raise where two elements of `out` share memory."""
    extent = itemsize
    for stride, n in sorted((abs(s), n) for s, n in zip(strides, shape, strict=True)):
        if n > 1 and stride < extent and 0 not in shape:
            raise ValueError(f"out with shape {shape} and strides {strides} overlaps itself")
        extent += stride * (n - 1)


def row_contiguous(a: np.ndarray) -> np.ndarray:
    """`a`, or a copy where its last axis is not contiguous."""
    return a if a.strides[-1] == a.itemsize or a.shape[-1] == 1 else np.ascontiguousarray(a)


def rows_in(a: np.ndarray, layout: Layout, name: str = "") -> np.ndarray:
    """An input in canonical form: a view where its memory allows, else a copy."""
    if layout.order is None and a.flags.c_contiguous:
        return bits(a.reshape(layout.shape))
    rows, dense = _planes(a, layout)
    return bits(rows if dense else np.ascontiguousarray(rows))


def rows_out(out: np.ndarray, layout: Layout) -> np.ndarray:
    """An output in canonical form: always a view."""
    rows, dense = _planes(out, layout)
    if out.size and not (dense and np.may_share_memory(rows, out)):
        raise needs_copy(out, "densely in memory, in the same order of axes as the input")
    if rows.shape[0] > 1 and abs(rows.strides[0]) < rows[0].nbytes:
        raise ValueError(f"out with shape {out.shape} and strides {out.strides} overlaps itself")
    return bits(rows)


def needs_copy(out: np.ndarray, how: str) -> ValueError:
    return ValueError(
        f"out with shape {out.shape} and strides {out.strides} cannot be written without a copy; "
        f"it must lie {how}"
    )


def row_in(a: np.ndarray, layout: Layout, dtype: np.dtype, name: str = "") -> np.ndarray:
    """A per-row input in canonical form; these are small beside the rows, and may be copied."""
    outer, _, inner = layout.shape
    if layout.rest_order is not None:
        a = a.transpose(layout.rest_order)
    rows = a.reshape(outer, inner)
    if rows.dtype == dtype and rows.flags.c_contiguous:
        return rows
    return np.ascontiguousarray(rows, dtype)


def labels_in(t: np.ndarray, layout: Layout, ignore_index: int) -> np.ndarray:
    """Labels in canonical form."""
    if t.dtype.char in "LQ" and t.size and t.max() > np.iinfo(np.int64).max:
        t = t.astype(np.int64)
        t[t < 0] = -2 if ignore_index == -1 else -1  # out of range as before, and not ignored
    return row_in(t, layout, _INT64)


def row_out(
    layout: Layout,
    dtype: np.dtype,
    out: np.ndarray | None = None,
    keepdims: bool = False,
    first: Any = None,
) -> tuple[np.ndarray, np.ndarray]:
    """A per-row output: in canonical form, and the same memory as the user sees it."""
    outer, _, inner = layout.shape
    order = layout.rest_order
    if out is None:
        rows = np.empty((outer, inner), dtype)
        if order is None:
            result = rows.reshape(layout.rest_shape)
        else:
            result = rows.reshape([layout.rest_shape[i] for i in order])
            result = result.transpose(np.argsort(order)) if order else result
        return bits(rows), np.expand_dims(result, layout.axis) if keepdims else result
    rows = out.reshape(layout.rest_shape)
    rows = (rows if order is None else rows.transpose(order)).reshape(outer, inner)
    if rows.size and not (rows.flags.c_contiguous and np.may_share_memory(rows, out)):
        raise needs_copy(out, "densely in memory, in the same order of axes as the input")
    return bits(rows), out


def vector_in(a: np.ndarray, dtype: np.dtype, name: str = "") -> np.ndarray:
    """An input with one axis."""
    return np.ascontiguousarray(a, dtype)


def number_in(a: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array of one number, in this shape."""
    return np.ascontiguousarray(a.reshape(shape), dtype)


# ---- canonical form of elementwise ops -------------------------------------------------------


def order_of(a: np.ndarray) -> Order:
    """The order of the axes of a dense array; None for one that is not."""
    if a.flags.c_contiguous:
        return None
    order = tuple(sorted(range(a.ndim), key=lambda i: -abs(a.strides[i])))
    return order if a.transpose(order).flags.c_contiguous else None


def flat_in(a: np.ndarray, order: Order, name: str = "", dtype: Any = None) -> np.ndarray:
    """All elements in one axis, in this order and dtype: a view where they lie so, else a copy."""
    a = a if order is None else a.transpose(order)
    return bits(np.ascontiguousarray(a, dtype).reshape(-1))


def flat_out(out: np.ndarray, order: Order) -> np.ndarray:
    """An output in canonical form: always a view."""
    flat = out if order is None else out.transpose(order)
    if not flat.flags.c_contiguous:
        raise needs_copy(out, "densely in memory, in any order of its axes")
    return bits(flat.reshape(-1))


def period_in(
    w: np.ndarray, shape: tuple[int, ...], order: Order, same: int, dtype: np.dtype, name: str
) -> np.ndarray:
    """Weights of elements of this shape, without the first `same` axes of `order`, along which
    they repeat.
    """
    whole = w if w.shape == shape else np.broadcast_to(w, shape)
    whole = whole if order is None else whole.transpose(order)
    if not whole.size:
        return np.ones(1, dtype)
    row = np.ascontiguousarray(whole[(0,) * same], dtype).reshape(-1)
    times = min(_STRETCH // row.size, -(-whole.size // row.size))
    return np.tile(row, times) if times > 1 else row


def place_of(at: int, shape: tuple[int, ...], order: Order) -> tuple[int, ...]:
    """Where in the user's array the element is that is number `at` in this order of the axes."""
    if not order:
        return tuple(int(i) for i in np.unravel_index(at, shape))
    place = np.unravel_index(at, [shape[i] for i in order])
    return tuple(int(place[k]) for k in np.argsort(order))


# ---- outputs ---------------------------------------------------------------------------------


def allocate(
    shape: tuple[int, ...], dtype: np.dtype, order: Order = None, first: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """A new array, twice: as the functions here take it, and as the user sees it.

    Its axes lie in this order. NumPy's own choice (empty_like) may differ from that of the inputs
    where an axis has length 1.
    """
    if not order:
        a = np.empty(shape, dtype)
    else:
        a = np.empty([shape[i] for i in order], dtype).transpose(np.argsort(order))
    return a, a


def new_number(
    shape: tuple[int, ...], dtype: np.dtype, first: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """Memory for one number: in this shape, and as the user sees it."""
    a = np.empty(shape, dtype)
    return a, a.reshape(())


def check_out(
    out: Any, shape: tuple[int, ...], dtype: np.dtype, name: str = "out", first: Any = None
) -> np.ndarray:
    """`out` as a writable ndarray of exactly this shape and dtype."""
    a = out
    if type(out) is not np.ndarray:
        if not hasattr(out, "__dlpack__"):  # a list would be copied, and the copy written
            raise TypeError(f"{name} must be an array, got {type(out).__name__}")
        a = to_numpy(out, name)
        if not isinstance(out, np.ndarray) and (is_bfloat16(a.dtype) or is_negative(out)):
            raise ValueError(f"NumPy cannot write to {name}, a {type(out).__name__}, only copy it")
    if a.shape != shape or a.dtype != dtype:
        raise ValueError(
            f"{name} must have shape {shape} and dtype {dtype}, got {a.shape} and {a.dtype}"
        )
    if not a.flags.writeable:
        raise ValueError(f"{name} is read-only")
    if not (a.flags.aligned and a.dtype.isnative):
        raise ValueError(f"{name} must be aligned and of native byte order, got {a.dtype.str}")
    return a


def apart(a: np.ndarray, out: np.ndarray, name: str = "", same: bool = True) -> np.ndarray:
    """`a`, or a copy of it where it overlaps `out` in part; kernels take `out` itself as an input
    where `same` is true.
    """
    if not np.may_share_memory(a, out) or a.size == 0:
        return a
    if a.__array_interface__ == out.__array_interface__:
        if not same:
            raise ValueError(f"out may not be the {name}")
        return a
    try:
        overlap = np.shares_memory(a, out, max_work=10_000)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        overlap = True
    return a.copy() if overlap else a


def separate(a: np.ndarray, out: np.ndarray, name: str = "") -> np.ndarray:
    """`a`, or a copy where `out` is written while a kernel still reads it."""
    return a.copy() if np.may_share_memory(a, out) else a


# ---- values of inputs ------------------------------------------------------------------------


def new_stats(n: int, first: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """An array for what a kernel finds in its inputs, and what owns its memory."""
    stats = np.empty(n)
    return stats, stats


def read(stats: np.ndarray) -> np.ndarray:
    return stats


def element(flat: np.ndarray, at: int, dtype: np.dtype) -> Any:
    """One number of an input in canonical form, which has this dtype."""
    return flat[at : at + 1].view(dtype)[0]


def bad_label(
    t: np.ndarray, row: int, layout: Layout, classes: int, ignore_index: int
) -> tuple[tuple[int, ...], Any]:
    """Where the first label out of range is, and its value."""
    bad = (t != ignore_index) & ((t < 0) | (t >= classes))
    place = tuple(int(i) for i in np.argwhere(bad)[0])
    return place, t[place]
