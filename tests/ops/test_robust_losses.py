"""The robust losses and their gradients. Shapes and layouts: test_shapes.py."""

import itertools
import math

import numpy as np
import pytest
from support.cases import DTYPES, ROBUST_LOSSES
from support.rows import ROWS, spread
from support.truths import compute

import fastce

dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
floats = pytest.mark.parametrize("dtype", [np.float64, np.float32])
LOSSES = (
    "focal_loss",
    "generalized_cross_entropy",
    "symmetric_cross_entropy",
    "poly_cross_entropy",
    "confidence_penalty",
)
losses = pytest.mark.parametrize("name", LOSSES)
FUSED = [case for case in ROBUST_LOSSES if case.op.endswith("with_grad")]
LOG_P = np.log([[0.5, 0.25, 0.25], [0.125, 0.125, 0.75]])


def of(name, which=""):
    return getattr(fastce, name + which)


# 288: the pass for both with each kind of storage. Where it has other loops for the loss alone and
# for the gradient alone, test_fused_is_separate compares them; their factors are tested here, once.
@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        pytest.param(case, dtype, id=f"{case}-{name}")
        for i, case in enumerate(ROBUST_LOSSES)
        for j, (name, dtype) in enumerate(DTYPES.items())
        if case in FUSED or i % 4 == j
    ],
)
def test_truth(backend, case, dtype):
    case.check((23, 130), dtype)
    case.check((3, 11, 7), dtype, axis=1)
    case.check((40, 10), dtype)


def test_hand_values(backend):
    a, b = np.log(2), np.log(8)  # -log p of label 0
    h = 1.5 * a, 0.25 * b - 0.75 * np.log(0.75)
    right = {
        "focal_loss": (0.25 * a, 0.875**2 * b),
        "generalized_cross_entropy": ((1 - 0.5**0.7) / 0.7, (1 - 0.125**0.7) / 0.7),
        "symmetric_cross_entropy": (0.1 * a + 2, 0.1 * b + 3.5),
        "poly_cross_entropy": (a + 0.5, b + 0.875),
        "confidence_penalty": (a - 0.1 * h[0], b - 0.1 * h[1]),
    }
    for name, rows in right.items():
        loss = of(name)
        close = np.testing.assert_allclose
        close(loss(LOG_P, [0, 0], reduction="none"), rows, rtol=4e-15)
        close(loss(LOG_P, [0, 0]), np.mean(rows), rtol=4e-15)
        close(loss(LOG_P, [0, 0], reduction="sum"), np.sum(rows), rtol=4e-15)
        close(loss(LOG_P, [0, -100]), rows[0], rtol=4e-15)
    np.testing.assert_allclose(
        fastce.confidence_penalty(LOG_P, reduction="none", beta=2.0), [-2 * h[0], -2 * h[1]]
    )


def test_the_means(backend):
    """That of the focal loss is over rows; all others divide by the sum of the weights."""
    weight = np.array([3.0, 5.0, 7.0])
    target = np.array([0, 2])
    for name in LOSSES[1:4]:
        rows = of(name)(LOG_P, target, reduction="none")
        mean = of(name)(LOG_P, target, weight=weight)
        np.testing.assert_allclose(mean, np.sum(weight[target] * rows) / 10, rtol=1e-14)
    rows = fastce.focal_loss(LOG_P, target, reduction="none")
    mean = fastce.focal_loss(LOG_P, target, alpha=weight)
    np.testing.assert_allclose(mean, np.mean(weight[target] * rows), rtol=1e-14)
    mean = fastce.focal_loss(LOG_P, target, alpha=0.25)
    np.testing.assert_allclose(mean, 0.25 * np.mean(rows), rtol=1e-14)


@floats
def test_limits_are_cross_entropy(backend, dtype):
    (x, target), _ = FUSED[0].inputs((50, 12), dtype)
    loss, grad = fastce.cross_entropy_with_grad(x, target)
    for name, options in (
        ("focal_loss", {"gamma": 0}),
        ("generalized_cross_entropy", {"q": 0}),
        ("symmetric_cross_entropy", {"alpha": 1, "beta": 0}),
        ("poly_cross_entropy", {"epsilon": 0}),
        ("confidence_penalty", {"beta": 0}),
    ):
        ours, our_grad = of(name, "_with_grad")(x, target, **options)
        np.testing.assert_allclose(ours, loss, rtol=4 * np.finfo(dtype).eps)
        atol = 4 * np.finfo(dtype).eps * np.abs(grad).max()
        np.testing.assert_allclose(our_grad, grad, rtol=4 * np.finfo(dtype).eps, atol=atol)


