"""What holds for any queries, keys and values; hypothesis draws shapes, strides and options."""

import math
from typing import NamedTuple

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from support.attention import check, compare, eps, run, truths
from support.cases import DTYPES
from support.truths import widen

import fastce

attention = fastce.scaled_dot_product_attention
EXAMPLES = settings(max_examples=settings.default.max_examples * 60 // 100)
INF = np.inf
seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from(list(DTYPES.values()))
# Few, and about the sizes of tiles (64 queries), blocks (96 keys) and vectors (16 numbers).
lengths = st.one_of(st.integers(0, 10), st.integers(30, 70), st.integers(125, 130))
counts = st.one_of(st.integers(0, 10), st.integers(90, 100), st.integers(180, 200))
widths = st.one_of(st.integers(1, 9), st.sampled_from([15, 16, 17, 32, 33, 64]))


@st.composite
def layouts(draw):
    """A function that lays an array out with other strides, in any axis but the last."""
    seed, gap = draw(seeds), draw(st.sampled_from([0, 0, 1, 2]))

    def relaid(a):
        rng = np.random.default_rng(seed)
        order = [*rng.permutation(a.ndim - 1), a.ndim - 1]
        steps = [*rng.choice([1, 1, 2, -1, -3], a.ndim - 1), 1]
        shape = [abs(steps[i]) * a.shape[i] + gap * (i == a.ndim - 1) for i in order]
        memory = np.full(shape, np.nan).astype(a.dtype)  # gaps that are read will be seen
        view = memory.transpose(np.argsort(order))
        view = view[(*(slice(None, None, step) for step in steps[:-1]), slice(0, a.shape[-1]))]
        view[...] = a
        return view

    return relaid


class Problem(NamedTuple):
    arrays: tuple  # grad_out, q, k, v
    options: dict

    def __repr__(self):
        """Without the numbers, which are many and random."""
        arrays = {f"array {i}": a for i, a in enumerate(self.arrays)}
        return ", ".join(
            f"{name}: {a.dtype} {a.shape} strides {a.strides}" if np.size(a) > 9 else f"{name}: {a}"
            for name, a in (arrays | self.options).items()
        )


@st.composite
def problems(draw, dtype=dtypes, masks=True):
    """(grad_out, q, k, v) and options; they may broadcast, and lie anyhow."""
    dtype = draw(dtype)
    rng = np.random.default_rng(draw(seeds))
    batch = tuple(draw(st.lists(st.integers(1, 3), max_size=2)))
    kv_heads, group = draw(st.integers(1, 3)), draw(st.sampled_from([1, 1, 2, 4]))
    length, count = draw(lengths), draw(counts)
    while math.prod((*batch, kv_heads * group, length, count)) > 60_000:  # for the time it takes
        batch, kv_heads = batch[1:], 1
        length = length if batch else min(length, 65)
    width, value_width = draw(widths), draw(widths)
    sizes = st.sampled_from([0.01, 1.0, 2.0] if dtype == np.float16 else [0.01, 1.0, 10.0, 30.0])

    def array(lead, *rest):
        lead = tuple(1 if draw(st.sampled_from([0, 0, 0, 1])) else n for n in lead)
        lead = lead[draw(st.sampled_from([0, 0, 0, len(batch)])) :]
        a = (draw(sizes) * rng.standard_normal((*lead, *rest))).astype(dtype)
        return draw(layouts())(a)

    q = array(batch, kv_heads * group, length, width)
    k = array(batch, kv_heads, count, width)
    v = array(batch, kv_heads, count, value_width)
    batch = np.broadcast_shapes(*(a.shape[:-3] for a in (q, k, v)))
    scores = (*batch, kv_heads * group, length, count)
    grad_out = draw(layouts())(rng.standard_normal((*scores[:-1], value_width)).astype(dtype))
    options = {"enable_gqa": True} if group > 1 else {}
    if draw(st.booleans()):
        options["is_causal"] = draw(st.booleans())
        left = draw(st.sampled_from([-1, 0, 1, 7, 100, 10**18]))
        options["window"] = left, draw(st.sampled_from([-1, 0, 2, 50]))
        options["q_offset"] = rng.integers(-5, count + 5, batch)
    if draw(st.booleans()):
        options["kv_lengths"] = rng.integers(0, count + 1, batch)
    if draw(st.booleans()):
        options["scale"] = draw(st.sampled_from([0.0, 1.0, -0.2, 1e-3]))
    if draw(st.booleans()):
        options["softcap"] = draw(st.sampled_from([0.5, 3.0, 50.0]))
    if masks and draw(st.booleans()):
        axes = draw(st.lists(st.booleans(), min_size=1, max_size=len(scores)))
        shape = [n if axis else 1 for n, axis in zip(scores[-len(axes) :], axes, strict=True)]
        mask = rng.standard_normal(shape)
        forbidden = rng.random(shape) < draw(st.sampled_from([0.0, 0.1, 0.9, 1.0]))
        if draw(st.booleans()):
            mask = ~forbidden
        else:
            mask[forbidden] = -INF
            mask = mask.astype(dtype)
        options["attn_mask"] = draw(layouts())(mask)
    return Problem((grad_out, q, k, v), options)


def assert_near(a, b, tolerance):
    """Closer than `tolerance`, or the same infinity."""
    apart = np.subtract(a, b, out=np.zeros_like(a), where=a != b)
    assert np.all(np.abs(apart) < tolerance)


def sizes_of(grad_out, q, k, v, mask, options):
    """Of results in float64; longdouble would take most of the time."""
    g, q, k, v = (a.astype(np.float32) for a in (grad_out, q, k, v))
    return [t.scale for t in truths(q, k, v, g, attn_mask=mask, **options)]


@settings(max_examples=2 * settings.default.max_examples)
@given(problem=problems())
def test_truth(backend, problem):
    arrays, options = problem
    check(*arrays, **options)


@EXAMPLES
@given(problem=problems(masks=False), seed=seeds)
def test_masks_of_extreme_numbers(backend, problem, seed):
    (_, q, k, v), options = problem
    rng = np.random.default_rng(seed)
    high = 6e4 if q.dtype == np.float16 else 1e30
    values = rng.choice([0, 1, -INF, -high, 1e4, -1e4], rng.integers(1, 7), replace=False)
    options["attn_mask"] = rng.choice(values, (q.shape[-2], k.shape[-2])).astype(q.dtype)
    right = truths(q, k, v, **options)
    compare(attention(q, k, v, return_lse=True, **options), right)


@EXAMPLES
@given(problem=problems(masks=False), layout=layouts(), seed=seeds)
def test_out_does_not_change_a_bit(backend, problem, layout, seed):
    (g, *arrays), options = problem
    fresh = attention(*arrays, **options)
    out = layout(np.zeros_like(g))
    assert attention(*arrays, out=out, **options) is out
    np.testing.assert_array_equal(out, fresh)


@EXAMPLES
@given(problem=problems(st.just(np.float64), masks=False), seed=seeds)
def test_a_constant_in_a_row_of_the_mask(backend, problem, seed):
    """It changes lse alone."""
    arrays, options = problem
    rng = np.random.default_rng(seed)
    mask = rng.standard_normal((arrays[1].shape[-2], arrays[2].shape[-2]))
    mask[rng.random(mask.shape) < 0.2] = -INF
    constant = rng.uniform(-9, 9, (len(mask), 1))
    out, lse, *grads = run(*arrays, attn_mask=mask, **options)
    ours = run(*arrays, attn_mask=mask + constant, **options)
    sizes = sizes_of(*arrays, mask, options)
    for a, b, size in zip(ours, (out, lse + constant[:, 0], *grads), sizes, strict=True):
        assert_near(a, b, 1e-13 * (1 + size))


@EXAMPLES
@given(problem=problems(st.just(np.float64), masks=False), seed=seeds)
def test_the_order_of_the_keys(backend, problem, seed):
    (g, q, k, v), options = problem
    options = {
        name: options[name] for name in ("scale", "softcap", "enable_gqa") if name in options
    }
    rng = np.random.default_rng(seed)
    mask = rng.standard_normal((q.shape[-2], k.shape[-2]))
    mask[rng.random(mask.shape) < 0.5] = -INF
    order = rng.permutation(k.shape[-2])
    out, lse, dq, dk, dv, dmask = run(g, q, k, v, attn_mask=mask, **options)
    ours = run(g, q, k[..., order, :], v[..., order, :], attn_mask=mask[:, order], **options)
    moved = out, lse, dq, dk[..., order, :], dv[..., order, :], dmask[:, order]
    sizes = sizes_of(g, q, k, v, mask, options)
    for a, b, size in zip(ours, moved, sizes, strict=True):
        assert_near(a, b, 1e-13 * (1 + size.max(initial=0)))


@EXAMPLES
@given(problem=problems())
def test_a_window_without_bounds(backend, problem):
    """It is none, also where it is only wide enough; and causal is a window to the right of 0."""
    arrays, options = problem
    options.pop("window", None)
    causal = options.pop("is_causal", False)
    right = run(*arrays, is_causal=causal, **options)
    everything = arrays[1].shape[-2] + arrays[2].shape[-2] + 10
    windows = [(-1, -1), (everything, -1), (-1, 0)] if causal else [(-1, -1), (-1, everything)]
    for window in windows:
        ours = run(*arrays, window=window, is_causal=causal and window[1] != 0, **options)
        for a, b in zip(ours, right, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=str(window))


@EXAMPLES
@given(problem=problems(st.just(np.float64)), where=st.floats(0, 1))
def test_keys_in_two_parts(backend, problem, where):
    """The results of the first keys and of the others, weighted by lse, are that of all."""
    (_, q, k, v), options = problem
    options = {n: o for n, o in options.items() if n not in ("kv_lengths", "q_offset")}
    options["window"] = -1, -1
    causal = options.pop("is_causal", False)
    first = int(where * k.shape[-2])
    mask = options.pop("attn_mask", np.ones(1, bool))
    mask = np.broadcast_to(mask, np.broadcast_shapes(mask.shape, (k.shape[-2],)))
    whole, norm = attention(q, k, v, return_lse=True, is_causal=causal, attn_mask=mask, **options)
    parts = [
        attention(q, k, v, return_lse=True, is_causal=causal, attn_mask=mask, kv_lengths=first,
                  **options),
        attention(q, k[..., first:, :], v[..., first:, :], return_lse=True, is_causal=causal,
                  attn_mask=mask[..., first:], q_offset=-first, **options),
    ]  # fmt: skip
    with np.errstate(invalid="ignore", divide="ignore"):
        total = np.logaddexp(parts[0][1], parts[1][1])
        shares = [np.where(lse == -INF, 0, np.exp(lse - total))[..., None] for _, lse in parts]
    merged = sum(share * out for share, (out, _) in zip(shares, parts, strict=True))
    # exp(lse - total) magnifies the rounding of both.
    size = 1 + np.abs(np.where(norm == -INF, 0, norm)).max(initial=0)
    tolerance = 1e-13 * size * np.abs(v).max(initial=1)
    np.testing.assert_allclose(merged, whole, rtol=0, atol=tolerance)
    np.testing.assert_allclose(total, norm, rtol=1e-13, atol=1e-13 * size)


@EXAMPLES
@given(problem=problems())
def test_a_mean_of_the_values(backend, problem):
    """The result lies between the least and the greatest value; it scales with the values."""
    (_, q, k, v), options = problem
    out, lse = attention(q, k, v, return_lse=True, **options)
    wide = widen(out)
    if k.shape[-2]:
        most = np.abs(widen(v)).max()
        assert np.all(np.abs(wide) <= most * (1 + 4 * eps(q.dtype)))
    assert not wide[lse == -INF].any()
    ones, _ = attention(q, k, np.ones_like(v), return_lse=True, **options)
    right = np.where(lse == -INF, 0, 1)[..., None]
    rtol = 2 * eps(q.dtype) + 64 * eps(lse.dtype)  # the sum of the weights, in another order
    np.testing.assert_allclose(widen(ones), np.broadcast_to(right, ones.shape), rtol=rtol)
    if q.dtype in (np.float32, np.float64):
        np.testing.assert_array_equal(attention(q, k, -2 * v, **options), -2 * out)


@EXAMPLES
@given(problem=problems(st.just(np.float64), masks=False))
def test_sums_of_gradients(backend, problem):
    """Of a mask 0 along the keys; of v what came in, from queries that see a key."""
    (g, q, k, v), options = problem
    lead = g.shape[:-1]
    mask = np.zeros((*lead, k.shape[-2]))
    _, lse, _, _, dv, dmask = run(g, q, k, v, attn_mask=mask, **options)
    size = 1 + np.abs(g).max(initial=0) * np.abs(v).max(initial=0) * v.shape[-1]
    np.testing.assert_allclose(dmask.sum(axis=-1), np.zeros(lead), atol=1e-11 * size)
    came = np.where((lse == -INF)[..., None], 0, g).sum(axis=tuple(range(g.ndim - 1)))
    tolerance = 1e-11 * (1 + np.abs(g).sum())
    np.testing.assert_allclose(dv.sum(axis=tuple(range(dv.ndim - 1))), came, atol=tolerance)


@EXAMPLES
@given(problem=problems(masks=False), seed=seeds)
def test_entries_do_not_see_each_other(backend, problem, seed):
    """Another batch entry, another group of heads or another query leaves a result as it is."""
    (_, q, k, v), options = problem
    options = {n: o for n, o in options.items() if n not in ("kv_lengths", "q_offset", "window")}
    if not q.size:
        return
    out = attention(q, k, v, **options)
    changed = q.copy()
    row = tuple(np.random.default_rng(seed).integers(0, q.shape[:-1]))
    changed[row] = changed[row] * np.array(-3, q.dtype) + np.array(1, q.dtype)
    again = attention(changed, k, v, **options)
    others = np.ones(np.broadcast_shapes(out.shape[:-1], q.shape[:-1]), bool)
    hit = np.zeros(q.shape[:-1], bool)
    hit[row] = True
    others &= ~hit
    np.testing.assert_array_equal(again[others], out[others])
