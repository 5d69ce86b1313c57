"""Attention's CUDA kernels, on the machine of `ptx_machine.py`, and on a GPU where there is one.

Compiling takes most of the time here, some seconds for each kernel, dtype and width; so the machine
runs a choice of the cases, and `pytest -m gpu` all of them.
"""

import itertools

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("fastce.kernels.cuda", exc_type=ImportError)  # without numba-cuda
from numba import cuda
from support import simulated_gpu as sim
from support.attention import (
    CASES,
    SHAPES,
    Shape,
    assert_close,
    check,
    compare,
    draw,
    eps,
    naive,
    run,
    truth,
    truths,
)
from support.attention import truth_grads as right_grads
from support.cases import DTYPES
from support.truths import compute, widen

import fastce
from fastce.kernels.cuda import _device
from fastce.kernels.cuda._storage import storage_of
from fastce.kernels.cuda.attention import launch
from fastce.kernels.cuda.attention.tiles import WIDTHS
from fastce.kernels.cuda.attention.work import Problem

attention = fastce.scaled_dot_product_attention
attention_backward = fastce.scaled_dot_product_attention_backward
INF = np.inf

# Rows of 16 bytes, which are copied whole: a tile and a bit, and keys for a few steps.
WHOLE = {
    "words": Shape((2,), 2, 1, 35, 70, 32, 24),
    "words-decode": Shape((1,), 4, 2, 1, 700, 32, 32),
}
ALL = {**SHAPES, **WHOLE}
# On the machine: every shape, every case, every dtype at least once (float32 in test_tf32).
QUICK = (
    *itertools.product(("words",), ("plain", "all"), ("f16",)),
    ("words", "all", "f64"),
    *itertools.product(("few-shared", "few"), ("plain", "all"), ("f16",)),
    *itertools.product(("few",), [c for c in CASES if c not in ("plain", "all")], ("f16",)),
    *itertools.product(("one", "one-key", "tile-split", "heads-together"), ("all",), ("f16",)),
    *itertools.product(("decode", "words-decode"), ("plain", "causal-offset"), ("f16",)),
    *itertools.product(("tiles", "blocks"), ("causal-offset",), ("f16",)),
    ("wide", "plain", "bf16"),
)


@pytest.fixture
def backend(cuda_backend):
    """In place of all backends."""
    return cuda_backend


