"""The functions of kernels/numba/_math.py over arrays, under the names of the Cython module that
test_vector_math.py calls.
"""

import numpy as np

from fastce.kernels.numba import _math
from fastce.kernels.numba._compile import compiled


def _over(function):
    @compiled
    def over(x, out):
        for i in range(x.size):
            out[i] = function(x[i])

    return over


EXP_2_UP_TO = _math.EXP_2_UP_TO
exp_2_of, tan_h_of = map(_over, (_math.exp_2, _math.tanh))
log_of_of, log_1p_of, log_1p_small_of = map(_over, (_math.log, _math.log_1p, _math.log_1p_small))


@compiled
def power_of_of(x, y, out):
    for i in range(x.size):
        out[i] = _math.power_of(x[i], y[i])


@compiled
def exp_sub_of(x, m, out):
    for i in range(x.size):
        out[i] = _math.exp_sub(x[i], m[i])


@compiled
def _exp_from_of(x, m, out):
    base, ratio = _math.reference(m[0])
    down = _math.constants(m[0]).down
    for i in range(x.size):
        out[i] = _math.exp_from(x[i], base) * down
    return base.shift, _math.constants(m[0]).to_exponent - base.to_exponent, ratio / down


def exp_from_of(x, m, out):
    """Returns the reference m' = shift + power * ln(2) that was chosen for m[0]."""
    shift, power, ratio = _exp_from_of(x, m.astype(x.dtype), out)
    near = np.longdouble(shift) + np.longdouble(power) * np.log(np.longdouble(2))
    assert abs(ratio / np.exp(near - m[0]) - 1) < 1e-15
    return shift, power
