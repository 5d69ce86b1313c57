"""binary_cross_entropy of probabilities and of logits, with gradients, on every backend."""

import itertools
import zlib
from typing import NamedTuple

import ml_dtypes
import numpy as np
import pytest
from support.cases import DTYPES
from support.layouts import DENSE, LAYOUTS
from support.truths import BF16, Truth, assert_close, compute, ulp_error, widen

import fastce

dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
LOGITS, PROBS = "binary_cross_entropy_with_logits", "binary_cross_entropy"
forms = pytest.mark.parametrize("form", [LOGITS, PROBS])


# --- the truth ----------------------------------------------------------------------------


def _weights(weight, like):
    return np.ones_like(like) if weight is None else np.broadcast_to(widen(weight), like.shape)


def truth(form, x, target, *, weight=None, pos_weight=None, label_smoothing=0.0):
    """Of each element: the loss and its derivative, in wider arithmetic."""
    x = widen(x)
    t = np.asarray(target).astype(x.dtype)
    w, v = _weights(weight, x), _weights(pos_weight, x)
    with np.errstate(all="ignore"):
        if form == PROBS:
            log_p, log_q = (np.maximum(log, -100) for log in (np.log(x), np.log1p(-x)))
            loss = -w * (t * log_p + (1 - t) * log_q)
            slope = w * (x - t) / np.maximum(x * (1 - x), x.dtype.type(1e-12))
            return Truth(loss, np.abs(loss)), Truth(slope, np.abs(slope))
        s = x.dtype.type(label_smoothing)
        a = w * v * (t * (1 - s) + s / 2)
        b = w * ((1 - t) * (1 - s) + s / 2)
        # logaddexp: another formula than that of the kernels
        terms = [
            np.where((f == 0) & ~np.isnan(x), 0, f * np.logaddexp(0, side))
            for f, side in ((a, -x), (b, x))
        ]
        ups, downs = b / (1 + np.exp(-x)), a / (1 + np.exp(x))
        # of loss and slope: what they are made of, term by term
        return (
            Truth(sum(terms), sum(map(np.abs, terms))),
            Truth(ups - downs, np.abs(ups) + np.abs(downs)),
        )


def reduced(each, reduction):
    if reduction == "none":
        return each
    with np.errstate(invalid="ignore"):
        divide = np.float64(each.value.size if reduction == "mean" else 1)
        return Truth(*(v.sum() / divide for v in each))


# ULP of the compute dtype at the truth's scale, of single elements. Measured: see the test.
ULP = {LOGITS: (4, 5), PROBS: (4, 4)}


class Row(NamedTuple):
    """Options of a call, but the weights: whether there are such, of which shape for (a, b)."""

    name: str
    form: str
    options: dict
    weight: tuple | None = None
    pos_weight: tuple | None = None
    soft: bool = False

    def __str__(self):
        return f"{'logits' if self.form == LOGITS else 'probs'}-{self.name}"

    def draw(self, shape, dtype):
        """(x, target, options)"""
        rng = np.random.default_rng(zlib.crc32(f"{self} {shape}".encode()))
        x = 4 * rng.standard_normal(shape)
        x = (1 / (1 + np.exp(-x)) if self.form == PROBS else x).astype(dtype)
        t = rng.random(shape)
        options = dict(self.options)
        for which in "weight", "pos_weight":
            given = getattr(self, which)
            if given is not None:
                kept = [n if keep else 1 for n, keep in zip(shape, given, strict=False)]
                options[which] = rng.uniform(0.5, 2, kept[-len(shape) :]).astype(compute(dtype))
        return x, (t if self.soft else t < 0.3).astype(dtype), options

    def results(self, x, target, options, **more):
        """What the three functions give: loss, gradient, (loss, gradient)."""
        more_backward = {k: v for k, v in more.items() if k == "out"}
        loss = getattr(fastce, self.form)(x, target, **options)
        grad = getattr(fastce, f"{self.form}_backward")(1.0, x, target, **options, **more_backward)
        return loss, grad


