"""`fastce.dask` against fastce on the whole array, for many ways to cut it into chunks."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.truths import BF16

import fastce

dask = pytest.importorskip("dask", reason="Dask is not installed")
da = pytest.importorskip("dask.array", reason="Dask is not installed")

import fastce.dask as fd  # noqa: E402

N, C = 12, 10
CHUNKS = {
    "whole": (N, C),
    "rows": (5, C),
    "classes": (N, 4),
    "both": (5, 3),
    "one column": (N, 1),
    "uneven": ((1, 7, 4), (2, 5, 1, 2)),
    "empty chunks": ((0, 5, 0, 7), (0, 4, 0, 6)),
}
chunked = pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
dtypes = pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, BF16], ids=str)
EPS = {"float64": 1e-14, "float32": 1e-6, "float16": 1e-3, "bfloat16": 8e-3}


@pytest.fixture(autouse=True)
def _in_this_thread():
    with dask.config.set(scheduler="synchronous"):
        yield


def close(found, expected, dtype=None, scale=1.0):
    """Equal to some last places of `dtype`, infinity and NaN included."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    eps = EPS[str(np.dtype(dtype or expected.dtype))]
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    np.testing.assert_allclose(found, expected, rtol=4 * eps, atol=eps * scale)


def logits(dtype=np.float64, shape=(N, C), spread=4.0, seed=0):
    return (spread * np.random.default_rng(seed).standard_normal(shape)).astype(dtype)


def labels(shape=(N,), classes=C, seed=1):
    return np.random.default_rng(seed).integers(0, classes, shape)


def split(a, chunks):
    return da.from_array(a, chunks=chunks)


# --- softmax ------------------------------------------------------------------------------


@chunked
@dtypes
def test_log_softmax(chunks, dtype):
    x = logits(dtype)
    for name in "logsumexp", "softmax", "log_softmax":
        result = getattr(fd, name)(split(x, chunks))
        expected = getattr(fastce, name)(x)
        assert result.dtype == expected.dtype == dtype
        close(result.compute(), expected)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_axes(axis):
    x = logits(shape=(6, 5, 4))
    chunks = (4, 2, 3)
    lse = fd.logsumexp(split(x, chunks), axis=axis, keepdims=True)
    close(lse.compute(), fastce.logsumexp(x, axis=axis, keepdims=True))
    result = fd.log_softmax(split(x, chunks), axis=axis)
    assert result.chunks == split(x, chunks).chunks
    close(result.compute(), fastce.log_softmax(x, axis=axis))
    t = labels(np.delete(x.shape, axis), x.shape[axis])
    loss, grad = fd.cross_entropy_with_grad(split(x, chunks), t, axis=axis)
    expected = fastce.cross_entropy_with_grad(x, t, axis=axis)
    assert grad.chunks == split(x, chunks).chunks
    close(loss.compute(), expected[0])
    close(grad.compute(), expected[1])


def test_masked_blocks_and_special_values():
    """Blocks of -inf, rows of it, NaN and infinity in one block of several."""
    x = logits(np.float32)
    x[0, :4] = -np.inf
    x[1, 4:] = -np.inf
    x[2] = -np.inf
    x[3, 5] = np.nan
    x[4, 5] = np.inf
    x[5, 5], x[5, 1] = np.nan, np.inf
    x[6] = 1e4 + x[6]
    for chunks in (5, 2), (N, 4), (3, 1):
        for name in "logsumexp", "softmax", "log_softmax":
            result = getattr(fd, name)(split(x, chunks)).compute()
            close(result, getattr(fastce, name)(x))


