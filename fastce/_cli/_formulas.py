"""The ops as NumPy users write them, in the dtype of the input, for `fastce bench`."""

import numpy as np


def logsumexp(x, axis=-1):
    row_max = x.max(axis, keepdims=True)
    return (np.log(np.exp(x - row_max).sum(axis, keepdims=True)) + row_max).squeeze(axis)


def softmax(x, axis=-1):
    exps = np.exp(x - x.max(axis, keepdims=True))
    return exps / exps.sum(axis, keepdims=True)


def log_softmax(x, axis=-1):
    x = x - x.max(axis, keepdims=True)
    return x - np.log(np.exp(x).sum(axis, keepdims=True))


def softmax_backward(grad, y):
    return y * (grad - (grad * y).sum(-1, keepdims=True))


def log_softmax_backward(grad, y):
    return grad - np.exp(y) * grad.sum(-1, keepdims=True)


def nll_loss(log_p, target):
    return -np.take_along_axis(log_p, target[:, None], 1).mean()


def cross_entropy(x, target):
    return nll_loss(log_softmax(x), target)


def cross_entropy_with_grad(x, target):
    log_p = log_softmax(x)
    grad = np.exp(log_p)
    grad[np.arange(len(x)), target] -= 1
    return nll_loss(log_p, target), grad / x.dtype.type(len(x))


def focal_loss(x, target):
    log_p = np.take_along_axis(log_softmax(x), target[:, None], 1)
    return -((1 - np.exp(log_p)) ** 2 * log_p).mean()


def binary_cross_entropy(p, target):
    return -(target * np.log(p) + (1 - target) * np.log1p(-p)).mean()


def binary_cross_entropy_with_logits(x, target):
    return (np.maximum(x, 0) - x * target + np.log1p(np.exp(-np.abs(x)))).mean()


def binary_cross_entropy_with_logits_with_grad(x, target):
    grad = (1 / (1 + np.exp(-x)) - target) / x.dtype.type(x.size)
    return binary_cross_entropy_with_logits(x, target), grad


def categorical_cross_entropy(p, target):
    p = np.clip(p / p.sum(-1, keepdims=True), 1e-7, 1 - 1e-7)
    return nll_loss(np.log(p), target)


def linear_cross_entropy(x, weight, target):
    return cross_entropy(x @ weight.T, target)


def linear_cross_entropy_with_grad(x, weight, target):
    loss, grad = cross_entropy_with_grad(x @ weight.T, target)
    return loss, grad @ weight, grad.T @ x


def scaled_dot_product_attention(q, k, v):
    return softmax(q @ np.swapaxes(k, -1, -2) / q.dtype.type(q.shape[-1] ** 0.5)) @ v


def entropy(p):
    total = p.sum(-1, keepdims=True)
    return -(p / total * np.log(p / total)).sum(-1)


def kl_divergence(p, q):
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    return (p * np.log(p / q)).sum(-1)
