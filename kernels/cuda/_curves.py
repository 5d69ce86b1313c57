"""What a row costs beside plain cross-entropy: a curve over the probability p of its class.

Everything is computed in float64 from the maximum, x of the class, and the `rest` of the state of
the row (see `_math.py`), in which nothing has cancelled yet: once in a row, or by each lane of it.
A curve is the five numbers (alpha, gamma, power, epsilon, beta) of `kernels/reference`, where power
is q.
"""

import math

from numba.cuda.libdevice import fma

from ._math import device

SMALL_EXPONENT = 600  # exp(-this) is a normal number, also divided by a number of classes
SMALL = math.exp(-700.0)  # its inverse is a number


@device
def power_of(a, exponent):
    """a**exponent for 0 <= a <= 1, exponent > 0. That of libdevice is a call, which would spill
    what the caller holds in registers. What the rounding of log(a) has lost is put back, and so is
    that of its product.
    """
    log_a = math.log(a)
    if a < SMALL:
        return math.exp(exponent * log_a) if a > 0 else 0.0
    lost = fma(a, math.exp(-log_a), -1.0)
    product = exponent * log_a
    return math.exp(product) * (1.0 + (fma(exponent, log_a, -product) + exponent * lost))


@device
def bend(curve, top, x, rest):
    """The loss on the curve, but for the entropy, and by what that multiplies the gradient of
    cross-entropy. All in float64; NaN where there is no distribution.
    """
    alpha, gamma, power, epsilon, _ = curve
    gap = top - x
    back = gap - top
    lost = (top - (gap - back)) - (x + back)
    valid = top - top  # 0, or NaN where the maximum is infinite
    share = 1.0 / (1.0 + rest) + valid
    p = math.exp(-gap) * share
    if p > 0:  # else the gap may be infinite, and nothing is lost
        p -= p * lost
    # 1 - p: of the maximum what the others have, else p is at most 1/2.
    u = rest * share if gap == 0 else 1.0 - p
    log_p = -(gap + (math.log1p(rest) + valid))
    p_power, surprise, focus, steep = 1.0, -log_p, 1.0, 0.0
    if power != 0:
        p_power = power_of(p, power) if gap < SMALL_EXPONENT else math.exp(power * log_p)
        surprise = -math.expm1(power * log_p) / power
    if gamma != 0:
        focus = u * u if gamma == 2 else power_of(u, gamma)
        # surprise / u is 1 in the limit of u = 0, and p * surprise is 0 in that of p = 0.
        if p > 0:
            steep = gamma * p * (surprise / u if u > 0 else 1.0)
    loss = epsilon * u
    if alpha != 0:
        loss += alpha * focus * surprise
    scale = alpha * focus
    if epsilon < 0:  # p_power is (p_power - p) + p: nothing cancels for epsilon = -alpha
        excess = p_power - p if power != 0 else u
        return loss, scale * (excess + steep) + (scale + epsilon) * p
    return loss, scale * (p_power + steep) + epsilon * p