# 192: each loss, its options and the kinds of storage are compiled into loops of their own.
@dtypes
@pytest.mark.parametrize("case", FUSED, ids=str)
def test_fused_is_separate(backend, case, dtype):
    for shape, axis in ((21, 67), 1), ((21, 7), 1), ((6, 30), 0):
        (x, target), options = case.inputs(shape, dtype, axis)
        loss, grad = case.run((x, target), options, axis)
        name = case.op.removesuffix("_with_grad")
        np.testing.assert_array_equal(loss, of(name)(x, target, axis=axis, **options))
        right = of(name, "_backward")(1.0, x, target, axis=axis, **options)
        np.testing.assert_array_equal(grad, right)
        assert loss.dtype == compute(dtype)
        assert grad.dtype == dtype
        before = x.copy()
        again, out = case.run((x, target), options, axis, out=x)
        assert out is x
        np.testing.assert_array_equal(again, loss)
        np.testing.assert_array_equal(out, grad)
        right = of(name, "_backward")(1.0, before, target, axis=axis, out=before, **options)
        np.testing.assert_array_equal(right, grad)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("case", FUSED, ids=str)
def test_finite_differences(backend, case, axis):
    (x, target), options = case.inputs((5, 4), np.float64, axis)
    name = case.op.removesuffix("_with_grad")
    grad_loss = np.arange(1.0, 1 + x.shape[1 - axis])
    grad_loss = grad_loss if options.get("reduction") == "none" else grad_loss[-1]
    step = 1e-6  # truncation about step**2, rounding about 1e-16 / step

    def loss(x):
        return np.sum(grad_loss * of(name)(x, target, axis=axis, **options))

    slopes = np.empty_like(x)
    for i in np.ndindex(x.shape):
        d = np.zeros_like(x)
        d[i] = step
        slopes[i] = (loss(x + d) - loss(x - d)) / (2 * step)
    grad = of(name, "_backward")(grad_loss, x, target, axis=axis, **options)
    np.testing.assert_allclose(grad, slopes, rtol=1e-6, atol=5e-8)


# --- the entropy alone ----------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("shape", [(9, 10), (4, 300), (2, 5000)])
def test_entropy_alone(backend, shape, dtype):
    """Every row counts; the gradient is the difference of those with a target and without."""
    x = (3 * np.random.default_rng(0).standard_normal(shape)).astype(dtype)
    wide = x.astype(np.float64)
    log_p = fastce.log_softmax(wide)
    p = np.exp(log_p)
    h = -np.sum(p * log_p, axis=1)
    eps = float(np.finfo(compute(dtype)).eps)
    loss, grad = fastce.confidence_penalty_with_grad(x, beta=0.5)
    np.testing.assert_allclose(loss, -0.5 * h.mean(), rtol=8 * eps)
    right = 0.5 * p * (log_p + h[:, None]) / len(x)
    of_storage = {"float16": 1e-3, "bfloat16": 8e-3}.get(dtype.name, 0)
    atol = 1e-7 if dtype.name == "float16" else 0  # subnormal
    scale = 0.5 * p * (h[:, None] - log_p) / len(x)
    error = np.abs(grad.astype(np.float64) - right) - of_storage * np.abs(right)
    assert np.all(error <= 16 * eps * scale + atol)
    np.testing.assert_array_equal(fastce.confidence_penalty(x, beta=0.5), loss)
    rows = fastce.confidence_penalty(np.ascontiguousarray(x.T), beta=1, axis=0, reduction="none")
    np.testing.assert_allclose(rows, -h, rtol=8 * eps)
    np.testing.assert_array_equal(fastce.confidence_penalty_backward(1, x, beta=0.5), grad)


def test_a_uniform_row_has_no_gradient(backend):
    for n in 2, 10, 200, 5000:
        loss, grad = fastce.confidence_penalty_with_grad(np.full((3, n), 7.0), beta=1)
        np.testing.assert_allclose(loss, -np.log(n), rtol=1e-15)
        np.testing.assert_array_equal(grad, 0)


