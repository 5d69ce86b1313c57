"""linear_cross_entropy and its gradients, on every backend."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.cases import DTYPES
from support.truths import BF16, compute, ulp, widen

import fastce
from fastce.kernels.cython import _isa

EPS = {"f64": 2.0**-53, "f32": 2.0**-24, "f16": 2.0**-24, "bf16": 2.0**-24}
# name -> options, with "bias" and "weight" drawn where they are True
OPTIONS = {
    "plain": {},
    "sum": {"reduction": "sum", "bias": True},
    "ignore": {"ignore_index": 2, "weight": True},
    "smooth": {"label_smoothing": 0.2, "bias": True, "reduction": "none"},
    "softcap": {"softcap": 3.0, "bias": True},
    "all": {
        "label_smoothing": 0.1, "z_loss": 1e-2, "softcap": 5.0, "ignore_index": 1, "bias": True,
        "weight": True,
    },
}  # fmt: skip


def draw(rows, width, classes, dtype, options, seed=0):
    """input, linear_weight, target, and the options of the call."""
    rng = np.random.default_rng((seed, rows, width, classes))
    options = dict(options)
    x = rng.standard_normal((rows, width)).astype(dtype)
    w = (1.5 * rng.standard_normal((classes, width)) / np.sqrt(max(width, 1))).astype(dtype)
    if options.pop("bias", False):
        options["linear_bias"] = rng.standard_normal(classes).astype(dtype)
    if options.pop("weight", False):
        options["weight"] = rng.uniform(0.5, 2, classes).astype(compute(dtype))
    target = rng.integers(0, classes, rows)
    if "ignore_index" in options and rows > 2:
        target[rng.random(rows) < 0.3] = options["ignore_index"]
    return x, w, target, options


def truth(
    x, w, target, *, linear_bias=None, weight=None, ignore_index=-100, reduction="mean",
    label_smoothing=0.0, z_loss=0.0, softcap=0.0, upstream=None,
):  # fmt: skip
    """[(value, scale)] of loss, d_input, d_linear_weight, d_linear_bias, in wider arithmetic."""
    x, w = widen(x), widen(w)
    n = len(w)
    z, z_scale = x @ w.T, abs(x) @ abs(w).T
    if linear_bias is not None:
        z, z_scale = z + widen(linear_bias), z_scale + abs(widen(linear_bias))
    slope = np.ones_like(z)
    if softcap:
        t = np.tanh(z / softcap)
        z, slope = softcap * t, 1 - t * t
    kept = target != ignore_index
    c = np.ones(n, x.dtype) if weight is None else widen(weight).astype(x.dtype)
    hot = np.zeros_like(z)
    hot[kept, target[kept]] = 1
    q = (hot * (1 - label_smoothing) + label_smoothing / n) * c
    top = z.max(axis=1, keepdims=True, initial=-np.inf)
    lse = (top + np.log(np.exp(z - top).sum(axis=1, keepdims=True)))[:, 0]
    p = np.exp(z - lse[:, None])
    rows = np.where(kept, (q * (lse[:, None] - z)).sum(axis=1) + z_loss * lse**2, 0)
    divisor = (hot * c).sum() if reduction == "mean" else 1
    g = kept / divisor * (1 if upstream is None else upstream)
    pull = q.sum(axis=1) + 2 * z_loss * lse
    dz = g[:, None] * (pull[:, None] * p - q) * slope
    # An error of a logit of so many eps is that relative error of p.
    size = 1 + z_scale.max(initial=0) / 4
    dz_scale = abs(g[:, None]) * (abs(pull[:, None]) * p + q) * size
    loss = rows if reduction == "none" else rows.sum() / divisor
    return [
        (loss, np.maximum(abs(loss), 1) * size),
        (dz @ w, dz_scale @ abs(w)),
        (dz.T @ np.where(kept[:, None], x, 0), dz_scale.T @ abs(x)),
        (dz.sum(axis=0), dz_scale.sum(axis=0)) if linear_bias is not None else None,
    ]


def assert_right(results, right, eps, what=""):
    for i, (result, expected) in enumerate(zip(results, right, strict=True)):
        if expected is None:
            assert result is None
            continue
        value, scale = expected
        assert np.shape(result) == np.shape(value), f"{what}: result {i}"
        wide = np.asarray(result).astype(value.dtype)
        error = abs(wide - value) - ulp(value, np.asarray(result).dtype) / 2
        bad = error / (scale * eps + 1e-300)
        assert not np.size(bad) or bad.max() <= 1, f"{what}: result {i} is off by {bad.max()}"


def limit(dtype, backend):
    """What counts as relative rounding error of a term: a few sums, and what is multiplied."""
    pairs = backend == "cython" and _isa.level() == "x86_64_v4_bf16"
    return 2.0**-8 if dtype == "bf16" and pairs else 24 * EPS[dtype]


SHAPES = [(5, 7, 11), (13, 16, 65), (130, 40, 300), (3, 700, 130), (1, 1, 1), (2, 0, 3)]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_truth(backend, dtype, options):
    for shape in SHAPES:
        x, w, target, more = draw(*shape, DTYPES[dtype], OPTIONS[options])
        with np.errstate(invalid="ignore"):
            right = truth(x, w, target, **more)
        if not np.isfinite(right[0][0]).all():  # the mean over no row
            continue
        results = fastce.linear_cross_entropy_with_grad(x, w, target, **more)
        assert_right(results, right, limit(dtype, backend), f"{shape}")
        assert results[0].dtype == compute(x.dtype)
        assert all(r.dtype == x.dtype for r in results[1:] if r is not None)
        np.testing.assert_array_equal(fastce.linear_cross_entropy(x, w, target, **more), results[0])


@pytest.mark.parametrize("dtype", ["f64", "f32", "bf16"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_backward(backend, reduction, dtype):
    x, w, target, options = draw(37, 20, 150, DTYPES[dtype], OPTIONS["all"])
    options["reduction"] = reduction
    rng = np.random.default_rng(0)
    upstream = rng.uniform(-2, 2, len(x) if reduction == "none" else ()).astype(compute(x.dtype))
    results = fastce.linear_cross_entropy_backward(upstream, x, w, target, **options)
    right = truth(x, w, target, **options, upstream=upstream.astype(np.float64))
    assert_right(results, right[1:], limit(dtype, backend))
    ones = fastce.linear_cross_entropy_backward(np.ones_like(upstream), x, w, target, **options)
    both = fastce.linear_cross_entropy_with_grad(x, w, target, **options)
    for a, b in zip(ones, both[1:], strict=True):
        np.testing.assert_array_equal(a, b)


def test_by_hand(backend):
    x, w = np.array([[1.0, 2.0]]), np.array([[0.0, 0.0], [1.0, -1.0]])
    # logits 0 and -1: p = 1 / (1 + 1 / e)
    p = 1 / (1 + np.exp(-1))
    loss, dx, dw, _ = fastce.linear_cross_entropy_with_grad(x, w, [0])
    np.testing.assert_allclose(loss, -np.log(p), rtol=1e-14)
    np.testing.assert_allclose(dx, [[1 - p, p - 1]], rtol=1e-14)
    np.testing.assert_allclose(dw, [[p - 1, 2 * (p - 1)], [1 - p, 2 * (1 - p)]], rtol=1e-14)


def test_finite_differences(backend):
    x, w, target, options = draw(6, 5, 9, np.float64, OPTIONS["all"])
    _loss, *grads = fastce.linear_cross_entropy_with_grad(x, w, target, **options)
    step = 1e-6
    for a, grad in zip((x, w, options["linear_bias"]), grads, strict=True):
        for at in np.ndindex(a.shape):
            kept = a[at]
            a[at] = kept + step
            up = fastce.linear_cross_entropy(x, w, target, **options)
            a[at] = kept - step
            down = fastce.linear_cross_entropy(x, w, target, **options)
            a[at] = kept
            assert abs((up - down) / (2 * step) - grad[at]) < 1e-8


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_as_cross_entropy_of_the_logits(backend, dtype):
    """Also where a block of rows, and a chunk of classes, is not the last."""
    # The reference has no blocks, and takes 15 s for as many classes.
    rows, width, classes = 700, 64, {"cython": 40_000, "reference": 2000}.get(backend, 20_000)
    x, w, target, _ = draw(rows, width, classes, DTYPES[dtype], {})
    target[::5] = -100
    results = fastce.linear_cross_entropy_with_grad(x, w, target)
    z = x.astype(np.float32) @ w.astype(np.float32).T
    loss, dz = fastce.cross_entropy_with_grad(z, target)
    error = 2e-6 if limit(dtype, backend) < 1e-4 else 2.0**-8
    np.testing.assert_allclose(results[0], loss, rtol=2e-6)
    for result, right in ((results[1], dz @ w.astype("f4")), (results[2], dz.T @ x.astype("f4"))):
        size = np.linalg.norm(right)
        rounding = 2.0**-9 * size if dtype == "bf16" else 0
        assert np.linalg.norm(result.astype("f4") - right) <= error * size + rounding
    assert not results[1][::5].any()


@pytest.mark.parametrize("dtype", ["f64", "f32", "f16", "bf16"])
def test_any_number_of_threads_gives_the_same_bits(backend, dtype):
    x, w, target, options = draw(90, 130, 700, DTYPES[dtype], OPTIONS["all"])
    before = fastce.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3, 7):
            fastce.set_num_threads(threads)
            results = fastce.linear_cross_entropy_with_grad(x, w, target, **options)
            found.append([r.tobytes() for r in results])
    finally:
        fastce.set_num_threads(before)
    assert all(f == found[0] for f in found)


# ---- rows that do not count ------------------------------------------------------------------


def test_ignored_rows_are_never_read(backend):
    x, w, target, _ = draw(10, 6, 20, np.float32, {})
    target[[1, 4, 9]] = -100
    kept = target != -100
    right = fastce.linear_cross_entropy_with_grad(x[kept], w, target[kept])
    x[~kept] = [[np.nan], [np.inf], [-np.inf]]
    loss, dx, dw, _ = fastce.linear_cross_entropy_with_grad(x, w, target)
    np.testing.assert_array_equal(loss, right[0])
    np.testing.assert_array_equal(dx[kept], right[1])
    np.testing.assert_array_equal(dx[~kept], 0)
    np.testing.assert_array_equal(dw, right[2])
    rows = fastce.linear_cross_entropy(x, w, target, reduction="none")
    np.testing.assert_array_equal(rows[~kept], 0)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("rows", [0, 3])
def test_no_row_counts(backend, rows, dtype):
    x, w, b = (np.full(s, np.nan, DTYPES[dtype]) for s in ((rows, 4), (5, 4), (5,)))
    target = np.full(rows, -100)
    loss, *grads = fastce.linear_cross_entropy_with_grad(x, w, target, linear_bias=b)
    assert np.isnan(loss)
    for grad in grads:
        assert not grad.astype("f4").any()
    assert fastce.linear_cross_entropy(x, w, target, reduction="sum") == 0


def test_nan_stays_in_its_row(backend):
    x, w, target, _ = draw(5, 6, 20, np.float32, {})
    x[2, 3] = np.nan
    losses = fastce.linear_cross_entropy(x, w, target, reduction="none")
    np.testing.assert_array_equal(np.isnan(losses), [False, False, True, False, False])


# ---- arrays ----------------------------------------------------------------------------------


def test_shapes_and_layouts(backend):
    x, w, target, _ = draw(12, 8, 30, np.float32, {})
    right = fastce.linear_cross_entropy_with_grad(x, w, target, reduction="none")
    loss, dx, dw, _ = fastce.linear_cross_entropy_with_grad(
        x.reshape(3, 4, 8), w, target.reshape(3, 4), reduction="none"
    )
    assert loss.shape == (3, 4)
    assert dx.shape == (3, 4, 8)
    np.testing.assert_array_equal(dw, right[2])
    wide_x, wide_w = np.zeros((12, 20), "f4"), np.zeros((30, 11), "f4")
    wide_x[:, 5:13], wide_w[:, :8] = x, w
    inputs = [
        (wide_x[:, 5:13], wide_w[:, :8]),
        (np.asfortranarray(x), np.asfortranarray(w)),
        (x[::-1][::-1], w[::-1].copy()[::-1]),
        (x.astype(">f4"), w.astype(">f4")),
    ]
    for given in inputs:
        results = fastce.linear_cross_entropy_with_grad(*given, target, reduction="none")
        for a, b in zip(results[:3], right[:3], strict=True):
            np.testing.assert_array_equal(a, b)
    one = fastce.linear_cross_entropy_with_grad(x[0], w, target[0])
    np.testing.assert_array_equal(one[0], right[0][0])
    assert one[1].shape == (8,)


def test_out(backend):
    x, w, target, options = draw(12, 8, 30, np.float32, {"bias": True})
    right = fastce.linear_cross_entropy_with_grad(x, w, target, **options)
    memory = np.full((12, 20), 7, "f4")
    out = memory[:, 3:11], np.full((30, 8), 7, "f4"), np.full(30, 7, "f4")
    results = fastce.linear_cross_entropy_with_grad(x, w, target, **options, out=out)
    assert all(a is b for a, b in zip(results[1:], out, strict=True))
    for a, b in zip(results, right, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (memory[:, :3] == 7).all()
    assert (memory[:, 11:] == 7).all()
    into_input = x.copy()
    results = fastce.linear_cross_entropy_with_grad(
        into_input, w, target, **options, out=(into_input, None, None)
    )
    np.testing.assert_array_equal(into_input, right[1])
    np.testing.assert_array_equal(results[2], right[2])


PEAK = """
import numpy as np, fastce
def peak():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
rows, width, classes = 1000, 16, 80_000
dtype = np.{dtype}
x, w, target = np.ones((rows, width), dtype), np.ones((classes, width), dtype), np.arange(rows)
out = np.ones_like(x), np.ones_like(w), None
fastce.linear_cross_entropy_with_grad(x[:2], w, target[:2], out=(None, out[1], None))
before = peak()
fastce.linear_cross_entropy_with_grad(x, w, target, out=out)
print(peak() - before)
"""


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_memory(threaded, dtype):
    """Less than 64 MB beyond inputs and outputs, where the logits would take 320 MB."""
    if not Path("/proc/self/status").exists():
        pytest.skip("only Linux tells the peak of the memory of a process")
    result = subprocess.run(
        [sys.executable, "-c", PEAK.format(dtype=dtype)],
        env=os.environ | {"FASTCE_BACKEND": threaded},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    grown = 1024 * int(result.stdout)
    assert 5e6 < grown < 64e6


def test_errors(backend):
    x, w, target, _ = draw(4, 6, 9, np.float32, {})
    f = fastce.linear_cross_entropy_with_grad
    for call, kind, message in [
        (lambda: f(x, w[:, :5], target), ValueError, r"\(4, 6\) and \(9, 5\)"),
        (lambda: f(x, w.astype("f8"), target), TypeError, "float32, float64"),
        (lambda: f(x, w, target + 0.5), TypeError, "class indices, got dtype float64"),
        (lambda: f(x, w, target[:3]), ValueError, r"\(3,\)"),
        (lambda: f(x, w, [0, 1, 9, 0]), IndexError, r"target\[2\] is 9"),
        (lambda: f(x, w, target, linear_bias=x[0]), ValueError, r"\(9,\), got \(6,\)"),
        (lambda: f(x, w, target, weight=np.ones(4)), ValueError, r"\(9,\)"),
        (lambda: f(x, w, target, softcap=-1.0), ValueError, "-1.0"),
        (lambda: f(x, w, target, label_smoothing=2.0), ValueError, "2.0"),
        (lambda: f(x, w, target, reduction="avg"), ValueError, "avg"),
        (lambda: f(x, w, target, out=x), TypeError, "tuple of three"),
        (lambda: f(x, w, target, out=(w, None, None)), ValueError, r"\(4, 6\)"),
        (lambda: f(x, w, target, out=(None, None, w)), ValueError, "no linear_bias"),
        (lambda: f(x, w, target, out=(None, np.zeros((6, 9), "f4").T, None)), ValueError, "copy"),
    ]:
        with pytest.raises(kind, match=message):
            call()
    shared = np.zeros((9, 6), "f4")
    with pytest.raises(ValueError, match="overlap"):
        f(x, w, target, out=(shared[:4], shared, None))
    assert not shared.any()


def test_torch(backend):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    for options in OPTIONS.values():
        if "z_loss" in options or "softcap" in options:
            continue
        x, w, target, more = draw(20, 12, 50, np.float64, options)
        b = more.pop("linear_bias", None)
        leaves = [torch.tensor(a, requires_grad=True) for a in (x, w, b) if a is not None]
        z = torch.nn.functional.linear(*leaves)
        kept = dict(more)
        if "weight" in kept:
            kept["weight"] = torch.tensor(kept["weight"])
        right = torch.nn.functional.cross_entropy(z, torch.tensor(target), **kept)
        right.sum().backward()
        loss, *grads = fastce.linear_cross_entropy_with_grad(x, w, target, linear_bias=b, **more)
        np.testing.assert_allclose(loss, right.detach().numpy(), rtol=1e-12)
        grads = [grad for grad in grads if grad is not None]
        for grad, leaf in zip(grads, leaves, strict=True):
            np.testing.assert_allclose(grad, leaf.grad.numpy(), rtol=1e-10, atol=1e-14)


def test_bfloat16_input_is_not_rounded_twice(backend):
    """Its logits are those of float32, of which PyTorch keeps 8 bits."""
    x, w, target, _ = draw(50, 64, 200, BF16, {})
    wide = [a.astype(np.float64) for a in (x, w)]
    loss = fastce.linear_cross_entropy(x, w, target)
    right = fastce.linear_cross_entropy(*wide, target)
    assert abs(loss - right) < 1e-6 * right


def test_on_a_gpu():
    class OnGPU:
        __cuda_array_interface__ = {"shape": (2, 2), "typestr": "<f4", "data": (0, False)}  # noqa: RUF012

    with pytest.raises(fastce.BackendError, match="GPU"):
        fastce.linear_cross_entropy(OnGPU(), OnGPU(), [0, 1])


@pytest.mark.parametrize("dtype", ["f64", "f32", "f16", "bf16"])
def test_gradients_of_logits_of_any_size(backend, dtype):
    """Two equal logits of 1e4 to 1e8, or one that dominates: 16 bits computed the gradient of the
    layer from a rounded logsumexp.
    """
    for size in (2.0**13,) if dtype == "f16" else (2.0**13, 2.0**27):
        x = np.array([[size, 0]], DTYPES[dtype])
        w = np.array([[1, 0], [1, 0], [0.5, 0]], DTYPES[dtype])
        dw = fastce.linear_cross_entropy_backward(1.0, x, w, [0])[1]
        right = np.array([[-size / 2, 0], [size / 2, 0], [0, 0]])
        np.testing.assert_array_equal(dw.astype(np.float64), right)
    x, w = np.array([[8.0]], DTYPES[dtype]), np.array([[1], [0], [0]], DTYPES[dtype])
    dw = fastce.linear_cross_entropy_backward(1.0, x, w, [0])[1].astype(np.float64)
    p = np.exp(-8) / (1 + 2 * np.exp(-8))
    np.testing.assert_allclose(dw[:, 0], [-16 * p, 8 * p, 8 * p], rtol=2.0**-7)


@pytest.mark.parametrize("dtype", ["f4", "f2", "f8"])
def test_softcap_of_saturated_logits(backend, dtype):
    """The slope 1 - tanh**2 is never negative."""
    x, w = np.array([[1000.0]], dtype), np.array([[1.0], [-1.0]], dtype)
    for softcap in 30.0, 7.0, 50.0 / 3:
        _, dx, dw, _ = fastce.linear_cross_entropy_with_grad(x, w, [1], softcap=softcap)
        assert (dx == 0).all()
        assert (dw == 0).all()
