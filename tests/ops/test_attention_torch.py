"""The same meaning as torch.nn.functional.scaled_dot_product_attention, for all that it has."""

import itertools

import numpy as np
import pytest
from support.attention import Shape, draw, eps, run

import fastce

torch = pytest.importorskip("torch", reason="PyTorch is not installed: nothing to compare with")
attend = torch.nn.functional.scaled_dot_product_attention

SHAPES = {
    "few": Shape((2,), 4, 4, 3, 7, 6, 4),
    "groups": Shape((2,), 4, 2, 5, 9, 4, 4),
    "tiles": Shape((), 4, 1, 70, 101, 8, 6),
    "square": Shape((1, 2), 2, 2, 33, 33, 5, 5),
    "decode": Shape((2,), 8, 2, 1, 130, 16, 16),
}
# The axes of a mask: those of the batch, heads, L and S; one is 1.
MASKS = {
    "whole": (1, 1, 1, 1),
    "queries and keys": (0, 0, 1, 1),
    "keys": (0, 0, 0, 1),
    "queries": (0, 0, 1, 0),
    "keys of a head": (0, 1, 0, 1),
    "batch": (1, 0, 0, 1),
    "number": (0, 0, 0, 0),
}
DTYPES = {"f64": np.float64, "f32": np.float32}


def mask_of(kind, axes, shape, dtype):
    """None, or a mask with these axes. Every query sees a key."""
    if kind == "none":
        return None
    axes = (*[axes[0]] * len(shape.batch), *axes[1:])
    mask = np.random.default_rng(0).standard_normal(
        [n if axis else 1 for n, axis in zip(shape.scores, axes, strict=True)]
    )
    if kind == "bool":
        mask = mask > -0.5
        mask[..., 0] = True
        return mask
    return mask.astype(dtype)


def tensors(*arrays):
    return [torch.tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays]


def compare(shape, dtype, mask, **options):
    (g, *arrays), gqa = draw("plain", shape, dtype)
    options |= gqa
    given = tensors(*arrays)
    theirs = dict(options)
    if mask is not None:
        (theirs["attn_mask"],) = tensors(mask)
        if mask.dtype != bool:
            given.append(theirs["attn_mask"])
    right = attend(*given[:3], **theirs)
    right.backward(torch.tensor(g))
    # PyTorch errs as much as we do: not the place for a limit, see test_attention.py.
    tolerance = 64 * eps(dtype)
    out, _, *grads = run(g, *arrays, attn_mask=mask, **options)
    np.testing.assert_allclose(out, right.detach().numpy(), rtol=tolerance, atol=tolerance)
    assert len(grads) == len(given)
    for grad, tensor in zip(grads, given, strict=True):
        assert grad.shape == tuple(tensor.shape)
        size = max(1, float(tensor.grad.abs().max()))
        np.testing.assert_allclose(grad, tensor.grad.numpy(), rtol=tolerance, atol=tolerance * size)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_option(backend, shape, dtype):
    """Masks with either scale; PyTorch refuses is_causal beside a mask."""
    for causal, scale in itertools.product((False, True), (None, 0.4)):
        compare(shape, dtype, None, is_causal=causal, scale=scale)
    masks = itertools.product(("bool", "float"), MASKS.values())
    for (kind, axes), scale in zip(masks, itertools.cycle((None, 0.4))):
        compare(shape, dtype, mask_of(kind, axes, shape, dtype), scale=scale)