def test_a_dominating_logit_keeps_the_digits_of_the_others():
    x = np.array([[50.0, 0, 0, 0, 0, 0], [0, 3, 60, 1, 0, 0], [1e4, 9980, 0, 0, 9970, 1]])
    top = [0, 2, 0]
    for dtype in np.float64, np.float32:
        for chunks in (3, 1), (2, 2), (1, 3), (3, 4):
            given = x.astype(dtype)
            expected = fastce.cross_entropy(given, top, reduction="none")
            assert 0 < expected.min() < 1e-20
            loss, grad = fd.cross_entropy_with_grad(split(given, chunks), top, reduction="none")
            right = fastce.cross_entropy_with_grad(given, top, reduction="none")[1]
            eps = 64 * np.finfo(dtype).eps  # exp(-50), whose argument is rounded twice
            np.testing.assert_allclose(loss.compute(), expected, rtol=eps)
            np.testing.assert_allclose(grad.compute(), right, rtol=eps)
            np.testing.assert_allclose(
                fd.log_softmax(split(given, chunks)).compute(), fastce.log_softmax(given), rtol=eps
            )


# --- cross-entropy ------------------------------------------------------------------------

OPTIONS = {
    "plain": {},
    "sum": {"reduction": "sum"},
    "rows": {"reduction": "none"},
    "ignored": {"ignore_index": 3},
    "smoothed": {"label_smoothing": 0.1},
    "all smooth": {"label_smoothing": 1.0},
    "z_loss": {"z_loss": 1e-3},
    "weights": {"weight": np.linspace(0, 2, C)},
    "all": {
        "weight": np.linspace(0, 2, C),
        "label_smoothing": 0.2,
        "z_loss": 0.01,
        "ignore_index": 3,
    },
}


@chunked
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("kind", ["labels", "probabilities"])
def test_cross_entropy(chunks, options, kind):
    x, t = logits(), labels()
    t[2] = 3
    if kind == "probabilities":
        if "ignore_index" in options:
            options = {k: v for k, v in options.items() if k != "ignore_index"}
        t = fastce.softmax(logits(seed=5))
    elif "ignore_index" in options:
        x[t == 3] = np.nan
    loss, grad = fd.cross_entropy_with_grad(split(x, chunks), t, **options)
    expected = fastce.cross_entropy_with_grad(x, t, **options)
    assert loss.dtype == np.float64
    assert grad.chunks == split(x, chunks).chunks
    close(loss.compute(), expected[0], scale=C)
    close(fd.cross_entropy(split(x, chunks), t, **options).compute(), expected[0], scale=C)
    close(grad.compute(), expected[1])


@chunked
@dtypes
def test_cross_entropy_dtypes(chunks, dtype):
    x, t = logits(dtype), labels().astype(np.uint8)
    for target in t, fastce.softmax(logits(np.float32)):
        loss, grad = fd.cross_entropy_with_grad(
            split(x, chunks), target, label_smoothing=0.1, weight=np.arange(C), reduction="sum"
        )
        expected = fastce.cross_entropy_with_grad(
            x, target, label_smoothing=0.1, weight=np.arange(C), reduction="sum"
        )
        close(loss.compute(), expected[0])
        close(grad.compute(), expected[1], scale=C)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_masked_vocabularies(options):
    """The loss of a label of probability 0 is infinite; other such classes add nothing."""
    x, t = logits(), labels()
    x[:, 4:6] = -np.inf
    x[3, 6:8] = -np.inf
    t[0], t[1], t[2:] = 4, 5, t[2:] % 4
    soft = np.zeros((N, C))
    soft[:, :3] = 1 / 3
    soft[5, 5] = 0.5
    targets = [t] if "ignore_index" in options else [t, soft]
    for target in targets:
        expected = fastce.cross_entropy_with_grad(x, target, **options | {"reduction": "none"})
        for chunks in (5, 2), (N, 3), (4, 1):
            found = fd.cross_entropy_with_grad(
                split(x, chunks), target, **options | {"reduction": "none"}
            )
            for a, b in zip(dask.compute(*found), expected, strict=True):
                close(a, b, scale=C)


