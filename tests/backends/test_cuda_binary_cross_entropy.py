"""The CUDA kernels of binary cross-entropy and of the sigmoid focal loss, on the machine of
`ptx_machine.py`, and on a GPU where there is one.
"""

import numpy as np
import pytest

pytest.importorskip("fastce.kernels.cuda", exc_type=ImportError)  # without numba-cuda
from support.cases import DTYPES
from support.truths import BF16, assert_close
from test_binary_cross_entropy import (
    LOGITS,
    ROWS,
    check,
    forms,
    test_clamp_of_logarithms,
    test_empty,
    test_errors,
    test_hand_values,
    test_infinite_logits,
    test_kernels_take_short_rows_of_weights,
    test_nan_stays_where_it_is,
    test_no_probability_is_refused,
    test_targets_keep_their_precision,
    truth,
)
from test_sigmoid_focal_loss import check as check_focal
from test_sigmoid_focal_loss import draw, gammas
from test_sigmoid_focal_loss import test_infinite_logits as test_infinite_logits_of_focal_loss

import fastce

# Tests of all backends, which here run with the fixture `backend` of this file.
SHARED = (
    test_clamp_of_logarithms,
    test_empty,
    test_errors,
    test_hand_values,
    test_infinite_logits,
    test_infinite_logits_of_focal_loss,
    test_kernels_take_short_rows_of_weights,
    test_nan_stays_where_it_is,
    test_no_probability_is_refused,
    test_targets_keep_their_precision,
)
rows = pytest.mark.parametrize("row", ROWS, ids=str)


@pytest.fixture
def backend(cuda_backend):
    """In place of all backends."""
    return cuda_backend


@pytest.mark.parametrize("dtype", DTYPES)
@rows
def test_truth_on_a_gpu(backend, row, dtype):
    """Words and what is left of them, in one block and in more than one."""
    for shape in (7, 9), (45, 131):
        x, target, options = row.draw(shape, DTYPES[dtype])
        loss, grad = results = row.results(x, target, options)
        check(row, x, target, options, results)
        both = getattr(fastce, f"{row.form}_with_grad")(x, target, **options)
        np.testing.assert_array_equal(both[0], loss)
        np.testing.assert_array_equal(both[1], grad)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@rows
def test_arrays_on_the_gpu(gpu, row, dtype):
    """The same kind of array comes out, also in place, and what is in it is right."""
    if gpu.machine is None and dtype == "bf16":
        pytest.skip("Numba's arrays have no bfloat16")
    x, target, options = row.draw((5, 67), DTYPES[dtype])
    if options.get("weight", np.ones((1, 1))).shape[1] == 1 and row.name == "rows":
        options["weight"] = np.ascontiguousarray(np.broadcast_to(options["weight"], x.shape))
    there, there_options = gpu.put_all((x, target)), gpu.put_all(options)
    fused = getattr(fastce, f"{row.form}_with_grad")
    loss, grad = fused(*there, **there_options)
    assert type(loss) is type(grad) is type(there[0])
    check(row, x, target, options, (gpu.get(loss), gpu.get(grad)))
    for over in there:
        arrays = gpu.put_all((x, target))
        over = arrays[0] if over is there[0] else arrays[1]
        again, out = fused(*arrays, out=over, **there_options)
        assert out is over
        np.testing.assert_array_equal(gpu.get(again), gpu.get(loss))
        np.testing.assert_array_equal(gpu.get(out), gpu.get(grad))
    assert np.array_equal(
        gpu.get(getattr(fastce, row.form)(*there, **there_options)), gpu.get(loss)
    )


@pytest.mark.parametrize("kind", ["?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"])
@forms
def test_labels(gpu, form, kind):
    x = np.linspace(0.05, 0.95, 75).reshape(15, 5).astype(np.float32)
    t = (np.arange(75).reshape(15, 5) % 3 == 0).astype(np.float32)
    right = getattr(fastce, f"{form}_with_grad")(x, t)
    ours = getattr(fastce, f"{form}_with_grad")(gpu.put(x), gpu.put(t.astype(kind)))
    np.testing.assert_allclose(gpu.get(ours[0]), right[0], rtol=1e-6)
    np.testing.assert_allclose(gpu.get(ours[1]), right[1], rtol=1e-5)


