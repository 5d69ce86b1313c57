"""Rows of logits with what is not finite, and of the ends of the range."""

import numpy as np

INF, NAN = np.inf, np.nan

# As in PyTorch, every row with NaN or inf is NaN, except for logsumexp.
ROWS = {
    "-inf": [-INF, 0.0, 1.0],
    "-inf last": [2.0, 0.0, -INF],
    "one finite": [-INF, 3.0, -INF],
    "all -inf": [-INF, -INF, -INF],
    "inf": [0.0, INF, 1.0],
    "two inf": [INF, 0.0, INF],
    "inf and -inf": [-INF, INF, 0.0],
    "nan": [0.0, NAN, 1.0],
    "nan first": [NAN, 0.0, 1.0],
    "nan and inf": [INF, NAN, 0.0],
    "inf after nan": [NAN, INF, 0.0],
    "nan and -inf": [NAN, -INF, 0.0],
    "all nan": [NAN, NAN, NAN],
    "huge": [3e38, -3e38, 0.0],
    "tiny": [1e-45, 0.0, -1e-45],
}


def spread(row, n, dtype, place):
    """`row` among n classes, the others of which matter least: -inf or 0.5."""
    x = np.full(n, -INF if "-inf" in place else 0.5)
    at = {"start": [0, 1, 2], "end": [n - 3, n - 2, n - 1], "apart": [0, n // 2, n - 1]}
    x[at[place.split()[0]]] = row
    with np.errstate(over="ignore"):
        return x.astype(dtype)
