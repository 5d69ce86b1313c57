"""The temperature at which a classifier is as sure as it is right."""

import math

import numpy as np

from . import numerics

assert numerics.CONTRACT == 2  # what this package is written for
softmax = numerics.load("log_softmax", "softmax")
cross_entropy_with_grad = numerics.load("cross_entropy", "cross_entropy_with_grad")
THREADS = 4


def loss(logits, labels, temperature):
    """The mean cross-entropy of logits / temperature, and its derivative for log(temperature)."""
    scaled = canonical(logits / temperature)
    labels = np.ascontiguousarray(labels, np.int64)[:, None]
    if labels.min() < 0 or labels.max() >= scaled.shape[1]:  # the kernel would write elsewhere
        raise IndexError(f"labels from {labels.min()} to {labels.max()}")
    mean, grad = np.empty((1, 1), np.float32), np.empty_like(scaled)
    cross_entropy_with_grad(
        scaled, labels, None, mean, grad, denominator=float(len(labels)), ignore_index=-100,
        label_smoothing=0.0, z_loss=0.0, threads=THREADS,
    )  # fmt: skip
    return mean.item(), -np.vdot(grad, scaled).item()


def best_temperature(logits, labels):
    low, high = math.log(0.01), math.log(100)
    for _ in range(30):
        middle = (low + high) / 2
        _, slope = loss(logits, labels, math.exp(middle))
        low, high = (low, middle) if slope > 0 else (middle, high)
    return math.exp(low)


def probabilities(logits, temperature):
    scaled = canonical(logits / temperature)
    softmax(scaled, scaled, threads=THREADS)
    return scaled[:, :, 0]


def canonical(logits):
    """(rows, classes, 1), each row contiguous: the form that the kernels take."""
    return np.ascontiguousarray(logits, np.float32)[:, :, None]
