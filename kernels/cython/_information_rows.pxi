"""Probabilities whose outcomes are contiguous: a row in two passes, by blocks.

The first pass makes the mass of a row, its largest element and the sum of the others; of two
distributions, of each. The second sums the terms of the formula, from the cache. Both go by blocks,
which are merged in order, so the result does not depend on who computed them.
"""

from libc.math cimport fma, ilogb, ldexp

cdef enum:
    NOTHING = -10000  # power of a sum of zeros: less than any other
    # Vectors that are added one by one, before their sum is added to those of others: 300 equal
    # terms in a lane, all rounded in the same direction, were 10 ULP off.
    SUMS = 16

cdef struct Mass:
    # The sum is (top + rest) * 2**power: top the largest element, rest all the others. `rest` is
    # NaN where one of them is negative, NaN or infinite.
    double top
    double rest
    int power

cdef struct Terms:  # what the second pass needs
    double x_scale, y_scale  # into the units of the masses, where the largest elements are near 1
    double top, inverse  # of q
    double ratio  # of the sum of q to that of p

cdef struct Sums:
    double cost
    double weight


cdef inline Mass empty_mass() noexcept nogil:
    cdef Mass mass
    mass.top = 0
    mass.rest = 0
    mass.power = NOTHING
    return mass


cdef inline bint is_distribution(Mass mass) noexcept nogil:
    return mass.top > 0 and mass.rest >= 0