ROWS = [
    Row("mean", LOGITS, {}),
    Row("sum-soft", LOGITS, {"reduction": "sum"}, soft=True),
    Row("none", LOGITS, {"reduction": "none"}),
    Row("smooth", LOGITS, {"label_smoothing": 0.1}),
    Row("weight", LOGITS, {"reduction": "none"}, weight=(1, 1)),
    Row("columns", LOGITS, {"label_smoothing": 0.3}, weight=(0, 1), pos_weight=(0, 1), soft=True),
    Row("rows", LOGITS, {"reduction": "none"}, weight=(1, 0), pos_weight=(0, 0)),
    Row("mean", PROBS, {}),
    Row("sum-soft", PROBS, {"reduction": "sum"}, soft=True),
    Row("none", PROBS, {"reduction": "none"}),
    Row("columns", PROBS, {"reduction": "none"}, weight=(0, 1), soft=True),
    Row("rows", PROBS, {}, weight=(1, 0)),
]
rows = pytest.mark.parametrize("row", ROWS, ids=str)


def limits(row, dtype, size):
    """Of the loss and of the gradient. Sums of float64 have nothing wider, see cases.py."""
    loss, slope = ULP[row.form]
    if dtype == np.float64 and row.options.get("reduction") != "none":
        return loss + size / 4, slope + 1
    return loss, slope + 1  # the gradient is divided by the number of elements


def check(row, x, target, options, results):
    loss, grad = results
    plain = {k: v for k, v in options.items() if k != "reduction"}
    reduction = options.get("reduction", "mean")
    each, slope = truth(row.form, x, target, **plain)
    divisor = slope.value.dtype.type(np.size(x) if reduction == "mean" else 1)
    most = limits(row, np.asarray(x).dtype, np.size(x))
    assert_close(loss, reduced(each, reduction), most[0], f"{row}: loss")
    assert_close(grad, Truth(*(v / divisor for v in slope)), most[1], f"{row}: gradient")


# 144: each row has loops of its own for the kinds of weights, each dtype for loading and storing.
@dtypes
@rows
def test_truth(backend, row, dtype):
    for shape in (7, 131), (40, 103), (33, 1):
        x, target, options = row.draw(shape, dtype)
        assert np.unique(x).size > x.size / 8  # bfloat16 has few numbers
        check(row, x, target, options, row.results(x, target, options))


@pytest.mark.parametrize("target_dtype", ["f4", "f8", "f2", BF16], ids=str)
@pytest.mark.parametrize("dtype", [DTYPES["f16"], DTYPES["bf16"]], ids=str)
@forms
def test_targets_keep_their_precision(backend, form, dtype, target_dtype):
    """Rounded to 16 bits beforehand, they cost 2e-3 of the loss."""
    row = next(row for row in ROWS if row.form == form and row.name == "columns")
    for shape in (3, 5), (40, 131):
        x, _, options = row.draw(shape, dtype)
        target = np.random.default_rng(0).random(shape).astype(np.float32).astype(target_dtype)
        check(row, x, target, options, row.results(x, target, options))


# 144, as above: the pass for both has loops of its own, too.
@dtypes
@rows
def test_fused_is_separate(backend, row, dtype):
    """To the last bit, fresh, into `out` and in place; and inputs are not written."""
    for shape in (5, 7), (67, 131):
        x, target, options = row.draw(shape, dtype)
        before = x.copy(), target.copy()
        loss, grad = row.results(x, target, options)
        fused = getattr(fastce, f"{row.form}_with_grad")
        backward = getattr(fastce, f"{row.form}_backward")
        assert loss.dtype == compute(dtype)
        assert grad.dtype == dtype
        for out in (None, np.full_like(x, 7)):
            both = fused(x, target, **options, out=out)
            assert out is None or both[1] is out
            np.testing.assert_array_equal(both[0], loss)
            np.testing.assert_array_equal(both[1], grad)
        for a, b in zip((x, target), before, strict=True):
            np.testing.assert_array_equal(a, b)
        for over in 0, 1:  # the input, or the target
            arrays = [x.copy(), target.copy()]
            both = fused(*arrays, **options, out=arrays[over])
            assert both[1] is arrays[over]
            np.testing.assert_array_equal(both[0], loss)
            np.testing.assert_array_equal(both[1], grad)
            arrays = [x.copy(), target.copy()]
            assert backward(1.0, *arrays, **options, out=arrays[over]) is arrays[over]
            np.testing.assert_array_equal(arrays[over], grad)


