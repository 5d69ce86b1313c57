"""logsumexp, softmax, log_softmax and their gradients. Shapes and layouts: test_shapes.py."""

import numpy as np
import pytest
from support.cases import DTYPES, LOG_SOFTMAX

import fastce

MAPS = [fastce.softmax, fastce.log_softmax]
BACKWARDS = [fastce.softmax_backward, fastce.log_softmax_backward]
dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


@dtypes
@pytest.mark.parametrize("case", LOG_SOFTMAX, ids=str)
def test_truth(backend, case, dtype):
    case.check((23, 130), dtype)
    case.check((3, 11, 7), dtype, axis=1)


def test_hand_values(backend):
    x = np.log([[0.5, 0.25, 0.25], [0.125, 0.125, 0.75]])
    np.testing.assert_allclose(fastce.softmax(x), np.exp(x), rtol=1e-15)
    np.testing.assert_allclose(fastce.log_softmax(x + 7), x, rtol=4e-15)
    np.testing.assert_allclose(fastce.logsumexp(x + 7), [7, 7], rtol=1e-15)
    np.testing.assert_array_equal(fastce.softmax(np.zeros((2, 4))), np.full((2, 4), 0.25))
    np.testing.assert_array_equal(fastce.log_softmax([[3.0]]), [[0.0]])
    assert fastce.logsumexp([1000.0, 1000.0]) == 1000 + np.log(2)
    assert fastce.logsumexp([-5.0]) == -5


def test_hand_values_of_gradients(backend):
    # y = (1/2, 1/2): softmax' = diag(y) - y y^T = [[1/4, -1/4], [-1/4, 1/4]]
    np.testing.assert_array_equal(fastce.softmax_backward([1.0, 0.0], [0.5, 0.5]), [0.25, -0.25])
    log_half = np.log([0.5, 0.5])
    np.testing.assert_allclose(
        fastce.log_softmax_backward([1.0, 0.0], log_half), [0.5, -0.5], rtol=1e-15
    )
    np.testing.assert_array_equal(fastce.softmax_backward([3.0, 3.0], [0.5, 0.5]), [0, 0])


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(("forward", "backward"), list(zip(MAPS, BACKWARDS, strict=True)))
def test_finite_differences(backend, forward, backward, axis):
    rng = np.random.default_rng(1)
    x, grad = rng.standard_normal((2, 2, 3, 4))
    step = 1e-6  # truncation about step**2, rounding about 1e-16 / step

    def loss(x):
        return np.sum(grad * forward(x, axis=axis))

    slopes = np.empty_like(x)
    for i in np.ndindex(x.shape):
        d = np.zeros_like(x)
        d[i] = step
        slopes[i] = (loss(x + d) - loss(x - d)) / (2 * step)
    result = backward(grad, forward(x, axis=axis), axis=axis)
    np.testing.assert_allclose(result, slopes, rtol=1e-7, atol=2e-9)


def test_logsumexp_gradient_is_softmax(backend):
    x = np.random.default_rng(2).standard_normal((3, 5))
    step = 1e-6
    for k in range(5):
        d = step * (np.arange(5) == k)
        slope = (fastce.logsumexp(x + d) - fastce.logsumexp(x - d)) / (2 * step)
        np.testing.assert_allclose(fastce.softmax(x)[:, k], slope, atol=2e-9)


@dtypes
def test_dtype_and_shape(backend, dtype):
    x = np.zeros((2, 3, 4), dtype)
    for op in MAPS:
        result = op(x, axis=1)
        assert result.dtype == dtype
        assert result.shape == (2, 3, 4)
    for axis, shape in (0, (3, 4)), (1, (2, 4)), (-1, (2, 3)):
        assert fastce.logsumexp(x, axis=axis).shape == shape
        kept = fastce.logsumexp(x, axis=axis, keepdims=True)
        assert kept.shape == np.sum(x.astype(float), axis=axis, keepdims=True).shape
        assert kept.dtype == dtype
        np.testing.assert_array_equal(kept.reshape(shape), fastce.logsumexp(x, axis=axis))
    scalar = fastce.logsumexp(x[0, 0])
    assert np.ndim(scalar) == 0
    assert scalar.dtype == dtype


