"""Binary cross-entropy, from logits and from probabilities, and the sigmoid focal loss, each with
its gradient, on NVIDIA GPUs.

The formulas are in kernels/reference/binary_cross_entropy.py. A thread works on a few groups of as
many neighbours as 16 bytes hold: read and written as one word where all arrays begin at a multiple
of 16 bytes, else one by one, in the same order. A block leaves the sum of its losses, in float64,
which `_loss.py` adds in a fixed order.

Probabilities are not checked (that needs the host): one out of range gives NaN. The target has the
dtype of the input, or is of float32 beside 16 bits, or of integers; the last two have kernels of
their own, which read it one by one.
"""

import math
from functools import cache
from typing import NamedTuple

import numpy as np
from numba import cuda

from . import _arrays, _device, _launch, _ptx
from ._loss import grad_loss_fields, grad_loss_of, number_fields, sum_losses
from ._math import device, math_of
from ._reduce import SCRATCH, reduce_of
from ._storage import load_label, load_number, storage_of

_THREADS = 256
_GROUPS = 4  # of each thread: 64 bytes of each array are under way
# The formulas, each with kernels of its own. The focal loss of a gamma of 0, 1 or 2 has no power.
OF_PROBABILITIES, OF_LOGITS, FOCAL, FOCAL_POWER = "probabilities", "logits", "focal", "power"
OWN, WIDE, LABELS = "own", "wide", "labels"  # the dtype of the target
INF = np.float64(np.inf)
_sum_f64, _max_f64 = reduce_of("float64").group_sum, reduce_of("float64").block_max


def scan_probabilities(probs, stats, *, threads):
    with _arrays.on_device((probs,), (stats,)) as (probs, stats):
        first, count = _scan_of(probs.dtype), probs.shape[0]
        _launch.over_rows(
            first, _scan_again, count, 1, probs, (probs.address,), (stats.address,)
        )  # fmt: skip


_PROBABILITIES = OF_PROBABILITIES, (1.0, 0.0, 0.0)


def _logits(label_smoothing):
    return OF_LOGITS, (1.0 - label_smoothing, label_smoothing / 2.0, 0.0)


def binary_cross_entropy(probs, target, weight, loss, *, denominator, threads):
    with _arrays.on_device((probs, target, weight), (loss,)) as (probs, target, weight, loss):
        _run(_PROBABILITIES, None, probs, target, weight, None, loss, None, denominator)


def binary_cross_entropy_backward(
    grad_loss, probs, target, weight, grad, *, denominator, threads
):  # fmt: skip
    with _arrays.on_device((grad_loss, probs, target, weight), (grad,)) as views:
        grad_loss, probs, target, weight, grad = views
        _run(_PROBABILITIES, grad_loss, probs, target, weight, None, None, grad, denominator)


def binary_cross_entropy_with_grad(
    probs, target, weight, loss, grad, *, denominator, threads
):  # fmt: skip
    with _arrays.on_device((probs, target, weight), (loss, grad)) as views:
        probs, target, weight, loss, grad = views
        _run(_PROBABILITIES, None, probs, target, weight, None, loss, grad, denominator)


def binary_cross_entropy_with_logits(
    logits, target, weight, pos_weight, loss, *, denominator, label_smoothing, threads
):  # fmt: skip
    with _arrays.on_device((logits, target, weight, pos_weight), (loss,)) as views:
        logits, target, weight, pos_weight, loss = views
        formula = _logits(label_smoothing)
        _run(formula, None, logits, target, weight, pos_weight, loss, None, denominator)


def binary_cross_entropy_with_logits_backward(
    grad_loss, logits, target, weight, pos_weight, grad, *, denominator, label_smoothing, threads
):  # fmt: skip
    with _arrays.on_device((grad_loss, logits, target, weight, pos_weight), (grad,)) as views:
        grad_loss, logits, target, weight, pos_weight, grad = views
        formula = _logits(label_smoothing)
        _run(formula, grad_loss, logits, target, weight, pos_weight, None, grad, denominator)


def binary_cross_entropy_with_logits_with_grad(
    logits, target, weight, pos_weight, loss, grad, *, denominator, label_smoothing, threads
):  # fmt: skip
    with _arrays.on_device((logits, target, weight, pos_weight), (loss, grad)) as views:
        logits, target, weight, pos_weight, loss, grad = views
        formula = _logits(label_smoothing)
        _run(formula, None, logits, target, weight, pos_weight, loss, grad, denominator)


def _focal(gamma, positive, negative):
    form = FOCAL if gamma in (0, 1, 2) else FOCAL_POWER
    return form, (float(positive), float(negative), float(gamma))


def sigmoid_focal_loss(
    logits, target, loss, *, denominator, gamma, positive, negative, threads
):  # fmt: skip
    formula = _focal(gamma, positive, negative)
    with _arrays.on_device((logits, target), (loss,)) as (logits, target, loss):
        _run(formula, None, logits, target, None, None, loss, None, denominator)


