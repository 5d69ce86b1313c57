"""Cross-entropy of a linear layer, forward and with its gradients, of (rows, classes)."""

import functools
import math

import numpy as np

import fastce

from . import BACKENDS, DTYPES, REFERENCE_LIMIT, THREADS, TINY, _Suite, normal, seconds

WIDTH = 256
SHAPES = [(256, 1000), (512, 32000)]
if TINY:
    SHAPES = [(3, 40)]


class LinearCrossEntropy(_Suite):
    params = (
        ["linear_cross_entropy", "linear_cross_entropy_with_grad"],
        SHAPES,
        DTYPES,
        BACKENDS,
        THREADS,
    )

    def prepare(self, op, x):
        rows, classes = x.shape
        inputs, weights = (normal((n, WIDTH), x.dtype.name) for n in (rows, classes))
        target = np.random.default_rng(1).integers(0, classes, rows)
        with_grad = op.endswith("with_grad")
        self.flops = 2 * rows * classes * WIDTH * (3 if with_grad else 1)
        options = {}
        if with_grad:
            options["out"] = (np.empty_like(inputs), np.empty_like(weights), None)
        call = functools.partial(getattr(fastce, op), inputs, weights, target, **options)
        return call, 0  # bound by arithmetic

    def track_gflops(self, op, shape, dtype, backend, threads):
        """Of the products that are needed; more is better, so asv's verdict is the wrong way."""
        if math.prod(shape) > REFERENCE_LIMIT and backend == "reference":
            return float("nan")
        return self.flops / seconds(self.call) / 1e9

    track_gflops.unit = "GFLOP/s"
