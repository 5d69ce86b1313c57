"""Launch configurations, in tables: which kernel, and how many threads. Those of attention are in
`attention/launch.py`.

The numbers are estimated for an H100, not measured yet: see `docs/guide/gpu.md`. The reasons:

- About 40 KB of loads under way on each multiprocessor hide the latency of memory (0.8 us at
  33 bytes per ns), so 2048 threads with one or two words each, or a copy to shared memory.
- A reduction over a warp takes some 250 instructions, as long as 4 KB of memory traffic, so short
  rows share a warp, and the shortest ones get one thread each.
"""

from functools import cache
from typing import NamedTuple

from . import _device
from ._columns import HEIGHT, PLACES, WIDTH
from ._reduce import SCRATCH
from ._storage import storage_of

# (most words of a row, its lanes), where a word is 16 bytes. Up to 32 lanes are neighbours in a
# warp, and a block of SMALL_BLOCK threads works on several rows.
LANES = ((16, 4), (32, 8), (64, 16), (256, 32), (1024, 128), (2048, 256), (8192, 512))
# Lanes of longer rows, by dtype: a multiprocessor has 65536 registers, and float64 needs up to 92
# for a thread, the others 64 at most (tests/backends/test_ptx.py).
LONGEST = {"float64": 512, "float32": 1024, "float16": 1024, "bfloat16": 1024}
# Of rows with a loss transform, whose float64 takes up to 92 registers.
TRANSFORMED = 512
SMALL_BLOCK = 128
# Lanes of blocks of which two share a multiprocessor, so that one writes while the other reads.
PAIRED = 512
RESERVED = 1024  # bytes of shared memory that the driver reserves for each block
# Most numbers in a row of the shape "tiles".
TILE_CLASSES = 64
TILE_ROWS = 128
PLAIN_SHARED = 48 * 1024  # bytes that a block has without an attribute of the kernel
# A row is split over blocks where there are fewer rows than multiprocessors, in parts of at least
# PART_WORDS words.
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
    """The `Plan` for the rows of an array.

    A row of `keeps` arrays goes through shared memory, and a tile holds `tiled` arrays. `splits`:
    a row may be split over blocks. `most_lanes`: the most threads of a row.
    """
    return _plan(view.shape, view.dtype, view.device, keeps, tiled, splits, most_lanes)


@cache
def _plan(shape, dtype, device, keeps, tiled, splits, most_lanes):
    outer, n, inner = shape
    count = outer * inner
    storage, limits = storage_of(dtype), _device.limits(device)
    if inner > 1:
        threads = limits.multiprocessors * RESIDENT // max(1, count)  # for each column
        height = max(1, min(HEIGHT, n, 1 << max(0, threads.bit_length() - 1)))
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
        available = limits.shared - SCRATCH
        if lanes == PAIRED and LONGEST[dtype] > PAIRED:
            available = (limits.shared - RESERVED) // 2 - SCRATCH
        capacity = min(words, available // (16 * keeps * groups))
    shared = SCRATCH + groups * capacity * 16 * keeps
    arguments = (lanes, 1, 0, 0, capacity)
    return Plan("rows", -(-count // groups), groups * lanes, shared, arguments, count)


def run(kernels, plan, main, arrays, options=(), *, maps=True):
    """Launch the kernel of the plan's shape on the rows of `main`.

    A kernel takes the addresses of `arrays`, the elements from plane to plane of each, the numbers
    of rows and classes, the options, and the plan's arguments. `maps`: it writes as many numbers as
    it reads, not one for each row.
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

    ``first(*arguments, count, rows of a block, out, *last)`` reduces rows, and
    ``second(partial results, count, ..)`` the results of the blocks. With `out` 0 a kernel writes
    its result to the addresses in `last`.
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