def sigmoid_focal_loss_backward(
    grad_loss, logits, target, grad, *, denominator, gamma, positive, negative, threads
):  # fmt: skip
    formula = _focal(gamma, positive, negative)
    with _arrays.on_device((grad_loss, logits, target), (grad,)) as views:
        grad_loss, logits, target, grad = views
        _run(formula, grad_loss, logits, target, None, None, None, grad, denominator)


def sigmoid_focal_loss_with_grad(
    logits, target, loss, grad, *, denominator, gamma, positive, negative, threads
):  # fmt: skip
    formula = _focal(gamma, positive, negative)
    with _arrays.on_device((logits, target), (loss, grad)) as views:
        logits, target, loss, grad = views
        _run(formula, None, logits, target, None, None, loss, grad, denominator)


class Options(NamedTuple):
    """What the kernel takes beside the arrays. Addresses are 0 for what is not there; `*_code` are
    the dtypes of small arrays (`_storage.py`).
    """

    words: int  # whether all arrays begin at a multiple of 16 bytes
    label_code: int
    weight: int
    weight_code: int
    weight_period: int
    pos_weight: int
    pos_weight_code: int
    pos_weight_period: int
    grad_loss: int
    grad_loss_code: int
    grad_loss_step: int
    grad_loss_number: float  # in place of an array
    denominator: float
    a: float  # numbers of the formula, see `_element_of`
    b: float
    gamma: float
    loss: int  # a loss for each element
    sums: int  # or sums of losses, one for each block


def _weight_fields(view):
    return (0, 0, 0) if view is None else (*number_fields(view), view.shape[0])