def test_dask_targets_and_weights_in_chunks_of_their_own():
    x, t, w = logits(), labels(), np.linspace(1, 2, C)
    given = split(x, (5, 3)), split(t, 7)
    close(fd.cross_entropy(*given, weight=split(w, 4)).compute(),
        fastce.cross_entropy(x, t, weight=w))  # fmt: skip


def test_one_row_and_no_axes():
    x = logits(shape=(C,))
    for chunks in C, 3:
        for reduction in "mean", "sum", "none":
            loss, grad = fd.cross_entropy_with_grad(split(x, chunks), 4, reduction=reduction)
            expected = fastce.cross_entropy_with_grad(x, 4, reduction=reduction)
            close(loss.compute(), expected[0])
            close(grad.compute(), expected[1])
        close(fd.log_softmax(split(x, chunks)).compute(), fastce.log_softmax(x))
        close(fd.logsumexp(split(x, chunks)).compute(), fastce.logsumexp(x))


def test_every_row_ignored():
    for chunks in (5, C), (5, 3):
        loss, grad = fd.cross_entropy_with_grad(split(logits(), chunks), np.full(N, -100))
        assert np.isnan(loss.compute())
        np.testing.assert_array_equal(grad.compute(), np.zeros((N, C)))


def test_nan_targets_are_not_lost():
    x, t = logits(), fastce.softmax(logits(seed=2))
    t[1, 7] = np.nan
    for chunks in (5, C), (5, 3):
        rows = fd.cross_entropy(split(x, chunks), t, reduction="none").compute()
        assert np.flatnonzero(np.isnan(rows)).tolist() == [1]


# --- information --------------------------------------------------------------------------

MEASURES = "entropy", "cross_entropy", "kl_divergence", "js_divergence"
OF_LOGITS = "entropy_from_logits", "kl_divergence_from_logits"


def arrays_of(name, *pair):
    return pair[:1] if name.startswith("entropy") else pair


@chunked
@pytest.mark.parametrize("name", [*MEASURES, *OF_LOGITS])
def test_information(chunks, name):
    p, q = logits(), logits(seed=3)
    if name in MEASURES:
        p, q = np.exp(p), np.exp(q)
        p[:, 4], p[1, 5:], q[2, 5:], q[:, 4] = 0, 0, 0, 0
        p[3], q[4], p[5, 2], q[6, 3] = 0, 0, -1, np.nan
        p[7] = np.eye(C)[6]
    else:
        p[:, 4], p[1, 5:], q[2, 5:], q[:, 4] = -np.inf, -np.inf, -np.inf, -np.inf
        p[3], q[4], p[5, 2], q[6, 3] = -np.inf, -np.inf, np.inf, np.nan
        p[7] += 80 * np.eye(C)[6]
    for dtype in np.float64, np.float32:
        given = arrays_of(name, p.astype(dtype), q.astype(dtype))
        result = getattr(fd.information, name)(
            *(split(a, chunks) for a in given), base=2, keepdims=True
        )
        expected = getattr(fastce.information, name)(*given, base=2, keepdims=True)
        assert result.dtype == dtype
        close(result.compute(), expected, scale=1e-9)  # small ones have their digits, too


def test_masses_whose_product_underflows():
    p, q = (np.exp(-500.0 - np.array(a)) for a in ((0, 1, 2, 3), (3, 0, 2, 1)))
    for name in MEASURES:
        given = arrays_of(name, p, q)
        result = getattr(fd.information, name)(*(split(a, 2) for a in given))
        close(result.compute(), getattr(fastce.information, name)(*given))


def test_divergences_of_nearly_equal_distributions():
    p = np.random.default_rng(0).dirichlet(np.ones(C), N)
    q = p * (1 + 1e-6 * np.random.default_rng(1).standard_normal(p.shape))
    for name in "kl_divergence", "js_divergence":
        expected = getattr(fastce.information, name)(p, q)
        assert expected.max() < 1e-11
        result = getattr(fd.information, name)(split(p, (5, 3)), split(q, (5, 3)))
        np.testing.assert_allclose(result.compute(), expected, rtol=1e-8)


