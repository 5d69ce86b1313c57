"""`fastce.torch`: its functions are those of `torch.nn.functional`, with their gradients."""

import doctest
import importlib

import numpy as np
import pytest
from support.processes import python

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
ft = importlib.import_module("fastce.torch")
tensors = importlib.import_module("fastce.torch._tensors")
F = torch.nn.functional

FLOATS = torch.float64, torch.float32, torch.float16, torch.bfloat16
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
dtypes = pytest.mark.parametrize("dtype", FLOATS, ids=str)
reductions = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def leaf(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=torch.float64).to(dtype).requires_grad_()


def same(ours, theirs, inputs, upstream=None):
    """Values and gradients, PyTorch's from wider numbers where there are any."""
    dtype = inputs[0].dtype
    rtol = TOLERANCE[dtype]
    wide = [t.detach().double().requires_grad_() for t in inputs]
    right = theirs(*wide)
    result = ours(*inputs)
    torch.testing.assert_close(result.double(), right, rtol=rtol, atol=rtol)
    upstream = torch.randn(right.shape, dtype=torch.float64)
    found = torch.autograd.grad(result, inputs, upstream.to(result.dtype))
    expected = torch.autograd.grad(right, wide, upstream.to(result.dtype).double())
    for a, b, given in zip(found, expected, inputs, strict=True):
        assert a.dtype == given.dtype
        assert a.shape == given.shape
        torch.testing.assert_close(a.double(), b, rtol=rtol, atol=rtol)


# --- the same as PyTorch's ----------------------------------------------------------------


@dtypes
@reductions
@pytest.mark.parametrize("shape", [(7,), (5, 7), (3, 7, 2, 4)], ids=str)
def test_cross_entropy(dtype, reduction, shape):
    x = leaf(*shape, dtype=dtype)
    target = torch.randint(0, 7, shape[:1] * (len(shape) > 1) + shape[2:])
    weight = torch.rand(7)
    if target.ndim:
        target[0] = -100
    for options in {}, {"label_smoothing": 0.1}, {"weight": weight, "ignore_index": 3}:
        wide = {k: v.double() if k == "weight" else v for k, v in options.items()}
        if "weight" in options:
            if reduction == "mean" and len(shape) == 1:
                continue  # one row, which may be ignored: 0 / 0
            target = target.clamp(0)
        same(
            lambda x, o=options, t=target: ft.cross_entropy(x, t, reduction=reduction, **o),
            lambda x, o=wide, t=target: F.cross_entropy(x, t, reduction=reduction, **o),
            [x],
        )


@reductions
def test_cross_entropy_of_probabilities(reduction):
    x, target = leaf(3, 7, 4), torch.softmax(torch.randn(3, 7, 4, dtype=torch.float64), 1)
    same(
        lambda x: ft.cross_entropy(x, target, reduction=reduction, label_smoothing=0.1),
        lambda x: F.cross_entropy(x, target, reduction=reduction, label_smoothing=0.1),
        [x],
    )


@reductions
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_probabilities_are_not_rounded_to_16_bits(dtype, reduction):
    x = torch.randn(3, 700).to(dtype).requires_grad_()
    target = torch.softmax(torch.randn(3, 700), 1)
    right = F.cross_entropy(x.double(), target.double(), reduction=reduction)
    loss = ft.cross_entropy(x, target, reduction=reduction)
    torch.testing.assert_close(loss.double(), right, rtol=1e-6, atol=0)
    (grad,) = torch.autograd.grad(loss.sum(), x)
    (slopes,) = torch.autograd.grad(right.sum(), x)
    torch.testing.assert_close(grad, slopes, rtol=2**-7, atol=1e-7)


