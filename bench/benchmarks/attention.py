"""Scaled dot-product attention, forward and backward, of (batch, heads, queries, width)."""

import functools
import math

import numpy as np

import fastce

from . import BACKENDS, DTYPES, REFERENCE_LIMIT, THREADS, TINY, _Suite, seconds

SHAPES = [(1, 8, 1024, 64), (16, 8, 128, 64), (1, 32, 1, 128)]
KEYS = {1: 4096}  # for so many queries; else as many as queries
if TINY:
    SHAPES = [(1, 2, 5, 8), (1, 2, 1, 8)]


class Attention(_Suite):
    params = (
        ["forward", "causal", "backward", "causal backward"],
        SHAPES,
        DTYPES,
        BACKENDS,
        THREADS,
    )

    def prepare(self, op, q):
        batch, heads, length, width = q.shape
        keys = KEYS.get(length, length)
        k, v = (np.resize(np.roll(q, shift), (batch, heads, keys, width)) for shift in (1, 2))
        forward = functools.partial(
            fastce.scaled_dot_product_attention, q, k, v, is_causal=op.startswith("causal")
        )
        pairs = batch * heads * length * keys * (0.5 if op.startswith("causal") else 1)
        backward = op.endswith("backward")
        self.flops = 4 * pairs * width * (2.5 if backward else 1)
        nbytes = q.nbytes + k.nbytes + v.nbytes if length == 1 else 0
        if not backward:
            return functools.partial(forward, out=np.empty_like(q)), nbytes
        out, lse = forward(return_lse=True)
        call = functools.partial(
            fastce.scaled_dot_product_attention_backward,
            *(q, q, k, v, out, lse),
            is_causal=op.startswith("causal"),
        )
        return call, nbytes

    def track_gflops(self, op, shape, dtype, backend, threads):
        """Here more is better, so asv's verdict on a change is the wrong way round."""
        if math.prod(shape) > REFERENCE_LIMIT and backend == "reference":
            return float("nan")
        return self.flops / seconds(self.call) / 1e9

    track_gflops.unit = "GFLOP/s"
