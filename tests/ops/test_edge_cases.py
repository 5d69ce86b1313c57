"""What is not a finite number, not in range, not there, or not quite an array."""

import itertools

import numpy as np
import pytest
from support import truths
from support.cases import CASES, DTYPES
from support.rows import ROWS, spread

import fastce

INF, NAN = np.inf, np.nan
dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
floats = pytest.mark.parametrize("dtype", [np.float64, np.float32])
LOSSES = [fastce.cross_entropy, fastce.cross_entropy_with_grad]

PLACES = ("start", "apart", "end", "start -inf", "end -inf")


# 180: each kind of row for each dtype. How one is converted can lose or make what is not finite.
@dtypes
@pytest.mark.parametrize("name", ROWS)
def test_not_finite(backend, name, dtype):
    """Among 3 to 9000 classes, in rows and in planes."""
    eps = 4 * float(np.finfo(np.float32).eps if dtype != np.float64 else 1e-15)
    eps += {"float16": 1e-3, "bfloat16": 8e-3}.get(dtype.name, 0)
    wider = itertools.product((17, 130, 4099), PLACES)
    for n, place in (3, "start"), (4, "end"), (9000, "apart"), *wider:
        x = spread(ROWS[name], n, dtype, place)
        normal = np.linspace(-1, 1, n).astype(dtype)
        rows = np.stack([normal, x, normal])
        for op in "logsumexp", "softmax", "log_softmax":
            by_row = getattr(fastce, op)(rows)
            by_column = getattr(fastce, op)(np.ascontiguousarray(rows.T), axis=0).T
            with np.errstate(over="ignore"):
                right = getattr(truths, op)(x).value.astype(dtype)
            for ours in by_row, by_column:
                np.testing.assert_allclose(
                    ours[1].astype(float), right.astype(float), rtol=eps, atol=1e-7,
                    err_msg=f"{op} of {n} classes, {place}",
                )  # fmt: skip
                assert np.isfinite(ours[[0, 2]].astype(float)).all()  # its neighbours


@floats
@pytest.mark.parametrize("name", ROWS)
def test_loss_of_not_finite(backend, name, dtype):
    if name == "huge" and dtype == np.float32:
        return  # x - max is beyond float32: inf here
    for n, label, axis in itertools.product((3, 17, 130, 4099), (0, 1, 2), (0, 1)):
        x = spread(ROWS[name], n, dtype, "start")
        truth = truths.cross_entropy_with_grad(x[None], [label])
        right, slopes = (t.value.astype(np.float64) for t in truth)
        ours, grad = fastce.cross_entropy_with_grad(
            x.reshape((1, n) if axis else (n, 1)), [label], axis=axis
        )
        near = {"rtol": 1e-5, "atol": 1e-6, "err_msg": f"label {label} of {n}"}
        np.testing.assert_allclose(ours, right, **near)
        np.testing.assert_allclose(grad.ravel(), slopes[0], **near)


@dtypes
@pytest.mark.parametrize("n", [3, 17, 130, 5000])
@pytest.mark.parametrize("axis", [0, 1])
def test_ignored_rows_are_never_read(backend, axis, n, dtype):
    rng = np.random.default_rng(n)
    x = rng.standard_normal((40, n)).astype(dtype)
    target = rng.integers(0, n, 40)
    target[5:25:2] = -100
    clean = x.copy()
    x[5:15:2] = NAN
    x[15:25:4], x[17:25:4] = INF, -INF
    if axis == 0:
        x, clean = x.T.copy(), clean.T.copy()
    for options in {}, {"reduction": "none"}, {"label_smoothing": 0.1, "z_loss": 0.1}:
        loss, grad = fastce.cross_entropy_with_grad(x, target, axis=axis, **options)
        right, right_grad = fastce.cross_entropy_with_grad(clean, target, axis=axis, **options)
        np.testing.assert_array_equal(loss, right)
        np.testing.assert_array_equal(grad, right_grad)
        np.testing.assert_array_equal(np.moveaxis(grad, axis, -1)[5:25:2].astype(float), 0)
        grad = fastce.cross_entropy_backward(np.float32(2), x, target, axis=axis, **options)
        np.testing.assert_array_equal(np.moveaxis(grad, axis, -1)[5:25:2].astype(float), 0)
        loss, lse = fastce.cross_entropy(x, target, axis=axis, return_lse=True, **options)
        np.testing.assert_array_equal(loss, right)
        np.testing.assert_array_equal(lse[5:25:2], NAN)
        in_place = x.copy()
        fastce.cross_entropy_with_grad(in_place, target, axis=axis, out=in_place, **options)
        np.testing.assert_array_equal(in_place, right_grad)
    np.testing.assert_array_equal(
        fastce.nll_loss(x, target, axis=axis), fastce.nll_loss(clean, target, axis=axis)
    )


