"""From the state of a row to logsumexp, softmax and log_softmax."""

import math
from functools import cache

import numpy as np

from ._math import device, namespace
from ._storage import storage_of


@cache
def softmax_of(name):
    """Functions for one dtype. `logsumexp`, `log_softmax` and `softmax` are pairs: a function of
    the state, then one of an element, the maximum and the first one's result.
    """
    storage = storage_of(name)
    one, nan, inf = storage.real(1), storage.real(np.nan), storage.real(np.inf)
    exp_below, difference = storage.exp_below, storage.difference

    @device
    def sumexp_m1_of(state):
        """Sum of exp(x - row_max) less 1; NaN where there is no softmax."""
        if state.row_max == inf or state.row_max == -inf:
            return nan
        return state.sumexp_below + (state.max_count - one)

    @device
    def lse_of(state):
        row_max = state.row_max
        if row_max == inf or row_max == -inf:
            return row_max
        return row_max + math.log1p(state.sumexp_below + (state.max_count - one))

    @device
    def log_sumexp_of(state):
        return math.log1p(sumexp_m1_of(state))

    @device
    def sumexp_of(state):
        return one + sumexp_m1_of(state)

    @device
    def log_softmax_value(x, row_max, log_sumexp):
        return difference(x - row_max, log_sumexp)

    @device
    def softmax_value(x, row_max, sumexp):
        return exp_below(x, row_max) / sumexp

    @device
    def scaled_value(x, row_max, factor):
        return exp_below(x, row_max) * factor

    return namespace(
        *(sumexp_m1_of, scaled_value),
        logsumexp=(lse_of, None),
        log_softmax=(log_sumexp_of, log_softmax_value),
        softmax=(sumexp_of, softmax_value),
    )
