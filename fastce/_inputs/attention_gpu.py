"""Attention of arrays on a GPU: what `_heads.py` is for arrays on the host.

Nothing is copied and nobody waits: what does not lie as the kernels can take it is an error, and
lengths and offsets that are on the GPU stay there, unchecked, unless validation is on.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from .._runtime.dispatch import gpu_kernel
from .._runtime.options import get_allow_tf32, get_validation
from . import attention, gpu
from .gpu import DeviceArray

ARRAYS = ("q", "k", "v")


class Call(NamedTuple):
    """Checked inputs of one call. Arrays are in canonical form (see ``fastce.kernels``)."""

    seen: tuple[DeviceArray, DeviceArray, DeviceArray]  # q, k, v as they were given
    inputs: tuple[Any, Any, Any]
    mask: Any
    spans: Any
    options: dict[str, Any]
    shape: tuple[int, ...]  # of the result, as the user sees it
    full: tuple[int, ...]  # the same with all axes; () of packed sequences
    kept: Any  # memory that the spans are in

    def view(self, a: DeviceArray, like: int | None = None) -> Any:
        """`a`, of the shape of the result or without its last axis, in canonical form; or of the
        shape of an input.
        """
        if not self.full:
            return per_sequence(a, self.inputs[0].shape[0], self.seen[0])
        if like is not None:
            return _canonical(a, self.inputs[like].shape, self.seen[0])
        full = self.full if len(a.shape) == len(self.shape) else self.full[:-1]
        return _canonical(a, full, self.seen[0])


def _heads_of(
    a: DeviceArray, shape: tuple[int, ...], strides: tuple[int, ...], first: DeviceArray
) -> Any:
    from ..kernels.cuda.attention.arrays import AttentionArray

    tf32 = a.dtype == "float32" and get_allow_tf32()
    dtype = "tfloat32" if tf32 else a.dtype
    return AttentionArray(a.address, shape, strides, dtype, first.stream, a.device)


def _canonical(a: DeviceArray, shape: tuple[int, ...], first: DeviceArray) -> Any:
    """`a` broadcast to `shape`, on the stream of the first input."""
    have = (1,) * (len(shape) - len(a.shape)) + a.shape
    strides = (0,) * (len(shape) - len(a.shape)) + a.strides
    strides = tuple(
        0 if n == 1 and want != 1 else s for n, want, s in zip(have, shape, strides, strict=True)
    )
    return _heads_of(a, shape, strides, first)


def _floating(x: Any, name: str) -> DeviceArray:
    a = gpu.floating(x, name)
    size = gpu._SIZES[a.dtype]
    if len(a.shape) and a.shape[-1] > 1 and a.strides[-1] != size:
        raise ValueError(
            f"{name} must be contiguous in its last axis, got strides {a.strides} bytes: nothing "
            "is copied on a GPU"
        )
    return a


def _operands(
    q: Any, k: Any, v: Any, key_axis: int = -2
) -> tuple[DeviceArray, DeviceArray, DeviceArray]:
    gpu_kernel("attention", "attention")  # raises, and says why, if it is not there
    seen = tuple(_floating(a, name) for a, name in zip((q, k, v), ARRAYS, strict=True))
    attention.check_operands([a.dtype for a in seen], [a.shape for a in seen], key_axis)
    for a, name in zip(seen, ARRAYS, strict=True):
        gpu.check_device(seen[0], a, name)
    return seen  # type: ignore[return-value]


def padded_batch(
    q: Any,
    k: Any,
    v: Any,
    attn_mask: Any,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    q_offset: Any,
    kv_lengths: Any,
    window: Any,
    softcap: float,
) -> Call:
    """Queries and keys as `scaled_dot_product_attention` takes them."""
    seen = _operands(q, k, v)
    options = attention.numbers(scale, window, softcap, is_causal, seen[0].shape[-1])
    first = seen[0]
    flat = max(len(a.shape) for a in seen) == 2
    shapes = [a.shape if len(a.shape) > 2 else (1, *a.shape) for a in seen]
    batch, heads, kv_heads = attention.head_counts(shapes[0], shapes[1], shapes[2], enable_gqa)
    if shapes[1][-3] == shapes[2][-3] == 1:
        kv_heads = 1  # all heads share the only one
    length, keys = shapes[0][-2], shapes[1][-2]
    counts = heads, kv_heads, kv_heads
    inputs = tuple(
        _canonical(a, (*batch, n, *shape[-2:]), first)
        for a, n, shape in zip(seen, counts, shapes, strict=True)
    )
    mask = None
    if attn_mask is not None:
        mask = _mask(attn_mask, first, (*batch, heads, length, keys))
    full = (*batch, heads, length, seen[2].shape[-1])
    less = attention.beyond(window, is_causal)
    where = {"lengths": (kv_lengths, batch), "offsets": (q_offset, batch)}
    on_gpu = {name: a for name, a in where.items() if gpu.is_on_gpu(a[0])}
    if on_gpu:
        spans, kept = _spans_on_gpu(first, math.prod(batch), length, keys, on_gpu, where, less)
    else:
        spans, kept = attention.spans_of(batch, length, keys, q_offset, kv_lengths, less), None
    shape = full[1:] if flat else full
    return Call(seen, inputs, mask, spans, options, shape, full, kept)  # type: ignore[arg-type]


def _mask(attn_mask: Any, first: DeviceArray, shape: tuple[int, ...]) -> Any:
    mask = gpu.inspect_array(attn_mask, "attn_mask", booleans=True)
    gpu.check_device(first, mask, "attn_mask")
    attention.check_mask(mask.dtype, first.dtype)
    attention.check_mask_shape(mask.shape, shape)
    return _canonical(mask, shape, first)


def packed(
    q: Any,
    k: Any,
    v: Any,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    q_offset: Any,
    window: Any,
    softcap: float,
) -> Call:
    """Queries and keys as `attention_varlen` takes them: each sequence is a batch entry."""
    seen = _operands(q, k, v, 0)
    first = seen[0]
    shapes = [a.shape for a in seen]
    attention.check_packed(shapes[0], shapes[1], shapes[2], enable_gqa)
    options = attention.numbers(scale, window, softcap, is_causal, shapes[0][-1])
    queries, keys = shapes[0][0], shapes[1][0]
    less = attention.beyond(window, is_causal)
    ends = {"ends_q": cu_seqlens_q, "ends_k": cu_seqlens_k}
    if not any(map(gpu.is_on_gpu, (*ends.values(), q_offset))):
        spans = attention.packed_spans(cu_seqlens_q, cu_seqlens_k, queries, keys, q_offset, less)
        count, kept = len(spans), None
    else:
        ends_shape = (
            gpu.inspect_array(cu_seqlens_q, "cu_seqlens_q").shape
            if gpu.is_on_gpu(cu_seqlens_q)
            else np.shape(cu_seqlens_q)
        )
        if len(ends_shape) != 1 or not ends_shape[0]:
            raise TypeError(
                f"cu_seqlens_q must be a one-dimensional array of integers, got shape {ends_shape}"
            )
        count = ends_shape[0] - 1
        where = {name: (a, (count + 1,)) for name, a in ends.items()}
        where["offsets"] = q_offset, (count,)
        on_gpu = {name: a for name, a in where.items() if name != "offsets"}
        if gpu.is_on_gpu(q_offset):
            on_gpu["offsets"] = where["offsets"]
        spans, kept = _spans_on_gpu(first, count, queries, keys, on_gpu, where, less)
    inputs = tuple(per_sequence(a, count, first) for a in seen)
    shape = (*shapes[0][:2], shapes[2][2])
    return Call(seen, inputs, None, spans, options, shape, (), kept)  # type: ignore[arg-type]


def per_sequence(a: DeviceArray, count: int, first: DeviceArray) -> Any:
    """A packed array (total, heads, ...), the same for each of `count` batch entries."""
    shape, strides = list(a.shape), list(a.strides)
    shape[0], shape[1] = shape[1], shape[0]
    strides[0], strides[1] = strides[1], strides[0]
    return _heads_of(a, (count, *shape), (0, *strides), first)


_NAMES = {
    "lengths": "kv_lengths",
    "offsets": "q_offset",
    "ends_q": "cu_seqlens_q",
    "ends_k": "cu_seqlens_k",
}


def _spans_on_gpu(
    first: DeviceArray,
    entries: int,
    queries: int,
    keys: int,
    on_gpu: dict,
    where: dict,
    less: tuple[int, int],
) -> tuple[Any, Any]:
    """Spans that the GPU makes from integers that it has, and the memory they are in."""
    from ..kernels.cuda import _device
    from ..kernels.cuda._arrays import LABEL_CODES
    from ..kernels.cuda.attention.arrays import AttentionArray
    from ..kernels.cuda.attention.extras import SPAN, Spans, fill_spans

    fields: dict[str, int] = {}
    kept = []
    for name, (x, shape) in where.items():
        if name in on_gpu:
            a = gpu.inspect_array(x, _NAMES[name])
            gpu.check_device(first, a, _NAMES[name])
            dense = gpu._dense(a.shape, gpu._SIZES[a.dtype])
            if a.dtype not in gpu.INTEGERS or a.shape != shape or a.strides != dense:
                raise TypeError(
                    f"{_NAMES[name]} on the GPU must be contiguous integers of shape {shape}, got "
                    f"{a.dtype} of shape {a.shape} and strides {a.strides} bytes"
                )
            fields[name], fields[f"{name}_code"] = a.address, LABEL_CODES[a.dtype]
            if name == "offsets":
                fields["left_less"], fields["right_less"] = (min(n, 2**62) for n in less)
        elif type(x) is int and name == "offsets":
            fields["offset"] = attention.per_entry(x, shape, "q_offset", less)
        elif x is not None:
            lost = less if name == "offsets" else (0, 0)
            host = attention.per_entry(x, shape, _NAMES[name], lost)
            host = np.broadcast_to(host, math.prod(shape))
            if name == "lengths" and host.size and (host.min() < 0 or host.max() > keys):
                raise ValueError(f"kv_lengths must be from 0 to the {keys} keys, got {x!r}")
            kept.append(_device.upload(host.astype(np.int64), first.stream, first.device))
            fields[name], fields[f"{name}_code"] = _device.address(kept[-1]), LABEL_CODES["int64"]
    kept.append(_device.allocate(8 * SPAN * entries, first.stream, first.device))
    address = _device.address(kept[-1])
    fill_spans(Spans(address, entries, queries, keys, **fields), first.stream, first.device)
    if get_validation():
        _validate(first, fields, {name: a[0] for name, a in on_gpu.items()}, queries, keys)
    spans = AttentionArray(
        address, (entries, SPAN), (8 * SPAN, 8), "int64", first.stream, first.device
    )
    return spans, kept


def _validate(first: DeviceArray, fields: dict, given: dict, queries: int, keys: int) -> None:
    """Wait for the GPU, and raise where lengths are not what they should be."""
    from ..kernels.cuda import _device

    for name, x in given.items():
        a = gpu.inspect_array(x, _NAMES[name])
        found = np.empty(a.shape, a.dtype)
        _device.read(a.address, found, first.stream, first.device)
        if name == "lengths" and found.size and (found.min() < 0 or found.max() > keys):
            raise ValueError(f"kv_lengths must be from 0 to the {keys} keys, got {found}")
        if name in ("ends_q", "ends_k"):
            attention._ends(found, queries if name == "ends_q" else keys, _NAMES[name])


# ---- results ---------------------------------------------------------------------------------


def result_like(x: Any, a: DeviceArray, shape: tuple[int, ...], dtype: str) -> Any:
    """A new array whose axes lie in memory in the order of those of `a`, the last one last."""
    if len(a.shape) != len(shape):
        return gpu.empty(x, a, shape, dtype)
    axes = attention.memory_order(a.shape, a.strides)
    if axes == sorted(axes):
        return gpu.empty(x, a, shape, dtype)
    folded = gpu.empty(x, a, tuple(shape[i] for i in axes), dtype)
    return gpu.permuted(folded, tuple(int(i) for i in np.argsort(axes)))


def check_result(call: Call, out: Any, mask: Any) -> DeviceArray:
    """`out` of the user, which may not overlap anything."""
    a = gpu.check_out(out, call.shape, call.seen[0].dtype)
    gpu.check_device(call.seen[0], a, "out")
    size = gpu._SIZES[a.dtype]
    if a.shape[-1] > 1 and a.strides[-1] != size:
        raise ValueError(f"out must be contiguous in its last axis, got strides {a.strides} bytes")
    attention.check_no_overlap(a.shape, a.strides, size)
    others = dict(zip(ARRAYS, call.seen, strict=True))
    if mask is not None:
        others["attn_mask"] = gpu.inspect_array(mask, "attn_mask", booleans=True)
    for name, other in others.items():
        (low, high), (out_low, out_high) = gpu._extent(other), gpu._extent(a)
        if low < out_high and out_low < high:
            raise ValueError(f"out overlaps {name}: nothing is copied on a GPU")
    return a


def forward(call: Call, q: Any, return_lse: bool, out: Any, mask: Any = None) -> Any:
    first = call.seen[0]
    if out is None:
        result = result_like(q, first, call.shape, first.dtype)
        to = gpu.inspect_array(result, "result")
    else:
        result, to = out, check_result(call, out, mask)
    lse = norm = None
    if return_lse:
        lse = gpu.empty(q, first, call.shape[:-1], gpu.compute_dtype(first.dtype))
        norm = call.view(gpu.inspect_array(lse, "lse"))
    gpu_kernel("attention", "attention")(
        *call.inputs, call.mask, call.spans, call.view(to), norm, **call.options, threads=1
    )
    return result if lse is None else (result, lse)


def _results(call: Call, grad_out: Any, out: Any, lse: Any) -> tuple[Any, Any, Any]:
    """What the backward takes from the forward, checked and in canonical form."""
    first, views = call.seen[0], []
    compute = gpu.compute_dtype(first.dtype)
    for x, name, shape, dtype in (
        (grad_out, "grad_out", call.shape, first.dtype),
        (out, "out", call.shape, first.dtype),
        (lse, "lse", call.shape[:-1], compute),
    ):
        a = gpu.floating(x, name) if name == "lse" else _floating(x, name)
        if a.shape != shape or a.dtype != dtype:
            raise ValueError(
                f"{name} must have shape {shape} and dtype {dtype}, got {a.shape} and {a.dtype}"
            )
        gpu.check_device(first, a, name)
        views.append(call.view(a))
    return tuple(views)  # type: ignore[return-value]


def _zeros(call: Call, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """Gradients where there is nothing to sum."""
    from ..kernels.cuda import _device

    first, results = call.seen[0], []
    for x in given:
        a = gpu.inspect_array(x, "an input")
        results.append(result_like(x, a, a.shape, a.dtype))
        to, size = gpu.inspect_array(results[-1], "result"), gpu._SIZES[a.dtype]
        _device.clear(to.address, math.prod(a.shape) * size, first.stream, first.device)
    return tuple(results)


def backward(
    call: Call,
    given: tuple[Any, Any, Any],
    grad_out: Any,
    out: Any,
    lse: Any,
    mask: Any = None,
    grad_mask: bool = False,
    whole: bool = True,
) -> tuple[Any, ...]:
    """Gradients of `given`, which is q, k and v; and of the mask. `whole`: all keys are used."""
    from ..kernels.cuda import _device
    from ..kernels.cuda.attention.arrays import AttentionArray
    from ..kernels.cuda.attention.extras import sum_members

    first = call.seen[0]
    if grad_mask and (call.mask is None or call.mask.dtype == "bool"):
        raise ValueError("grad_mask needs a floating attn_mask")
    g, o, norm = _results(call, grad_out, out, lse)
    if any(0 in a.shape for a in call.inputs):
        return _zeros(call, (*given, mask) if grad_mask else given)
    results, views, sums, kept = [], [], [], []
    for i, (x, a, full) in enumerate(zip(given, call.seen, call.inputs, strict=True)):
        results.append(result_like(x, a, a.shape, a.dtype))
        seen = gpu.inspect_array(results[-1], "result")
        size = gpu._SIZES[a.dtype]
        to = call.view(seen, like=i)
        if call.full and math.prod(a.shape) != math.prod(full.shape):
            # It was broadcast: a gradient for each place it was used in, which are then added up.
            kept.append(_device.allocate(math.prod(full.shape) * size, first.stream, first.device))
            address, strides = _device.address(kept[-1]), gpu._dense(full.shape, size)
            into = AttentionArray(
                address, full.shape, strides, full.dtype, first.stream, first.device
            )
            sums.append((into, to))
            to = into
        if i and not whole:
            _device.clear(to.address, math.prod(to.shape) * size, first.stream, first.device)
        views.append(to)
    dmask = None
    if grad_mask:
        shape, dtype = gpu.inspect_array(mask, "attn_mask").shape, first.dtype
        compute = gpu.compute_dtype(dtype)
        results.append(gpu.empty(mask, first, shape, dtype))
        seen = gpu.inspect_array(results[-1], "result")
        size = gpu._SIZES[compute]
        wide = seen
        if dtype != compute:
            kept.append(_device.allocate(math.prod(shape) * size, first.stream, first.device))
            wide = DeviceArray(
                _device.address(kept[-1]), shape, gpu._dense(shape, size), compute, first.device, 0
            )
            rows = (1,) * (2 - len(shape)) + shape
            sums.append((_canonical(wide, rows, first), _canonical(seen, rows, first)))
        _device.clear(wide.address, math.prod(shape) * size, first.stream, first.device)
        dmask = _canonical(wide, call.mask.shape, first)
    gpu_kernel("attention", "attention_backward")(
        *(g, *call.inputs, call.mask, call.spans, o, norm, *views, dmask),
        **call.options,
        threads=1,
    )
    for full, to in sums:
        sum_members(full, to)
    return tuple(results)
