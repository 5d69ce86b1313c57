"""Attention of (batch, heads, queries, width): the forward, and the forward with the backward."""

from . import _ProductsSuite
from ._cases import ATTENTION, Case


class Attention(_ProductsSuite):
    cases = [
        Case(op, shape, keys=shape[2], causal=causal)
        for op in (ATTENTION, f"{ATTENTION}_backward")
        for causal in (False, True)
        for shape in ((1, 8, 1024, 64), (16, 8, 128, 64))
    ] + [Case(ATTENTION, (1, 32, 1, 128), keys=4096)]
