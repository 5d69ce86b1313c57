"""fastce's functions inside compiled code of the user: the same results as from Python."""

import numpy as np
import pytest
from conftest import SELECTED
from support.processes import python

import fastce

if "numba" not in SELECTED:
    pytest.skip("FASTCE_TEST_BACKENDS leaves numba out", allow_module_level=True)

import numba
from numba import njit, prange

rng = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _on_numba():
    with fastce.use_backend("numba"):
        yield


def same(ours, theirs, ulp=0):
    """Equal in structure, dtype and every bit: it is the same kernel. Compiled anew, its sums may
    be added in another order: by so many ULP of the largest number, then, results may differ.
    """
    if isinstance(theirs, tuple):
        assert isinstance(ours, tuple)
        for a, b in zip(ours, theirs, strict=True):
            same(a, b, ulp)
    else:
        a, b = np.asarray(ours), np.asarray(theirs)
        assert a.shape == b.shape
        # Numba returns numbers as Python's, which are of 64 bits.
        assert a.dtype == b.dtype or isinstance(ours, float)
        if ulp:
            atol = ulp * np.finfo(b.dtype).eps * np.nanmax(np.abs(b))
            np.testing.assert_allclose(a, b, rtol=0, atol=atol)
        else:
            np.testing.assert_array_equal(a, b)


# --- softmax ------------------------------------------------------------------------------


# Each call in each function is compiled anew for each dtype, number of axes and layout, which takes
# 2 to 15 s. So a function makes one call, tests share functions, and few combinations are tried.


@njit
def softmax_along(x, axis):
    return fastce.softmax(x, axis=axis)


@njit
def log_sums(x):
    return fastce.logsumexp(x)


@njit
def log_sums_of_columns(x):
    return fastce.logsumexp(x, axis=-2, keepdims=True)


def check(function, *given, ulp=0):
    """Compiled, and by Python."""
    same(function(*given), function.py_func(*given), ulp)


def with_nan(shape, dtype):
    x = rng.standard_normal(shape).astype(dtype)
    x.reshape(-1)[:1] = np.nan
    return x


@pytest.mark.parametrize("shape", [(4, 7), (300, 1000), (2, 0)])
def test_softmax(shape):
    x = with_nan(shape, np.float32)
    for axis in -1, 0:
        check(softmax_along, x, axis)
    check(log_sums_of_columns, x)
    check(log_sums, x[0])


@pytest.mark.parametrize("shape", [(0, 3), (6, 8)])
def test_softmax_of_float64(shape):
    x = with_nan(shape, np.float64)
    check(softmax_along, x, 1)
    check(log_sums, x)


@pytest.mark.parametrize("view", [np.s_[:, ::2], np.s_[::-1]])
def test_any_layout(view):
    x = rng.standard_normal((6, 8))[view]
    check(softmax_along, x, 1)
    check(log_sums, np.asfortranarray(x))


def test_read_only_input():
    x = rng.standard_normal((6, 8))
    x.flags.writeable = False
    check(log_sums, x)


def test_into_out():
    @njit
    def compute(x, y, z):
        a = fastce.softmax(x, out=y)
        b = fastce.log_softmax(x, axis=0, out=z)
        fastce.softmax(x, out=x)
        return a, b

    x = rng.standard_normal((6, 8))
    given, y, z = x.copy(), np.empty_like(x), np.empty_like(x)
    a, b = compute(given, y, z)
    assert a is y or np.shares_memory(a, y)
    same((y, z, given), (fastce.softmax(x), fastce.log_softmax(x, axis=0), fastce.softmax(x)))
    same((a, b), (y, z))
    with pytest.raises(ValueError, match="out must have the shape of the input"):
        compute(x, y[:5], z)
    # Where out begins within the input, the input is copied first.
    both = rng.standard_normal((7, 8))
    last = fastce.softmax(both[5])
    compute(both[:6], both[1:], z)
    same(both[6], last)


