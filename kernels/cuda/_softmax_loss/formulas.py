"""The loss of one row of logits, and its gradient: the formulas of `kernels/reference`.

Seven modes, each with kernels of its own:

label      class indices
smooth     class indices with label smoothing
probs      probabilities of the dtype of the logits
wide       probabilities of float32, beside logits of 16 bits
pick       class indices of log-probabilities (nll_loss)
transform  class indices, with a loss transform (`loss_transform.py`)
entropy    the same, and the entropy of the row; without a target, that alone

For a row with a `State` and target probabilities q, the loss is
``sum_k q[k] * (row_max - x[k]) + log_sumexp * sum(q) + z_loss * lse**2``. The two sums, `Sums`, are
gathered along with the state; a label's own part is added to them at the end.
"""

import math
from functools import cache
from typing import NamedTuple

import numpy as np

from .._loss import denominator_of, grad_loss_of
from .._math import State, device, namespace
from .._softmax import softmax_of
from .._storage import load_label, load_number, storage_of
from .loss_transform import transform_loss

VALID, IGNORED, INVALID = 0, 1, 2  # label_status
PROBABILITIES = "probs", "wide"  # the modes without labels
LABELS = "label", "transform"  # the modes in which q of all classes but the label's is 0


class LossOptions(NamedTuple):
    """What all kernels of a loss take beside the arrays of logits, target and gradient. Addresses
    are 0 for what is not there; `*_code` are the dtypes of small arrays (`_storage.py`).
    """

    label_code: int
    weight: int
    weight_code: int
    lse: int
    loss: int  # a loss for each row
    sums: int  # or sums of losses, one for each row or block
    grad_loss: int
    grad_loss_code: int
    grad_loss_step: int
    grad_loss_number: float  # in place of an array
    denominator: float
    stats: int  # where `scan_target` wrote the denominator
    ignore_index: int
    target_scale: float  # 1 - label_smoothing
    uniform_share: float  # label_smoothing / n
    z_loss: float
    alpha: float  # of the loss transform, with the next four
    gamma: float
    q: float
    epsilon: float
    beta: float


class Sums(NamedTuple):
    gap_sum: float  # sum of q[k] * (row_max - x[k]); for the entropy, of exp(-gap) * gap
    prob_sum: float  # sum of q; for the entropy, 0


class GradTerms(NamedTuple):
    """What the gradient of a logit takes beside the logit and its q."""

    row_max: float
    log_sumexp: float  # log of the sum of exp(x - row_max)
    inv_sumexp: float
    p_factor: float  # of softmax p in the gradient p_factor * p - q
    beta: float


@device
def read_label(target, row, code, n, ignore_index):
    """(class, label_status)"""
    y = load_label(target, row, code)
    if code == 8 and y < 0:  # beyond int64, and no ignore_index
        return y, INVALID
    if y == ignore_index:
        return y, IGNORED
    if y < 0 or y >= n:
        return y, INVALID
    return y, VALID


@device
def grad_scale_of(options, row):
    """The factor of a row's gradient."""
    return grad_loss_of(options, row) / denominator_of(options.denominator, options.stats)


@device
def writes_loss(options):
    return options.loss != 0 or options.sums != 0 or options.lse != 0


