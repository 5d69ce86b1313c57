"""Probabilities whose outcomes are contiguous: a row in two passes, by blocks.

The first pass finds the mass of a row, its largest element and the sum of the others; with two
distributions, of each. The second sums the terms of the formula, from the cache. Both go by blocks,
which are merged in order, so the result does not depend on the threads. The rare row with elements
far below its largest, beyond the range of the dtype, is computed again one by one, in double.
"""

from libc.float cimport DBL_MIN, FLT_MIN
from libc.math cimport fabs, fma, ilogb, ldexp, log, log1p

cdef enum:
    NOTHING = -10000  # power of a sum of zeros: less than any other
    # Vectors that are added in their own type, before their sum is added to the total: equal terms
    # are all rounded in the same direction, and 16 of them were 4 ULP off.
    SUMS = 4

cdef struct Mass:
    # The sum is (row_max + sum_others) * 2**power: the largest element, and all the others.
    # `sum_others` is NaN where one of them is negative, NaN or infinite.
    double row_max
    double sum_others
    double lost  # what rounding `sum_others` lost; settled_mass adds it
    double least  # the smallest element above 0, as it is; infinity without one
    int power

cdef struct Terms:  # what the second pass needs
    double x_scale, y_scale  # into the units of the masses, where the largest elements are near 1
    double row_max, inverse  # of q
    double ratio  # of the sum of q to that of p

cdef struct Sums:
    double terms
    double weight


cdef inline Mass empty_mass() noexcept nogil:
    cdef Mass mass
    mass.row_max = 0
    mass.sum_others = 0
    mass.lost = 0
    mass.least = INFINITY
    mass.power = NOTHING
    return mass


cdef inline bint is_distribution(Mass mass) noexcept nogil:
    return mass.row_max > 0 and mass.sum_others >= 0


cdef inline void add_part(
    vector[double]* low, vector[double]* high, const real* like, vector[real] part
) noexcept nogil:
    """Add `part` to a sum in the lanes: floats as doubles, and doubles with compensation."""
    if real is double:
        add(low, high, part)
    else:
        low[0] = low[0] + low_doubles(part)
        high[0] = high[0] + high_doubles(part)


cdef inline double sum_of_parts(
    const real* like, vector[double] low, vector[double] high
) noexcept nogil:
    if real is double:
        return reduce_add(corrected(like, low, high))
    else:
        return reduce_add(low + high)


