"""Arrays of attention in memory of a GPU, and the `Problem` that they make.

In each place a kernel function takes an `AttentionArray`, any other array on a GPU that has
``__cuda_array_interface__``, or a NumPy array, which is copied there and, if it is an output, back.
"""

import threading
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from .. import _device
from .._storage import storage_of
from .work import ARRAYS, Problem


class AttentionArray(NamedTuple):
    """An array in memory of a GPU: (..., heads, rows, width) or, of lse, (..., heads, rows)."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # bytes
    dtype: str  # also "bfloat16"; "tfloat32" for float32 that may be multiplied as such
    stream: int
    device: int


@contextmanager
def on_device(inputs, outputs, spans):
    """All inputs and outputs as `AttentionArray`, then the spans: of NumPy, or on the GPU."""
    given = [a for a in (*inputs, *outputs) if a is not None]
    first = next((a for a in given if isinstance(a, AttentionArray)), None)
    if first is not None or not any(isinstance(a, np.ndarray) for a in given):
        yield [None if a is None else view(a, first) for a in (*inputs, *outputs)], spans
        return
    device, stream = _device.current(), 0
    kept, written = [], []
    places = []
    for i, a in enumerate((*inputs, *outputs)):
        if a is None:
            places.append(None)
            continue
        # An array that repeats itself, as a broadcast one or a batch of packed sequences does,
        # is copied once. Outputs are copied too: not all of an output may be written.
        once = a[tuple(slice(0, 1) if s == 0 else slice(None) for s in a.strides)]
        dense = np.ascontiguousarray(once)
        buffer = _device.upload(dense, stream, device)
        kept.append(buffer)
        strides = tuple(0 if s == 0 else d for s, d in zip(a.strides, dense.strides, strict=True))
        name = "bfloat16" if a.dtype == np.uint16 else a.dtype.name
        address = _device.address(buffer)
        places.append(AttentionArray(address, a.shape, strides, name, stream, device))
        if i >= len(inputs):
            written.append((address, once, dense))
    yield places, spans
    for address, out, dense in written:
        _device.read(address, dense, stream, device)
        out[...] = dense


def view(a, like=None):
    """An array with ``__cuda_array_interface__``, of which the last axis is contiguous."""
    if isinstance(a, AttentionArray):
        return a
    interface = a.__cuda_array_interface__
    dtype, shape = np.dtype(interface["typestr"]), tuple(interface["shape"])
    strides = interface.get("strides")
    if strides is None:
        strides = [dtype.itemsize] * len(shape)
        for i in range(len(shape) - 2, -1, -1):
            strides[i] = strides[i + 1] * max(shape[i + 1], 1)
    stream = like.stream if like else interface.get("stream") or 0
    device = like.device if like else _device.current()
    name = "bfloat16" if dtype == np.uint16 else dtype.name
    return AttentionArray(interface["data"][0], shape, tuple(strides), name, stream, device)


def problem_of(arrays, spans, left, right, scale, softcap):
    """The `Problem` of arrays by name, without the fields of its tiling; and the buffers that must
    be kept until it has been launched.
    """
    q, k, v = arrays["q"], arrays["k"], arrays["v"]
    size = storage_of(q.dtype).size
    batch = q.shape[:-3]
    entries, kept, fields = int(np.prod(batch, dtype=np.int64)), [], {}
    axes = {name: () if a is None else a.strides[: len(batch)] for name, a in arrays.items()}
    steps = {name: _step(batch, strides) for name, strides in axes.items() if strides}
    if None in steps.values():
        starts = np.zeros((entries, len(ARRAYS)), np.int64)
        for name, strides in axes.items():
            if strides:
                starts[:, ARRAYS.index(name)] = _offsets(batch, strides)
        kept.append(constant(starts, q.device))
        fields["starts"] = _device.address(kept[-1])
    aligned = 0
    for i, name in enumerate(ARRAYS):
        a = arrays.get(name)
        if a is None:
            continue
        fields[name] = a.address
        fields[f"{name}_entry"] = steps.get(name) or 0
        # The step along an axis of one element is 0: an index out of range reads the first one.
        rest = [0 if n == 1 else s for n, s in zip(a.shape, a.strides, strict=True)][len(batch) :]
        fields[f"{name}_head"], fields[f"{name}_row"] = rest[:2]
        if name in ("mask", "dmask"):
            fields[f"{name}_item"] = rest[2]
        elif name != "lse":
            counts = (*a.shape[:-1], 1)
            moves = [s for s, n in zip(a.strides, counts, strict=True) if n > 1]
            whole = a.shape[-1] * size % 16 == 0 or name in ("q", "k", "v", "grad_out")
            if whole and not any(number % 16 for number in (a.address, *moves)):
                aligned |= 1 << i
    packed = int(entries > 1 and steps.get("out", 1) == 0 and 0 not in arrays["out"].shape)
    keys, offset = k.shape[-2], 0
    if isinstance(spans, np.ndarray):
        if len(spans) and not packed and (spans == spans[0]).all():
            keys, offset = int(spans[0, 3] - spans[0, 2]), int(spans[0, 4])
        else:
            kept.append(_device.upload(spans, q.stream, q.device))
            fields["spans"] = _device.address(kept[-1])
    else:
        fields["spans"] = spans.address
    heads, kv_heads = q.shape[-3], k.shape[-3]
    mask = arrays.get("mask")
    p = Problem(
        **fields,
        entries=entries,
        heads=heads,
        group=heads // max(kv_heads, 1),
        queries=q.shape[-2],
        keys=keys,
        offset=offset,
        left=left,
        right=right,
        scale=float(scale),
        softcap=float(softcap),
        width=q.shape[-1] * size,
        value_width=v.shape[-1] * size,
        of_bytes=int(mask is not None and mask.dtype == "bool"),
        aligned=aligned,
        packed=packed,
        all_rows=(1 if packed else entries) * heads * q.shape[-2],
    )
    return p, kept


def members_of(a, device, axes=None):
    """Which entries along the first axes (by default all axes in front of heads) share memory: the
    number of groups, and a table on the GPU: that number; where the entries of each group begin in
    a list of entries; that list; and the offset of each entry from the array's begin.
    """
    axes = len(a.shape) - 3 if axes is None else axes
    at = _offsets(a.shape[:axes], a.strides[:axes])
    _, group, counts = np.unique(at, return_inverse=True, return_counts=True)
    order = np.argsort(group.ravel(), kind="stable")
    table = np.concatenate([[len(counts), 0], np.cumsum(counts), order, at])
    return len(counts), constant(table.astype(np.int64), device)


def _offsets(shape, strides):
    """The offset of each entry along some axes, flat."""
    at = np.zeros((), np.int64)
    for n, stride in zip(shape, strides, strict=True):
        at = at[..., None] + np.arange(n) * stride
    return at.ravel()


def _step(batch, strides):
    """The step from entry to entry, if it is the same for all; else None."""
    step, expected = 0, None
    for n, stride in reversed([*zip(batch, strides, strict=True)]):
        if n == 1:
            continue
        if expected is None:
            step = stride
        elif stride != expected:
            return None
        expected = stride * n
    return step


_tables = {}
_lock = threading.Lock()


def constant(table, device):
    """A table of int64 on the GPU. It stays there, as work on any stream may still need it; there
    is one for each shape that was used.
    """
    key = table.tobytes(), device
    with _lock:
        if key not in _tables:
            _tables[key] = _device.upload(table, 0, device)
        return _tables[key]
