"""The same meaning as torch.nn.functional, for every option and all of them together."""

import itertools

import numpy as np
import pytest
from support.grids import with_one_dtype
from support.truths import softmax

import fastce

torch = pytest.importorskip("torch", reason="PyTorch is not installed: nothing to compare with")
F = torch.nn.functional

# PyTorch has the classes on axis 1, or on the only axis.
SHAPES = {"NC": (6, 5), "C": (5,), "NCd1d2": (3, 5, 2, 4)}
TARGETS = ["index", "ignore -100", "ignore 1", "probabilities"]


def draw(shape, target, dtype):
    rng = np.random.default_rng(len(shape))
    axis = min(1, len(shape) - 1)
    rows = shape[:axis] + shape[axis + 1 :]
    x = 2 * rng.standard_normal(shape)
    options = {}
    if target == "probabilities":
        t = np.moveaxis(softmax(rng.standard_normal((*rows, shape[axis]))).value, -1, axis)
        t = t.astype(dtype)
    else:
        t = np.asarray(rng.integers(0, 5, rows))
        if target.startswith("ignore"):
            options["ignore_index"] = int(target.split()[1])
            t[...] = np.where(rng.random(rows) < 0.4, options["ignore_index"], t)
    return x.astype(dtype), t, axis, options


# 108: reductions, targets and axes are resolved together.
@with_one_dtype(
    "shape target reduction",
    SHAPES,
    TARGETS,
    ["mean", "sum", "none"],
    dtypes={"float64": np.float64, "float32": np.float32},
)
def test_cross_entropy(backend, shape, target, reduction, dtype):
    x, t, axis, options = draw(shape, target, dtype)
    options["reduction"] = reduction
    rtol = 1e-13 if dtype == np.float64 else 1e-5
    weights = None, np.array([0.5, 1.5, 2.0, 0.0, 3.0], dtype)
    for weight, smoothing in itertools.product(weights, (0.0, 0.1, 1.0)):
        tx = torch.tensor(x, requires_grad=True)
        loss = F.cross_entropy(
            tx, torch.tensor(t), label_smoothing=smoothing,
            weight=None if weight is None else torch.tensor(weight), **options,
        )  # fmt: skip
        grad_loss = np.random.default_rng(3).uniform(1, 2, loss.shape).astype(dtype)
        loss.backward(torch.tensor(grad_loss))
        ours = {"weight": weight, "label_smoothing": smoothing, "axis": axis, **options}
        result = fastce.cross_entropy(x, t, **ours)
        np.testing.assert_allclose(result, loss.detach().numpy(), rtol=rtol)
        assert np.shape(result) == tuple(loss.shape)
        grad = fastce.cross_entropy_backward(grad_loss, x, t, **ours)
        np.testing.assert_allclose(grad, tx.grad.numpy(), rtol=rtol, atol=rtol)
        fused, grad = fastce.cross_entropy_with_grad(x, t, **ours)
        np.testing.assert_allclose(fused, loss.detach().numpy(), rtol=rtol)
        tx.grad = None
        F.cross_entropy(
            tx, torch.tensor(t), label_smoothing=smoothing,
            weight=None if weight is None else torch.tensor(weight), **options,
        ).sum().backward()  # fmt: skip
        np.testing.assert_allclose(grad, tx.grad.numpy(), rtol=rtol, atol=rtol)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("target", TARGETS[:3])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_nll_loss(backend, shape, target, reduction):
    for weight in None, np.array([0.5, 1.5, 2.0, 0.0, 3.0]):
        nll_loss(shape, target, reduction, weight)


def nll_loss(shape, target, reduction, weight):
    x, t, axis, options = draw(shape, target, np.float64)
    options["reduction"] = reduction
    log_p = fastce.log_softmax(x, axis=axis)
    tx = torch.tensor(log_p, requires_grad=True)
    loss = F.nll_loss(
        tx, torch.tensor(t), weight=None if weight is None else torch.tensor(weight), **options
    )
    grad_loss = np.random.default_rng(3).uniform(1, 2, loss.shape)
    loss.backward(torch.tensor(grad_loss))
    ours = {"weight": weight, "axis": axis, **options}
    np.testing.assert_allclose(fastce.nll_loss(log_p, t, **ours), loss.detach().numpy(), rtol=1e-14)
    grad = fastce.nll_loss_backward(grad_loss, log_p, t, **ours)
    np.testing.assert_allclose(grad, tx.grad.numpy(), rtol=1e-14)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(backend, dtype):
    """The loss is float32 here; PyTorch rounds it to the dtype of the logits."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    dtype_np = np.dtype(getattr(ml_dtypes, dtype, np.float16))
    x, t, axis, _ = draw((6, 5), "index", dtype_np)
    tx = torch.tensor(x.astype(float)).to(getattr(torch, dtype)).requires_grad_()
    loss = F.cross_entropy(tx, torch.tensor(t))
    loss.backward()
    ours, grad = fastce.cross_entropy_with_grad(x, t, axis=axis)
    eps = float(ml_dtypes.finfo(dtype_np).eps)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, loss.item(), rtol=eps)
    np.testing.assert_allclose(grad.astype(float), tx.grad.double().numpy(), rtol=4 * eps, atol=eps)


def test_a_deliberate_difference(backend):
    """0 * log(0): a class without probability costs nothing. PyTorch gives NaN."""
    x = np.array([[-np.inf, 0.0, 1.0]])
    t = np.array([[0.0, 1.0, 0.0]])
    assert torch.isnan(F.cross_entropy(torch.tensor(x), torch.tensor(t)))
    loss, grad = fastce.cross_entropy_with_grad(x, t)
    np.testing.assert_allclose(loss, np.log1p(np.e))
    p = 1 / (1 + np.e)
    np.testing.assert_allclose(grad, [[0, p - 1, 1 - p]], rtol=1e-15)
