"""Cross-entropy of a linear layer, whose logits are never there as a whole.

The products are NumPy's (its BLAS, on threads of its own), by blocks of rows and chunks of classes,
the loss and its gradient those of _softmax_loss, in place of the logits. Blocks and chunks depend
on the shapes alone. Rows that are ignored are left out from the start.
"""

from typing import NamedTuple

import numpy as np

from ._class_loss import put_reduced
from ._softmax_loss import softmax_loss
from ._storage import compute_dtype

BLOCK_MEMORY = 24 << 20  # bytes of logits: 64 MB with everything else
CHUNK_MEMORY = 8 << 20  # bytes of weights that are widened, or of their gradient


def _widen(a):
    """float16 and the bits of bfloat16 as float32; others as they are."""
    if a.dtype == np.uint16:
        return (a.astype(np.uint32) << 16).view(np.float32)
    return a.astype(np.float32) if a.dtype == np.float16 else a


def _narrow(values, out):
    """Round to nearest even."""
    if out.dtype != np.uint16:
        with np.errstate(over="ignore"):  # beyond the range of float16 is infinity
            out[...] = values
        return
    bits = values.view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    out[...] = np.where(np.isnan(values), (bits >> 16) | 0x40, rounded)


def _slices(count, size):
    for first in range(0, count, size):
        yield slice(first, min(count, first + size))


class Options(NamedTuple):
    denominator: float
    ignore_index: int
    label_smoothing: float
    z_loss: float
    softcap: float


