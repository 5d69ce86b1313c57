"""Binary cross-entropy, from logits and from probabilities, and the sigmoid focal loss, each with
its gradient in a single pass over memory.

The formulas are in kernels/reference/binary_cross_entropy.py, and how they are computed at the top
of kernels/cython/binary_cross_entropy.pyx. A block goes in tiles: plain loops, which LLVM
vectorises, write factors, losses and slopes to buffers on the stack; from there the losses are
summed in float64, and results go to memory. What is not given is an empty array.
"""

from typing import NamedTuple

import numpy as np

from ._class_loss import put_reduced, smoothing
from ._compile import threaded
from ._jit_options import internal
from ._math import (
    cast,
    constants,
    exp_from,
    larger,
    log,
    log_1p,
    log_1p_small,
    mul_add,
    no_inline,
    power_of,
    reference,
)
from ._rows import sum_of
from ._storage import (
    LINE,
    before_line,
    compute_dtype,
    copy_lines,
    flat_in,
    flat_out,
    frozen,
    narrow,
    nothing,
    raw,
    stack_like,
    stack_scratch,
    stream_end,
    streams,
    widen,
)

TILE = 1024  # elements
BLOCK = 16 * TILE  # a task
OF_PROBABILITIES, OF_LOGITS, FOCAL = range(3)  # the last one is of logits, too


class Each(NamedTuple):
    """Arrays of the type that is computed in."""

    weight: np.ndarray  # element i has number i % weight.size; empty for ones
    pos_weight: np.ndarray
    grad_loss: np.ndarray  # empty, or one for each element
    loss: np.ndarray  # empty where the loss is reduced


class Formula(NamedTuple):
    form: int
    target_scale: float = 1.0  # 1 - label_smoothing
    uniform_share: float = 0.0  # label_smoothing / 2
    gamma: float = 0.0  # of the focal loss; so the next two, see the reference
    positive: float = 1.0
    negative: float = 1.0


class Options(NamedTuple):
    formula: Formula
    scale: float  # of the gradient
    stream_grad: bool  # whether it is written past the caches
    stream_loss: bool


# ---- one element -----------------------------------------------------------------------------


@internal
def from_logit(x, a, b, base):
    """The loss and its derivative."""
    t = constants(x)
    size = abs(x)
    e = exp_from(-size, base) * t.down
    c, other = (a, b) if x < t.zero else (b, a)
    quotient = (c - other * e) / (t.one + e)
    # A factor of 0 gives 0 even at infinity; NaN is still in e.
    far = t.zero if c == t.zero else c * size
    return mul_add(a + b, log_1p_small(e), far), -quotient if x < t.zero else quotient


@internal
def focal(x, e, a, b, power, formula):
    """The same of the focal loss, given exp(-abs(x)) and (1 - p_t)**gamma."""
    t = constants(x)
    size = abs(x)
    c, other = (a, b) if x < t.zero else (b, a)
    near = log_1p_small(e)
    # e = 0 leaves nothing of this, where bce may be infinite and the divisor 0.
    steeper = cast(x, formula.gamma) * mul_add(c, size, near)
    steeper *= (c - other) * (e / mul_add(other, e, c))
    steeper = (c - other * e) + (t.zero if e == t.zero else steeper)
    factor = mul_add(cast(x, formula.positive), a, cast(x, formula.negative) * b) * power
    slope = factor * (steeper / (t.one + e))
    far = c * factor
    far = t.zero if far == t.zero else far * size
    return mul_add(factor, near, far), -slope if x < t.zero else slope


# ---- loops over a tile -----------------------------------------------------------------------


@internal
def fill_factors(t, weight, pos_weight, formula, a, b):
    """The factors of the target and of its complement, see the reference."""
    no_inline()
    one = constants(a[0]).one
    target_scale, uniform_share = smoothing(one, formula)
    for i in range(t.size):
        target = widen(t[i])
        a[i] = mul_add(target_scale, target, uniform_share)
        b[i] = mul_add(target_scale, one - target, uniform_share)
    for i in range(weight.size):
        a[i] *= weight[i]
        b[i] *= weight[i]
    for i in range(pos_weight.size):
        a[i] *= pos_weight[i]


@internal
def of_logits(x, a, b, losses, slopes):
    no_inline()
    base, _ = reference(constants(losses[0]).zero)
    if slopes.size:
        for i in range(x.size):
            losses[i], slopes[i] = from_logit(widen(x[i]), a[i], b[i], base)
    else:
        for i in range(x.size):
            losses[i] = from_logit(widen(x[i]), a[i], b[i], base)[0]


@internal
def raise_all(powers, gamma):
    no_inline()
    if gamma == 2:
        for i in range(powers.size):
            powers[i] *= powers[i]
    elif gamma == 0:
        powers[:] = 1
    elif gamma != 1:
        exponent = cast(powers[0], gamma)
        for i in range(powers.size):
            powers[i] = power_of(powers[i], exponent)


