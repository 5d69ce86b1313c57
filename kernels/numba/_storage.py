"""The arguments of compiled code: planes of classes in any of four storage types; how an element is
read and written; and scratch memory.

float64 and float32 are themselves. Numba's CPU target has no float16 and NumPy has no bfloat16, so
both come as their 16 bits: float16 as unsigned integers and bfloat16 as signed ones.
"""

import functools
from typing import NamedTuple

import numba
import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core.imputils import impl_ret_borrowed
from numba.extending import intrinsic, overload
from numba.np.arrayobj import populate_array

from ._jit_options import INTERNAL, internal
from ._math import bits


class Planes(NamedTuple):
    """An array of shape (outer, n, inner) whose planes are contiguous: plane i of s elements is
    ``data[first + i * step :][:s]``.

    One-dimensional and contiguous `data` means one compiled version for any stride; read-only
    inputs, one for arrays that are writable and for those that are not.
    """

    data: np.ndarray
    first: int
    step: int


def planes_in(a: np.ndarray | None, dtype: np.dtype | None = None) -> Planes:
    """An input; for None, no planes of `dtype`."""
    if a is None:
        return Planes(nothing(dtype), 0, 0)
    data, first, step = planes_out(a)
    return Planes(frozen(data), first, step)


def planes_out(a: np.ndarray | None, dtype: np.dtype | None = None) -> Planes:
    """An output, likewise."""
    if a is None:
        return Planes(nothing(dtype, True), 0, 0)
    if a.flags.c_contiguous:
        return Planes(raw(a).reshape(-1), 0, a.size // len(a) if len(a) else 0)
    step, plane = a.strides[0] // a.itemsize, a.shape[1] * a.shape[2]
    first = max(0, -step * (len(a) - 1))
    extent = abs(step) * (len(a) - 1) + plane if a.size else 0
    lowest = a[::-1] if step < 0 else a
    data = np.lib.stride_tricks.as_strided(lowest, (extent,), (a.itemsize,))
    return Planes(raw(data), first, step)


def raw(a: np.ndarray) -> np.ndarray:
    """`a` as compiled code takes it: 16-bit floats as integers."""
    if a.dtype.itemsize != 2:
        return a
    return a.view(np.uint16 if a.dtype == np.float16 else np.int16)


def flat_in(a: np.ndarray | None, dtype: type) -> np.ndarray:
    """An input as one axis, see `Planes`; empty for None."""
    return nothing(dtype) if a is None else frozen(a.reshape(-1))


def flat_out(a: np.ndarray | None, dtype: type) -> np.ndarray:
    """An output, likewise."""
    return nothing(dtype, True) if a is None else a.reshape(-1)


@functools.cache
def nothing(dtype: np.dtype, writeable: bool = False) -> np.ndarray:
    """The empty array that stands for one that is not given."""
    empty = raw(np.empty(0, dtype))
    return empty if writeable else frozen(empty)


def compute_dtype(a: np.ndarray) -> type:
    return np.float64 if a.dtype == np.float64 else np.float32


def frozen(a: np.ndarray) -> np.ndarray:
    """A view of `a` that is read-only, see `Planes`."""
    a = a[:]
    a.flags.writeable = False
    return a


# ---- the same inside compiled code -----------------------------------------------------------


@intrinsic
def read_only(typingctx, a):
    """The same array, typed as one that is not written to."""

    def generate(context, builder, signature, args):
        return impl_ret_borrowed(context, builder, signature.return_type, args[0])

    return a.copy(readonly=True)(a), generate


@internal
def contiguous_in(a, step):
    """A C-contiguous input as planes that lie `step` elements apart."""
    return Planes(read_only(a.reshape(-1)), 0, step)


@internal
def contiguous_out(a, step):
    return Planes(a.reshape(-1), 0, step)


# ---- elements --------------------------------------------------------------------------------


# Whether Numba compiles for a processor that converts halves itself. For others LLVM would call
# functions that are not there.
HAS_F16C = not (numba.config.CPU_NAME or numba.config.CPU_FEATURES) and bool(
    binding.get_host_cpu_features().get("f16c")
)


@intrinsic
def _half_to_float_f16c(typingctx, half):
    def generate(context, builder, signature, args):
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), generate