# --- cross-entropy ------------------------------------------------------------------------


@njit
def loss_of(x, labels, weight, smoothing):
    return fastce.cross_entropy(
        x, labels, weight=weight, reduction="sum", label_smoothing=smoothing
    )


@njit
def loss_of_rows(x, labels, ignore_index):
    return fastce.cross_entropy(
        x, labels, reduction="none", ignore_index=ignore_index, return_lse=True
    )


@njit
def soft_loss(x, soft, weight, ignore_index, out):
    return fastce.cross_entropy_with_grad(
        x, soft, weight=weight, ignore_index=ignore_index, z_loss=1e-3, out=out
    )


@njit
def with_grad_of_rows(x, labels):
    return fastce.cross_entropy_with_grad(x, labels, reduction="none", ignore_index=3, z_loss=1e-3)


@njit
def with_grad_along(x, labels, weight, axis, out):
    return fastce.cross_entropy_with_grad(
        x, labels, weight=weight, label_smoothing=0.1, axis=axis, out=out
    )


@pytest.mark.parametrize("shape", [(9, 7), (200, 1000)])
def test_cross_entropy(shape):
    x = rng.standard_normal(shape).astype(np.float32)
    labels, weight = rng.integers(0, shape[1], shape[0]), rng.random(shape[1]).astype(np.float32)
    check(loss_of, x, labels, weight, 0.1, ulp=2)
    check(loss_of_rows, x, labels, 3, ulp=2)
    check(soft_loss, x, fastce.softmax(x[::-1] * 2), weight, -100, np.empty_like(x), ulp=2)


@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 100, 1000)])
def test_cross_entropy_of_three_axes(shape):
    x, labels = rng.standard_normal(shape), rng.integers(0, shape[-1], shape[:-1])
    check(with_grad_of_rows, x, every_second(labels.astype(np.uint64)), ulp=2)


def every_second(a):
    """`a` in a layout that is not contiguous."""
    return np.repeat(a, 2, axis=-1)[..., ::2]


def test_one_row_and_a_number_as_its_label():
    @njit
    def compute(x, label):
        return fastce.cross_entropy_with_grad(x, label)

    check(compute, rng.standard_normal(8), 3)


def test_other_axis_into_out():
    x, labels = rng.standard_normal((6, 50)), rng.integers(0, 6, 50).astype(np.uint8)
    weight, out = rng.random(6), np.empty_like(x)
    right = with_grad_along.py_func(x, labels, weight, 0, None)
    same(with_grad_along(x, labels, weight, 0, out), right)
    same(out, right[1])
    same(with_grad_along(x, labels, weight, 0, x), right)
    same(x, right[1])


# --- attention ----------------------------------------------------------------------------


@njit
def attend_with_mask(q, k, v, mask):
    return fastce.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=True, scale=0.3, q_offset=7, softcap=3.0,
        return_lse=True,
    )  # fmt: skip


@njit
def attend_with(q, k, v, allowed, scale, softcap, window, q_offset, lengths):
    return fastce.scaled_dot_product_attention(
        q, k, v, attn_mask=allowed, scale=scale, softcap=softcap, window=window,
        q_offset=q_offset, kv_lengths=lengths,
    )  # fmt: skip


@njit
def attend_into(q, k, v, enable_gqa, out):
    return fastce.scaled_dot_product_attention(q, k, v, enable_gqa=enable_gqa, out=out)


def test_attention():
    q, k, v = rng.standard_normal((3, 2, 4, 70, 32)).astype(np.float32)
    check(attend_with_mask, q, k, v, rng.standard_normal((1, 70, 70)).astype(np.float32))


def test_attention_of_what_is_allowed():
    q, k, v = rng.standard_normal((3, 2, 4, 70, 32))
    allowed = rng.random((2, 1, 1, 70)) > 0.3
    check(attend_with, q, k, v, allowed, 0.2, 0.0, (5, -1), 0, np.array([70, 13]))


