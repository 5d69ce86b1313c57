"""Cross-entropy of probabilities, with its gradient.

The formulas are in kernels/reference/categorical_cross_entropy.py. A row, or a column where the
class axis is not the last, is copied to scratch memory as floats, where it is summed, read for the
loss, and replaced by its gradient. Sums are made in float64, and p is compared with the bounds of
the clip times the sum in float64.
"""

import math
from typing import NamedTuple

import numpy as np

from ._class_loss import class_loss, grad_scale_of, put_reduced, smoothing
from ._compile import threaded
from ._jit_options import internal
from ._math import add_in_any_order, cast, constants, log, no_inline
from ._panels import rows_of_task, rows_per_task
from ._storage import compute_dtype, narrow, planes_out, scratch, widen

SUMMED = 1024  # elements added up in vectors: of 4500 on AVX2, a loss was 5.2 ULP off


class Rows(NamedTuple):
    """As those of _softmax_loss."""

    labels: np.ndarray
    weight: np.ndarray
    grad_loss: np.ndarray
    loss: np.ndarray


class Options(NamedTuple):
    ignore_index: int
    denominator: float
    target_scale: float
    uniform_share: float
    every_class: bool
    low: float  # the bounds of the clip, numbers of the compute dtype
    high: float


@internal
def row_in(a, r, inner, values):
    """Row r of planes, as floats."""
    no_inline()
    n, start = values.size, a.first + r // inner * a.step + r % inner
    if inner == 1:
        line = a.data[start : start + n]
        for i in range(n):
            values[i] = widen(line[i])
    else:
        place, step = np.uint64(start), np.uint64(inner)
        for i in range(n):
            values[i] = widen(a.data[place])
            place += step


@internal
def row_out(values, a, r, inner):
    no_inline()
    n, start = values.size, a.first + r // inner * a.step + r % inner
    if inner == 1:
        line = a.data[start : start + n]
        for i in range(n):
            line[i] = narrow(values[i], a.data)
    else:
        place, step = np.uint64(start), np.uint64(inner)
        for i in range(n):
            a.data[place] = narrow(values[i], a.data)
            place += step


@internal
def row_sum(x):
    """NaN where these are no probabilities."""
    no_inline()
    t = constants(x[0])
    total, negative = 0.0, t.zero
    for i in range(x.size):
        total = add_in_any_order(total, np.float64(x[i]))
        negative = add_in_any_order(negative, t.one if x[i] < t.zero else t.zero)
    return total if 0 < total < math.inf and negative == t.zero else math.nan


@internal
def target_sums(x, t, weight, options, low, high):
    """The loss of all classes, but for the log of the sum and the part of a class index; and the
    sum of q over those that are not clipped.
    """
    no_inline()
    target_scale, uniform_share = smoothing(x[0], options)
    low_log, high_log = cast(x[0], -np.log(options.low)), cast(x[0], -np.log(options.high))
    zero = constants(x[0]).zero
    loss, total_q = 0.0, 0.0
    for at in range(0, x.size, SUMMED):
        part_loss, part_q = 0.0, 0.0
        for i in range(at, min(at + SUMMED, x.size)):
            q = (uniform_share + target_scale * t[i]) * weight[i]
            p = np.float64(x[i])
            outside = low_log if p < low else high_log
            minus_log = -log(x[i]) if low <= p <= high else outside
            part_loss = add_in_any_order(
                part_loss, np.float64(zero if q == zero else q * minus_log)
            )
            part_q = add_in_any_order(part_q, np.float64(q if low <= p <= high else zero))
        loss += part_loss
        total_q += part_q
    return loss, total_q


@internal
def row_gradient(x, t, weight, options, low, high, everywhere, grad_scale):
    """everywhere - grad_scale * q / p, the latter where p is not clipped, in place of the row."""
    no_inline()
    target_scale, uniform_share = smoothing(x[0], options)
    everywhere, g, zero = cast(x[0], everywhere), cast(x[0], grad_scale), constants(x[0]).zero
    if not options.every_class:
        x[:] = everywhere
        return
    for i in range(x.size):
        q = (uniform_share + target_scale * t[i]) * weight[i]
        p = np.float64(x[i])
        less = g * q / x[i]
        x[i] = everywhere - (less if low <= p <= high and q != zero else zero)