def test_gradients_of_the_losses_of_rows_of_large_logits():
    """Each row's own loss keeps no rounded logsumexp for the backward."""
    for size in 1e4, 1e8:
        x = (size + torch.randn(3, 700)).requires_grad_()
        target = torch.tensor([0, 5, 699])
        loss = ft.cross_entropy(x, target, reduction="none")
        (grad,) = torch.autograd.grad(loss.sum(), x)
        (right,) = torch.autograd.grad(F.cross_entropy(x.double(), target, reduction="sum"), x)
        torch.testing.assert_close(grad, right, rtol=1e-6, atol=0)
    x = torch.full((1, 2), 1e8, requires_grad=True)
    ft.cross_entropy(x, torch.tensor([0]), reduction="none").backward(torch.ones(1))
    torch.testing.assert_close(x.grad, torch.tensor([[-0.5, 0.5]]))


@dtypes
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_log_softmax(dtype, dim):
    x = leaf(4, 5, 6, dtype=dtype)
    same(lambda x: ft.log_softmax(x, dim), lambda x: F.log_softmax(x, dim), [x])
    assert ft.log_softmax(x, dim, dtype=torch.float64).dtype == torch.float64


@dtypes
@reductions
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear_cross_entropy(dtype, reduction, with_bias):
    layer = [leaf(2, 6, 5, dtype=dtype), leaf(9, 5, dtype=dtype)]
    layer += [leaf(9, dtype=dtype)] * with_bias
    target = torch.randint(0, 9, (2, 6))
    target[0, 2] = -100

    def ours(x, w, b=None):
        return ft.linear_cross_entropy(x, w, target, linear_bias=b, reduction=reduction)

    def theirs(x, w, b=None):
        loss = F.cross_entropy(
            F.linear(x, w, b).flatten(0, 1), target.flatten(), reduction=reduction
        )
        return loss.view(2, 6) if reduction == "none" else loss

    same(ours, theirs, layer)


@dtypes
@pytest.mark.parametrize("kind", ["plain", "causal", "mask", "allowed", "grouped"])
def test_attention(dtype, kind):
    q, k, v = leaf(2, 4, 5, 8, dtype=dtype), *(leaf(2, 4, 5, 8, dtype=dtype) for _ in range(2))
    options = {"is_causal": kind == "causal", "scale": 0.3}
    mask = torch.randn(5, 5, dtype=torch.float64)
    if kind == "grouped":
        k, v = leaf(2, 2, 5, 8, dtype=dtype), leaf(2, 2, 5, 8, dtype=dtype)
        options["enable_gqa"] = True
    ours, theirs = options, dict(options)
    if kind == "mask":
        wide = mask.to(dtype)
        ours, theirs = options | {"attn_mask": wide}, options | {"attn_mask": wide.double()}
    elif kind == "allowed":
        ours = theirs = options | {"attn_mask": torch.eye(5, dtype=torch.bool) | (mask > 0)}
    same(
        lambda *t: ft.scaled_dot_product_attention(*t, **ours),
        lambda *t: F.scaled_dot_product_attention(*t, **theirs),
        [q, k, v],
    )


# --- autograd -----------------------------------------------------------------------------

CALLS = {
    "log_softmax": (lambda x: ft.log_softmax(x, 1), (4, 5, 3)),
    "cross_entropy": (lambda x: ft.cross_entropy(x, torch.tensor([4, 0, -100])), (3, 5)),
    "of rows": (lambda x: ft.cross_entropy(x, torch.tensor([4, 0, 1]), reduction="none"), (3, 5)),
    "linear": (lambda x: ft.linear_cross_entropy(x, x, torch.tensor([4, 0, 1, 2, 3])), (5, 6)),
    "attention": (lambda x: ft.scaled_dot_product_attention(x, x, x, is_causal=True), (2, 5, 4)),
}  # fmt: skip
calls = pytest.mark.parametrize(("call", "shape"), CALLS.values(), ids=CALLS)


@calls
def test_gradcheck(call, shape):
    assert torch.autograd.gradcheck(call, leaf(*shape))


