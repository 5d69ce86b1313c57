"""Tensor cores for kernels of `numba.cuda`: the warp's matrix product, by inline PTX.

A warp multiplies small matrices together, D = A B + C. Each of its lanes holds a few numbers of
each, its fragment. With g = lane >> 2 and t = lane & 3, what lane (g, t) has is

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
(2t, g) and (2t + 1, g). A row is 16 bytes, aligned; the eight rows of a matrix should lie in
different banks, 16 bytes modulo 128, as those of a swizzled tile do (`_attention_tiles.py`).

    a = load_matrices(np.uint32(address_of_my_row))
    c0, c1, c2, c3 = mma_f16(a[0], a[1], a[2], a[3], b0, b1, c0, c1, c2, c3)

All lanes of the warp must call. Accumulators kept in a `cuda.local.array` stay in registers if the
loops that index it have constant bounds: they are unrolled (tests/test_ptx.py looks for spills).
"""

from numba import types

from ._ptx import WORD, instruction

_F, _U = types.float32, types.uint32

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