@internal
def of_focal(x, a, b, formula, powers, losses, slopes):
    """`losses` holds exp(-abs(x)) at first, and `powers` 1 - p_t."""
    no_inline()
    t = constants(losses[0])
    base, _ = reference(t.zero)
    for i in range(x.size):
        value = widen(x[i])
        e = exp_from(-abs(value), base) * t.down
        c, other = (a[i], b[i]) if value < t.zero else (b[i], a[i])
        losses[i] = e
        powers[i] = mul_add(other, e, c) / (t.one + e)
    raise_all(powers[: x.size], formula.gamma)
    if slopes.size:
        for i in range(x.size):
            losses[i], slopes[i] = focal(
                widen(x[i]), losses[i], a[i], b[i], powers[i], formula
            )  # fmt: skip
    else:
        for i in range(x.size):
            losses[i] = focal(widen(x[i]), losses[i], a[i], b[i], powers[i], formula)[0]


@internal
def of_probabilities(p, t, weight, losses, slopes):
    """The two bounds are PyTorch's. A loop has one logarithm: LLVM does not inline two."""
    no_inline()
    one, floor, least = constants(losses[0]).one, cast(losses[0], -100.0), cast(losses[0], 1e-12)
    for i in range(p.size):
        losses[i] = (one - widen(t[i])) * -larger(floor, log_1p(-widen(p[i])))
    for i in range(p.size):
        losses[i] = mul_add(widen(t[i]), -larger(floor, log(widen(p[i]))), losses[i])
    for i in range(slopes.size):
        value = widen(p[i])
        slopes[i] = (value - widen(t[i])) / larger(least, value * (one - value))
    for i in range(weight.size):
        losses[i] *= weight[i]
    for i in range(min(weight.size, slopes.size)):
        slopes[i] *= weight[i]


@internal
def put_slopes(slopes, grad_loss, scale, buffer):
    """Multiplied by grad_loss or, where that is empty, by `scale`, as they are stored."""
    no_inline()
    if grad_loss.size:
        for i in range(slopes.size):
            value = slopes[i] * grad_loss[i]
            buffer[i] = narrow(value, buffer)
    else:
        for i in range(slopes.size):
            value = slopes[i] * scale
            buffer[i] = narrow(value, buffer)


@internal
def copy_out(values, to, streaming):
    """Whole lines of it past the caches, if `streaming`."""
    no_inline()
    first = min(before_line(to), to.size) if streaming else 0
    last = first + (to.size - first) * to.itemsize // LINE * (LINE // to.itemsize)
    for i in range(first):
        to[i] = values[i]
    copy_lines(values[first:last], to[first:last], streaming)
    for i in range(last, to.size):
        to[i] = values[i]


# ---- tasks -----------------------------------------------------------------------------------


@internal
def block_task(x, t, grad, each, options, sums, block):
    """Losses and gradients of a block, whichever are given; the sum of the losses in `sums`."""
    a, b = stack_scratch(x, TILE), stack_scratch(x, TILE)
    losses, slopes = stack_scratch(x, TILE), stack_scratch(x, TILE)
    powers = stack_scratch(x, TILE)
    stored = stack_like(grad, TILE)
    weights, pos_weights = each.weight.size, each.pos_weight.size
    at, last = block * BLOCK, min(x.size, (block + 1) * BLOCK)
    scale = cast(losses[0], options.scale)
    total = 0.0
    while at < last:
        n, w, v = min(TILE, last - at), 0, 0
        if weights:
            w = at % weights
            n = min(n, weights - w)
        if pos_weights:
            v = at % pos_weights
            n = min(n, pos_weights - v)
        values, targets = x[at : at + n], t[at : at + n]
        weight = each.weight[w : w + n]
        grads = slopes[: n if grad.size else 0]
        if options.formula.form == OF_PROBABILITIES:
            of_probabilities(values, targets, weight, losses, grads)
        else:
            fill_factors(targets, weight, each.pos_weight[v : v + n], options.formula, a, b)
            if options.formula.form == OF_LOGITS:
                of_logits(values, a, b, losses, grads)
            else:
                of_focal(values, a, b, options.formula, powers, losses, grads)
        total += sum_of(losses[:n])
        if each.loss.size:
            copy_out(losses[:n], each.loss[at : at + n], options.stream_loss)
        if grad.size:
            put_slopes(grads, each.grad_loss[at : at + n], scale, stored)
            copy_out(stored[:n], grad[at : at + n], options.stream_grad)
        at += n
    if options.stream_loss or options.stream_grad:
        stream_end()
    sums[block] = total