def test_many_elements(gpu):
    """More blocks than one that adds up; and misaligned memory gives the same bits."""
    x, t, _ = ROWS[1].draw((70_001,), np.float32)
    loss, grad = fastce.binary_cross_entropy_with_logits_with_grad(gpu.put(x), gpu.put(t))
    right = fastce.binary_cross_entropy_with_logits_with_grad(x, t)
    np.testing.assert_allclose(gpu.get(loss), right[0], rtol=3e-7)
    np.testing.assert_allclose(gpu.get(grad), right[1], rtol=1e-5, atol=1e-12)
    memory = gpu.put(np.concatenate([[0], x]).astype(np.float32))
    shifted = memory._again(x.shape, (4,), 4) if gpu.machine else memory[1:]
    again = fastce.binary_cross_entropy_with_logits_with_grad(shifted, gpu.put(t))
    np.testing.assert_array_equal(gpu.get(again[0]), gpu.get(loss))
    np.testing.assert_array_equal(gpu.get(again[1]), gpu.get(grad))


def test_orders_of_axes(gpu):
    if gpu.machine is None:
        pytest.skip("Numba's arrays are copied to the host in C order only")
    x, t, _ = ROWS[1].draw((3, 4, 5), np.float32)
    transposed = [a.transpose(2, 0, 1) for a in (x, t)]
    weight = np.random.default_rng(0).uniform(0.5, 2, (3, 4)).astype(np.float32)
    # In memory the axis without weights is the last one, so that they are no period.
    with pytest.raises(ValueError, match="expand it first"):
        fastce.binary_cross_entropy_with_logits(
            *(gpu.put(a) for a in transposed), weight=gpu.put(weight)
        )
    weight = np.random.default_rng(0).uniform(0.5, 2, (5, 1, 4)).astype(np.float32)
    weight = weight.transpose(1, 2, 0).copy().transpose(2, 0, 1)
    loss, grad = fastce.binary_cross_entropy_with_logits_with_grad(
        *(gpu.put(a) for a in transposed), weight=gpu.put(weight), reduction="none"
    )
    each, slope = truth(LOGITS, *transposed, weight=weight)
    assert_close(gpu.get(loss), each, 4)
    assert_close(gpu.get(grad), slope, 6)
    x, t = gpu.put(transposed[0]), gpu.put(transposed[1].copy())
    with pytest.raises(ValueError, match="must lie densely in memory, in the order of the axes"):
        fastce.binary_cross_entropy_with_logits(x, t)


def test_no_probability_is_nan(gpu):
    """It, and no other; with validation it is refused, and nothing written."""
    p = np.full((4, 5), 0.25, np.float32)
    p[2, 1], p[3, 0] = 1.5, -0.5
    there, t = gpu.put(p), gpu.put(np.zeros_like(p))
    loss, grad = fastce.binary_cross_entropy_with_grad(there, t, reduction="none")
    for result in gpu.get(loss), gpu.get(grad):
        assert np.argwhere(np.isnan(result)).tolist() == [[2, 1], [3, 0]]
    out = gpu.put(np.full_like(p, 7))
    fastce.set_validation(True)
    try:
        with pytest.raises(ValueError, match=r"probs\[2, 1\] is 1.5, and a probability"):
            fastce.binary_cross_entropy_with_grad(there, t, out=out)
        fastce.binary_cross_entropy(gpu.put(np.full_like(p, 0.5)), t)
    finally:
        fastce.set_validation(False)
    assert (gpu.get(out) == 7).all()


def test_upstream_gradient(gpu):
    x, t, _ = ROWS[1].draw((4, 9), np.float32)
    backward = fastce.binary_cross_entropy_with_logits_backward
    there = gpu.put(x), gpu.put(t)
    for given in -2.5, gpu.put(np.float32(-2.5)):
        np.testing.assert_allclose(
            gpu.get(backward(given, *there)), backward(-2.5, x, t), rtol=1e-5, atol=1e-9
        )
    each = np.random.default_rng(0).standard_normal(x.shape).astype(np.float32)
    grad = backward(gpu.put(each), *there, reduction="none")
    right = backward(each, x, t, reduction="none")
    np.testing.assert_allclose(gpu.get(grad), right, rtol=1e-5, atol=1e-8)