@dtypes
@pytest.mark.parametrize("n", [3, 130, 5000])
def test_all_ignored(backend, n, dtype):
    for rows in 1, 40:
        all_ignored(n, rows, dtype)


def all_ignored(n, rows, dtype):
    x, target = np.ones((rows, n), dtype), np.full(rows, -100)
    for axis in 1, 0:
        a = x if axis else x.T.copy()
        for reduction, right in ("mean", NAN), ("sum", 0), ("none", np.zeros(rows)):
            options = {"reduction": reduction, "axis": axis}
            loss, grad = fastce.cross_entropy_with_grad(a, target, **options)
            np.testing.assert_array_equal(loss, right)
            np.testing.assert_array_equal(grad, np.zeros_like(a))
            np.testing.assert_array_equal(fastce.cross_entropy(a, target, **options), right)
            np.testing.assert_array_equal(fastce.nll_loss(a, target, **options), right)
            for backward in fastce.cross_entropy_backward, fastce.nll_loss_backward:
                np.testing.assert_array_equal(backward(1.0, a, target, **options), 0 * a)


def test_weight_of_zero(backend):
    """A class of weight 0 costs nothing, even at -inf; a mean over nothing else is NaN."""
    x = np.array([[-INF, 0.0, 1.0], [3.0, 2.0, 1.0]])
    loss = fastce.cross_entropy(x, [0, 1], weight=[0.0, 1.0, 1.0], reduction="none")
    np.testing.assert_allclose(loss, [0, np.log(1 + np.e + np.exp(-1))])
    assert np.isnan(fastce.cross_entropy(x, [0, 0], weight=[0.0, 1.0, 1.0]))


# --- labels out of range ------------------------------------------------------------------


@pytest.mark.parametrize("bad", [-1, 3, -101, 2**31, -(2**31), 2**32, 2**62, -(2**63)])
@pytest.mark.parametrize("op", ["cross_entropy", "cross_entropy_with_grad", "nll_loss"])
def test_label_out_of_range(backend, op, bad):
    x = np.zeros((10_000, 3), np.float32)
    target = np.zeros(10_000, np.int64)
    target[[4321, 9999]] = bad, 7
    target[1234] = -100
    with pytest.raises(IndexError, match=rf"target\[4321\] is {bad}\b.*3 classes.*-100"):
        getattr(fastce, op)(x, target)


def test_label_out_of_range_leaves_out_alone(backend):
    x = np.ones((4, 3), np.float32)
    for target in [0, 1, 3, 0], [0, 1, 2, -1]:
        out = np.full_like(x, 7)
        with pytest.raises(IndexError, match=r"target\["):
            fastce.cross_entropy_with_grad(x, target, out=out)
        with pytest.raises(IndexError, match=r"target\["):
            fastce.cross_entropy_backward(1.0, x, target, out=out)
        with pytest.raises(IndexError, match=r"target\["):
            fastce.nll_loss_backward(1.0, x, target, out=out)
        np.testing.assert_array_equal(out, 7)
        with pytest.raises(IndexError, match=r"target\["):
            fastce.cross_entropy_with_grad(x, target, out=x)
        np.testing.assert_array_equal(x, 1)