@pytest.mark.parametrize(
    ("shape", "case", "dtype"), [pytest.param(*q, id="-".join(q)) for q in QUICK]
)
def test_truth(backend, shape, case, dtype):
    arrays, options = draw(case, ALL[shape], DTYPES[dtype])
    check(*arrays, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", ALL)
def test_truth_of_all(backend, shape, case, dtype):
    arrays, options = draw(case, ALL[shape], DTYPES[dtype])
    check(*arrays, **options)


GPU_ONLY = (test_truth_of_all,)


@pytest.mark.parametrize("dtype", ["f16"])
def test_not_less_exact_than_numpy(backend, dtype):
    """The formula in the same dtype. Tensor cores round weights to 16 bits, as NumPy does here."""
    rng = np.random.default_rng(0)
    g, q, k, v = (rng.standard_normal((2, 60, 32)).astype(DTYPES[dtype]) for _ in range(4))
    out, _, *grads = run(g, q, k, v)
    right = truth(q, k, v)[0], *right_grads(g, q, k, v)[:3]
    for ours, theirs, value in zip((out, *grads), naive(q, k, v, g), right, strict=True):
        error, theirs = (float(np.abs(widen(a) - value).max()) for a in (ours, theirs))
        slack = 4 if compute(DTYPES[dtype]) == DTYPES[dtype] else 0.25
        assert error <= theirs + slack * eps(DTYPES[dtype]) * np.abs(value).max()


def test_queries_that_see_no_key(backend):
    arrays, _ = draw("plain", Shape((), 2, 2, 40, 50, 8, 6), np.dtype(np.float16))
    mask = np.ones((40, 50), bool)
    mask[[0, 20, 39]] = False
    for options in (
        {"attn_mask": mask},
        {"is_causal": True, "q_offset": -3},
        {"kv_lengths": 0},
        {"window": (5, 5), "q_offset": 2**62},
    ):
        right = truths(*arrays[1:], arrays[0], **options)
        blind = right[1].value[0] == -INF
        assert blind.any()
        out, lse, dq, *more = results = run(*arrays, **options)
        compare(results, right)
        assert not widen(out[:, blind]).any()
        assert (lse[:, blind] == -INF).all()
        assert not widen(dq[:, blind]).any()
        assert all(np.isfinite(widen(a)).all() for a in more)


def test_infinite_values_that_are_not_seen(backend):
    """A query that sees no key gives 0, and keys behind the last are not read."""
    q = np.ones((1, 3, 8), np.float16)
    v = np.full((1, 40, 8), INF, np.float16)
    out = attention(q, np.ones_like(v), v, attn_mask=np.array([[False], [True], [False]]))
    assert (out[0, [0, 2]] == 0).all()
    assert np.isinf(out[0, 1]).all()
    v[:, :20] = 2
    assert (attention(q, np.ones_like(v), v, kv_lengths=20) == 2).all()


def test_no_keys_and_no_queries(backend):
    for length, keys in (40, 0), (0, 40), (0, 0):
        q, k = (np.ones((1, 2, n, 32), np.float16) for n in (length, keys))
        out, lse, dq, dk, dv = run(q, q, k, k)
        assert out.shape == dq.shape == q.shape
        assert not out.any()
        assert (lse == -INF).all()
        assert not any(a.any() for a in (dq, dk, dv))


@pytest.mark.parametrize("scale", [-0.3, 0.0, 1e-60])
def test_scales_that_are_not_above_zero(backend, scale):
    """In float32, too. What is hidden stays hidden."""
    arrays, options = draw("causal", SHAPES["few"], np.dtype(np.float16))
    check(*arrays, scale=scale, **options)


def test_mask_of_the_lowest_finite_number(backend):
    """In place of -inf: a row that has nothing else gives the mean, and the gradient of that."""
    arrays, _ = draw("plain", SHAPES["few"], np.dtype(ml_dtypes.bfloat16))
    arrays[1][..., 3, :] = 0  # its scores are equal without a mask, too
    mask = np.zeros((7, 13), ml_dtypes.bfloat16)
    mask[:, :5] = mask[3] = ml_dtypes.finfo(ml_dtypes.bfloat16).min
    out, _, *grads = run(*arrays, attn_mask=mask)
    hidden = np.zeros_like(mask)
    hidden[:, :5] = -INF
    hidden[3] = 0
    right = run(*arrays, attn_mask=hidden)
    others = [0, 1, 2, 4, 5, 6]
    np.testing.assert_array_equal(widen(out)[..., others, :], widen(right[0])[..., others, :])
    for ours, theirs in zip((out, *grads), (right[0], *right[2:]), strict=True):
        np.testing.assert_allclose(widen(ours), widen(theirs), rtol=0.02, atol=0.02)


@pytest.mark.parametrize(("dtype", "size"), [("f32", -1e9), ("f64", -1e300), ("f16", -6e4)])
def test_masks_of_one_large_number(backend, dtype, size):
    """Equal scores, whatever lse is rounded to: every weight is 1 / S. Beside other rows."""
    dtype = np.dtype(DTYPES[dtype])
    (g, q, k, v), _ = draw("plain", Shape((), 2, 2, 20, 37, 8, 6), dtype)
    q[:, ::2] = 0
    mask = np.zeros((20, 37), dtype)
    mask[::2] = size
    results = run(g, q, k, v, attn_mask=mask)
    right = truths(q, k, v, g, attn_mask=np.zeros_like(mask))  # the same weights
    for i in 0, 2, 3, 4, 5:
        assert_close(results[i], *right[i], 8)


def test_large_scores_that_are_equal(backend):
    """Every third key has the largest score, 4e6, and nothing masks: products are not scaled."""
    (g, _, _, v), _ = draw("plain", Shape((), 1, 1, 20, 37, 8, 6), np.dtype(np.float16))
    q, k = np.full((1, 20, 8), 1000, np.float16), np.full((1, 37, 8), 500, np.float16)
    k[:, ::3] = 1000
    _, _, dq, dk, dv = run(g, q, k, v, scale=0.5)
    right = np.where(np.arange(37) % 3, 0, widen(g).sum(axis=1).T / 13).T
    np.testing.assert_allclose(widen(dv)[0], right, rtol=2e-3, atol=2e-3)
    p = np.where(np.arange(37) % 3, 0, 1 / 13)
    dp = widen(g)[0] @ widen(v)[0].T
    ds = p * (dp - (p * dp).sum(axis=1, keepdims=True))
    for ours, theirs in (dk, ds.sum(axis=0)[:, None] * 500), (dq, 0):
        np.testing.assert_allclose(widen(ours)[0], np.broadcast_to(theirs, ours.shape[1:]), atol=4)


def test_equal_scores_of_any_size(backend):
    """Weights of keys that came first are not rescaled where the largest score stays."""
    q, k = np.full((1, 1, 8), 100, np.float16), np.full((1, 700, 8), 317, np.float16)
    v = np.zeros((1, 700, 8), np.float16)
    v[:, :350] = 1
    assert (attention(q, k, v) == 0.5).all()


# ---- arrays on the GPU -----------------------------------------------------------------------


def on(gpu, options):
    arrays = {k: v for k, v in options.items() if isinstance(v, np.ndarray) and v.ndim}
    return {**options, **{k: gpu.put(v) for k, v in arrays.items()}}


def run_there(gpu, arrays, **options):
    g, q, k, v = map(gpu.put, arrays)
    options = on(gpu, options)
    mask = options.get("attn_mask")
    out, lse = attention(q, k, v, return_lse=True, **options)
    floating = mask is not None and mask.dtype != bool
    grads = attention_backward(g, q, k, v, out, lse, grad_mask=floating, **options)
    assert {type(a) for a in (out, lse, *grads)} == {type(q)}
    return [gpu.get(a) for a in (out, lse, *grads)]


@pytest.mark.parametrize("case", ["plain", "all", "lengths", "offsets", "bool-mask", "key-mask"])
def test_arrays_on_the_gpu(gpu, case):
    """With lengths, offsets and masks there, too."""
    arrays, options = draw(case, SHAPES["few"], np.dtype(np.float16))
    compare(run_there(gpu, arrays, **options), truths(*arrays[1:], arrays[0], **options))


def test_positions_and_windows_that_are_far_away(gpu):
    """Only their difference counts."""
    arrays, _ = draw("plain", SHAPES["few"], np.dtype(np.float16))
    near = {"window": (9, -1), "q_offset": np.array([12, -100])}
    far = {"window": (2**62, -1), "q_offset": np.array([2**62 + 3, -100])}
    compare(run_there(gpu, arrays, **far), truths(*arrays[1:], arrays[0], **near))


def test_nothing_to_sum(gpu):
    """Gradients of keys that no query sees are written."""
    for of_q, of_k in (
        ((2, 2, 0, 8), (2, 2, 200, 8)),
        ((0, 2, 3, 8), (1, 2, 9, 8)),
        ((2, 0, 3, 8), (2, 1, 9, 8)),
        ((2, 2, 3, 8), (1, 2, 0, 8)),
    ):
        arrays = [np.ones(shape, np.float16) for shape in (of_q, of_q, of_k, of_k)]
        results = run_there(gpu, arrays, enable_gqa=of_q[1] == 0)
        assert [a.shape for a in results[2:]] == [of_q, of_k, of_k]
        assert not any(a.any() for a in results[2:])


def test_steps_along_axes_of_one_element(gpu):
    """They lead nowhere, and need not be whole words."""
    if gpu.machine is None:
        pytest.skip("Numba's arrays are copied to the GPU in C order only")
    x = np.random.default_rng(0).standard_normal((1, 1, 1, 8)).astype("f2")
    q = gpu.put(x)._again((1, 1, 1, 8), (90, 90, 18, 2))
    np.testing.assert_array_equal(attention(q, q, q).get(), x)


def test_without_a_batch(gpu):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((5, 8)).astype("f2") for _ in range(4)]
    compare(run_there(gpu, arrays), truths(*arrays[1:], arrays[0]))


