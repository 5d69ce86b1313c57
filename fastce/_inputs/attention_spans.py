"""Which queries and keys each batch entry of attention has: the kernels' ``spans``.

Positions may be anything that fits int64, and windows any integer; kernels add a few of them. So
none goes to a kernel that is beyond 2 * `FAR`: a window is cut to `FAR`, and an offset that far
loses as much as its window has lost, since only their difference counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .._runtime.options import get_validation
from . import gpu, host
from .gpu import DeviceArray

FAR = 2**60  # twice as long as any array; sums of a few do not overflow
Given = Mapping[str, tuple[Any, tuple[int, ...]]]  # by names of parameters; and their shapes
Excess = tuple[int, int]  # how far a window was cut, left and right


def per_entry(value: Any, batch: tuple[int, ...], name: str, excess: Excess = (0, 0)) -> Any:
    """Integers for each batch entry, flat; or one int for all."""
    if type(value) is int:
        return max(-2 * FAR, min(2 * FAR, _nearer(value, excess)))
    a = host.to_numpy(value, name)
    if a.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got dtype {host.described(a)}")
    if any(excess):
        near = [per_entry(int(n), batch, name, excess) for n in a.flat]
        a = np.array(near, np.int64).reshape(a.shape)
    elif a.dtype == np.uint64:
        a = np.minimum(a, 2 * FAR)
    try:
        return np.broadcast_to(a.astype(np.int64).clip(-2 * FAR, 2 * FAR), batch).ravel()
    except ValueError:
        raise ValueError(
            f"{name} must be one integer, or one for each batch entry {batch}, got shape {a.shape}"
        ) from None


def _nearer(offset: int, excess: Excess) -> int:
    if abs(offset) <= FAR // 2:
        return offset
    return max(offset - excess[0], FAR // 2) if offset > 0 else min(offset + excess[1], -FAR // 2)


def count(cu_seqlens: Any) -> int:
    """How many packed sequences there are."""
    on_gpu = gpu.is_on_gpu(cu_seqlens)
    shape = gpu.inspect_array(cu_seqlens, "").shape if on_gpu else np.shape(cu_seqlens)
    if len(shape) != 1 or not shape[0]:
        raise _not_ends("cu_seqlens_q", f"shape {shape}")
    return shape[0] - 1


def on_host(entries: int, queries: int, keys: int, given: Given, excess: Excess) -> np.ndarray:
    """Spans of integers on the host."""
    spans = np.zeros((entries, 5), np.int64)
    spans[:, 1] = queries
    spans[:, 3] = keys
    for name, (x, shape) in given.items():
        if name == "q_offset":
            spans[:, 4] = per_entry(x, shape, name, excess)
        elif name == "kv_lengths" and x is not None:
            spans[:, 3] = _lengths(x, shape, keys)
        elif name != "kv_lengths":
            at, total = (0, queries) if name == "cu_seqlens_q" else (2, keys)
            ends = _ends(x, total, name)
            if len(ends) != entries + 1:
                raise ValueError(
                    f"cu_seqlens_q and cu_seqlens_k must be equally long, got {entries + 1} and "
                    f"{len(ends)}"
                )
            spans[:, at], spans[:, at + 1] = ends[:-1], ends[1:]
    return spans


def _lengths(kv_lengths: Any, batch: tuple[int, ...], keys: int) -> Any:
    lengths = np.broadcast_to(per_entry(kv_lengths, batch, "kv_lengths"), math.prod(batch))
    bad = (lengths < 0) | (lengths > keys)
    if bad.any():
        wrong = np.broadcast_to(np.asarray(kv_lengths), batch).ravel()[bad.argmax()]
        raise ValueError(f"kv_lengths must be from 0 to the {keys} keys, got {wrong}")
    return lengths


def _ends(cu_seqlens: Any, total: int, name: str) -> np.ndarray:
    ends = host.to_numpy(cu_seqlens, name)
    if ends.dtype.kind not in "iu" or ends.ndim != 1 or not ends.size:
        raise _not_ends(name, f"{ends.dtype} of shape {ends.shape}")
    ends = ends.astype(np.int64)
    if ends[0] != 0 or ends[-1] != total or np.any(np.diff(ends) < 0):
        raise ValueError(
            f"{name} must rise from 0 to {total}, the number of rows, got {cu_seqlens!r}"
        )
    return ends


def _not_ends(name: str, got: str) -> TypeError:
    return TypeError(f"{name} must be a one-dimensional array of integers, got {got}")


# ---- from integers on a GPU ------------------------------------------------------------------

_FIELDS = {
    "kv_lengths": "lengths",
    "q_offset": "offsets",
    "cu_seqlens_q": "ends_q",
    "cu_seqlens_k": "ends_k",
}


def on_gpu(
    first: DeviceArray,
    entries: int,
    queries: int,
    keys: int,
    given: Given,
    excess: Excess,
) -> tuple[DeviceArray, Any]:
    """Spans that the GPU makes of integers, some of which it holds, and the memory in use. Those
    are not checked, but cut, unless validation is on.
    """
    from ..kernels.cuda import _device
    from ..kernels.cuda._arrays import LABEL_CODES
    from ..kernels.cuda.attention.extras import SPAN, Spans, fill_spans

    fields: dict[str, int] = {}
    kept, unchecked = [], []
    for name, (x, shape) in given.items():
        field, lost = _FIELDS[name], excess if name == "q_offset" else (0, 0)
        if gpu.is_on_gpu(x) or field.startswith("ends"):
            a = gpu.inspect_array(x, name)
            gpu.check_device(first, a, name)
            dense = gpu._dense(a.shape, gpu._SIZES[a.dtype])
            if a.dtype not in gpu.INTEGERS or a.shape != shape or a.strides != dense:
                raise TypeError(
                    f"{name} on the GPU must be contiguous integers of shape {shape}, got "
                    f"{a.dtype} of shape {a.shape} and strides {a.strides} bytes"
                )
            fields[field], fields[f"{field}_code"] = a.address, LABEL_CODES[a.dtype]
            unchecked.append((name, a))
            if name == "q_offset":
                fields["left_less"], fields["right_less"] = (min(n, 2**62) for n in lost)
        elif type(x) is int and name == "q_offset":
            fields["offset"] = per_entry(x, shape, name, lost)
        elif x is not None:
            lengths = name == "kv_lengths"
            numbers = _lengths(x, shape, keys) if lengths else per_entry(x, shape, name, lost)
            numbers = np.broadcast_to(numbers, math.prod(shape))
            kept.append(_device.upload(numbers.astype(np.int64), first.stream, first.device))
            fields[field], fields[f"{field}_code"] = _device.address(kept[-1]), LABEL_CODES["int64"]
    kept.append(_device.allocate(8 * SPAN * entries, first.stream, first.device))
    address = _device.address(kept[-1])
    fill_spans(Spans(address, entries, queries, keys, **fields), first.stream, first.device)
    for name, a in unchecked if get_validation() else ():
        found = np.empty(a.shape, a.dtype)
        _device.read(a.address, found, first.stream, first.device)  # waits for the GPU
        if name == "kv_lengths":
            _lengths(found, found.shape, keys)
        elif name != "q_offset":
            _ends(found, queries if name == "cu_seqlens_q" else keys, name)
    shape, strides = (entries, SPAN), (8 * SPAN, 8)
    return DeviceArray(address, shape, strides, "int64", first.device, first.stream), kept
