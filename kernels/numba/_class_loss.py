"""What losses over classes share: the arguments of their compiled code, and reductions.

Compiled code gets an empty array for what is not given. The losses of each task are summed in
float64, and the sums added in order.
"""

import numpy as np
from numba.extending import register_jitable

from ._jit_options import INTERNAL, internal
from ._math import cast
from ._storage import compute_dtype, flat_in, flat_out, planes_in


def class_loss(
    x, target, weight, loss, grad_loss, *, denominator, ignore_index, label_smoothing
):  # fmt: skip
    """The planes of `x` and of a target of probabilities; arrays of the rows: labels, weight (in
    full where every class has a part), grad_loss and, unless it is reduced, loss; and options:
    ignore_index, denominator, target_scale, uniform_share, and whether every class has a part.
    """
    outer, n, inner = x.shape
    dtype = compute_dtype(x)
    labels, probabilities = target, None
    if target is not None and target.ndim == 3:
        labels, probabilities = None, target
    every_class = probabilities is not None or label_smoothing != 0
    if every_class and weight is None:
        weight = np.ones(n, dtype)
    per_row = loss is not None and loss.shape == (outer, inner)
    planes = planes_in(x), planes_in(probabilities, x.dtype)
    rows = (
        flat_in(labels, np.int64),
        flat_in(weight, dtype),
        flat_in(grad_loss, dtype),
        flat_out(loss if per_row else None, dtype),
    )
    uniform_share = label_smoothing / n if n else 0.0
    target_scale = 1.0 - label_smoothing
    options = int(ignore_index), float(denominator), target_scale, uniform_share, every_class
    return planes, rows, options


@register_jitable(**INTERNAL)
def in_order(sums):
    """Their sum, the same in NumPy and in compiled code."""
    return np.cumsum(sums)[-1] if sums.size else 0.0


def put_reduced(sums, denominator, loss):
    """Writes a reduced loss."""
    with np.errstate(invalid="ignore"):  # the mean over no row at all is NaN
        loss[...] = np.divide(in_order(sums), denominator)


@internal
def smoothing(like, options):
    """target_scale and uniform_share in the type of `like`."""
    return cast(like, options.target_scale), cast(like, options.uniform_share)


@internal
def grad_scale_of(rows, options, r):
    """What the gradient of row r is multiplied by."""
    given = rows.grad_loss
    scale = float(given[r if given.size > 1 else 0]) if given.size else 1.0
    return scale / options.denominator
