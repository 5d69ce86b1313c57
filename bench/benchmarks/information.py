"""Entropies and divergences of probabilities and of logits."""

import functools

import numpy as np

import fastce

from . import BACKENDS, DTYPES, THREADS, TINY, _Suite

SHAPES = [(32, 1000), (1024, 32000), (1_000_000, 10)]
if TINY:
    SHAPES = [(3, 40)]


class Information(_Suite):
    params = (
        [
            "entropy",
            "cross_entropy",
            "kl_divergence",
            "js_divergence",
            "entropy_from_logits",
            "kl_divergence_from_logits",
            "kl_divergence_from_logits_with_grad",
        ],
        SHAPES,
        DTYPES,
        BACKENDS,
        THREADS,
    )

    def prepare(self, op, x):
        if not hasattr(fastce, "information"):
            raise NotImplementedError("not there at that commit")
        arrays = [x] if op.startswith("entropy") else [x, x[::-1].copy()]
        if "logits" not in op:
            arrays = [np.abs(a) for a in arrays]
        options = {"out": np.empty_like(x)} if op.endswith("grad") else {}
        call = functools.partial(getattr(fastce.information, op), *arrays, **options)
        return call, (len(arrays) + len(options)) * x.nbytes