# --- values -------------------------------------------------------------------------------


def test_hand_values(backend):
    close = np.testing.assert_allclose
    p, t = [0.5, 0.8, 0.25], [0, 1, 0.5]
    each = [np.log(2), -np.log(0.8), -(np.log(0.25) + np.log(0.75)) / 2]
    slopes = [2, -1.25, -4 / 3]
    loss, grad = fastce.binary_cross_entropy_with_grad(p, t, reduction="none")
    close(loss, each, rtol=2e-15)
    close(grad, slopes, rtol=2e-15)
    close(fastce.binary_cross_entropy(p, t), np.mean(each), rtol=2e-15)
    close(fastce.binary_cross_entropy(p, t, reduction="sum"), np.sum(each), rtol=2e-15)
    # the mean divides by the number of elements, not by the weights
    close(fastce.binary_cross_entropy(p, t, weight=[3, 0, 1]), (3 * each[0] + each[2]) / 3)

    x = np.log(np.divide(p, np.subtract(1, p)))
    loss, grad = fastce.binary_cross_entropy_with_logits_with_grad(x, t, reduction="none")
    close(loss, each, rtol=2e-15)
    close(grad, [0.5, -0.2, -0.25], rtol=4e-15)  # p - t
    weighted = fastce.binary_cross_entropy_with_logits_with_grad(
        x, t, weight=[2, 3, 1], pos_weight=5, reduction="none"
    )
    close(weighted[0], [2 * each[0], 15 * each[1], -(5 * np.log(0.25) + np.log(0.75)) / 2])
    close(weighted[1], [1, -3, (0.25 - 5 * 0.75) / 2])
    # smoothing 0.4: targets 0.2, 0.8, 0.5
    smooth = fastce.binary_cross_entropy_with_logits_with_grad(
        x, t, label_smoothing=0.4, reduction="none"
    )
    close(smooth[0][0], np.log(2))
    close(smooth[0][1], -(0.8 * np.log(0.8) + 0.2 * np.log(0.2)))
    close(smooth[1], [0.3, 0, -0.25], atol=1e-16)
    grad = fastce.binary_cross_entropy_with_logits_backward([2.0, -1, 4], x, t, reduction="none")
    close(grad, [1, 0.2, -1], rtol=4e-15)
    close(fastce.binary_cross_entropy_with_logits_backward(6.0, x, t), [1, -0.4, -0.5], rtol=4e-15)


@pytest.mark.parametrize("target", [0.0, 1.0])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_exact_for_logits_of_any_size(backend, dtype, target):
    """ULP of the value itself: with such targets nothing cancels. PyTorch's gradient near 1 and
    log(sigmoid(x)) lose all digits there.
    """
    rng = np.random.default_rng(0)
    size = np.exp2(rng.uniform(-30, np.log2(1e4), 40_000))
    x = np.concatenate([size, -size]).astype(dtype)
    t = np.full_like(x, target)
    loss, grad = fastce.binary_cross_entropy_with_logits_with_grad(x, t, reduction="none")
    each, slope = truth(LOGITS, x, t)
    assert ulp_error(loss, each.value).max() <= 3
    assert ulp_error(grad, slope.value).max() <= 3


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_exact_for_any_probability(backend, dtype):
    rng = np.random.default_rng(0)
    small = np.exp2(rng.uniform(-100, 0, 20_000))
    p = np.concatenate([small, 1 - small[small > 1e-7]]).astype(dtype)
    for target in 0.0, 1.0, 0.25:
        t = np.full_like(p, target)
        loss, grad = fastce.binary_cross_entropy_with_grad(p, t, reduction="none")
        each, slope = truth(PROBS, p, t)
        assert ulp_error(loss, each.value).max() <= 4
        assert ulp_error(grad, slope.value).max() <= 3


