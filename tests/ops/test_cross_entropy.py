"""cross_entropy, its gradients, and nll_loss. Shapes and layouts: test_shapes.py."""

import numpy as np
import pytest
from support.cases import CROSS_ENTROPY, DTYPES
from support.grids import with_one_dtype
from support.truths import compute

import fastce

dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
FUSED = [case for case in CROSS_ENTROPY if case.op == "cross_entropy_with_grad"]
# Those that write the gradient by other loops: with a sum of all rows, without, from a target of
# each class.
WITH_OUT = [
    case
    for case in CROSS_ENTROPY
    if case.out_like is not None and case.name in ("mean", "none", "all", "probs-all")
]
LOG_P = np.log([[0.5, 0.25, 0.25], [0.125, 0.125, 0.75]])


# 111: options act on float32 or float64 numbers. test_shapes.py runs each op with every dtype.
@with_one_dtype("case", CROSS_ENTROPY)
def test_truth(backend, case, dtype):
    case.check((23, 130), dtype)
    case.check((3, 11, 7), dtype, axis=1)


def test_hand_values(backend):
    a, b = np.log(2), np.log(8)  # -log p of labels 0 and 0
    close = np.testing.assert_allclose
    for f in fastce.cross_entropy, fastce.nll_loss:
        close(f(LOG_P, [0, 0], reduction="none"), [a, b], rtol=2e-15)
        close(f(LOG_P, [0, 0]), (a + b) / 2, rtol=2e-15)
        close(f(LOG_P, [0, 0], reduction="sum"), a + b, rtol=2e-15)
        close(f(LOG_P, [0, -100]), a, rtol=2e-15)
        close(f(LOG_P, [0, 1], weight=[3.0, 5.0, 7.0]), (3 * a + 5 * b) / 8, rtol=2e-15)
        close(f(LOG_P, [2, 1], ignore_index=2, reduction="none"), [0, b], rtol=2e-15)
    half = [[0.5, 0.5, 0], [0, 0, 1.0]]
    close(fastce.cross_entropy(LOG_P, half, reduction="none"), [1.5 * a, -np.log(0.75)], rtol=2e-15)
    # smoothing 0.3 over 3 classes: 0.8, 0.1, 0.1
    smooth = fastce.cross_entropy(LOG_P, [0, 0], reduction="none", label_smoothing=0.3)
    close(smooth[0], 0.8 * a + 0.2 * np.log(4), rtol=2e-15)


def test_hand_values_of_gradients(backend):
    close = np.testing.assert_allclose
    p = np.exp(LOG_P)
    grad = fastce.cross_entropy_backward(1.0, LOG_P, [0, 2], reduction="sum")
    close(grad, p - [[1, 0, 0], [0, 0, 1]], rtol=4e-15)
    mean = fastce.cross_entropy_backward(3.0, LOG_P, [0, 2])
    close(mean, grad * 1.5, rtol=4e-15)
    rows = fastce.cross_entropy_backward([2.0, -1.0], LOG_P, [0, 2], reduction="none")
    close(rows, grad * [[2], [-1]], rtol=4e-15)
    grad = fastce.nll_loss_backward(2.0, LOG_P, [0, 2], weight=[1.0, 2.0, 3.0])
    np.testing.assert_array_equal(grad, [[-0.5, 0, 0], [0, 0, -1.5]])


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@dtypes
def test_z_loss_by_formula(backend, reduction, dtype):
    (x, target), _ = FUSED[0].inputs((9, 31), dtype)
    reduced = {"none": lambda a: a, "sum": np.sum, "mean": np.mean}[reduction]
    lse = fastce.logsumexp(x.astype(np.float64))
    plain, loss = (
        fastce.cross_entropy(x, target, reduction=reduction, z_loss=z) for z in (0, 0.25)
    )
    eps = np.finfo(compute(dtype)).eps
    np.testing.assert_allclose(loss, plain + reduced(0.25 * lse**2), rtol=8 * eps)


# 132: the pass that gives both has a loop of its own for each kind of target and of storage.
@dtypes
@pytest.mark.parametrize("case", FUSED, ids=str)
def test_fused_is_separate(backend, case, dtype):
    (x, target), options = case.inputs((21, 67), dtype)
    loss, grad = fastce.cross_entropy_with_grad(x, target, **options)
    np.testing.assert_array_equal(loss, fastce.cross_entropy(x, target, **options))
    np.testing.assert_array_equal(grad, fastce.cross_entropy_backward(1.0, x, target, **options))
    assert loss.dtype == compute(dtype)
    assert grad.dtype == dtype


# 120: each loop that writes a gradient, with each kind of storage.
@dtypes
@pytest.mark.parametrize("case", WITH_OUT, ids=str)
def test_out_gives_the_same_bits(backend, case, dtype):
    for axis in range(3):
        out_gives_the_same_bits(case, dtype, axis)