cdef inline Mass block_mass(const real* x, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t group, k, w = lanes(x), count = (n + w - 1) // w
    cdef int most = ilogb(largest_of(x)) - 1  # whose power of two and its inverse are normal
    cdef double largest, to_units = 1
    cdef Mass mass = empty_mass()
    cdef vector[real] zero = splat(x, 0.0), one = splat(x, 1.0)
    cdef vector[real] a, top = zero, low = zero, part, total = zero, others = zero, scale
    for k in range(count):
        a = load_n(x + k * w, min(w, n - k * w), 0.0)
        top = vmax(a, top)
        low = vmax(zero - a, low)
    largest = reduce_max(top)
    if reduce_max(low) > 0 or isinf(largest):
        mass.rest = NAN
        return mass
    if largest > 0:
        mass.power = max(-most, min(most, ilogb(largest)))
        to_units = ldexp(1.0, -mass.power)
    mass.top = largest * to_units
    scale = splat(x, to_units)
    top = splat(x, mass.top)
    for group in range((count + SUMS - 1) // SUMS):
        part = zero
        for k in range(group * SUMS, min(count, (group + 1) * SUMS)):
            a = load_n(x + k * w, min(w, n - k * w), 0.0) * scale
            part = add_unless_equal(part, a, top, a)
            others = add_unless_equal(others, a, top, one)
        total = total + part
    # The other elements that equal the largest: all but those summed, and but one.
    mass.rest = reduce_add(total) + mass.top * (w * count - reduce_add(others) - 1)
    return mass


cdef inline Mass merge_mass(Mass a, Mass b) noexcept nogil:
    if b.power > a.power or (b.power == a.power and b.top > a.top):
        a, b = b, a
    a.rest += ldexp(b.top + b.rest, b.power - a.power)
    return a


cdef Mass row_mass(const real* x, Py_ssize_t n, int crew) noexcept nogil:
    """The mass of a row; with more than one thread in the crew, its blocks are spread."""
    cdef Mass mass = empty_mass()
    cdef Py_ssize_t blocks = (n + BLOCK - 1) // BLOCK, k
    cdef Mass* parts = NULL
    if crew > 1:
        parts = <Mass*>malloc(blocks * sizeof(Mass))
    if parts == NULL:
        for k in range(blocks):
            mass = merge_mass(mass, block_mass(x + k * BLOCK, min(BLOCK, n - k * BLOCK)))
        return mass
    for k in prange(blocks, num_threads=crew, schedule="static"):
        parts[k] = block_mass(x + k * BLOCK, min(BLOCK, n - k * BLOCK))
    for k in range(blocks):
        mass = merge_mass(mass, parts[k])
    free(parts)
    return mass


# ---- terms ----------------------------------------------------------------------------------

cdef inline vector[real] divergence_term(
    int op, const real* like, vector[real] u, vector[real] v, vector[real] ratio
) noexcept nogil:
    """A term of KL, or of four times JS, of p = u / (sum of u) from q = v / (sum of v), times the
    sum of v. `ratio` is that sum divided by the other; what rounding it loses is of second order,
    see reference/information.py.
    """
    cdef vector[real] zero = splat(like, 0.0)
    cdef vector[real] a = u * ratio, low = mul_add(u, ratio, zero - a), total, back, total_low
    a = where_equal(a, zero, u, a)  # of a u > 0 it is not 0, so that v = 0 makes it infinite
    if op == KL:
        return relative(a, v, zero - low)
    total = a + v
    back = total - a
    total_low = (a - (total - back)) + (v - back) + low
    # Of 2 p and 2 q from p + q: the half of that, of the smallest number, would be 0.
    return relative(a + a, total, total_low - (low + low)) + relative(v + v, total, total_low)


cdef inline vector[real] cross_term(
    const real* like, vector[real] u, vector[real] v, vector[real] inverse
) noexcept nogil:
    """u * log(top / v), inverse = 1 / top."""
    cdef vector[real] zero = splat(like, 0.0)
    return where_equal(u, zero, zero, u * (zero - log_of(v * inverse)))


cdef Sums block_sums(
    int op, const real* x, const real* y, Py_ssize_t n, Terms t
) noexcept nogil:
    """Of up to BLOCK elements: the cost, and for cross-entropy the weight of those that are not the
    most likely in q, whose cost is 0 here.
    """
    cdef Py_ssize_t group, k, w = lanes(x), left, count = (n + w - 1) // w
    cdef vector[real] zero = splat(x, 0.0), x_scale = splat(x, t.x_scale), y_scale
    cdef vector[real] inverse = splat(x, t.inverse), top = splat(x, t.top)
    cdef vector[real] ratio = splat(x, t.ratio), cost = zero, weight = zero
    cdef vector[real] part, part_weight, u, v
    cdef Sums sums
    y_scale = splat(x, t.y_scale)
    for group in range((count + SUMS - 1) // SUMS):
        part = zero
        part_weight = zero
        for k in range(group * SUMS, min(count, (group + 1) * SUMS)):
            left = min(w, n - k * w)
            u = load_n(x + k * w, left, 0.0) * x_scale
            v = u if op == ENTROPY else load_n(y + k * w, left, 0.0) * y_scale
            if op == ENTROPY or op == CROSS_ENTROPY:
                part = add_unless_equal(part, v, top, cross_term(x, u, v, inverse))
                part_weight = add_unless_equal(part_weight, v, top, u)
            else:
                part = part + divergence_term(op, x, u, v, ratio)
        cost = cost + part
        weight = weight + part_weight
    sums.cost = reduce_add(cost)
    sums.weight = reduce_add(weight)
    return sums


cdef inline Sums sums_by_op(
    int op, const real* x, const real* y, Py_ssize_t n, Terms t
) noexcept nogil:
    # A loop of its own for each op, instead of one that asks.
    if op == ENTROPY:
        return block_sums(ENTROPY, x, y, n, t)
    if op == CROSS_ENTROPY:
        return block_sums(CROSS_ENTROPY, x, y, n, t)
    return block_sums(KL, x, y, n, t) if op == KL else block_sums(JS, x, y, n, t)


cdef Sums row_sums(
    int op, const real* x, const real* y, Py_ssize_t n, Terms t, int crew
) noexcept nogil:
    cdef Py_ssize_t blocks = (n + BLOCK - 1) // BLOCK, k
    cdef Sums* parts = NULL
    cdef Sums part, total
    total.cost = 0
    total.weight = 0
    if crew > 1:
        parts = <Sums*>malloc(blocks * sizeof(Sums))
    if parts != NULL:
        for k in prange(blocks, num_threads=crew, schedule="static"):
            parts[k] = sums_by_op(op, x + k * BLOCK, y + k * BLOCK, min(BLOCK, n - k * BLOCK), t)
    for k in range(blocks):
        if parts != NULL:
            part = parts[k]
        else:
            part = sums_by_op(op, x + k * BLOCK, y + k * BLOCK, min(BLOCK, n - k * BLOCK), t)
        total.cost += part.cost
        total.weight += part.weight
    free(parts)
    return total


cdef inline double mass_value(
    int op, const real* x, const real* y, Py_ssize_t n, Mass p, Mass q, int crew
) noexcept nogil:
    """The result of a row of these masses, in nats."""
    cdef Terms t
    cdef Sums sums
    cdef double p_sum = p.top + p.rest, q_sum = q.top + q.rest
    if not (is_distribution(p) and is_distribution(q)):
        return NAN
    t.x_scale = ldexp(1.0, -p.power)
    t.y_scale = ldexp(1.0, -q.power)
    t.top = q.top
    t.inverse = rounded(x, 1 / q.top)
    t.ratio = q_sum / p_sum
    sums = row_sums(op, x, y, n, t, crew)
    if op == KL or op == JS:
        return sums.cost / (q_sum if op == KL else 4 * q_sum)
    # What rounding the inverse did to the logarithms is the same for all of them.
    sums.cost += sums.weight * log1p(fma(t.inverse, q.top, -1))
    return log1p(q.rest / q.top) + sums.cost / p_sum


cdef double row_value(
    int op, const real* x, const real* y, Py_ssize_t n, int crew
) noexcept nogil:
    cdef Mass p = row_mass(x, n, crew)
    return mass_value(op, x, y, n, p, p if op == ENTROPY else row_mass(y, n, crew), crew)