def test_label_out_of_range_says_where(backend):
    x = np.zeros((2, 3, 4, 5))
    target = np.zeros((2, 4, 5), int)
    target[1, 2, 3] = 3
    with pytest.raises(IndexError, match=r"target\[1, 2, 3\] is 3"):
        fastce.cross_entropy(x, target, axis=1)
    with pytest.raises(IndexError, match=r"target\[1, 2, 3\] is 3"):
        fastce.cross_entropy(np.asfortranarray(x), target, axis=1)  # the first in C order
    with pytest.raises(IndexError, match=r"target is 3"):
        fastce.cross_entropy([0.0, 1.0, 2.0], 3)
    with pytest.raises(IndexError, match=rf"is {2**64 - 1}"):
        fastce.cross_entropy(np.zeros((1, 3)), np.array([2**64 - 1], np.uint64))
    with pytest.raises(IndexError, match="is 255"):  # not -1
        fastce.cross_entropy(np.zeros((1, 3)), np.array([255], np.uint8), ignore_index=-1)
    with pytest.raises(IndexError, match=r"is 0, out of range for 0 classes"):
        fastce.cross_entropy(np.zeros((2, 0)), [0, 0])


# --- empty, 0-d ---------------------------------------------------------------------------


@dtypes
def test_no_rows(backend, dtype):
    shapes = ((0, 3), -1), ((3, 0), 0), ((0, 3, 4), 1), ((2, 3, 0), 1), ((4, 100, 0), 1)
    for shape, axis in shapes:
        x = np.zeros(shape, dtype)
        rest = tuple(s for i, s in enumerate(shape) if i != axis % len(shape))
        for op in fastce.softmax, fastce.log_softmax:
            assert op(x, axis=axis).shape == shape
            assert op(x, axis=axis, out=x) is x
        assert fastce.logsumexp(x, axis=axis).shape == rest
        target = np.zeros(rest, int)
        for t in target, x:
            assert np.isnan(fastce.cross_entropy(x, t, axis=axis))
            assert fastce.cross_entropy(x, t, axis=axis, reduction="sum") == 0
            assert fastce.cross_entropy(x, t, axis=axis, reduction="none").shape == rest
            assert fastce.cross_entropy_with_grad(x, t, axis=axis)[1].shape == shape
        assert np.isnan(fastce.nll_loss(x, target, axis=axis))
        assert fastce.nll_loss_backward(1.0, x, target, axis=axis).shape == shape


@dtypes
def test_no_classes(backend, dtype):
    for shape, axis in ((2, 0), -1), ((0, 2), 0), ((2, 0, 3), 1):
        x = np.zeros(shape, dtype)
        rest = tuple(s for i, s in enumerate(shape) if i != axis % len(shape))
        np.testing.assert_array_equal(fastce.logsumexp(x, axis=axis), np.full(rest, -INF))
        for op in fastce.softmax, fastce.log_softmax:
            assert op(x, axis=axis).shape == shape
        ignored = np.full(rest, -100)
        assert fastce.cross_entropy(x, ignored, axis=axis, reduction="sum") == 0
        assert fastce.cross_entropy_with_grad(x, ignored, axis=axis)[1].shape == shape
        smooth = fastce.cross_entropy(x, ignored, axis=axis, reduction="sum", label_smoothing=0.1)
        assert smooth == 0


# As long as their axes are, a kernel that goes along one takes seconds, or for ever.
HUGE = [(2**20, 0, 2**12), (2**40, 0, 2**20), (0, 2**40, 2**20), (2**40, 2**20, 0), (2**31, 0)]


@pytest.mark.parametrize("shape", HUGE, ids=str)
def test_no_elements_of_a_huge_shape(backend, shape):
    x = np.empty(shape, np.float32)
    for axis in range(x.ndim):
        rest = np.delete(shape, axis)
        rows = float(np.prod(rest, dtype=np.float64))
        for op in fastce.softmax, fastce.log_softmax:
            assert op(x, axis=axis).shape == shape
            assert op(x, axis=axis, out=x) is x
        for op in fastce.softmax_backward, fastce.log_softmax_backward:
            assert op(x, x, axis=axis).shape == shape
        _reduced_losses(x, axis, rows)
        for reduction in "mean", "none":
            options = {"axis": axis, "reduction": reduction}
            for op in fastce.cross_entropy_backward, fastce.categorical_cross_entropy_backward:
                assert op(1.0, x, x, **options).shape == shape
            assert fastce.confidence_penalty_backward(1.0, x, **options).shape == shape
        if not rows:
            _each_row(x, axis, tuple(rest))