# 210: cheap, and the only ones of a mask and is_causal that our own truth does not share.
@pytest.mark.parametrize("axes", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_causal_beside_a_mask(backend, shape, kind, axes):
    """As PyTorch does it when both are put into one mask."""
    (_, q, k, v), gqa = draw("plain", shape, np.float64)
    mask = mask_of(kind, axes, shape, np.float64)
    seen = np.tri(shape.length, shape.keys, dtype=bool)
    both = np.where(mask, seen, False) if kind == "bool" else np.where(seen, mask, -np.inf)
    right = attend(*map(torch.tensor, (q, k, v)), attn_mask=torch.tensor(both), **gqa)
    ours = fastce.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=True, **gqa)
    np.testing.assert_allclose(ours, right.numpy(), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("shape", [s for s in SHAPES.values() if s.length < s.keys], ids=str)
def test_offset_is_the_lower_right_bias(backend, shape):
    from torch.nn.attention.bias import causal_lower_right

    (_, q, k, v), gqa = draw("plain", shape, np.float32)
    group = shape.heads // shape.kv_heads
    k4, v4 = (np.repeat(a.reshape(-1, *a.shape[-3:]), group, axis=1) for a in (k, v))
    bias = causal_lower_right(shape.length, shape.keys)
    right = attend(
        *map(torch.tensor, (q.reshape(-1, *q.shape[-3:]), k4, v4)), attn_mask=bias
    ).numpy()
    ours = fastce.scaled_dot_product_attention(
        q, k, v, is_causal=True, q_offset=shape.keys - shape.length, **gqa
    )
    np.testing.assert_allclose(ours, right.reshape(ours.shape), rtol=1e-5, atol=1e-6)


def test_broadcast_batch_axes(backend):
    shapes = ((2, 1, 3, 5, 4), (4, 3, 7, 4), (2, 4, 1, 7, 4))
    arrays = [np.random.default_rng(i).standard_normal(s) for i, s in enumerate(shapes)]
    given = tensors(*arrays)
    right = attend(*given)
    g = np.random.default_rng(9).standard_normal(right.shape)
    right.backward(torch.tensor(g))
    out, _, *grads = run(g, *arrays)
    np.testing.assert_allclose(out, right.detach().numpy(), rtol=1e-12)
    for grad, tensor in zip(grads, given, strict=True):
        np.testing.assert_allclose(grad, tensor.grad.numpy(), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(backend, dtype):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    kind = np.dtype(getattr(ml_dtypes, dtype, np.float16))
    (g, *arrays), gqa = draw("plain", SHAPES["tiles"], kind)
    given = [torch.tensor(a.astype(float)).to(getattr(torch, dtype)) for a in arrays]
    for tensor in given:
        tensor.requires_grad_()
    right = attend(*given, is_causal=True, **gqa)
    right.backward(torch.tensor(g.astype(float)).to(right.dtype))
    out, _, *grads = run(g, *arrays, is_causal=True, **gqa)
    for ours, theirs in zip((out, *grads), (right, *(t.grad for t in given)), strict=True):
        theirs = theirs.detach().double().numpy()
        tolerance = 8 * eps(kind)
        np.testing.assert_allclose(
            ours.astype(float), theirs, rtol=tolerance, atol=tolerance * np.abs(theirs).max()
        )


def test_lse_of_flash_attention(backend):
    """PyTorch gives it where it uses that algorithm, in the same unit."""
    (_, q, k, v), _ = draw("plain", Shape((2,), 3, 3, 40, 90, 8, 8), np.float32)
    right, norm = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        *map(torch.tensor, (q, k, v))
    )
    out, lse = fastce.scaled_dot_product_attention(q, k, v, return_lse=True)
    np.testing.assert_allclose(out, right.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(lse, norm.numpy(), rtol=1e-6)


def test_rows_without_a_key(backend):
    """0, as PyTorch has it since 2.5."""
    (_, q, k, v), _ = draw("plain", Shape((), 2, 2, 5, 9, 4, 4), np.float64)
    mask = np.ones((5, 9), bool)
    mask[[1, 3]] = False
    right = attend(*map(torch.tensor, (q, k, v)), attn_mask=torch.tensor(mask)).numpy()
    ours = fastce.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    np.testing.assert_allclose(ours, right, rtol=1e-13)
    assert not ours[:, [1, 3]].any()


@pytest.mark.parametrize(("dtype", "size"), [("f32", -1e30), ("f64", -1e300)])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_rows_of_large_negative_numbers(backend, shape, dtype, size):
    """Every other query, and every key of some: PyTorch keeps the weights, or lse is not enough."""
    mask = np.zeros(shape.scores[-2:], DTYPES[dtype])
    mask[::2] = size
    mask[1::4, ::3] = size
    compare(shape, DTYPES[dtype], mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_padded_query_in_fastce_torch(backend, dtype):
    """Every key gets the same gradient."""
    from fastce.torch import scaled_dot_product_attention

    q, k, v = (torch.randn(1, 1, n, 16, dtype=dtype, requires_grad=True) for n in (1, 300, 300))
    mask = torch.full((1, 300), -1e30, dtype=dtype)
    scaled_dot_product_attention(q, k, v, attn_mask=mask).sum().backward()
    torch.testing.assert_close(v.grad, torch.full_like(v, 1 / 300))
