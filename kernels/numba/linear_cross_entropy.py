"""Cross-entropy of a linear layer, whose logits are never there as a whole.

The products are NumPy's (its BLAS, on threads of its own), by blocks of rows and chunks of classes,
the loss and its gradient those of cross_entropy.py, in place of the logits. Blocks and chunks
depend on the shapes alone. Rows that are ignored are left out from the start.
"""

import numpy as np

from .cross_entropy import _compute

BLOCK_MEMORY = 24 << 20  # bytes of logits: with the rest, 64 MB
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


class _Layer:
    """A linear layer and its loss: the rows that count, in the type that is computed in."""

    def __init__(self, input, linear_weight, linear_bias, target, options):
        self.kept = np.flatnonzero(target != options["ignore_index"])
        self.input, self.labels = input, target[self.kept]
        self.weight, self.bias = linear_weight, linear_bias
        self.softcap = options["softcap"]
        self.wide = np.float64 if input.dtype == np.float64 else np.float32
        size = np.dtype(self.wide).itemsize
        (classes, width), copies = linear_weight.shape, 2 if self.softcap else 1
        self.rows = max(1, BLOCK_MEMORY // (max(1, classes) * size * copies))
        self.chunk = max(1, CHUNK_MEMORY // (max(1, width) * size))
        # Of the logits of one block after the other.
        self.room = np.empty(min(self.rows, self.kept.size) * classes, self.wide)

    def blocks(self):
        return _slices(self.kept.size, self.rows)

    def chunks(self):
        return _slices(len(self.weight), self.chunk)

    def x(self, block):
        return _widen(self.input[self.kept[block]])

    def logits(self, x, classes=slice(None)):
        """Of some rows and classes, after softcap. They take the place of those before."""
        weight = self.weight[classes]
        z = self.room[: len(x) * len(weight)].reshape(len(x), len(weight))
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


def _upstream(upstream, kept):
    """The upstream gradient of some rows, one number for each or one for all."""
    return None if upstream is None else upstream[kept] if upstream.size > 1 else upstream


def _run(input, linear_weight, linear_bias, target, weight, loss, upstream, grads, options):
    """Loss and gradients, whichever are not None."""
    layer = _Layer(input, linear_weight, linear_bias, target, options)
    d_input, d_weight, d_bias = grads
    per_row = loss is not None and loss.shape == target.shape
    of_loss = {k: v for k, v in options.items() if k not in ("softcap", "ignore_index")}
    state = np.empty(layer.kept.size, layer.wide), np.empty(layer.kept.size, layer.wide)
    losses = np.zeros(target.size if per_row else 1)
    if per_row:
        losses /= options["denominator"]  # NaN for the mean over no row
    if d_input is not None:
        for grad in grads:
            if grad is not None:
                grad[...] = 0  # also the bits of a half float
    for block in layer.blocks():
        kept, x = layer.kept[block], layer.x(block)
        z = layer.logits(x)
        dz = None if d_input is None else z.copy() if layer.softcap else z
        found = np.empty((len(x) if per_row else 1, 1), layer.wide)
        slope = _upstream(upstream, kept)
        _compute(
            z[:, :, None], layer.labels[block][:, None], weight, None if loss is None else found,
            None, None if slope is None else slope[:, None],
            None if dz is None else dz[:, :, None], ignore_index=-1,
            state=tuple(a[block] for a in state), **of_loss,
        )  # fmt: skip
        if per_row:
            losses[kept] = found[:, 0]
        elif loss is not None:
            losses += found[0, 0]
        if dz is None:
            continue
        layer.through_softcap(dz, z)
        rounded = np.empty(x.shape, d_input.dtype)
        dx = np.zeros(x.shape, layer.wide)
        for chunk in layer.chunks():
            dx += dz[:, chunk] @ _widen(linear_weight[chunk])
        _narrow(dx, rounded)
        d_input[kept] = rounded
        if input.dtype == layer.wide:
            for chunk in layer.chunks():
                d_weight[chunk] += dz[:, chunk].T @ x
            if d_bias is not None:
                d_bias += dz.sum(axis=0)
    if loss is not None:
        if not (layer.kept.size or per_row):
            losses /= options["denominator"]
        loss[...] = losses
    if d_input is not None and input.dtype != layer.wide:
        _halves(layer, weight, upstream, state, d_weight, d_bias, options)


def _halves(layer, weight, upstream, state, d_weight, d_bias, options):
    """d_weight and d_bias of 16 bits, each chunk of them over all rows, summed in float32."""
    for chunk in layer.chunks():
        dw = np.zeros(d_weight[chunk].shape, np.float32)
        db = np.zeros(len(dw), np.float32)
        for block in layer.blocks():
            x = layer.x(block)
            z = layer.logits(x, chunk)
            dz = _gradient_from_state(layer, block, chunk, z, state, weight, upstream, options)
            layer.through_softcap(dz, z)
            dw += dz.T @ x
            db += dz.sum(axis=0)
        _narrow(dw, d_weight[chunk])
        if d_bias is not None:
            _narrow(db, d_bias[chunk])


def _gradient_from_state(layer, block, chunk, z, state, weight, upstream, options):
    """(pull * softmax(z) - q) * upstream / denominator for some rows and classes; in place of z,
    unless softcap still needs that.
    """
    smoothing, classes = options["label_smoothing"], len(layer.weight)
    if weight is None:
        weight = np.ones(classes, np.float32)
    labels, (top, rest) = layer.labels[block], (a[block].astype(np.float64) for a in state)
    log_sum = np.log1p(rest) + (top - top)  # NaN where the maximum is infinite
    hard = (1 - smoothing) * weight[labels]
    soft = smoothing / max(1, classes) * weight
    pull = hard + soft.sum(dtype=np.float64) + 2 * options["z_loss"] * (top + log_sum)
    inside = np.flatnonzero((labels >= chunk.start) & (labels < chunk.stop))
    at = inside, labels[inside] - chunk.start
    # p - 1 of the labels: nothing cancels where p is nearly 1
    below, wanted = np.expm1(z[at] - top[inside] - log_sum[inside]), (hard + soft[labels])[inside]
    dz = z.copy() if layer.softcap else z
    dz -= top[:, None].astype(np.float32)
    np.exp(dz, out=dz)
    dz *= (pull / (1 + rest))[:, None].astype(np.float32)
    dz -= soft[chunk].astype(np.float32)
    dz[at] = wanted * below + (pull[inside] - wanted) * (1 + below)
    slope = _upstream(upstream, layer.kept[block])
    dz *= np.float32(1 if slope is None else slope[:, None]) / np.float32(options["denominator"])
    return dz


def linear_cross_entropy(
    input, linear_weight, linear_bias, target, weight, loss, *, denominator, ignore_index,
    label_smoothing, z_loss, softcap, threads
):  # fmt: skip
    options = _options(denominator, ignore_index, label_smoothing, z_loss, softcap, threads)
    grads = None, None, None
    with np.errstate(invalid="ignore"):  # the mean over no row at all is NaN
        _run(input, linear_weight, linear_bias, target, weight, loss, None, grads, options)


def linear_cross_entropy_backward(
    grad_loss, input, linear_weight, linear_bias, target, weight, d_input, d_linear_weight,
    d_linear_bias, *, denominator, ignore_index, label_smoothing, z_loss, softcap, threads
):  # fmt: skip
    options = _options(denominator, ignore_index, label_smoothing, z_loss, softcap, threads)
    grads = d_input, d_linear_weight, d_linear_bias
    _run(input, linear_weight, linear_bias, target, weight, None, grad_loss, grads, options)


def linear_cross_entropy_with_grad(
    input, linear_weight, linear_bias, target, weight, loss, d_input, d_linear_weight,
    d_linear_bias, *, denominator, ignore_index, label_smoothing, z_loss, softcap, threads
):  # fmt: skip
    options = _options(denominator, ignore_index, label_smoothing, z_loss, softcap, threads)
    grads = d_input, d_linear_weight, d_linear_bias
    with np.errstate(invalid="ignore"):
        _run(input, linear_weight, linear_bias, target, weight, loss, None, grads, options)


def _options(denominator, ignore_index, label_smoothing, z_loss, softcap, threads):
    return {
        "denominator": denominator,
        "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
        "z_loss": z_loss,
        "softcap": softcap,
        "threads": threads,
    }
