"""What holds for any array: hypothesis draws shapes, layouts, dtypes, axes and extreme values."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from support import truths as oracle
from support.cases import CASES, DTYPES
from support.layouts import LAYOUTS

import fastce

EXAMPLES = settings(max_examples=settings.default.max_examples * 150 // 100)
shapes = hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=20)
dtypes = st.sampled_from(list(DTYPES.values()))
layouts = st.sampled_from([k for k in LAYOUTS if k != "swapped bytes"])  # none for bfloat16
seeds = st.integers(0, 2**32 - 1)
INF = np.inf


@st.composite
def arrays(draw, special=True):
    """An array with classes on `axis`: some of it small, some huge, some not finite."""
    shape, dtype = draw(shapes), draw(dtypes)
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    rng = np.random.default_rng(draw(seeds))
    x = rng.standard_normal(shape) * draw(st.sampled_from([1e-3, 1.0, 30.0, 1e4]))
    x += draw(st.sampled_from([0.0, -300.0, 1e4]))
    if special:
        values = draw(st.lists(st.sampled_from([INF, -INF, np.nan, 0.0, 1e30, -1e30]), max_size=4))
        for value in values:
            x[rng.random(shape) < 0.1] = value
    with np.errstate(over="ignore"):
        x = x.astype(dtype)
    return LAYOUTS[draw(layouts)](x), axis


def close(result, truth, ulp):
    """Like `assert_close`, but for results that the dtype cannot hold."""
    value, scale = truth
    with np.errstate(over="ignore", invalid="ignore"):
        error = oracle.ulp_error(result, value, scale, oracle.compute(result.dtype))
    largest = np.finfo(np.float32).max if result.dtype != np.float64 else np.inf
    beyond = np.abs(np.nan_to_num(value)) > 0.49 * largest  # x - max may overflow on the way
    assert np.max(np.where(beyond, 0, error), initial=0) <= ulp


@EXAMPLES
@given(drawn=arrays())
@pytest.mark.parametrize("op", ["logsumexp", "softmax", "log_softmax"])
def test_truth(backend, op, drawn):
    x, axis = drawn
    truth = getattr(oracle, op)(np.moveaxis(x, axis, -1))
    if op != "logsumexp":
        truth = oracle.Truth(*(np.moveaxis(v, -1, axis) for v in truth))
    result = np.asarray(getattr(fastce, op)(x, axis=axis))
    assert result.dtype == x.dtype
    # as in test_exactness.py: 4 in float32, 6 in float64
    close(result, truth, 6 if x.dtype == np.float64 else 5)


@EXAMPLES
@given(drawn=arrays(special=False))
def test_a_distribution(backend, drawn):
    """Sums to 1, is never negative; the logarithms are never positive and agree."""
    x, axis = drawn
    p = fastce.softmax(x, axis=axis).astype(np.float64)
    log_p = fastce.log_softmax(x, axis=axis).astype(np.float64)
    eps = float(oracle.ulp(1.0, x.dtype))
    assert p.min() >= 0
    assert log_p.max() <= 0
    np.testing.assert_allclose(p.sum(axis=axis), 1, atol=8 * eps + 4 * eps * x.shape[axis] ** 0.5)
    gap = np.where(p > 0, np.abs(log_p), 0) * eps  # relative, of its exp
    tiny = float(oracle.ulp(0.0, x.dtype))
    assert np.all(np.abs(np.exp(log_p) - p) <= p * (8 * eps + 2 * gap) + tiny)


@EXAMPLES
@given(drawn=arrays(), place=layouts)
@pytest.mark.parametrize("op", ["softmax", "log_softmax"])
def test_out_does_not_change_a_bit(backend, op, drawn, place):
    x, axis = drawn
    fresh = getattr(fastce, op)(x, axis=axis)
    out = LAYOUTS[place](np.zeros_like(fresh))
    try:
        getattr(fastce, op)(x, axis=axis, out=out)
    except ValueError:
        assume(False)  # a layout that no kernel writes; test_shapes.py knows which
    assert_same_numbers(out, fresh, x.dtype)


def assert_same_numbers(a, b, dtype):
    """To a few ULP: rows and planes may round differently."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    # Subnormal numbers have only steps of one size; bfloat16 has them as float32, rounded.
    least = 4 * float(oracle.ulp(0.0, dtype))
    np.testing.assert_allclose(a, b, rtol=12 * float(oracle.ulp(1.0, dtype)), atol=least)


@EXAMPLES
@given(drawn=arrays(special=False), seed=seeds)
def test_order_of_the_classes_does_not_matter(backend, drawn, seed):
    x, axis = drawn
    order = np.random.default_rng(seed).permutation(x.shape[axis])
    shuffled = np.take(x, order, axis=axis)
    for op in fastce.softmax, fastce.log_softmax:
        assert_same_numbers(
            op(shuffled, axis=axis), np.take(op(x, axis=axis), order, axis=axis), x.dtype
        )


@EXAMPLES
@given(
    case=st.sampled_from([c for c in CASES if c.op != "logsumexp"]),
    shape=shapes,
    dtype=dtypes,
    layout=layouts,
    seed=seeds,
    data=st.data(),
)
def test_every_case(backend, case, shape, dtype, layout, seed, data):
    """The whole table, over any shape, axis and layout."""
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    case.check(shape, dtype, axis, LAYOUTS[layout], seed)


@EXAMPLES
@given(drawn=arrays(), seed=seeds, reduction=st.sampled_from(["mean", "sum", "none"]))
def test_ignored_rows_do_not_matter(backend, drawn, seed, reduction):
    x, axis = drawn
    rng = np.random.default_rng(seed)
    last = np.moveaxis(x, axis, -1)
    target = rng.integers(0, last.shape[-1], last.shape[:-1])
    target = np.where(rng.random(target.shape) < 0.5, -100, target)
    other = np.where((target == -100)[..., None], np.array(0.5, x.dtype), last)
    other = np.ascontiguousarray(np.moveaxis(other, -1, axis))
    options = {"axis": axis, "reduction": reduction, "label_smoothing": 0.1, "z_loss": 0.01}
    same = np.ascontiguousarray(x)  # the same layout as `other`: the same kernel
    with np.errstate(over="ignore"):
        loss, grad = fastce.cross_entropy_with_grad(same, target, **options)
        right, right_grad = fastce.cross_entropy_with_grad(other, target, **options)
    np.testing.assert_array_equal(loss, right)
    np.testing.assert_array_equal(grad.astype(float), right_grad.astype(float))
    ignored = np.moveaxis(grad, axis, -1)[target == -100].astype(float)
    np.testing.assert_array_equal(ignored, 0)


@EXAMPLES
@given(drawn=arrays(special=False), seed=seeds)
def test_gradient_sums_to_zero(backend, drawn, seed):
    """Adding a constant to the logits of a row changes no loss without z_loss."""
    x, axis = drawn
    x = x.astype(np.float64)
    last = np.moveaxis(x, axis, -1)
    target = np.random.default_rng(seed).integers(0, last.shape[-1], last.shape[:-1])
    _, grad = fastce.cross_entropy_with_grad(
        x, target, axis=axis, reduction="sum", label_smoothing=0.3
    )
    np.testing.assert_allclose(grad.sum(axis=axis), 0, atol=1e-13)
