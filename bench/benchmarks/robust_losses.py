"""The robust losses with class indices, and their gradients."""

import functools

import numpy as np

import fastce

from . import BACKENDS, DTYPES, THREADS, TINY, _Suite

SHAPES = [(32, 1000), (65536, 1000), (1_000_000, 10)]
if TINY:
    SHAPES = [(3, 40)]


class RobustLosses(_Suite):
    params = (
        [
            "focal_loss",
            "focal_loss_backward",
            "focal_loss_with_grad",
            "focal_loss_with_grad in place",
            "generalized_cross_entropy_with_grad",
            "symmetric_cross_entropy_with_grad",
            "poly_cross_entropy_with_grad",
            "confidence_penalty_with_grad",
        ],
        SHAPES,
        DTYPES,
        BACKENDS,
        THREADS,
    )

    def prepare(self, op, x):
        target = np.random.default_rng(1).integers(0, x.shape[1], len(x))
        name, in_place = op.removesuffix(" in place"), op.endswith("in place")
        inputs = [1.0, x, target] if name.endswith("backward") else [x, target]
        options = {}
        if name.endswith(("grad", "backward")):
            options["out"] = x if in_place else np.empty_like(x)
        call = functools.partial(getattr(fastce, name), *inputs, **options)
        return call, (1 + bool(options)) * x.nbytes + target.nbytes
