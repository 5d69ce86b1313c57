"""Which kernel, and how many threads: every launch configuration, in tables.

The numbers are reckoned for an H100, not measured yet: see `docs/guide/gpu.md`. What they are for:

- About 40 KB of loads under way on each multiprocessor hide the latency of memory (0.8 us at
  33 bytes per ns), so 2048 threads with one or two words each, or a copy to shared memory.
- A reduction over a warp costs some 250 instructions, as much as 4 KB of memory traffic, so short
  rows share a warp, and the shortest ones get one thread each.
"""

from functools import cache
from typing import NamedTuple

from . import _device
from ._attention_backward import shared_size as backward_shared
from ._attention_forward import shared_size as forward_shared
from ._attention_mask import shared_size as mask_shared
from ._attention_tiles import Tiling, uses_tensor_cores, width_of
from ._columns import HEIGHT, PLACES, WIDTH
from ._reduce import SCRATCH
from ._storage import storage_of

# Up to so many words in a row (16 bytes each): so many lanes for it. Up to 32 they are neighbours
# in a warp, and a block of SMALL_BLOCK threads works on several rows.
LANES = ((16, 4), (32, 8), (64, 16), (256, 32), (1024, 128), (2048, 256), (8192, 512))
# Lanes of longer rows, by dtype: a multiprocessor has 65536 registers, and float64 needs up to 92
# for a thread, the others 64 at most (tests/backends/test_ptx.py).
LONGEST = {"float64": 512, "float32": 1024, "float16": 1024, "bfloat16": 1024}
# With the curve of a robust loss, whose float64 wants up to 92 registers.
CURVED = 512
SMALL_BLOCK = 128
# Two blocks of so many lanes share a multiprocessor, so that one writes while the other reads.
PAIRED = 512
RESERVED = 1024  # bytes of shared memory that each block costs besides
# Rows of up to so many numbers go through tiles.
TILE_CLASSES = 64
TILE_ROWS = 128
PLAIN_SHARED = 48 * 1024  # bytes that a block has without asking
# A row is split over blocks where there are fewer rows than multiprocessors, in parts of so many
# words at least.
PART_WORDS = 1024
PART_LANES = 256
RESIDENT = 2048  # threads on one multiprocessor


# Sums over rows: threads of a block, and how many rows it adds.
SUM_THREADS = 256
SUM_ROWS = 8192


class Plan(NamedTuple):
    shape: str  # "rows", "tiles" or "columns"
    blocks: int
    threads: int | tuple[int, int]
    shared: int  # bytes
    arguments: tuple[int, ...]  # of the kernel, after those that all shapes have
    units: int  # rows or blocks, of which each writes one number where rows are summed
    parts: int = 1  # of each row, in blocks of their own


def plan_for(view, *, keeps=1, tiled=1, splits=True, most_lanes=1024):
    """How to work on the rows of an array.

    `keeps` is of how many arrays a row goes through shared memory, `tiled` how many a tile holds;
    `splits`, whether a row may be shared by blocks; `most_lanes`, how many threads it may have.
    """
    return _plan(view.shape, view.dtype, view.device, keeps, tiled, splits, most_lanes)


