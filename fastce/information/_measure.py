"""From the arguments of a measure to its kernel."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .._inputs import gpu, host
from .._runtime.dispatch import gpu_kernel, kernel
from .._runtime.threads import get_num_threads


def floating(x: Any, name: str, function: str) -> np.ndarray:
    if type(x) is not np.ndarray and gpu.is_on_gpu(x):
        gpu_kernel("information", function)  # raises
    return host.floating(x, name)


def nats_in_unit(base: Any) -> float:
    """What nats are divided by for the result."""
    if base is None:
        return 1.0
    if not isinstance(base, (int, float, np.integer, np.floating)):
        raise TypeError(f"base must be a number, got {base!r}")
    if not 1 < base < math.inf:
        raise ValueError(f"base must be a finite number above 1, got {base!r}")
    return math.log(base)


def run(function: str, base: Any, *arrays: Any, **options: Any) -> None:
    compute: Callable[..., None] = kernel("information", function)
    compute(*arrays, unit=nats_in_unit(base), **options, threads=get_num_threads())


def of_one(
    function: str, name: str, x: Any, axis: int, base: Any, keepdims: bool, **options: Any
) -> Any:
    """A measure of each row of an array."""
    a = floating(x, name, function)
    layout = host.layout_of(a, axis, name)
    rows, result = host.row_out(layout, host.compute_dtype(a.dtype))
    run(function, base, host.rows_in(a, layout), rows, **options)
    return finished(x, result, layout, keepdims)


def of_two(
    function: str,
    p: Any,
    q: Any,
    axis: int,
    base: Any,
    keepdims: bool,
    names: tuple[str, str] = ("p", "q"),
    **options: Any,
) -> Any:
    """A measure of each pair of rows of two arrays."""
    a, b = alike(function, p, q, names)
    dense = b if 0 in a.strides and 0 not in b.strides else a
    layout = host.layout_of(dense, axis, names[0])
    if 0 in dense.strides:  # both are broadcast: as the result lies in memory
        layout = host.fold(dense.shape, None, axis, names[0])
    rows, result = host.row_out(layout, host.compute_dtype(a.dtype))
    run(function, base, host.rows_in(a, layout), host.rows_in(b, layout), rows, **options)
    return finished(p, result, layout, keepdims)


def new_grad(
    a: np.ndarray, axis: int, out: Any, name: str
) -> tuple[np.ndarray, np.ndarray, host.Layout]:
    """The logits, their gradient, and its layout."""
    host.layout_of(a, axis, name)  # raises
    if out is None:
        dense = a.flags.c_contiguous or 0 not in a.strides
        grad = np.empty_like(a, subok=False) if dense else np.empty(a.shape, a.dtype)
    else:
        grad = host.check_out(out, a.shape, a.dtype)
        a = host.apart(a, grad)
    return a, grad, host.layout_of(grad, axis, name)


def alike(function: str, p: Any, q: Any, names: tuple[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """Both of one shape and dtype."""
    a, b = floating(p, names[0], function), floating(q, names[1], function)
    if a.dtype != b.dtype:
        wide = np.float64 if np.float64 in (a.dtype, b.dtype) else np.float32
        a, b = a.astype(wide, copy=False), b.astype(wide, copy=False)
    if a.shape != b.shape:
        try:
            shape = np.broadcast_shapes(a.shape, b.shape)
        except ValueError:
            raise ValueError(
                f"{names[0]} and {names[1]} must have shapes that can be broadcast, got {a.shape} "
                f"and {b.shape}"
            ) from None
        a, b = (v if v.shape == shape else np.broadcast_to(v, shape) for v in (a, b))
    return a, b


def finished(x: Any, result: np.ndarray, layout: host.Layout, keepdims: bool) -> Any:
    return host.like(x, np.expand_dims(result, layout.axis) if keepdims else result)
