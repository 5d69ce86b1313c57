"""Panels: columns side by side in the SIMD lanes, classes one below the other.

Two layouts come down to this: a class axis that is not the last (the lanes are its
neighbours in memory, and nothing is transposed), and rows too short to fill vectors (tiles of
as many rows as a vector has lanes, transposed in registers).

The classes are read once, in groups: the maximum of the group, then the sum of exp(x - maximum),
with the old sum rescaled once per group. `top` and `rest` mean what they mean in _rows.pxi; the
sum over the groups is compensated, so long columns are as exact as rows.
"""

cdef enum:
    PANEL = 256  # columns: their state is 3 KB of float, and a group of classes stays in L1
    GROUP = 16  # classes between two rescalings
    SHORT = 128  # classes: rows up to here go through tiles
    TILES = 16  # in a thread's turn
    PANEL_MEMORY = 3 * 8 * (PANEL + 8) + 64  # bytes of three arrays, in the widest type, aligned
    TILE_MEMORY = 64 * SHORT + 64  # bytes of a tile


cdef inline void panel_state(
    const real* x, Py_ssize_t n, Py_ssize_t stride, Py_ssize_t width,
    vector[real]* tops, vector[real]* rests, vector[real]* errors
) noexcept nogil:
    """The state of each column; `errors` is scratch."""
    cdef Py_ssize_t w = lanes(x), vectors = (width + w - 1) // w, group, count, c, k, left
    cdef const real* p
    cdef vector[real] zero = splat(x, 0.0), one = splat(x, 1.0), lowest = splat(x, -INFINITY)
    cdef vector[real] v, u, old, top, total, other, ties, scale, a, b, rest, back
    for c in range(vectors):
        tops[c] = lowest
        rests[c] = zero
        errors[c] = zero
    for group in range((n + GROUP - 1) // GROUP):
        count = min(GROUP, n - group * GROUP)
        for c in range(vectors):
            p = x + group * GROUP * stride + c * w
            left = min(w, width - c * w)
            old = tops[c]
            top = old
            for k in range(count):
                top = vmax(load_n(p + k * stride, left, 0.0), top)
            total = zero
            other = zero
            ties = zero
            for k in range(count // 2):
                v = load_n(p + 2 * k * stride, left, 0.0)
                u = load_n(p + (2 * k + 1) * stride, left, 0.0)
                total = total + where_equal(v, top, zero, exp_sub(v, top))
                other = other + where_equal(u, top, zero, exp_sub(u, top))
                ties = ties + where_equal(v, top, one, zero) + where_equal(u, top, one, zero)
            if count % 2:
                v = load_n(p + (count - 1) * stride, left, 0.0)
                total = total + where_equal(v, top, zero, exp_sub(v, top))
                ties = ties + where_equal(v, top, one, zero)
            # The old maximum stays the 1 of 1 + rest, or joins the rest beside the new one.
            scale = exp_sub(old, top)
            a = rests[c] * scale
            b = (total + other) + where_equal(old, top, ties, (ties - one) + scale)
            rest = a + b
            back = rest - a
            errors[c] = errors[c] * scale + ((a - (rest - back)) + (b - back))
            rests[c] = rest
            tops[c] = top
    for c in range(vectors):
        rests[c] = rests[c] + errors[c]


cdef inline vector[real] inverse(const real* like, vector[real] rest) noexcept nogil:
    """1 / (1 + rest), with the rounding error of the sum made good."""
    cdef vector[real] one = splat(like, 1.0), total = one + rest, back = total - rest
    cdef vector[real] result = one / total
    return result - result * result * ((one - back) + (rest - (total - back)))