class _Layer:
    """A linear layer and its loss: the rows that count, in the type that is computed in."""

    def __init__(self, input, linear_weight, linear_bias, target, options):
        self.kept = np.flatnonzero(target != options.ignore_index)
        self.input, self.labels = input, target[self.kept]
        self.weight, self.bias = linear_weight, linear_bias
        self.softcap = options.softcap
        self.dtype = compute_dtype(input)
        size = np.dtype(self.dtype).itemsize
        (classes, width), copies = linear_weight.shape, 2 if self.softcap else 1
        self.rows = max(1, BLOCK_MEMORY // (max(1, classes) * size * copies))
        self.chunk = max(1, CHUNK_MEMORY // (max(1, width) * size))
        # Reused by the logits of each block.
        self.workspace = np.empty(min(self.rows, self.kept.size) * classes, self.dtype)

    def blocks(self):
        return _slices(self.kept.size, self.rows)

    def chunks(self):
        return _slices(len(self.weight), self.chunk)

    def x(self, block):
        return _widen(self.input[self.kept[block]])

    def logits(self, x, classes=slice(None)):
        """Of some rows and classes, after softcap. They take the place of those before."""
        weight = self.weight[classes]
        z = self.workspace[: len(x) * len(weight)].reshape(len(x), len(weight))
        for chunk in _slices(len(weight), self.chunk):
            np.matmul(x, _widen(weight[chunk]).T, out=z[:, chunk])
        if self.bias is not None:
            z += _widen(self.bias[classes])
        if self.softcap:
            z /= self.softcap
            np.tanh(z, out=z)
            z *= self.softcap
        return z

    def through_softcap(self, dz, z):
        """The gradient for the logits before softcap, in place."""
        if self.softcap:
            z /= self.softcap
            dz *= (1 - z) * (1 + z)


def _rows_of(grad_loss, kept):
    """The grad_loss of some rows: one number for each, or one for all."""
    return None if grad_loss is None else grad_loss[kept] if grad_loss.size > 1 else grad_loss


def _compute(
    input, linear_weight, linear_bias, target, weight, options, threads, *, loss=None,
    grad_loss=None, grads=(None, None, None),
):  # fmt: skip
    """Loss and gradients, whichever are given."""
    layer = _Layer(input, linear_weight, linear_bias, target, options)
    d_input, d_weight, d_bias = grads
    per_row = loss is not None and loss.shape == target.shape
    state = np.empty(layer.kept.size, layer.dtype), np.empty(layer.kept.size, layer.dtype)
    losses = np.zeros(target.size if per_row else 1)
    if per_row:
        with np.errstate(invalid="ignore"):  # NaN for the mean over no row
            losses /= options.denominator
    for grad in grads:
        if grad is not None:
            grad[...] = 0  # also the bits of a half float
    for block in layer.blocks():
        kept, x = layer.kept[block], layer.x(block)
        z = layer.logits(x)
        dz = None if d_input is None else z.copy() if layer.softcap else z
        part = None if loss is None else np.empty((len(x) if per_row else 1, 1), layer.dtype)
        softmax_loss(
            z[:, :, None], layer.labels[block][:, None], weight, loss=part,
            grad_loss=_rows_of(grad_loss, kept), grad=None if dz is None else dz[:, :, None],
            denominator=options.denominator, ignore_index=-1,
            label_smoothing=options.label_smoothing, z_loss=options.z_loss,
            state=[a[block] for a in state], threads=threads,
        )  # fmt: skip
        if per_row:
            losses[kept] = part[:, 0]
        elif loss is not None:
            losses += part[0, 0]
        if dz is None:
            continue
        layer.through_softcap(dz, z)
        rounded = np.empty(x.shape, d_input.dtype)
        dx = np.zeros(x.shape, layer.dtype)
        for chunk in layer.chunks():
            dx += dz[:, chunk] @ _widen(linear_weight[chunk])
        _narrow(dx, rounded)
        d_input[kept] = rounded
        if input.dtype == layer.dtype:
            for chunk in layer.chunks():
                d_weight[chunk] += dz[:, chunk].T @ x
            if d_bias is not None:
                d_bias += dz.sum(axis=0)
    if loss is not None:
        if not (layer.kept.size or per_row):
            put_reduced(losses, options.denominator, losses)
        loss[...] = losses
    if d_input is not None and input.dtype != layer.dtype:
        _half_gradients(layer, weight, grad_loss, state, d_weight, d_bias, options)


def _half_gradients(layer, weight, grad_loss, state, d_weight, d_bias, options):
    """d_weight and d_bias of 16 bits, each chunk of them over all rows, summed in float32."""
    for chunk in layer.chunks():
        dw = np.zeros(d_weight[chunk].shape, np.float32)
        db = np.zeros(len(dw), np.float32)
        for block in layer.blocks():
            x = layer.x(block)
            z = layer.logits(x, chunk)
            dz = _gradient_from_state(layer, block, chunk, z, state, weight, grad_loss, options)
            layer.through_softcap(dz, z)
            dw += dz.T @ x
            db += dz.sum(axis=0)
        _narrow(dw, d_weight[chunk])
        if d_bias is not None:
            _narrow(db, d_bias[chunk])


def _gradient_from_state(layer, block, chunk, z, state, weight, grad_loss, options):
    """(p_factor * softmax(z) - q) * grad_loss / denominator for some rows and classes; in place of
    z, unless softcap still needs that.
    """
    smoothing, classes = options.label_smoothing, len(layer.weight)
    if weight is None:
        weight = np.ones(classes, np.float32)
    labels = layer.labels[block]
    row_max, sumexp_m1 = (a[block].astype(np.float64) for a in state)
    log_sum = np.log1p(sumexp_m1) + (row_max - row_max)  # NaN where the maximum is infinite
    target_weight = (1 - smoothing) * weight[labels]
    uniform_share = smoothing / max(1, classes) * weight
    p_factor = target_weight + uniform_share.sum(dtype=np.float64)
    p_factor += 2 * options.z_loss * (row_max + log_sum)
    inside = np.flatnonzero((labels >= chunk.start) & (labels < chunk.stop))
    at = inside, labels[inside] - chunk.start
    # p - 1 of the labels: nothing cancels where p is nearly 1
    p_m1 = np.expm1(z[at] - row_max[inside] - log_sum[inside])
    q = (target_weight + uniform_share[labels])[inside]
    dz = z.copy() if layer.softcap else z
    dz -= row_max[:, None].astype(np.float32)
    np.exp(dz, out=dz)
    dz *= (p_factor / (1 + sumexp_m1))[:, None].astype(np.float32)
    dz -= uniform_share[chunk].astype(np.float32)
    dz[at] = q * p_m1 + (p_factor[inside] - q) * (1 + p_m1)
    given = _rows_of(grad_loss, layer.kept[block])
    dz *= np.float32(1 if given is None else given[:, None]) / np.float32(options.denominator)
    return dz


def linear_cross_entropy(
    input, linear_weight, linear_bias, target, weight, loss, *, denominator, ignore_index,
    label_smoothing, z_loss, softcap, threads
):  # fmt: skip
    options = Options(denominator, ignore_index, label_smoothing, z_loss, softcap)
    _compute(input, linear_weight, linear_bias, target, weight, options, threads, loss=loss)


def linear_cross_entropy_backward(
    grad_loss, input, linear_weight, linear_bias, target, weight, d_input, d_linear_weight,
    d_linear_bias, *, denominator, ignore_index, label_smoothing, z_loss, softcap, threads
):  # fmt: skip
    options = Options(denominator, ignore_index, label_smoothing, z_loss, softcap)
    grads = d_input, d_linear_weight, d_linear_bias
    _compute(
        input, linear_weight, linear_bias, target, weight, options, threads, grad_loss=grad_loss,
        grads=grads,
    )  # fmt: skip


def linear_cross_entropy_with_grad(
    input, linear_weight, linear_bias, target, weight, loss, d_input, d_linear_weight,
    d_linear_bias, *, denominator, ignore_index, label_smoothing, z_loss, softcap, threads
):  # fmt: skip
    options = Options(denominator, ignore_index, label_smoothing, z_loss, softcap)
    grads = d_input, d_linear_weight, d_linear_bias
    _compute(
        input, linear_weight, linear_bias, target, weight, options, threads, loss=loss, grads=grads
    )
