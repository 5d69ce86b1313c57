"""categorical_cross_entropy and its gradients, on every backend."""

import itertools

import numpy as np
import pytest
from support.cases import DTYPES
from support.layouts import LAYOUTS
from support.processes import bits
from support.truths import compute, ulp_error, widen

import fastce

LOSS = fastce.categorical_cross_entropy
BACKWARD = fastce.categorical_cross_entropy_backward
BOTH = fastce.categorical_cross_entropy_with_grad
# name -> options; "dense" draws a target of probabilities and "weight" one for each class
OPTIONS = {
    "mean": {},
    "sum": {"reduction": "sum"},
    "ignore": {"ignore_index": 1, "weight": True},
    "smooth": {"label_smoothing": 0.2, "reduction": "none"},
    "clipped": {"epsilon": 0.01, "reduction": "none"},
    "all": {"label_smoothing": 0.1, "ignore_index": 0, "weight": True, "epsilon": 0.004},
    "dense": {"dense": True},
    "dense-clipped": {"dense": True, "epsilon": 0.004, "reduction": "none"},
    "dense-all": {"dense": True, "weight": True, "label_smoothing": 0.3, "reduction": "sum"},
}  # fmt: skip


def draw(shape, dtype, options, axis=-1, seed=0):
    """probs, whose sums are not 1, target, and the options of the call."""
    rng = np.random.default_rng((seed, *shape))
    options = dict(options)
    logits = 2 * rng.standard_normal(shape)
    probs = (np.exp(logits) / np.exp(logits).sum(axis=axis, keepdims=True)) * 1.5
    n, rest = shape[axis], shape[:axis] + shape[axis:][1:]
    if options.pop("dense", False):
        target = rng.dirichlet(np.ones(n), rest)
        target[target < 0.3 / max(n, 1)] = 0
        target = np.moveaxis(target, -1, axis).astype(dtype)
    else:
        target = rng.integers(0, n, rest)
        if "ignore_index" in options:
            target[rng.random(target.shape) < 0.25] = options["ignore_index"]
    if options.pop("weight", False):
        options["weight"] = rng.uniform(0.5, 2, n).astype(compute(dtype))
    return np.ascontiguousarray(probs.astype(dtype)), np.ascontiguousarray(target), options


def truth(
    probs, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0,
    epsilon=1e-7, axis=-1, upstream=1.0,
):  # fmt: skip
    """(value, scale) of the loss and of its gradient, in wider arithmetic."""
    wide = compute(probs.dtype).type
    p = np.moveaxis(widen(probs), axis, -1)
    n = p.shape[-1]
    if target.dtype.kind in "iu":
        kept = target != ignore_index
        q = ((target[..., None] == np.arange(n)) & kept[..., None]).astype(p.dtype)
    else:
        q, kept = np.moveaxis(widen(target), axis, -1).astype(p.dtype), np.full(p.shape[:-1], True)
    w = np.ones(n, p.dtype) if weight is None else widen(weight).astype(p.dtype)
    divisor = (q * w).sum() if target.dtype.kind in "iu" else kept.size
    divisor = divisor if reduction == "mean" else 1
    q = ((1 - p.dtype.type(label_smoothing)) * q + p.dtype.type(label_smoothing) / n) * w
    low, high = p.dtype.type(wide(epsilon)), p.dtype.type(1 - wide(epsilon))
    s = p.sum(axis=-1, keepdims=True)
    u = (p >= low * s) & (p <= high * s)
    c = np.clip(p / s, low, high)
    with np.errstate(divide="ignore", invalid="ignore"):
        cost = np.where(q == 0, 0, -q * np.log(c))
        size = np.where(q == 0, 0, q * (np.where(u, abs(np.log(p)), cost / q) + abs(np.log(s))))
        g = np.where(kept, widen(upstream) / divisor, 0)[..., None]
        pull, less = (u * q).sum(axis=-1, keepdims=True) / s, np.where(u & (q != 0), q / p, 0)
        grad, grad_size = g * (pull - less), abs(g) * (pull + less)
        rows = [np.where(kept, a.sum(axis=-1), 0) for a in (cost, size)]
        loss = rows if reduction == "none" else [a.sum() / divisor for a in rows]
    return loss, [np.moveaxis(np.where(kept[..., None], a, 0), -1, axis) for a in (grad, grad_size)]


