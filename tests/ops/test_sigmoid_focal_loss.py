"""sigmoid_focal_loss and its gradients, on every backend."""

import functools

import numpy as np
import pytest
from conftest import SELECTED
from support.cases import DTYPES
from support.layouts import LAYOUTS
from support.truths import BF16, Truth, assert_close, compute, ulp_error, widen

import fastce

loss_of, with_grad = fastce.sigmoid_focal_loss, fastce.sigmoid_focal_loss_with_grad
backward = fastce.sigmoid_focal_loss_backward
each_loss = functools.partial(with_grad, reduction="none")
dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
gammas = pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.7])


# --- the truth ----------------------------------------------------------------------------


def truth(x, target, gamma=2.0, alpha=0.25):
    """Of each element: the loss and its derivative, in wider arithmetic, as the formulas read."""
    x = widen(x)
    t, one = np.asarray(target).astype(x.dtype), x.dtype.type(1)
    gamma = x.dtype.type(gamma)
    alpha_t = one if alpha is None else alpha * t + (one - x.dtype.type(alpha)) * (1 - t)
    with np.errstate(all="ignore"):
        p, q = 1 / (1 + np.exp(-x)), 1 / (1 + np.exp(x))
        u = t * q + (1 - t) * p
        bce = sum(
            np.where((f == 0) & ~np.isnan(x), 0, f * np.logaddexp(0, side))
            for f, side in ((t, -x), (1 - t, x))
        )
        power = np.power(u, gamma)
        loss = np.where(alpha_t * power == 0, 0, alpha_t * power * bce)
        # u' = (1 - 2 t) p q; with p q = 0 nothing is left of it, where bce may be infinite
        inner = np.where(p * q == 0, 0, gamma * bce * (p * q / u))
        terms = [(1 - t) * p, -t * q, (1 - t) * inner, -t * inner]
        slope, scale = (alpha_t * power * sum(v) for v in (terms, map(np.abs, terms)))
    nan = np.where(np.isnan(x) | np.isnan(t), np.nan, 0)
    return Truth(loss + nan, loss + nan), Truth(slope + nan, scale + nan)


def limit(gamma):
    """ULP at the truth's scale: 1 - p_t has some, of which its power has gamma times as many."""
    return 6 + 5 * gamma


def draw(shape, dtype, soft=False):
    rng = np.random.default_rng(len(shape) + shape[-1])
    t = rng.random(shape)
    return (4 * rng.standard_normal(shape)).astype(dtype), (t if soft else t < 0.3).astype(dtype)


def check(x, t, gamma, alpha, results, most=None):
    each, slope = truth(x, t, gamma, alpha)
    most = limit(gamma) if most is None else most
    assert_close(results[0], each, most, f"gamma {gamma}: loss")
    assert_close(results[1], slope, most, f"gamma {gamma}: gradient")


# 120: each power has a loop of its own, for targets of 0 and 1 and between, and for each dtype.
@dtypes
@gammas
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_truth(backend, dtype, gamma, soft):
    for shape in (7,), (40, 103):
        x, t = draw(shape, dtype, soft)
        for alpha in 0.25, None:
            loss, grad = each_loss(x, t, gamma=gamma, alpha=alpha)
            assert loss.dtype == compute(dtype)
            assert grad.dtype == dtype
            check(x, t, gamma, alpha, (loss, grad))
            options = {"gamma": gamma, "alpha": alpha}
            each = truth(x, t, gamma, alpha)[0].value
            for reduction in "sum", "mean":
                right = each.sum() / (x.size if reduction == "mean" else 1)
                ours = loss_of(x, t, reduction=reduction, **options)
                np.testing.assert_allclose(float(ours), float(right), rtol=1e-6)
            grad = backward(np.full(shape, 3.0), x, t, reduction="none", **options)
            slope = truth(x, t, gamma, alpha)[1]
            assert_close(grad, Truth(*(3 * v for v in slope)), limit(gamma) + 1)


@pytest.mark.parametrize("dtype", [DTYPES["f16"], DTYPES["bf16"]], ids=str)
@gammas
def test_targets_keep_their_precision(backend, gamma, dtype):
    for shape in (7,), (40, 103):
        x, _ = draw(shape, dtype)
        t = np.random.default_rng(0).random(shape).astype(np.float32)
        for target in t, t.astype(np.float16), t.astype(BF16):
            check(x, target, gamma, 0.25, each_loss(x, target, gamma=gamma))


