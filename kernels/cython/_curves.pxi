"""What a row costs beside plain cross-entropy: a curve over the probability p of its class.

Everything is computed in double precision from the maximum, x of the class, and the `rest` of the
state of the row (see _rows.pxi), in which nothing has cancelled yet, so all dtypes have the same
function; float vectors would lose gamma times as many bits. It is some 20 ns for each row.
"""

from libc.math cimport expm1
from libc.math cimport pow as power_of

cdef struct Curve:
    double alpha, gamma, q, epsilon  # alpha * (1 - p)**gamma * L(p) + epsilon * (1 - p)
    double beta  # times the entropy, which is taken away

cdef struct Bent:
    double loss  # on the curve
    double slope  # by which it multiplies the gradient of cross-entropy
    double p

cdef enum:
    SMALL_EXPONENT = 600  # exp(-this) is a normal number, also divided by a number of classes


cdef inline Bent bend(const Curve* c, double top, double x, double rest) noexcept nogil:
    """L(p) is (1 - p**q) / q, or -log(p) for q = 0. NaN where there is no distribution."""
    cdef Bent bent
    cdef double gap = top - x, back = gap - top, lost = (top - (gap - back)) - (x + back)
    cdef double valid = top - top  # 0, or NaN where the maximum is infinite
    cdef double share = 1 / (1 + rest) + valid, p = exp(-gap) * share, log_p, u
    cdef double power = 1, surprise, focus = 1, steep = 0
    if p > 0:  # else the gap may be infinite, and nothing is lost
        p -= p * lost
    # 1 - p: of the maximum what the others have, else p is at most 1/2.
    u = rest * share if gap == 0 else 1 - p
    log_p = -(gap + (log1p(rest) + valid))
    surprise = -log_p
    if c.q != 0:
        power = power_of(p, c.q) if gap < SMALL_EXPONENT else exp(c.q * log_p)
        surprise = -expm1(c.q * log_p) / c.q
    if c.gamma != 0:
        focus = u * u if c.gamma == 2 else power_of(u, c.gamma)
        # surprise / u is 1 in the limit of u = 0, and p * surprise is 0 in that of p = 0.
        if p > 0:
            steep = c.gamma * p * (surprise / u if u > 0 else 1)
    bent.p = p
    bent.loss = c.epsilon * u
    if c.alpha != 0:
        bent.loss += c.alpha * focus * surprise
    if c.epsilon < 0:  # power is (power - p) + p: nothing cancels for epsilon = -alpha
        bent.slope = (c.alpha * focus * ((power - p if c.q != 0 else u) + steep)
                      + (c.alpha * focus + c.epsilon) * p)
    else:
        bent.slope = c.alpha * focus * (power + steep) + c.epsilon * p
    return bent


cdef inline double times(double weight, double value, double valid) noexcept nogil:
    """weight * value; a class of weight 0 costs nothing, even where the value is infinite."""
    return (weight * value if weight != 0 else 0) + valid