# --- attention ----------------------------------------------------------------------------

ATTENTION = {
    "plain": {},
    "causal": {"is_causal": True},
    "decoding": {"is_causal": True, "q_offset": 6},
    "before the keys": {"is_causal": True, "q_offset": -4},
    "window": {"window": (3, 1), "q_offset": 2},
    "lengths": {"kv_lengths": 8, "softcap": 2.0, "scale": 0.7},
}


@pytest.mark.parametrize("options", ATTENTION.values(), ids=ATTENTION)
@pytest.mark.parametrize("keys", [13, 4, (1, 7, 5), 1], ids=str)
@dtypes
def test_attention(options, keys, dtype):
    q, k, v = logits(dtype, (2, 4, 7, 8), 1), logits(dtype, (2, 4, 13, 8), 1), logits(
        dtype, (2, 4, 13, 5), 1, 2
    )  # fmt: skip
    given = (split(a, (1, 2, n, -1)) for a, n in ((q, 3), (k, keys), (v, keys)))
    out, lse = fd.scaled_dot_product_attention(*given, return_lse=True, **options)
    expected = fastce.scaled_dot_product_attention(q, k, v, return_lse=True, **options)
    assert (out.shape, out.dtype) == (expected[0].shape, expected[0].dtype)
    loose = {"float64": 10, "float32": 10, "float16": 2, "bfloat16": 2}[str(np.dtype(dtype))]
    for a, b in zip(dask.compute(out, lse), expected, strict=True):
        close(a, b, scale=loose, dtype=dtype)


@pytest.mark.parametrize("kind", ["allowed", "added", "per head"])
def test_attention_masks_and_grouped_heads(kind):
    rng = np.random.default_rng(0)
    q, k, v = (logits(shape=(2, h, n, 8), spread=1) for h, n in ((4, 7), (2, 13), (2, 13)))
    mask = {
        "allowed": rng.random((7, 13)) < 0.4,
        "added": rng.standard_normal((2, 1, 7, 13)),
        "per head": rng.random((4, 1, 13)) < 0.7,
    }[kind]
    options = {"attn_mask": mask, "enable_gqa": True}
    given = split(q, (1, 2, 4, 8)), split(k, (1, 1, 5, 8)), split(v, (1, 1, 5, 8))
    close(fd.scaled_dot_product_attention(*given, **options).compute(),
        fastce.scaled_dot_product_attention(q, k, v, **options), scale=10)  # fmt: skip


@pytest.mark.parametrize(
    ("dtype", "size"),
    [("f4", -1e9), ("f4", -1e30), ("f4", np.finfo("f4").min), ("f8", -1e300), ("f2", -6e4)],
    ids=str,
)
def test_attention_of_rows_of_large_numbers(dtype, size):
    """Blocks of 3 and 17 keys count by their keys, whatever lse is rounded to."""
    q, k, v = (logits(dtype, (2, n, w), 1, n + w) for n, w in ((5, 4), (20, 4), (20, 3)))
    q[:, ::2] = 0
    mask = np.zeros((5, 20), dtype)
    mask[::2] = size
    given = (split(a, (1, c, -1)) for a, c in ((q, 4), (k, (3, 17)), (v, (3, 17))))
    out, lse = fd.scaled_dot_product_attention(*given, attn_mask=mask, return_lse=True)
    expected = fastce.scaled_dot_product_attention(q, k, v, attn_mask=np.zeros_like(mask))
    close(out.compute(), expected, scale=10)
    np.testing.assert_allclose(lse.compute()[:, ::2], size, rtol=1e-3)


