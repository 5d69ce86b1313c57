"""The three products of a linear layer below a cross-entropy, for a block of rows at a time.

    logits = x @ w.T      each task a panel of classes, whose part of w is transposed once
    dx = g @ w            each task a group of columns of x, over all classes
    dw += g.T @ x         each task a strip of classes, over all columns

`x` are the rows of the block that count, side by side in the type that is computed in, and `panels`
the same by columns. Only w is read where it lies, and packed on the way, PANEL_DEPTH long: what a
task multiplies by stays in the L2 cache. Where the processor multiplies pairs of bfloat16, x, w and
g are pairs (see products.h), of neighbours along what is summed over.

No task depends on how many threads there are, and every sum has its order: first over PANEL_DEPTH
products, then over these sums.
"""

from cython.parallel cimport threadid
from libc.string cimport memcpy, memset

cdef extern from "scratch.h" nogil:
    void* in_huge_pages(size_t)

include "_products.pxi"

cdef enum:
    PANEL_DEPTH = 512  # 128 KB for the 64 columns of a panel of float: in L2, beside the rows
    COLUMN_GROUP = 128  # columns of dx in a task: whole panels at every level, 512 bytes of w
    STRIP = 96  # classes of dw in a task, a multiple of TILE_ROWS
    MOST_LANES = 16
    PADDING = 16  # numbers between rows, or rows of 2**k bytes would share few lines of a cache

cdef struct Block:
    Py_ssize_t rows, width, classes
    Py_ssize_t x_row, logits_row  # from one to the next, in numbers of the compute type
    void* x  # (rows, x_row)
    void* panels  # (width / panel, rows, panel)
    void* logits  # (rows, logits_row)
    void* grad  # the same memory, but where softcap still needs the logits
    void* dx  # (rows, width)
    void* scratch  # of each thread, scratch_size bytes
    Py_ssize_t scratch_size
    bint pairs


cdef inline Py_ssize_t panel_width(const real* like) noexcept nogil:
    return TILE_VECTORS * lanes(like)


