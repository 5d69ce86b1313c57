"""The loss transforms of robust_losses: functions of the probability p of the label's class.

All in float64, from the row's maximum, the label's logit and `sumexp_m1` (see `State`), in which
nothing has cancelled yet: once for a row, or by each of its lanes. `kernels/reference` has the
formulas and their numbers alpha, gamma, q and epsilon.
"""

import math

from numba.cuda.libdevice import fma

from .._math import device

SMALL_EXPONENT = 600  # exp(-this) is a normal number, also divided by a number of classes
SMALL = math.exp(-700.0)  # its inverse is finite


@device
def power_of(a, exponent):
    """a**exponent for 0 <= a <= 1, exponent > 0. That of libdevice is a call, which would spill
    what the caller holds in registers. The rounding errors of log(a) and of the product are put
    back.
    """
    log_a = math.log(a)
    if a < SMALL:
        return math.exp(exponent * log_a) if a > 0 else 0.0
    error = fma(a, math.exp(-log_a), -1.0)
    product = exponent * log_a
    return math.exp(product) * (1.0 + (fma(exponent, log_a, -product) + exponent * error))


@device
def transform_loss(options, row_max, x, sumexp_m1):
    """The transformed loss without the entropy, and the factor of cross-entropy's gradient. NaN
    where there is no distribution.
    """
    alpha, gamma, q, epsilon = options.alpha, options.gamma, options.q, options.epsilon
    # gap_error is what the rounding of row_max - x has lost, by a two-sum.
    gap = row_max - x
    back = gap - row_max
    gap_error = (row_max - (gap - back)) - (x + back)
    valid = row_max - row_max  # 0, or NaN where the maximum is infinite
    max_prob = 1.0 / (1.0 + sumexp_m1) + valid
    p = math.exp(-gap) * max_prob
    if p > 0:  # else the gap may be infinite
        p -= p * gap_error
    # 1 - p: for the maximum the sum of the others, else p is at most 1/2.
    u = sumexp_m1 * max_prob if gap == 0 else 1.0 - p
    log_p = -(gap + (math.log1p(sumexp_m1) + valid))
    p_power, base_loss, modulation, steeper = 1.0, -log_p, 1.0, 0.0
    if q != 0:
        p_power = power_of(p, q) if gap < SMALL_EXPONENT else math.exp(q * log_p)
        base_loss = -math.expm1(q * log_p) / q
    if gamma != 0:
        modulation = u * u if gamma == 2 else power_of(u, gamma)
        # base_loss / u is 1 in the limit of u = 0, and p * base_loss is 0 in that of p = 0.
        if p > 0:
            steeper = gamma * p * (base_loss / u if u > 0 else 1.0)
    loss = epsilon * u
    if alpha != 0:
        loss += alpha * modulation * base_loss
    scale = alpha * modulation
    if epsilon < 0:  # p_power is (p_power - p) + p: nothing cancels for epsilon = -alpha
        excess = p_power - p if q != 0 else u
        return loss, scale * (excess + steeper) + (scale + epsilon) * p
    return loss, scale * (p_power + steeper) + epsilon * p