def test_attention_of_large_scores_that_are_equal():
    """Without a mask, and with a boolean one."""
    q, k, v = np.full((5, 1), 1e4, "f4"), np.full((20, 1), 1e4, "f4"), logits("f4", (20, 3))
    k[::2] = 1e3
    seen = np.arange(20) != 5
    given = [split(a, (c, -1)) for a, c in ((q, 4), (k, (3, 17)), (v, (3, 17)))]
    for mask, rows in (None, v[1::2]), (seen, v[1::2][seen[1::2]]):
        found = fd.scaled_dot_product_attention(*given, attn_mask=mask).compute()
        close(found, np.broadcast_to(rows.mean(axis=0), (5, 3)), scale=10)


def test_attention_of_many_key_blocks_and_two_axes():
    """More blocks than one task merges; and one of them decides alone."""
    q, k, v = (logits(shape=s, spread=1, seed=i) for i, s in enumerate([(5, 8), (90, 8), (90, 3)]))
    k[17] = 300 * q[2]
    given = split(q, (2, 8)), split(k, (1, 8)), split(v, (1, 3))
    found = fd.scaled_dot_product_attention(*given, return_lse=True)
    expected = fastce.scaled_dot_product_attention(q, k, v, return_lse=True)
    for a, b in zip(dask.compute(*found), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13)


# --- lazy, bounded, the same --------------------------------------------------------------


def test_nothing_is_computed_before_it_is_asked_for():
    read = []

    def block(block_id):
        read.append(block_id)
        return np.zeros((4, 5))

    x = da.map_blocks(block, chunks=((4, 4, 4), (5, 5)), dtype=np.float64, meta=np.empty((0, 0)))
    results = [
        fd.logsumexp(x),
        fd.log_softmax(x),
        *fd.cross_entropy_with_grad(x, labels()),
        fd.information.js_divergence(abs(x), abs(x)),
        fd.scaled_dot_product_attention(x.rechunk((4, 10)), x.rechunk((4, 10)), x.rechunk((4, 10))),
    ]
    assert read == []
    results[0].compute()
    assert sorted(read) == [(i, j) for i in range(3) for j in range(2)]
    del read[:]
    dask.compute(*results[2:4])
    assert len(read) == 6  # once for both


def test_no_chunk_is_larger_than_those_that_come_in():
    x = da.zeros((400, 3000), chunks=(100, 500), dtype=np.float32)
    q = da.zeros((8, 256, 64), chunks=(1, 64, 64), dtype=np.float32)
    soft = da.zeros((400, 3000), chunks=(100, 500), dtype=np.float32)
    results = [
        *fd.cross_entropy_with_grad(x, labels((400,), 3000), label_smoothing=0.1),
        *fd.cross_entropy_with_grad(x, soft),
        fd.log_softmax(x),
        fd.information.js_divergence(abs(x) + 1, abs(x) + 1),
        fd.scaled_dot_product_attention(q, q, q),
    ]
    largest = []
    made = dask.callbacks.Callback(
        posttask=lambda key, value, *_: largest.append(getattr(value, "nbytes", 0))
    )
    results = [result.sum() for result in results]  # which would be put together as a whole
    with made:
        dask.compute(*results[:-1], optimize_graph=False)
    assert max(largest) == 100 * 500 * 4
    del largest[:]
    with made:
        dask.compute(results[-1], optimize_graph=False)
    assert max(largest) <= fd._attention.FAN_IN * 64 * 65 * 4  # what one task merges


def test_the_same_bits_for_any_number_of_workers():
    x, t = logits(np.float32, (60, 40)), labels((60,), 40)
    q = logits(np.float32, (1, 50, 8))
    given = split(x, (7, 9)), split(q, (1, 9, 8))
    results = [
        *fd.cross_entropy_with_grad(given[0], t, z_loss=0.1),
        fd.scaled_dot_product_attention(*given[1:] * 3),
    ]
    one = dask.compute(*results, scheduler="synchronous")
    for workers in 2, 5:
        for a, b in zip(
            one, dask.compute(*results, scheduler="threads", num_workers=workers), strict=True
        ):
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_threads(threads):
    """One for each task, or as many as were asked for; the process's own number stays."""
    threads(3)
    seen = []

    def counted(rows):
        seen.append(fastce.get_num_threads())
        return rows

    def compute():
        del seen[:]
        graph, tasks = fd._graph, fd._blocks
        x = split(logits(), (5, C))
        graph.blocks(tasks.call, (0, 1), (x, (0, 1)), function=counted, dtype=x.dtype).compute()
        return set(seen)

    assert compute() == {1}
    with dask.config.set({"fastce.num-threads": 2}):
        assert compute() == {2}
    assert fastce.get_num_threads() == 3


