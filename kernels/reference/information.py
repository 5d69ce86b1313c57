"""Entropies and divergences of distributions, from probabilities, tables and logits, in float64.

Distributions need not sum to 1: p = x / sum(x). With max the largest element of x and others the
sum of all others, divided by max,

    -log p[k]  = log1p(others) + log(max / x[k])
    H(p)       = log1p(others) + sum_k p[k] * log(max / x[k])
    H(p, q)    = log1p(others of q) + sum_k p[k] * log(max of q / y[k])
    KL(p || q) = sum_k d(p[k], q[k]),  d(p, q) = p * log(p / q) - p + q
    JS(p, q)   = (KL(p || m) + KL(q || m)) / 2,  m = (p + q) / 2

No term is negative, so nothing cancels: neither where one element dominates, nor where p and q are
nearly equal. Since sum p = sum q = 1, the -p + q of all terms add up to 0; written inside the sum
they also take away, to first order, what an error of the two sums would do to the result.

    H(Y | X)   = sum_x P(x) * H(Y | X = x)
    I(X; Y)    = KL(joint || product of its margins)

0 * log(0) is 0. What is no distribution gives NaN: a negative number, NaN, infinity, a sum of 0.

``unit`` is what the result is divided by, log(base); ``exponential`` gives exp of it instead.
"""

import numpy as np

from ._softmax import shifted
from ._widen import narrow, total, widen


def _scaled(x):
    """The sum of all but the largest element, divided by that; and x, its largest element and its
    sum, times a power of two; with the outcomes on axis 1. NaN where x is no distribution.
    """
    largest = np.max(x, axis=1, keepdims=True, initial=0.0)
    valid = (x >= 0).all(axis=1, keepdims=True) & (largest > 0) & (largest < np.inf)
    largest = np.where(valid, largest, np.nan)
    # So that no sum overflows, nor the product of two; what is above 0 stays so.
    power = 450 - np.frexp(largest)[1]
    x = np.maximum(np.ldexp(x, power), np.where(x > 0, 2.0**-1074, 0.0))
    largest = np.ldexp(largest, power)
    others = x.copy()
    if x.shape[1]:
        np.put_along_axis(others, np.argmax(x, axis=1, keepdims=True), 0.0, axis=1)
    others = total(others)
    return others / largest, x, largest, others + largest


def _sum(terms):
    """Over the outcomes; without any, there is no distribution."""
    return total(terms) + (0.0 if terms.shape[1] else np.nan)


def _log_below(x):
    """log(x / largest), also where that is below the normal numbers."""
    largest = np.max(x, axis=1, keepdims=True, initial=0.0)
    ratio = x / largest
    return np.where(ratio >= 2.0**-1022, np.log(ratio), np.log(x) - np.log(largest))


def _put(value, out, unit, exponential=False):
    with np.errstate(over="ignore"):
        narrow(np.exp(value) if exponential else value / unit, out)


def _kl_div_term(p, q, difference, log_q=None):
    """d(p, q), given difference = q - p; and log(q), where q may be beyond the numbers."""
    w = difference / p
    near = p * (w - np.log1p(w))
    ratio = p / q
    in_range = (q >= 2.0**-1022) & (ratio >= 2.0**-1022) & (ratio < np.inf)
    log_q = np.log(q) if log_q is None else log_q
    log_ratio = np.where(in_range, np.log(ratio), np.log(p) - log_q)
    d = np.where(np.abs(w) < 0.5, near, p * log_ratio + difference)
    return np.where(p == 0, q, d)


def _with_equal_sums(p, q):
    """p and q with the same sum, the sum, and log(q)."""
    _, x, _, p_sum = _scaled(widen(p))
    _, y, largest, q_sum = _scaled(widen(q))
    return x * (q_sum / p_sum), y + 0 * q_sum, q_sum, _log_below(widen(q)) + np.log(largest)


def entropy(p, out, *, unit, exponential, threads):
    cross_entropy_of(p, p, out, unit=unit, exponential=exponential, threads=threads)


def cross_entropy_of(p, q, out, *, unit, exponential, threads):
    with np.errstate(all="ignore"):
        _, x, _, p_sum = _scaled(widen(p))
        others, _, _, _ = _scaled(widen(q))
        terms = _sum(np.where(x == 0, 0.0, x * -_log_below(widen(q))))
        _put((np.log1p(others) + terms / p_sum)[:, 0], out, unit, exponential)