def test_gradients_of_what_is_broadcast(gpu):
    """Are added up: over batch entries, over heads, and over both."""
    rng = np.random.default_rng(0)
    shapes = (2, 3, 7, 8), (2, 3, 7, 8), (2, 1, 9, 8), (3, 9, 8)
    arrays = [rng.standard_normal(shape).astype("f2") for shape in shapes]
    compare(run_there(gpu, arrays), truths(*arrays[1:], arrays[0]))
    arrays[1] = arrays[1][:1, :1]
    compare(run_there(gpu, arrays), truths(*arrays[1:], arrays[0]))


@pytest.mark.parametrize("order", [(0, 2, 1, 3), (2, 1, 0, 3)])
def test_any_order_of_axes(gpu, order):
    """Results have the memory layout of q."""
    if gpu.machine is None:
        pytest.skip("Numba's arrays are copied to the GPU in C order only")
    rng = np.random.default_rng(0)
    back = np.argsort(order)
    arrays = [rng.standard_normal((2, 3, 9, 8)).astype("f2") for _ in range(4)]
    there = [
        gpu.put(np.ascontiguousarray(a.transpose(order))).transpose(tuple(map(int, back)))
        for a in arrays
    ]
    out, lse = attention(*there[1:], return_lse=True)
    assert out.strides == there[1].strides
    grads = attention_backward(there[0], *there[1:], out, lse)
    assert grads[1].strides == there[2].strides
    compare([a.get() for a in (out, lse, *grads)], truths(*arrays[1:], arrays[0]))


