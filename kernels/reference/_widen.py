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
    """Sum of (outer, n, inner) over n, as (outer, 1, inner): by halves, and what each addition
    loses (Knuth's two-sum) is added in the end.

    NumPy adds 16 numbers one by one before it adds pairs, and all numbers along any axis but the
    last in memory. Equal terms, all rounded in the same direction, were 12 and 40 ULP of float64
    off.
    """
    a = np.moveaxis(a, 1, -1)
    lost = np.zeros(a.shape[:-1])
    with np.errstate(invalid="ignore"):
        while a.shape[-1] > 1:
            half = a.shape[-1] // 2
            x, y = a[..., :half], a[..., half : 2 * half]
            both = x + y
            back = both - x
            lost += np.sum((x - (both - back)) + (y - back), axis=-1)
            a = np.concatenate([both, a[..., 2 * half :]], axis=-1)
    value = np.sum(a, axis=-1)
    return np.where(np.isfinite(lost), value + lost, value)[:, None]