def test_attention_of_grouped_heads_into_out():
    q, k, v = rng.standard_normal((4, 70, 8)), *rng.standard_normal((2, 2, 50, 8))
    out = np.empty_like(q)
    right = fastce.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    same(attend_into(q, k, v, True, out), right)
    same(out, right)
    memory = np.zeros(out.size + 8)  # keys that lie where the result begins
    near_k = memory[: k.size].reshape(k.shape)
    near_k[...] = k
    same(attend_into(q, near_k, v, True, memory[8:].reshape(out.shape)), right)


def test_attention_of_few_queries():
    """Whose keys are split."""
    q, (k, v) = rng.standard_normal((4, 1, 32)), rng.standard_normal((2, 4, 4000, 32))
    right = fastce.scaled_dot_product_attention(q, k, v)
    # It is compiled anew, and may be added in another order.
    ours = attend_into(q, k, v, False, np.empty_like(q))
    np.testing.assert_allclose(ours, right, rtol=1e-12, atol=1e-14)


def test_attention_with_numbers_beyond_any_array():
    q, k, v = rng.standard_normal((3, 2, 4, 9, 8))
    lengths, far, allowed = np.array([9, 5]), 2**63 - 1, np.ones((1, 1, 1, 9), bool)
    calls = [((2, far), 0), ((far, far), far), ((far, 0), 2**62)]
    calls += [((far - 3, 2), far), ((2, far - 3), -far), ((2**61, 2), 2**61 + 4)]
    for window, q_offset in calls:
        given = q, k, v, allowed, 0.3, 0.0, window, q_offset, lengths
        np.testing.assert_allclose(attend_with(*given), attend_with.py_func(*given), rtol=1e-12)


@pytest.mark.parametrize(
    ("message", "scale", "softcap", "width", "lengths"),
    [
        ("scale must be finite", np.inf, 0.0, 8, [9, 9]),
        ("softcap must be finite and not negative", 1.0, -1.0, 8, [9, 9]),
        ("softcap must be finite and not negative", 1.0, np.nan, 8, [9, 9]),
        ("a last axis that is not empty", 1.0, 0.0, 0, [9, 9]),
        ("kv_lengths must have one element for each batch entry", 1.0, 0.0, 8, [9]),
    ],
)
def test_attention_with_what_has_no_meaning(message, scale, softcap, width, lengths):
    q, k, v = np.zeros((3, 2, 4, 9, width))
    allowed = np.ones((1, 1, 1, 9), bool)
    with pytest.raises(ValueError, match=message):
        attend_with(q, k, v, allowed, scale, softcap, (1, 1), 0, np.array(lengths))


# --- over threads -------------------------------------------------------------------------


@njit(parallel=True)
def over_rows(x):
    out = np.empty_like(x)
    for i in prange(len(x)):
        fastce.log_softmax(x[i], out=out[i])
    return out, fastce.log_softmax(x, axis=0)


def test_parallel():
    x = rng.standard_normal((300, 1000))
    same(over_rows(x), (fastce.log_softmax(x), fastce.log_softmax(x, axis=0)))
    assert numba.threading_layer() != "workqueue"  # which has a test of its own, in its own process


@njit(parallel=True)
def losses_in_prange(x, labels, grad):
    losses = np.zeros(labels.shape)
    for i in prange(len(x)):
        loss, slopes = fastce.cross_entropy_with_grad(x[i], labels[i], axis=0, reduction="none")
        losses[i], grad[i] = loss, slopes
    return losses