def assert_right(result, right, limit, what=""):
    value, scale = right
    error = ulp_error(result, value, scale, compute(np.asarray(result).dtype))
    assert np.shape(result) == value.shape
    assert not error.size or error.max() <= limit, f"{what}: {error.max():.3g} ULP"


def check(probs, target, options, what=""):
    loss, grad = BOTH(probs, target, **options)
    assert loss.dtype == compute(probs.dtype)
    assert grad.dtype == probs.dtype
    right = truth(probs, target, **options)
    doubles = probs.dtype == np.float64  # sums of which are made in nothing wider
    rows = probs.size / probs.shape[options.get("axis", -1)] if doubles and loss.ndim == 0 else 0
    assert_right(loss, right[0], 4 + rows / 4, f"loss {what}")
    assert_right(grad, right[1], 8 if doubles else 4, f"gradient {what}")
    assert bits([LOSS(probs, target, **options)]) == bits([loss])
    ones = np.ones(loss.shape, loss.dtype)
    assert bits([BACKWARD(ones, probs, target, **options)]) == bits([grad])


SHAPES = [((23, 130), -1), ((5, 7), 1), ((40, 9), 0), ((3, 21, 37), 1), ((1, 4500), 1), ((2, 1), 1)]


# 108: which elements the clip cuts depends on the rounding of a dtype, what they cost on options.
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_truth(backend, dtype, name):
    for shape, axis in SHAPES:
        if shape[axis] == 1 and "epsilon" not in OPTIONS[name]:
            continue  # a single class is certain; its loss is the bound of the clip
        probs, target, options = draw(shape, DTYPES[dtype], OPTIONS[name], axis)
        if isinstance(target.flat[0], np.integer) and "ignore_index" in options:
            target.flat[0] = shape[axis] - 1  # a row that counts
        check(probs, target, options | {"axis": axis}, f"{shape}")


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", ["f64", "f32", "f16"])
@pytest.mark.parametrize("dense", [False, True])
def test_backward(backend, dense, dtype, reduction):
    options = OPTIONS["dense-all" if dense else "all"] | {"reduction": reduction}
    probs, target, options = draw((37, 50), DTYPES[dtype], options)
    rows = (37,) if reduction == "none" else ()
    upstream = np.random.default_rng(0).uniform(-2, 2, rows).astype(compute(probs.dtype))
    grad = BACKWARD(upstream, probs, target, **options)
    assert_right(grad, truth(probs, target, **options, upstream=upstream)[1], 5)


# ---- by hand ---------------------------------------------------------------------------------

P = np.array([[0.5, 0.25, 0.25], [0.125, 0.125, 0.75]])


