"""The exactness that README promises, literally, and the closest bounds that hold elsewhere.

Measured on x86-64-v4, worst of the cython and reference backends, in ULP of the exact result:

    (512, 32000) float32        normal   x 20   + 10000
    log_softmax                   1.3     1.1     0.8
    logsumexp                     0.5     0.5     0.5
    softmax                       1.6     2.2     1.8
    mean cross_entropy, relative  1.4e-8  4.6e-8  2.7e-8
"""

import functools
import math

import numpy as np
import pytest
from support import truths as oracle
from support.cases import DTYPES
from support.truths import assert_close, compute, rounded, ulp_error

import fastce

SHAPE = (512, 32000)
KINDS = ("normal", "x 20", "+ 10000")
BOUNDS = {"log_softmax": 2, "logsumexp": 2, "softmax": 4}  # ULP, float32 and float64
# float32 in short rows and in planes; float64 everywhere, where sums have no wider type
SHORT = {"log_softmax": 4, "logsumexp": 2, "softmax": 4.5}
FLOAT64 = {"log_softmax": 5, "logsumexp": 2, "softmax": 6}
rng = np.random.default_rng


def logits(kind, shape=SHAPE, dtype=np.float32, seed=0):
    x = rng(seed).standard_normal(shape, np.float32)
    x = x * 20 if kind == "x 20" else x + 10000 if kind == "+ 10000" else x
    return x.astype(dtype)


@functools.lru_cache(maxsize=3)
def big(kind):
    """The logits, with exact log-probabilities: 130 MB for each kind."""
    x = logits(kind)
    log_p = np.empty(x.shape)
    for r in range(0, len(x), 16):  # blocks that stay in the cache
        log_p[r : r + 16] = oracle.log_softmax(x[r : r + 16]).value
    return x, log_p


def worst(result, truth, scale=None):
    rows = range(0, len(truth), 16)
    return max(ulp_error(result[r : r + 16], truth[r : r + 16]).max() for r in rows)


@pytest.mark.parametrize("kind", KINDS)
def test_large_rows(kind, backend):
    x, log_p = big(kind)
    if kind == "x 20":  # the hard part: rows where one logit dominates are there
        assert np.sum(log_p.max(axis=1) > -1e-6) > 10
    if backend == "reference":  # 3 s for each op on all rows
        x, log_p = x[:64], log_p[:64]
    assert worst(fastce.log_softmax(x), log_p) <= 2
    p = np.exp(log_p)
    assert worst(fastce.softmax(x), p) <= 4
    assert worst(fastce.logsumexp(x), x[:, 0] - log_p[:, 0]) <= 2
    target = rng(1).integers(0, SHAPE[1], len(x))
    loss = -np.mean(log_p[np.arange(len(x)), target])
    assert fastce.cross_entropy(x, target) == pytest.approx(loss, rel=1e-7, abs=0)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_of_large_rows(kind, backend):
    """Each row's loss, at the label and at the likeliest class, and the smoothed loss."""
    x, log_p = big(kind)
    x, log_p = x[:64], log_p[:64]
    likeliest = log_p.argmax(axis=1)
    for target in likeliest, rng(1).integers(0, SHAPE[1], 64):
        rows = np.arange(64)
        loss = fastce.cross_entropy(x, target, reduction="none")
        assert ulp_error(loss, -log_p[rows, target]).max() <= 2
    smooth = fastce.cross_entropy(x, target, reduction="none", label_smoothing=0.1)
    right = -0.9 * log_p[rows, target] - 0.1 * log_p.mean(axis=1)
    assert ulp_error(smooth, right).max() <= 2


