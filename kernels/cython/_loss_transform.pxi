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
    # gap_error is what the rounding of row_max - x has lost, by a two-sum.
    cdef double gap = row_max - x, back = gap - row_max
    cdef double gap_error = (row_max - (gap - back)) - (x + back)
    cdef double valid = row_max - row_max  # 0, or NaN where the maximum is infinite
    cdef double max_prob = 1 / (1 + sumexp_m1) + valid, p = exp(-gap) * max_prob, log_p, u
    cdef double p_power = 1, base_loss, modulation = 1, steeper = 0
    if p > 0:  # else the gap may be infinite, and there is no error
        p -= p * gap_error
    # 1 - p: of the maximum the share of the others; else p is at most 1/2, and nothing cancels.
    u = sumexp_m1 * max_prob if gap == 0 else 1 - p
    log_p = -(gap + (log1p(sumexp_m1) + valid))
    base_loss = -log_p  # L(p)
    if c.q != 0:
        p_power = power_of(p, c.q) if gap < SMALL_EXPONENT else exp(c.q * log_p)
        base_loss = -expm1(c.q * log_p) / c.q
    if c.gamma != 0:
        modulation = u * u if c.gamma == 2 else power_of(u, c.gamma)
        # base_loss / u is 1 in the limit of u = 0, and p * base_loss is 0 in that of p = 0.
        if p > 0:
            steeper = c.gamma * p * (base_loss / u if u > 0 else 1)
    result.p = p
    result.loss = c.epsilon * u
    if c.alpha != 0:
        result.loss += c.alpha * modulation * base_loss
    if c.epsilon < 0:  # p_power is (p_power - p) + p: nothing cancels for epsilon = -alpha
        result.slope = (c.alpha * modulation * ((p_power - p if c.q != 0 else u) + steeper)
                        + (c.alpha * modulation + c.epsilon) * p)
    else:
        result.slope = c.alpha * modulation * (p_power + steeper) + c.epsilon * p
    return result


cdef inline double weighted(double weight, double value, double valid) noexcept nogil:
    """weight * value; a class of weight 0 adds nothing, even where the value is infinite."""
    return (weight * value if weight != 0 else 0) + valid
