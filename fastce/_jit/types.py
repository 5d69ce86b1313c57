"""What is known when a call is compiled: the types of its arguments, and its constants."""

import numba
import numpy as np
from numba import types
from numba.core.errors import TypingError
from numba.core.targetconfig import ConfigStack
from numba.extending import overload, register_jitable
from numba.np.unsafe.ndarray import to_fixed_tuple

from ..kernels.numba._compile import SERIAL_BELOW
from ..kernels.numba._jit_options import INTERNAL, OPTIONS
from ..kernels.numba._storage import contiguous_in

# Compiled in the same way wherever it is called: a user's fastmath would otherwise be inherited.
jitable = register_jitable(**INTERNAL)
# For exceptions with numbers in them, see INTERNAL.
raising = register_jitable(**OPTIONS)


def declared(function):
    """Declares the decorated function as what `function` is in compiled code. Numba requires that
    it and the implementation which it returns have the same signature.
    """
    return overload(function, prefer_literal=True, jit_options=INTERNAL)


# ---- arguments -------------------------------------------------------------------------------


def float_array(a, name):
    """Its dtype."""
    if not (isinstance(a, types.Array) and isinstance(a.dtype, types.Float) and a.ndim):
        raise TypingError(
            f"in compiled code {name} must be an array of float64 or float32, got {a}"
        )
    return a.dtype


def is_none(a):
    return a is None or isinstance(a, types.NoneType) or getattr(a, "value", 0) is None


def constant(a, name, kinds):
    """The value of an argument that decides what is compiled."""
    a = getattr(a, "literal_value", getattr(a, "value", a))
    if not isinstance(a, kinds):
        raise TypingError(f"in compiled code {name} must be a constant, got {a}")
    return a


def result_array(out, x, message="out must have the shape of the input"):
    """A function (out, shape) that gives `out`, or a new array of the dtype of `x`. `out` must be
    None, or C-contiguous, of the dtype and number of axes of `x`.
    """
    dtype = x.dtype
    if is_none(out):
        return jitable(lambda out, shape: np.empty(shape, dtype))
    is_array = isinstance(out, types.Array) and out.mutable
    if not is_array or (out.dtype, out.ndim, out.layout) != (dtype, x.ndim, "C"):
        raise TypingError(
            f"in compiled code out must be a writable C-contiguous array of {dtype} with {x.ndim} "
            f"axes, got {out}"
        )

    @raising
    def given(out, shape):
        if out.shape != shape:
            raise ValueError(message)
        return out

    return given


# ---- threads ---------------------------------------------------------------------------------


def loop_over(run):
    """A function (elements, count, *arguments) that calls `run` of kernels/numba: over threads, or
    not.

    Numba's workqueue layer cannot start a loop within a loop, so there it never is over threads.
    """
    start, flags = run.start, ConfigStack.top_or_none()
    if flags is None or not flags.auto_parallel.enabled or _workqueue():
        return jitable(lambda elements, count, *arguments: start(False, count, *arguments))
    return jitable(
        lambda elements, count, *arguments: start(elements >= SERIAL_BELOW, count, *arguments)
    )


def _workqueue() -> bool:
    numba.get_num_threads()  # starts the threads, so that the layer is known
    return numba.threading_layer() == "workqueue"


# ---- shapes and memory -----------------------------------------------------------------------


@raising
def fold_shape(shape, axis):
    """(outer, n, inner) and the axis counted from 0."""
    count = len(shape)
    if axis < -count or axis >= count:
        raise ValueError(f"axis {axis} is out of range for {count} axes")
    axis = axis % count
    outer, inner = 1, 1
    for i in range(axis):
        outer *= shape[i]
    for i in range(axis + 1, count):
        inner *= shape[i]
    return (outer, shape[axis], inner), axis


def per_row_result(ndim, keepdims=False):
    """A function (flat, shape, axis) that gives per-row numbers the shape without the axis."""
    if ndim == 1 and not keepdims:
        return jitable(lambda flat, shape, axis: flat[0])
    axes = ndim if keepdims else ndim - 1

    @jitable
    def shaped(flat, shape, axis):
        lengths = np.empty(axes, np.intp)
        at = 0
        for i in range(len(shape)):
            if i != axis or keepdims:
                lengths[at] = 1 if i == axis else shape[i]
                at += 1
        return flat.reshape(to_fixed_tuple(lengths, axes))

    return shaped


@jitable
def planes_of(x, step):
    return contiguous_in(np.ascontiguousarray(x), step)


@jitable
def no_planes(dtype):
    """For an array that is not given."""
    return contiguous_in(np.empty(0, dtype), 0)


@jitable
def overlap(a, b):
    first, other = a.ctypes.data, b.ctypes.data
    return first < other + b.nbytes and other < first + a.nbytes


@jitable
def separate(a, out):
    """`a` C-contiguous, in memory of its own unless that is exactly the memory of `out`."""
    a = np.ascontiguousarray(a)
    same = a.ctypes.data == out.ctypes.data and a.nbytes == out.nbytes
    return a.copy() if overlap(a, out) and not same else a