cdef inline void multiply(
    const real* like, bint pairs, const void* a, Py_ssize_t a_row, Py_ssize_t a_step,
    Py_ssize_t rows, const void* b, Py_ssize_t depth, void* c, Py_ssize_t c_row,
    Py_ssize_t columns, bint add
) noexcept nogil:
    """c (+)= a @ b for a packed panel b. a_row and a_step are in numbers, or pairs of them."""
    cdef Py_ssize_t b_row = panel_width(like)
    if real is double:
        product(<const double*>a, a_row, a_step, rows, <const double*>b, b_row, depth, <double*>c,
                c_row, columns, add)
    elif pairs:
        product(<const bf16_pair*>a, a_row, a_step, rows, <const bf16_pair*>b, b_row,
                (depth + 1) // 2, <float*>c, c_row, columns, add)
    else:
        product(<const float*>a, a_row, a_step, rows, <const float*>b, b_row, depth, <float*>c,
                c_row, columns, add)


cdef inline void* at_wide(const real* like, void* array, Py_ssize_t number) noexcept nogil:
    """The address of a number of the compute type, or of a pair."""
    return <char*>array + number * wide_size(like)


# ---- rows of x -------------------------------------------------------------------------------

cdef void gather_row(const Block* b, const real* x, Py_ssize_t r) noexcept nogil:
    """Row r of the block, widened, or as it is where pairs are multiplied."""
    cdef Py_ssize_t w = lanes(x), k
    if b.pairs:
        memcpy(at_wide(x, b.x, r * b.x_row), x, b.width * sizeof(real))
        return
    for k in range((b.width + w - 1) // w):
        store_wide(x, b.x, r * b.x_row + k * w, load_n(x + k * w, min(w, b.width - k * w), 0.0), w)


cdef void narrow_numbers(
    const real* like, const void* numbers, Py_ssize_t at, real* to, Py_ssize_t n
) noexcept nogil:
    """n numbers of the compute type, from number `at`, to where they belong."""
    cdef Py_ssize_t w = lanes(like), k, left
    for k in range((n + w - 1) // w):
        left = min(w, n - k * w)
        store_n(to + k * w, load_wide(like, numbers, at + k * w, left), left)


cdef inline vector[real] row_part(
    const Block* b, const real* like, Py_ssize_t r, Py_ssize_t at, Py_ssize_t n
) noexcept nogil:
    """Numbers of row r of the block, 0 beyond the last row."""
    cdef void* row = at_wide(like, b.x, r * b.x_row)
    if r >= b.rows:
        return splat(like, 0.0)
    if real is bf16:
        if b.pairs:
            return load_n(<const bf16*>row + at, n, 0.0)
    return load_wide(like, row, at, n)


cdef void fill_panels(const Block* b, const real* like, Py_ssize_t r) noexcept nogil:
    """Row r by columns; where pairs are multiplied, r is even and row r + 1 goes between."""
    cdef Py_ssize_t w = lanes(like), width = panel_width(like), k, at, left
    cdef Py_ssize_t step = b.rows if not b.pairs else (b.rows + 1) // 2
    for k in range((b.width + w - 1) // w):
        left = min(w, b.width - k * w)
        at = (k * w // width * step + (r // 2 if b.pairs else r)) * width + k * w % width
        if b.pairs:
            store_pairs(like, b.panels, at, row_part(b, like, r, k * w, left),
                        row_part(b, like, r + 1, k * w, left), w)
        else:
            store_wide(like, b.panels, at, row_part(b, like, r, k * w, left), w)


# ---- the products ----------------------------------------------------------------------------

cdef void logits_task(
    const Block* b, const real* w, Py_ssize_t w_row, Py_ssize_t task, void* scratch
) noexcept nogil:
    """A panel of logits."""
    cdef Py_ssize_t width = panel_width(w), first = task * width, lane = lanes(w), k, n, j, at
    cdef Py_ssize_t columns = min(width, b.classes - first), depth
    cdef const real* rows[MOST_LANES]
    for k in range(max(1, (b.width + PANEL_DEPTH - 1) // PANEL_DEPTH)):
        depth = min(PANEL_DEPTH, b.width - k * PANEL_DEPTH)
        for j in range((columns + lane - 1) // lane):
            for n in range(lane):
                at = first + j * lane + n
                rows[n] = w + at * w_row + k * PANEL_DEPTH if at < b.classes else NULL
            if b.pairs:  # two numbers move together, as if they were one float
                load_lanes(<const float* const*>rows, 0, depth // 2, <vector[float]*>scratch + j,
                           TILE_VECTORS)
            else:
                load_lanes(<const real* const*>rows, 0, depth, <vector[real]*>scratch + j,
                           TILE_VECTORS)
        multiply(w, b.pairs, at_wide(w, b.x, k * PANEL_DEPTH // (2 if b.pairs else 1)), b.x_row, 1,
                 b.rows, scratch, depth, at_wide(w, b.logits, first), b.logits_row, columns, k > 0)


cdef void narrow_row(const Block* b, const real* like, Py_ssize_t r) noexcept nogil:
    """Row r of the gradient as bfloat16, in place, and 0 behind it: the other half of a pair."""
    cdef Py_ssize_t w = lanes(like), k
    cdef void* row = at_wide(like, b.grad, r * b.logits_row)
    if real is bf16:
        for k in range(b.classes // w + 1):
            narrow_to(<bf16*>row + k * w, load_n(<const float*>row + k * w,
                                                 min(w, b.classes - k * w), 0.0))


cdef void pack_rows(
    const real* w, Py_ssize_t w_row, Py_ssize_t rows, Py_ssize_t columns, bint pairs, void* to
) noexcept nogil:
    """So many rows and columns of w as panels, one behind the other."""
    cdef Py_ssize_t lane = lanes(w), width = panel_width(w), step = 2 if pairs else 1, i, r, k, at
    cdef Py_ssize_t left
    cdef vector[real] zero = splat(w, 0.0)
    for i in range((rows + step - 1) // step):
        r = i * step
        for k in range((columns + lane - 1) // lane):
            left = min(lane, columns - k * lane)
            at = k * lane // width * PANEL_DEPTH * width + k * lane % width
            if pairs:
                store_pairs(w, to, at + i * width, load_n(w + r * w_row + k * lane, left, 0.0),
                            load_n(w + (r + 1) * w_row + k * lane, left, 0.0)
                            if r + 1 < rows else zero, lane)
            else:
                store_wide(w, to, at + i * width, load_n(w + r * w_row + k * lane, left, 0.0), lane)


cdef void dx_task(
    const Block* b, const real* w, Py_ssize_t w_row, Py_ssize_t task, void* scratch
) noexcept nogil:
    """A group of columns of dx, over all classes."""
    cdef Py_ssize_t width = panel_width(w), first = task * COLUMN_GROUP, k, v, j, depth
    cdef Py_ssize_t columns = min(COLUMN_GROUP, b.width - first), part = 2 if b.pairs else 1
    for k in range((b.classes + PANEL_DEPTH - 1) // PANEL_DEPTH):
        v = k * PANEL_DEPTH
        depth = min(PANEL_DEPTH, b.classes - v)
        pack_rows(w + v * w_row + first, w_row, depth, columns, b.pairs, scratch)
        for j in range((columns + width - 1) // width):
            multiply(w, b.pairs, at_wide(w, b.grad, v // part), b.logits_row, 1, b.rows,
                     at_wide(w, scratch, j * width * PANEL_DEPTH), depth,
                     at_wide(w, b.dx, first + j * width), b.width, min(width, columns - j * width),
                     k > 0)


cdef void dw_task(
    const Block* b, const real* like, void* dw, Py_ssize_t dw_row, void* dbias, Py_ssize_t task,
    bint add, void* scratch
) noexcept nogil:
    """A strip of classes of dw and dbias, which are of the compute type."""
    cdef Py_ssize_t w = lanes(like), width = panel_width(like), first = task * STRIP, i, r, k, j
    cdef Py_ssize_t classes = min(STRIP, b.classes - first), at
    cdef Py_ssize_t steps = b.rows if not b.pairs else (b.rows + 1) // 2
    cdef vector[real] zero = splat(like, 0.0), even, odd
    cdef vector[real] total
    for k in range((classes + w - 1) // w):
        total = zero
        for i in range(steps):
            r = 2 * i if b.pairs else i
            at = r * b.logits_row + first + k * w
            even = load_wide(like, b.grad, at, min(w, classes - k * w))
            total = total + even
            if b.pairs:
                odd = zero
                if r + 1 < b.rows:
                    odd = load_wide(like, b.grad, at + b.logits_row, min(w, classes - k * w))
                total = total + odd
                store_pairs(like, scratch, i * STRIP + k * w, even, odd, w)
            else:
                store_wide(like, scratch, r * STRIP + k * w, even, w)
        if dbias != NULL:
            at = first + k * w
            if add:
                total = total + load_wide(like, dbias, at, min(w, classes - k * w))
            store_wide(like, dbias, at, total, min(w, classes - k * w))
    for j in range((b.width + width - 1) // width):
        multiply(like, b.pairs, scratch, 1, STRIP, classes,
                 at_wide(like, b.panels, j * steps * width), b.rows,
                 at_wide(like, dw, first * dw_row + j * width), dw_row,
                 min(width, b.width - j * width), add)