@dtypes
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("op", MAPS)
def test_out_gives_the_same_bits(backend, op, dtype, axis):
    x = (3 * np.random.default_rng(3).standard_normal((5, 17, 9))).astype(dtype)
    before = x.copy()
    fresh = op(x, axis=axis)
    given = np.full_like(x, 7)
    assert op(x, axis=axis, out=given) is given
    np.testing.assert_array_equal(given, fresh)
    np.testing.assert_array_equal(x, before)  # the input is not written
    assert op(x, axis=axis, out=x) is x
    np.testing.assert_array_equal(x, fresh)


@dtypes
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("op", BACKWARDS)
def test_out_of_backward_gives_the_same_bits(backend, op, dtype, axis):
    rng = np.random.default_rng(4)
    grad, y = rng.random((2, 5, 17, 9)).astype(dtype)
    fresh = op(grad, y, axis=axis)
    given = np.full_like(y, 7)
    assert op(grad, y, axis=axis, out=given) is given
    np.testing.assert_array_equal(given, fresh)
    over_grad, over_y = grad.copy(), y.copy()
    np.testing.assert_array_equal(op(over_grad, y, axis=axis, out=over_grad), fresh)
    np.testing.assert_array_equal(op(grad, over_y, axis=axis, out=over_y), fresh)


@dtypes
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_out_of_logsumexp(backend, dtype, axis):
    x = np.random.default_rng(5).standard_normal((4, 5, 6)).astype(dtype)
    for keepdims in False, True:
        fresh = fastce.logsumexp(x, axis=axis, keepdims=keepdims)
        given = np.full_like(fresh, 7)
        assert fastce.logsumexp(x, axis=axis, keepdims=keepdims, out=given) is given
        np.testing.assert_array_equal(given, fresh)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@dtypes
def test_torch(backend, dtype, axis):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: nothing to compare")
    name = {"f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16"}
    name = next(name[k] for k, v in DTYPES.items() if v == dtype)
    # Two roundings apart, plus PyTorch's own error in x - max (see the figures).
    rtol = {"float64": 1e-13, "float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2}[name]
    x, grad = np.random.default_rng(6).standard_normal((2, 4, 6, 5)).astype(dtype)
    tx = torch.tensor(x.astype(float)).to(getattr(torch, name)).requires_grad_()
    tg = torch.tensor(grad.astype(float)).to(getattr(torch, name))

    def close(ours, theirs):
        theirs = theirs.detach().to(torch.float64).numpy()
        np.testing.assert_allclose(ours.astype(float), theirs, rtol=rtol, atol=rtol)

    close(fastce.logsumexp(x, axis=axis), torch.logsumexp(tx, axis))
    for op, backward, theirs in zip(
        MAPS, BACKWARDS, (torch.softmax, torch.log_softmax), strict=True
    ):
        y = theirs(tx, axis)
        close(op(x, axis=axis), y)
        tx.grad = None
        y.backward(tg)
        close(
            backward(grad, y.detach().to(torch.float64).numpy().astype(dtype), axis=axis), tx.grad
        )


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_scipy(backend, axis):
    special = pytest.importorskip("scipy.special", reason="SciPy is not installed")
    x = 5 * np.random.default_rng(7).standard_normal((4, 6, 5))
    for name in "softmax", "log_softmax", "logsumexp":
        theirs = getattr(special, name)(x, axis=axis)
        ours = getattr(fastce, name)(x, axis=axis)
        np.testing.assert_allclose(ours, theirs, rtol=1e-13, atol=1e-15)  # theirs: 9e-13 near 0
