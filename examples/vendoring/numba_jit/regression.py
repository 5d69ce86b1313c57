"""Softmax regression on handwritten digits, trained wholly inside one compiled function.

python regression.py
"""

import numba
import numpy as np
from sklearn.datasets import load_digits

import fastce


@numba.njit
def train(images, labels, classes, steps, rate):
    """Gradient descent; the losses on the way, and the weights."""
    weights = np.zeros((images.shape[1], classes), images.dtype)
    losses = np.empty(steps)
    for step in range(steps):
        logits = images @ weights
        loss, grad = fastce.cross_entropy_with_grad(logits, labels)
        weights -= rate * (images.T @ grad)
        losses[step] = loss
    return weights, losses


@numba.njit
def surprise(images, labels, weights):
    """The mean of -log p of the right label."""
    log_p = fastce.log_softmax(images @ weights)
    total = 0.0
    for i in range(labels.size):
        total -= log_p[i, labels[i]]
    return total / labels.size


def load():
    data = load_digits()
    return (data.data / 16).astype(np.float32), data.target.astype(np.int64)


def main():
    images, labels = load()
    weights, losses = train(images[:1300], labels[:1300], 10, 300, np.float32(0.5))
    right = np.mean((images[1300:] @ weights).argmax(axis=1) == labels[1300:])
    print(f"loss: {losses[0]:.3f} before, {losses[-1]:.3f} after {losses.size} steps")
    print(f"surprise at new digits: {surprise(images[1300:], labels[1300:], weights):.3f}")
    print(f"accuracy on new digits: {right:.1%}")


if __name__ == "__main__":
    main()