def test_processes():
    """A cluster of two: values, the error of a label, and the bits."""
    distributed = pytest.importorskip("distributed", reason="distributed is not installed")
    x, t = logits(np.float32, (64, 50)), labels((64,), 50)
    q = logits(np.float64, (2, 33, 8))
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with (
        dask.config.set(scheduler=None),
        distributed.LocalCluster(processes=True, **options) as cluster,
        distributed.Client(cluster) as client,
    ):
        loss, grad = fd.cross_entropy_with_grad(split(x, (16, 20)), t, label_smoothing=0.1)
        heads = split(q, (1, 11, 8))
        attended = fd.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
        js = fd.information.js_divergence(split(abs(x), (16, 20)), split(abs(x) + 1, (16, 20)))
        found = client.gather(client.compute([loss, grad, attended, js]))
        assert len(client.scheduler_info()["workers"]) == 2
        bad = t.copy()
        bad[41] = 50
        with pytest.raises(IndexError, match=r"target\[41\] is 50, out of range for 50 classes"):
            fd.cross_entropy(split(x, (16, 20)), bad).compute()
    expected = [
        *fastce.cross_entropy_with_grad(x, t, label_smoothing=0.1),
        fastce.scaled_dot_product_attention(q, q, q, is_causal=True),
        fastce.information.js_divergence(abs(x), abs(x) + 1),
    ]
    for a, b in zip(found, expected, strict=True):
        close(a, b, scale=10)
    alone = dask.compute(loss, grad, attended, js, scheduler="synchronous")
    assert [np.asarray(a).tobytes() for a in found] == [np.asarray(a).tobytes() for a in alone]


# --- errors -------------------------------------------------------------------------------

X = da.zeros((N, C), chunks=(5, 4))
P = da.ones((N, C), chunks=(5, 5))
Q = da.zeros((2, 4, 8), chunks=(1, 2, 8))
unknown = X[da.zeros(N, chunks=5) < 1]
ERRORS = [
    (lambda: fd.logsumexp(np.zeros(3)), TypeError, "x must be a Dask array, got ndarray"),
    (lambda: fd.logsumexp(X, axis=2), ValueError, "axis 2"),
    (lambda: fd.logsumexp(X, axis=0.5), TypeError, "axis must be an integer, got 0.5"),
    (lambda: fd.softmax(X.astype(complex)), TypeError, "x must be float64.* got dtype complex128"),
    (lambda: fd.log_softmax(unknown), ValueError, "chunks of known size"),
    (lambda: fd.cross_entropy(X, np.zeros(5, int)), ValueError, r"shape \(12,\).* got \(5,\)"),
    (lambda: fd.cross_entropy(X, np.zeros(N)), ValueError, "must have the shape of logits"),
    (lambda: fd.cross_entropy(X, np.zeros(N, bool)), TypeError, "got dtype bool"),
    (lambda: fd.cross_entropy(X, P), ValueError, "must have the chunks of logits"),
    (lambda: fd.cross_entropy(X, abs(X), ignore_index=1), ValueError, "ignore_index=1 has no"),
    (lambda: fd.cross_entropy(X, labels(), weight=[1.0]), ValueError, r"weight must have shape"),
    (lambda: fd.cross_entropy(X, labels(), reduction="max"), ValueError, "reduction must be"),
    (lambda: fd.cross_entropy(X, labels(), label_smoothing=2), ValueError, "from 0 to 1, got 2"),
    (lambda: fd.information.kl_divergence(X, P), ValueError, "same shape and chunks"),
    (lambda: fd.information.entropy(P, base=1), ValueError, "base must be"),
    (lambda: fd.scaled_dot_product_attention(X, X, X), ValueError, "last axis of q must be one"),
    (lambda: fd.scaled_dot_product_attention(Q, Q.rechunk(8), Q), ValueError, "leading axes"),
    (lambda: fd.scaled_dot_product_attention(Q, Q, Q.rechunk((1, 4, 8))), ValueError, "of keys"),
    (lambda: fd.scaled_dot_product_attention(Q, Q, Q.astype("f4")), TypeError, "one dtype"),
    (lambda: fd.scaled_dot_product_attention(Q, Q[0], Q), ValueError, "equally many axes"),
    (lambda: fd.scaled_dot_product_attention(Q, Q, Q, kv_lengths=5), ValueError, "0 to the 4 keys"),
    (lambda: fd.scaled_dot_product_attention(Q, Q, Q, q_offset=[1, 2]), TypeError, "one integer"),
    (lambda: fd.scaled_dot_product_attention(Q, Q, Q, softcap=-1), ValueError, "softcap must be"),
    (
        lambda: fd.scaled_dot_product_attention(Q, Q, Q, attn_mask=np.zeros((3, 4))),
        ValueError, r"attn_mask must broadcast to \(2, 4, 4\), got shape \(3, 4\)",
    ),
    (
        lambda: fd.scaled_dot_product_attention(Q, Q, Q, attn_mask=np.zeros((4, 4), int)),
        TypeError, "attn_mask must be boolean or of q's dtype",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), ERRORS)
