"""scaled_dot_product_attention, attention_varlen and their gradients."""

import itertools
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from support.attention import (
    CASES,
    NAMES,
    SHAPES,
    Shape,
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
from support.grids import with_one_dtype
from support.layouts import LAYOUTS
from support.truths import BF16, widen
from support.truths import compute as compute_dtype

import fastce

attention = fastce.scaled_dot_product_attention
attention_backward = fastce.scaled_dot_product_attention_backward
varlen, varlen_backward = fastce.attention_varlen, fastce.attention_varlen_backward
dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
INF, NAN = np.inf, np.nan
close = np.testing.assert_allclose
same = np.testing.assert_array_equal


def normal(*shape, dtype=np.float64, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def qkv(length, keys, dtype=np.float64, heads=2, kv_heads=None, width=8, value_width=6, seed=0):
    """grad_out, q, k and v without a batch axis."""
    s = Shape((), heads, kv_heads or heads, length, keys, width, value_width)
    return draw("plain", s, dtype, seed)[0]


# --- the truth ----------------------------------------------------------------------------


# 450: each shape takes another way through the kernels, where any option may be forgotten. They act
# on scores, which are float32 or float64; a dtype, on the products: test_truth_of_all_dtypes.
@with_one_dtype("shape case", SHAPES, list(CASES))
def test_truth(backend, shape, case, dtype):
    arrays, options = draw(case, shape, dtype)
    check(*arrays, **options)


# 240: each way through the kernels, with each kind of product.
@dtypes
@pytest.mark.parametrize("case", ["plain", "all"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_truth_of_all_dtypes(backend, shape, case, dtype):
    arrays, options = draw(case, shape, dtype, seed=1)
    check(*arrays, **options)


@pytest.mark.parametrize("dtype", [DTYPES[k] for k in ("f32", "f16", "bf16")], ids=str)
@pytest.mark.parametrize(("case", "width"), [("plain", 120), ("causal-offset", 120), ("all", 121)])
def test_truth_of_many_wide_keys(backend, case, width, dtype):
    """Sums of a head above 4 MiB: in 16 bits, dk and dv are made in chunks of the keys."""
    s = Shape((), 1, 1, 9, 4500, width, 120)
    arrays, options = draw(case, s, dtype)
    check(*arrays, **options)


@dtypes
@pytest.mark.parametrize("group", [1, 2, 4])
def test_truth_of_groups(backend, group, dtype):
    for length, keys in (1, 40), (2, 700), (5, 33), (33, 20), (64, 65), (65, 193):
        s = Shape((2,), 4, 4 // group, length, keys, 10, 4)
        arrays, options = draw("causal-offset", s, dtype)
        check(*arrays, f"{length}x{keys}", **options)


@dtypes
@pytest.mark.parametrize("shape", [(2, 2, 130, 64), (1, 1, 200, 128)], ids=str)
def test_not_less_exact_than_numpy(backend, shape, dtype):
    g, q, k, v = (normal(*shape, seed=i).astype(dtype) for i in range(4))
    out, _, *grads = run(g, q, k, v)
    right = truth(q, k, v)[0], *right_grads(g, q, k, v)[:3]
    for ours, theirs, value in zip((out, *grads), naive(q, k, v, g), right, strict=True):
        error, theirs = (float(np.abs(widen(a) - value).max()) for a in (ours, theirs))
        # Other sums in another order; of 16 bits NumPy's errors are thrice as large.
        tolerance = 4 if compute_dtype(dtype) == dtype else 0.25
        assert error <= theirs + tolerance * eps(dtype) * np.abs(value).max()


# --- by hand ------------------------------------------------------------------------------

# One query, two keys of scores log 3 and 0: weights 3/4 and 1/4.
HAND = np.array([[1.0]]), np.array([[np.log(3)], [0.0]]), np.array([[4.0], [8.0]])


def test_hand_values(backend):
    q, k, v = HAND
    out, lse = attention(q, k, v, return_lse=True)
    close(out, [[5]], rtol=2e-15)
    close(lse, [np.log(4)], rtol=2e-15)
    close(attention(2 * q, k, v, scale=0.5), [[5]], rtol=2e-15)
    close(attention(q, k, v, scale=0), [[6]], rtol=2e-15)
    close(attention(q, k, v, attn_mask=np.array([[0, np.log(3)]])), [[6]], rtol=2e-15)
    close(attention(q, k, v, attn_mask=np.array([True, False])), [[4]])
    close(attention(q, k, v, attn_mask=np.array([False, True])), [[8]])
    close(attention(q, k, v, kv_lengths=1), [[4]])
    close(attention(q, k, v, is_causal=True), [[4]])
    close(attention(q, k, v, is_causal=True, q_offset=1), [[5]], rtol=2e-15)
    close(attention(q, k, v, window=(0, 0), q_offset=1), [[8]])
    close(attention(q, k, v, window=(0, 1)), [[5]], rtol=2e-15)
    weight = 1 / (1 + np.exp(-0.5 * np.tanh(2 * np.log(3))))
    close(attention(q, k, v, softcap=0.5), [[8 - 4 * weight]], rtol=2e-15)
    # the mask comes after softcap
    mask = np.array([[-0.5 * np.tanh(2 * np.log(3)), 0]])
    close(attention(q, k, v, softcap=0.5, attn_mask=mask), [[6]], rtol=2e-15)


def test_default_scale_is_of_the_width(backend):
    q = np.full((1, 16), 0.5)
    k = np.array([np.full(16, 0.5), np.zeros(16)])  # scores 4 / sqrt(16) = 1, and 0
    close(attention(q, k, np.array([[1.0], [0.0]])), [[1 / (1 + np.exp(-1))]], rtol=2e-15)


def test_hand_values_of_gradients(backend):
    q, k, v = HAND
    mask = np.zeros((1, 2))
    _, _, dq, dk, dv, dmask = run(np.ones((1, 1)), q, k, v, attn_mask=mask)
    close(dv, [[0.75], [0.25]], rtol=4e-15)
    close(dmask, [[-0.75, 0.75]], rtol=4e-15)  # p * (v - out)
    close(dk, [[-0.75], [0.75]], rtol=4e-15)
    close(dq, [[-0.75 * np.log(3)]], rtol=4e-15)
    dq, dk, dv = run(np.full((1, 1), 2.0), 4 * q, k, v, scale=0.25)[2:]
    close(dv, [[1.5], [0.5]], rtol=4e-15)
    close(dk, [[-1.5], [1.5]], rtol=4e-15)
    close(dq, [[-0.375 * np.log(3)]], rtol=4e-15)


def test_which_heads_share_keys(backend):
    """Neighbours: heads 0 and 1 the first, 2 and 3 the second."""
    q, k = np.zeros((4, 1, 3)), np.zeros((2, 5, 3))
    v = np.array([1.0, 2.0]).reshape(2, 1, 1) * np.ones((2, 5, 1))
    same(attention(q, k, v, enable_gqa=True).ravel(), [1, 1, 2, 2])
    out, lse = attention(q, k, v, enable_gqa=True, return_lse=True)
    g = np.array([1.0, 10, 100, 1000]).reshape(4, 1, 1)
    _, _, dv = attention_backward(g, q, k, v, out, lse, enable_gqa=True)
    close(dv[:, :, 0], [[2.2] * 5, [220] * 5])


def test_dtypes_of_results(backend):
    for dtype in DTYPES.values():
        g, q, k, v = qkv(3, 4, dtype)
        out, lse, *grads = run(g, q, k, v)
        assert out.dtype == dtype
        assert lse.dtype == compute_dtype(dtype)
        assert [d.dtype for d in grads] == [dtype] * 3
        mask = np.zeros((3, 4), dtype)
        assert run(g, q, k, v, attn_mask=mask)[5].dtype == dtype
        assert type(attention(q, k, v)) is np.ndarray


def test_lists_and_integers(backend):
    right = attention(np.array([[1.0, 2]]), np.array([[1.0, 0], [0, 1]]), np.array([[4.0], [8]]))
    ours = attention([[1, 2]], [[1, 0], [0, 1]], [[4], [8]], attn_mask=[[True, True]])
    assert ours.dtype == np.float64
    same(ours, right)


# --- finite differences -------------------------------------------------------------------

FD_ARRAYS = {
    "plain": ((2, 3, 4), (2, 5, 4), (2, 5, 3)),
    "groups": ((2, 4, 3, 2), (2, 2, 5, 2), (2, 2, 5, 3)),
    "one k for all": ((2, 3, 2, 4), (1, 1, 6, 4), (2, 3, 6, 1)),
    "one v for all": ((2, 2, 2, 3), (2, 2, 4, 3), (4, 2)),
    "one q for all": ((2, 3), (3, 2, 4, 3), (3, 1, 4, 2)),
}
FD_OPTIONS = {
    "plain": {},
    "softcap": {"softcap": 0.7, "scale": 0.9},
    "window": {"window": (1, 1), "q_offset": 1},
    "causal, softcap": {"is_causal": True, "q_offset": 1, "softcap": 1.3},
    "lengths": {"kv_lengths": 3, "window": (2, -1), "scale": -0.5},
}
FD_MASKS = {"no mask": None, "(S,)": (1,), "(L, 1)": (0,), "(1,)": (), "(L, S)": (0, 1)}


def _fd_grid():
    """Each pair of values of the three tables."""
    for (i, a), (j, b) in itertools.product(enumerate(FD_ARRAYS), enumerate(FD_OPTIONS)):
        c = list(FD_MASKS)[(i + j) % len(FD_MASKS)]
        yield pytest.param(FD_ARRAYS[a], FD_OPTIONS[b], FD_MASKS[c], id=f"{a}-{b}-{c}")


@pytest.mark.parametrize(("shapes", "options", "mask"), list(_fd_grid()))
def test_finite_differences(backend, shapes, options, mask):
    arrays = [normal(*shape, seed=i) for i, shape in enumerate(shapes)]
    options = dict(options, enable_gqa=shapes is FD_ARRAYS["groups"])
    if mask is not None:
        whole = shapes[0][-2], shapes[1][-2]
        shape = [whole[i] if i in mask else 1 for i in (0, 1)]
        arrays.append(normal(*shape[-1 if 0 not in mask else 0 :], seed=9))
    finite_differences(arrays, options)


def test_finite_differences_of_masks_with_heads(backend):
    arrays = [normal(2, 3, 2, 4), normal(2, 3, 5, 4, seed=1), normal(2, 3, 5, 2, seed=2)]
    for shape in (3, 1, 5), (2, 1, 1, 5), (2, 1, 2, 5), (1, 3, 2, 1), (2, 3, 2, 5), (1, 1, 1, 1):
        finite_differences([*arrays, normal(*shape, seed=3)], {"softcap": 2.0, "window": (-1, 3)})


def finite_differences(arrays, options):
    """Of q, k, v and maybe a mask, element by element."""

    def result(q, k, v, mask=None):
        return attention(q, k, v, attn_mask=mask, **options)

    g = normal(*result(*arrays).shape, seed=8)
    options_with_mask = dict(options, attn_mask=arrays[3]) if len(arrays) == 4 else options
    grads = run(g, *arrays[:3], **options_with_mask)[2:]
    step = 1e-5  # truncation about step**2, rounding about 1e-16 / step
    for place, (a, grad) in enumerate(zip(arrays, grads, strict=True)):
        slopes = np.empty_like(a)
        for i in np.ndindex(a.shape):
            sums = []
            for sign in 1, -1:
                moved = [b.copy() if n == place else b for n, b in enumerate(arrays)]
                moved[place][i] += sign * step
                sums.append(np.sum(g * result(*moved)))
            slopes[i] = (sums[0] - sums[1]) / (2 * step)
        assert grad.shape == a.shape
        close(grad, slopes, rtol=1e-6, atol=1e-8, err_msg=("q", "k", "v", "mask")[place])


# --- queries that see nothing -------------------------------------------------------------

# Few queries, a tile, and several tiles.
LENGTHS = {"4-50": (4, 50), "40-120": (40, 120), "150-220": (150, 220)}
BLIND = {
    "bool mask": lambda length, keys, dtype: {"attn_mask": _blind_rows(length, keys, True, False)},
    "float mask": lambda length, keys, dtype: {
        "attn_mask": _blind_rows(length, keys, 0.0, -INF).astype(dtype)
    },
    "negative offset": lambda length, keys, dtype: {"is_causal": True, "q_offset": -3},
    "window behind": lambda length, keys, dtype: {"window": (2, -1), "q_offset": keys - 1},
    "window ahead": lambda length, keys, dtype: {"window": (-1, 0), "q_offset": 1 - length},
    "no length": lambda length, keys, dtype: {"kv_lengths": 0},
    "far away": lambda length, keys, dtype: {"window": (5, 5), "q_offset": 2**62},
    "far before": lambda length, keys, dtype: {"is_causal": True, "q_offset": -(2**62)},
}


def _blind_rows(length, keys, yes, no):
    mask = np.full((length, keys), yes)
    mask[[0, length // 2, length - 1]] = no
    return mask


@with_one_dtype("size how", LENGTHS, BLIND)
def test_queries_that_see_no_key(backend, size, how, dtype):
    length, keys = size
    g, q, k, v = qkv(length, keys, dtype)
    options = how(length, keys, dtype)
    right = truths(q, k, v, g, **options)
    blind = right[1].value[0] == -INF
    assert blind.any()
    results = run(g, q, k, v, **options)
    compare(results, right)
    out, lse, dq, *more = results
    assert not widen(out[:, blind]).any()
    same(lse[:, blind], -INF)
    assert not widen(dq[:, blind]).any()
    for a in more:
        assert np.isfinite(widen(a)).all()


FAR_AWAY = [2**59, 2**60 - 3, 2**60 + 3, 2**61, 2**62, 2**63 - 9, 10**30]


@pytest.mark.parametrize("far", FAR_AWAY)
def test_positions_and_windows_that_are_far_away(backend, far):
    """Only their difference counts, however large both are."""
    q, k, v = normal(2, 1, 9, 4), normal(2, 1, 20, 4, seed=1), normal(2, 1, 20, 3, seed=2)
    for step in -30, -5, 0, 7, 30:
        for window, near, offset in (
            ((far, -1), (9, -1), step),
            ((far, 5), (9, -1), step),
            ((-1, far), (-1, 9), -step),
            ((3, far), (-1, 9), -step),
        ):
            sign = 1 if near[1] < 0 else -1
            right = attention(q, k, v, window=near, q_offset=sign * 9 + offset)
            same(attention(q, k, v, window=window, q_offset=sign * far + offset), right)
        if far <= 2**62:
            both = np.array([far + step, 3])
            right = [
                attention(q[:1], k[:1], v[:1], window=(9, -1), q_offset=9 + step)[0],
                attention(q[1:], k[1:], v[1:], window=(-1, 5), q_offset=3)[0],
            ]
            same(attention(q, k, v, window=(far, 5), q_offset=both), right)
    blind = attention(q, k, v, window=(far, -1), is_causal=True, q_offset=-far)
    same(blind, np.zeros_like(blind))
    ends = [0, 9], [0, 20]
    flat = [np.moveaxis(a[0], 0, 1) for a in (q, k, v)]
    right = varlen(*flat, *ends, window=(9, -1), q_offset=12)
    same(varlen(*flat, *ends, window=(far, -1), q_offset=far + 3), right)


def test_blind_queries_leave_the_others_alone(backend):
    """Not a bit of the others changes."""
    for length, keys in LENGTHS.values():
        g, q, k, v = qkv(length, keys, np.float32)
        everything = np.ones((length, keys), bool)
        out, lse, dq, *_ = run(g, q, k, v, attn_mask=everything)
        mask = _blind_rows(length, keys, True, False)
        ours = run(g, q, k, v, attn_mask=mask)
        kept = mask[:, 0]
        for a, b in zip(ours, (out, lse, dq), strict=False):
            same(a[:, kept], b[:, kept])


@dtypes
@pytest.mark.parametrize(
    ("length", "keys"), [(0, 0), (0, 7), (5, 0), (1, 0), (100, 0), (0, 200)], ids=str
)
def test_no_queries_or_no_keys(backend, length, keys, dtype):
    for s in Shape((2,), 4, 2, length, keys, 4, 6), Shape((), 3, 3, length, keys, 3, 1):
        arrays, options = draw("plain", s, dtype)
        check(*arrays, **options)
        mask = np.zeros((1, s.keys), dtype)
        check(*arrays, attn_mask=mask, is_causal=True, softcap=1.0, **options)


@pytest.mark.parametrize(
    "shape",
    [Shape((0,), 2, 2, 3, 4, 5, 6), Shape((2, 0), 4, 2, 70, 4, 5, 6), Shape((), 0, 0, 3, 4, 5, 6),
     Shape((2,), 0, 2, 3, 4, 5, 6), Shape((2,), 0, 2, 70, 200, 5, 6)],
    ids=str,
)  # fmt: skip
def test_no_batch_or_no_heads(backend, shape):
    arrays, options = draw("plain", shape, np.float32)
    out, lse, *grads = run(*arrays, **options)
    assert out.shape == arrays[0].shape
    assert lse.shape == out.shape[:-1]
    for grad, a in zip(grads, arrays[1:], strict=True):
        assert grad.shape == a.shape
        assert not grad.any()


HUGE = {
    "no queries and keys": [(2**40, 1, 0, 4)] * 3,
    "no queries": [(2**40, 1, 0, 4), (1, 1, 3, 4), (1, 1, 3, 4)],
    "no heads": [(2**40, 0, 3, 4)] * 3,
    "no batch": [(0, 2**30, 3, 4)] * 3,
}


@pytest.mark.parametrize("shapes", HUGE.values(), ids=HUGE)
def test_no_queries_of_a_huge_shape(backend, shapes):
    """At once, and without memory for each batch entry."""
    q, k, v = (np.ones(shape, np.float32) for shape in shapes)
    mask = np.ones((1, 3) if k.size else (1, 0), bool)
    for options in {}, {"attn_mask": mask}, {"is_causal": True, "q_offset": 2}:
        if q.shape[-2] and "attn_mask" in options:
            continue
        out, lse, *grads = run(q, q, k, v, **options)
        assert out.shape == q.shape
        assert lse.shape == q.shape[:-1]
        for grad, a in zip(grads, (q, k, v), strict=True):
            assert grad.shape == a.shape
            assert not grad.any()


# --- numbers that are none, and extreme ones ----------------------------------------------


@dtypes
@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("length", [1, 2, 5, 70])
def test_nan_stays_in_its_query(backend, length, group, dtype):
    g, q, k, v = qkv(length, 130, dtype, heads=4, kv_heads=4 // group)
    options = {"enable_gqa": True, "is_causal": True, "q_offset": 100}
    out, lse, dq, *_ = run(g, q, k, v, **options)
    spoilt = q.copy()
    spoilt[1, length // 2, 3] = NAN
    ours = run(g, spoilt, k, v, **options)
    hit = np.zeros((4, length), bool)
    hit[1, length // 2] = True
    for a, b in zip(ours, (out, lse, dq), strict=False):
        assert np.isnan(widen(a[hit])).all()
        same(a[~hit], b[~hit])


@dtypes
@pytest.mark.parametrize(("length", "keys"), [(1, 700), (3, 97), (70, 200), (70, 96)])
def test_keys_behind_their_number_are_not_read(backend, length, keys, dtype):
    g, q, k, v = (np.stack([a] * 4) for a in qkv(length, keys, dtype, width=4, value_width=2))
    mask = normal(4, 1, length, keys, seed=5).astype(dtype)
    lengths = np.array([keys, keys - 1, keys // 2, 1])
    options = {"kv_lengths": lengths, "attn_mask": mask}
    right = run(g, q, k, v, **options)
    for filling in NAN, INF:
        spoilt = [k.copy(), v.copy(), np.moveaxis(mask, -1, 1).copy()]
        for i, n in enumerate(lengths):
            for a in spoilt[:2]:
                a[i, :, n:] = filling
            spoilt[2][i, n:] = filling
        options["attn_mask"] = np.moveaxis(spoilt[2], 1, -1)
        ours = run(g, q, *spoilt[:2], **options)
        for a, b in zip(ours, right, strict=True):
            same(a, b)
        for i, n in enumerate(lengths):
            for a in ours[3:5]:
                assert not widen(a[i, :, n:]).any()
            assert not widen(ours[5][i, ..., n:]).any()


def extreme(length, keys, score, dtype):
    """q, k and v with scores from -score to score, and for each query the key that takes all."""
    rng = np.random.default_rng(0)
    size = score**0.5
    q = rng.choice([-size, size], (1, length, 1))
    k = (rng.permutation(np.linspace(-0.25, 0.25, keys)) * size).reshape(1, keys, 1)
    k[0, 0], k[0, -1] = size, -size
    winner = np.where(q[0, :, 0] > 0, 0, keys - 1)
    return q.astype(dtype), k.astype(dtype), normal(1, keys, 3).astype(dtype), winner


extremes = pytest.mark.parametrize("dtype", [np.float64, np.float32, BF16], ids=str)
places = pytest.mark.parametrize(("length", "keys"), [(2, 40), (70, 130), (1, 1100)])
EXTREME_OPTIONS = {
    "plain": {},
    "causal": {"is_causal": True, "q_offset": 2000},
    "mask": {"attn_mask": np.ones(1, bool)},
    "negative scale": {"scale": -1.0},
    "window": {"window": (-1, 10**6)},
}


# 135: where scores are masked or limited by position, they are made by other loops.
@extremes
@places
@pytest.mark.parametrize("options", EXTREME_OPTIONS.values(), ids=EXTREME_OPTIONS)
def test_extreme_scores(backend, options, length, keys, dtype):
    """Of both signs. One key is far above all others, its weight is 1."""
    for score in 1e4, 1e7, 1e15, 1e30:
        q, k, v, winner = extreme(length, keys, score, dtype)
        if "scale" in options:
            winner = keys - 1 - winner
        out, lse = attention(q, k, v, return_lse=True, **options)
        close(widen(out)[0], widen(v)[0, winner], rtol=2 * eps(dtype), err_msg=f"{score:g}")
        right = widen(q)[..., 0] * widen(k)[0, winner, 0] * options.get("scale", 1)
        close(widen(lse), right, rtol=4 * eps(lse.dtype), err_msg=f"{score:g}")


@extremes
@places
def test_gradients_of_large_scores(backend, length, keys, dtype):
    q, k, v, winner = extreme(length, keys, 1e4, dtype)
    g = normal(1, length, 3, seed=2).astype(dtype)
    _, _, dq, dk, dv = run(g, q, k, v)
    right = np.zeros((keys, 3))
    np.add.at(right, winner, g[0].astype(float))
    tolerance = 4 * eps(dtype)
    close(dv[0].astype(float), right, rtol=tolerance, atol=tolerance * np.abs(right).max())
    # p * (g v - g out) is 0, but for the rounding of both; out is rounded to the dtype.
    for grad in dq, dk:
        assert np.abs(grad.astype(float)).max() <= 100 * tolerance * length


@extremes
@places
def test_gradients_of_extreme_scores_are_numbers(backend, length, keys, dtype):
    q, k, v, _ = extreme(length, keys, 1e30, dtype)
    g = normal(1, length, 3, seed=2).astype(dtype)
    for grad in run(g, q, k, v)[2:]:
        assert np.isfinite(grad.astype(float)).all()


@pytest.mark.parametrize("dtype", [np.float64, np.float32, BF16, np.float16], ids=str)
@pytest.mark.parametrize("length", [2, 70])
def test_rows_of_the_lowest_number(backend, length, dtype):
    """Many use it instead of -inf. A row that has nothing else is a row of equal numbers."""
    lowest = float(ml_dtypes.finfo(dtype).min)
    g, q, k, v = qkv(length, 130, dtype)
    mask = np.zeros((length, 130))
    mask[:, 50:] = lowest
    mask[1] = lowest
    mask = mask.astype(dtype)
    out, lse, *grads = run(g, q, k, v, attn_mask=mask)
    plain = run(g, q, k[:, :50], v[:, :50])
    others = np.arange(length) != 1
    tolerance = 8 * eps(dtype)
    ours, right = (a[:, others].astype(float) for a in (out, plain[0]))
    close(ours, right, rtol=tolerance, atol=tolerance)
    # The scores are lost in so large a number, or not: an average of v with weights above 0.
    assert np.isfinite(lse[:, 1]).all()
    low, high = (f(v.astype(float), axis=1) for f in (np.min, np.max))
    assert np.all((low < out[:, 1].astype(float)) & (out[:, 1].astype(float) < high))
    assert np.all(out[:, 1] != 0)
    for grad in grads:
        assert np.isfinite(grad.astype(float)).all()


# --- rows whose lse is too large to give their weights -------------------------------------


def gradients_of_weights(p, g, q, k, v, scale, softcap=0.0):
    """dq, dk, dv and dmask for weights `p` (heads, L, S), each in float64 with its size: the same
    with every term positive.
    """
    g, q, k, v = map(widen, (g, q, k, v))
    group = q.shape[0] // k.shape[0]
    keys, values = np.repeat(k, group, axis=0), np.repeat(v, group, axis=0)
    s = scale * (q @ np.swapaxes(keys, -1, -2))
    slope = 1 - np.tanh(s / softcap) ** 2 if softcap else np.ones_like(s)

    def gradients(g, q, keys, values, sign):
        dp = g @ np.swapaxes(values, -1, -2)
        ds = p * (dp + sign * (p * dp).sum(axis=-1, keepdims=True))
        dt = ds * slope * scale
        to_keys = np.swapaxes(dt, -1, -2) @ q, np.swapaxes(p, -1, -2) @ g
        return dt @ keys, *(a.reshape(-1, group, *a.shape[1:]).sum(axis=1) for a in to_keys), ds

    sizes = gradients(*map(np.abs, (g, q, keys, values)), 1)
    return list(zip(gradients(g, q, keys, values, -1), sizes, strict=True))


def close_to_weights(results, p, dtype, *arguments):
    """Of `run` against `gradients_of_weights`; a mask is the same for all heads."""
    *right, of_scores = gradients_of_weights(p, *arguments)
    right.append([a.sum(axis=0) for a in of_scores])
    for name, grad, (value, size) in zip(NAMES[2:], results[2:], right, strict=False):
        # Of 16 bits, weights and results are rounded, with AVX512-BF16 also gradients of scores.
        error = np.abs(widen(grad) - value)
        tolerance = 8 * eps(dtype) * size + 8 * float(ml_dtypes.finfo(dtype).smallest_subnormal)
        assert (error <= tolerance).all(), (name, error.max(), (error / tolerance).max())


LARGE_MASKS = [
    (np.float64, -1e9), (np.float64, -1e300), (np.float64, 1e18),
    (np.float32, -1e9), (np.float32, -1e30), (np.float32, 3e5),
    (np.float16, -6e4), (BF16, -1e9), (BF16, -1e30),
    *((dtype, float(ml_dtypes.finfo(dtype).min)) for dtype in (np.float64, np.float32, BF16)),
]  # fmt: skip


# 180: how lse is rounded, and what is made of it again, depends on both the way and the dtype.
@pytest.mark.parametrize(("dtype", "size"), LARGE_MASKS, ids=str)
@pytest.mark.parametrize(("length", "keys"), [(1, 3), (3, 1), (5, 700), (70, 130), (150, 500)])
def test_masks_of_one_large_number(backend, length, keys, dtype, size):
    """Equal scores, whatever lse is rounded to: every weight is 1 / S."""
    g, q, k, v = qkv(length, keys, dtype, heads=4, kv_heads=2)
    q[...] = 0  # no backend has anything left to round
    mask = np.full((length, keys), size).astype(dtype)
    results = run(g, q, k, v, attn_mask=mask, enable_gqa=True)
    close_to_weights(results, np.full((4, length, keys), 1 / keys), dtype, g, q, k, v, 8**-0.5)


def large_rows(length, keys, dtype, size):
    """A mask of rows that see numbers, only large ones, a few numbers beside them, and nothing."""
    mask = normal(length, keys, seed=3)
    mask[1::4] = size
    mask[2::4] = size
    mask[2::4, 1 : keys // 2 : 3] = 0.5
    mask[3::8] = -INF
    mask[7::8, ::2], mask[7::8, 1::2] = size, 2 * size
    return mask.astype(dtype)


LARGE_ROWS = [
    (np.float64, -1e17), (np.float64, -1e300), (np.float32, -1e9), (np.float32, -1e30),
    (np.float16, -3e4), (BF16, -1e9), (BF16, -1e30),
]  # fmt: skip


def _large_rows_grid():
    """Each size of numbers for each number of queries and of keys, with one of the options."""
    options = {}, {"softcap": 1.5}, {"is_causal": True}
    sizes = (8, 9), (70, 130), (150, 500)
    for (i, place), (j, number) in itertools.product(enumerate(sizes), enumerate(LARGE_ROWS)):
        yield *place, options[(i + j) % 3], *number


@pytest.mark.parametrize(
    ("length", "keys", "options", "dtype", "size"), list(_large_rows_grid()), ids=str
)
def test_rows_of_large_negative_numbers(backend, length, keys, options, dtype, size):
    """The gradient belongs to the weights of the forward, which values of 0 and 1 show."""
    g, q, k, v = qkv(length, keys, dtype, heads=4, kv_heads=2)
    options = dict(options, enable_gqa=True, attn_mask=large_rows(length, keys, dtype, size))
    if options.get("is_causal"):
        options["q_offset"] = keys - length
    wide = compute_dtype(dtype)
    shown = dict(options, attn_mask=options["attn_mask"].astype(wide))
    one = np.broadcast_to(np.eye(keys, dtype=wide), (2, keys, keys))
    p = widen(attention(q.astype(wide), k.astype(wide), one, **shown))
    assert ((np.abs(p.sum(axis=-1) - 1) < 1e-5) | (p.sum(axis=-1) == 0)).all()
    results = run(g, q, k, v, **options)
    close_to_weights(results, p, dtype, g, q, k, v, 8**-0.5, options.get("softcap", 0.0))


@pytest.mark.parametrize("dtype", [np.float64, np.float32, BF16], ids=str)
@pytest.mark.parametrize("score", [2e3, 1e4, 1e8, -1e4, -1e8])
@pytest.mark.parametrize(("length", "keys"), [(2, 40), (70, 300)])
def test_large_scores_that_are_equal(backend, length, keys, score, dtype):
    """Every third key has the largest score: weights 1 / their number, without a mask."""
    g, _, _, v = qkv(length, keys, dtype, heads=1)
    q = np.full((1, length, 2), 4.0).astype(dtype)
    k = np.full((1, keys, 2), score / 4).astype(dtype)
    k[:, np.arange(keys) % 3 != 0] *= np.array(2 if score < 0 else 0.5, dtype)
    k[..., 1] = 0
    p = np.zeros((1, length, keys))
    p[..., ::3] = 1 / len(range(0, keys, 3))
    close_to_weights(run(g, q, k, v, scale=1.0), p, dtype, g, q, k, v, 1.0)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BF16], ids=str)
def test_large_negative_numbers_over_many_wide_keys(backend, dtype):
    """In 16 bits dk and dv are made in chunks of the keys: the sum goes over all of them."""
    g, q, k, v = qkv(9, 4500, dtype, heads=1, width=120, value_width=120)
    q[...] = 0
    mask = np.array([[-6e4]]).astype(dtype)
    results = run(g, q, k, v, attn_mask=mask)[:5]
    close_to_weights(results, np.full((1, 9, 4500), 1 / 4500), dtype, g, q, k, v, 120**-0.5)


def test_nan_that_a_mask_hides(backend):
    """In a key: its score counts as -inf."""
    for length, keys in (2, 6), (70, 130):
        g, q, k, v = qkv(length, keys, np.float32)
        k[:, 4] = 0
        hidden = np.arange(keys) != 4
        for mask in hidden, np.where(hidden, np.float32(0), -np.float32(INF)):
            right = run(g, q, k, v, attn_mask=mask)
            spoilt = k.copy()
            spoilt[:, 4] = NAN
            ours = run(g, q, spoilt, v, attn_mask=mask)
            for i in 0, 1, 3, 4:  # dq is 0 * NaN
                same(ours[i], right[i])


def test_gradients_beyond_the_range(backend):
    """They become infinite, without a warning, also where they are summed once more."""
    v = np.full((2, 70, 2), 6e4, np.float16)
    v[:, 0] = -6e4
    q, k = np.zeros((2, 70, 2), np.float16), np.zeros((1, 70, 2), np.float16)
    g = np.ones_like(v)
    q[...] = 100
    out, lse = attention(q, k, v, return_lse=True, attn_mask=np.zeros(70, np.float16))
    dq, dk, dv, dmask = attention_backward(
        g, q, k, v, out, lse, attn_mask=np.zeros(70, np.float16), grad_mask=True
    )
    assert dk.shape == k.shape
    assert dk[0, 0, 0] == dmask[0] == -INF
    assert np.isfinite(dq).all()
    assert np.isfinite(dv).all()


# --- masks --------------------------------------------------------------------------------

MASKS = [
    "S", "L1", "1", "11", "LS", "h1S", "hL1", "h11", "1LS", "b11S", "b1LS", "bh11", "1111", "bhLS",
    "1hLS", "bhL1",
]  # fmt: skip


# 192: each array of a mask in memory, read with the strides of the kernels' four kinds.
@pytest.mark.parametrize("kind", ["bool", "f64", "f32", "bf16"])
@pytest.mark.parametrize("axes", MASKS)
def test_broadcast_masks(backend, axes, kind):
    dtype = DTYPES.get(kind, np.float32)
    for length, keys in (1, 30), (5, 7), (70, 100):
        sizes = {"b": 2, "h": 3, "L": length, "S": keys, "1": 1}
        rng = np.random.default_rng(keys)
        mask = rng.standard_normal([sizes[a] for a in axes])
        mask = mask > -0.8 if kind == "bool" else mask.astype(dtype)
        arrays, _ = draw("plain", Shape((2,), 3, 3, length, keys, 4, 4), dtype)
        check(*arrays, axes, attn_mask=mask)
        check(*arrays, axes, attn_mask=mask, is_causal=True, q_offset=[3, keys // 2])


@pytest.mark.parametrize("dtype", [bool, np.float32])
def test_masks_with_empty_rows_and_blocks(backend, dtype):
    allowed = np.ones((200, 400), bool)
    allowed[:, 96:192] = False  # no query sees this block of keys
    allowed[64:128, :96] = False  # nor these that one
    allowed[70] = allowed[0] = allowed[199] = False
    allowed[128:192] = False  # a whole tile sees nothing
    allowed[5, 1:] = False  # one key is left
    mask = allowed if dtype is bool else np.where(allowed, 0, -INF).astype(dtype)
    for s in Shape((), 1, 1, 200, 400, 4, 6), Shape((2,), 4, 2, 200, 400, 2, 2):
        arrays, options = draw("plain", s, np.float32)
        check(*arrays, attn_mask=mask, **options)


def test_masks_in_any_layout(backend):
    arrays, _ = draw("plain", Shape((2,), 3, 3, 9, 20, 4, 6), np.float32)
    for mask in normal(2, 3, 9, 20) > -0.5, normal(2, 3, 9, 20, dtype=np.float32):
        right = truths(*arrays[1:], arrays[0], attn_mask=mask)
        for name, relaid in LAYOUTS.items():
            # NaN, of which the layouts fill the gaps, is True
            if name != "swapped bytes":
                compare(run(*arrays, attn_mask=relaid(mask)), right, name)
        strided = np.repeat(mask, 2, axis=2)[:, :, ::2]
        compare(run(*arrays, attn_mask=strided), right, "every second row")
        repeated = np.broadcast_to(mask[:1], mask.shape)  # its gradient has the shape it shows
        compare(
            run(*arrays, attn_mask=repeated),
            truths(*arrays[1:], arrays[0], attn_mask=repeated.copy()),
            "strides of 0",
        )


def test_swapped_bytes_of_everything(backend):
    """Also the mask: it is of q's dtype."""
    g, q, k, v = qkv(9, 20, np.float32)
    mask = normal(9, 20, dtype=np.float32)
    right = run(g, q, k, v, attn_mask=mask)
    ours = run(*(a.astype(">f4") for a in (g, q, k, v)), attn_mask=mask.astype(">f4"))
    for a, b in zip(ours, right, strict=True):
        same(a, b)


def test_causal_with_a_mask(backend):
    g, q, k, v = qkv(70, 110, np.float32)
    allowed = normal(70, 110) > -0.5
    both = allowed & (np.arange(110) <= np.arange(70)[:, None] + 20)
    ours = run(g, q, k, v, attn_mask=allowed, is_causal=True, q_offset=20)
    for a, b in zip(ours, truths(q, k, v, g, attn_mask=both), strict=False):
        close(a, b.value.astype(float), rtol=1e-5, atol=1e-5)
    different = run(g, q, k, v, attn_mask=allowed)[0]
    assert np.abs(ours[0] - different).max() > 0.01


# --- wrong arguments ----------------------------------------------------------------------

Q, K, V = (normal(2, 3, *s, dtype=np.float32) for s in ((5, 4), (7, 4), (7, 6)))
G = normal(2, 3, 5, 6, dtype=np.float32)
UPON_ITSELF = np.lib.stride_tricks.as_strided(G.copy(), G.shape, (0, 0, 0, 4))
# What is given instead of the right arguments, the error, and parts of its message.
WRONG = [
    ({"v": V.astype(float)}, TypeError, "float32", "float64"),
    ({"q": Q * 1j}, TypeError, "q must be", "complex64"),
    ({"q": np.ma.array(Q)}, TypeError, "q is a masked array"),
    ({"q": Q[0, 0, 0]}, ValueError, "(4,)", "(2, 3, 7, 4)"),
    ({"q": Q[..., :3]}, ValueError, "(2, 3, 5, 3)", "(2, 3, 7, 4)"),
    ({"v": V[:, :, 1:]}, ValueError, "(2, 3, 7, 4)", "(2, 3, 6, 6)"),
    ({"q": Q[..., :0], "k": K[..., :0]}, ValueError, "(2, 3, 5, 0)"),
    ({"v": V[..., :0]}, ValueError, "(2, 3, 7, 0)"),
    ({"k": np.repeat(K, 3, 0), "v": np.repeat(V, 3, 0)}, ValueError, "(2,)", "(6,)", "batch"),
    ({"k": K[:, :2], "v": V[:, :2]}, ValueError, "3, 2 and 2 heads", "enable_gqa"),
    ({"k": K[:, :2], "v": V[:, :2], "enable_gqa": True}, ValueError, "3, 2 and 2"),
    ({"v": V[:, :1], "enable_gqa": True}, ValueError, "3, 3 and 1"),
    ({"k": K[:, :0], "v": V[:, :0], "enable_gqa": True}, ValueError, "3, 0 and 0"),
    ({"scale": NAN}, ValueError, "scale", "nan"),
    ({"scale": -INF}, ValueError, "scale", "-inf"),
    ({"softcap": -1.5}, ValueError, "softcap", "-1.5"),
    ({"softcap": NAN}, ValueError, "softcap", "nan"),
    ({"softcap": INF}, ValueError, "softcap", "inf"),
    ({"window": (-2, 0)}, ValueError, "window", "(-2, 0)"),
    ({"window": 3}, TypeError, "window", "got 3"),
    ({"window": (1, 2, 3)}, TypeError, "window", "(1, 2, 3)"),
    ({"window": (1.5, 2)}, TypeError, "window", "(1.5, 2)"),
    ({"q_offset": 1.0}, TypeError, "q_offset", "float64"),
    ({"q_offset": [1, 2, 3]}, ValueError, "q_offset", "(2,)", "(3,)"),
    ({"kv_lengths": [7, 8]}, ValueError, "kv_lengths", "7 keys", "got 8"),
    ({"kv_lengths": -1}, ValueError, "kv_lengths", "-1"),
    ({"kv_lengths": 2**70}, ValueError, "kv_lengths", str(2**70)),
    ({"kv_lengths": [1, 2, 3]}, ValueError, "kv_lengths", "(3,)"),
    ({"kv_lengths": [1.0, 2.0]}, TypeError, "kv_lengths", "float64"),
    ({"kv_lengths": [True, True]}, TypeError, "kv_lengths", "bool"),
    ({"attn_mask": np.zeros((5, 7))}, TypeError, "attn_mask", "float32", "float64"),
    ({"attn_mask": np.ones((5, 7), int)}, TypeError, "attn_mask", "int64"),
    ({"attn_mask": np.ones((7, 5), bool)}, ValueError, "attn_mask", "(7, 5)", "(2, 3, 5, 7)"),
    ({"attn_mask": np.ones((4, 1, 1, 1, 7), bool)}, ValueError, "attn_mask", "(4, 1, 1, 1, 7)"),
    ({"attn_mask": np.array(True)}, ValueError, "attn_mask", "()"),
    ({"attn_mask": np.ma.ones(7)}, TypeError, "attn_mask is a masked array"),
    ({"out": [[1.0]]}, TypeError, "out", "list"),
    ({"out": Q.copy()}, ValueError, "(2, 3, 5, 6)", "(2, 3, 5, 4)"),
    ({"out": G.astype(float)}, ValueError, "float32", "float64"),
    ({"out": LAYOUTS["read-only"](G)}, ValueError, "out is read-only"),
    ({"out": G.astype(">f4")}, ValueError, ">f4"),
    ({"out": np.asfortranarray(G)}, ValueError, "contiguous in its last axis", "120"),
    ({"out": UPON_ITSELF}, ValueError, "overlaps itself"),
]
WRONG_BACKWARD = [
    ({"grad_mask": True}, ValueError, "grad_mask", "attn_mask"),
    ({"grad_mask": True, "attn_mask": np.ones((5, 7), bool)}, ValueError, "grad_mask"),
    ({"grad_out": G[:1]}, ValueError, "grad_out", "(2, 3, 5, 6)", "(1, 3, 5, 6)"),
    ({"grad_out": G.astype(float)}, ValueError, "grad_out", "float32", "float64"),
    ({"out": G[:, :, 1:]}, ValueError, "out", "(2, 3, 5, 6)", "(2, 3, 4, 6)"),
    ({"lse": G[..., :2]}, ValueError, "lse", "(2, 3, 5)", "(2, 3, 5, 2)"),
    ({"lse": G[..., 0] * 1j}, TypeError, "lse", "complex64"),
    ({"q": Q[..., :3]}, ValueError, "(2, 3, 5, 3)", "(2, 3, 7, 4)"),
    ({"window": (-2, 0)}, ValueError, "window", "(-2, 0)"),
]


def refused(call, given, error, shown):
    with pytest.raises(error) as caught:
        call(**given)
    for part in shown:
        assert part in str(caught.value)


def id_of(row):
    return " ".join([*row[0], *row[2:]])


# Arguments are checked before a backend is chosen.
@pytest.mark.parametrize("row", WRONG, ids=id_of)
def test_errors_show_what_was_received(row):
    given, error, *shown = row
    refused(attention, {"q": Q, "k": K, "v": V} | given, error, shown)
    if "out" not in given:
        given = {"q": Q, "k": K, "v": V, "grad_out": G, "out": G, "lse": G[..., 0]} | given
        refused(attention_backward, given, error, shown)


@pytest.mark.parametrize("row", WRONG_BACKWARD, ids=id_of)
def test_errors_of_the_backward(row):
    given, error, *shown = row
    given = {"q": Q, "k": K, "v": V, "grad_out": G, "out": G, "lse": G[..., 0]} | given
    refused(attention_backward, given, error, shown)


def test_huge_offsets_and_windows(backend):
    everything = attention(Q, K, V)
    for offset in 2**70, np.array([2**63 - 1, 7]), np.uint64(2**64 - 1):
        ours = attention(Q, K, V, is_causal=True, q_offset=offset)
        same(ours, everything, err_msg=repr(offset))
    for offset in -(2**70), np.array([-(2**63), -5]):
        assert not attention(Q, K, V, is_causal=True, q_offset=offset).any()
    same(attention(Q, K, V, window=(2**70, 2**63)), everything)
    near = attention(Q, K, V, window=(9, -1), q_offset=9)  # query i sees the keys from i on
    same(attention(Q, K, V, window=(2**63 - 1, -1), q_offset=2**63 - 1), near)


def test_offsets_and_lengths_of_any_integer_dtype(backend):
    right = attention(Q, K, V, is_causal=True, q_offset=[1, 2], kv_lengths=[3, 7])
    for dtype in "i1", "u1", "i2", ">i4", "u8":
        offsets, lengths = (np.array(a).astype(dtype) for a in ([1, 2], [3, 7]))
        same(attention(Q, K, V, is_causal=True, q_offset=offsets, kv_lengths=lengths), right)
    one = attention(Q, K, V, is_causal=True, q_offset=2, kv_lengths=5)
    same(attention(Q, K, V, is_causal=True, q_offset=np.int8(2), kv_lengths=np.array([5])), one)


# --- out ----------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("length", [1, 5, 70])
def test_out_gives_the_same_bits(backend, length, dtype):
    (_, q, k, v), options = draw("plain", Shape((2,), 4, 2, length, 50, 8, 6), dtype)
    fresh, lse = attention(q, k, v, return_lse=True, **options)
    outs = {
        "C": np.full(fresh.shape, 7, dtype),
        "transposed": np.full((2, length, 4, 6), 7, dtype).swapaxes(1, 2),
        "columns": np.full((2, 4, length, 12), 7, dtype)[..., 3:9],
        "backwards": np.full((2, 4, length, 6), 7, dtype)[::-1, ::-1, ::-1],
        "between": np.full((2, 4, 2 * length, 6), 7, dtype)[:, :, ::2],
    }
    for name, out in outs.items():
        result, again = attention(q, k, v, return_lse=True, out=out, **options)
        assert result is out, name
        same(out, fresh, name)
        same(again, lse, name)
        assert attention(q, k, v, out=out, **options) is out
        base = out.base
        if base is not None and base.size > out.size:  # nothing beside the view was written
            assert np.sum(base == 7) >= base.size - out.size


@dtypes
@pytest.mark.parametrize("length", [4, 70])
def test_out_over_an_input(backend, length, dtype):
    s = Shape((2,), 2, 2, length, length, 6, 6)
    for place, name in enumerate("qkv"):
        for shift in 0, 3, 6:
            (_, *arrays), _ = draw("plain", s, dtype)
            fresh = attention(*arrays)
            memory = np.zeros(fresh.size + shift, dtype)
            for first, second in ((0, shift), (shift, 0)):
                given = list(arrays)
                given[place] = memory[first:][: fresh.size].reshape(fresh.shape)
                given[place][...] = arrays[place]
                out = memory[second:][: fresh.size].reshape(fresh.shape)
                assert attention(*given, out=out) is out
                same(out, fresh, name)
    given = [arrays[0].copy()] * 3  # one array for all, and the result over it
    right = attention(*given)
    same(attention(*given, out=given[0]), right)


def test_out_over_the_mask(backend):
    _, q, k, v = qkv(6, 6, np.float32, value_width=6)
    mask = normal(2, 6, 6, dtype=np.float32)
    right = attention(q, k, v, attn_mask=mask)
    same(attention(q, k, v, attn_mask=mask, out=mask), right)


# --- layouts ------------------------------------------------------------------------------

MORE_LAYOUTS = {
    "(batch, L, heads, E)": lambda a: np.ascontiguousarray(a.swapaxes(1, 2)).swapaxes(1, 2),
    "sequence [::-1]": lambda a: a[:, :, ::-1].copy()[:, :, ::-1],
    "sequence [::2]": lambda a: np.repeat(a, 2, axis=2)[:, :, ::2],
    "heads [::-1]": lambda a: a[:, ::-1].copy()[:, ::-1],
    "odd rows": lambda a: np.concatenate([a, a[..., :1]], axis=-1)[..., :-1],
}


LAID = {"few": Shape((2,), 3, 3, 2, 140, 8, 6), "tiles": Shape((3,), 4, 2, 40, 101, 8, 4)}


# 108: copied before the kernel, or read with strides, which no dtype has to itself.
@with_one_dtype("layout shape", [*LAYOUTS, *MORE_LAYOUTS], LAID)
def test_layouts(backend, layout, shape, dtype):
    if layout == "swapped bytes" and dtype == BF16:
        return  # NumPy has no swapped bfloat16
    relaid = (LAYOUTS | MORE_LAYOUTS)[layout]
    arrays, options = draw("causal-offset", shape, dtype)
    right = truths(*arrays[1:], arrays[0], **options)
    g, q, k, v = map(relaid, arrays)
    before = [a.copy() for a in (g, q, k, v)]
    out, lse, *grads = run(g, q, k, v, **options)
    compare((out, lse, *grads), right)
    for a, b in zip((g, q, k, v), before, strict=True):
        same(a, b)  # inputs are not written
    again = attention_backward(*arrays, relaid(out), relaid(lse[..., None])[..., 0], **options)
    compare((out, lse, *again), right)


def test_inputs_in_different_layouts(backend):
    arrays, options = draw("causal-offset", Shape((2,), 4, 2, 70, 101, 6, 4), np.float32)
    right = truths(*arrays[1:], arrays[0], **options)
    every = LAYOUTS | MORE_LAYOUTS
    names = list(every)
    for i in range(len(names)):
        chosen = [every[names[(i * step + 1) % len(names)]] for step in (1, 2, 3, 5)]
        given = [relaid(a) for relaid, a in zip(chosen, arrays, strict=True)]
        compare(run(*given, **options), right, names[i])


@pytest.mark.parametrize("dtype", [np.float32, BF16], ids=str)
@pytest.mark.parametrize(
    "layout",
    ["C", "(batch, L, heads, E)", "sequence [::-1]", "heads [::-1]", "rows [::2]", "read-only",
     "columns [:, :k]"],
)  # fmt: skip
def test_not_copied(cython, layout, dtype):
    relaid = (LAYOUTS | MORE_LAYOUTS)[layout]
    shape = (2, 4, 600, 32)
    g, q, k, v = (relaid(normal(*shape, seed=i).astype(dtype)) for i in range(4))
    out = np.empty(shape, dtype)

    def peak(call):
        tracemalloc.start()
        try:
            call()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(lambda: attention(q, k, v, out=out)) < 0.5 * out.nbytes
    _, lse = attention(q, k, v, return_lse=True)
    used = peak(lambda: attention_backward(g, q, k, v, out, lse))
    assert 3 * out.nbytes <= used < 3.5 * out.nbytes


@dtypes
def test_two_axes(backend, dtype):
    for length, keys in (1, 9), (5, 7), (70, 100):
        g, q, k, v = (a[0] for a in qkv(length, keys, dtype))
        mask = normal(length, keys).astype(dtype)
        for options in {}, {"attn_mask": mask}, {"attn_mask": mask[None], "is_causal": True}:
            ours = run(g, q, k, v, **options)
            assert [a.ndim for a in ours[:5]] == [2, 1, 2, 2, 2]
            with_heads = run(*(a[None] for a in (g, q, k, v)), **options)
            for a, b in zip(ours[:5], with_heads, strict=False):
                same(a, b[0])
        out = np.zeros((length, 6), dtype)
        assert attention(q, k, v, out=out) is out
        same(out, attention(q, k, v))


BROADCAST = {
    "all the same": ((2, 3, 4, 5, 6), (2, 3, 4, 7, 6), (2, 3, 4, 7, 2)),
    "k and v for all": ((2, 3, 4, 5, 6), (7, 6), (7, 2)),
    "q for all": ((5, 6), (2, 3, 4, 7, 6), (2, 3, 4, 7, 2)),
    "crosswise": ((2, 1, 4, 5, 6), (1, 3, 1, 7, 6), (3, 4, 7, 2)),
    "only heads": ((1, 70, 6), (3, 100, 6), (1, 100, 2)),
    "v alone": ((5, 6), (7, 6), (2, 3, 2, 7, 2)),
}


@dtypes
@pytest.mark.parametrize("shapes", BROADCAST.values(), ids=BROADCAST)
def test_broadcast_leading_axes(backend, shapes, dtype):
    q, k, v = (normal(*shape, seed=i).astype(dtype) for i, shape in enumerate(shapes))
    g = normal(*truth(q, k, v)[0].shape, seed=4).astype(dtype)
    batch = g.shape[:-3]
    lengths = np.random.default_rng(0).integers(1, k.shape[-2] + 1, batch)
    if dtype == np.float64 or dtype == np.float32:
        check(g, q, k, v)
        check(g, q, k, v, kv_lengths=lengths, is_causal=True, q_offset=2)
        return
    # Gradients are rounded to 16 bits before they are summed.
    ours = run(g, q, k, v, kv_lengths=lengths)
    right = truths(q, k, v, g, kv_lengths=lengths)
    compare(ours[:2], right)
    for a, b in zip(ours[2:], right[2:5], strict=True):
        assert a.shape == b.value.shape
        assert np.all(np.abs(widen(a) - b.value) <= 3 * eps(dtype) * b.scale + 1e-6)


def test_broadcast_by_strides_of_zero(backend):
    """Gradients are of each place that the array shows, not summed."""
    g, q, k, v = (np.stack([a] * 3) for a in qkv(5, 40, np.float32))
    shown = [np.broadcast_to(a[:1], a.shape) for a in (g, q, k, v)]
    for a, b in zip(run(*shown), run(g, q, k, v), strict=True):
        assert a.shape == b.shape
        close(a, b, rtol=1e-5, atol=1e-6)


def test_broadcast_batch_with_groups(backend):
    g, q = normal(2, 3, 4, 5, 6), normal(2, 3, 4, 5, 6, seed=1)
    k, v = normal(1, 2, 7, 6, seed=2), normal(3, 2, 7, 6, seed=3)
    check(g, q, k, v, enable_gqa=True, kv_lengths=[[1, 2, 3], [7, 6, 0]], window=(3, 3))


# --- tensors ------------------------------------------------------------------------------

torch_missing = "PyTorch is not installed: no other kind of array to try"


def test_torch_tensors(backend):
    torch = pytest.importorskip("torch", reason=torch_missing)
    arrays, options = draw("causal-offset", Shape((2,), 4, 2, 5, 9, 6, 4), np.float32)
    mask = normal(5, 9, dtype=np.float32)
    right = run(*arrays, attn_mask=mask, **options)
    g, q, k, v = map(torch.tensor, arrays)
    out, lse = attention(q, k, v, return_lse=True, attn_mask=torch.tensor(mask), **options)
    ours = attention_backward(
        g, q, k, v, out, lse, attn_mask=torch.tensor(mask), grad_mask=True, **options
    )
    for a, b in zip((out, lse, *ours), right, strict=True):
        assert type(a) is torch.Tensor
        same(a.numpy(), b)
    given = torch.zeros_like(out)
    assert attention(q, k, v, out=given, attn_mask=torch.tensor(mask), **options) is given
    same(given.numpy(), right[0])
    allowed = torch.tensor(mask > 0)
    same(attention(q, k, v, attn_mask=allowed, **options).numpy(),
         attention(*arrays[1:], attn_mask=mask > 0, **options))  # fmt: skip
    offsets = {"q_offset": torch.tensor([1, 2]), "kv_lengths": torch.tensor([5, 9])}
    ours = attention(q, k, v, is_causal=True, enable_gqa=True, **offsets)
    right = attention(*arrays[1:], is_causal=True, enable_gqa=True, q_offset=[1, 2],
                      kv_lengths=[5, 9])  # fmt: skip
    same(ours.numpy(), right)


def test_torch_tensors_in_varlen(backend):
    torch = pytest.importorskip("torch", reason=torch_missing)
    q, k, v, ends = (normal(5, 2, 4), normal(5, 2, 4, seed=1), normal(5, 2, 3, seed=2), [0, 2, 5])
    right, norm = varlen(q, k, v, ends, ends, return_lse=True)
    tensors = [torch.tensor(a) for a in (q, k, v)]
    cu = torch.tensor(ends, dtype=torch.int32)
    out, lse = varlen(*tensors, cu, cu, return_lse=True)
    same(out.numpy(), right)
    grads = varlen_backward(out, *tensors, out, lse, cu, cu)
    for a, b in zip(grads, varlen_backward(right, q, k, v, right, norm, ends, ends), strict=True):
        assert type(a) is torch.Tensor
        same(a.numpy(), b)


# --- packed sequences ---------------------------------------------------------------------

# Lengths of the sequences: with none of either, with few queries, and with several tiles.
SEQUENCES = {
    "short": ([3, 0, 1, 5, 2], [4, 3, 0, 9, 2]),
    "long": ([70, 1, 130, 0, 8], [100, 300, 130, 5, 8]),
    "equal": ([20, 20], [20, 20]),
    "one": ([9], [30]),
    "decode": ([1, 1, 1], [900, 1, 1200]),
    "nothing": ([0, 0], [0, 0]),
    "none": ([], []),
}
PACKED_OPTIONS = {
    "plain": {},
    "causal": {"is_causal": True, "q_offset": "ends"},
    "window": {"window": (7, 2), "q_offset": "ends", "scale": 0.3},
    "all": {"window": (50, -1), "q_offset": "ends", "softcap": 1.5, "is_causal": True},
}


def pack(lengths_q, lengths_k, heads, kv_heads, dtype, options):
    """grad_out, q, k, v, both cu_seqlens, and options with an offset for each sequence."""
    s = Shape((), heads, kv_heads, sum(lengths_q), sum(lengths_k), 10, 6)
    arrays = [np.ascontiguousarray(a.swapaxes(0, 1)) for a in draw("plain", s, dtype)[0]]
    cu = [np.cumsum([0, *n]) for n in (lengths_q, lengths_k)]
    options = dict(options, enable_gqa=True)
    if options.get("q_offset") == "ends":
        options["q_offset"] = np.array(lengths_k, int) - np.array(lengths_q, int)
    return arrays, cu, options


# 168: sequences, heads and options decide which keys a query sees; the kernels are those of above.
@with_one_dtype("lengths options groups", SEQUENCES, PACKED_OPTIONS, [1, 3])
def test_varlen_is_a_loop(backend, lengths, options, groups, dtype):
    (g, q, k, v), cu, options = pack(*lengths, 3, 3 // groups, dtype, options)
    out, lse = varlen(q, k, v, *cu, return_lse=True, **options)
    grads = varlen_backward(g, q, k, v, out, lse, *cu, **options)
    assert (out.dtype, lse.dtype) == (dtype, compute_dtype(dtype))
    assert [d.dtype for d in grads] == [dtype] * 3
    assert lse.shape == out.shape[:-1]
    assert [a.shape for a in (out, *grads)] == [(len(q), 3, 6), q.shape, k.shape, v.shape]
    for i in range(len(lengths[0])):
        rows, keys = (slice(*c[i : i + 2]) for c in cu)
        single = dict(options)
        if "q_offset" in options:
            single["q_offset"] = int(options["q_offset"][i])
        one = [a[s].swapaxes(0, 1) for a, s in ((g, rows), (q, rows), (k, keys), (v, keys))]
        right = truths(*one[1:], one[0], **single)
        places = rows, rows, rows, keys, keys
        parts = [a[p].swapaxes(0, 1) for a, p in zip((out, lse, *grads), places, strict=True)]
        compare(parts, right, f"sequence {i}")


def test_varlen_leaks_nothing_between_sequences(backend):
    """NaN in one sequence stays there: in lanes, blocks and pairs of keys side by side."""
    for dtype in DTYPES.values():
        (g, q, k, v), cu, _ = pack([3, 9, 70], [5, 97, 131], 2, 2, dtype, {})
        right, norm = varlen(q, k, v, *cu, return_lse=True)
        grads = varlen_backward(g, q, k, v, right, norm, *cu)
        rows, keys = (slice(*c[1:3]) for c in cu)
        for a in q[rows], k[keys], v[keys]:
            a[...] = NAN
        out, lse = varlen(q, k, v, *cu, return_lse=True)
        ours = varlen_backward(g, q, k, v, out, lse, *cu)
        for place, pairs in (
            (rows, [(out, right), (lse, norm), (ours[0], grads[0])]),
            (keys, [(ours[1], grads[1]), (ours[2], grads[2])]),
        ):
            for a, b in pairs:
                assert np.isnan(widen(a[place])).all()
                others = np.r_[0 : place.start, place.stop : len(a)]
                same(a[others], b[others])


@dtypes
def test_out_of_varlen(backend, dtype):
    (_, q, k, v), cu, options = pack(*SEQUENCES["long"], 4, 2, dtype, {"is_causal": True})
    k, v = k[..., :6], v[..., :6]
    q = np.ascontiguousarray(q[..., :6])
    fresh, lse = varlen(q, k, v, *cu, return_lse=True, **options)
    for out in (
        np.full_like(fresh, 7),
        np.full((4, len(q), 6), 7, dtype).swapaxes(0, 1),
        q.copy(),
    ):
        result, again = varlen(q, k, v, *cu, return_lse=True, out=out, **options)
        assert result is out
        same(out, fresh)
        same(again, lse)
    over = q.copy()
    assert varlen(over, k, v, *cu, out=over, **options) is over
    same(over, fresh)


def test_out_of_varlen_over_an_input_is_copied_once(cython):
    """Not once for each sequence."""
    q = normal(4000, 2, 8, dtype=np.float32)
    ends = np.arange(0, 4001, 4)
    right = varlen(q, q, q, ends, ends)
    over = q.copy()
    tracemalloc.start()
    try:
        varlen(over, q, q, ends, ends, out=over)
        used = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    same(over, right)
    assert used < 4 * q.nbytes


def test_layouts_of_varlen(backend):
    (g, q, k, v), cu, options = pack(*SEQUENCES["short"], 4, 2, np.float32, {"is_causal": True})
    right, norm = varlen(q, k, v, *cu, return_lse=True, **options)
    grads = varlen_backward(g, q, k, v, right, norm, *cu, **options)
    for name, relaid in LAYOUTS.items():
        arrays = [relaid(a) for a in (q, k, v)]
        out, lse = varlen(*arrays, *(c.astype(np.int32) for c in cu), return_lse=True, **options)
        ours = varlen_backward(
            relaid(g), *arrays, relaid(out), relaid(lse), *map(list, cu), **options
        )
        for a, b in zip((out, lse, *ours), (right, norm, *grads), strict=True):
            close(a, b, rtol=1e-5, atol=1e-6, err_msg=name)


P = normal(5, 2, 4, dtype=np.float32)
WRONG_PACKED = [
    ({"q": P[0]}, ValueError, "3 axes", "(2, 4)"),
    ({"k": P[:, :1], "v": P[:, :1]}, ValueError, "2 heads", "have 1", "enable_gqa"),
    ({"q": P[:, :1], "enable_gqa": True}, ValueError, "1, 2 and 2"),
    ({"v": P[:, :1]}, ValueError, "heads", "2", "1"),
    ({"v": P[:4]}, ValueError, "(5, 2, 4)", "(4, 2, 4)"),
    ({"cu_seqlens_q": [1, 5]}, ValueError, "cu_seqlens_q", "[1, 5]"),
    ({"cu_seqlens_k": [0, 4]}, ValueError, "cu_seqlens_k", "5", "[0, 4]"),
    ({"cu_seqlens_q": [0, 3, 2, 5], "cu_seqlens_k": [0, 1, 2, 5]}, ValueError, "[0, 3, 2, 5]"),
    ({"cu_seqlens_k": [0, 3, 5]}, ValueError, "got 2 and 3"),
    ({"cu_seqlens_q": [0.0, 5.0]}, TypeError, "cu_seqlens_q", "float64"),
    ({"cu_seqlens_k": np.zeros(0, int)}, TypeError, "cu_seqlens_k", "(0,)"),
    ({"cu_seqlens_k": np.ma.array([0, 5], mask=[0, 1])}, TypeError, "cu_seqlens_k is a masked"),
    ({"q_offset": np.ma.array([0], mask=[1])}, TypeError, "q_offset is a masked array"),
    ({"cu_seqlens_k": [[0, 5]]}, TypeError, "cu_seqlens_k", "(1, 2)"),
    ({"q_offset": [1, 2]}, ValueError, "q_offset", "(1,)", "(2,)"),
    ({"scale": INF}, ValueError, "scale", "inf"),
    ({"window": (0, -3)}, ValueError, "window", "(0, -3)"),
]


@pytest.mark.parametrize("row", WRONG_PACKED, ids=id_of)
def test_errors_of_varlen(row):
    given, error, *shown = row
    right = {"q": P, "k": P, "v": P, "cu_seqlens_q": [0, 5], "cu_seqlens_k": [0, 5]}
    refused(varlen, right | given, error, shown)
    right |= {"grad_out": P, "out": P, "lse": P[..., 0]}
    refused(varlen_backward, right | given, error, shown)


def test_errors_of_varlen_about_results(backend):
    ends = {"cu_seqlens_q": [0, 5], "cu_seqlens_k": [0, 5]}
    given = {"q": P, "k": P, "v": P, **ends}
    refused(varlen, given | {"out": P[:4].copy()}, ValueError, ["(5, 2, 4)", "(4, 2, 4)"])
    given |= {"grad_out": P, "out": P, "lse": P[..., 0]}
    for name, wrong, shown in (
        ("lse", P[0, ..., 0], "(2,)"),
        ("grad_out", P[1:], "(4, 2, 4)"),
        ("out", P.astype(float), "float64"),
    ):
        refused(varlen_backward, given | {name: wrong}, ValueError, [name, shown])
