"""categorical_cross_entropy of probabilities, and its gradients, with sparse and dense targets."""

import functools

import numpy as np

import fastce

from . import BACKENDS, DTYPES, THREADS, TINY, _Suite

SHAPES = [(32, 1000), (65536, 1000), (1_000_000, 10)]
if TINY:
    SHAPES = [(3, 40)]


class CategoricalCrossEntropy(_Suite):
    params = (
        [
            "categorical_cross_entropy",
            "categorical_cross_entropy dense",
            "categorical_cross_entropy_backward",
            "categorical_cross_entropy_with_grad",
            "categorical_cross_entropy_with_grad dense",
        ],
        SHAPES,
        DTYPES,
        BACKENDS,
        THREADS,
    )

    def prepare(self, op, x):
        probs = np.abs(x)  # the sums need not be 1
        target = np.random.default_rng(1).integers(0, x.shape[1], len(x))
        if op.endswith("dense"):
            target = probs[::-1].copy()
        name = op.removesuffix(" dense")
        inputs = [1.0, probs, target] if name.endswith("backward") else [probs, target]
        options = {}
        if "grad" in name or "backward" in name:
            options["out"] = np.empty_like(probs)
        call = functools.partial(getattr(fastce, name), *inputs, **options)
        return call, (1 + bool(options)) * probs.nbytes + target.nbytes
