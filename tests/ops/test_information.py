"""fastce.information: truths, identities, bounds, gradients, and what tutorials get wrong."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.cases import DTYPES
from support.grids import with_one_dtype
from support.layouts import LAYOUTS
from support.truths import BF16, assert_close, compute, widen
from support.truths import Truth as T

import fastce
from fastce import information as info
from fastce._runtime import dispatch
from fastce.kernels.cython import _isa

dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
# short rows, rows of one and of several blocks, and columns
SHAPES = [((300, 7), -1), ((9, 130), -1), ((3, 9001), -1), ((3, 70, 41), 1), ((130, 21), 0)]
shapes = pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)
MEASURES = ["entropy", "cross_entropy", "kl_divergence", "js_divergence", "perplexity"]
rng = np.random.default_rng
close = np.testing.assert_allclose

# --- truths: outcomes on the last axis ----------------------------------------------------


def normalized(p):
    p = widen(p)
    return p / p.sum(axis=-1, keepdims=True)


def soft(x):
    x = widen(x)
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def plain(terms):
    """A sum, and that of the absolute values: the scale at which errors are counted."""
    return T(terms.sum(axis=-1), np.abs(terms).sum(axis=-1))


def times_log(p, of):
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(p == 0, 0, p * np.log(of))


def h(p):
    return plain(-times_log(p, p))


def cross(p, q):
    return plain(-times_log(p, q))


def kl(p, q):
    with np.errstate(divide="ignore", invalid="ignore"):
        return plain(times_log(p, p / q))


def js(p, q):
    m = (p + q) / 2
    a, b = kl(p, m), kl(q, m)
    return T((a.value + b.value) / 2, (a.scale + b.scale) / 2)


TRUTHS = {"entropy": h, "cross_entropy": cross, "kl_divergence": kl, "js_divergence": js}
LOGITS = {"entropy_from_logits": h, "kl_divergence_from_logits": kl}


def probabilities(shape, dtype, axis=-1, seed=0, zeros=True):
    """Unnormalised, of very different sizes, some of them 0."""
    r = rng([seed, *shape])
    p = r.gamma(0.5, size=shape)
    if zeros:
        p[r.random(shape) < 0.1] = 0
    return (p + (0 if zeros else 1e-3)).astype(dtype)


def logits(shape, dtype, seed=0):
    return (3 * rng([seed, *shape]).standard_normal(shape)).astype(dtype)


def last(a, axis):
    return np.moveaxis(a, axis, -1)


def arguments(name, shape, dtype, axis):
    if "logits" in name:
        x, y = logits(shape, dtype), logits(shape, dtype, 1)
        return (x,) if name.startswith("entropy") else (x, y)
    p, q = probabilities(shape, dtype, axis), probabilities(shape, dtype, axis, 1, zeros=False)
    return (p,) if name == "entropy" else (p, q)


# --- values -------------------------------------------------------------------------------


@with_one_dtype("name where", [*TRUTHS, *LOGITS], SHAPES)
def test_truth(backend, name, where, dtype):
    shape, axis = where
    args = arguments(name, shape, dtype, axis)
    result = getattr(info, name)(*args, axis=axis)
    assert result.dtype == compute(dtype)
    of = soft if name in LOGITS else normalized
    truth = (TRUTHS | LOGITS)[name](*(of(last(a, axis)) for a in args))
    # float64 has nothing wider for its sums, and logits are rounded where they are subtracted
    limit = (8 if name in LOGITS else 3) + (2 if dtype == np.float64 else 0)
    assert_close(result, truth, limit, name)
    kept = getattr(info, name)(*args, axis=axis, keepdims=True)
    np.testing.assert_array_equal(kept, np.expand_dims(result, axis))
    bits = getattr(info, name)(*args, axis=axis, base=2)
    close(bits, result / math.log(2), rtol=2 * np.finfo(compute(dtype)).eps)


@dtypes
@shapes
def test_perplexity(backend, shape, axis, dtype):
    p, q = arguments("cross_entropy", shape, dtype, axis)
    eps = np.finfo(compute(dtype)).eps
    for args in (p,), (p, q):
        value = (h if len(args) == 1 else cross)(*(normalized(last(a, axis)) for a in args)).value
        result = info.perplexity(*args, axis=axis)
        assert result.dtype == compute(dtype)
        close(result, np.exp(value).astype(np.float64), rtol=8 * eps * max(1, value.max()))


def test_hand_values(backend):
    p, q = [0.5, 0.25, 0.25], [0.25, 0.5, 0.25]
    assert info.entropy(p, base=2) == 1.5
    assert info.cross_entropy(p, q, base=2) == 1.75
    assert info.kl_divergence(p, q, base=2) == 0.25
    assert info.js_divergence([1, 0], [0, 1], base=2) == 1
    assert info.joint_entropy([[1, 1], [1, 1]], base=2) == 2
    table = [[0.25, 0.25], [0.5, 0]]
    assert info.conditional_entropy(table, base=2) == 0.5
    close(info.conditional_entropy(table, axis=(-1, -2)), 0.75 * np.log(3) - 0.5 * np.log(2))
    close(info.mutual_information(table, base=2), 1.5 - 0.75 * np.log2(3))
    close(info.mutual_information([[1, 0], [0, 1]], base=2), 1, rtol=1e-15)
    close(info.perplexity([1, 1, 1, 1, 1, 1]), 6, rtol=1e-15)
    assert info.entropy_from_logits([0, 0], base=2) == 1
    assert info.kl_divergence_from_logits([0.0, 1.0], [2.0, 3.0]) == 0


def test_integers_are_counts(backend):
    counts = np.array([[2, 1, 1], [4, 0, 0]], np.int8)
    result = info.entropy(counts, base=2)
    np.testing.assert_array_equal(result, [1.5, 0])
    assert result.dtype == np.float64
    assert info.entropy([True, True], base=2) == 1


@pytest.mark.parametrize("n", [2, 10, 200, 5000])
def test_common_mistakes(backend, n):
    """What tutorials say of cross-entropy, put right."""
    p = probabilities((n,), np.float64, zeros=False)
    # The cross-entropy of a distribution with itself is its entropy, and not 0.
    assert info.cross_entropy(p, p) == info.entropy(p) > 0
    assert info.kl_divergence(p, p) == 0
    # The loss of several classes is -log p of the label; there is no (1 - y) * log(1 - p) in it.
    x = logits((n,), np.float64)
    one_hot = np.zeros(n)
    one_hot[1] = 1
    right = -np.log(soft(x)[1]).astype(np.float64)
    close(info.cross_entropy(one_hot, fastce.softmax(x)), right)
    close(fastce.cross_entropy(x, 1), right)
    with_term = right - np.log1p(-np.delete(soft(x), 1).astype(np.float64)).sum()
    assert with_term > 1.001 * right
    # Its gradient with respect to the logits is p - y; that of KL with respect to q's, q - p.
    close(fastce.cross_entropy_with_grad(x, 1)[1], fastce.softmax(x) - one_hot, atol=1e-15)
    target = np.log(np.maximum(one_hot, 1e-300))
    _, grad = info.kl_divergence_from_logits_with_grad(target, x)
    close(grad, fastce.softmax(x) - one_hot, atol=1e-15)
    # KL is no distance: it is not symmetric.
    q = p[::-1] ** 2
    assert abs(info.kl_divergence(p, q) - info.kl_divergence(q, p)) > 1e-3


# --- exactness ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("n", [2, 5, 300, 9000])
def test_a_dominating_outcome(backend, n, dtype):
    """Its own log p is log1p of the others: from p, which is rounded to 1, it would be 0."""
    for small in 1e-3, 1e-9, 1e-25:
        p = np.full(n, small, dtype)
        p[n // 2] = 1
        share = widen(p[0]) / (1 + (n - 1) * widen(p[0]))
        right = -(n - 1) * share * np.log(share) + (1 - (n - 1) * share) * np.log1p(
            (n - 1) * widen(p[0])
        )
        eps = float(8 * np.finfo(dtype).eps)
        assert info.entropy(p) == pytest.approx(float(right), rel=eps, abs=0)
        assert info.entropy(np.stack([p, p], 1), axis=0)[1] == pytest.approx(
            float(right), rel=eps, abs=0
        )
        assert info.cross_entropy(p, p) == info.entropy(p)
        x = np.log(p)
        p = soft(x)
        others = np.delete(p, n // 2)
        log_p = np.log1p(-others.sum())
        of_logits = float(h(others).value - np.exp(log_p) * log_p)
        assert info.entropy_from_logits(x) == pytest.approx(of_logits, rel=3 * eps, abs=0)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("n", [3, 40, 700, 6000])
def test_divergences_of_nearly_equal_distributions(backend, n, dtype):
    """About sum (q - p)**2 / 2p, where the plain sum of p * log(p / q) has lost every digit."""
    p = rng(n).uniform(1, 2, n).astype(dtype)
    eps = np.finfo(dtype).eps
    # Without fused multiply-add, and in float64 arithmetic of float64, what bringing p and q to one
    # sum rounds is lost: then the result is exact at the scale of its terms only.
    fused = backend == "numba" or (backend == "cython" and _isa.level() != "x86_64_v2")
    kept = fused or (backend == "reference" and dtype == np.float32)
    for step in 1e-1, 1e-3, 64 * float(eps):
        q = (p * (1 + step * rng(1).uniform(-1, 1, n))).astype(dtype)
        a, b = normalized(p), normalized(q)
        # The errors of the sums are of second order; q - p of the truth has 11 bits more.
        rounding = float(eps) / step
        rel = 16 * float(eps) + 16 * rounding**2 + 1e-18 / step + (0 if kept else 4 * rounding)
        near = {"rel": rel, "abs": 0}
        w = (b - a) / a
        # w - log1p(w) by its series, where it would cancel
        terms = w - np.log1p(w) if step > 0.01 else sum((-w) ** k / k for k in range(2, 12))
        assert info.kl_divergence(p, q) == pytest.approx(float((a * terms).sum()), **near)
        t = (b - a) / (a + b)
        terms = sum(t ** (2 * k) / (k * (2 * k - 1)) for k in range(1, 20))
        right = float(((a + b) * terms).sum() / 4)
        assert info.js_divergence(p, q) == pytest.approx(right, **near)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("n", [3, 200])
def test_numbers_of_every_size(backend, n, dtype):
    """Sums that would overflow, subnormal numbers, and ratios beyond the range."""
    limit = np.finfo(dtype)
    p = rng(0).uniform(0.5, 1, n).astype(dtype)
    q = rng(1).uniform(0.5, 1, n).astype(dtype)
    right = [getattr(info, name)(p, q) for name in MEASURES[1:4]] + [info.entropy(p)]
    for a, b in (1, 1), (limit.max, limit.max), (limit.tiny, 1), (1, limit.max), (limit.max, 1e-30):
        u, v = p * dtype(a), q * dtype(b)
        ours = [getattr(info, name)(u, v) for name in MEASURES[1:4]] + [info.entropy(u)]
        close(ours, right, rtol=8 * limit.eps)
    p[0] = 1
    q[0] = limit.smallest_subnormal * 4
    close(info.kl_divergence(p, q), float(kl(normalized(p), normalized(q)).value), rtol=8e-7)
    q[0], p[0] = 1, limit.smallest_subnormal * 4
    close(info.kl_divergence(p, q), float(kl(normalized(p), normalized(q)).value), rtol=8e-7)
    subnormal = np.full(n, limit.smallest_subnormal * 3)
    close(info.entropy(subnormal), np.log(n), rtol=1e-6)


# --- identities ---------------------------------------------------------------------------

weights = st.lists(st.sampled_from([0.0, 1e-9, 0.1, 0.5, 1.0, 3.0, 1e6]), min_size=1, max_size=40)


@settings(max_examples=40)
@given(data=st.data(), p=weights)
def test_identities_of_distributions(backend, data, p):
    if not sum(p):
        p[0] = 1.0
    like = st.lists(st.sampled_from([1e-6, 0.1, 1.0, 7.0]), min_size=len(p), max_size=len(p))
    q = data.draw(like)
    hp, cost, d = info.entropy(p), info.cross_entropy(p, q), info.kl_divergence(p, q)
    assert 0 <= hp <= np.log(len(p)) * (1 + 1e-15)
    assert info.cross_entropy(p, p) == hp
    assert d >= 0
    close(cost, hp + d, rtol=1e-13, atol=1e-15)
    a, b = (np.array(v) / np.sum(v) for v in (p, q))
    if np.abs(a - b).max() > 1e-12:
        assert d > 0
    assert info.kl_divergence(p, p) == 0 == info.js_divergence(q, q)
    s = info.js_divergence(p, q)
    close(s, info.js_divergence(q, p), rtol=1e-13, atol=1e-17)
    assert 0 <= s <= np.log(2) * (1 + 1e-15)
    close(info.perplexity(p), np.exp(hp), rtol=1e-14)
    close(info.perplexity(p, q), np.exp(cost), rtol=1e-13)
    m = a / 2 + b / 2
    close(s, info.entropy(m) - (hp + info.entropy(q)) / 2, rtol=1e-9, atol=1e-14)


@settings(max_examples=40)
@given(rows=st.integers(1, 8), columns=st.integers(1, 20), seed=st.integers(0, 1000))
def test_identities_of_tables(backend, rows, columns, seed):
    table = rng(seed).integers(0, 4, (rows, columns))
    table[0, 0] += 1
    hx, hy = info.entropy(table.sum(1)), info.entropy(table.sum(0))
    hxy, mutual = info.joint_entropy(table), info.mutual_information(table)
    near = {"rtol": 1e-12, "atol": 1e-14}
    close(hxy, hx + info.conditional_entropy(table), **near)  # the chain rule
    close(hxy, hy + info.conditional_entropy(table, axis=(1, 0)), **near)
    close(mutual, hx + hy - hxy, **near)
    close(mutual, hy - info.conditional_entropy(table), **near)
    product = np.outer(table.sum(1), table.sum(0))
    close(mutual, info.kl_divergence(table.ravel(), product.ravel()), **near)
    assert -1e-15 <= mutual <= min(hx, hy) + 1e-14
    assert info.mutual_information(product) == 0
    close(info.conditional_entropy(product), hy, **near)
    assert info.conditional_entropy(np.eye(rows)) == 0  # X decides Y


@dtypes
@pytest.mark.parametrize("shape", [(5, 3, 4), (2, 130, 7), (2, 3, 5000), (3, 2, 2)])
def test_tables(backend, shape, dtype):
    t = probabilities(shape, dtype)
    t[:, 0, 0] = 1
    p = normalized(t.reshape(len(t), -1)).reshape(shape)
    x, y = p.sum(2, keepdims=True), p.sum(1, keepdims=True)
    flat = (len(t), -1)
    assert_close(info.joint_entropy(t), h(p.reshape(flat)), 5)
    given_x = plain(-times_log(p, p / np.where(x == 0, 1, x)).reshape(flat))
    assert_close(info.conditional_entropy(t), given_x, 5)
    divergence = kl(p.reshape(flat), (x * y).reshape(flat))
    assert_close(info.mutual_information(t), divergence, 5)
    for name in "joint_entropy", "conditional_entropy", "mutual_information":
        f = getattr(info, name)
        moved = np.moveaxis(t, (1, 2), (2, 0))  # batches in between, and another memory order
        np.testing.assert_array_equal(f(moved, axis=(2, 0)), f(t))
        close(f(t, base=2), f(t) / math.log(2), rtol=1e-6)
    close(info.joint_entropy(t, axis=(0, 1, 2)), info.entropy(t.reshape(-1)), rtol=1e-6)


# --- samples ------------------------------------------------------------------------------


def samples(kind, n=400):
    x, noise = rng(0).integers(0, 6, n), rng(1).integers(0, 3, n)
    y = x // 2 + noise
    if kind == "text":
        return np.array(list("abcdef"))[x], np.array(["p", "q", "r", "s", "tu"])[y]
    if kind == "far apart":
        return x.astype(np.int64) * 2**60 - 2**62, y * 10**6
    if kind == "float":
        return x / 4, y.astype(np.float32)
    if kind == "bool":
        return x > 2, y > 1
    return x.astype(kind), (y - (2 if np.dtype(kind).kind == "i" else 0)).astype(kind)


KINDS = ["int8", "uint8", "int64", "uint64", "bool", "float", "text", "far apart"]


@pytest.mark.parametrize("cells", [1 << 24, 0])
@pytest.mark.parametrize("kind", KINDS)
def test_samples(backend, monkeypatch, kind, cells):
    """The same as from a table, also where one would be too large."""
    monkeypatch.setattr(info.samples, "CELLS", cells)
    x, y = samples(kind)
    a, b = (np.unique(v, return_inverse=True)[1] for v in (x, y))
    table = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(table, (a, b), 1)
    near = {"rtol": 1e-13}
    close(info.entropy_from_samples(x), info.entropy(table.sum(1)), **near)
    close(info.joint_entropy_from_samples(x, y), info.joint_entropy(table), **near)
    given_y = info.conditional_entropy(table, axis=(1, 0))
    close(info.conditional_entropy_from_samples(x, y), given_y, **near)
    close(info.conditional_entropy_from_samples(x, given=y, base=2), given_y / math.log(2), **near)
    mutual = info.mutual_information_from_samples(x, y)
    close(mutual, info.mutual_information(table), rtol=1e-11)
    close(mutual, info.mutual_information_from_samples(list(y), list(x)), rtol=1e-11)


def test_samples_of_scikit_learn(backend):
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    for kind in KINDS:
        x, y = samples(kind)
        close(info.mutual_information_from_samples(x, y), metrics.mutual_info_score(x, y))
    many, more = rng(2).integers(0, 10**6, (2, 20_000))  # 4e8 cells: no table is made
    score = metrics.mutual_info_score(many, more)
    close(info.mutual_information_from_samples(many, more), score)


def test_few_samples(backend):
    assert np.isnan(info.entropy_from_samples([]))
    assert np.isnan(info.mutual_information_from_samples([], []))
    assert info.entropy_from_samples([7, 7]) == 0
    assert info.entropy_from_samples([np.nan, np.nan, 1.0, 2.0], base=2) == 1.5
    ends = np.array([-(2**63), 2**63 - 1])
    assert info.entropy_from_samples(ends, base=2) == 1
    assert info.entropy_from_samples(np.array([2**64 - 1, 2**64 - 2], np.uint64), base=2) == 1


def test_samples_that_do_not_fit():
    with pytest.raises(ValueError, match=r"x must have one axis, got shape \(2, 2\)"):
        info.entropy_from_samples([[1, 2], [3, 4]])
    with pytest.raises(ValueError, match="x and given must have the same length, got 2 and 3"):
        info.conditional_entropy_from_samples([1, 2], [1, 2, 3])
    with pytest.raises(TypeError, match="y has labels that cannot be sorted"):
        info.mutual_information_from_samples([1, 2], np.array([1, "a"], object))


# --- other libraries ----------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1])
def test_scipy(backend, axis):
    stats = pytest.importorskip("scipy.stats", reason="SciPy is not installed")
    special = pytest.importorskip("scipy.special")
    distance = pytest.importorskip("scipy.spatial.distance")
    p, q = (probabilities((30, 40), np.float64, seed=s, zeros=not s) for s in (0, 1))
    for base in None, 2, 10:
        close(info.entropy(p, axis=axis, base=base), stats.entropy(p, axis=axis, base=base))
        ours = info.kl_divergence(p, q, axis=axis, base=base)
        close(ours, stats.entropy(p, q, axis=axis, base=base))
        ours = info.js_divergence(p, q, axis=axis, base=base)
        close(ours, distance.jensenshannon(p, q, axis=axis, base=base) ** 2)
    a, b = p / p.sum(axis, keepdims=True), q / q.sum(axis, keepdims=True)
    close(info.kl_divergence(a, b, axis=axis), special.rel_entr(a, b).sum(axis))
    close(info.entropy(a, axis=axis), special.entr(a).sum(axis))
    close(info.kl_divergence([1, 1], [1, 0]), special.rel_entr([0.5, 0.5], [1, 0]).sum())


def test_torch(backend):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x, y = (torch.from_numpy(logits((5, 30), np.float64, seed)) for seed in (0, 1))
    log_p, log_q = (torch.log_softmax(v, -1) for v in (x, y))
    right = torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
    ours = info.kl_divergence_from_logits(x, y)
    assert isinstance(ours, torch.Tensor)
    close(ours, right)
    close(info.entropy(torch.exp(log_p)), torch.distributions.Categorical(logits=x).entropy())


# --- special values -----------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("n", [4, 150, 5000])
def test_what_is_no_distribution(backend, n, dtype):
    good = np.ones(n, dtype)
    bad = []
    for value in -1.0, np.nan, -np.nan, np.inf, -np.inf:
        p = good.copy()
        p[n // 3] = value
        bad.append(p)
    bad += [np.zeros(n, dtype), -good, good[:0]]
    for p in bad:
        q = good[: len(p)]
        values = [info.entropy(p), info.perplexity(p)]
        for name in MEASURES[1:]:
            values += [getattr(info, name)(p, q), getattr(info, name)(q, p)]
        assert np.isnan(values).all(), p[:3]
        if len(p):
            table = np.stack([p, q])
            if (p == 0).all():
                table[1] = 0
            for name in "joint_entropy", "conditional_entropy", "mutual_information":
                assert np.isnan(getattr(info, name)(table)), (name, p[:3])
    both = np.stack([good, bad[0]], 1)
    np.testing.assert_array_equal(np.isnan(info.entropy(both, axis=0)), [False, True])


@dtypes
@pytest.mark.parametrize("n", [4, 150, 5000])
def test_zeros(backend, n, dtype):
    p, q = np.ones((2, n), dtype)
    p[1] = q[2] = 0
    for axis in 0, 1:
        a, b = (np.stack([v, v], 1 - axis) for v in (p, q))
        assert (info.kl_divergence(a, b, axis=axis) == np.inf).all()
        assert (info.cross_entropy(a, b, axis=axis) == np.inf).all()
        assert (info.perplexity(a, b, axis=axis) == np.inf).all()
        assert np.isfinite(info.js_divergence(a, b, axis=axis)).all()
        b[...] = a
        close(info.entropy(a, axis=axis), np.log(n - 1), rtol=4e-7)
        assert (info.kl_divergence(a, b, axis=axis) == 0).all()
    apart = np.zeros((2, n), dtype)
    apart[0, : n // 2] = apart[1, n // 2 :] = 1
    close(info.js_divergence(*apart), np.log(2), rtol=4e-7)
    assert info.entropy(np.eye(n, dtype=dtype)[1]) == 0


@dtypes
@pytest.mark.parametrize("n", [4, 150, 5000])
def test_special_logits(backend, n, dtype):
    x, y = logits((n,), dtype), logits((n,), dtype, 1)
    for value in np.nan, np.inf, None:
        bad = np.full(n, -np.inf, dtype)
        if value is not None:
            bad = x.copy()
            bad[n // 2] = value
        for axis in 0, 1:
            a, b = (np.stack([v, v], 1 - axis) for v in (bad, y))
            results = [
                *info.entropy_from_logits_with_grad(a, axis=axis),
                info.kl_divergence_from_logits(a, b, axis=axis),
                info.kl_divergence_from_logits(b, a, axis=axis),
            ]
            for result in results[:1] + results[2:]:
                assert np.isnan(result).all()
            assert np.isnan(results[1].astype(np.float64)).any()
    x[1] = -np.inf
    p = soft(x)
    tolerance = {"rtol": 8 * np.finfo(compute(dtype)).eps}
    value, grad = info.entropy_from_logits_with_grad(x)
    close(value, float(h(p).value), **tolerance)
    assert grad[1] == 0
    close(info.kl_divergence_from_logits(x, y), float(kl(p, soft(y)).value), **tolerance)
    assert info.kl_divergence_from_logits(y, x) == np.inf
    y[1] = -np.inf
    close(info.kl_divergence_from_logits(x, y), float(kl(p, soft(y)).value), **tolerance)
    assert info.kl_divergence_from_logits(x, x) == 0


# --- gradients ----------------------------------------------------------------------------


@dtypes
@shapes
def test_gradients(backend, shape, axis, dtype):
    x, y = logits(shape, dtype), logits(shape, dtype, 1)
    p, q = soft(last(x, axis)), soft(last(y, axis))
    unit = math.log(2)

    def check(grad, right, scale):
        assert grad.dtype == dtype
        limit = 24 * np.finfo(compute(dtype)).eps
        half = dtype not in (np.float64, np.float32)
        rounding = 2.0 ** (-8 if dtype == DTYPES["bf16"] else -11) if half else 0
        error = np.abs(widen(last(grad, axis)) - right)
        assert (error <= limit * scale + rounding * np.abs(right) + (1e-7 if half else 0)).all()

    value, grad = info.entropy_from_logits_with_grad(x, axis=axis, base=2)
    np.testing.assert_array_equal(value, info.entropy_from_logits(x, axis=axis, base=2))
    centered = -np.log(p) - h(p).value[..., None]
    check(grad, p * centered / unit, p * (np.abs(np.log(p)) + h(p).value[..., None]))
    value, q_grad, p_grad = info.kl_divergence_from_logits_with_grad(
        x, y, axis=axis, base=2, p_grad=True
    )
    np.testing.assert_array_equal(value, info.kl_divergence_from_logits(x, y, axis=axis, base=2))
    check(q_grad, (q - p) / unit, p + q)
    divergence = kl(p, q)
    right = p * (np.log(p / q) - divergence.value[..., None])
    check(p_grad, right / unit, p * (10 + np.abs(np.log(p / q)) + divergence.scale[..., None]))
    two = info.kl_divergence_from_logits_with_grad(x, y, axis=axis, base=2)
    assert len(two) == 2
    np.testing.assert_array_equal(two[1], q_grad)


@pytest.mark.parametrize("axis", [0, 1])
def test_finite_differences(backend, axis):
    x, y = logits((5, 4), np.float64), logits((5, 4), np.float64, 1)
    step = 1e-6

    def slopes(f, x):
        result = np.empty_like(x)
        for i in np.ndindex(x.shape):
            d = np.zeros_like(x)
            d[i] = step
            result[i] = np.sum(f(x + d) - f(x - d)) / (2 * step)
        return result

    near = {"rtol": 1e-7, "atol": 1e-8}
    grad = info.entropy_from_logits_with_grad(x, axis=axis)[1]
    close(grad, slopes(lambda x: info.entropy_from_logits(x, axis=axis), x), **near)
    _, q_grad, p_grad = info.kl_divergence_from_logits_with_grad(x, y, axis=axis, p_grad=True)
    close(q_grad, slopes(lambda y: info.kl_divergence_from_logits(x, y, axis=axis), y), **near)
    close(p_grad, slopes(lambda x: info.kl_divergence_from_logits(x, y, axis=axis), x), **near)


@pytest.mark.parametrize(("shape", "axis"), [((40, 10), -1), ((6, 300), -1), ((30, 9), 0)])
def test_gradients_in_place(backend, shape, axis):
    x, y = logits(shape, np.float32), logits(shape, np.float32, 1)
    value, grad = info.entropy_from_logits_with_grad(x, axis=axis)
    out = x.copy()
    again = info.entropy_from_logits_with_grad(out, axis=axis, out=out)
    assert again[1] is out
    np.testing.assert_array_equal(again[0], value)
    np.testing.assert_array_equal(out, grad)
    right = info.kl_divergence_from_logits_with_grad(x, y, axis=axis, p_grad=True)
    for which in 0, 1:
        both = [x.copy(), y.copy()]
        ours = info.kl_divergence_from_logits_with_grad(
            *both, axis=axis, p_grad=True, out=both[which]
        )
        assert ours[1] is both[which]
        for a, b in zip(ours, right, strict=True):
            np.testing.assert_array_equal(a, b)


# --- arrays -------------------------------------------------------------------------------


@with_one_dtype("layout", list(LAYOUTS))
def test_layouts(backend, layout, dtype):
    for axis in 0, 1, 2:
        for name in "entropy", "kl_divergence", "kl_divergence_from_logits":
            args = arguments(name, (5, 6, 7), dtype, axis)
            right = getattr(info, name)(*args, axis=axis)
            relaid = [LAYOUTS[layout](a) for a in args]
            eps = np.finfo(compute(dtype)).eps
            close(getattr(info, name)(*relaid, axis=axis), right, rtol=16 * eps)
            # one of them laid out in another way
            mixed = [relaid[0], *args[1:]]
            close(getattr(info, name)(*mixed, axis=axis), right, rtol=16 * eps)


@pytest.mark.parametrize("name", [*MEASURES[1:], "kl_divergence_from_logits"])
def test_broadcasting(backend, name):
    f = getattr(info, name)
    p, q = arguments("kl_divergence", (4, 5, 9), np.float32, -1)
    for a, b in (p, q[0, 0]), (p[0, 0], q), (p[:, :1], q[:1]), (p[:1], q), (p, q[:, :1]):
        whole = np.broadcast_arrays(a, b)
        right = f(*(v.copy() for v in whole))
        assert right.shape == (4, 5)
        close(f(a, b), right, rtol=1e-6)
        close(f(*whole), right, rtol=1e-6)
    for axis in 0, 1:
        right = f(p, np.broadcast_to(q[:1, :1], p.shape).copy(), axis=axis)
        close(f(p, q[:1, :1], axis=axis), right, rtol=1e-6)
    wide = f(p, q.astype(np.float64))
    assert wide.dtype == np.float64
    close(wide, f(p, q), rtol=1e-5)
    assert f(p.astype(np.float16), q.astype(DTYPES["bf16"])).dtype == np.float32


def test_broadcast_gradients(backend):
    x, y = logits((4, 5, 9), np.float32), logits((9,), np.float32, 1)
    right = info.kl_divergence_from_logits_with_grad(x, np.broadcast_to(y, x.shape).copy())
    ours = info.kl_divergence_from_logits_with_grad(x, y)
    np.testing.assert_array_equal(ours[1], right[1])
    assert ours[1].flags.writeable


def test_empty(backend):
    for shape, axis in ((0, 5), -1), ((3, 0), 0), ((2, 0, 4), 2):
        empty = np.ones(shape, np.float32)
        rest = np.delete(shape, axis)
        for name in [*MEASURES, "entropy_from_logits", "kl_divergence_from_logits"]:
            args = (empty,) if "entropy" in name and "cross" not in name else (empty, empty)
            assert getattr(info, name)(*args, axis=axis).shape == tuple(rest)
    assert info.mutual_information(np.ones((0, 3, 4))).shape == (0,)
    assert np.isnan(info.joint_entropy(np.ones((2, 0, 4)))).all()
    assert np.isnan(info.mutual_information(np.ones((2, 3, 0)))).all()


@pytest.mark.parametrize("shape", [(2**40, 0, 3), (0, 2**40, 3), (0, 2**40, 2**20)])
def test_no_elements_of_a_huge_shape(backend, shape):
    """At once: no kernel goes along an empty row, or wants memory for each of many outcomes."""
    x = np.empty(shape, np.float32)
    for axes in [(0, 1), (1, 0), (2, 1), (0, 2), (1, 2)]:
        rest = tuple(np.delete(shape, axes))
        if rest[0] < 2**30:
            for measure in info.joint_entropy, info.conditional_entropy, info.mutual_information:
                result = measure(x, axis=axes)
                assert result.shape == rest
                assert np.isnan(result).all()
    for axis in range(3):
        rest = tuple(np.delete(shape, axis))
        if 0 not in rest:
            continue
        assert info.entropy(x, axis=axis).shape == rest
        for measure in info.kl_divergence, info.js_divergence, info.cross_entropy:
            assert measure(x, x, axis=axis).shape == rest
        assert info.entropy_from_logits_with_grad(x, axis=axis)[1].shape == shape
        assert info.kl_divergence_from_logits_with_grad(x, x, axis=axis)[1].shape == shape


@pytest.mark.parametrize("shape", [(70_000, 3), (500, 700), (1, 200_000), (3, 150, 400)])
def test_any_number_of_threads_gives_the_same_bits(threaded, threads, shape):
    axis = 1
    calls = [(name, {}) for name in [*MEASURES[:4], *LOGITS]]
    calls.append(("kl_divergence_from_logits_with_grad", {"p_grad": True}))
    calls.append(("entropy_from_logits_with_grad", {}))
    for name, options in calls:
        args = arguments(name, shape, np.float32, axis)
        results = []
        for n in 1, 2, 5:
            threads(n)
            result = getattr(info, name)(*args, axis=axis, **options)
            results.append(result if isinstance(result, tuple) else (result,))
        for other in results[1:]:
            for a, b in zip(other, results[0], strict=True):
                np.testing.assert_array_equal(a, b)
    tables = probabilities((shape[0], 4, shape[-1] // 4 + 1), np.float32)
    for f in info.mutual_information, info.conditional_entropy:
        results = []
        for n in 1, 2, 5:
            threads(n)
            results.append(f(tables))
        np.testing.assert_array_equal(results[0], results[1])
        np.testing.assert_array_equal(results[0], results[2])


# --- errors -------------------------------------------------------------------------------


def test_what_does_not_fit():
    p = np.ones((3, 4), np.float32)
    for base in 1, 0, -2, math.inf, math.nan, 0.5:
        with pytest.raises(ValueError, match="base must be a finite number above 1, got"):
            info.entropy(p, base=base)
    for base in "2", [2], None, 1j:
        if base is not None:
            with pytest.raises(TypeError, match="base must be a number, got"):
                info.entropy(p, base=base)
    with pytest.raises(ValueError, match="axis 2 is out of bounds"):
        info.entropy(p, axis=2)
    with pytest.raises(TypeError, match=r"axis must be an integer, got 1\.5"):
        info.kl_divergence(p, p, axis=1.5)
    with pytest.raises(ValueError, match="0-d"):
        info.entropy(1.0)
    with pytest.raises(TypeError, match=r"p must be float64, .* got dtype complex128"):
        info.entropy([1j])
    message = r"p and q must have shapes that can be broadcast, got \(3, 4\) and \(3,\)"
    with pytest.raises(ValueError, match=message):
        info.cross_entropy(p, p[:, 0])
    with pytest.raises(ValueError, match=r"axis must name two axes, got \(0,\)"):
        info.mutual_information(p, axis=(0,))
    with pytest.raises(ValueError, match="two axes"):
        info.conditional_entropy(p[None], axis=(0, 1, 2))
    with pytest.raises(TypeError, match="axis must be a sequence of integers, got 1"):
        info.joint_entropy(p, axis=1)
    with pytest.raises(ValueError, match="repeated axis"):
        info.joint_entropy(p, axis=(0, 0))
    with pytest.raises(ValueError, match="out must have shape"):
        info.entropy_from_logits_with_grad(p, out=np.ones((3, 5), np.float32))
    before = p.copy()
    with pytest.raises(ValueError, match="base must be"):
        info.entropy_from_logits_with_grad(p, out=p, base=1)
    np.testing.assert_array_equal(p, before)  # nothing was written


def test_arrays_on_a_gpu_are_refused():
    class OnGPU:
        @property
        def __cuda_array_interface__(self):
            return {"shape": (3,), "typestr": "<f4", "data": (0, False)}

    with pytest.raises(fastce.BackendError, match="no kernels of information for GPUs"):
        info.entropy(OnGPU())
    with pytest.raises(fastce.BackendError, match="no kernels of information for GPUs"):
        info.kl_divergence(np.ones(3), OnGPU())


def test_every_name_is_documented_with_an_example():
    assert "information" not in dispatch.GPU_OPS
    for name in info.__all__:
        doc = getattr(info, name).__doc__
        assert ">>> " in doc, name
        assert "Returns" in doc, name


def test_rare_cells_of_a_table(backend):
    """Rows and columns so rare that the product of their shares is below all numbers."""
    mutual = fastce.information.mutual_information
    rows = fastce.softmax(np.array([0, -60, -60, -60], "f4")).reshape(2, 2)
    q = np.exp(-60.0)
    right = q * (60 - np.log(4)) - 2 * q * np.log(2) + q  # sum p log(p / y), to first order of q
    np.testing.assert_allclose(mutual(rows), right, rtol=1e-5)
    for dtype, rare in ("f4", 1e-22), ("f4", 1e-25), ("f8", 1e-200):
        table = np.array([[1, 0], [0, rare]], dtype)
        np.testing.assert_allclose(mutual(table), rare * (1 - np.log(rare)), rtol=1e-6)
    margins = np.array([1, 1e-200, 2]), np.array([3, 1e-200])
    assert 0 <= mutual(np.outer(*margins)) < 1e-199


def test_js_divergence_of_the_smallest_numbers(backend):
    js = fastce.information.js_divergence
    assert js([1.0, 0.0], [1.0, 5e-324]) == 0
    for p, q in ([1e-45, 1], [0, 1]), ([1e30, 1e-15], [1e30, 0]):
        assert 0 <= js(np.array(p, "f4"), np.array(q, "f4")) < 1e-40


@pytest.mark.parametrize("kind", ["f8", "f2", "bf16", "O"])
def test_nan_is_one_label(kind):
    nan = float("nan")
    labels = np.array([1.0, 2.0, nan, 1.0, 2.0, nan, 1.0])
    labels = labels.astype(BF16 if kind == "bf16" else kind)
    right = fastce.information.entropy([3, 2, 2])
    assert fastce.information.entropy_from_samples(labels) == pytest.approx(right)
    mutual = fastce.information.mutual_information_from_samples(labels, labels)
    assert mutual == pytest.approx(right)


def test_a_table_has_two_axes():
    with pytest.raises(ValueError, match=r"table must have two axes or more, got shape \(2,\)"):
        fastce.information.mutual_information([1, 2])


# --- both ends of the range, and equal terms --------------------------------------------------


def log_shares(x, of_logits=False):
    """Shares and their logarithms, in longdouble."""
    x = x.astype(np.longdouble)
    row_max = x.max(axis=-1, keepdims=True)
    with np.errstate(divide="ignore"):
        log_w = x - row_max if of_logits else np.log(x / row_max)
    w = np.exp(log_w)
    others = w.copy()
    np.put_along_axis(others, x.argmax(axis=-1)[..., None], 0, axis=-1)
    sumexp_m1 = others.sum(axis=-1, keepdims=True)
    return w / (1 + sumexp_m1), log_w - np.log1p(sumexp_m1)


def exact(p, q):
    """Entropy of p, cross-entropy and KL: longdouble has the range for all ratios of float64."""
    (a, log_a), (_, log_b) = log_shares(p), log_shares(q)
    a, log_a, log_b = a[a > 0], log_a[a > 0], log_b[a > 0]
    terms = a * -log_a, a * -log_b, a * (log_a - log_b)
    return [float(t.sum()) for t in terms]


BEYOND = {  # of the largest element a vector keeps no digits of the smallest
    np.float32: [(2e38, 1e-7), (2, 1.4e-45), (3e38, 1e-45), (1, 1e-37)],
    np.float64: [(1.5e308, 1e-15), (2, 5e-324), (1e308, 1e-300), (1, 1e-307)],
    BF16: [(2e38, 1e-7), (2, 1e-40), (3e38, 1e-40), (1, 1e-37)],
}


@pytest.mark.parametrize("dtype", BEYOND, ids=["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("n", [2, 3, 130, 5000])
def test_elements_far_below_the_largest(backend, n, dtype):
    """float32 [2e38, 1e-7] had an infinite entropy; q = [2, 1.4e-45] an infinite divergence."""
    info_of = np.finfo(compute(dtype))
    near = {"rtol": 4 * info_of.eps, "atol": 2 * float(info_of.smallest_subnormal)}
    rows = [np.array([large] + [small] * (n - 1)).astype(dtype) for large, small in BEYOND[dtype]]
    ones = np.ones(n, dtype)
    few = ones.copy()
    few[0] = 0
    for p, q in [(p, p) for p in rows] + [(ones, q) for q in rows] + [(few, q) for q in rows]:
        entropy, cost, divergence = exact(p, q)
        for axis in 0, 1:
            a, b = (np.stack([v, v, ones], 1 - axis) for v in (p, q))
            close(info.entropy(a, axis=axis)[:2], entropy, **near)
            close(info.cross_entropy(a, b, axis=axis)[:2], cost, **near)
            close(info.kl_divergence(a, b, axis=axis)[:2], divergence, **near)
            close(info.perplexity(a, axis=axis)[:2], math.exp(entropy), rtol=16 * info_of.eps)
            if cost < 80:
                ours = info.perplexity(a, b, axis=axis)[:2]
                close(ours, math.exp(cost), rtol=200 * info_of.eps)
            close(info.entropy(a, axis=axis)[2], math.log(n), rtol=4 * info_of.eps)
    for p in rows:
        assert info.kl_divergence(p, few[::-1]) == np.inf  # a share above 0, however small
        assert info.cross_entropy(p, few[::-1]) == np.inf
        assert info.cross_entropy(p, p) == info.entropy(p)
        assert 0 < info.js_divergence(p, ones) <= np.log(2)
        table = np.stack([p, p])
        close(info.mutual_information(table), 0, atol=near["atol"] + 4 * info_of.tiny)
        entropy = exact(p, ones)[0]
        close(info.conditional_entropy(table), entropy, **near)
        close(info.joint_entropy(table), entropy + math.log(2), **near)


@pytest.mark.parametrize("n", [3, 130, 5000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gradients_are_nan_where_either_is_no_distribution(backend, n, dtype):
    good = np.zeros(n, dtype)
    good[0] = 1000  # the others have p = 0
    for value in np.nan, np.inf, -np.inf:
        bad = logits((n,), dtype)
        bad[1 if value > -np.inf or np.isnan(value) else slice(None)] = value
        for axis in 0, 1:
            x, y = (np.stack([v, v], 1 - axis) for v in (good, bad))
            for args in (x, y), (y, x):
                results = info.kl_divergence_from_logits_with_grad(*args, axis=axis, p_grad=True)
                assert all(np.isnan(r).all() for r in results)
            assert all(np.isnan(r).all() for r in info.entropy_from_logits_with_grad(y, axis=axis))


def exact_kl(p, q, log_p, log_q):
    """By p * log(p / q) - p + q, as a series where p and q are nearly equal."""
    w = (q - p) / p
    near = np.where(np.abs(w) < 0.01, w, 0)
    series = np.zeros_like(w)
    for k in range(13, 1, -1):  # powers of longdouble would take a minute
        series = -near * series + p.dtype.type(1) / k
    series *= near**2
    d = p * np.where(np.abs(w) < 0.01, series, w - (log_q - log_p))
    return T(d.sum(axis=-1), np.abs(p * (log_p - log_q)).sum(axis=-1))


def equal_terms(n, dtype):
    """Rows of one large and many equal elements, of two kinds of these, and of large and small."""
    r = rng(n)
    small = np.exp(r.uniform(-18, 0, (3, 20, 1)))
    small[:, 0] = 2.49 * 2.0**-24
    p = np.repeat(small, n, axis=2)
    p[1, :, ::2] = np.exp(r.uniform(-18, 0, (20, 1)))
    p[2, :, : n // 2] *= 1e-3
    p[..., n // 2] = 1.3
    return p.reshape(60, n).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("n", [60, 128, 200, 1000, 3771, 4102, 40_000])
def test_equal_terms(backend, n, dtype):
    """All are rounded in the same direction: plain sums were up to 41 ULP off."""
    p = equal_terms(n, dtype)[:: 5 if n == 40_000 else 1]  # truths in longdouble take seconds
    q = np.roll(p, -len(p) // 3, axis=0)
    wide = dtype == np.float64
    for of_logits, names in (False, TRUTHS), (True, LOGITS):
        x, y = (np.log(p), np.log(q)) if of_logits else (p, q)
        (a, log_a), (b, log_b) = log_shares(x, of_logits), log_shares(y, of_logits)
        truths = {"entropy": plain(-a * log_a), "kl_divergence": exact_kl(a, b, log_a, log_b)}
        if not of_logits:
            m = (a + b) / 2
            of_p, of_q = (exact_kl(v, m, np.log(v), np.log(m)) for v in (a, b))
            truths["cross_entropy"] = plain(-a * log_b)
            truths["js_divergence"] = T(*((u + v) / 2 for u, v in zip(of_p, of_q, strict=True)))
        for name in names:
            truth = truths[name.removesuffix("_from_logits")]
            if of_logits and name.startswith("kl"):  # each log share is rounded
                truth = T(truth.value, (a * (np.abs(log_a) + np.abs(log_b))).sum(axis=-1))
            args = (x,) if "entropy" in name and "cross" not in name else (x, y)
            for axis in (-1, 0) if n < 40_000 else (-1,):
                moved = [np.ascontiguousarray(np.moveaxis(v, -1, axis)) for v in args]
                result = getattr(info, name)(*moved, axis=axis)
                limit = (8 if of_logits else 4) + (2 if wide else 0)
                assert_close(result, truth, limit, f"{name} over axis {axis}")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_pairs_on_either_side_of_a_threshold(backend, dtype):
    """Small elements are scaled before they are divided. Where only one of two nearly equal ones
    was, a term was -inf: in a tenth of the rows of two softmaxes.
    """
    rng = np.random.default_rng(0)
    threshold = 2.0**-63 if dtype == np.float32 else 2.0**-500
    p, q = rng.uniform(0.1, 1, (2, 4000, 3))
    p[:, 2] = threshold * np.exp2(rng.uniform(-2, 3, 4000))
    q[:, 2] = p[:, 2] * rng.uniform(0.5, 2, 4000)
    p, q = p.astype(dtype), q.astype(dtype)
    for f in info.kl_divergence, info.js_divergence:
        for axis in 0, 1:
            a, b = (p, q) if axis else (np.ascontiguousarray(p.T), np.ascontiguousarray(q.T))
            # what lies below 1e-19 adds less than that to any of them
            close(f(a, b, axis=axis), f(p[:, :2], q[:, :2]), rtol=1e-5, atol=1e-6)
    wide = [np.tile(a, (1, 100)) for a in (p, q)]  # rows, not tiles
    close(info.kl_divergence(*wide), info.kl_divergence(p, q), rtol=1e-5, atol=1e-6)


def test_sums_of_very_different_size(backend):
    """Where elements of a row are far below its largest, and the rows far apart."""
    a, b = np.array([1e150, 1e-180]), np.array([1e-200, 1e-200])
    close(info.kl_divergence(a, b), math.log(2), rtol=1e-15)
    close(info.cross_entropy(a, b), math.log(2), rtol=1e-15)
    close(info.kl_divergence(b, a), 379.23339316345766, rtol=1e-15)
    close(info.kl_divergence(b[None].T, a[None].T, axis=0), 379.23339316345766, rtol=1e-15)
    close(info.kl_divergence(np.array([1e-300, 5e-324]), b), math.log(2), rtol=1e-15)