@dtypes
def test_infinite_logits(backend, dtype):
    inf = np.inf
    x = np.array([inf, -inf, inf, -inf, inf, -inf], dtype)
    t = np.array([1, 0, 0, 1, 0.5, 0.5], dtype)
    f = fastce.binary_cross_entropy_with_logits_with_grad
    loss, grad = f(x, t, reduction="none")
    np.testing.assert_array_equal(loss, [0, 0, inf, inf, inf, inf])
    np.testing.assert_array_equal(grad.astype("f4"), [0, 0, 1, -1, 0.5, -0.5])
    # a factor of 0 costs nothing
    loss, grad = f(x, t, weight=0, reduction="none")
    np.testing.assert_array_equal(loss, 0)
    np.testing.assert_array_equal(grad.astype("f4"), 0)
    loss, grad = f(x, t, pos_weight=0, reduction="none")
    np.testing.assert_array_equal(loss, [0, 0, inf, 0, inf, 0])
    np.testing.assert_array_equal(grad.astype("f4"), [0, 0, 1, 0, 0.5, 0])


@forms
@dtypes
def test_nan_stays_where_it_is(backend, form, dtype):
    x = np.full(37, 0.25, dtype)
    t = np.ones_like(x)
    x[5], t[20] = np.nan, np.nan
    f = getattr(fastce, f"{form}_with_grad")
    for options in {}, {"weight": 0}:
        loss, grad = f(x, t, reduction="none", **options)
        for result in loss, grad.astype("f4"):
            np.testing.assert_array_equal(np.flatnonzero(np.isnan(result)), [5, 20])
    assert np.isnan(f(x, t)[0])


@dtypes
def test_clamp_of_logarithms(backend, dtype):
    """As PyTorch: no logarithm counts as less than -100."""
    p, t = np.array([0, 0, 1, 1, 0, 1], dtype), np.array([0, 1, 0, 1, 0.5, 0.5], dtype)
    loss, grad = fastce.binary_cross_entropy_with_grad(p, t, reduction="none")
    np.testing.assert_array_equal(loss, [0, 100, 100, 0, 50, 50])
    if dtype != np.float16:  # where 1e12 is infinite
        right = np.array([0, -1e12, 1e12, 0, -5e11, 5e11])
        np.testing.assert_allclose(grad.astype("f8"), right, rtol=2**-8)
    least = np.array([5e-324, np.exp(-100.5), np.exp(-99.5)])
    loss = fastce.binary_cross_entropy(least, np.ones(3), reduction="none")
    np.testing.assert_allclose(loss, [100, 100, 99.5], rtol=1e-15)


@forms
def test_finite_differences(backend, form):
    rng = np.random.default_rng(1)
    x, t = rng.uniform(0.1, 0.9, (2, 4, 5))
    options = {"weight": rng.uniform(0.5, 2, (4, 5))}
    if form == LOGITS:
        x = 6 * x - 3
        options |= {"pos_weight": rng.uniform(0.5, 2, 5), "label_smoothing": 0.2}
    upstream, step = rng.standard_normal((4, 5)), 1e-6
    loss = getattr(fastce, form)
    options["reduction"] = "none"
    slopes = (loss(x + step, t, **options) - loss(x - step, t, **options)) / (2 * step)
    grad = getattr(fastce, f"{form}_backward")(upstream, x, t, **options)
    np.testing.assert_allclose(grad, upstream * slopes, rtol=1e-7, atol=1e-9)


def test_of_sigmoid_is_of_logits(backend):
    x, t, _ = ROWS[1].draw((50, 20), np.float64)
    p = 1 / (1 + np.exp(-x))
    np.testing.assert_allclose(
        fastce.binary_cross_entropy(p, t, reduction="none"),
        fastce.binary_cross_entropy_with_logits(x, t, reduction="none"),
        rtol=1e-11,
    )
    slopes = fastce.binary_cross_entropy_backward(1.0, p, t, reduction="none")
    grad = fastce.binary_cross_entropy_with_logits_backward(1.0, x, t, reduction="none")
    np.testing.assert_allclose(slopes * p * (1 - p), grad, rtol=1e-9, atol=1e-12)


