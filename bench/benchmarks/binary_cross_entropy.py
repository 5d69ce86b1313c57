"""Binary cross-entropy of logits and of probabilities, and the sigmoid focal loss."""

import functools

import numpy as np

import fastce

from . import BACKENDS, DTYPES, THREADS, TINY, _Suite

SHAPES = [(100, 10), (1024, 1000), (20_000, 1000)]
if TINY:
    SHAPES = [(3, 40)]


class BinaryCrossEntropy(_Suite):
    params = (
        [
            "binary_cross_entropy",
            "binary_cross_entropy_with_grad",
            "binary_cross_entropy_with_logits",
            "binary_cross_entropy_with_logits_backward",
            "binary_cross_entropy_with_logits_with_grad",
            "binary_cross_entropy_with_logits_with_grad in place",
            "sigmoid_focal_loss",
            "sigmoid_focal_loss_backward",
            "sigmoid_focal_loss_with_grad",
        ],
        SHAPES,
        DTYPES,
        BACKENDS,
        THREADS,
    )

    def prepare(self, op, x):
        target = (np.roll(x, 1) > 0).astype(x.dtype)
        name, in_place = op.removesuffix(" in place"), op.endswith("in place")
        if name.startswith("binary") and "logits" not in name:
            x = (0.5 + 0.5 * np.tanh(x.astype(np.float32))).astype(x.dtype)
        inputs = [1.0, x, target] if name.endswith("backward") else [x, target]
        options = {}
        if "grad" in name or "backward" in name:
            options["out"] = x if in_place else np.empty_like(x)
        call = functools.partial(getattr(fastce, name), *inputs, **options)
        return call, (2 + bool(options)) * x.nbytes