@gammas
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_exact_for_logits_of_any_size(backend, dtype, gamma):
    """Where nothing cancels, ULP of the value itself, however small it is."""
    rng = np.random.default_rng(0)
    size = np.exp2(rng.uniform(-30, np.log2(1e4), 5000))
    x = np.concatenate([size, -size]).astype(dtype)
    for target in 0.0, 1.0, 0.25, 1e-6:
        t = np.full_like(x, target)
        loss, grad = each_loss(x, t, gamma=gamma)
        check(x, t, gamma, 0.25, (loss, grad))
        if target in (0, 1):
            each, slope = truth(x, t, gamma)
            assert ulp_error(loss, each.value).max() <= limit(gamma)
            assert ulp_error(grad, slope.value).max() <= limit(gamma)


@pytest.mark.parametrize("gamma", [1e-3, 40.0, 1e4, 1e30])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_unusual_powers(backend, dtype, gamma):
    x = np.linspace(-90, 90, 5001).astype(dtype)
    t = (np.arange(x.size) % 2).astype(dtype)
    loss, grad = each_loss(x, t, gamma=gamma, alpha=None)
    if gamma < 1e4:
        return check(x, t, gamma, None, (loss, grad))
    assert np.isfinite(loss).all()
    assert np.isfinite(grad).all()
    certain = x * (0.5 - t) > 40  # 1 - p_t rounds to 1, and its power is no longer 0
    certain &= gamma < 1e5
    np.testing.assert_allclose(loss[certain], np.abs(x[certain]), rtol=1e-5)


# --- values -------------------------------------------------------------------------------


def test_hand_values(backend):
    close = functools.partial(np.testing.assert_allclose, rtol=2e-14)
    x = np.log([1.0, 4.0, 0.25])  # p = 0.5, 0.8, 0.2
    t = [0, 1, 0.5]
    # 1 - p_t: 0.5, 0.2, 0.5; alpha_t: 0.75, 0.25, 0.5
    each = [0.75 * 0.25 * np.log(2), -0.25 * 0.04 * np.log(0.8), -0.125 * np.log(0.4)]
    loss, grad = each_loss(x, t)
    close(loss, each)
    slopes = [
        0.75 * (0.25 * 0.5 + 2 * 0.5 * np.log(2) * 0.25),
        0.25 * (0.04 * -0.2 + 2 * 0.2 * np.log(0.8) * 0.16),
        0.5 * 0.25 * -0.3,
    ]
    close(grad, slopes)
    close(loss_of(x, t), np.mean(each))
    close(loss_of(x, t, reduction="sum"), np.sum(each))
    close(
        loss_of(x, t, gamma=1, alpha=None, reduction="none")[:2],
        [np.log(2) / 2, -0.2 * np.log(0.8)],
    )
    close(backward(6.0, x, t), np.multiply(2, slopes))
    close(backward([2.0, -1, 4], x, t, reduction="none"), np.multiply([2, -1, 4], slopes))


@dtypes
def test_gamma_0_is_binary_cross_entropy(backend, dtype):
    x, t = draw((30, 41), dtype, soft=True)
    ours = each_loss(x, t, gamma=0, alpha=None)
    right = fastce.binary_cross_entropy_with_logits_with_grad(x, t, reduction="none")
    np.testing.assert_allclose(ours[0], right[0], rtol=1e-6)
    rtol = {2: 2**-7}.get(np.dtype(dtype).itemsize, 1e-5)
    np.testing.assert_allclose(ours[1].astype("f8"), right[1].astype("f8"), rtol=rtol, atol=1e-6)


@dtypes
@gammas
def test_infinite_logits(backend, dtype, gamma):
    inf = np.inf
    x = np.array([inf, -inf, inf, -inf, inf, -inf], dtype)
    t = np.array([1, 0, 0, 1, 0.5, 0.5], dtype)
    loss, grad = each_loss(x, t, gamma=gamma)
    np.testing.assert_array_equal(loss, [0, 0, inf, inf, inf, inf])
    half = 0.5 * 0.5**gamma * 0.5
    right = [0, 0, 0.75, -0.25, half, -half]
    np.testing.assert_allclose(grad.astype("f4"), right, rtol=2**-8)
    loss, grad = each_loss(x, t, gamma=gamma, alpha=0)  # a factor of 0 costs nothing
    np.testing.assert_array_equal(loss[[0, 1, 2, 3]], [0, 0, inf, 0])
    np.testing.assert_array_equal(grad.astype("f4")[:4], [0, 0, 1, 0])
    large = np.float64(compute(dtype) == np.float64) * 1e300 + 6e4
    x = np.array([large, -large, large, -large]).astype(dtype)
    loss, grad = each_loss(x, t[:4], gamma=gamma)
    np.testing.assert_allclose(
        loss, [0, 0, *(np.abs(x[2:].astype("f8")) * [0.75, 0.25])], rtol=1e-6
    )
    np.testing.assert_allclose(grad.astype("f4"), right[:4], rtol=2**-8)


