"""From the arguments of a measure to its kernel."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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


def of_rows(
    function: str,
    names: Sequence[str],
    given: Sequence[Any],
    axis: int,
    base: Any,
    keepdims: bool,
    **options: Any,
) -> Any:
    """A measure of the rows of one or two arrays."""
    arrays = _alike(function, names, given)
    dense = arrays[0]
    if len(arrays) > 1:
        dense = next((a for a in arrays if 0 not in a.strides), dense)
    if len(arrays) > 1 and 0 in dense.strides:  # both are broadcast: as the result lies in memory
        layout = host.fold(dense.shape, None, axis, names[0])
    else:
        layout = host.layout_of(dense, axis, names[0])
    rows, result = host.row_out(layout, host.compute_dtype(dense.dtype))
    run(function, base, *[host.rows_in(a, layout) for a in arrays], rows, **options)
    return _finished(given[0], result, layout, keepdims)


def of_rows_with_grad(
    function: str,
    names: Sequence[str],
    given: Sequence[Any],
    axis: int,
    base: Any,
    keepdims: bool,
    out: Any,
    all_grads: bool,
) -> tuple[Any, ...]:
    """The same, and its gradient with respect to the last array; or to all, that one first."""
    arrays = _alike(function, names, given)
    last, name = arrays[-1], names[-1]
    host.layout_of(last, axis, name)  # raises
    if out is None:
        dense = last.flags.c_contiguous or 0 not in last.strides
        grad = np.empty_like(last, subok=False) if dense else np.empty(last.shape, last.dtype)
    else:
        grad = host.check_out(out, last.shape, last.dtype)
        arrays = [host.apart(a, grad) for a in arrays]
    layout = host.layout_of(grad, axis, name)
    rows, result = host.row_out(layout, host.compute_dtype(last.dtype))
    grads = [grad, *(np.empty_like(grad) for _ in arrays[1:] if all_grads)]
    outputs = [host.rows_out(g, layout) for g in grads] + [None] * (len(arrays) - len(grads))
    run(function, base, *[host.rows_in(a, layout) for a in arrays], rows, *outputs)
    return (
        _finished(given[0], result, layout, keepdims),
        host.like(given[-1], grad) if out is None else out,
        *(host.like(given[0], g) for g in grads[1:]),
    )


def _alike(function: str, names: Sequence[str], given: Sequence[Any]) -> list[np.ndarray]:
    """The arrays, of one shape and dtype."""
    arrays = [floating(x, name, function) for x, name in zip(given, names, strict=True)]
    if len(arrays) == 1:
        return arrays
    a, b = arrays
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
    return [a, b]


def _finished(x: Any, result: np.ndarray, layout: host.Layout, keepdims: bool) -> Any:
    return host.like(x, np.expand_dims(result, layout.axis) if keepdims else result)
