"""The product of two small matrices, in which attention spends most of its time.

The queries of a tile lie side by side in rows of COLUMNS numbers, so that the innermost loop goes
over them, its length is known, and LLVM makes vectors of it. Four rows of the result take four
steps at once: sixteen multiply-adds for four vectors loaded of `b` and four of `c`, with the
sixteen numbers of `a` in registers. One core of a Zen 4 does 103 to 109 GFLOP/s this way, where the
sums of the C++ kernel, which stay in registers, come to about 115. Rejected:

- 4 rows by 8 steps, 2 by 8, 8 by 4, 8 by 2: 63 to 83 GFLOP/s; 6 by 4 and 4 by 6: 79 to 98.
- rows of 128 columns: not faster, and short sequences leave more of them empty.
- LLVM's vector operations written out with llvmlite: the gain is not worth the code.
"""

from numba.extending import register_jitable

from .._jit_options import internal
from .._math import mul_add

COLUMNS = 64


@register_jitable
def four_up(n):
    """`n` rounded up to a multiple of four."""
    return (n + 3) // 4 * 4


@internal
def _four(a, at, step):
    return a[at], a[at + step], a[at + 2 * step], a[at + 3 * step]


@internal
def _dot(a, b, c):
    """c + a * b over four numbers."""
    c = mul_add(a[1], b[1], mul_add(a[0], b[0], c))
    return mul_add(a[3], b[3], mul_add(a[2], b[2], c))


@internal
def add_product(a, a_row, a_step, b, c, rows, steps):
    """c[r, :] += sum over k of a[r, k] * b[k, :] for `rows` rows and `steps` steps.

    Both are multiples of four. Rows of `b` and `c` have COLUMNS numbers; a[r, k] is
    ``a[r * a_row + k * a_step]``.
    """
    for r in range(0, rows, 4):
        # Slices that are indexed with the loop's variable and constants only: what Numba does
        # about negative indices vanishes then.
        out = c[r * COLUMNS : (r + 4) * COLUMNS]
        for k in range(0, steps, 4):
            lines = b[k * COLUMNS : (k + 4) * COLUMNS]
            at = r * a_row + k * a_step
            a0 = _four(a, at, a_step)
            a1 = _four(a, at + a_row, a_step)
            a2 = _four(a, at + 2 * a_row, a_step)
            a3 = _four(a, at + 3 * a_row, a_step)
            for j in range(COLUMNS):
                line = _four(lines, j, COLUMNS)
                out[j] = _dot(a0, line, out[j])
                out[j + COLUMNS] = _dot(a1, line, out[j + COLUMNS])
                out[j + 2 * COLUMNS] = _dot(a2, line, out[j + 2 * COLUMNS])
                out[j + 3 * COLUMNS] = _dot(a3, line, out[j + 3 * COLUMNS])


@internal
def product(a, a_row, a_step, b, c, rows, steps):
    """The same written to `c`."""
    c[: rows * COLUMNS] = 0
    add_product(a, a_row, a_step, b, c, rows, steps)
