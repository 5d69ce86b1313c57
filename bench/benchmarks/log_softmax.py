"""logsumexp, softmax, log_softmax and their gradients, into given outputs."""

import functools

import numpy as np

import fastce

from . import BACKENDS, DTYPES, THREADS, TINY, _Suite

SHAPES = [(1, 10), (1024, 32000), (16, 1000, 32, 32)]
if TINY:
    SHAPES = [(1, 10), (3, 40), (2, 10, 3, 3)]


class LogSoftmax(_Suite):
    params = (
        ["logsumexp", "softmax", "log_softmax", "softmax_backward", "log_softmax_backward"],
        SHAPES,
        DTYPES,
        BACKENDS,
        THREADS,
    )

    def prepare(self, op, x):
        inputs = [x]
        if op.endswith("_backward"):
            inputs.append(getattr(fastce, op.removesuffix("_backward"))(x, axis=1))
        out = x.max(axis=1) if op == "logsumexp" else np.empty_like(x)
        call = functools.partial(getattr(fastce, op), *inputs, axis=1, out=out)
        return call, sum(a.nbytes for a in inputs) + out.nbytes
