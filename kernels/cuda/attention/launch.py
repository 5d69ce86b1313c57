"""Launch configurations of attention, in tables.

The numbers are estimated for an H100, not measured yet: see `docs/guide/gpu.md`.
"""

from .. import _device
from .._storage import storage_of
from .backward import shared_size as backward_shared
from .backward import unbuffered_size
from .forward import shared_size as forward_shared
from .tiles import Tiling, uses_tensor_cores, width_of

# Of the forward, by the bytes of a number: (most rows, (most numbers in a row, (warps, row_tiles,
# columns))), see `Tiling`. Tiles of more rows read fewer bytes of keys for each, but results are in
# registers, of which a thread has 255: 2 x 128 and 1 x 256 float32 results of 16 rows are half of
# them.
FORWARD = {
    2: (
        (16, ((128, (1, 1, 32)), (256, (1, 1, 16)))),
        (64, ((64, (4, 1, 64)), (256, (4, 1, 32)))),
        (None, ((64, (4, 2, 64)), (128, (4, 2, 32)), (256, (8, 1, 32)))),
    ),
    4: (
        (16, ((128, (1, 1, 32)), (256, (1, 1, 16)))),
        (None, ((128, (4, 1, 32)), (256, (4, 1, 16)))),
    ),
    8: (
        (16, ((128, (1, 1, 16)), (256, (1, 1, 16)))),
        (None, ((128, (4, 1, 16)), (256, (2, 1, 16)))),
    ),
}
# Whether Hopper's own products (`wgmma`) are used where there are tilings for them. Off until they
# are timed against those above: `python bench/studies/gpu_attention.py --warpgroups`.
WARPGROUPS = False
# Of float16 and bfloat16 and many rows, by the numbers in a row.
HOPPER_FORWARD = {64: (8, 1, 128), 128: (8, 1, 128), 256: (8, 1, 64)}
HOPPER_BACKWARD = {64: (8, 1, 64), 128: (8, 1, 64)}
# Columns of results that a block has, at most; the others have blocks of their own.
FORWARD_PART = {2: 256, 4: 128, 8: 64}
# Keys are split where a multiprocessor has fewer than SPLIT_BLOCKS blocks, in parts of PART_STEPS
# steps at least.
SPLIT_BLOCKS = 4
PART_STEPS = 8
MAX_SPLITS = 64
ROW_THREADS = 128  # of kernels with a warp for each query of each head
# The same of both launches of the backward. A block that has two gradients has half as many columns
# of each.
BACKWARD = {
    2: (
        (64, ((64, (4, 1, 64)), (256, (4, 1, 32)))),
        (None, ((64, (8, 1, 64)), (128, (8, 1, 32)), (256, (4, 1, 32)))),
    ),
    4: ((None, ((128, (4, 1, 16)), (256, (2, 1, 16)))),),
    8: ((None, ((128, (4, 1, 16)), (256, (2, 1, 16)))),),
}
BACKWARD_PART = {2: 128, 4: 128, 8: 64}


def _chosen(table, rows, width):
    by_width = next(t for most, t in table if most is None or rows <= most)
    return next(choice for most, choice in by_width if width <= most)


def _fitting(tiling, shared_of, device):
    """The tiling, or a smaller one where a block cannot have so much shared memory."""
    least = 16 if uses_tensor_cores(tiling.dtype) else 8
    while shared_of(tiling) > _device.limits(device).shared:
        if tiling.columns > least:
            tiling = tiling._replace(columns=tiling.columns // 2)
        elif tiling.row_tiles > 1:
            tiling = tiling._replace(row_tiles=tiling.row_tiles // 2)
        elif tiling.warps > 1:
            tiling = tiling._replace(warps=tiling.warps // 2)
        else:
            width = tiling.width * storage_of(tiling.dtype).size
            raise ValueError(
                f"attention with rows of {width} bytes needs {shared_of(tiling)} bytes of shared "
                f"memory, this GPU has {_device.limits(device).shared}"
            )
    return tiling


def _tiling(table, hopper, parts, shared_of, dtype, width, rows, general, device):
    """The tiling of a kernel: for warpgroups where there is one, and many rows."""
    size = storage_of(dtype).size
    part = width // -(-width // parts[size])
    limits = _device.limits(device)
    if WARPGROUPS and limits.capability == (9, 0) and size == 2 and width in hopper and rows > 64:
        tiling = Tiling(dtype, width, part, *hopper[width], general, warpgroups=True)
        if shared_of(tiling) <= limits.shared:
            return tiling
    warps, row_tiles, columns = _chosen(table[size], rows, width)
    if general and table is FORWARD:  # a mask or a softcap takes registers, too
        warps, row_tiles = warps * row_tiles, 1
    tiling = Tiling(dtype, width, part, warps, row_tiles, columns, general)
    return _fitting(tiling, shared_of, device)


def forward(dtype, p, general, device):
    """The `Tiling` of a forward, and the fields of the `Problem` that follow from it."""
    size = storage_of(dtype).size
    width = width_of(p.width // size, p.value_width // size)
    few = p.queries <= FORWARD[size][0][0]
    pack = p.group if few else 1
    tiling = _tiling(
        *(FORWARD, HOPPER_FORWARD, FORWARD_PART, forward_shared),
        *(dtype, width, p.queries * pack, general, device),
    )
    cut = _cut(p, tiling, p.queries, pack)
    blocks = tiles_of(p._replace(**cut), p.heads // pack)
    steps = -(-p.keys // tiling.columns)
    splits = SPLIT_BLOCKS * _device.limits(device).multiprocessors // blocks
    cut["splits"] = max(1, min(splits, steps // PART_STEPS, MAX_SPLITS))
    return tiling, cut


def backward(dtype, p, general, device):
    """The same for the gradient of q, then for those of k and v."""
    size = storage_of(dtype).size
    width = width_of(p.width // size, p.value_width // size)
    for count in p.queries, p.keys:
        tiling = _tiling(
            *(BACKWARD, HOPPER_BACKWARD, BACKWARD_PART, backward_shared),
            *(dtype, width, count, general, device),
        )
        yield tiling, _cut(p, tiling, count, 1)


def mask_gradient(dtype, p, device):
    """The `Tiling` of the gradient of the mask."""
    size = storage_of(dtype).size
    width = width_of(p.width // size, p.value_width // size)
    tiling = Tiling(dtype, width, width, 4, 1, 16 if size == 8 else 32, True)
    return _fitting(tiling, unbuffered_size, device)


def _cut(p, tiling, count, pack):
    tiles = -(-count * pack // tiling.rows)
    if p.packed:
        tiles = count * pack // tiling.rows + p.entries
    return {"tiles": tiles, "pack": pack, "parts": tiling.width // tiling.part}


def tiles_of(p, heads):
    """The number of blocks of a kernel that works on the tiles of `heads` heads."""
    return p.parts * p.splits * p.tiles * heads * (1 if p.packed else p.entries)


def over_tiles(kernel, tiling, shared, blocks, where, arguments):
    if blocks:
        _device.launch(
            kernel, blocks, tiling.threads, shared, where.stream, where.device, arguments
        )


def over_all_rows(kernel, p, where, *numbers):
    """Launch a kernel that has a warp for each query of each head."""
    blocks = -(-p.all_rows // (ROW_THREADS // 32))
    if blocks:
        _device.launch(kernel, blocks, ROW_THREADS, 0, where.stream, where.device, (p, *numbers))