@dtypes
@gammas
def test_nan_stays_where_it_is(backend, dtype, gamma):
    x = np.full(37, 0.25, dtype)
    t = np.ones_like(x)
    x[5], t[20] = np.nan, np.nan
    for alpha in 0.25, 0, None:
        loss, grad = each_loss(x, t, gamma=gamma, alpha=alpha)
        for result in loss, grad.astype("f4"):
            np.testing.assert_array_equal(np.flatnonzero(np.isnan(result)), [5, 20])
    assert np.isnan(loss_of(x, t, gamma=gamma))


@gammas
def test_finite_differences(backend, gamma):
    rng = np.random.default_rng(1)
    x, t = 6 * rng.random((4, 5)) - 3, rng.random((4, 5))
    upstream, step = rng.standard_normal((4, 5)), 1e-6
    options = {"gamma": gamma, "alpha": 0.4, "reduction": "none"}
    slopes = (loss_of(x + step, t, **options) - loss_of(x - step, t, **options)) / (2 * step)
    grad = backward(upstream, x, t, **options)
    np.testing.assert_allclose(grad, upstream * slopes, rtol=1e-7, atol=1e-9)


# --- arrays -------------------------------------------------------------------------------


@dtypes
@gammas
def test_fused_is_separate(backend, dtype, gamma):
    """To the last bit, fresh, into `out` and in place; and inputs are not written."""
    for shape, soft in (((5, 7), True), ((67, 131), False)):
        for reduction in "mean", "none":
            options = {"gamma": gamma, "reduction": reduction}
            x, t = draw(shape, dtype, soft)
            before = x.copy(), t.copy()
            loss, grad = loss_of(x, t, **options), backward(1.0, x, t, **options)
            for a, b in zip((x, t), before, strict=True):
                np.testing.assert_array_equal(a, b)
            copies = x.copy(), t.copy()
            for given, out in (
                ((x, t), None), ((x, t), np.full_like(x, 7)), ((copies[0], t), copies[0]),
                ((x, copies[1]), copies[1]),
            ):  # fmt: skip
                both = with_grad(*given, **options, out=out)
                assert out is None or both[1] is out
                np.testing.assert_array_equal(both[0], loss)
                np.testing.assert_array_equal(both[1], grad)
            over = x.copy()
            assert backward(1.0, over, t, **options, out=over) is over
            np.testing.assert_array_equal(over, grad)


@pytest.mark.parametrize("kind", ["?", "i1", ">i8", "u8", "f8", "f2", "bf16"])
def test_target_of_any_dtype(backend, kind):
    x, t = draw((40, 25), np.float32)
    right, ours = with_grad(x, t), with_grad(x, t.astype(BF16 if kind == "bf16" else kind))
    np.testing.assert_array_equal(ours[0], right[0])
    np.testing.assert_array_equal(ours[1], right[1])


@pytest.mark.parametrize("where", LAYOUTS)
def test_layouts(backend, where):
    x, t = draw((4, 6, 10), np.float32)
    right = each_loss(x, t)
    ours = each_loss(LAYOUTS[where](x), LAYOUTS[where](t))
    np.testing.assert_array_equal(ours[0], right[0])
    np.testing.assert_array_equal(ours[1], right[1])


@pytest.mark.parametrize("shape", [(0,), (3, 0)])
def test_empty(backend, shape):
    x = np.empty(shape, np.float32)
    loss, grad = with_grad(x, x)
    assert np.isnan(loss)  # the mean of nothing
    assert grad.shape == shape
    assert loss_of(x, x, reduction="sum") == 0
    assert loss_of(x, x, reduction="none").shape == shape
    for upstream in 1.0, np.empty(shape):
        grad = fastce.sigmoid_focal_loss_backward(upstream, x, x, reduction="none")
        assert grad.shape == shape