def test_masked_classes(backend):
    """A logit of -inf is a class of probability 0, which has no entropy and no gradient."""
    for n in 4, 200:
        x = np.full((2, n), -np.inf)
        x[:, :2] = 0, 1
        loss, grad = fastce.confidence_penalty_with_grad(x, reduction="none", beta=1)
        right, right_grad = fastce.confidence_penalty_with_grad(x[:, :2], reduction="none", beta=1)
        np.testing.assert_allclose(loss, right)
        np.testing.assert_allclose(grad[:, :2], right_grad)
        np.testing.assert_array_equal(grad[:, 2:], 0)


# --- the ends of the range -------------------------------------------------------------------


@floats
@pytest.mark.parametrize("n", [4, 40, 400, 5000])
def test_a_dominating_label(backend, n, dtype):
    """1 - p = 3 exp(-30), not 0; powers of it, where there are any, are numbers of its size."""
    u = 3 * math.exp(-30)
    x = np.full((2, n), -1e4, dtype)
    x[:, [0, 1, 2, n - 1]] = 0, 0, 0, 30
    right = {  # name, options: loss, gradient at the label
        ("focal_loss", 0.5): (u**1.5, -1.5 * u**1.5),
        ("focal_loss", 1.0): (u**2, -2 * u**2),
        ("generalized_cross_entropy", 0.7): (u, -u),
        ("symmetric_cross_entropy", None): (4.1 * u, -4.1 * u),
        ("poly_cross_entropy", 1.0): (2 * u, -2 * u),
    }
    keys = dict(zip(LOSSES, ("gamma", "q", "", "epsilon"), strict=False))
    rtol = max(float(32 * np.finfo(dtype).eps), 4 * u)  # of the leading terms
    for (name, value), (loss, slope) in right.items():
        options = {} if value is None else {keys[name]: value}
        for axis in 0, 1:
            a = x if axis else np.ascontiguousarray(x.T)
            function, target = of(name, "_with_grad"), [n - 1] * 2
            ours, grad = function(a, target, axis=axis, reduction="none", **options)
            grad = grad if axis else grad.T
            np.testing.assert_allclose(ours, loss, rtol=rtol)
            np.testing.assert_allclose(grad[:, n - 1], slope, rtol=rtol)


@floats
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.5])
def test_a_certain_label(backend, gamma, dtype):
    """p is 1, or all that is representable: no NaN, no infinity."""
    for n in 1, 3, 200:
        x = np.full((2, n), -1e5, dtype)
        x[:, 0] = 0
        for epsilon in -1.0, 1.0:
            pairs = (
                fastce.focal_loss_with_grad(x, [0, 0], gamma=gamma),
                fastce.poly_cross_entropy_with_grad(x, [0, 0], epsilon=epsilon),
                fastce.generalized_cross_entropy_with_grad(x, [0, 0]),
                fastce.symmetric_cross_entropy_with_grad(x, [0, 0]),
            )
            for loss, grad in pairs:
                assert loss == 0
                np.testing.assert_array_equal(grad, 0)


@floats
@pytest.mark.parametrize("distance", [80.0, 700.0, 5000.0, np.inf])
def test_an_impossible_label(backend, distance, dtype):
    """p is next to 0, or 0: bounded losses stay bounded, with a gradient of 0."""
    for n in 3, 200:
        x = np.zeros((2, n), dtype)
        x[:, 1] = -distance
        rest = np.log(n - 1.0)
        certain = np.full(n, 1.0 / (n - 1))
        certain[1] = -1  # p - onehot
        for name, slope, loss in (
            ("focal_loss", 1, distance + rest),
            ("generalized_cross_entropy", 0, 1 / 0.7),
            ("symmetric_cross_entropy", 0.1, 0.1 * (distance + rest) + 4),
            ("poly_cross_entropy", 1, distance + rest + 1),
        ):
            ours, grad = of(name, "_with_grad")(x, [1, 1], reduction="none")
            np.testing.assert_allclose(ours, loss, rtol=1e-6)
            np.testing.assert_allclose(grad[0], slope * certain, rtol=1e-6, atol=1e-20)
        loss = fastce.symmetric_cross_entropy(x, [1, 1], alpha=0)
        np.testing.assert_allclose(loss, 4, rtol=1e-6)