def test_errors_come_at_once(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("chunks", [(2, C, 3), (2, 4, 3)], ids=str)
def test_a_bad_label_is_named_by_its_place_in_the_whole_array(chunks):
    t = labels((N, 5))
    t[7, 4] = -3
    x = split(logits(shape=(N, C, 5)), chunks)
    for result in fd.cross_entropy_with_grad(x, t, axis=1):
        with pytest.raises(IndexError, match=r"target\[7, 4\] is -3, out of range for 10 classes"):
            result.compute()


def test_masked_labels_are_refused():
    masked = da.ma.masked_equal(split(labels(), 5), 5)
    for chunks in (5, C), (5, 3):
        with pytest.raises(TypeError, match="target is a masked array"):
            fd.cross_entropy(split(logits(), chunks), masked).compute()


def test_an_empty_chunk_beside_one_row():
    x = split(logits(shape=(1, C)), ((1, 0), 4))
    close(fd.logsumexp(x, keepdims=True).compute(), fastce.logsumexp(x.compute(), keepdims=True))
    p = np.exp(x)
    found = fd.information.entropy(p, keepdims=True).compute()
    close(found, fastce.information.entropy(p.compute(), keepdims=True))


def test_a_mask_of_one_number():
    q = np.random.default_rng(0).standard_normal((2, 6, 4))
    x = split(q, (1, 3, 4))
    for mask, expected in ((True, None), (False, np.zeros((6, 6), bool))):
        found = fd.scaled_dot_product_attention(x, x, x, attn_mask=np.array(mask)).compute()
        close(found, fastce.scaled_dot_product_attention(q, q, q, attn_mask=expected))


def test_without_dask():
    code = "import sys; sys.modules['dask'] = None; import fastce; import fastce.dask"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ
    )
    assert 'ImportError: fastce.dask needs Dask: pip install "dask[array' in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_example():
    pytest.importorskip("zarr", reason="Zarr is not installed")
    pytest.importorskip("distributed", reason="distributed is not installed")
    script = Path(__file__).parents[2] / "examples" / "dask_zarr.py"
    done = subprocess.run(
        [sys.executable, script, "--megabytes", "20", "--chunk-megabytes", "1"],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "The same as block by block" in done.stdout
