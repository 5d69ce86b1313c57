"""Cross-entropy of probabilities, with its gradient.

The formulas are in kernels/reference/categorical_cross_entropy.py. A row, or a column where the
class axis is not the last, is copied to scratch memory as floats, where it is summed, read for the
loss, and replaced by its gradient. Sums are made in float64, and p is compared with the bounds of
the clip times the sum in float64.

The losses of fixed tasks are summed in float64 and added in order. What is not given is an empty
array.
"""

import math
from typing import NamedTuple

import numpy as np

from ._compile import threaded
from ._math import add_in_any_order, apart, cast, constants, log
from ._panels import rows_per_task
from ._parts import inner
from ._storage import frozen, narrow, no_planes, planes_in, planes_out, scratch, widen
from .cross_entropy import in_order

SUMMED = 1024  # elements added up in vectors: of 4500 on AVX2, a loss was 5.2 ULP off


class Rows(NamedTuple):
    """Arrays with one element for each row, and the weights, one for each class."""

    labels: np.ndarray  # empty for a target of probabilities
    weight: np.ndarray  # empty for ones, but in full where every class is wanted
    upstream: np.ndarray  # empty for 1; of one element, or one for each row
    loss: np.ndarray  # empty where the loss is reduced


class Options(NamedTuple):
    ignore_index: int
    denominator: float
    hard: float  # 1 - label_smoothing: of the target
    soft: float  # label_smoothing / n: of every class
    every_class: bool  # whether q is not 0 everywhere but at the target class
    low: float  # the bounds of the clip, numbers of the compute dtype
    high: float


@inner
def row_in(a, r, inner, values):
    """Row r of planes, as floats."""
    apart()
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


@inner
def row_out(values, a, r, inner):
    apart()
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


@inner
def row_sum(x):
    """NaN where these are no probabilities."""
    apart()
    t = constants(x[0])
    total, negative = 0.0, t.zero
    for i in range(x.size):
        total = add_in_any_order(total, np.float64(x[i]))
        negative = add_in_any_order(negative, t.one if x[i] < t.zero else t.zero)
    return total if 0 < total < math.inf and negative == t.zero else math.nan


@inner
def row_cost(x, t, weight, options, low, high):
    """What all classes cost, but for the log of the sum and the part of a class index; and the sum
    of q over those that are not clipped.
    """
    apart()
    hard, soft = cast(x[0], options.hard), cast(x[0], options.soft)
    low_cost, high_cost = cast(x[0], -np.log(options.low)), cast(x[0], -np.log(options.high))
    zero = constants(x[0]).zero
    loss, pull = 0.0, 0.0
    for at in range(0, x.size, SUMMED):
        part_loss, part_pull = 0.0, 0.0
        for i in range(at, min(at + SUMMED, x.size)):
            q = (soft + hard * t[i]) * weight[i]
            p = np.float64(x[i])
            outside = low_cost if p < low else high_cost
            cost = -log(x[i]) if low <= p <= high else outside
            part_loss = add_in_any_order(part_loss, np.float64(zero if q == zero else q * cost))
            part_pull = add_in_any_order(part_pull, np.float64(q if low <= p <= high else zero))
        loss += part_loss
        pull += part_pull
    return loss, pull


@inner
def row_gradient(x, t, weight, options, low, high, slope, upstream):
    """slope - upstream * q / p, the latter where p is not clipped, in place of the row."""
    apart()
    hard, soft = cast(x[0], options.hard), cast(x[0], options.soft)
    everywhere, g, zero = cast(x[0], slope), cast(x[0], upstream), constants(x[0]).zero
    if not options.every_class:
        x[:] = everywhere
        return
    for i in range(x.size):
        q = (soft + hard * t[i]) * weight[i]
        p = np.float64(x[i])
        less = g * q / x[i]
        x[i] = everywhere - (less if low <= p <= high and q != zero else zero)


