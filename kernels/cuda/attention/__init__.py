"""Scaled dot-product attention and its gradients on NVIDIA GPUs.

`forward.py`, `backward.py` and `mask.py` have the kernels. `work.py` assigns work to blocks;
`tiles.py`, `products.py` and `scores.py` are the steps of a block. float16, bfloat16 and, where it
is allowed, float32 go to tensor cores, which sum in float32; float32 and float64 to ordinary units.

Every result is the same to the last bit every time: nothing is added by atomic operations.
"""

from .. import _device
from .._storage import storage_of
from . import launch
from .arrays import members_of, on_device, problem_of
from .backward import (
    backward_kv_of,
    backward_q_of,
    delta_of,
    norms_of,
    unbuffered_size,
)
from .forward import forward_of, merge_of
from .mask import mask_gradient_of
from .scores import score_scale_of


def attention(q, k, v, mask, spans, out, lse, *, scale, left, right, softcap, threads):
    with on_device((q, k, v, mask), (out, lse), spans) as (views, spans):
        arrays = dict(zip(("q", "k", "v", "mask", "out", "lse"), views, strict=True))
        q = arrays["q"]
        p, kept = problem_of(arrays, spans, left, right, scale, softcap)
        if p.all_rows == 0:
            return
        general = _is_general(p)
        tiling, cut = launch.forward(q.dtype, p, general, q.device)
        if cut["splits"] > 1:
            count = cut["splits"] * p.all_rows * (tiling.part * cut["parts"] + 2)
            size = storage_of(q.dtype).real_size
            kept.append(_device.allocate(count * size, q.stream, q.device))
            cut["partial"] = _device.address(kept[-1])
        p = p._replace(**cut)
        shared, blocks = launch.forward_shared(tiling), launch.tiles_of(p, p.heads // p.pack)
        launch.over_tiles(forward_of(tiling), tiling, shared, blocks, q, (p,))
        if p.splits > 1:
            launch.over_all_rows(merge_of(q.dtype, tiling.part * p.parts), p, q)


def _is_general(p):
    """Whether products must be made scores before anything else. Else products stand for scores:
    with a scale in this range they have the same order, and -inf stays -inf.
    """
    return p.mask != 0 or p.softcap != 0 or not 2.0**-100 < p.scale < 2.0**100


def attention_backward(grad_out, q, k, v, mask, spans, out, lse, dq, dk, dv, dmask, *, scale, left,
                       right, softcap, threads):  # fmt: skip
    given = grad_out, q, k, v, mask, out, lse
    with on_device(given, (dq, dk, dv, dmask), spans) as (views, spans):
        names = "grad_out", "q", "k", "v", "mask", "out", "lse", "dq", "dk", "dv", "dmask"
        arrays = dict(zip(names, views, strict=True))
        q = arrays["q"]
        p, kept = problem_of(arrays, spans, left, right, scale, softcap)
        general = _is_general(p)
        size = storage_of(q.dtype).real_size
        kept.append(_device.allocate(3 * p.all_rows * size, q.stream, q.device))
        p = p._replace(delta=_device.address(kept[-1]))
        of_q, of_kv = launch.backward(q.dtype, p, general, q.device)
        # The gradient of a mask has a mask, so all kernels have the same unit of products.
        launch.over_all_rows(delta_of(q.dtype), p, q, score_scale_of(of_q[0], p.scale))
        tiling, cut = of_q
        now = p._replace(**{**cut, "parts": 1})
        shared, blocks = unbuffered_size(tiling), launch.tiles_of(now, p.heads)
        launch.over_tiles(norms_of(tiling), tiling, shared, blocks, q, (now,))
        for (tiling, cut), kernel_of, heads in (
            (of_q, backward_q_of, p.heads),
            (of_kv, backward_kv_of, p.heads // max(p.group, 1)),
        ):
            shared = launch.backward_shared(tiling)
            now = p._replace(**cut)
            blocks = launch.tiles_of(now, heads)
            launch.over_tiles(kernel_of(tiling), tiling, shared, blocks, q, (now,))
        if arrays["dmask"] is not None:
            _mask_gradient(p, arrays["dmask"], q)


def _mask_gradient(p, dmask, q):
    if 0 in dmask.shape:
        return
    tiling = launch.mask_gradient(q.dtype, p, q.device)
    keys = dmask.shape[-1]
    # As many tiles as the mask has along an axis: one where it is broadcast.
    heads = p.heads if p.dmask_head else 1
    rows = -(-p.queries // tiling.rows) if p.dmask_row else 1
    columns = -(-keys // tiling.columns) if p.dmask_item else 1
    groups, table = members_of(dmask, q.device)
    members = _device.address(table)
    blocks = groups * heads * rows * columns
    shared = unbuffered_size(tiling)
    cut = members, heads, rows, columns, keys
    launch.over_tiles(mask_gradient_of(tiling), tiling, shared, blocks, q, (p, *cut))