def test_batch_axes_that_do_not_fold(gpu):
    """The step from entry to entry is not the same for all."""
    if gpu.machine is None:
        pytest.skip("Numba's arrays are copied to the GPU in C order only")
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((2, 3, 2, 7, 8)).astype("f2") for _ in range(4)]
    there = [gpu.put(np.asfortranarray(a.T).T) for a in arrays]
    q = gpu.put(arrays[1].swapaxes(0, 1).copy()).transpose((1, 0, 2, 3, 4))
    out, lse = attention(q, *there[2:], return_lse=True)
    grads = attention_backward(there[0], q, *there[2:], out, lse)
    compare([a.get() for a in (out, lse, *grads)], truths(*arrays[1:], arrays[0]))


def test_out(gpu):
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 9, 8)).astype("f2") for _ in range(3))
    there = [gpu.put(a) for a in (q, k, v)]
    out = gpu.put(np.zeros_like(q))
    assert attention(*there, out=out) is out
    compare([gpu.get(out)], truths(q, k, v))
    allowed = gpu.put(np.ones((9, 9), bool))
    attention(*there, attn_mask=allowed, out=out)
    with pytest.raises(ValueError, match="out overlaps q"):
        attention(*there, out=there[0])
    with pytest.raises(ValueError, match="out must have shape"):
        attention(*there, out=gpu.put(q[:1]))


@pytest.mark.parametrize("where", ["host", "gpu"])
@pytest.mark.parametrize("integers", [np.int32, np.int64])
def test_varlen(gpu, integers, where):
    rng = np.random.default_rng(0)
    q, g = (rng.standard_normal((50, 4, 8)).astype("f2") for _ in range(2))
    k, v = (rng.standard_normal((60, 2, 8)).astype("f2") for _ in range(2))
    ends = np.array([0, 20, 20, 21, 50], integers), np.array([0, 7, 30, 60, 60], integers)
    there = [gpu.put(a) for a in ends] if where == "gpu" else ends
    options = {"is_causal": True, "enable_gqa": True, "q_offset": 3}
    a = [gpu.put(x) for x in (q, k, v)]
    out, lse = fastce.attention_varlen(*a, *there, return_lse=True, **options)
    grads = fastce.attention_varlen_backward(gpu.put(g), *a, out, lse, *there, **options)
    for i in range(4):
        rows, keys = (slice(e[i], e[i + 1]) for e in ends)
        one = [np.swapaxes(x, 0, 1) for x in (q[rows], k[keys], v[keys], g[rows])]
        right = truths(*one, **options)
        parts = zip((out, lse, *grads), (rows, rows, rows, keys, keys), strict=True)
        ours = [gpu.get(x)[part] for x, part in parts]
        compare([np.swapaxes(x, 0, 1) for x in ours], right, f"sequence {i}")