def test_labels_out_of_range():
    """Their rows are NaN, the others what they are without them. An exception would be lost in the
    loop, which then returned what was in memory, or a SystemError.
    """
    x = rng.standard_normal((8, 3, 4))
    labels = rng.integers(0, 3, (8, 4))
    labels[2, 1], labels[5, 0], labels[5, 3], labels[6, 2] = 3, -1, 2**62, -100
    wrong = (labels != -100) & ((labels < 0) | (labels > 2))
    grad = np.zeros_like(x)
    losses = losses_in_prange(x, labels, grad)
    valid = np.where(wrong, -100, labels)
    right, right_grad = fastce.cross_entropy_with_grad(x, valid, axis=1, reduction="none")
    right[wrong] = np.nan
    right_grad[np.broadcast_to(wrong[:, None], x.shape)] = np.nan
    np.testing.assert_allclose(losses, right, rtol=1e-14, atol=1e-15)
    np.testing.assert_allclose(grad, right_grad, rtol=1e-14, atol=1e-15)
    # A sum of them is NaN, too.
    for shift in 1, -1:
        assert np.isnan(loss_of(x4, np.array([0, 1, 2, 0]) + shift, ones4, 0.0))


def test_unsigned_labels_out_of_range():
    """Not even where a label is ignore_index, or a class, in 64 bits with a sign."""
    x = rng.standard_normal((4, 3))
    for ignored in -100, -1:
        labels = np.array([0, 2**64 + ignored, 2**63, 2], np.uint64)
        loss, lse = loss_of_rows(x, labels, ignored)
        right = fastce.cross_entropy(x[::3], [0, 2], reduction="none", return_lse=True)
        for a, b in zip((loss, lse), right, strict=True):
            np.testing.assert_allclose(a, [b[0], np.nan, np.nan, b[1]], rtol=1e-14)


def test_no_elements_of_a_huge_shape():
    x = np.empty((2**40, 0), np.float32)
    for axis in 0, 1:
        assert softmax_along(x, axis).shape == x.shape


@pytest.mark.filterwarnings("ignore:.*no transformation for parallel execution.*")
def test_parallel_loss():
    """Over threads without a loop of the user's own."""

    @njit(parallel=True)
    def compute(x, labels):
        return fastce.cross_entropy_with_grad(x, labels)

    x, labels = rng.standard_normal((300, 1000)), rng.integers(0, 1000, 300)
    same(compute(x, labels), fastce.cross_entropy_with_grad(x, labels))


def test_parallel_over_workqueue():
    """Inside a loop over threads and outside of one. Without an import of ours: Numba finds the
    functions through an entry point.
    """
    code = """
import sys
import numba, numpy as np
import fastce
@numba.njit(parallel=True)
def f(x):
    out = np.empty_like(x)
    for i in numba.prange(len(x)):
        out[i] = fastce.softmax(x[i : i + 1])[0]
    return out, fastce.softmax(x)
assert "fastce._jit.losses" not in sys.modules
a, b = f(np.random.default_rng(0).standard_normal((30, 5000)))
assert numba.threading_layer() == "workqueue"
print((a == b).all())
"""
    status, output, errors = python(code, 300, NUMBA_THREADING_LAYER="workqueue")
    assert (status, output) == (0, "True"), errors


def test_fastmath_of_the_user_is_not_inherited():
    """In a process of its own: what is compiled first decides. So does the cache of all kernels."""
    code = """
import numba, numpy as np
from fastce.kernels.numba import row_log_softmax
@numba.njit(fastmath=True, forceinline=True)
def f(x, out):
    row_log_softmax(x, out)
x = np.zeros(100)
out = np.empty_like(x)
x[0] = 50
f(x, out)
print(out[0])
x[0] = np.inf
f(x, out)
print(np.isnan(out).all())
"""
    status, output, errors = python(code, 300)
    assert status == 0, errors
    value, all_nan = output.split()
    np.testing.assert_allclose(float(value), -99 * np.exp(-50), rtol=1e-12)
    assert all_nan == "True"


def test_without_compiling():
    code = """
import fastce
print(fastce.available_backends()["numba"])
print(fastce.softmax([0.0, 0.0]))
"""
    status, output, errors = python(code, 60, NUMBA_DISABLE_JIT="1")
    assert status == 0, errors
    assert "NUMBA_DISABLE_JIT is set" in output
    assert output.endswith("[0.5 0.5]")