def test_two_classes_of_cross_entropy(backend):
    """A logit x is the logits (0, x) of two classes."""
    x, t, _ = ROWS[0].draw((200,), np.float64)
    both = np.stack([np.zeros_like(x), x], -1)
    np.testing.assert_allclose(
        fastce.binary_cross_entropy_with_logits(x, t, reduction="none"),
        fastce.cross_entropy(both, t.astype(int), reduction="none"),
        rtol=1e-14,
    )


@dtypes
def test_labels_beside_soft_targets(backend, dtype):
    """To the last bit the same as among labels only, for which there may be a shorter way."""
    p = np.concatenate([np.linspace(0, 1, 997), np.geomspace(1e-44, 1e-3, 300)]).astype(dtype)
    for label in 0, 1:
        t = np.full_like(p, label)
        loss, grad = fastce.binary_cross_entropy_with_grad(p, t, reduction="none")
        p2, t2 = np.append(p, dtype.type(0.5)), np.append(t, dtype.type(0.5))
        mixed, mixed_grad = fastce.binary_cross_entropy_with_grad(p2, t2, reduction="none")
        np.testing.assert_array_equal(loss, mixed[:-1])
        np.testing.assert_array_equal(grad, mixed_grad[:-1])


# --- targets and weights --------------------------------------------------------------------


@forms
@pytest.mark.parametrize("kind", ["?", "i1", "u1", "i4", ">i8", "u8", "f8", "f2", "bf16"])
def test_target_of_any_dtype(backend, form, kind):
    x, t, _ = Row("mean", form, {}).draw((40, 25), np.float32)
    right = getattr(fastce, f"{form}_with_grad")(x, t)
    given = t.astype(BF16 if kind == "bf16" else kind)
    ours = getattr(fastce, f"{form}_with_grad")(x, given)
    np.testing.assert_array_equal(ours[0], right[0])
    np.testing.assert_array_equal(ours[1], right[1])
    over = x.copy()
    np.testing.assert_array_equal(
        getattr(fastce, f"{form}_with_grad")(over, given, out=over)[1], right[1]
    )


SHAPES = [(), (1,), (7,), (5, 1), (1, 7), (3, 1, 1), (3, 1, 7), (1, 5, 1), (3, 5, 1), (3, 5, 7)]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
@pytest.mark.parametrize("shape", SHAPES)
def test_weights_of_every_broadcast_shape(backend, shape, order):
    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((2, 3, 5, 7)).astype(np.float32)
    x = np.ascontiguousarray(x.transpose(order)).transpose(np.argsort(order))
    w, v = rng.uniform(0.5, 2, (2, *shape)).astype(np.float32)
    options = {"reduction": "none"}
    f = fastce.binary_cross_entropy_with_logits_with_grad
    full = {"weight": np.broadcast_to(w, x.shape), "pos_weight": np.broadcast_to(v, x.shape)}
    right = f(x, t, **full, **options)
    ours = f(x, t, weight=w, pos_weight=v, **options)
    np.testing.assert_array_equal(ours[0], right[0])
    np.testing.assert_array_equal(ours[1], right[1])
    each, slope = truth(LOGITS, x, t, weight=w, pos_weight=v)
    assert_close(ours[0], each, 4)
    assert_close(ours[1], slope, 6)
    # weights of periods that do not divide a tile, in big arrays
    mixed = f(x, t, weight=w, pos_weight=v[..., :1] if shape else v, **options)
    each, _ = truth(LOGITS, x, t, weight=w, pos_weight=v[..., :1] if shape else v)
    assert_close(mixed[0], each, 4)