def test_tf32(gpu):
    rng = np.random.default_rng(0)
    # Of a width whose kernels test_ptx.py compiles, too.
    arrays = [rng.standard_normal((1, 40, 128)).astype(np.float32) for _ in range(4)]
    right = truths(*arrays[1:], arrays[0])
    errors = []
    for allowed in False, True:
        fastce.set_allow_tf32(allowed)
        try:
            results = run_there(gpu, arrays)
        finally:
            fastce.set_allow_tf32(False)
        pairs = zip(results, right, strict=False)
        errors.append([np.abs(r - t.value).max() / np.abs(t.value).max() for r, t in pairs])
        if not allowed:
            compare(results, right)
    assert max(errors[0]) < 1e-6
    # 11 bits of each factor; the errors of sums of many stay near that.
    assert 1e-5 < max(errors[1]) < 2e-3
    with pytest.raises(TypeError, match="allowed must be True or False, got 1"):
        fastce.set_allow_tf32(1)


@pytest.mark.parametrize(
    ("dtype", "width"), [pytest.param("f16", 64, marks=pytest.mark.gpu), ("bf16", 128)]
)
def test_warpgroups(gpu, monkeypatch, dtype, width):
    """Hopper's products, which are not used unless they are asked for."""
    monkeypatch.setattr(launch, "WARPGROUPS", True)
    if _device.limits(0).capability != (9, 0):
        pytest.skip("this GPU is not of compute capability 9.0")
    if gpu.machine is None and dtype == "bf16":
        pytest.skip("Numba's arrays have no bfloat16")
    arrays, options = draw("causal-offset", Shape((), 2, 1, 140, 150, width, width), DTYPES[dtype])
    compare(run_there(gpu, arrays, **options), truths(*arrays[1:], arrays[0], **options))


