"""Calls of every op, each large enough for threads: for programs that tests run in processes."""

import ml_dtypes
import numpy as np

import fastce
from fastce import information

# Each goes another way through the kernels; the gradient of the first is streamed.
SHAPES = [((300, 4000), -1), ((2, 70_000), -1), ((8000, 10), -1), ((4, 100, 200), 1)]
DTYPES = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}


def _rows(op, dtype, x, axis):
    n = x.shape[axis]
    p = fastce.softmax(x.astype(np.float64), axis=axis).astype(dtype)
    labels = np.arange(x.size // n).reshape(p.sum(axis).shape) % n
    options = {"axis": axis}
    if op == "log_softmax":
        yield fastce.logsumexp(x, **options)
        yield fastce.softmax(x, **options)
        yield fastce.log_softmax(x, **options)
        yield fastce.softmax_backward(x, p, **options)
        yield fastce.log_softmax_backward(x, x, **options)
    elif op == "cross_entropy":
        for target in labels, p:
            yield fastce.cross_entropy(x, target, **options)
            yield fastce.cross_entropy_with_grad(x, target, **options)
        yield fastce.nll_loss(x, labels, **options)
        yield fastce.nll_loss_backward(1.0, x, labels, **options)
    elif op == "robust_losses":
        yield fastce.focal_loss_with_grad(x, labels, **options)
        yield fastce.confidence_penalty_with_grad(x, labels, **options)
    elif op == "categorical_cross_entropy":
        yield fastce.categorical_cross_entropy_with_grad(p, labels, **options)
        yield fastce.categorical_cross_entropy_with_grad(p, p, **options)
    elif op == "information":
        yield information.entropy(p, **options)
        yield information.js_divergence(p, p[::-1], **options)
        yield information.entropy_from_logits_with_grad(x, **options)
        yield information.kl_divergence_from_logits_with_grad(x, x[::-1], p_grad=True, **options)


def _elements(dtype, x):
    p = (x - x.min()) / (x.max() - x.min())
    p = p.astype(dtype)
    for reduction in "mean", "none":
        yield fastce.binary_cross_entropy_with_grad(p, p, reduction=reduction)
        yield fastce.binary_cross_entropy_with_logits_with_grad(x, p, reduction=reduction)
        yield fastce.sigmoid_focal_loss_with_grad(x, p, reduction=reduction)


def _attention(dtype, rng):
    for length, keys in (192, 192), (1, 2048):
        q, g = rng.standard_normal((2, 2, 4, length, 64)).astype(dtype)
        k, v = rng.standard_normal((2, 2, 4, keys, 64)).astype(dtype)
        for mask in None, rng.standard_normal((length, keys)).astype(dtype):
            out, lse = fastce.scaled_dot_product_attention(q, k, v, attn_mask=mask, return_lse=True)
            yield out, lse
            yield fastce.scaled_dot_product_attention_backward(g, q, k, v, out, lse, attn_mask=mask)


def _linear(dtype, rng):
    x, w = (rng.standard_normal((n, 64)).astype(dtype) for n in (256, 1000))
    yield fastce.linear_cross_entropy_with_grad(x, w, np.arange(256), linear_bias=w[:, 0])


def calls(op, dtype):
    """What the functions of one file of kernels give, one by one."""
    rng, dtype = np.random.default_rng(0), DTYPES[dtype]
    if op == "attention":
        yield from _attention(dtype, rng)
    elif op == "linear_cross_entropy":
        yield from _linear(dtype, rng)
    elif op == "binary_cross_entropy":
        yield from _elements(dtype, rng.standard_normal(1_200_000).astype(dtype))
    else:
        for shape, axis in SHAPES:
            yield from _rows(op, dtype, rng.standard_normal(shape).astype(dtype), axis)


def bits(op, dtype):
    """The bits of all of these."""
    results = [r if isinstance(r, tuple) else (r,) for r in calls(op, dtype)]
    return [np.asarray(a).tobytes() for result in results for a in result if a is not None]