def test_errors_of_arrays(gpu):
    x = np.zeros((3, 4), np.float32)
    there, t = gpu.put(x), gpu.put(x)
    f = fastce.binary_cross_entropy_with_logits
    fused = fastce.binary_cross_entropy_with_logits_with_grad
    weight = gpu.put(np.ones((3, 4), np.float32))
    backward = fastce.binary_cross_entropy_with_logits_backward
    for error, message, call in [
        (TypeError, "target must be on the GPU", lambda: f(there, x)),
        (TypeError, "weight must be on the GPU", lambda: f(there, t, weight=np.ones(4))),
        (TypeError, "on a GPU, and the other arrays are not", lambda: f(x, t)),
        (ValueError, "target must have the dtype of logits, float32, or an integer",
         lambda: f(there, gpu.put(x.astype("f8")))),
        (ValueError, r"target must have the shape of logits, \(3, 4\), got \(4,\)",
         lambda: f(there, gpu.put(x[0]))),
        (ValueError, r"weight must have a shape that broadcasts",
         lambda: f(there, t, weight=gpu.put(np.ones(3, np.float32)))),
        (ValueError, "so expand it first",
         lambda: f(there, t, weight=gpu.put(np.ones((3, 1), np.float32)))),
        (ValueError, "out may not be the weight",
         lambda: fused(there, t, weight=weight, out=weight)),
        (ValueError, "out must have shape", lambda: fused(there, t, out=gpu.put(x[:2]))),
        (TypeError, "grad_loss must be a number", lambda: backward(np.ones(3), there, t)),
        (ValueError, "grad_loss must be a scalar", lambda: backward(t, there, t)),
        (ValueError, "reduction must be", lambda: f(there, t, reduction="all")),
    ]:  # fmt: skip
        with pytest.raises(error, match=message):
            call()


@forms
def test_nothing(gpu, form):
    x = gpu.put(np.zeros((0, 4), np.float32))
    loss, grad = getattr(fastce, f"{form}_with_grad")(x, x)
    assert np.isnan(gpu.get(loss))
    assert gpu.get(grad).shape == (0, 4)


def test_bfloat16_labels_are_numbers(gpu):
    """A uint16 target beside bfloat16 logits is labels, not the bits of bfloat16."""
    if gpu.machine is None:
        pytest.skip("Numba's arrays have no bfloat16")
    x = np.linspace(-2, 2, 33).astype(BF16)
    t = np.arange(33) % 2
    ours = fastce.binary_cross_entropy_with_logits(gpu.put(x), gpu.put(t.astype("u2")))
    right = fastce.binary_cross_entropy_with_logits(x, t)
    np.testing.assert_allclose(gpu.get(ours), right, rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@gammas
def test_truth_of_focal_loss(backend, dtype, gamma):
    for soft in True, False:
        x, t = draw((9, 131), DTYPES[dtype], soft)
        options = {"gamma": gamma, "reduction": "none"}
        loss, grad = fastce.sigmoid_focal_loss_with_grad(x, t, **options)
        check_focal(x, t, gamma, 0.25, (loss, grad))
        np.testing.assert_array_equal(fastce.sigmoid_focal_loss(x, t, **options), loss)
        alone = fastce.sigmoid_focal_loss_backward(1.0, x, t, **options)
        np.testing.assert_array_equal(alone, grad)
        mean = fastce.sigmoid_focal_loss(x, t, gamma=gamma)
        np.testing.assert_allclose(mean, loss.mean(dtype=np.float64), rtol=1e-6)


def test_focal_loss_of_arrays_on_the_gpu(gpu):
    x, t = draw((5, 67), np.float32)
    right = fastce.sigmoid_focal_loss_with_grad(x, t)
    for target in t, t.astype("i8"), t.astype(bool):
        there = gpu.put(x), gpu.put(target)
        loss, grad = fastce.sigmoid_focal_loss_with_grad(*there, out=there[0])
        assert grad is there[0]
        np.testing.assert_allclose(gpu.get(loss), right[0], rtol=1e-6)
        np.testing.assert_allclose(gpu.get(grad), right[1], rtol=1e-5, atol=1e-9)
