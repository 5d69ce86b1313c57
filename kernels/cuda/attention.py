"""Scaled dot-product attention and its gradients on NVIDIA GPUs.

`_attention_work.py` tells what a block has to do, `_attention_tiles.py` how it multiplies,
`_attention_forward.py` and `_attention_backward.py` the rest. float16, bfloat16 and, where it is
allowed, float32 go to tensor cores, which sum in float32; float32 and float64 to ordinary units.

Every result is the same to the last bit every time: nothing is added by atomic operations.
"""

from . import _attention_arrays, _device, _launch
from ._attention_forward import forward_of, merge_of
from ._storage import storage_of


def attention(q, k, v, mask, spans, out, lse, *, scale, left, right, softcap, threads):
    with _attention_arrays.on_device((q, k, v, mask), (out, lse), spans) as (views, spans):
        arrays = dict(zip(("q", "k", "v", "mask", "out", "lse"), views, strict=True))
        q = arrays["q"]
        p, kept = _attention_arrays.problem(arrays, spans, left=left, right=right)
        if p.all_rows == 0:
            return
        general = p.mask != 0 or softcap != 0 or scale <= 0
        tiling, cut = _launch.attention_forward(q.dtype, p, general, q.device)
        if cut["splits"] > 1:
            numbers = cut["splits"] * p.all_rows * (tiling.part * cut["parts"] + 2)
            size = storage_of(q.dtype).real_size
            kept.append(_device.allocate(numbers * size, q.stream, q.device))
            cut["partial"] = _device.address(kept[-1])
        p = p._replace(**cut)
        _launch.over_tiles(forward_of(tiling), tiling, p, q, (float(scale), float(softcap)))
        if p.splits > 1:
            _launch.over_all_rows(merge_of(q.dtype, tiling.part * p.parts), p, q)
