"""What a row costs beside plain cross-entropy: a curve over the probability p of its class.

Everything is computed in float64 from the maximum, x of the class, and the `rest` of the state of
the row (see _rows.py), in which nothing has cancelled yet.
"""

import math
from typing import NamedTuple

from ._parts import inner

SMALL_EXPONENT = 600  # exp(-this) is a normal number, also divided by a number of classes


class Curve(NamedTuple):
    """alpha * (1 - p)**gamma * L(p) + epsilon * (1 - p) - beta * entropy"""

    bends: bool  # else it is cross-entropy, and nothing else is looked at
    alpha: float
    gamma: float
    q: float
    epsilon: float
    beta: float


PLAIN = Curve(False, 1.0, 0.0, 0.0, 0.0, 0.0)


@inner
def bend(curve, top, x, rest):
    """The loss on the curve, by what that multiplies the gradient of cross-entropy, and p.

    L(p) is (1 - p**q) / q, or -log(p) for q = 0. NaN where there is no distribution.
    """
    gap = top - x
    back = gap - top
    lost = (top - (gap - back)) - (x + back)
    valid = top - top  # 0, or NaN where the maximum is infinite
    share = 1 / (1 + rest) + valid
    p = math.exp(-gap) * share
    if p > 0:  # else the gap may be infinite, and nothing is lost
        p -= p * lost
    # 1 - p: of the maximum what the others have, else p is at most 1/2.
    u = rest * share if gap == 0 else 1 - p
    log_p = -(gap + (math.log1p(rest) + valid))
    power, surprise, focus, steep = 1.0, -log_p, 1.0, 0.0
    if curve.q != 0:
        power = p**curve.q if gap < SMALL_EXPONENT else math.exp(curve.q * log_p)
        surprise = -math.expm1(curve.q * log_p) / curve.q
    if curve.gamma != 0:
        focus = u * u if curve.gamma == 2 else u**curve.gamma
        # surprise / u is 1 in the limit of u = 0, and p * surprise is 0 in that of p = 0.
        if p > 0:
            steep = curve.gamma * p * (surprise / u if u > 0 else 1.0)
    loss = curve.epsilon * u
    if curve.alpha != 0:
        loss += curve.alpha * focus * surprise
    scale = curve.alpha * focus
    if curve.epsilon < 0:  # power is (power - p) + p: nothing cancels for epsilon = -alpha
        excess = power - p if curve.q != 0 else u
        return loss, scale * (excess + steep) + (scale + curve.epsilon) * p, p
    return loss, scale * (power + steep) + curve.epsilon * p, p


@inner
def times(weight, value, valid):
    """weight * value; a class of weight 0 costs nothing, even where the value is infinite."""
    return (weight * value if weight != 0 else 0.0) + valid