@cache
def loss_of(name, mode):
    """Functions for one dtype and one mode."""
    storage = storage_of(name)
    real, zero, one = storage.real, storage.real(0), storage.real(1)
    half, inf, nan = storage.real(0.5), storage.real(np.inf), storage.real(np.nan)
    number, put_number = storage.real_size, storage.put_number
    exp_below, maximum, rescaled = storage.exp_below, storage.maximum, storage.rescaled
    sumexp_m1_of, (lse_of, _) = softmax_of(name).sumexp_m1_of, softmax_of(name).logsumexp
    is_probs, is_pick, is_entropy = mode in PROBABILITIES, mode == "pick", mode == "entropy"
    target_storage = storage_of("float32") if mode == "wide" else storage
    target_size, load_number_of = target_storage.size, target_storage.load
    is_transformed = mode in ("transform", "entropy")
    f64 = np.float64

    @device
    def class_weight(options, k):
        if options.weight == 0:
            return one
        return real(load_number(options.weight, k, options.weight_code))

    @device
    def target_prob(t, k, options):
        """q[k], of a label's row without the label's own part; t is the target's probability."""
        if is_entropy:
            return zero
        q = real(options.uniform_share)
        if is_probs:
            q = real(options.target_scale) * t + q
        return q * class_weight(options, k)

    @device
    def load_target(t, k):
        """Number k of a target of probabilities at address t."""
        return load_number_of(t + k * target_size)

    @device
    def label_prob(y, options):
        """The label's own part of q."""
        return zero if is_probs else real(options.target_scale) * class_weight(options, y)

    @device
    def add_gap(x, q, row_max, sums):
        """The sums with one more element."""
        gap_sum, prob_sum = sums
        if is_entropy:
            e = exp_below(x, row_max)
            if e != zero:  # 0 * inf is 0 here
                gap_sum += e * (row_max - x)
        elif q != zero:  # 0 * inf is 0 here
            gap_sum += q * (inf if x == -inf else row_max - x)
            prob_sum += q
        return Sums(gap_sum, prob_sum)

    @device
    def add_element(x, q, state, sums):
        """The state and the sums with one more element."""
        new_max = maximum(state.row_max, x)
        if new_max != state.row_max:
            sums = rescaled_sums(sums, state, new_max)
            state = rescaled(state, new_max)
        row_max, sumexp_below, max_count = state
        if x == row_max:
            max_count += one
        else:
            sumexp_below += exp_below(x, row_max)
        return State(row_max, sumexp_below, max_count), add_gap(x, q, row_max, sums)

    @device
    def rescaled_sums(sums, state, new_max):
        """The sums of a row with this state, relative to `new_max`."""
        gap_sum, prob_sum = sums
        row_max = state.row_max
        if row_max == new_max or row_max == -inf:
            return sums
        if is_entropy:
            factor = exp_below(row_max, new_max)
            sumexp = state.sumexp_below + state.max_count
            gap_sum = factor * (gap_sum + sumexp * (new_max - row_max)) if factor != zero else zero
        elif prob_sum != zero:
            gap_sum += prob_sum * (new_max - row_max)
        return Sums(gap_sum, prob_sum)

    @device
    def loss_and_lse(state, sums, x_y, q_y, options):
        if is_pick:
            return -q_y * x_y, zero
        row_max = state.row_max
        sumexp_m1 = sumexp_m1_of(state)
        log_sumexp = math.log1p(sumexp_m1)
        if is_transformed:
            loss = log_sumexp - log_sumexp
            if q_y != zero:
                loss += q_y * real(
                    transform_loss(options, f64(row_max), f64(x_y), f64(sumexp_m1))[0]
                )
            if is_entropy:
                loss -= real(options.beta) * (log_sumexp + sums.gap_sum / (one + sumexp_m1))
            return loss, zero
        lse = row_max + log_sumexp
        loss = sums.gap_sum + sums.prob_sum * log_sumexp + real(options.z_loss) * lse * lse
        if q_y != zero or log_sumexp != log_sumexp:
            loss += q_y * ((row_max - x_y) + log_sumexp)
        return loss, lse_of(state)

    @device
    def transformed_prob(q_y, state, x_y, options):
        """The label's part of q times the transform's factor of cross-entropy's gradient."""
        if not is_transformed or q_y == zero:
            return q_y
        row_max, sumexp_m1 = state.row_max, sumexp_m1_of(state)
        return q_y * real(transform_loss(options, f64(row_max), f64(x_y), f64(sumexp_m1))[1])

    @device
    def grad_terms(state, sums, q_y, options):
        row_max, sumexp_m1 = state.row_max, sumexp_m1_of(state)
        log_sumexp = math.log1p(sumexp_m1)
        p_factor, beta, z_loss = sums.prob_sum + q_y, real(options.beta), real(options.z_loss)
        if is_entropy:  # log p + entropy is the mean gap less the gap
            p_factor += beta * (sums.gap_sum / (one + sumexp_m1))
        if z_loss != zero:
            p_factor += (z_loss + z_loss) * (row_max + log_sumexp)
        return GradTerms(row_max, log_sumexp, one / (one + sumexp_m1), p_factor, beta)

    @device
    def logit_grad(x, q, terms):
        """p_factor * p - q, without cancellation where p is nearly 1."""
        row_max, log_sumexp, inv_sumexp, p_factor, beta = terms
        p = exp_below(x, row_max) * inv_sumexp
        if is_entropy and p != zero:
            p_factor -= beta * (row_max - x)
        if p > half:
            return q * math.expm1((x - row_max) - log_sumexp) + (p_factor - q) * p
        return p_factor * p - q

    @device
    def label_of(target, row, n, options):
        """(class, label_status)"""
        if is_probs:
            return np.int64(0), VALID
        if is_entropy and target == 0:
            return np.int64(0), VALID if n > 0 else INVALID
        return read_label(target, row, options.label_code, n, options.ignore_index)

    @device
    def put_loss(row, label_status, state, sums, x_y, q_y, options):
        """Write the lse of a row and, if every row has its own place, its loss; return the loss."""
        loss, lse = loss_and_lse(state, sums, x_y, q_y, options)
        if label_status != VALID:
            loss, lse = zero if label_status == IGNORED else nan, nan
        if options.loss != 0:
            denominator = denominator_of(options.denominator, options.stats)
            put_number(options.loss + row * number, real(loss / denominator))
        if options.lse != 0:
            put_number(options.lse + row * number, lse)
        return np.float64(loss)

    return namespace(
        *(label_of, label_prob, load_target, target_prob, put_loss),
        *(add_gap, add_element, rescaled_sums, transformed_prob, grad_terms, logit_grad),
        no_sums=Sums(zero, zero),
        target_size=target_size,
        is_probs=is_probs,
        is_pick=is_pick,
        is_label=mode in LABELS,
    )