def test_weights_of_long_and_short_periods(backend):
    """Kernels take stretches of any length."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((9, 5000)).astype(np.float32)
    t = (x > 0).astype(np.float32)
    for w, v in itertools.permutations((np.float32(3), x[0] ** 2, x**2, x[:, :1] ** 2), 2):
        loss, grad = fastce.binary_cross_entropy_with_logits_with_grad(
            x, t, weight=w, pos_weight=v, reduction="none"
        )
        each, slope = truth(LOGITS, x, t, weight=w, pos_weight=v)
        assert_close(loss, each, 4)
        assert_close(grad, slope, 6)


def test_kernels_take_short_rows_of_weights(backend):
    """fastce repeats them; who calls a kernel need not."""
    from fastce._runtime.dispatch import kernel

    x, t, _ = ROWS[0].draw((300,), np.float32)
    right = fastce.binary_cross_entropy_with_logits(x, t, weight=2, pos_weight=np.tile([1, 3], 150))
    loss = np.empty(1, np.float32)
    kernel(PROBS, LOGITS)(
        x, t, np.array([2], "f4"), np.array([1, 3], "f4"), loss,
        denominator=300.0, label_smoothing=0.0, threads=1,
    )  # fmt: skip
    np.testing.assert_allclose(loss[0], right, rtol=2e-7)


# --- arrays -------------------------------------------------------------------------------


@forms
@pytest.mark.parametrize("where", LAYOUTS)
def test_layouts(backend, form, where):
    """Every layout gives the values of the dense one, and dense outputs are written in place."""
    row = Row("mean", form, {"reduction": "none"}, weight=(0, 0, 1))
    for dtype in np.float32, BF16:
        x, t, options = row.draw((4, 6, 10), np.dtype(dtype))
        right = getattr(fastce, f"{form}_with_grad")(x, t, **options)
        laid, laid_t = LAYOUTS[where](x), LAYOUTS[where](t)
        for a, b in ((laid, laid_t), (laid, t), (x, laid_t)):
            loss, grad = getattr(fastce, f"{form}_with_grad")(a, b, **options)
            np.testing.assert_array_equal(loss, right[0])
            np.testing.assert_array_equal(grad, right[1])
        upstream = LAYOUTS[where](np.full(x.shape, 2, compute(dtype)))
        twice = getattr(fastce, f"{form}_backward")(upstream, laid, laid_t, **options)
        np.testing.assert_array_equal(twice.astype("f4"), 2 * right[1].astype("f4"))
        if where in DENSE:
            for inner in DENSE:
                out = LAYOUTS[inner](np.zeros_like(x))
                result = getattr(fastce, f"{form}_with_grad")(laid, t, out=out, **options)[1]
                assert result is out
                np.testing.assert_array_equal(out, right[1])


def test_results_lie_as_the_input_does(backend):
    x = np.zeros((3, 4, 5), np.float32).transpose(2, 0, 1)
    loss, grad = fastce.binary_cross_entropy_with_logits_with_grad(x, x, reduction="none")
    assert loss.strides == grad.strides == x.strides


@forms
def test_broadcast_and_zero_dimensions(backend, form):
    f = getattr(fastce, f"{form}_with_grad")
    x = np.broadcast_to(np.float32([0.25, 0.5, 0.75]), (4, 3))
    loss, grad = f(x, np.ones((4, 3)), reduction="none")
    right = f(x.copy(), np.ones((4, 3)), reduction="none")
    np.testing.assert_array_equal(loss, right[0])
    np.testing.assert_array_equal(grad, right[1])
    loss, grad = f(np.float32(0.5), 1)
    assert isinstance(loss, np.float32)
    assert np.shape(grad) == ()
    loss = getattr(fastce, form)(0.5, 1, weight=3, reduction="none")
    assert loss == pytest.approx(3 * getattr(fastce, form)(0.5, True))


@forms
@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 4)])
def test_empty(backend, form, shape):
    x = np.empty(shape, np.float32)
    f = getattr(fastce, f"{form}_with_grad")
    for options in {}, {"weight": np.ones(shape[-1])}:
        loss, grad = f(x, x, **options)
        assert np.isnan(loss)  # the mean of nothing
        assert grad.shape == shape
        assert f(x, x, reduction="sum", **options)[0] == 0
        assert f(x, x, reduction="none", **options)[0].shape == shape
        backward = getattr(fastce, f"{form}_backward")
        assert backward(1.0, x, x, **options).shape == shape
        for upstream in 1.0, np.empty(shape):
            assert backward(upstream, x, x, reduction="none", **options).shape == shape


@forms
def test_partial_overlap(backend, form):
    memory = np.linspace(0.1, 0.9, 60)
    x, t = memory[:40].copy(), memory[5:45].copy()
    right = getattr(fastce, f"{form}_with_grad")(x, t)
    loss, grad = getattr(fastce, f"{form}_with_grad")(memory[:40], memory[5:45], out=memory[10:50])
    assert loss == right[0]
    np.testing.assert_array_equal(grad, right[1])
    weight = np.linspace(0.1, 0.9, 40)
    right = getattr(fastce, f"{form}_with_grad")(x, t, weight=weight)
    ours = getattr(fastce, f"{form}_with_grad")(x, t, weight=weight, out=weight)
    np.testing.assert_array_equal(ours[1], right[1])
    upstream = np.linspace(0.1, 0.9, 40)
    backward = getattr(fastce, f"{form}_backward")
    right = backward(upstream, x, t, reduction="none")
    np.testing.assert_array_equal(backward(upstream, x, t, reduction="none", out=upstream), right)


# --- threads ------------------------------------------------------------------------------


@rows
def test_the_same_bits_for_any_number_of_threads(threaded, threads, row):
    """Large enough to be spread, and to be written past the caches from 4 MB on."""
    for dtype, shape in ((np.float32, (11, 131_101)), (np.float16, (11, 9_001))):
        x, target, options = row.draw(shape, np.dtype(dtype))
        found = []
        shifted = np.empty(x.size + 1, dtype)[1:].reshape(x.shape)  # out at another alignment
        for count, out in ((1, None), (2, None), (5, shifted), (3, x.copy())):
            threads(count)
            loss, grad = getattr(fastce, f"{row.form}_with_grad")(x, target, **options, out=out)
            loss_alone = getattr(fastce, row.form)(x, target, **options)
            found.append((loss.tobytes(), grad.tobytes(), loss_alone.tobytes()))
        assert found[0][0] == found[0][2]
        assert all(f == found[0] for f in found)
        check(row, x, target, options, (loss, grad))


# --- errors -------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("bad", [-0.5, 1.5, np.inf, -np.inf])
def test_no_probability_is_refused(backend, dtype, bad, reduction):
    p = np.full((300, 70), 0.5, dtype)
    p[200, 3] = p[290, 5] = bad
    p[7] = np.nan  # is let through
    t = np.zeros_like(p)
    out = np.full_like(p, 7)
    message = rf"probs\[200, 3\] is {p[200, 3]}, and a probability is from 0 to 1"
    for call in (
        lambda: fastce.binary_cross_entropy(p, t, reduction=reduction),
        lambda: fastce.binary_cross_entropy_with_grad(p, t, reduction=reduction),
        lambda: fastce.binary_cross_entropy_with_grad(p, t, reduction=reduction, out=out),
        lambda: fastce.binary_cross_entropy_backward(1.0, p, t, reduction=reduction, out=out),
        lambda: fastce.binary_cross_entropy(p, t, weight=0, reduction=reduction),
    ):
        with pytest.raises(ValueError, match=message):
            call()
        assert (out == 7).all()
    with pytest.raises(ValueError, match=r"probs\[3, 200\] is"):
        fastce.binary_cross_entropy(p.T, t.T)
    with pytest.raises(ValueError, match=r"probs is 2.0"):
        fastce.binary_cross_entropy(2.0, 1)
    for least, label in itertools.product(
        (-1e-6, 1 + 2 * float(ml_dtypes.finfo(dtype).eps)), (0, 1, 0.5)
    ):
        with pytest.raises(ValueError, match="a probability is from 0 to 1"):
            fastce.binary_cross_entropy(np.full(20, least, dtype), np.full(20, label, dtype))
    p[7] = 0
    p[200, 3] = p[290, 5] = 1
    assert np.isfinite(fastce.binary_cross_entropy(p, t))


def test_errors(backend):
    x, t = np.full((3, 4), 0.5, np.float32), np.zeros((3, 4), np.float32)
    logits, with_grad = fastce.binary_cross_entropy_with_logits, f"{LOGITS}_with_grad"
    fused = getattr(fastce, with_grad)
    backward = fastce.binary_cross_entropy_with_logits_backward
    read_only = np.zeros((3, 4), np.float32)
    read_only.flags.writeable = False
    for error, message, call in [
        (ValueError, r"target must have the shape of logits, \(3, 4\), got \(4,\)",
         lambda: logits(x, t[0])),
        (ValueError, r"target must have the shape of probs",
         lambda: fastce.binary_cross_entropy(x, t.T)),
        (ValueError, r"weight must have a shape that broadcasts to that of logits, \(3, 4\), got",
         lambda: logits(x, t, weight=np.ones(3))),
        (ValueError, r"pos_weight must have a shape .* got \(2, 3, 4\)",
         lambda: logits(x, t, pos_weight=np.ones((2, 3, 4)))),
        (ValueError, "reduction must be 'mean', 'sum' or 'none', got 'all'",
         lambda: logits(x, t, reduction="all")),
        (ValueError, "label_smoothing must be from 0 to 1, got 1.5",
         lambda: logits(x, t, label_smoothing=1.5)),
        (TypeError, "logits must be float64", lambda: logits(x.astype(complex), t)),
        (TypeError, "target must hold numbers from 0 to 1, got dtype complex64",
         lambda: logits(x, t.astype("c8"))),
        (TypeError, "weight must be float64", lambda: logits(x, t, weight="a")),
        (TypeError, "masked array", lambda: logits(np.ma.masked_array(x), t)),
        (ValueError, r"out must have shape \(3, 4\) and dtype float32",
         lambda: fused(x, t, out=np.zeros((3, 4)))),
        (ValueError, "out is read-only", lambda: fused(x, t, out=read_only)),
        (ValueError, "cannot be written without a copy",
         lambda: fused(x, t, out=np.zeros((3, 8), np.float32)[:, ::2])),
        (ValueError, "cannot be written without a copy",
         lambda: fused(x, t, out=np.zeros((3, 4), np.float32)[::-1])),
        (TypeError, "out must be an array, got list", lambda: fused(x, t, out=[[0.0]])),
        (ValueError, "grad_loss must be a scalar for reduction='mean'",
         lambda: backward(np.ones((3, 4)), x, t)),
        (ValueError, r"grad_loss must have shape \(3, 4\), got \(3,\)",
         lambda: backward(np.ones(3), x, t, reduction="none")),
    ]:  # fmt: skip
        with pytest.raises(error, match=message):
            call()


# --- PyTorch ------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@forms
def test_torch(backend, form, reduction):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    function = getattr(torch.nn.functional, form)
    soft = Row("mean", form, {}, weight=(1, 1), pos_weight=(0, 1), soft=True)
    for shape in (30, 17), (1, 1), (64,):
        row = soft if len(shape) == 2 else Row("plain", form, {})
        x, t, options = row.draw(shape, np.float64)
        if form == PROBS:
            x.reshape(-1)[:2] = [0, 1][: x.size]
            options.pop("pos_weight", None)
        options["reduction"] = reduction
        there = torch.tensor(x, requires_grad=True)
        numbers = {k: torch.tensor(v) if k != "reduction" else v for k, v in options.items()}
        loss = function(there, torch.tensor(t), **numbers)
        upstream = np.random.default_rng(0).standard_normal(np.shape(loss.detach()))
        (right,) = torch.autograd.grad(loss, there, torch.tensor(upstream))
        ours = getattr(fastce, f"{form}_with_grad")(x, t, **options)
        # PyTorch's exp(x) loses digits of small losses, and its 1e-12 is a float32.
        np.testing.assert_allclose(ours[0], loss.detach().numpy(), rtol=1e-13, atol=1e-14)
        grad = getattr(fastce, f"{form}_backward")(upstream, x, t, **options)
        np.testing.assert_allclose(grad, right.numpy(), rtol=1e-8, atol=1e-15)


def test_torch_tensors(backend):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x, t, _ = ROWS[0].draw((5, 6), np.float32)
    right = fastce.binary_cross_entropy_with_logits_with_grad(x, t)
    there = torch.tensor(x)
    loss, grad = fastce.binary_cross_entropy_with_logits_with_grad(
        there, torch.tensor(t), out=there
    )
    assert grad is there
    assert isinstance(loss, torch.Tensor)
    assert float(loss) == right[0]
    np.testing.assert_array_equal(grad.numpy(), right[1])