def kl_divergence(p, q, out, *, unit, threads):
    with np.errstate(all="ignore"):
        p, q, q_sum, log_q = _with_equal_sums(p, q)
        _put((_sum(_kl_div_term(p, q, q - p, log_q)) / q_sum)[:, 0], out, unit)


def js_divergence(p, q, out, *, unit, threads):
    with np.errstate(all="ignore"):
        p, q, q_sum, _ = _with_equal_sums(p, q)
        m, difference = (p + q) / 2, (q - p) / 2
        both = _kl_div_term(p, m, difference) + _kl_div_term(q, m, -difference)
        _put((_sum(both) / (2 * q_sum))[:, 0], out, unit)


# ---- tables ----------------------------------------------------------------------------------


def _flat(tables):
    """A table as one distribution."""
    return tables.reshape(len(tables), tables.shape[1] * tables.shape[2], 1)


def conditional_entropy(table, out, *, unit, threads):
    """H of the variable of the last axis, given that of the axis before it."""
    with np.errstate(all="ignore"):
        _, p, _, of_all = _scaled(_flat(widen(table)))
        rows = np.swapaxes(widen(table), 1, 2)
        others, x, _, of_row = _scaled(rows)
        h = np.log1p(others) + total(np.where(x == 0, 0.0, x * -_log_below(rows))) / of_row
        weight = p.reshape(table.shape).sum(axis=2) / of_all[:, 0]
        _put(_sum(np.where(weight == 0, 0.0, weight * h[:, 0])[:, :, None])[:, 0, 0], out, unit)


def mutual_information(table, out, *, unit, threads):
    with np.errstate(all="ignore"):
        _, x, _, of_all = _scaled(_flat(widen(table)))
        x = x.reshape(table.shape)
        # Divided at last: the product of counts is exact, and independence gives 0.
        of_row, of_column = x.sum(axis=2, keepdims=True), x.sum(axis=1, keepdims=True)
        y = of_row * of_column / of_all
        log_y = np.log(of_row) + (np.log(of_column) - np.log(of_all))
        below_range = x * (np.log(x) - log_y) + (y - x)  # y is below all numbers
        d = np.where((x > 0) & (y < 2.0**-1022), below_range, _kl_div_term(x, y, y - x))
        d = _flat(d)
        _put((_sum(d) / of_all)[:, 0, 0], out, unit)


# ---- logits ----------------------------------------------------------------------------------


def entropy_from_logits(logits, out, *, unit, threads):
    entropy_from_logits_with_grad(logits, out, None, unit=unit, threads=threads)


def entropy_from_logits_with_grad(logits, out, grad, *, unit, threads):
    """grad = -p * (log p + H)"""
    with np.errstate(all="ignore"):
        _, gap, below, sumexp_m1 = shifted(widen(logits))
        p = below / (1 + sumexp_m1)
        terms = np.where(p == 0, 0.0, p * gap)
        mean = _sum(terms)
        value = np.log1p(sumexp_m1) + mean
        if grad is not None:
            narrow(np.where(p == 0, 0.0, p * (gap - mean)) / unit, grad)
        _put(value[:, 0], out, unit)


def kl_divergence_from_logits(p_logits, q_logits, out, *, unit, threads):
    kl_divergence_from_logits_with_grad(
        p_logits, q_logits, out, None, None, unit=unit, threads=threads
    )


def kl_divergence_from_logits_with_grad(p_logits, q_logits, out, q_grad, p_grad, *, unit, threads):
    """q_grad = q - p; p_grad = p * (log(p / q) - KL), unless it is None."""
    with np.errstate(all="ignore"):
        _, p_gap, p, p_sumexp_m1 = shifted(widen(p_logits))
        _, q_gap, q, q_sumexp_m1 = shifted(widen(q_logits))
        p, q = p / (1 + p_sumexp_m1), q / (1 + q_sumexp_m1)
        # NaN where q is no distribution, so that all gradients are
        p = p + (q_sumexp_m1 - q_sumexp_m1)
        # log(p / q), whose two parts are each small where p and q are nearly equal
        log_ratio = (q_gap - p_gap) - (np.log1p(p_sumexp_m1) - np.log1p(q_sumexp_m1))
        near = np.abs(log_ratio) < 0.5
        difference = np.where(near, p * np.expm1(-log_ratio), q - p)
        terms = np.where(p == 0, q, p * log_ratio + difference)
        value = _sum(terms)
        if q_grad is not None:
            narrow(difference / unit, q_grad)
        if p_grad is not None:
            narrow(np.where(p == 0, 0.0, p * (log_ratio - value)) / unit, p_grad)
        _put(value[:, 0], out, unit)