def out_gives_the_same_bits(case, dtype, axis):
    arguments, options = case.inputs((4, 19, 6), dtype, axis)
    before = [a.copy() for a in arguments]
    fresh = case.run(arguments, options, axis)[-1]
    given = np.full_like(fresh, 7)
    assert case.run(arguments, options, axis, out=given)[-1] is given
    np.testing.assert_array_equal(given, fresh)
    for a, b in zip(arguments, before, strict=True):
        np.testing.assert_array_equal(a, b)  # inputs are not written
    logits = arguments[-2]
    result = case.run(arguments, options, axis, out=logits)
    assert result[-1] is logits
    np.testing.assert_array_equal(logits, fresh)
    if len(result) == 2:  # the loss does not see that its logits are overwritten
        np.testing.assert_array_equal(result[0], case.run(before, options, axis)[0])


@pytest.mark.parametrize("target_dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("dtype", [DTYPES["f16"], DTYPES["bf16"]], ids=str)
def test_targets_keep_their_precision(backend, dtype, target_dtype):
    """Rounded to 16 bits beforehand, they cost 2e-3 of the loss."""
    rng = np.random.default_rng(0)
    for shape, axis in ((9, 10), 1), ((3, 700), 1), ((2, 5000), 1), ((2, 9, 270), 1), ((130, 3), 0):
        x = rng.standard_normal(shape).astype(dtype)
        target = (rng.random(shape) ** 3).astype(target_dtype)
        options = {"reduction": "none", "axis": axis, "label_smoothing": 0.1}
        loss, grad = fastce.cross_entropy_with_grad(x, target, **options)
        with fastce.use_backend("reference"):
            wide = x.astype(np.float64), target.astype(np.float64)
            right, slopes = fastce.cross_entropy_with_grad(*wide, **options)
        np.testing.assert_allclose(loss, right, rtol=1e-6)
        step = 2.0**-7 if dtype != np.float16 else 2.0**-10
        np.testing.assert_allclose(grad.astype(np.float64), slopes, rtol=step, atol=1e-7)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_wide_target_and_out_in_the_same_memory(backend, axis):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((6, 40)).astype(np.float16)
    target = rng.random((6, 40)).astype(np.float32)
    right = fastce.cross_entropy_backward(1.0, x, target, axis=axis)
    out = target.reshape(-1).view(np.float16)[:240].reshape(6, 40)
    fastce.cross_entropy_backward(1.0, x, target, axis=axis, out=out)
    np.testing.assert_array_equal(out, right)


# 132, as above: lse is written by the same loops as the loss.
@dtypes
@pytest.mark.parametrize("case", FUSED, ids=str)
def test_lse(backend, case, dtype):
    """`return_lse` is logsumexp, but NaN for ignored rows; the backward does not depend on it."""
    (x, target), options = case.inputs((21, 67), dtype)
    loss, lse = fastce.cross_entropy(x, target, return_lse=True, **options)
    np.testing.assert_array_equal(loss, fastce.cross_entropy(x, target, **options))
    kept = target != options.get("ignore_index", -100) if target.ndim == 1 else np.full(21, True)
    assert lse.dtype == compute(dtype)
    wide_lse = fastce.logsumexp(x.astype(np.float64))
    np.testing.assert_allclose(lse[kept], wide_lse[kept], rtol=4 * np.finfo(lse.dtype).eps)
    assert np.isnan(lse[~kept]).all()
    options |= {"reduction": "none"}
    grad = fastce.cross_entropy_backward(1.0, x, target, lse=lse, **options)
    np.testing.assert_array_equal(grad, fastce.cross_entropy_backward(1.0, x, target, **options))
    assert not grad[~kept].any()


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("n", [3, 200, 5000])
def test_lse_of_rows_that_are_not_finite(backend, n, axis, dense):
    """As logsumexp has it, also where there is no distribution and the loss is NaN."""
    x = np.full((5, n), -np.inf, np.float32)
    x[0, :3], x[1, 1], x[3, :2] = [1, 2, 3], np.inf, [np.inf, np.nan]
    x = np.ascontiguousarray(x if axis else x.T)
    target = np.full(x.shape, 0.1, np.float32) if dense else np.array([0, 1, 2, 0, -100])
    options = {"axis": axis, "return_lse": True, "reduction": "none"}
    loss, lse = fastce.cross_entropy(x, target, **options)
    last = -np.inf if dense else np.nan  # which is ignored
    np.testing.assert_allclose(lse, [3.407606, np.inf, -np.inf, np.nan, last], rtol=1e-6)
    np.testing.assert_array_equal(lse[:4], fastce.logsumexp(x, axis=axis)[:4])
    assert np.isnan(loss[1:4]).all()


@pytest.mark.parametrize("n", [2, 300, 5000])
@pytest.mark.parametrize("size", [1e4, 1e8, -1e30])
def test_gradients_of_logits_of_any_size(backend, size, n):
    """float32 has no logsumexp of two 1e8 that would give their probabilities back."""
    for axis in 0, 1:
        x = np.full((n, 3) if axis == 0 else (3, n), size, np.float32)
        labels = np.array([0, n - 1, 1])
        options = {"axis": axis, "reduction": "none"}
        _, lse = fastce.cross_entropy(x, labels, return_lse=True, **options)
        grad = fastce.cross_entropy_backward(1.0, x, labels, lse=lse, **options)
        right = 1 / n - (np.arange(n) == labels[:, None])
        np.testing.assert_allclose(grad if axis else grad.T, right, rtol=3e-7)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("case", FUSED, ids=str)
def test_finite_differences(backend, case, axis):
    (x, target), options = case.inputs((5, 4), np.float64, axis)
    grad_loss = np.arange(1.0, 1 + x.shape[1 - axis])
    grad_loss = grad_loss if options.get("reduction") == "none" else grad_loss[-1]
    step = 1e-6  # truncation about step**2, rounding about 1e-16 / step

    def loss(x):
        return np.sum(grad_loss * fastce.cross_entropy(x, target, axis=axis, **options))

    slopes = np.empty_like(x)
    for i in np.ndindex(x.shape):
        d = np.zeros_like(x)
        d[i] = step
        slopes[i] = (loss(x + d) - loss(x - d)) / (2 * step)
    grad = fastce.cross_entropy_backward(grad_loss, x, target, axis=axis, **options)
    np.testing.assert_allclose(grad, slopes, rtol=1e-7, atol=1e-8)


def test_finite_differences_of_nll_loss(backend):
    x = fastce.log_softmax(np.random.default_rng(1).standard_normal((6, 4)))
    options = {"weight": [1.0, 2.0, 3.0, 4.0], "ignore_index": 1}
    target = np.array([0, 1, 2, 3, 0, 2])
    grad = fastce.nll_loss_backward(2.0, x, target, **options)
    for i in np.ndindex(x.shape):
        d = np.zeros_like(x)
        d[i] = 1.0  # linear: any step will do
        slope = 2 * (
            fastce.nll_loss(x + d, target, **options) - fastce.nll_loss(x, target, **options)
        )
        np.testing.assert_allclose(grad[i], slope, atol=1e-14)


def test_nll_of_log_softmax_is_cross_entropy(backend):
    (x, target), options = FUSED[4].inputs((30, 12), np.float64)
    np.testing.assert_allclose(
        fastce.nll_loss(fastce.log_softmax(x), target, **options),
        fastce.cross_entropy(x, target, **options),
        rtol=1e-14,
    )


@pytest.mark.parametrize("dtype", [f"{u}int{bits}" for u in ("", "u") for bits in (8, 16, 32, 64)])
def test_any_integer_dtype(backend, dtype):
    (x, target), _ = FUSED[0].inputs((40, 100), np.float32)
    right = fastce.cross_entropy_with_grad(x, target)
    ours = fastce.cross_entropy_with_grad(x, target.astype(dtype))
    swapped = fastce.cross_entropy_with_grad(x, target.astype(np.dtype(dtype).newbyteorder()))
    for i in range(2):
        np.testing.assert_array_equal(ours[i], right[i])
        np.testing.assert_array_equal(swapped[i], right[i])
    options = {"ignore_index": int(target[3]), "reduction": "none"}
    right = fastce.nll_loss(x, target, **options)
    np.testing.assert_array_equal(fastce.nll_loss(x, target.astype(dtype), **options), right)


def test_weight_of_any_dtype(backend):
    (x, target), _ = FUSED[0].inputs((40, 10), np.float32)
    weight = np.arange(1, 11)
    right = fastce.cross_entropy(x, target, weight=weight.astype(np.float32))
    for w in weight, list(weight), weight.astype(">f8"), weight.astype(DTYPES["bf16"]):
        assert fastce.cross_entropy(x, target, weight=w) == right
    strided = np.repeat(weight, 2).astype(np.float32)[::2]
    assert fastce.cross_entropy(x, target, weight=strided) == right


def test_probabilities_of_another_dtype(backend):
    """They are taken in the dtype of the logits."""
    (x, t), _ = next(c for c in FUSED if c.name == "probs").inputs((20, 10), np.float32)
    right = fastce.cross_entropy_with_grad(x, t)
    ours = fastce.cross_entropy_with_grad(x, t.astype(np.float64))
    np.testing.assert_array_equal(ours[0], right[0])
    np.testing.assert_array_equal(ours[1], right[1])


def test_one_hot_is_index(backend):
    (x, target), _ = FUSED[0].inputs((20, 10), np.float64)
    for options in {}, {"label_smoothing": 0.2, "z_loss": 0.1, "reduction": "none"}:
        ours = fastce.cross_entropy_with_grad(x, np.eye(10)[target], **options)
        right = fastce.cross_entropy_with_grad(x, target, **options)
        np.testing.assert_allclose(ours[0], right[0], rtol=2e-15)
        np.testing.assert_allclose(ours[1], right[1], rtol=4e-15, atol=1e-17)
