"""More than 2**31 elements: no index or offset in a kernel may be 32 bits wide.

In float16 and in place, since that fits into 6 GB. The rows are constant but for a few numbers
at the start and the far end, so that the truth is a formula.
"""

from pathlib import Path

import numpy as np
import pytest
from support.truths import ulp_error

import fastce

pytestmark = pytest.mark.slow
MARKS = np.array([3, -1, 5, 2.5, -4, 7, 0.5], np.float16)


def filled(shape, value):
    """A float16 array of `value`, where there is memory for it and 1 GB more."""
    needed = np.prod(shape, dtype=np.int64) * 2 + 2**30
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if "MemAvailable" in line)
    except (OSError, StopIteration):
        pytest.skip("/proc/meminfo does not say how much memory is available")
    if free < needed:
        pytest.skip(f"needs {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are available")
    assert np.prod(shape, dtype=np.int64) > 2**31
    x = np.empty(shape, np.float16)
    x[...] = value
    return x


def close(result, truth):
    assert ulp_error(result, np.asarray(truth, np.float64)).max() <= 1


def test_few_long_rows(cython, threads):
    threads(2)
    n = 2**30 + 40
    x = filled((2, n), -20)
    x[:, : MARKS.size] = MARKS
    x[1, -MARKS.size :] = MARKS + 1  # the second row is not the first
    marks = MARKS.astype(np.float64)
    rest = n - MARKS.size
    assert fastce.log_softmax(x, out=x) is x
    lse = np.log(np.exp(marks).sum() + rest * np.exp(-20.0))
    close(x[0, : MARKS.size], marks - lse)
    close(x[0, MARKS.size :: 999_983], -20 - lse)
    close(x[0, -100:], -20 - lse)
    lse = np.log(np.exp(marks).sum() * (1 + np.e) + (rest - MARKS.size) * np.exp(-20.0))
    close(x[1, : MARKS.size], marks - lse)
    close(x[1, -MARKS.size :], marks + 1 - lse)
    close(x[1, MARKS.size : -MARKS.size : 999_983], -20 - lse)
    close(x[1, -100 : -MARKS.size], -20 - lse)


def test_many_short_rows(cython, threads):
    threads(2)
    rows, n = 2**25 + 3, 65
    x = filled((rows, n), 0)
    x[-1, : MARKS.size] = MARKS
    target = np.full(rows, 7)
    target[0], target[-2], target[-1] = 64, 0, 2
    # The sum, since a gradient of the mean would be less than the least float16.
    loss, grad = fastce.cross_entropy_with_grad(x, target, reduction="sum", out=x)
    assert grad is x
    last = np.zeros(n)
    last[: MARKS.size] = MARKS
    p = np.exp(last) / np.exp(last).sum()
    np.testing.assert_allclose(loss, (rows - 1) * np.log(n) - np.log(p[2]), rtol=2e-7)
    classes = np.arange(n)
    close(x[0], 1 / n - (classes == 64))
    for sample in x[1:-2:99_991], x[2**31 // n - 1 : 2**31 // n + 2], x[-100:-2]:
        close(sample, np.broadcast_to(1 / n - (classes == 7), sample.shape))
    close(x[-2], 1 / n - (classes == 0))
    close(x[-1], p - (classes == 2))


def test_panels(cython, threads):
    threads(2)
    outer, n, inner = 17, 64, 2**21
    x = filled((outer, n, inner), 0)
    x[-1, : MARKS.size, -3:] = MARKS[:, None] * np.array([1, -1, 0.5], np.float16)
    assert fastce.log_softmax(x, axis=1, out=x) is x
    for sample in x[0, :, :100], x[:-1, :, ::99_991], x[-1, :, -100:-3]:
        close(sample, np.full(sample.shape, -np.log(n)))
    last = np.zeros((n, 3))
    last[: MARKS.size] = MARKS[:, None] * np.array([1, -1, 0.5])
    close(x[-1, :, -3:], last - np.log(np.exp(last).sum(axis=0)))


def test_one_row(cython, threads):
    threads(2)
    n = 2**31 + 5
    x = filled(n, 0)
    close(fastce.logsumexp(x), np.log(float(n)))
    x[-1] = 22  # as much as all others together
    lse = np.log(n - 1 + np.exp(22.0))
    assert lse > np.log(n) + 0.9
    close(fastce.logsumexp(x), lse)
    loss = fastce.cross_entropy(x[None], [n - 1])
    np.testing.assert_allclose(loss, lse - 22, rtol=1e-6)