@floats
@losses
def test_not_finite(backend, name, dtype):
    """A row without a distribution is NaN, loss and gradient; its neighbours are not."""
    for row, label, n in itertools.product(ROWS, (0, 1, 2), (3, 130)):
        if row == "huge" and dtype == np.float32:
            continue  # x - max is beyond float32
        x = spread(ROWS[row], n, dtype, "start")
        what = f"{row!r}, label {label} of {n}"
        fine = np.linspace(-1, 1, n).astype(dtype)
        rows = np.stack([fine, x, fine])
        right, right_grad = fastce.cross_entropy_with_grad(rows, [label] * 3, reduction="none")
        for axis in 0, 1:
            a = rows if axis else np.ascontiguousarray(rows.T)
            loss, grad = of(name, "_with_grad")(a, [label] * 3, axis=axis, reduction="none")
            grad = grad if axis else grad.T
            np.testing.assert_array_equal(np.isnan(loss), np.isnan(right), what)
            np.testing.assert_array_equal(np.isnan(grad), np.isnan(right_grad), what)


@losses
@pytest.mark.parametrize("n", [3, 17, 130, 5000])
def test_ignored_rows_are_never_read(backend, name, n):
    rng = np.random.default_rng(n)
    x = rng.standard_normal((40, n)).astype(np.float32)
    target = rng.integers(0, n, 40)
    target[5:25:2] = -100
    clean = x.copy()
    x[5:15:2], x[15:25:4], x[17:25:4] = np.nan, np.inf, -np.inf
    for axis in 0, 1:
        a, b = (v if axis else np.ascontiguousarray(v.T) for v in (x, clean))
        for reduction in "mean", "none":
            options = {"axis": axis, "reduction": reduction}
            loss, grad = of(name, "_with_grad")(a, target, **options)
            right, right_grad = of(name, "_with_grad")(b, target, **options)
            np.testing.assert_array_equal(loss, right)
            np.testing.assert_array_equal(grad, right_grad)
            np.testing.assert_array_equal(np.moveaxis(grad, axis, -1)[5:25:2], 0)
    assert np.isnan(of(name)(x, np.full(40, -100)))
    assert of(name)(x, np.full(40, -100), reduction="sum") == 0


@losses
def test_no_rows_and_no_classes(backend, name):
    for shape in (0, 3), (2, 0):
        x = np.zeros(shape)
        target = np.full(shape[0], -100)
        assert np.isnan(of(name)(x, target))
        assert of(name, "_with_grad")(x, target, reduction="none")[1].shape == shape
    assert np.isnan(fastce.confidence_penalty(np.zeros((0, 3))))
    assert np.isnan(fastce.confidence_penalty(np.zeros((2, 0)), reduction="none")).all()
    assert fastce.confidence_penalty_with_grad(np.zeros((2, 0)))[1].shape == (2, 0)


def test_weight_of_zero(backend):
    """A class of weight 0 costs nothing, even where it costs infinity."""
    x = np.array([[-np.inf, 0.0, 1.0], [3.0, 2.0, 1.0]])
    for name in "symmetric_cross_entropy", "poly_cross_entropy", "confidence_penalty":
        loss, grad = of(name, "_with_grad")(x, [0, 1], weight=[0.0, 1.0, 1.0], reduction="none")
        assert np.isfinite(loss).all()
        assert np.isfinite(grad).all()


# --- against PyTorch ------------------------------------------------------------------------


