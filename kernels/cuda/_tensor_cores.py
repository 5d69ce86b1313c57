"""Tensor cores for kernels of `numba.cuda`: the warp's matrix product, by inline PTX.

A warp multiplies small matrices, D = A B + C. Each of its lanes holds a few numbers of each, its
fragment. With g = lane >> 2 and t = lane & 3, the fragments of lane (g, t) are

    C, D  16 x 8, float32    c0 (g, 2t)   c1 (g, 2t + 1)   c2 (g + 8, 2t)   c3 (g + 8, 2t + 1)
    A     16 x 16 of 16 bits, two neighbours of a row in a register:
          a0 (g, 2t)   a1 (g + 8, 2t)   a2 (g, 2t + 8)   a3 (g + 8, 2t + 8)
    B     16 x 8 of 16 bits, two neighbours of a column in a register:
          b0 (2t, g)   b1 (2t + 8, g)
    A, B  16 x 8 and 8 x 8 of tf32, one in a register:
          a0 (g, t)   a1 (g + 8, t)   a2 (g, t + 4)   a3 (g + 8, t + 4);   b0 (t, g)   b1 (t + 4, g)

(PTX ISA, "Matrix Fragments for mma.m16n8k16" and "mma.m16n8k8".) So the C of one product, rounded
to 16 bits, is the A of the next without moving a number from lane to lane.

`load_matrices` fills four registers of every lane from four 8 x 8 matrices of 16 bits in shared
memory (8 x 4 of tf32): lanes 0 to 7 give the addresses of the rows of the first one, lanes 8 to 15
of the second, and so on. Lane (g, t) gets the numbers (g, 2t) and (g, 2t + 1) of each; transposed,
(2t, g) and (2t + 1, g). A row is 16 bytes, aligned; the eight rows of a matrix should be in
different banks, 16 bytes modulo 128, as those of a swizzled tile are (`attention/tiles.py`).

    a = load_matrices(np.uint32(address_of_my_row))
    c0, c1, c2, c3 = mma_f16(a[0], a[1], a[2], a[3], b0, b1, c0, c1, c2, c3)

On Hopper (compute capability 9.0) four warps, a warpgroup, multiply together, with matrices in
shared memory, which a descriptor describes: `warpgroup_mma` makes such a product. Warp w of the
four has rows 16 w to 16 w + 15 of C, D and, if it is in registers, of A, in fragments as above. All
steps of a product, with the fence before and the wait after them, are one block of assembly:
between blocks LLVM would move accumulators, and ptxas then waits after every step (warning C7515).

All lanes of the warp must call. Accumulators in a `cuda.local.array` stay in registers if the loops
that index it have constant bounds, and so are unrolled (tests/backends/test_ptx.py).
"""

from functools import cache

import numpy as np
from numba import types

from ._math import device
from ._ptx import WORD, instruction

_F, _U, _I = types.float32, types.uint32, types.int64

load_matrices = instruction(
    "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {$0, $1, $2, $3}, [$4];",
    WORD,
    [_U],
    "Four matrices of shared memory; each lane gives the address of one row.",
)
load_matrices_transposed = instruction(
    "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {$0, $1, $2, $3}, [$4];",
    WORD,
    [_U],
    "The same, each of the four (of 16 bits) transposed.",
)


def _mma(shape, kind, doc):
    """a0, a1, a2, a3, b0, b1, c0, c1, c2, c3 -> d0, d1, d2, d3."""
    return instruction(
        f"mma.sync.aligned.{shape}.row.col.f32.{kind}.{kind}.f32 "
        "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};",
        types.UniTuple(_F, 4),
        [*[_U] * 6, *[_F] * 4],
        doc,
        together=True,
    )


mma_f16 = _mma("m16n8k16", "f16", "A B + C for float16.")
mma_bf16 = _mma("m16n8k16", "bf16", "A B + C for bfloat16.")
mma_tf32 = _mma("m16n8k8", "tf32", "A B + C for float32 of which 10 bits of the mantissa count.")
to_tf32 = instruction(
    "cvt.rna.tf32.f32 $0, $1;", _U, [_F], "A float32 rounded for `mma_tf32`, as bits.", pure=True
)


@device
def descriptor(address, panel):
    """Of matrices in shared memory for `warpgroup_mma`.

    They are stored in panels of 128 bytes of each row, `panel` bytes apart, swizzled: the 16 bytes
    at place c of row r are at place c ^ (r & 7), and the first row at a multiple of 1024 bytes.
    Eight rows further is 1024 bytes further. (PTX ISA, "Matrix Descriptor Format"; 1 << 62 is that
    swizzle.)
    """
    at = np.int64((address & 0x3FFFF) >> 4)
    return at | (np.int64(panel >> 4) << 16) | (np.int64(1024 >> 4) << 32) | (np.int64(1) << 62)


@cache
def warpgroup_mma(kind, columns, offsets, *, from_registers):
    """`multiply(acc, a, b)`: acc += A B, of 64 rows by `columns` float32, over steps of 16.

    ``kind`` is "f16" or "bf16"; `offsets` are, for each step, the bytes from the descriptors to the
    step's parts of A and B. `b` is a descriptor of the columns of B, which are contiguous, and `a`
    one of the rows of A. With `from_registers`, `b` is one of the rows of B, and `a` an array with
    four registers for each step (and no offset).
    """
    count = columns // 2
    registers = 4 * len(offsets) if from_registers else 1
    d = ", ".join(f"${i}" for i in range(count))
    b_at = 2 * count + registers
    lines = [
        "{",
        ".reg .pred %wg_p;",
        ".reg .b64 %wg_a, %wg_b;",
        "setp.ne.b32 %wg_p, 1, 0;",
        "wgmma.fence.sync.aligned;",
    ]
    name = f"wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.{kind}.{kind}"
    for step, (a_offset, b_offset) in enumerate(offsets):
        lines.append(f"add.s64 %wg_b, ${b_at}, {b_offset >> 4};")
        if from_registers:
            a = ", ".join(f"${2 * count + 4 * step + i}" for i in range(4))
            lines.append(f"{name} {{{d}}}, {{{a}}}, %wg_b, %wg_p, 1, 1, 1;")
        else:
            lines.append(f"add.s64 %wg_a, ${2 * count}, {a_offset >> 4};")
            lines.append(f"{name} {{{d}}}, %wg_a, %wg_b, %wg_p, 1, 1, 0, 0;")
    lines += ["wgmma.commit_group.sync.aligned;", "wgmma.wait_group.sync.aligned 0;", "}"]
    product = instruction(
        "\n".join(lines),
        types.UniTuple(_F, count),
        [*[_F] * count, *([_U] * registers if from_registers else [_I]), _I],
        "All steps of a product.",
        tied=count,
    )
    given = ", ".join(f"a[{i}]" for i in range(registers)) if from_registers else "a"
    accumulators = ", ".join(f"acc[{i}]" for i in range(count))
    scope = {"product": product}
    exec(
        f"def multiply(acc, a, b):\n    {accumulators} = product({accumulators}, {given}, b)", scope
    )
    return device(scope["multiply"])
