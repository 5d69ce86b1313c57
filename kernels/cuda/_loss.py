"""What one row of logits costs, and its gradient: the formulas of `kernels/reference`.

Seven modes, each with kernels of its own:

label    class indices
smooth   class indices with label smoothing
probs    probabilities of the dtype of the logits
wide     probabilities of float32, beside logits of 16 bits
pick     class indices of log-probabilities (nll_loss)
curve    class indices; a curve over p of the label, see `_curves.py`
entropy  the same, and the entropy of the row; without a target, that alone

For a row with state (top, below, ties) of `_math.py` and wanted probabilities q, the loss is
``sum_k q[k] * (top - x[k]) + log_total * sum(q) + z_loss * lse**2``. `cost` and `mass`, the two
sums, are gathered along with the state; a label's own part is added to them at the end. For the
entropy, `cost` is the sum of exp(x - top) * (top - x) instead, and `mass` 0.
"""

import math
from functools import cache
from types import SimpleNamespace

import numpy as np

from ._curves import bend
from ._math import device
from ._storage import load_label, load_number, storage_of
from .log_softmax import endings_of

COUNTS, IGNORED, BAD = 0, 1, 2  # what a label says of its row
PROBABILITIES = "probs", "wide"  # the modes without labels


@device
def read_label(target, row, code, n, ignore_index):
    """(class, what it says of the row)"""
    y = load_label(target, row, code)
    if code == 8 and y < 0:  # beyond int64, and no ignore_index
        return y, BAD
    if y == ignore_index:
        return y, IGNORED
    if y < 0 or y >= n:
        return y, BAD
    return y, COUNTS


@device
def scale_of(grad_loss, code, row, step, upstream, denominator, stats):
    """What the gradient of a row is multiplied by: upstream gradient over denominator."""
    if grad_loss != 0:
        upstream = load_number(grad_loss, row * step, code)
    return upstream / denominator_of(denominator, stats)


@device
def denominator_of(denominator, stats):
    """A number, or where `scan_target` has put it."""
    return load_number(stats, 1, 8) if stats != 0 else denominator