@losses
def test_torch(backend, name):
    """The formulas of the benchmarks, differentiated by autograd in float64."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: nothing to compare with")
    from bench.peers.robust_losses import FORMULAS

    rng = np.random.default_rng(0)
    for shape in (30, 7), (8, 200):
        x, target = 2 * rng.standard_normal(shape), rng.integers(0, shape[1], shape[0])
        tx = torch.tensor(x, requires_grad=True)
        theirs = FORMULAS[name](tx, torch.tensor(target))
        theirs.sum().backward()
        loss, grad = of(name, "_with_grad")(x, target, reduction="none")
        np.testing.assert_allclose(loss, theirs.detach().numpy(), rtol=1e-13)
        np.testing.assert_allclose(grad, tx.grad.numpy(), rtol=1e-12, atol=1e-15)


# --- what does not fit ----------------------------------------------------------------------

X, LABELS = np.zeros((4, 5), np.float32), np.array([0, 4, 2, 1])
BAD = {
    "gamma": (
        lambda: fastce.focal_loss(X, LABELS, gamma=-1),
        ValueError,
        "gamma must be finite and at least 0, got -1",
    ),
    "gamma inf": (
        lambda: fastce.focal_loss(X, LABELS, gamma=np.inf),
        ValueError,
        "gamma must be finite.*got inf",
    ),
    "gamma text": (
        lambda: fastce.focal_loss(X, LABELS, gamma="2"),
        TypeError,
        "gamma must be a number, got '2'",
    ),
    "alpha": (
        lambda: fastce.focal_loss(X, LABELS, alpha=[1.0, 2.0]),
        ValueError,
        r"alpha must have shape \(5,\).*got \(2,\)",
    ),
    "alpha nan": (
        lambda: fastce.focal_loss(X, LABELS, alpha=np.nan),
        ValueError,
        "alpha must be finite.*got nan",
    ),
    "q": (
        lambda: fastce.generalized_cross_entropy(X, LABELS, q=1.5),
        ValueError,
        r"q must be finite and at least 0 and at most 1, got 1\.5",
    ),
    "beta": (
        lambda: fastce.symmetric_cross_entropy(X, LABELS, beta=-1),
        ValueError,
        "beta must be finite and at least 0, got -1",
    ),
    "log_zero": (
        lambda: fastce.symmetric_cross_entropy(X, LABELS, log_zero=1),
        ValueError,
        "log_zero must be finite and at most 0, got 1",
    ),
    "epsilon": (
        lambda: fastce.poly_cross_entropy(X, LABELS, epsilon=-2),
        ValueError,
        "epsilon must be finite and at least -1, got -2",
    ),
    "penalty": (
        lambda: fastce.confidence_penalty(X, LABELS, beta=np.nan),
        ValueError,
        "beta must be finite, got nan",
    ),
    "weight alone": (
        lambda: fastce.confidence_penalty(X, weight=np.ones(5)),
        ValueError,
        "weight has no meaning without a target",
    ),
    "probabilities": (
        lambda: fastce.focal_loss(X, X),
        TypeError,
        "target of focal_loss must hold class indices, got dtype float32",
    ),
    "bool": (
        lambda: fastce.poly_cross_entropy(X, LABELS > 1),
        TypeError,
        "class indices, got dtype bool",
    ),
    "none": (lambda: fastce.focal_loss(X, None), TypeError, "class indices, got dtype object"),
    "shape": (
        lambda: fastce.focal_loss(X, LABELS[:3]),
        ValueError,
        r"target .*shape \(4,\).*got \(3,\)",
    ),
    "label": (
        lambda: fastce.focal_loss(X, LABELS + 1),
        IndexError,
        r"target\[1\] is 5, out of range for 5 classes",
    ),
    "reduction": (
        lambda: fastce.focal_loss(X, LABELS, reduction="avg"),
        ValueError,
        "reduction must be",
    ),
    "grad_loss": (
        lambda: fastce.focal_loss_backward(np.ones(4), X, LABELS),
        ValueError,
        r"scalar for reduction='mean', got shape \(4,\)",
    ),
    "out": (
        lambda: fastce.focal_loss_with_grad(X, LABELS, out=np.zeros((4, 5))),
        ValueError,
        r"out must have .*got \(4, 5\) and float64",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_refused(backend, name):
    call, error, message = BAD[name]
    with pytest.raises(error, match=message) as caught:
        call()
    assert type(caught.value) is error


def test_nothing_is_written_before_an_error(backend):
    for name in LOSSES:
        out = np.full_like(X, 7)
        with pytest.raises(IndexError, match=r"target\["):
            of(name, "_with_grad")(X, LABELS + 1, out=out)
        np.testing.assert_array_equal(out, 7)


def test_generalized_cross_entropy_where_p_is_0(backend):
    """p is exp(-750), but not its power."""
    _, grad = fastce.generalized_cross_entropy_with_grad(np.array([[0.0, -750.0]]), [1], q=0.02)
    np.testing.assert_allclose(grad, [[np.exp(-15), -np.exp(-15)]], rtol=1e-12)
