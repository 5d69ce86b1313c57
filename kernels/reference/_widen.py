"""Between storage dtypes and float64, and sums. bfloat16 comes and goes as its uint16 bits."""

import numpy as np


def widen(a):
    """The values of `a` in float64."""
    if a.dtype == np.uint16:
        a = (a.astype(np.uint32) << 16).view(np.float32)
    return a.astype(np.float64)


def narrow(values, out):
    """Round `values` into `out`, to nearest even."""
    with np.errstate(over="ignore"):  # beyond the range of `out` is infinity, as it should be
        if out.dtype != np.uint16:
            out[...] = values
            return
        bits = to_odd(np.asarray(values)).view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        out[...] = np.where(np.isnan(values), (bits >> 16) | 0x40, rounded)


def to_odd(values):
    """float64 to float32 such that rounding again, to bfloat16, rounds as if it were once.

    An inexact result whose last bit is 0 moves one step towards the exact number.
    """
    single = values.astype(np.float32)
    even = single.view(np.uint32) & 1 == 0
    inexact = np.isfinite(single) & (single != values)
    towards = np.where(values > single, np.inf, -np.inf).astype(np.float32)
    return np.where(even & inexact, np.nextafter(single, towards), single)


def total(a):
    """Sum of (outer, n, inner) over n, as (outer, 1, inner).

    NumPy adds pairwise only along the last axis in memory, and one by one along any other:
    with 4097 classes that was 40 ULP of float64.
    """
    return np.sum(np.ascontiguousarray(np.moveaxis(a, 1, -1)), axis=-1)[:, None]
