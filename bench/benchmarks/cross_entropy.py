"""cross_entropy and nll_loss with class indices, and their gradients."""

import functools

import numpy as np

import fastce

from . import BACKENDS, DTYPES, THREADS, TINY, _Suite

SHAPES = [(32, 1000), (1024, 32000), (1_000_000, 10)]
if TINY:
    SHAPES = [(3, 40)]


class CrossEntropy(_Suite):
    params = (
        [
            "cross_entropy",
            "cross_entropy_backward",
            "cross_entropy_with_grad",
            "cross_entropy_with_grad in place",
            "nll_loss",
            "nll_loss_backward",
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
        if "grad" in name or "backward" in name:
            options["out"] = x if in_place else np.empty_like(x)
        reads, writes = not name.startswith("nll"), bool(options)
        call = functools.partial(getattr(fastce, name), *inputs, **options)
        return call, (reads + writes) * x.nbytes + target.nbytes