@cache
def _plan(shape, dtype, device, keeps, tiled, splits, most_lanes):
    outer, n, inner = shape
    count = outer * inner
    storage, limits = storage_of(dtype), _device.limits(device)
    if inner > 1:
        wanted = limits.multiprocessors * RESIDENT // max(1, count)
        height = max(1, min(HEIGHT, n, 1 << max(0, wanted.bit_length() - 1)))
        shared = PLACES * HEIGHT * WIDTH * storage.real_size
        blocks = -(-count // WIDTH)
        return Plan("columns", blocks, (WIDTH, height), shared, (inner,), blocks)
    if n <= TILE_CLASSES:
        pitch = n | 1
        rows = TILE_ROWS
        while SCRATCH + rows * pitch * storage.real_size * tiled > PLAIN_SHARED:
            rows //= 2
        shared = SCRATCH + rows * pitch * storage.real_size * tiled
        inverse = -(-(1 << 32) // n) if n else 0
        blocks = -(-count // rows)
        return Plan("tiles", blocks, rows, shared, (inverse, pitch), blocks)
    words = -(-n * storage.size // 16)
    lanes = next((lanes for most, lanes in LANES if words <= most), LONGEST[dtype])
    lanes = min(lanes, most_lanes)
    parts = 1
    if splits and 0 < count < limits.multiprocessors and words >= 2 * PART_WORDS:
        parts = min(2 * limits.multiprocessors // count, words // PART_WORDS)
    if parts > 1:
        return Plan("rows", count, PART_LANES, SCRATCH, (PART_LANES,), count, parts)
    groups = max(1, SMALL_BLOCK // lanes)
    capacity = 0
    if keeps:
        room = limits.shared - SCRATCH
        if lanes == PAIRED and LONGEST[dtype] > PAIRED:
            room = (limits.shared - RESERVED) // 2 - SCRATCH
        capacity = min(words, room // (16 * keeps * groups))
    shared = SCRATCH + groups * capacity * 16 * keeps
    arguments = (lanes, 1, 0, 0, capacity)
    return Plan("rows", -(-count // groups), groups * lanes, shared, arguments, count)


def run(kernels, plan, main, arrays, options=(), *, maps=True):
    """Launch what computes on the rows of `main`.

    A kernel takes the addresses of `arrays` and the elements from plane to plane of each, how many
    rows and classes there are, the options, and then what is for its shape of work. `maps` says
    that it writes as many numbers as it reads, not one for each row.
    """
    outer, n, inner = main.shape
    count = outer * inner
    if count == 0:
        return
    kernel = getattr(kernels, plan.shape)
    common = (*(a.address for a in arrays), *(a.step for a in arrays), count, n, *options)

    def launch(blocks, arguments):
        arguments = common + arguments
        _device.launch(
            kernel, blocks, plan.threads, plan.shared, main.stream, main.device, arguments
        )

    if plan.parts == 1:
        launch(plan.blocks, plan.arguments)
        return
    # Three numbers of each part, and one of each row.
    numbers = count * (3 * plan.parts + 1)
    size = storage_of(main.dtype).real_size
    buffer = _device.allocate(numbers * size, main.stream, main.device)
    states = _device.address(buffer)
    launch(count * plan.parts, (*plan.arguments, plan.parts, 0, states, 0))
    again = plan.parts if maps else 1
    launch(count * again, (*plan.arguments, again, plan.parts, states, 0))


def over_rows(first, second, count, width, where, arguments, last):
    """Reduce `width` float64 of each of `count` rows to as many, by blocks of SUM_ROWS.

    ``first(*arguments, count, rows of a block, out, *last)`` reduces rows, and so does
    ``second(partial results, count, ..)`` the results of the blocks. With `out` 0 a kernel writes
    its result to where `last` says.
    """
    blocks = max(1, -(-count // SUM_ROWS))

    def launch(kernel, blocks, arguments):
        _device.launch(kernel, blocks, SUM_THREADS, SCRATCH, where.stream, where.device, arguments)

    if blocks == 1:
        launch(first, 1, (*arguments, count, SUM_ROWS, 0, *last))
        return
    buffer = _device.allocate(8 * width * blocks, where.stream, where.device)
    partial = _device.address(buffer)
    launch(first, blocks, (*arguments, count, SUM_ROWS, partial, *last))
    launch(second, 1, (partial, blocks, blocks, 0, *last))


# ---- attention -------------------------------------------------------------------------------

# (warps, 16 rows of each, columns in a step) of the forward, for up to so many rows, by the bytes
# of a number and up to so many numbers in a row. Tiles of more rows share what they read of keys,
# but results are in registers, of which a thread has 255: 2 x 128 and 1 x 256 float32 results of 16
# rows are half of them.
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
# Whether Hopper's own products (`wgmma`) are used where there are tilings for them. Not before they
# have been timed against those above: `python bench/studies/gpu_attention.py --warpgroups`.
WARPGROUPS = False
# Of float16 and bfloat16, many rows, by how many numbers are in a row.
HOPPER_FORWARD = {64: (8, 1, 128), 128: (8, 1, 128), 256: (8, 1, 64)}
HOPPER_BACKWARD = {64: (8, 1, 64), 128: (8, 1, 64)}
# Columns of results that a block has, at most; the others have blocks of their own.
FORWARD_PART = {2: 256, 4: 128, 8: 64}
# Keys are split where there are fewer blocks than this many for each multiprocessor, in parts of so
# many steps at least.
WANTED_BLOCKS = 4
PART_STEPS = 8
MOST_SPLITS = 64
MERGE_THREADS = 128


# The same of the backward, of its two launches alike. A block that has two gradients has half as
# many columns of each.
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
    """How to cut the work of a kernel: of many rows for warpgroups, where that can be."""
    size = storage_of(dtype).size
    part = width // -(-width // parts[size])
    limits = _device.limits(device)
    if WARPGROUPS and limits.capability == (9, 0) and size == 2 and width in hopper and rows > 64:
        tiling = Tiling(dtype, width, part, *hopper[width], general, warpgroups=True)
        if shared_of(tiling) <= limits.shared:
            return tiling
    warps, row_tiles, columns = _chosen(table[size], rows, width)
    if general and table is FORWARD:  # a mask or a softcap wants registers, too
        warps, row_tiles = warps * row_tiles, 1
    tiling = Tiling(dtype, width, part, warps, row_tiles, columns, general)
    return _fitting(tiling, shared_of, device)


def attention_forward(dtype, p, general, device):
    """The `Tiling` of a forward, and how the work of a `Problem` is cut."""
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
    wanted = WANTED_BLOCKS * _device.limits(device).multiprocessors // blocks
    cut["splits"] = max(1, min(wanted, steps // PART_STEPS, MOST_SPLITS))
    return tiling, cut


def attention_backward(dtype, p, general, device):
    """Of the gradients of q, and of k and v: the `Tiling`, and how the work is cut."""
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
    return _fitting(tiling, mask_shared, device)


def _cut(p, tiling, count, pack):
    tiles = -(-count * pack // tiling.rows)
    if p.packed:
        tiles = count * pack // tiling.rows + p.entries
    return {"tiles": tiles, "pack": pack, "parts": tiling.width // tiling.part}


def tiles_of(p, heads):
    """How many blocks a kernel of attention has, which goes over the tiles of so many heads."""
    return p.parts * p.splits * p.tiles * heads * (1 if p.packed else p.entries)


def over_tiles(kernel, tiling, shared, blocks, where, arguments):
    if blocks:
        _device.launch(
            kernel, blocks, tiling.threads, shared, where.stream, where.device, arguments
        )


def over_all_rows(kernel, p, where, *numbers):
    """Launch a kernel that has a warp for each query of each head."""
    blocks = -(-p.all_rows // (MERGE_THREADS // 32))
    if blocks:
        _device.launch(kernel, blocks, MERGE_THREADS, 0, where.stream, where.device, (p, *numbers))
