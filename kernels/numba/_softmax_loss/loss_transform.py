"""Losses that are a function of the probability p of the row's class, and not its logarithm alone.

Everything is computed in float64 from the maximum, x of the class, and `sumexp_m1` of the state of
the row (see _rows.py), in which nothing has cancelled yet.
"""

import math
from typing import NamedTuple

from .._jit_options import internal

SMALL_EXPONENT = 600  # exp(-this) is a normal number, also divided by a number of classes


class LossTransform(NamedTuple):
    """alpha * (1 - p)**gamma * L(p) + epsilon * (1 - p) - beta * entropy"""

    active: bool  # else it is cross-entropy, and nothing else is looked at
    alpha: float
    gamma: float
    q: float
    epsilon: float
    beta: float


PLAIN = LossTransform(False, 1.0, 0.0, 0.0, 0.0, 0.0)


@internal
def transform_loss(transform, row_max, x, sumexp_m1):
    """The loss without the entropy, what that multiplies the gradient of cross-entropy by, and p.

    L(p) is (1 - p**q) / q, or -log(p) for q = 0. NaN where there is no distribution.
    """
    # gap_error is what the rounding of row_max - x has lost, by a two-sum.
    gap = row_max - x
    back = gap - row_max
    gap_error = (row_max - (gap - back)) - (x + back)
    valid = row_max - row_max  # 0, or NaN where the maximum is infinite
    max_prob = 1 / (1 + sumexp_m1) + valid
    p = math.exp(-gap) * max_prob
    if p > 0:  # else the gap may be infinite, and there is no error
        p -= p * gap_error
    # 1 - p: of the maximum the sum of the others, else p is at most 1/2.
    u = sumexp_m1 * max_prob if gap == 0 else 1 - p
    log_p = -(gap + (math.log1p(sumexp_m1) + valid))
    p_power, base_loss, modulation, steeper = 1.0, -log_p, 1.0, 0.0
    if transform.q != 0:
        p_power = p**transform.q if gap < SMALL_EXPONENT else math.exp(transform.q * log_p)
        base_loss = -math.expm1(transform.q * log_p) / transform.q
    if transform.gamma != 0:
        modulation = u * u if transform.gamma == 2 else u**transform.gamma
        # base_loss / u is 1 in the limit of u = 0, and p * base_loss is 0 in that of p = 0.
        if p > 0:
            steeper = transform.gamma * p * (base_loss / u if u > 0 else 1.0)
    loss = transform.epsilon * u
    if transform.alpha != 0:
        loss += transform.alpha * modulation * base_loss
    scale = transform.alpha * modulation
    if transform.epsilon < 0:  # p_power is (p_power - p) + p: nothing cancels for epsilon = -alpha
        excess = p_power - p if transform.q != 0 else u
        return loss, scale * (excess + steeper) + (scale + transform.epsilon) * p, p
    return loss, scale * (p_power + steeper) + transform.epsilon * p, p


@internal
def weighted(weight, value, valid):
    """weight * value; a weight of 0 gives 0, even where the value is infinite."""
    return (weight * value if weight != 0 else 0.0) + valid