cdef inline Mass block_mass(const real* x, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t group, k, w = lanes(x), count = (n + w - 1) // w
    cdef int most = ilogb(largest_of(x)) - 1  # whose power of two and its inverse are normal
    cdef double largest, to_units = 1
    cdef Mass mass = empty_mass()
    cdef vector[real] zero = splat(x, 0.0), one = splat(x, 1.0), nothing = splat(x, -INFINITY)
    cdef vector[real] a, row_max = zero, low = nothing, part, others = zero, scale
    cdef vector[double] total = splat(<const double*>NULL, 0.0), more = total
    for k in range(count):
        a = load_n(x + k * w, min(w, n - k * w), 0.0)
        row_max = vmax(a, row_max)
        low = vmax(where_equal(a, zero, nothing, zero - a), low)
    largest = reduce_max(row_max)
    mass.least = -reduce_max(low)
    if mass.least < 0 or isinf(largest):
        mass.sum_others = NAN
        return mass
    if largest > 0:
        mass.power = max(-most, min(most, ilogb(largest)))
        to_units = ldexp(1.0, -mass.power)
    mass.row_max = largest * to_units
    scale = splat(x, to_units)
    row_max = splat(x, mass.row_max)
    for group in range((count + SUMS - 1) // SUMS):
        part = zero
        for k in range(group * SUMS, min(count, (group + 1) * SUMS)):
            a = load_n(x + k * w, min(w, n - k * w), 0.0) * scale
            part = add_unless_equal(part, a, row_max, a)
            others = add_unless_equal(others, a, row_max, one)
        add_part(&total, &more, x, part)
    # The other elements that equal the largest: all but those summed, and but one.
    mass.sum_others = sum_of_parts(x, total, more) + mass.row_max * (
        w * count - reduce_add(others) - 1)
    return mass


cdef inline Mass merge_mass(Mass a, Mass b) noexcept nogil:
    if b.power > a.power or (b.power == a.power and b.row_max > a.row_max):
        a, b = b, a
    add_double(&a.sum_others, &a.lost, ldexp(b.row_max, b.power - a.power))
    add_double(&a.sum_others, &a.lost, ldexp(b.sum_others, b.power - a.power))
    a.lost += ldexp(b.lost, b.power - a.power)
    a.least = min(a.least, b.least)
    return a


cdef inline Mass settled_mass(Mass mass) noexcept nogil:
    mass.sum_others += mass.lost
    mass.lost = 0
    return mass


cdef Mass row_mass(const real* x, Py_ssize_t n, int num_threads) noexcept nogil:
    """The mass of a row, whose blocks are shared by the threads."""
    cdef Mass mass = empty_mass()
    cdef Py_ssize_t blocks = (n + BLOCK - 1) // BLOCK, k
    cdef Mass* parts = NULL
    if num_threads > 1:
        parts = <Mass*>malloc(blocks * sizeof(Mass))
    if parts == NULL:
        for k in range(blocks):
            mass = merge_mass(mass, block_mass(x + k * BLOCK, min(BLOCK, n - k * BLOCK)))
        return settled_mass(mass)
    for k in prange(blocks, num_threads=num_threads, schedule="static"):
        parts[k] = block_mass(x + k * BLOCK, min(BLOCK, n - k * BLOCK))
    for k in range(blocks):
        mass = merge_mass(mass, parts[k])
    free(parts)
    return settled_mass(mass)


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
        return kl_div_term(a, v, zero - low)
    total = a + v
    back = total - a
    total_low = (a - (total - back)) + (v - back) + low
    # Of 2 p and 2 q from p + q: the half of that, of the smallest number, would be 0.
    return kl_div_term(a + a, total, total_low - (low + low)) + kl_div_term(v + v, total, total_low)


cdef inline vector[real] cross_term(
    const real* like, vector[real] u, vector[real] v, vector[real] inverse
) noexcept nogil:
    """u * log(row_max / v), inverse = 1 / row_max."""
    cdef vector[real] zero = splat(like, 0.0)
    return where_equal(u, zero, zero, u * (zero - log_of(v * inverse)))


cdef Sums block_sums(
    int op, const real* x, const real* y, Py_ssize_t n, Terms t
) noexcept nogil:
    """Of up to BLOCK elements: the terms, and for cross-entropy the weight of those not the
    most likely in q, whose terms are 0 here.
    """
    cdef Py_ssize_t group, k, w = lanes(x), left, count = (n + w - 1) // w
    cdef vector[real] zero = splat(x, 0.0), x_scale = splat(x, t.x_scale), y_scale
    cdef vector[real] inverse = splat(x, t.inverse), row_max = splat(x, t.row_max)
    cdef vector[real] ratio = splat(x, t.ratio), weight = zero, part, u, v
    cdef vector[double] terms = splat(<const double*>NULL, 0.0), more = terms
    cdef Sums sums
    y_scale = splat(x, t.y_scale)
    for group in range((count + SUMS - 1) // SUMS):
        part = zero
        for k in range(group * SUMS, min(count, (group + 1) * SUMS)):
            left = min(w, n - k * w)
            u = load_n(x + k * w, left, 0.0) * x_scale
            v = u if op == ENTROPY else load_n(y + k * w, left, 0.0) * y_scale
            if op == ENTROPY or op == CROSS_ENTROPY:
                part = add_unless_equal(part, v, row_max, cross_term(x, u, v, inverse))
                weight = add_unless_equal(weight, v, row_max, u)
            else:
                part = part + divergence_term(op, x, u, v, ratio)
        add_part(&terms, &more, x, part)
    sums.terms = sum_of_parts(x, terms, more)
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
    int op, const real* x, const real* y, Py_ssize_t n, Terms t, int num_threads
) noexcept nogil:
    cdef Py_ssize_t blocks = (n + BLOCK - 1) // BLOCK, k
    cdef Sums* parts = NULL
    cdef Sums part, total
    cdef double lost = 0
    total.terms = 0
    total.weight = 0
    if num_threads > 1:
        parts = <Sums*>malloc(blocks * sizeof(Sums))
    if parts != NULL:
        for k in prange(blocks, num_threads=num_threads, schedule="static"):
            parts[k] = sums_by_op(op, x + k * BLOCK, y + k * BLOCK, min(BLOCK, n - k * BLOCK), t)
    for k in range(blocks):
        if parts != NULL:
            part = parts[k]
        else:
            part = sums_by_op(op, x + k * BLOCK, y + k * BLOCK, min(BLOCK, n - k * BLOCK), t)
        add_double(&total.terms, &lost, part.terms)
        total.weight += part.weight
    free(parts)
    total.terms = settled(total.terms, lost)
    return total


# ---- rows beyond the range ------------------------------------------------------------------

cdef inline double least_exact(const real* like) noexcept nogil:
    """Below it, a number in the units of a mass has lost digits."""
    return DBL_MIN if wide_size(like) == 8 else FLT_MIN


cdef inline double least_seen(const real* like) noexcept nogil:
    """Below it, it may have become 0."""
    return least_exact(like) * (2.0**-51 if wide_size(like) == 8 else 2.0**-22)


cdef inline bint is_beyond(const real* like, int op, Mass p, Mass q) noexcept nogil:
    """Whether the vectors would round what matters of a row: the logarithm of an element of q, or
    whether one of p is 0. JS has terms that are small where an element is.
    """
    return op != JS and (ldexp(q.least, -q.power) < least_exact(like)
                         or ldexp(p.least, -p.power) < least_seen(like))


cdef double kl_div_term_of_product(
    double x, double row, double column, double whole
) noexcept nogil:
    """x * log(x / y) - x + y for y = row * column / whole, also where that is below all numbers."""
    cdef double y = row * column / whole, apart
    if x == 0:
        return y
    if y < DBL_MIN or x / y < DBL_MIN or isinf(x / y):
        return x * ((log(x) - log(row)) + (log(whole) - log(column))) + (y - x)
    apart = (y - x) / x
    return x * (apart - log1p(apart)) if fabs(apart) < 0.5 else x * log(x / y) + (y - x)


cdef inline double share_of(double x, double row_max) noexcept nogil:
    """2**500 * x / row_max for x <= row_max; row_max * 2**-500 may be 0."""
    return x * 2.0**500 / row_max if row_max < 1 else x / (row_max * 2.0**-500)


cdef double value_beyond(
    int op, const real* x, const real* y, Py_ssize_t n, Py_ssize_t stride
) noexcept nogil:
    """The entropy, cross-entropy or KL divergence of two distributions in nats, one element after
    the other. What is summed is 2**500 times as large, so that no term is subnormal.
    """
    cdef Py_ssize_t k, x_at = 0, y_at = 0
    cdef double p_others = 0, p_lost = 0, q_others = 0, q_lost = 0, terms = 0, lost = 0, u, v
    cdef double p_max, q_max, column = 1, whole
    for k in range(n):
        x_at = k if get(x + k * stride) > get(x + x_at * stride) else x_at
        y_at = k if get(y + k * stride) > get(y + y_at * stride) else y_at
    p_max = get(x + x_at * stride)
    q_max = get(y + y_at * stride)
    whole = q_max * 2.0**-500
    if q_max < 1:  # as in share_of
        column = 2.0**500
        whole = q_max
    for k in range(n):
        if k != x_at:
            add_double(&p_others, &p_lost, share_of(get(x + k * stride), p_max))
        if k != y_at:
            add_double(&q_others, &q_lost, share_of(get(y + k * stride), q_max))
    p_others = (p_others + p_lost) * 2.0**-500
    q_others = (q_others + q_lost) * 2.0**-500
    for k in range(n):
        u = get(x + k * stride)
        v = get(y + k * stride)
        if u > 0:  # never 0, so that v = 0 makes the result infinite
            u = max(2.0**-1074, share_of(u, p_max))
        if op == KL:
            u *= (1 + q_others) / (1 + p_others)
            add_double(&terms, &lost, kl_div_term_of_product(u, v, column, whole))
        elif u > 0:
            add_double(&terms, &lost,
                       -u * (log(v / q_max) if v / q_max >= DBL_MIN else log(v) - log(q_max)))
    terms = settled(terms, lost) * 2.0**-500
    return terms / (1 + q_others) if op == KL else log1p(q_others) + terms / (1 + p_others)


# ---- a row ----------------------------------------------------------------------------------


cdef inline double mass_value(
    int op, const real* x, const real* y, Py_ssize_t n, Mass p, Mass q, int num_threads
) noexcept nogil:
    """The result of a row of these masses, in nats."""
    cdef Terms t
    cdef Sums sums
    cdef double p_sum = p.row_max + p.sum_others, q_sum = q.row_max + q.sum_others
    if not (is_distribution(p) and is_distribution(q)):
        return NAN
    if is_beyond(x, op, p, q):
        return value_beyond(op, x, y, n, 1)
    t.x_scale = ldexp(1.0, -p.power)
    t.y_scale = ldexp(1.0, -q.power)
    t.row_max = q.row_max
    t.inverse = rounded(x, 1 / q.row_max)
    t.ratio = q_sum / p_sum
    sums = row_sums(op, x, y, n, t, num_threads)
    if op == KL or op == JS:
        return sums.terms / (q_sum if op == KL else 4 * q_sum)
    # What rounding the inverse did to the logarithms is the same for all of them.
    sums.terms += sums.weight * log1p(fma(t.inverse, q.row_max, -1))
    return log1p(q.sum_others / q.row_max) + sums.terms / p_sum


cdef double row_value(
    int op, const real* x, const real* y, Py_ssize_t n, int num_threads
) noexcept nogil:
    cdef Mass p = row_mass(x, n, num_threads)
    cdef Mass q = p if op == ENTROPY else row_mass(y, n, num_threads)
    return mass_value(op, x, y, n, p, q, num_threads)