def test_the_same_bits_again(gpu):
    arrays, options = draw("causal-offset", SHAPES["few-shared"], np.dtype(np.float16))
    first, second = (run_there(gpu, arrays, **options) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def test_lengths_on_the_gpu_are_not_trusted(gpu):
    """Nothing is read out of bounds; with validation, it raises."""
    q, k = gpu.put(np.ones((2, 1, 3, 8), np.float16)), gpu.put(np.ones((2, 1, 9, 8), np.float16))
    wrong = gpu.put(np.array([-5, 99]))
    out = gpu.get(attention(q, k, k, kv_lengths=wrong))
    assert (out[0] == 0).all()
    assert (out[1] == 1).all()
    ends = gpu.put(np.array([0, 7, 4]))
    packed = gpu.put(np.ones((4, 1, 8), np.float16))
    fastce.attention_varlen(packed, packed, packed, ends, ends)
    fastce.set_validation(True)
    try:
        with pytest.raises(ValueError, match="kv_lengths must be from 0 to the 9 keys"):
            attention(q, k, k, kv_lengths=wrong)
        with pytest.raises(ValueError, match="cu_seqlens_q must rise from 0 to 4"):
            fastce.attention_varlen(packed, packed, packed, ends, ends)
    finally:
        fastce.set_validation(False)


def test_errors(gpu):
    x = np.zeros((2, 3, 8), np.float16)
    q, integers = gpu.put(x), gpu.put(np.zeros((2, 3, 8), int))
    mask = gpu.put(np.zeros((3, 3), np.float32))
    q4, wide = gpu.put(np.zeros((2, 1, 3, 8), "f2")), gpu.put(np.zeros((1, 2, 257), "f2"))
    for error, message, call in [
        (TypeError, "k must be on the GPU", lambda: attention(q, x, q)),
        (TypeError, "on a GPU, and the other arrays are not", lambda: attention(x, q, x)),
        (TypeError, "v must be float64", lambda: attention(q, q, integers)),
        (TypeError, "one dtype", lambda: attention(q, gpu.put(x.astype("f4")), q)),
        (ValueError, "must agree in their last axis",
         lambda: attention(q, gpu.put(np.zeros((2, 3, 9), np.float16)), q)),
        (TypeError, "attn_mask must be boolean or have q's dtype float16, got float32",
         lambda: attention(q, q, q, attn_mask=mask)),
        (TypeError, "attn_mask must be on the GPU",
         lambda: attention(q, q, q, attn_mask=np.ones((3, 3), bool))),
        (TypeError, "kv_lengths on the GPU must be contiguous integers of shape",
         lambda: attention(q, q, q, kv_lengths=gpu.put(np.zeros(5, int)))),
        (TypeError, "kv_lengths is a .* on a GPU, and the other arrays are not",
         lambda: attention(x, x, x, kv_lengths=integers)),
        (ValueError, "q_offset must be one integer, or one for each batch entry",
         lambda: attention(q4, q4, q4, q_offset=[1, 2, 3], kv_lengths=gpu.put(np.ones(2, int)))),
        (ValueError, "heads of up to 256 numbers, got 257", lambda: attention(wide, wide, wide)),
        (TypeError, "cu_seqlens_q must be a one-dimensional array of integers",
         lambda: fastce.attention_varlen(q, q, q, gpu.put(np.zeros((), int)), [0, 2])),
        (ValueError, "kv_lengths must be from 0 to the 3 keys, got 4",
         lambda: attention(q, q, q, kv_lengths=4)),
        (ValueError, "grad_out must have shape",
         lambda: attention_backward(gpu.put(x[:1]), q, q, q, q, gpu.put(x[..., 0].astype("f4")))),
        (ValueError, "grad_mask needs a floating attn_mask",
         lambda: attention_backward(
             q, q, q, q, q, gpu.put(x[..., 0].astype("f4")), grad_mask=True)),
    ]:  # fmt: skip
        with pytest.raises(error, match=message):
            call()
    if gpu.machine:
        transposed = gpu.put(np.zeros((2, 8, 3), np.float16)).transpose((0, 2, 1))
        with pytest.raises(ValueError, match="must be contiguous in its last axis"):
            attention(transposed, transposed, transposed)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("causal", [False, True])
def test_error_at_most_twice_that_of_pytorch(dtype, causal):
    """Against float64, of its own kernels in the same dtype."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    q, k, v, g = (torch.randn(1, 4, 1000, 128, device="cuda", dtype=kind) for _ in range(4))
    results = {}
    for name, to in ("theirs", kind), ("right", torch.float64):
        leaves = [a.to(to).requires_grad_() for a in (q, k, v)]
        out = torch.nn.functional.scaled_dot_product_attention(*leaves, is_causal=causal)
        out.backward(g.to(to))
        results[name] = [a.double() for a in (out.detach(), *(x.grad for x in leaves))]
    out, lse = attention(q, k, v, is_causal=causal, return_lse=True)
    grads = attention_backward(g, q, k, v, out, lse, is_causal=causal)
    for ours, theirs, right in zip((out, *grads), results["theirs"], results["right"], strict=True):
        error, other = ((a.double() - right).abs().max().item() for a in (ours, theirs))
        assert error <= 2 * other


# ---- how work is cut -------------------------------------------------------------------------


@pytest.mark.parametrize("available", [99, 163, 227])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", ["float16", "tfloat32", "float32", "float64"])
def test_tiles_fit_in_shared_memory(monkeypatch, dtype, width, available):
    """Of GPUs with so many KB of it for a block."""
    machine = sim.Machine(shared=available * 1024)
    monkeypatch.setattr(_device, "limits", machine.limits)
    size = storage_of(dtype).size
    for queries in 1, 60, 1000:
        p = Problem(0, 0, 0, 0, width=width * size, value_width=width * size)
        p = p._replace(queries=queries, keys=1000, heads=4, group=1, entries=1)
        tiling, _ = launch.forward(dtype, p, False, 0)
        assert launch.forward_shared(tiling) <= available * 1024
        if (dtype, width, available) == ("float64", 256, 99):
            with pytest.raises(ValueError, match=r"rows of 2048 bytes needs .* of shared memory"):
                next(launch.backward(dtype, p, False, 0))
            continue
        for tiling, _ in launch.backward(dtype, p, False, 0):
            assert launch.backward_shared(tiling) <= available * 1024
        tiling = launch.mask_gradient(dtype, p, 0)
        assert launch.unbuffered_size(tiling) <= available * 1024


def test_keys_are_split_where_queries_are_few(gpu):
    if gpu.machine is None:
        pytest.skip("launches are unknown on a GPU")
    q, k = (gpu.put(np.zeros((1, 4, n, 32), ml_dtypes.bfloat16)) for n in (1, 2000))
    attention(q, k, k)
    split, merge = gpu.machine.launches
    assert (split.blocks, merge.kernel.py_func.__name__) == (4 * (2000 // 32 // 8), "merge")


@pytest.mark.skipif(cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu():
    with pytest.raises(fastce.BackendError, match="there is no NVIDIA GPU"):
        fastce.use_backend("cuda").__enter__()