@pytest.mark.parametrize("target_dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("dtype", [DTYPES["f16"], DTYPES["bf16"]], ids=str)
def test_targets_keep_their_precision(backend, dtype, target_dtype):
    rng = np.random.default_rng(0)
    for shape, axis in ((9, 10), 1), ((3, 700), 1), ((2, 9, 70), 1), ((130, 3), 0):
        probs = rng.uniform(0.1, 1, shape).astype(dtype)
        target = (rng.random(shape) ** 3).astype(target_dtype)
        loss, grad = BOTH(probs, target, axis=axis, reduction="none", label_smoothing=0.1)
        rounded = target.astype(np.float32) if target_dtype == np.float64 else target
        right, slopes = truth(
            probs, rounded, axis=axis, reduction="none", label_smoothing=0.1
        )  # fmt: skip
        assert np.max(ulp_error(loss, *right, np.float32)) < 4
        assert np.max(ulp_error(grad, *slopes, dtype)) < 2


def test_uniform_probabilities_of_many_classes(backend):
    """float16 has no 1 / 50000: such a target would sum to 1.0014."""
    even = np.full((2, 50_000), 1 / 50_000)
    loss = LOSS(even.astype(np.float16), even)
    np.testing.assert_allclose(loss, np.log(50_000), rtol=2e-7)


def test_hand_values(backend):
    a, b = np.log(2), np.log(8)
    close = np.testing.assert_allclose
    for eye in (np.arange(3), np.eye(3)):  # sparse and one-hot
        target = eye[[0, 0]]
        close(LOSS(P, target, reduction="none"), [a, b], rtol=2e-15)
        close(LOSS(P, target), (a + b) / 2, rtol=2e-15)
        close(LOSS(P, target, reduction="sum"), a + b, rtol=2e-15)
        both = LOSS(P, eye[[0, 1]], weight=[3.0, 5.0, 7.0], reduction="none")
        close(both, [3 * a, 5 * b], rtol=2e-15)
        smooth = LOSS(P, target, reduction="none", label_smoothing=0.3)
        close(smooth[0], 0.8 * a + 0.2 * np.log(4), rtol=2e-15)
        _, grad = BOTH(P, target, reduction="sum")
        close(grad, [[-1, 1, 1], [-7, 1, 1]], rtol=4e-15)
        grad = BACKWARD(3.0, P, target)
        close(grad, [[-1.5, 1.5, 1.5], [-10.5, 1.5, 1.5]], rtol=4e-15)
    close(LOSS(P, [0, 1], weight=[3.0, 5.0, 7.0]), (3 * a + 5 * b) / 8, rtol=2e-15)
    close(LOSS(P, [0, -100]), a, rtol=2e-15)
    close(LOSS(P, [2, 1], ignore_index=2, reduction="none"), [0, b], rtol=2e-15)


def test_keras_values(backend):
    """Of the docstrings of keras.losses."""
    probs = [[0.05, 0.95, 0], [0.1, 0.8, 0.1]]
    right = [0.0513, 2.303]
    one_hot = LOSS(probs, [[0.0, 1, 0], [0, 0, 1]], reduction="none")
    np.testing.assert_allclose(one_hot, right, atol=5e-4)
    np.testing.assert_allclose(LOSS(probs, [1, 2], reduction="none"), right, atol=5e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_clip(backend, dtype):
    """At 0 and 1, with the epsilon of the compute dtype, 1e-7 also in float16."""
    probs = np.eye(20)[:2].astype(DTYPES[dtype])
    wide = compute(probs.dtype).type
    certain, hopeless = -np.log(1 - np.float64(1 - wide(1 - wide(1e-7)))), -np.log(wide(1e-7))
    assert 0.9e-7 < certain < 1.3e-7
    eye = np.eye(20).astype(probs.dtype)
    for target in [0, 0], eye[[0, 0]]:
        loss, grad = BOTH(probs, target, reduction="none")
        np.testing.assert_allclose(loss, [certain, hopeless], rtol=1e-6)
        assert not grad.astype(float).any()  # what is clipped has no slope
    for target in [0, 0], eye[[0, 0]]:  # no clip
        loss, grad = BOTH(probs, target, reduction="none", epsilon=0)
        np.testing.assert_array_equal(loss, [0, np.inf])
        grad = grad.astype(float)
        np.testing.assert_array_equal(grad[0], (np.arange(20) > 0).astype(float))
        np.testing.assert_array_equal(grad[1], np.where(np.arange(20) == 0, -np.inf, 1))


@pytest.mark.parametrize("dtype", ["f64", "f32"])
def test_on_the_bounds_the_slope_passes(backend, dtype):
    """As TensorFlow's clip, and PyTorch's, have it."""
    real = DTYPES[dtype].type
    at = np.array([0.25, 0.75], real)  # epsilon = 0.25
    for p, passes in [
        (at, [True, True]),
        (np.nextafter(at, [0, 1], dtype=real), [False, False]),
        (np.nextafter(at, [1, 0], dtype=real), [True, True]),
    ]:
        for label in 0, 1:
            for target in [label], np.eye(2, dtype=real)[[label]]:
                grad = BACKWARD(1.0, p[None], target, epsilon=0.25)
                assert grad.any() == passes[label], (p, label)


def test_what_is_not_normalised(backend):
    """Only the proportions of the probabilities matter, as in Keras."""
    for dtype in "f8", "f4":
        probs, target, _ = draw((12, 40), np.dtype(dtype), {})
        dense = np.random.default_rng(0).dirichlet(np.ones(40), 12).astype(dtype)
        for t in target, dense:
            loss, grad = BOTH(probs, t, reduction="none")
            for power in -20, 3, 60:
                scaled = BOTH(np.ldexp(probs, power), t, reduction="none")
                eps = np.finfo(dtype).eps
                np.testing.assert_allclose(scaled[0], loss, rtol=100 * eps)
                np.testing.assert_allclose(np.ldexp(scaled[1], power), grad, rtol=8 * eps, atol=eps)
        tiny = np.array([[5, 0, 5]], dtype) * np.finfo(dtype).smallest_subnormal
        np.testing.assert_allclose(LOSS(tiny, [0]), np.log(2), rtol=1e-6)
        np.testing.assert_allclose(LOSS(tiny, [1]), -np.log(1e-7), rtol=1e-6)
        one_hot = np.array([[0, 1, 0]], dtype)
        np.testing.assert_allclose(LOSS(tiny, one_hot), -np.log(1e-7), rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_hot_is_sparse(backend, dtype):
    for name in "mean", "smooth", "clipped":
        probs, target, options = draw((30, 25), DTYPES[dtype], OPTIONS[name])
        one_hot = np.eye(25)[target].astype(probs.dtype)
        right, ours = BOTH(probs, target, **options), BOTH(probs, one_hot, **options)
        eps = np.finfo(compute(probs.dtype)).eps
        np.testing.assert_allclose(ours[0], right[0], rtol=8 * eps)
        eps = max(eps, 2.0 ** -{"f16": 11, "bf16": 8}.get(dtype, 60))
        a, b = (r[1].astype(np.float64) for r in (ours, right))
        np.testing.assert_allclose(a, b, rtol=8 * eps, atol=4 * eps * np.abs(b).max())


def test_zero_weights_and_targets_cost_nothing(backend):
    probs = np.array([[0.0, 1.0, 1.0]])
    for options in {"epsilon": 0}, {}:
        assert LOSS(probs, [0], weight=[0.0, 1, 1], reduction="sum", **options) == 0
        np.testing.assert_allclose(LOSS(probs, [[0.0, 1, 0]], **options), np.log(2), rtol=1e-15)
        _, grad = BOTH(probs, [[0.0, 1, 0]], **options)
        np.testing.assert_allclose(grad, [[0.5, -0.5, 0.5]], rtol=1e-15)
        loss, grad = BOTH(probs, [[0.0, 0, 0]], **options)
        assert loss == 0
        assert not grad.any()


# ---- rows that are no probabilities, or do not count ------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [0, 1])
def test_bad_rows_are_nan_and_ignored_ones_are_not_read(backend, axis, dtype):
    probs, target, _ = draw((6, 37), DTYPES[dtype], {})
    dense = np.eye(37)[target].astype(probs.dtype)
    right = BOTH(probs, target, reduction="none")
    bad = probs.copy()
    bad[1, 3], bad[2, 36], bad[4, 5], bad[5] = np.nan, -0.01, np.inf, 0
    ignored = np.where(np.arange(6) % 5 == 0, target, -100)
    for t in target, dense, ignored:
        p, q = (np.moveaxis(a, 0, -1).copy() if axis == 0 and a.ndim == 2 else a for a in (bad, t))
        loss, grad = BOTH(p, q, axis=axis, reduction="none")
        grad = np.moveaxis(grad, 0, -1) if axis == 0 else grad
        grad = grad.astype(float)
        kept = (t != -100) if t.ndim == 1 else np.full(6, True)
        wrong = np.array([False, True, True, False, True, True])
        np.testing.assert_array_equal(np.isnan(loss), wrong & kept)
        np.testing.assert_array_equal(np.isnan(grad).all(axis=1), wrong & kept)
        assert not np.isnan(grad[~(wrong & kept)]).any()
        np.testing.assert_array_equal(loss[~kept], 0)
        np.testing.assert_array_equal(grad[~kept], 0)
        np.testing.assert_allclose(loss[0], right[0][0], rtol=1e-6)
    assert np.isnan(LOSS(bad, target))
    dense[3] = np.where(np.arange(37) == 20, np.nan, 0)
    np.testing.assert_array_equal(np.isnan(LOSS(probs, dense, reduction="none")), np.arange(6) == 3)


def test_no_row_counts(backend):
    for shape in (0, 3), (2, 3):
        loss, grad = BOTH(np.full(shape, np.nan, "f4"), np.full(shape[0], -100))
        assert np.isnan(loss)
        assert not grad.any()
        assert LOSS(np.full(shape, np.nan), np.full(shape[0], -100), reduction="sum") == 0
    one = LOSS(np.full(3, np.nan), np.array(-100))
    assert np.isnan(one)
    assert np.isnan(LOSS(np.empty((2, 0)), np.empty((2, 0)), reduction="none")).all()


# ---- arrays -----------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(backend, layout):
    for axis, name in itertools.product(range(3), ("all", "dense-all")):
        options = OPTIONS[name] | {"reduction": "none"}
        probs, target, options = draw((4, 6, 5), np.dtype("f4"), options, axis)
        right = BOTH(probs, target, axis=axis, **options)
        relaid = [LAYOUTS[layout](a) if a.ndim == 3 else a for a in (probs, target)]
        ours = BOTH(*relaid, axis=axis, **options)
        for a, b in zip(ours, right, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape_axis", [((50, 33), 1), ((4, 30, 50), 1)])
def test_in_place(backend, shape_axis, dtype):
    shape, axis = shape_axis
    for name in "all", "dense-all":
        probs, target, options = draw(shape, DTYPES[dtype], OPTIONS[name], axis)
        before, expected = probs.copy(), target.copy()
        right = BOTH(probs, target, axis=axis, **options)
        given = np.full_like(probs, 7)
        assert BOTH(probs, target, axis=axis, **options, out=given)[1] is given
        assert bits([given]) == bits(right[1:])
        np.testing.assert_array_equal(probs, before)
        loss, grad = BOTH(probs, target, axis=axis, **options, out=probs)
        assert grad is probs
        assert bits([loss, grad]) == bits(right)
        np.testing.assert_array_equal(target, expected)
        probs = before.copy()
        assert BACKWARD(1.0, probs, target, axis=axis, **options, out=probs) is probs
        assert bits([probs]) == bits(right[1:])


@pytest.mark.parametrize(
    ("shape", "axis"), [((500, 3000), 1), ((2, 70_000), 1), ((20_000, 7), 1), ((3, 70, 500), 1)]
)
@pytest.mark.parametrize("name", ["all", "dense-all"])
def test_the_same_bits_for_any_number_of_threads(threaded, threads, name, shape, axis):
    probs, target, options = draw(shape, np.dtype("f4"), OPTIONS[name], axis)
    threads(1)
    right = bits(BOTH(probs, target, axis=axis, **options))
    check(probs, target, options | {"axis": axis})
    for count in 2, 5:
        threads(count)
        assert bits(BOTH(probs, target, axis=axis, **options)) == right
    # In place nothing is written past the caches.
    assert bits(BOTH(probs, target, axis=axis, **options, out=probs)) == right


def test_inputs_of_other_kinds(backend):
    right = LOSS(P, [0, 2])
    assert LOSS(P.tolist(), (0, 2)) == right
    assert LOSS(P, np.array([0, 2], "u1")) == right
    assert LOSS(P, np.eye(3, dtype="f4")[[0, 2]]) == LOSS(P, np.eye(3)[[0, 2]])
    assert LOSS([1, 1], 0) == LOSS([0.5, 0.5], 0)


# ---- derivatives and other formulas ------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", OPTIONS)
def test_finite_differences(backend, name, axis):
    probs, target, options = draw((5, 4), np.dtype("f8"), OPTIONS[name], axis)
    rows = np.arange(1.0, 1 + probs.shape[1 - axis])
    grad_loss = rows if options.get("reduction") == "none" else 3.0
    grad = BACKWARD(grad_loss, probs, target, axis=axis, **options)
    step = 1e-6
    for i in np.ndindex(probs.shape):
        d = np.zeros_like(probs)
        d[i] = step * probs[i]
        up, down = (np.sum(grad_loss * LOSS(p, target, axis=axis, **options))
                    for p in (probs + d, probs - d))  # fmt: skip
        slope = (up - down) / (2 * step * probs[i])
        np.testing.assert_allclose(grad[i], slope, rtol=1e-6, atol=1e-7 / probs[i])


@pytest.mark.parametrize("name", ["mean", "smooth", "dense-all"])
def test_as_cross_entropy_of_the_logs(backend, name):
    """Inside the clip, with softmax(log p) = p / s; the gradients by the chain rule."""
    for dtype, eps in ("f8", 2.0**-50), ("f4", 2.0**-20):
        probs, target, options = draw((30, 20), np.dtype(dtype), OPTIONS[name])
        loss, grad = BOTH(probs, target, **options, epsilon=0)
        with fastce.use_backend("reference"):
            right, of_logits = fastce.cross_entropy_with_grad(np.log(probs), target, **options)
        np.testing.assert_allclose(loss, right, rtol=eps)
        np.testing.assert_allclose(grad * probs, of_logits, rtol=32 * eps, atol=eps)


@pytest.mark.parametrize("name", OPTIONS)
def test_torch(backend, name):
    """Its own formula written out: normalise, clip, log, and automatic differentiation."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    probs, target, options = draw((20, 12), np.dtype("f8"), OPTIONS[name])
    p = torch.tensor(probs, requires_grad=True)
    eps = options.pop("epsilon", 1e-7)
    more = {k: torch.tensor(v) if k == "weight" else v for k, v in options.items()}
    log_c = torch.clamp(p / p.sum(dim=1, keepdim=True), eps, 1 - eps).log()
    if target.ndim == 2 or "label_smoothing" in options:
        smoothing, w = options.get("label_smoothing", 0), more.get("weight", 1)
        kept = torch.tensor(target != options.get("ignore_index", -100)).reshape(20, -1).all(1)
        hot = target if target.ndim == 2 else np.eye(12)[target]
        q = ((1 - smoothing) * torch.tensor(hot) + smoothing / 12) * w * kept[:, None]
        rows = -(q * log_c).sum(dim=1)
        divisor = (torch.tensor(hot) * w * kept[:, None]).sum() if target.ndim == 1 else 20
        reduced = {"none": rows, "sum": rows.sum(), "mean": rows.sum() / divisor}
        right = reduced[options.get("reduction", "mean")]
    else:
        right = torch.nn.functional.nll_loss(log_c, torch.tensor(target), **more)
    right.sum().backward()
    loss, grad = BOTH(probs, target, **options, epsilon=eps)
    np.testing.assert_allclose(loss, right.detach().numpy(), rtol=1e-12)
    np.testing.assert_allclose(grad, p.grad.numpy(), rtol=1e-9, atol=1e-12)


# ---- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((P, [0, 3]), {}, IndexError, r"target\[1\] is 3"),
        ((P, [0]), {}, ValueError, r"probs \(2, 3\)"),
        ((P, [[0, 1, 0], [1, 0, 0]]), {}, ValueError, "one-hot targets must be floating"),
        ((P, [[0.5, 0.5]]), {}, ValueError, "shape of probs"),
        ((P, [0, 1]), {"epsilon": 0.5}, ValueError, "epsilon must be .* got 0.5"),
        ((P, [0, 1]), {"epsilon": -1e-9}, ValueError, "got -1e-09"),
        ((P, [0, 1]), {"epsilon": np.nan}, ValueError, "got nan"),
        ((P, [0, 1]), {"label_smoothing": 2}, ValueError, "label_smoothing .* got 2"),
        ((P, [0, 1]), {"reduction": "all"}, ValueError, "'all'"),
        ((P, [0, 1]), {"weight": [1.0]}, ValueError, r"weight must have shape \(3,\)"),
        ((P, P), {"ignore_index": 0}, ValueError, "ignore_index=0 has no meaning"),
        ((P + 1j, [0, 1]), {}, TypeError, "probs must be"),
        ((P, [0, 1]), {"axis": 2}, ValueError, "axis"),
        ((P, [0, 1]), {"out": np.ones((2, 2))}, ValueError, r"out must have shape \(2, 3\)"),
    ],
)
def test_errors(backend, arguments, options, error, message):
    out = options.get("out", np.full_like(P, 7))
    with pytest.raises(error, match=message):
        BOTH(*arguments, **options | {"out": out})
    assert (out == out.flat[0]).all()  # nothing was written
    if "out" not in options:
        with pytest.raises(error, match=message):
            LOSS(*arguments, **options)


def test_out_may_not_be_the_target(backend):
    target = P.copy()
    with pytest.raises(ValueError, match="out may not be the target"):
        BOTH(P, target, out=target)
    np.testing.assert_array_equal(target, P)


def test_on_a_gpu():
    class OnGPU:
        __cuda_array_interface__ = {"shape": (2, 2), "typestr": "<f4", "data": (0, False)}  # noqa: RUF012

    with pytest.raises(fastce.BackendError, match="no kernels of categorical_cross_entropy"):
        LOSS(OnGPU(), [0, 1])