@calls
def test_gradients_of_gradients_are_refused(call, shape):
    x = leaf(*shape)
    with pytest.raises(RuntimeError, match="no gradients of gradients, got"):
        torch.autograd.grad(call(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no gradients of gradients"):
        torch.autograd.gradgradcheck(call, x)


@calls
def test_without_gradients(call, shape):
    x = leaf(*shape)
    right = call(x).detach()
    with torch.no_grad():
        result = call(x)
    assert not result.requires_grad
    torch.testing.assert_close(result, right)
    with torch.inference_mode():
        torch.testing.assert_close(call(x).clone(), right)
    assert not call(x.detach()).requires_grad


@calls
def test_backward_twice_and_scaled(call, shape):
    x = leaf(*shape)
    result = call(x).sum()
    (first,) = torch.autograd.grad(result, x, retain_graph=True)
    kept = first.clone()
    (tripled,) = torch.autograd.grad(result * 3, x, retain_graph=True)
    torch.testing.assert_close(tripled, 3 * kept)
    result.backward(retain_graph=True)
    result.backward()  # which adds to x.grad in place
    torch.testing.assert_close(x.grad, 2 * kept)
    torch.testing.assert_close(first, kept, rtol=0, atol=0)


@calls
def test_any_strides(call, shape):
    x = leaf(*shape)
    (right,) = torch.autograd.grad(call(x).sum(), x)
    for there in (
        x.detach().transpose(0, -1).contiguous().transpose(0, -1),
        x.detach().repeat_interleave(2, dim=-1)[..., ::2],
    ):
        assert not there.is_contiguous()
        there.requires_grad_()
        (grad,) = torch.autograd.grad(call(there).sum(), there)
        torch.testing.assert_close(grad, right)


def test_a_training_step_is_that_of_pytorch():
    found = []
    for cross_entropy in F.cross_entropy, ft.cross_entropy:
        torch.manual_seed(1)
        model = torch.nn.Sequential(torch.nn.Linear(6, 9), torch.nn.Tanh(), torch.nn.Linear(9, 4))
        optimizer = torch.optim.SGD(model.parameters(), 0.5)
        x, target = torch.randn(20, 6), torch.randint(0, 4, (20,))
        for _ in range(5):
            optimizer.zero_grad()
            (cross_entropy(model(x), target) / 2).backward()
            optimizer.step()
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(*found)


# --- autocast -----------------------------------------------------------------------------


def test_autocast():
    x, w, target = leaf(4, 6, dtype=torch.float32), leaf(5, 6, dtype=torch.float32), torch.arange(4)
    q = leaf(2, 3, 8, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        logits = F.linear(x, w)
        assert logits.dtype == torch.bfloat16
        assert ft.log_softmax(logits).dtype == F.log_softmax(logits, -1).dtype == torch.bfloat16
        for loss in ft.cross_entropy(logits, target), ft.linear_cross_entropy(x, w, target):
            assert loss.dtype == torch.float32
            right = F.cross_entropy(F.linear(x, w).float(), target)
            torch.testing.assert_close(loss, right, rtol=1e-2, atol=1e-2)
            expected, found = torch.autograd.grad(right, (x, w)), torch.autograd.grad(loss, (x, w))
            torch.testing.assert_close(found, expected, rtol=3e-2, atol=3e-3)
        out = ft.scaled_dot_product_attention(q, q, q)
        assert out.dtype == F.scaled_dot_product_attention(q, q, q).dtype == torch.bfloat16
        for mask in torch.randn(3, 3), torch.rand(3, 3) < 0.5:
            mask[:, 0] = True
            ours, right = (f.scaled_dot_product_attention(q, q, q, mask) for f in (ft, F))
            torch.testing.assert_close(ours, right, rtol=3e-2, atol=3e-2)
    out.float().sum().backward()
    assert q.grad.dtype == torch.float32


def test_autocast_leaves_float64():
    x, w, q = leaf(4, 6), leaf(5, 6), leaf(2, 3, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert ft.scaled_dot_product_attention(q, q, q).dtype == torch.float64
        assert F.scaled_dot_product_attention(q, q, q).dtype == torch.float64
        assert ft.linear_cross_entropy(x, w, torch.arange(4)).dtype == torch.float64


# --- memory -------------------------------------------------------------------------------


@dtypes
def test_nothing_is_copied(dtype):
    for x in torch.randn(6, 8).to(dtype), torch.randn(8, 6).to(dtype).T[::2]:
        array = tensors.as_array(x.requires_grad_())
        assert array.__array_interface__["data"][0] == x.data_ptr()
        assert array.shape == x.shape
        assert [s // array.itemsize for s in array.strides] == list(x.stride())
        back = tensors.as_tensor(array)
        assert back.data_ptr() == x.data_ptr()
        assert back.dtype == dtype


def test_the_gradient_of_a_loss_is_not_copied(monkeypatch):
    made = []

    def with_grad(*given, **options):
        made.append(original(*given, **options)[1])
        return original(*given, **options)[0], made[-1]

    original = ft.fastce.cross_entropy_with_grad
    monkeypatch.setattr(ft.fastce, "cross_entropy_with_grad", with_grad)
    x = leaf(3, 4)
    ft.cross_entropy(x, torch.tensor([0, 1, 2])).backward()
    assert x.grad.data_ptr() == made[0].__array_interface__["data"][0]


# --- errors -------------------------------------------------------------------------------


def test_errors():
    x, target = leaf(3, 4), torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match="weight requires a gradient"):
        ft.cross_entropy(x, target, leaf(4))
    with pytest.raises(ValueError, match="target requires a gradient"):
        ft.cross_entropy(x, leaf(3, 4))
    with pytest.raises(ValueError, match="weight requires a gradient"):
        ft.linear_cross_entropy(x, x, target, weight=leaf(3))
    with pytest.raises(ValueError, match="attn_mask requires a gradient"):
        ft.scaled_dot_product_attention(x, x, x, leaf(3, 3))
    with pytest.raises(ValueError, match=r"dropout_p must be 0, .* got 0\.5"):
        ft.scaled_dot_product_attention(x, x, x, dropout_p=0.5)
    with pytest.raises(IndexError, match=r"target\[1\] is 9, out of range for 4 classes"):
        ft.cross_entropy(x, torch.tensor([0, 9, 2]))
    with pytest.raises(ValueError, match="reduction must be"):
        ft.cross_entropy(x, target, reduction="all")
    changed = x * 1
    loss = ft.cross_entropy(changed, target, reduction="none")
    with torch.no_grad():
        changed.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.sum().backward()


def test_docstrings():
    """`make test` runs those of the other modules by themselves."""
    failed, tried = doctest.testmod(ft)
    assert not failed
    assert tried >= 15


def test_pytorch_is_only_imported_where_asked_for():
    code = "import sys, fastce, fastce._cli; assert not {'torch', 'jax', 'dask'} & set(sys.modules)"
    status, _, errors = python(code)
    assert status == 0, errors


def test_backends_are_those_of_fastce():
    import fastce

    x, target = leaf(3, 4), torch.tensor([0, 1, 2])
    with fastce.use_backend("reference"):
        result = ft.cross_entropy(x, target).item()
    assert result == pytest.approx(F.cross_entropy(x, target).item())
    assert np.isfinite(result)


def test_no_tensors():
    x, target = torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)
    for call, message in (
        (lambda: ft.cross_entropy(x, [0, 1]), "target must be a Tensor, got list"),
        (lambda: ft.cross_entropy(x, None), "target must be a Tensor, got NoneType"),
        (lambda: ft.cross_entropy(x, target, [1.0] * 3), "weight must be a Tensor, got list"),
        (lambda: ft.linear_cross_entropy(x, x.numpy(), target), "linear_weight .* got ndarray"),
        (lambda: ft.log_softmax([1.0]), "input must be a Tensor, got list"),
        (lambda: ft.log_softmax(x, None), "dim must be an integer, got None"),
        (lambda: ft.scaled_dot_product_attention(x, x, x, 1), "attn_mask must be .* got int"),
    ):
        with pytest.raises(TypeError, match=message):
            call()


def test_negative_bit():
    """A tensor that is the negative of its memory."""
    x = torch.randn(4, 6, dtype=torch.complex128).conj().imag
    assert x.is_neg()
    torch.testing.assert_close(ft.log_softmax(x), F.log_softmax(x, -1))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_scaled_losses_of_float16(reduction):
    """What a mean over many rows leaves of a float16 gradient is 0 before a factor of 65536."""
    x = (torch.randn(2048, 300) / 10).half()
    w, target = (torch.randn(300, 300) / 10).half(), torch.randint(0, 300, (2048,))
    scale = 65536 if reduction == "mean" else 32
    a, b = x.clone().requires_grad_(), x.double().requires_grad_()
    (ft.cross_entropy(a, target, reduction=reduction) * scale).backward()
    (F.cross_entropy(b, target, reduction=reduction) * scale).backward()
    torch.testing.assert_close(a.grad.double(), b.grad, rtol=1e-3, atol=1e-7)
    assert (a.grad != 0).all()
    a, b = x.clone().requires_grad_(), x.double().requires_grad_()
    (ft.linear_cross_entropy(a, w, target, reduction=reduction) * scale).backward()
    (F.cross_entropy(b @ w.double().T, target, reduction=reduction) * scale).backward()
    torch.testing.assert_close(a.grad.double(), b.grad, rtol=2e-2, atol=2e-3 * b.grad.std().item())


def test_what_a_backward_needs_must_not_change():
    x, q, target = leaf(3, 4), leaf(1, 1, 4, 8), torch.arange(3)
    weight, mask = torch.ones(4, dtype=torch.float64), torch.ones(4, 4, dtype=torch.bool)
    for result, changed in (
        (ft.scaled_dot_product_attention(q, q, q, mask), mask),
        (ft.cross_entropy(x, target, weight, reduction="none"), weight),
        (ft.linear_cross_entropy(x, x, target % 3, weight=weight[:3], reduction="none"), weight),
    ):
        changed.zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            result.sum().backward()


@pytest.mark.parametrize("linear", [False, True])
def test_gradients_of_one_loss_are_memory_of_their_own(linear):
    x, target = leaf(4, 6), torch.arange(4)
    w = torch.randn(5, 6, dtype=torch.float64)
    result = ft.linear_cross_entropy(x, w, target) if linear else ft.cross_entropy(x, target)
    a, b = (torch.autograd.grad(result, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(a, b)
    b.zero_()
    assert a.any()
    assert torch.equal(torch.autograd.grad(result, x, retain_graph=True)[0], a)


def test_forward_mode_is_refused():
    """It would lose the tangent."""
    from torch.autograd import forward_ad

    x, target, q = torch.randn(4, 6), torch.arange(4), torch.randn(2, 3, 8)
    with forward_ad.dual_level():
        x, q = (forward_ad.make_dual(a, torch.ones_like(a)) for a in (x, q))
        for call in (
            lambda: ft.log_softmax(x),
            lambda: ft.cross_entropy(x, target),
            lambda: ft.cross_entropy(x, target, reduction="none"),
            lambda: ft.linear_cross_entropy(x, x, target),
            lambda: ft.scaled_dot_product_attention(q, q, q),
        ):
            with pytest.raises(NotImplementedError, match="jvp"):
                call()


def test_disabled_under_compile_is_one_break_a_call():
    """As docs/guide/pytorch.md says."""
    counters = pytest.importorskip("torch._dynamo.utils").counters
    loss_of = torch.compiler.disable(ft.cross_entropy)
    attend = torch.compiler.disable(ft.scaled_dot_product_attention)

    def both(x, q):
        return loss_of(torch.sin(x), torch.zeros(8, dtype=torch.int64)) + attend(q, q, q).sum()

    x, q = torch.randn(8, 10, requires_grad=True), torch.randn(1, 2, 8, 4, requires_grad=True)
    expected = torch.autograd.grad(both(x, q), (x, q))
    torch._dynamo.reset()
    counters.clear()
    got = torch.autograd.grad(torch.compile(both, backend="eager")(x, q), (x, q))
    assert sum(counters["graph_break"].values()) == 2
    assert all(map(torch.equal, got, expected))