@inner
def row_loss(x, t, rows, options, r, wants_grad):
    """Loss of row r, whose gradient takes the place of `x` if it is wanted."""
    label, weight, loss, pull, inside = -1, 0.0, 0.0, 0.0, False
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
        loss, pull = row_cost(x, t, rows.weight, options, low, high)
    picked = float(x[label]) if label >= 0 else 0.0
    if label >= 0:
        inside = low <= picked <= high
        if inside:
            pull += options.hard * weight
        if weight != 0 and options.hard != 0:
            bound = options.low if picked < low else options.high
            loss -= options.hard * weight * np.log(picked if inside else bound)
    loss += pull * np.log(total)
    if rows.loss.size:
        rows.loss[r] = loss / options.denominator
    if not wants_grad or not x.size:
        return loss

    upstream = 1.0
    if rows.upstream.size:
        upstream = float(rows.upstream[r if rows.upstream.size > 1 else 0])
    upstream /= options.denominator
    slope = upstream * (pull / total)
    row_gradient(x, t, rows.weight, options, low, high, slope, upstream)
    if label >= 0:
        q = (options.hard + options.soft) * weight
        x[label] = slope - (upstream * q / picked if inside and q != 0 else 0.0)
    return loss


@inner
def rows_task(x, target, grad, rows, options, outer, n, inner, sums, task):
    """Leaves the sum of the losses of some rows in `sums`."""
    values, wanted = scratch(x.data, n), scratch(x.data, n)
    wanted[:] = 0
    loss = 0.0
    for r in range(task * rows_per_task(n), min(outer * inner, (task + 1) * rows_per_task(n))):
        if not rows.labels.size or rows.labels[r] != options.ignore_index:
            row_in(x, r, inner, values)
        if target.data.size:
            row_in(target, r, inner, wanted)
        loss += row_loss(values, wanted, rows, options, r, grad.data.size > 0)
        if grad.data.size:
            row_out(values, grad, r, inner)
    sums[task] = loss


run = threaded(rows_task)


def _compute(
    probs, target, weight, loss, upstream, grad, *, denominator, ignore_index, label_smoothing,
    epsilon, threads,
):  # fmt: skip
    """Loss and gradient, whichever are not None."""
    outer, n, inner = probs.shape
    wide = np.float64 if probs.dtype == np.float64 else np.float32
    probabilities = target.ndim == 3
    every_class = probabilities or label_smoothing != 0
    if every_class and weight is None:
        weight = np.ones(n, wide)
    per_row = loss is not None and loss.shape == (outer, inner)
    none_in = frozen(np.empty(0, wide))
    rows = Rows(
        frozen(np.empty(0, np.int64) if probabilities else target.reshape(-1)),
        none_in if weight is None else frozen(weight),
        none_in if upstream is None else frozen(upstream.reshape(-1)),
        loss.reshape(-1) if per_row else np.empty(0, wide),
    )
    options = Options(
        int(ignore_index),
        float(denominator),
        1.0 - label_smoothing,
        label_smoothing / n if n else 0.0,
        every_class,
        float(wide(epsilon)),
        float(1 - wide(epsilon)),
    )
    planes = (
        planes_in(probs),
        planes_in(target) if probabilities else no_planes(probs.dtype),
        no_planes(probs.dtype, True) if grad is None else planes_out(grad),
    )
    sums = np.zeros(-(-outer * inner // rows_per_task(n)))
    run(threads, probs.size, sums.size, *planes, rows, options, outer, n, inner, sums)
    if loss is not None and not per_row:
        with np.errstate(invalid="ignore"):  # the mean over no row at all is NaN
            loss[0, 0] = np.divide(in_order(sums), denominator)


def categorical_cross_entropy(
    probs, target, weight, loss, *, denominator, ignore_index, label_smoothing, epsilon, threads
):
    _compute(
        probs, target, weight, loss, None, None, denominator=denominator,
        ignore_index=ignore_index, label_smoothing=label_smoothing, epsilon=epsilon,
        threads=threads,
    )  # fmt: skip


def categorical_cross_entropy_backward(
    grad_loss, probs, target, weight, grad, *, denominator, ignore_index, label_smoothing,
    epsilon, threads,
):  # fmt: skip
    _compute(
        probs, target, weight, None, grad_loss, grad, denominator=denominator,
        ignore_index=ignore_index, label_smoothing=label_smoothing, epsilon=epsilon,
        threads=threads,
    )  # fmt: skip


def categorical_cross_entropy_with_grad(
    probs, target, weight, loss, grad, *, denominator, ignore_index, label_smoothing, epsilon,
    threads,
):  # fmt: skip
    _compute(
        probs, target, weight, loss, None, grad, denominator=denominator,
        ignore_index=ignore_index, label_smoothing=label_smoothing, epsilon=epsilon,
        threads=threads,
    )  # fmt: skip