@intrinsic
def _float_to_half_f16c(typingctx, value):
    def generate(context, builder, signature, args):
        return builder.bitcast(builder.fptrunc(args[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), generate


@internal
def half_to_float(half):
    if HAS_F16C:
        return _half_to_float_f16c(half)
    magnitude = np.int32((np.int32(half) & 0x7FFF) << 13)
    # Rescaling the exponent also normalises subnormal halves; infinity and NaN need their own.
    value = bits(bits(magnitude) * np.float32(2.0**112))
    special = np.int32(magnitude | 0x7F800000)
    value = special if magnitude >= np.int32(0x7C00 << 13) else value
    return bits(np.int32(value | np.int32((np.int32(half) & 0x8000) << 16)))


@internal
def float_to_half(value):
    """To nearest even. All three cases are computed, so that loops are vectorised."""
    if HAS_F16C:
        return _float_to_half_f16c(value)
    every = bits(value)
    sign = np.int32((every >> 16) & 0x8000)
    magnitude = np.int32(every & 0x7FFFFFFF)
    normal = np.int32((magnitude - (112 << 23) + 0xFFF + ((magnitude >> 13) & 1)) >> 13)
    # subnormal: let the addition do the rounding
    small = np.int32(bits(bits(magnitude) + np.float32(0.5)) - 0x3F000000)
    half = small if magnitude < np.int32(0x38800000) else normal
    half = np.int32(0x7C00) if magnitude >= np.int32(0x477FF000) else half  # 65520 and above
    half = np.int32(0x7E00) if magnitude > np.int32(0x7F800000) else half  # NaN
    return np.uint16(sign | half)


@internal
def bfloat_to_float(half):
    return bits(np.int32(np.int32(half) << 16))


@internal
def float_to_bfloat(value):
    # Numba computes with integers of 64 bits; each step is cast to 32, for twice the lanes.
    every, last = bits(value), np.int32(bits(value) >> 16)
    up = np.int32(np.int32(every + np.int32(0x7FFF)) + np.int32(last & np.int32(1)))
    quiet = np.int32(last | np.int32(0x40))
    return np.int16(np.int32(up >> 16) if value == value else quiet)


def widen(element):
    """An element in the type that is computed in."""
    raise NotImplementedError("for compiled code")


@overload(widen, inline="always")
def _widen(element):
    if element == types.uint16:
        return lambda element: half_to_float(element)
    if element == types.int16:
        return lambda element: bfloat_to_float(element)
    return lambda element: element


def narrow(value, data):
    """`value`, of the type that is computed in, as an element of `data`."""
    raise NotImplementedError("for compiled code")


@overload(narrow, inline="always")
def _narrow(value, data):
    if data.dtype == types.uint16:
        return lambda value, data: float_to_half(value)
    if data.dtype == types.int16:
        return lambda value, data: float_to_bfloat(value)
    return lambda value, data: value


def is_half(data):
    """Whether `data` holds 16-bit floats."""
    raise NotImplementedError("for compiled code")


@overload(is_half, inline="always")
def _is_half(data):
    answer = data.dtype in (types.uint16, types.int16)
    return lambda data: answer


# ---- big results -----------------------------------------------------------------------------

STREAM_ABOVE = 1 << 22  # bytes of a result beyond which it is written past the caches
LINE = 64  # bytes


def streams(out, *inputs):
    """Whether `out` is written past the caches: it is big, and not in place of an input. A write
    that goes through them reads each line first; without that a log-softmax moves a third less.
    """
    return out.nbytes > STREAM_ABOVE and not any(np.may_share_memory(out, a) for a in inputs)


@intrinsic
def _address(typingctx, a):
    """Of the first element. `a.ctypes` would count references, on which threads wait for each
    other.
    """

    def generate(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.ptrtoint(data, context.get_value_type(types.intp))

    return types.intp(a), generate


def _line_copy(align, metadata):
    """An intrinsic that copies 64 bytes from one address to another."""

    @intrinsic
    def copy(typingctx, to, values):
        def generate(context, builder, signature, args):
            line = ir.VectorType(ir.IntType(32), LINE // 4)
            to, values = (builder.inttoptr(a, line.as_pointer()) for a in args)
            store = builder.store(builder.load(values, align=2), to, align=align)
            one = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
            for name in metadata:
                store.set_metadata(name, one)
            return context.get_dummy_value()

        return types.void(types.intp, types.intp), generate

    return copy


_copy_line, _stream_line = _line_copy(2, ()), _line_copy(LINE, ("nontemporal",))


@internal
def before_line(a):
    """Elements before the first one that begins a line."""
    return -_address(a) % LINE // a.itemsize


def copy_lines(values, to, streaming):
    """Whole lines of `values` to `to`. Past the caches, if that begins a line."""
    raise NotImplementedError("for compiled code")


@overload(copy_lines, jit_options=INTERNAL)
def _copy_lines(values, to, streaming):
    def one_by_one(values, to, streaming):
        for i in range(values.size):
            to[i] = values[i]

    def by_lines(values, to, streaming):
        source, target = _address(values), _address(to)
        size = values.size * to.itemsize
        if streaming:
            for first in range(0, size, LINE):
                _stream_line(target + first, source + first)
        else:
            for first in range(0, size, LINE):
                _copy_line(target + first, source + first)

    return by_lines if to.layout == "C" else one_by_one


@intrinsic
def stream_end(typingctx):
    """After this other threads see what was streamed."""

    def generate(context, builder, signature, args):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


# ---- scratch ---------------------------------------------------------------------------------


def scratch(data, size):
    """Memory for `size` numbers of the type that is computed in for `data`."""
    raise NotImplementedError("for compiled code")


@overload(scratch)
def _scratch(data, size):
    dtype = _wide(data)
    return lambda data, size: np.empty(size, dtype)


def _wide(data):
    return types.float64 if data.dtype == types.float64 else types.float32


def _on_stack(dtype_of):
    """An intrinsic (data, size) -> an array on the stack, for as long as the function runs that
    calls it; `size` is a constant. It takes no time, and LLVM knows that it overlaps nothing else.
    """

    @intrinsic(prefer_literal=True)
    def array(typingctx, data, size):
        kind, count = types.Array(dtype_of(data), 1, "C"), size.literal_value

        def generate(context, builder, signature, args):
            items = ir.ArrayType(context.get_data_type(kind.dtype), count)
            with builder.goto_entry_block():
                memory = builder.alloca(items)  # cgutils.alloca_once would fill it with zeros
            memory.align = LINE
            result = context.make_array(kind)(context, builder)
            sizes = kind.dtype.bitwidth // 8, count
            item, length = (context.get_constant(types.intp, size) for size in sizes)
            populate_array(
                result,
                data=builder.bitcast(memory, result.data.type),
                shape=(length,),
                strides=(item,),
                itemsize=item,
                meminfo=None,
            )
            return result._getvalue()

        return kind(data, size), generate

    return array


stack_like, stack_scratch = _on_stack(lambda data: data.dtype), _on_stack(_wide)
stack_doubles = _on_stack(lambda data: types.float64)
