"""A mixture of round Gaussians, fitted to handwritten digits by expectation-maximisation.

    python mixture.py

The loop over the images runs on all threads; each iteration calls the row functions.
"""

import math

import numba
import numpy as np
from sklearn.datasets import load_digits

from fastce.kernels.numba import row_logsumexp, row_softmax


@numba.njit(parallel=True)
def responsibilities(x, means, variances, shares):
    """The probability of each component for each row of x, and its log-likelihood."""
    result = np.empty((len(x), len(means)), x.dtype)
    likelihood = np.empty(len(x), x.dtype)
    for i in numba.prange(len(x)):
        scores = np.empty(len(means), x.dtype)
        for k in range(len(means)):
            distance = np.sum((x[i] - means[k]) ** 2)
            scores[k] = math.log(shares[k]) - distance / (2 * variances[k])
            scores[k] -= x.shape[1] / 2 * math.log(2 * math.pi * variances[k])
        likelihood[i] = row_logsumexp(scores)
        row_softmax(scores, result[i])
    return result, likelihood


@numba.njit
def fit(x, means, steps):
    """Means, variances and shares of the components, and the mean log-likelihood at each step."""
    components = len(means)
    variances = np.full(components, np.var(x))
    shares = np.full(components, 1 / components)
    history = np.empty(steps)
    squares = np.sum(x**2, axis=1)
    for step in range(steps):
        weights, likelihood = responsibilities(x, means, variances, shares)
        history[step] = np.mean(likelihood)
        mass = np.sum(weights, axis=0)
        shares = mass / len(x)
        means = weights.T @ x / mass.reshape(-1, 1)
        spread = weights.T @ squares / mass - np.sum(means**2, axis=1)
        variances = spread / x.shape[1]
    return means, variances, shares, history


def load():
    data = load_digits()
    return data.data / 16, data.target


def main(components=30, steps=50):
    images, labels = load()
    chosen = np.random.default_rng(0).choice(len(images), components, replace=False)
    model = fit(images, images[chosen], steps)
    history = model[-1]
    found = responsibilities(images, *model[:3])[0].argmax(axis=1)
    # Each component stands for the digit that it has most of; the fit has seen no label.
    right = sum(np.bincount(labels[found == k], minlength=10).max() for k in range(components))
    print(f"log-likelihood of an image: {history[0]:.2f} at first, {history[-1]:.2f} at last")
    print(f"digits in a component of their kind: {right / len(labels):.1%}")


if __name__ == "__main__":
    main()