@pytest.mark.parametrize("gamma", [2.0, 3.7])
def test_the_same_bits_for_any_number_of_threads(threaded, threads, gamma):
    """Large enough to be spread, and to be written past the caches."""
    for dtype, shape in ((np.float32, (11, 131_101)), (np.float16, (11, 9_001))):
        x, t = draw(shape, np.dtype(dtype))
        found = set()
        for count, out in ((1, None), (3, None), (2, x.copy())):
            threads(count)
            loss, grad = with_grad(x, t, gamma=gamma, out=out)
            alone = loss_of(x, t, gamma=gamma)
            assert alone == loss
            found.add((loss.tobytes(), grad.tobytes()))
        assert len(found) == 1


@pytest.mark.skipif("numba" not in SELECTED, reason="FASTCE_TEST_BACKENDS leaves numba out")
@pytest.mark.parametrize("gamma", [2.0, 3.7])
def test_numba_vectorises(gamma):
    from fastce.kernels.numba import binary_cross_entropy as kernels
    from fastce.kernels.numba._compile import compiled

    given = (np.full(kernels.TILE, 0.5, np.float32),) * 6

    @compiled
    def run(x, a, b, powers, losses, slopes, formula):
        kernels.of_focal(x, a, b, formula, powers, losses, slopes)

    run(*given, kernels._focal(gamma, 0.25, 0.75))
    (assembly,) = run.inspect_asm().values()
    if "vdivss" not in assembly:
        pytest.skip("not a processor with AVX")
    # of the loops over 1 - p_t (1), the power (1), the loss alone (0), with its slope (2)
    assert assembly.count("vdivps") >= 4


# --- errors -------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [loss_of, with_grad, functools.partial(backward, 1.0)])
def test_errors(backend, function):
    x, t = np.zeros((3, 4), np.float32), np.ones((3, 4), np.float32)
    for error, message, given, options in [
        (ValueError, r"target must have the shape of logits, \(3, 4\), got \(4,\)", (x, t[0]), {}),
        (TypeError, "target must hold numbers", (x, t.astype(complex)), {}),
        (TypeError, "logits must", (x.astype(complex), t), {}),
        (ValueError, "gamma must be finite and at least 0, got -1", (x, t), {"gamma": -1}),
        (ValueError, "gamma must be finite", (x, t), {"gamma": np.nan}),
        (TypeError, "gamma must be a number, got None", (x, t), {"gamma": None}),
        (ValueError, "alpha must be .* at most 1, got 1.5", (x, t), {"alpha": 1.5}),
        (ValueError, "alpha must be .* at least 0 .*, got -1", (x, t), {"alpha": -1}),
        (TypeError, "alpha must be a number", (x, t), {"alpha": [0.5]}),
        (ValueError, "reduction must be", (x, t), {"reduction": "all"}),
    ]:
        with pytest.raises(error, match=message):
            function(*given, **options)


def test_errors_of_out_and_upstream(backend):
    x, t = np.zeros((3, 4), np.float32), np.ones((3, 4), np.float32)
    out = np.full((2, 4), 7, np.float32)
    with pytest.raises(ValueError, match="out must have shape"):
        with_grad(x, t, out=out)
    assert (out == 7).all()
    with pytest.raises(ValueError, match="grad_loss must be a scalar"):
        backward(x, x, t)
    with pytest.raises(ValueError, match=r"grad_loss must have shape \(3, 4\), got \(4,\)"):
        backward(x[0], x, t, reduction="none")


# --- PyTorch ------------------------------------------------------------------------------


@gammas
@pytest.mark.parametrize("alpha", [0.25, -1])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_torchvision(backend, gamma, alpha, reduction):
    """Its formula, written out: torchvision itself need not be installed."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x, t = draw((20, 31), np.float64, soft=True)
    there, target = torch.tensor(x, requires_grad=True), torch.tensor(t)
    p = torch.sigmoid(there)
    bce = torch.nn.functional.binary_cross_entropy_with_logits(there, target, reduction="none")
    loss = bce * (1 - (p * target + (1 - p) * (1 - target))) ** gamma
    if alpha >= 0:
        loss = (alpha * target + (1 - alpha) * (1 - target)) * loss
    loss = {"mean": loss.mean, "sum": loss.sum, "none": lambda: loss}[reduction]()
    (grad,) = torch.autograd.grad(loss.sum(), there)
    options = {"gamma": gamma, "alpha": None if alpha < 0 else alpha, "reduction": reduction}
    ours = with_grad(x, t, **options)
    np.testing.assert_allclose(ours[0], loss.detach(), rtol=1e-12)
    np.testing.assert_allclose(ours[1], grad, rtol=1e-9, atol=1e-13)