def _run(formula, grad_loss, x, target, weight, pos_weight, loss, grad, denominator):
    """Compute on all elements, and sum their losses where `loss` is one number."""
    n, (form, numbers) = x.shape[0], formula
    denominator = float(denominator)
    is_summed = loss is not None and loss.shape == (1,)
    kind = OWN if target.dtype == x.dtype else WIDE if target.dtype == "float32" else LABELS
    arrays = x.address, target.address, 0 if grad is None else grad.address
    words = not any(a % 16 for a in (arrays if kind == OWN else arrays[::2]))
    each = _THREADS * _GROUPS * _neighbours_of(x.dtype, form)
    blocks, sums = -(-n // each), 0
    if is_summed:
        buffer = _device.allocate(8 * blocks, x.stream, x.device)
        sums = _device.address(buffer)
    options = Options(
        int(words),
        target.code if kind == LABELS else 0,
        *_weight_fields(weight),
        *_weight_fields(pos_weight),
        *grad_loss_fields(grad_loss),
        denominator,
        *numbers,
        0 if loss is None or is_summed else loss.address,
        sums,
    )
    if blocks:
        kernel = kernel_of(x.dtype, form, kind, grad is not None)
        arguments = *arrays, n, options
        _device.launch(kernel, blocks, _THREADS, SCRATCH, x.stream, x.device, arguments)
    if is_summed:
        sum_losses(sums, blocks, loss, denominator, 0, x)


# ---- one element -----------------------------------------------------------------------------


@cache
def _element_of(name, form):
    """A device function (x, t, w, v, a, b, gamma): the loss, and its derivative. Label smoothing
    makes a * t + b of a target t; the focal loss has the weights a and b of targets 1 and 0.
    """
    storage = storage_of(name)
    real, maximum = storage.real, storage.maximum
    functions = math_of(real, half=False)  # losses of 16 bits are float32, too
    exp_below, power_of = functions.exp_below, functions.power
    zero, one, two, nan = real(0), real(1), real(2), real(np.nan)
    floor, least = real(-100), real(1e-12)

    @device
    def of_logit(x, t, w, v, target_scale, uniform_share, gamma):
        a = w * v * (target_scale * t + uniform_share)
        b = w * (target_scale * (one - t) + uniform_share)
        size = abs(x)
        e = exp_below(-size, zero)
        c, other = (a, b) if x < zero else (b, a)
        slope = (c - other * e) / (one + e)
        # 0 * inf is 0 here; NaN is still in e.
        far = zero if c == zero else c * size
        return (a + b) * math.log1p(e) + far, -slope if x < zero else slope

    @device
    def of_probability(p, t, w, v, target_scale, uniform_share, gamma):
        # The two bounds are PyTorch's.
        log_p, log_q = maximum(floor, math.log(p)), maximum(floor, math.log1p(-p))
        slope = (p - t) / maximum(least, p * (one - p))
        if p < zero or p > one:
            slope = nan
        return w * (t * -log_p + (one - t) * -log_q), w * slope

    @device
    def focal(x, t, w, v, positive, negative, gamma):
        size = abs(x)
        e = exp_below(-size, zero)
        c, other = (t, one - t) if x < zero else (one - t, t)
        wrong, inverse, near = cuda.fma(other, e, c), one / (one + e), math.log1p(e)
        power = wrong * inverse
        if form == FOCAL_POWER:
            power = power_of(power, gamma)
        elif gamma == two:
            power *= power
        elif gamma == zero:
            power = one
        factor = cuda.fma(positive, t, negative * (one - t)) * power
        slope = cuda.fma(-other, e, c)
        if e != zero:  # else this term is 0; the loss may be infinite and `wrong` 0
            slope += gamma * cuda.fma(c, size, near) * ((c - other) * (e / wrong))
        slope = factor * (slope * inverse)
        far = c * factor
        far = zero if far == zero else far * size
        return cuda.fma(factor, near, far), -slope if x < zero else slope

    return {OF_PROBABILITIES: of_probability, OF_LOGITS: of_logit}.get(form, focal)


def _neighbours_of(name, form):
    """How many neighbours a thread works on at once."""
    # The code of a power is so long that NVVM does not unroll the loop around it, and so would keep
    # the array in local memory.
    return 1 if form == FOCAL_POWER else storage_of(name).per_word


@cache
def kernel_of(name, form, of, grads):
    """The kernel for a dtype and a kind of target, with gradient or without."""
    own, labels = of == OWN, of == LABELS
    target_storage = storage_of("float32") if of == WIDE else storage_of(name)
    load_target, target_size = target_storage.load, target_storage.size
    storage, element = storage_of(name), _element_of(name, form)
    size, kind, real = storage.size, storage.type, storage.real
    neighbours, words = _neighbours_of(name, form), form != FOCAL_POWER
    load, unpack = storage.load, storage.unpack
    store, store_word = storage.store, storage.store_word
    put_number, number = storage.put_number, storage.real_size
    one = real(1)

    @device
    def target_of(t, i, options):
        if labels:
            return real(load_label(t, i, options.label_code))
        return load_target(t + i * target_size)

    @device
    def weight_of(options, i):
        if options.weight == 0:
            return one
        return real(load_number(options.weight, i % options.weight_period, options.weight_code))

    @device
    def pos_weight_of(options, i):
        if options.pos_weight == 0:
            return one
        at = i % options.pos_weight_period
        return real(load_number(options.pos_weight, at, options.pos_weight_code))

    @cuda.jit
    def kernel(x, t, grad, n, options: Options):
        values, targets = cuda.local.array(neighbours, kind), cuda.local.array(neighbours, kind)
        numbers = real(options.a), real(options.b), real(options.gamma)
        total = np.float64(0)
        group = np.int64(cuda.blockIdx.x) * (_THREADS * _GROUPS) + cuda.threadIdx.x
        for _ in range(_GROUPS):
            first = group * neighbours
            group += _THREADS
            here = min(n - first, neighbours)
            word = words and options.words != 0 and here == neighbours
            if word:
                unpack(_ptx.load_word(x + first * size), values)
                if own:
                    unpack(_ptx.load_word(t + first * size), targets)
            for j in range(neighbours):
                if j < here:
                    i = first + j
                    value = values[j] if word else load(x + i * size)
                    target = targets[j] if word and own else target_of(t, i, options)
                    w, v = weight_of(options, i), pos_weight_of(options, i)
                    loss, slope = element(value, target, w, v, *numbers)
                    total += loss
                    if options.loss != 0:
                        put_number(options.loss + i * number, loss)
                    if grads:
                        grad_scale = grad_loss_of(options, i) / options.denominator
                        values[j] = slope * real(grad_scale)
                        if not word:
                            store(grad + i * size, values[j])
            if grads and word:
                store_word(grad + first * size, values)
        if options.sums != 0:
            total = _sum_f64(total, np.int64(cuda.blockDim.x))
            if cuda.threadIdx.x == 0:
                _ptx.store_f64(options.sums + 8 * cuda.blockIdx.x, total)

    return kernel


# ---- the check -------------------------------------------------------------------------------


@cache
def _scan_of(name):
    storage = storage_of(name)
    size, load, zero, one = storage.size, storage.load, storage.real(0), storage.real(1)

    @cuda.jit
    def scan(probs, count, each, out, stats):
        """The first number below 0 or above 1."""
        begin = np.int64(cuda.blockIdx.x) * each
        end = min(begin + each, count)
        first = -INF  # minus the element's number: the first element has the largest
        i = begin + cuda.threadIdx.x
        while i < end:
            value = load(probs + i * size)
            if value < zero or value > one:
                first = max(first, -np.float64(i))
            i += cuda.blockDim.x
        _write_first(first, out, stats)

    return scan


@cuda.jit
def _scan_again(found, count, each, out, stats):
    """The first, of the results of blocks."""
    first = -INF
    i = np.int64(cuda.threadIdx.x)
    while i < count:
        first = max(first, _ptx.load_f64(found + 8 * i))
        i += cuda.blockDim.x
    _write_first(first, out, stats)


@device
def _write_first(first, out, stats):
    first = _max_f64(first)
    if cuda.threadIdx.x == 0:
        if out != 0:
            _ptx.store_f64(out + 8 * cuda.blockIdx.x, first)
        else:
            _ptx.store_f64(stats, np.float64(-1) if first == -INF else -first)