def equal_terms(dtype):
    """Rows below a single 0 in which the same term, or two alternating ones, repeat."""
    for n, value in (3771, -11.0), (4102, -11.25), (4096, -5.123), (1000, -0.3), (40000, -9.7):
        x = np.full(n, value, dtype)
        x[n // 2] = 0
        yield x
    for n in 129, 1000, 9000:
        x = np.where(np.arange(n) % 2, -8.7, -7.2).astype(dtype)
        x[-1] = 0
        yield x
        yield np.sort(x)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_terms(backend, dtype):
    """Equal terms round the same way in each addition: plain sums were up to 49 ULP off."""
    limit = 3 if dtype == np.float64 else 2  # the reference has the exp of NumPy
    for x in equal_terms(dtype):
        truth = oracle.log_softmax(x)
        label = int(x.argmax())
        assert_close(fastce.log_softmax(x), truth, limit, f"log_softmax n={x.size}")
        assert_close(fastce.logsumexp(x), oracle.logsumexp(x), limit, f"logsumexp n={x.size}")
        assert_close(fastce.softmax(x), oracle.softmax(x), 4, f"softmax n={x.size}")
        loss, grad = fastce.cross_entropy_with_grad(x, label)
        assert ulp_error(loss, -truth.value[label]) <= limit
        p = np.exp(truth.value)
        p[label] = np.expm1(truth.value[label])
        assert ulp_error(grad, p).max() <= 4
        planes = np.repeat(x[:, None], 3, axis=1)
        assert_close(fastce.log_softmax(planes, axis=0)[:, 1], truth, 4, f"planes n={x.size}")


def test_equal_terms_of_a_million(backend):
    """Merging 244 blocks, or 15625 groups of classes, adds equal terms too."""
    x = np.full(1_000_000, -13.1)
    x[3] = 0
    right = np.log1p((x.size - 1) * np.exp(np.longdouble(-13.1)))
    assert ulp_error(fastce.logsumexp(x), right) <= 3
    assert ulp_error(fastce.logsumexp(x[:, None], axis=0), right).max() <= 3


@pytest.mark.parametrize("axis", [0, 1])
def test_equal_probabilities(backend, axis):
    """The sum of a target of one large and many small probabilities; in the first case the loss was
    4e-6 off."""
    for n, small in (1000, 2.49 * 2.0**-24), (100, 2.49 * 2.0**-24), (5000, 1.3 * 2.0**-22):
        t = np.full((2, n), small, np.float32)
        t[:, 0] = 0.5
        right = t[0].sum(dtype=np.float64) * np.log(n)
        x = np.zeros_like(t)
        if axis == 0:
            x, t = np.ascontiguousarray(x.T), np.ascontiguousarray(t.T)
        assert fastce.cross_entropy(x, t, axis=axis) == pytest.approx(right, rel=1e-7, abs=0)
        x[:] = -300
        assert fastce.cross_entropy(x, t, axis=axis) == pytest.approx(right, rel=1e-7, abs=0)


def test_softmax_far_below_zero(backend):
    """Rounding the inverse of the sum took the worst element to 4.16 ULP."""
    x = rng(1234).standard_normal((512, 31999)).astype(np.float32)[::32] * np.float32(5)
    x -= np.float32(300)
    assert_close(fastce.softmax(x), oracle.softmax(x), 4)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_dominating_logit(backend, dtype):
    """log p = -log1p(3 exp(-50)) = -5.79e-22: 0 in every way but log1p of the others."""
    for x in [50, 0, 0, 0], [0, 0, 50, 0], [50] + [-1e4] * 300 + [0, 0, 0]:
        x = np.array(x, dtype)
        right = -math.log1p(3 * math.exp(-50))
        for y in (
            fastce.log_softmax(x).max(),
            fastce.log_softmax(np.stack([x, x], axis=1), axis=0).max(),
            -fastce.cross_entropy(x, int(x.argmax())),
        ):
            assert y == pytest.approx(right, rel=float(4 * np.finfo(dtype).eps), abs=0)
    assert f"{fastce.log_softmax([50, 0, 0, 0])[0]:.3g}" == "-5.79e-22"


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_gradient_at_a_dominating_label(backend, dtype):
    """p - 1 = -3 exp(-50), not 0: by expm1, never by subtracting."""
    for n in 4, 40, 400, 5000:
        x = np.full((2, n), -1e4, dtype)
        x[:, [0, 1, 2, n - 1]] = 0, 0, 0, 50
        right = -3 * math.exp(-50)
        for axis in 0, 1:
            a = x if axis else np.ascontiguousarray(x.T)
            one_hot = np.zeros_like(a)
            one_hot[(slice(None), n - 1) if axis else n - 1] = 1
            for target in [n - 1] * 2, one_hot:
                grad = fastce.cross_entropy_with_grad(a, target, axis=axis, reduction="sum")[1]
                grad = grad if axis else grad.T
                np.testing.assert_allclose(grad[:, n - 1], right, rtol=8 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_gradient_of_a_dominating_class_that_is_wanted_in_part(backend, dtype):
    """p_factor * p - q = (p_factor - q) * p + q * (p - 1), with weights and label smoothing."""
    for n in 5, 150, 700, 4500:
        x, target = np.zeros((3, n), dtype), np.zeros((3, n), dtype)
        x[:, n // 2] = np.array(math.log(n) + 7, dtype)
        target[0, n // 2], target[1, n // 2], target[1, 0], target[2, 1] = 1, 0.75, 0.25, 1
        weight = np.linspace(0.5, 2, n)
        for options in {}, {"weight": weight}, {"weight": weight, "label_smoothing": 1e-3}:
            options = options | {"z_loss": 1e-5, "reduction": "sum"}
            with fastce.use_backend("reference"):
                wide = x.astype(np.float64), target.astype(np.float64)
                right = fastce.cross_entropy_with_grad(*wide, **options)[1]
            for axis in 0, 1:
                a, t = (np.ascontiguousarray(v if axis else v.T) for v in (x, target))
                grad = fastce.cross_entropy_with_grad(a, t, axis=axis, **options)[1]
                grad = (grad if axis else grad.T).astype(np.float64)
                # Weights make a sum that is rounded; and float16 has a smallest number.
                least = 4 * np.finfo(compute(dtype)).eps if "weight" in options else 0
                least = max(least, 2.0**-24 if dtype == np.float16 else 0)
                bits = {8: 48, 4: 19, 2: 10 if dtype == np.float16 else 7}[dtype.itemsize]
                np.testing.assert_allclose(grad, right, rtol=2.0**-bits, atol=least)


@pytest.mark.parametrize("n", [5, 300])
def test_gradient_of_an_unlikely_label_without_weight(backend, n):
    """(2 z lse) p with p = 4e-27, for which 1 + expm1(log p) is no p at all."""
    x = np.full((1, n), -80.0)
    x[0, [0, 3]] = 1, -60
    weight = np.ones(n)
    weight[3] = 0
    lse = np.logaddexp.reduce(x[0])
    right = 2 * 0.1 * lse * np.exp(-60 - lse)
    for axis in 0, 1:
        a = x if axis else np.ascontiguousarray(x.T)
        options = {"weight": weight, "z_loss": 0.1, "reduction": "sum"}
        grad = fastce.cross_entropy_with_grad(a, [3], axis=axis, **options)[1]
        assert grad.ravel()[3] == pytest.approx(right, rel=1e-12, abs=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("op", BOUNDS)
def test_float64(op, kind, backend):
    """Against longdouble: 11 bits more."""
    x = logits(kind, (16, 32000), np.float64)
    x += rng(2).uniform(-1e-6, 1e-6, x.shape)  # not only the values that float32 has
    truth = getattr(oracle, op)(x)
    assert_close(getattr(fastce, op)(x), truth, FLOAT64[op], f"{op} {kind}")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("op", BOUNDS)
def test_short_rows_and_planes(op, kind, dtype, backend):
    """2 to 200 classes, last and not last in memory."""
    bound = SHORT[op] if dtype == np.float32 else FLOAT64[op]
    f, truth = getattr(fastce, op), getattr(oracle, op)
    for n in [*range(2, 20), 31, 32, 33, 64, 100, 127, 128, 129, 150, 200]:
        x = logits(kind, (500, n), dtype, seed=n)
        right = truth(x)
        assert_close(f(x), right, bound, f"{op} {kind} n={n} in rows")
        columns = f(np.ascontiguousarray(x.T), axis=0)
        columns = columns.T if columns.ndim == 2 else columns
        assert_close(columns, right, bound, f"{op} {kind} n={n} in planes")


# 108: each op, in rows of one block and of several and in planes, rounds in code of its own.
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(64, 32000), (20000, 10), (16, 1000, 40)])
@pytest.mark.parametrize("op", ["log_softmax", "softmax"])
@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_half_precision_is_correctly_rounded(name, op, shape, kind, backend):
    """All but 1 in 1000 elements, and those are off by one representable number."""
    dtype = DTYPES[name]
    x = logits(kind, shape, dtype, seed=3)
    result = getattr(fastce, op)(x, axis=1)
    last = np.moveaxis(x, 1, -1), np.moveaxis(result, 1, -1)
    wrong = 0
    for a, r in zip(*(np.array_split(v, 16) for v in last), strict=True):
        truth = getattr(oracle, op)(a).value
        right = rounded(truth, dtype).astype(dtype)
        off = np.abs(ordered(r) - ordered(right))
        assert off.max() <= 1
        wrong += np.count_nonzero(off)
    assert wrong <= result.size / 1000


def ordered(a):
    """Integers in the order of the numbers: neighbours differ by 1."""
    bits = a.view(np.int16).astype(int)
    return np.where(bits < 0, -(bits & 0x7FFF), bits)


def test_ordered_counts_representable_numbers():
    for dtype in np.float16, DTYPES["bf16"]:
        a = np.array([-1.0, -0.0, 0.0, 1.0]).astype(dtype)
        assert list(ordered(a)) == [-ordered(a)[3], 0, 0, ordered(a)[3]]
        assert ordered(np.nextafter(a[3:], a[1:2])) == ordered(a)[3] - 1


@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_half_precision_gradient(name, backend):
    """The same of the gradient of the loss."""
    dtype = DTYPES[name]
    for kind, axis in (KINDS[0], 1), (KINDS[1], 1), (KINDS[0], 0):
        x = logits(kind, (200, 2000), dtype, seed=4)
        target = rng(5).integers(0, 2000, 200)
        right = oracle.cross_entropy_with_grad(x, target, reduction="sum")[1].value
        a = x if axis else np.ascontiguousarray(x.T)
        grad = fastce.cross_entropy_with_grad(a, target, axis=axis, reduction="sum")[1]
        grad = grad if axis else np.ascontiguousarray(grad.T)
        off = np.abs(ordered(grad) - ordered(rounded(right, dtype).astype(dtype)))
        assert off.max() <= 1
        assert np.count_nonzero(off) <= grad.size / 1000