@internal
def row_loss(x, t, rows, options, r, wants_grad):
    """Loss of row r, whose gradient takes the place of `x`, unless `wants_grad` is false."""
    label, weight, loss, total_q, inside = -1, 0.0, 0.0, 0.0, False
    if rows.labels.size:
        label = rows.labels[r]
        if label == options.ignore_index:
            if rows.loss.size:
                rows.loss[r] = 0 / options.denominator  # NaN for the mean over no row
            x[:] = 0
            return 0.0
        weight = float(rows.weight[label]) if rows.weight.size else 1.0
    total = row_sum(x) if x.size else math.nan
    low, high = options.low * total, options.high * total
    if options.low > 0 and low == 0:
        low = 5e-324  # the least float64: a probability of 0 is still below
    if options.every_class and x.size:
        loss, total_q = target_sums(x, t, rows.weight, options, low, high)
    picked = float(x[label]) if label >= 0 else 0.0
    if label >= 0:
        inside = low <= picked <= high
        if inside:
            total_q += options.target_scale * weight
        if weight != 0 and options.target_scale != 0:
            bound = options.low if picked < low else options.high
            loss -= options.target_scale * weight * np.log(picked if inside else bound)
    loss += total_q * np.log(total)
    if rows.loss.size:
        rows.loss[r] = loss / options.denominator
    if not wants_grad or not x.size:
        return loss

    grad_scale = grad_scale_of(rows, options, r)
    everywhere = grad_scale * (total_q / total)
    row_gradient(x, t, rows.weight, options, low, high, everywhere, grad_scale)
    if label >= 0:
        q = (options.target_scale + options.uniform_share) * weight
        x[label] = everywhere - (grad_scale * q / picked if inside and q != 0 else 0.0)
    return loss


@internal
def rows_task(x, target, grad, rows, options, outer, n, inner, sums, task):
    """Leaves the sum of the losses of some rows in `sums`."""
    values, target_prob = scratch(x.data, n), scratch(x.data, n)
    target_prob[:] = 0
    loss = 0.0
    for r in rows_of_task(outer * inner, n, task):
        if not rows.labels.size or rows.labels[r] != options.ignore_index:
            row_in(x, r, inner, values)
        if target.data.size:
            row_in(target, r, inner, target_prob)
        loss += row_loss(values, target_prob, rows, options, r, grad.data.size > 0)
        if grad.data.size:
            row_out(values, grad, r, inner)
    sums[task] = loss


run = threaded(rows_task)


def _compute(
    probs, target, weight, *, loss=None, grad_loss=None, grad=None, denominator, ignore_index,
    label_smoothing, epsilon, threads,
):  # fmt: skip
    """Loss and gradient, whichever are given."""
    outer, n, inner = probs.shape
    planes, rows, options = class_loss(
        probs, target, weight, loss, grad_loss, denominator=denominator,
        ignore_index=ignore_index, label_smoothing=label_smoothing,
    )  # fmt: skip
    low = compute_dtype(probs)(epsilon)
    rows, options = Rows(*rows), Options(*options, float(low), float(1 - low))
    planes = *planes, planes_out(grad, probs.dtype)
    sums = np.zeros(-(-outer * inner // rows_per_task(n)))
    run(threads, probs.size, sums.size, *planes, rows, options, outer, n, inner, sums)
    if loss is not None and not rows.loss.size:
        put_reduced(sums, denominator, loss)


def categorical_cross_entropy(
    probs, target, weight, loss, *, denominator, ignore_index, label_smoothing, epsilon, threads
):
    _compute(
        probs, target, weight, loss=loss, denominator=denominator, ignore_index=ignore_index,
        label_smoothing=label_smoothing, epsilon=epsilon, threads=threads,
    )  # fmt: skip


def categorical_cross_entropy_backward(
    grad_loss, probs, target, weight, grad, *, denominator, ignore_index, label_smoothing,
    epsilon, threads,
):  # fmt: skip
    _compute(
        probs, target, weight, grad_loss=grad_loss, grad=grad, denominator=denominator,
        ignore_index=ignore_index, label_smoothing=label_smoothing, epsilon=epsilon,
        threads=threads,
    )  # fmt: skip


def categorical_cross_entropy_with_grad(
    probs, target, weight, loss, grad, *, denominator, ignore_index, label_smoothing, epsilon,
    threads,
):  # fmt: skip
    _compute(
        probs, target, weight, loss=loss, grad=grad, denominator=denominator,
        ignore_index=ignore_index, label_smoothing=label_smoothing, epsilon=epsilon,
        threads=threads,
    )  # fmt: skip