# --- errors -------------------------------------------------------------------------------


x, labels = np.zeros((4, 3)), np.array([0, 1, 2, 0])
soft = np.full((4, 3), 1 / 3)
x4, soft4, ones4 = (a.astype(np.float32) for a in (x, soft, np.ones(3)))


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, "target must have the shape", lambda: loss_of(x4, labels[:3], ones4, 0.0)),
        (ValueError, "ignore_index=0 has no meaning",
         lambda: soft_loss(x4, soft4, ones4, 0, np.empty_like(x4))),
        (ValueError, "out may not be the target",
         lambda: soft_loss(x4, soft4, ones4, -100, soft4)),
        (ValueError, "target of probabilities must have the shape",
         lambda: soft_loss(x4, soft4.reshape(3, 4), ones4, -100, np.empty_like(x4))),
        (ValueError, "target must have the shape of the logits without",
         lambda: with_grad_of_rows(
             np.zeros((3, 4, 5)), every_second(np.zeros((4, 3), np.uint64)))),
        (ValueError, "axis 2 is out of range for 2 axes", lambda: softmax_along(x, 2)),
        (ValueError, "axis -3 is out of range", lambda: softmax_along(x, -3)),
        (ValueError, "weight must have 3 elements, one per class, got 2",
         lambda: loss_of(x4, labels, ones4[:2], 0.0)),
        (ValueError, r"label_smoothing must be from 0 to 1, got', 1.5",
         lambda: loss_of(x4, labels, ones4, 1.5)),
        (ValueError, r"label_smoothing must be from 0 to 1, got', nan",
         lambda: loss_of(x4, labels, ones4, np.nan)),
        (ValueError, "4 and 2 heads: grouped heads need enable_gqa=True",
         lambda: attend_into(
             np.zeros((4, 3, 4)), *np.zeros((2, 2, 3, 4)), False, np.zeros((4, 3, 4)))),
        (ValueError, "equal widths",
         lambda: attend_into(
             np.zeros((4, 3, 5)), *np.zeros((2, 4, 3, 4)), False, np.zeros((4, 3, 4)))),
    ],
)  # fmt: skip
def test_errors_of_values(error, message, call):
    with pytest.raises(error, match=message):
        call()


@njit
def reduced(x, labels, how):
    return fastce.cross_entropy(x, labels, reduction=how)


@njit
def wrongly_reduced(x, labels):
    return fastce.cross_entropy(x, labels, reduction="max")


@njit
def with_out(x, out):
    return fastce.softmax(x, out=out)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("x must be an array of float64 or float32, got",
         lambda: softmax_along(np.zeros(3, np.int64), 0)),
        ("x must be an array of float64 or float32, got", lambda: softmax_along(1.0, 0)),
        ("target must hold class indices", lambda: with_grad_of_rows(x, labels.astype(float))),
        ("target must hold class indices", lambda: with_grad_of_rows(x, x.astype(np.float32))),
        ("reduction must be a constant", lambda: reduced(x, labels, "mean")),
        ("reduction must be 'mean', 'sum' or 'none', got 'max'",
         lambda: wrongly_reduced(x, labels)),
        ("out must be a writable C-contiguous array of float64 with 2 axes",
         lambda: with_out(x, x.astype(np.float32))),
        ("out must be a writable C-contiguous array", lambda: with_out(x, x[:, ::2])),
        ("the same dtype and number of axes",
         lambda: attend_into(x[None], x, x, False, x[None])),
    ],
)  # fmt: skip
def test_errors_of_types(message, call):
    with pytest.raises(numba.TypingError, match=message):
        call()


def test_float16_says_what_there_is():
    @njit
    def compute(x):
        return fastce.softmax(x)

    with pytest.raises((numba.TypingError, numba.core.errors.NumbaError, NotImplementedError)):
        compute(np.zeros(3, np.float16))