@cache
def loss_of(name, mode):
    """Functions for one dtype and one kind of target."""
    storage = storage_of(name)
    real, zero, one = storage.real, storage.real(0), storage.real(1)
    half, inf, nan = storage.real(0.5), storage.real(np.inf), storage.real(np.nan)
    number, put_number = storage.real_size, storage.put_number
    exp_below, maximum, rescaled = storage.exp_below, storage.maximum, storage.rescaled
    rest_of, (lse_of, _) = endings_of(name).rest_of, endings_of(name).logsumexp
    is_probs, is_pick, is_entropy = mode in PROBABILITIES, mode == "pick", mode == "entropy"
    target_storage = storage_of("float32") if mode == "wide" else storage
    target_size, load_number_of = target_storage.size, target_storage.load
    is_curve = mode in ("curve", "entropy")
    f64 = np.float64

    @device
    def class_weight(weight, code, k):
        return real(load_number(weight, k, code)) if weight != 0 else one

    @device
    def wanted(t, k, weight, code, keep, spread):
        """q[k], of a label's row without the label's own part; t is the target's probability."""
        if is_entropy:
            return zero
        q = keep * t + spread if is_probs else spread
        return q * class_weight(weight, code, k)

    @device
    def load_target(t, k):
        """Number k of a target of probabilities at address t."""
        return load_number_of(t + k * target_size)

    @device
    def label_share(y, weight, code, keep):
        """The label's own part of q."""
        return zero if is_probs else keep * class_weight(weight, code, y)

    @device
    def add_cost(x, q, top, cost, mass):
        """The two sums with one more element."""
        if is_entropy:
            e = exp_below(x, top)
            if e != zero:  # 0 * inf is 0 here
                cost += e * (top - x)
        elif q != zero:  # 0 * inf is 0 here
            cost += q * (inf if x == -inf else top - x)
            mass += q
        return cost, mass

    @device
    def add_wanted(x, q, top, below, ties, cost, mass):
        """The state and the two sums with one more element."""
        new = maximum(top, x)
        if new != top:
            cost = moved(cost, mass, below, ties, top, new)
            below, ties = rescaled(top, below, ties, new)
            top = new
        if x == top:
            ties += one
        else:
            below += exp_below(x, top)
        cost, mass = add_cost(x, q, top, cost, mass)
        return top, below, ties, cost, mass

    @device
    def moved(cost, mass, below, ties, top, new):
        """`cost`, seen from the maximum `new`."""
        if is_entropy:
            if top == new or top == -inf:
                return cost
            less = exp_below(top, new)
            return less * (cost + (below + ties) * (new - top)) if less != zero else zero
        if top == new or top == -inf or mass == zero:
            return cost
        return cost + mass * (new - top)

    @device
    def loss_and_lse(top, below, ties, cost, mass, x_y, q_y, z_loss, curve):
        if is_pick:
            return -q_y * x_y, zero
        rest = rest_of(top, below, ties)
        log_total = math.log1p(rest)
        if is_curve:
            loss = log_total - log_total
            if q_y != zero:
                loss += q_y * real(bend(curve, f64(top), f64(x_y), f64(rest))[0])
            if is_entropy:
                loss -= real(curve[4]) * (log_total + cost / (one + rest))
            return loss, zero
        lse = top + log_total
        loss = cost + mass * log_total + z_loss * lse * lse
        if q_y != zero or log_total != log_total:
            loss += q_y * ((top - x_y) + log_total)
        return loss, lse_of(top, below, ties)

    @device
    def steepened(q_y, top, below, ties, x_y, curve):
        """The label's part of q times what a curve multiplies the gradient of cross-entropy by."""
        if not is_curve or q_y == zero:
            return q_y
        rest = rest_of(top, below, ties)
        return q_y * real(bend(curve, f64(top), f64(x_y), f64(rest))[1])

    @device
    def pulls(top, below, ties, cost, mass, q_y, z_loss, beta):
        """(log_total, what exp(x - top) is multiplied by to be p, and p to be its share)."""
        rest = rest_of(top, below, ties)
        log_total = math.log1p(rest)
        pull = mass + q_y
        if is_entropy:  # log p + entropy is the mean gap less the gap
            pull += beta * (cost / (one + rest))
        if z_loss != zero:
            pull += (z_loss + z_loss) * (top + log_total)
        return log_total, one / (one + rest), pull

    @device
    def slope(x, q, top, log_total, share, pull, beta):
        """The gradient, pull * p - q, without cancellation where p is nearly 1."""
        p = exp_below(x, top) * share
        if is_entropy and p != zero:
            pull -= beta * (top - x)
        if p > half:
            return q * math.expm1((x - top) - log_total) + (pull - q) * p
        return pull * p - q

    @device
    def label_of(target, row, code, n, ignore_index):
        if is_probs:
            return np.int64(0), COUNTS
        if is_entropy and target == 0:
            return np.int64(0), COUNTS if n > 0 else BAD
        return read_label(target, row, code, n, ignore_index)

    @device
    def put_row(row, says, value, lse, losses, lses, denominator, stats):
        """Write what a row costs, if every row has its own place, and its lse; give the loss."""
        if says != COUNTS:
            value, lse = zero if says == IGNORED else nan, nan
        if losses != 0:
            put_number(losses + row * number, real(value / denominator_of(denominator, stats)))
        if lses != 0:
            put_number(lses + row * number, lse)
        return np.float64(value)

    return SimpleNamespace(
        label_of=label_of,
        put_row=put_row,
        wanted=wanted,
        load_target=load_target,
        target_size=target_size,
        label_share=label_share,
        add_cost=add_cost,
        add_wanted=add_wanted,
        moved=moved,
        loss_and_lse=loss_and_lse,
        pulls=pulls,
        steepened=steepened,
        slope=slope,
    )