@internal
def scan_task(p, bad, block):
    """The first element of a block that is below 0 or above 1, if there is one."""
    first, last = block * BLOCK, min(p.size, (block + 1) * BLOCK)
    part = p[first:last]
    zero, one = constants(widen(p[0])).zero, constants(widen(p[0])).one
    count = 0
    for i in range(part.size):
        value = widen(part[i])
        count += 1 if (value < zero) | (value > one) else 0
    if count:
        for i in range(part.size):
            value = widen(part[i])
            if value < zero or value > one:
                bad[block] = first + i
                return


run, run_scan = threaded(block_task), threaded(scan_task)


# ---- kernels ---------------------------------------------------------------------------------


def scan_probabilities(probs, stats, *, threads):
    bad = np.full(-(-probs.size // BLOCK), -1)
    run_scan(threads, probs.size, bad.size, frozen(raw(probs)), bad)
    bad = bad[bad >= 0]
    stats[0] = bad[0] if bad.size else -1


def _compute(
    formula, x, target, weight=None, pos_weight=None, *, loss=None, grad_loss=None, grad=None,
    denominator, threads,
):  # fmt: skip
    """Loss and gradient, whichever are given."""
    n, dtype = x.size, compute_dtype(x)
    per_element = n != 1 and (loss if grad_loss is None else grad_loss).size == n
    grad_scale = 1.0 if grad_loss is None or per_element else float(grad_loss[0])
    each = Each(
        flat_in(weight, dtype),
        flat_in(pos_weight, dtype),
        flat_in(grad_loss if per_element else None, dtype),
        flat_out(loss if per_element else None, dtype),
    )
    options = Options(
        formula,
        grad_scale / denominator if n else 1.0,
        grad is not None and streams(grad, x, target),
        streams(each.loss),
    )
    to = nothing(x.dtype, True) if grad is None else raw(grad)
    sums = np.zeros(-(-n // BLOCK))
    run(threads, n, sums.size, frozen(raw(x)), frozen(raw(target)), to, each, options, sums)
    if loss is not None and loss.size and not per_element:
        put_reduced(sums, denominator, loss)


_PROBABILITIES = Formula(OF_PROBABILITIES)


def _logits(label_smoothing):
    return Formula(OF_LOGITS, 1.0 - label_smoothing, label_smoothing / 2.0)


def _focal(gamma, positive, negative):
    return Formula(FOCAL, 1.0, 0.0, float(gamma), float(positive), float(negative))


def binary_cross_entropy(probs, target, weight, loss, *, denominator, threads):
    _compute(_PROBABILITIES, probs, target, weight, loss=loss, denominator=denominator,
             threads=threads)  # fmt: skip


def binary_cross_entropy_backward(
    grad_loss, probs, target, weight, grad, *, denominator, threads
):  # fmt: skip
    _compute(_PROBABILITIES, probs, target, weight, grad_loss=grad_loss, grad=grad,
             denominator=denominator, threads=threads)  # fmt: skip


def binary_cross_entropy_with_grad(
    probs, target, weight, loss, grad, *, denominator, threads
):  # fmt: skip
    _compute(_PROBABILITIES, probs, target, weight, loss=loss, grad=grad,
             denominator=denominator, threads=threads)  # fmt: skip


def binary_cross_entropy_with_logits(
    logits, target, weight, pos_weight, loss, *, denominator, label_smoothing, threads
):  # fmt: skip
    _compute(_logits(label_smoothing), logits, target, weight, pos_weight, loss=loss,
             denominator=denominator, threads=threads)  # fmt: skip


def binary_cross_entropy_with_logits_backward(
    grad_loss, logits, target, weight, pos_weight, grad, *, denominator, label_smoothing, threads
):  # fmt: skip
    _compute(_logits(label_smoothing), logits, target, weight, pos_weight, grad_loss=grad_loss,
             grad=grad, denominator=denominator, threads=threads)  # fmt: skip


def binary_cross_entropy_with_logits_with_grad(
    logits, target, weight, pos_weight, loss, grad, *, denominator, label_smoothing, threads
):  # fmt: skip
    _compute(_logits(label_smoothing), logits, target, weight, pos_weight, loss=loss, grad=grad,
             denominator=denominator, threads=threads)  # fmt: skip


def sigmoid_focal_loss(
    logits, target, loss, *, denominator, gamma, positive, negative, threads
):  # fmt: skip
    _compute(_focal(gamma, positive, negative), logits, target, loss=loss,
             denominator=denominator, threads=threads)  # fmt: skip


def sigmoid_focal_loss_backward(
    grad_loss, logits, target, grad, *, denominator, gamma, positive, negative, threads
):  # fmt: skip
    _compute(_focal(gamma, positive, negative), logits, target, grad_loss=grad_loss, grad=grad,
             denominator=denominator, threads=threads)  # fmt: skip


def sigmoid_focal_loss_with_grad(
    logits, target, loss, grad, *, denominator, gamma, positive, negative, threads
):  # fmt: skip
    _compute(_focal(gamma, positive, negative), logits, target, loss=loss, grad=grad,
             denominator=denominator, threads=threads)  # fmt: skip