def _reduced_losses(x, axis, rows):
    """Of targets of probabilities, or none: there are as many labels as rows. A row of no classes
    is no distribution.
    """
    for reduction, right in ("sum", NAN if rows else 0.0), ("mean", NAN):
        options = {"axis": axis, "reduction": reduction}
        for op in "cross_entropy", "categorical_cross_entropy", "confidence_penalty":
            target = () if op == "confidence_penalty" else (x,)
            np.testing.assert_equal(float(getattr(fastce, op)(x, *target, **options)), right)
            loss, grad = getattr(fastce, f"{op}_with_grad")(x, *target, **options)
            np.testing.assert_equal(float(loss), right)
            assert grad.shape == x.shape


def _each_row(x, axis, rest):
    target = np.empty(rest, int)
    assert fastce.logsumexp(x, axis=axis).shape == rest
    for op in fastce.cross_entropy, fastce.focal_loss, fastce.nll_loss:
        assert np.isnan(op(x, target, axis=axis))
        assert op(x, target, axis=axis, reduction="none").shape == rest
    loss, lse = fastce.cross_entropy(x, x, axis=axis, reduction="none", return_lse=True)
    assert loss.shape == lse.shape == rest
    assert fastce.cross_entropy_with_grad(x, target, axis=axis)[1].shape == x.shape
    assert fastce.nll_loss_backward(1.0, x, target, axis=axis).shape == x.shape


def test_no_classes_of_many_rows(backend):
    """One row stands for all where the loss is reduced, but each has its logsumexp."""
    x = np.empty((3, 0, 2), np.float32)
    for reduction in "mean", "sum":
        loss, lse = fastce.cross_entropy(x, x, axis=1, reduction=reduction, return_lse=True)
        assert np.isnan(loss)
        assert lse.dtype == np.float32
        np.testing.assert_array_equal(lse, np.full((3, 2), -INF))
        grad = fastce.cross_entropy_backward(1.0, x, x, axis=1, reduction=reduction, lse=lse)
        assert grad.shape == x.shape


def test_zero_dimensions(backend):
    for op in fastce.softmax, fastce.log_softmax, fastce.logsumexp:
        with pytest.raises(ValueError, match="at least one axis, got a 0-d"):
            op(np.float32(1))
    with pytest.raises(ValueError, match="at least one axis, got a 0-d"):
        fastce.cross_entropy(1.0, 0)
    loss = fastce.cross_entropy(np.array([0.0, 0.0]), 1)  # one row: target and loss are 0-d
    assert loss == np.log(2)
    assert isinstance(loss, np.float64)
    assert fastce.cross_entropy(np.zeros(2), np.array(1), reduction="none") == np.log(2)
    assert isinstance(fastce.logsumexp(np.zeros(2, np.float32)), np.float32)


@dtypes
def test_every_result_is_an_array_of_its_own(backend, dtype):
    """Fresh results share no memory with inputs and can be written."""
    for case in CASES:
        arguments, options = case.inputs((6, 5), dtype)
        before = [a.copy() for a in arguments]
        for result in case.run(arguments, options):
            if isinstance(result, np.ndarray):
                assert result.flags.writeable
                assert not any(np.shares_memory(result, a) for a in arguments)
                result[...] = 0
        for a, b in zip(arguments, before, strict=True):
            np.testing.assert_array_equal(a, b)


def test_logits_whose_square_overflows(backend):
    loss = fastce.cross_entropy(np.array([[4e307, 0, 0]]), np.array([[0, 0.5, 0.5]]))
    assert loss == 4e307


@pytest.mark.parametrize("value", [None, "a", [0.1]])
@pytest.mark.parametrize("name", ["label_smoothing", "z_loss"])
def test_options_that_are_no_numbers(name, value):
    with pytest.raises(TypeError, match=f"{name} must be a number, got"):
        fastce.cross_entropy(np.zeros((2, 3)), [0, 1], **{name: value})
    right = fastce.cross_entropy(np.ones((2, 3)), [0, 1], **{name: 0.1})
    assert fastce.cross_entropy(np.ones((2, 3)), [0, 1], **{name: np.array(0.1)}) == right


def test_classes_on_the_axis_of_pytorch():
    with pytest.raises(ValueError, match="for classes on the second axis pass axis=1"):
        fastce.cross_entropy(np.zeros((2, 3, 4, 4)), np.zeros((2, 4, 4), int))
