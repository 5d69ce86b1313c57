"""A loss transform: what robust losses make of cross-entropy, given the probability p of the class.

    alpha * (1 - p)**gamma * L(p) + epsilon * (1 - p),  L(p) = (1 - p**q) / q, or -log(p) for q = 0

Everything is computed in double precision from the maximum, x of the class, and the `sumexp_m1` of
the row (see _rows.pxi), in which nothing has cancelled yet, so all dtypes have the same function;
float vectors would lose gamma times as many bits. It takes some 20 ns for each row.
"""

from libc.math cimport expm1
from libc.math cimport pow as power_of

cdef struct TransformedLoss:
    double loss
    double slope  # a factor of the gradient of cross-entropy
    double p

cdef enum:
    SMALL_EXPONENT = 600  # exp(-this) is a normal number, also divided by a number of classes


cdef inline TransformedLoss transform_loss(
    const LossTransform* c, double row_max, double x, double sumexp_m1
) noexcept nogil:
    """NaN where there is no distribution."""
    cdef TransformedLoss result
    cdef double gap = row_max - x, back = gap - row_max
    cdef double lost = (row_max - (gap - back)) - (x + back)
    cdef double valid = row_max - row_max  # 0, or NaN where the maximum is infinite
    cdef double share = 1 / (1 + sumexp_m1) + valid, p = exp(-gap) * share, log_p, u
    cdef double power = 1, plain, modulation = 1, steeper = 0
    if p > 0:  # else the gap may be infinite, and nothing is lost
        p -= p * lost
    # 1 - p: of the maximum what the others have, else p is at most 1/2.
    u = sumexp_m1 * share if gap == 0 else 1 - p
    log_p = -(gap + (log1p(sumexp_m1) + valid))
    plain = -log_p  # L(p)
    if c.q != 0:
        power = power_of(p, c.q) if gap < SMALL_EXPONENT else exp(c.q * log_p)
        plain = -expm1(c.q * log_p) / c.q
    if c.gamma != 0:
        modulation = u * u if c.gamma == 2 else power_of(u, c.gamma)
        # plain / u is 1 in the limit of u = 0, and p * plain is 0 in that of p = 0.
        if p > 0:
            steeper = c.gamma * p * (plain / u if u > 0 else 1)
    result.p = p
    result.loss = c.epsilon * u
    if c.alpha != 0:
        result.loss += c.alpha * modulation * plain
    if c.epsilon < 0:  # power is (power - p) + p: nothing cancels for epsilon = -alpha
        result.slope = (c.alpha * modulation * ((power - p if c.q != 0 else u) + steeper)
                        + (c.alpha * modulation + c.epsilon) * p)
    else:
        result.slope = c.alpha * modulation * (power + steeper) + c.epsilon * p
    return result


cdef inline double times(double weight, double value, double valid) noexcept nogil:
    """weight * value; a class of weight 0 adds nothing, even where the value is infinite."""
    return (weight * value if weight != 0 else 0) + valid
