"""Attention over threads: the same bits for any number, many callers, forks, and little memory.

The work is cut in one way or another: queries in tiles, a few queries in parts of the keys, the
backward by heads, by tiles in order, or in two passes over what has 16 bits. Each shape below takes
one of these ways, and does enough for it to be spread.
"""

import itertools
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support.attention import CASES, Shape, check, draw, run, truth
from support.attention import LARGE_SHAPES as SHAPES
from support.processes import FORK, TESTS, bits, counts_threads, python

import fastce

DTYPES = {"f32": np.float32, "f64": np.float64, "f16": np.float16, "bf16": "bfloat16"}


def dtype_of(name):
    return np.dtype(pytest.importorskip("ml_dtypes").bfloat16 if name == "bf16" else DTYPES[name])


def same_bits(threads, call):
    threads(1)
    right = bits(call())
    for count in 2, 5:
        threads(count)
        for _ in range(2):  # who comes first differs
            assert bits(call()) == right, f"with {count} threads"


def _bits_grid():
    """Each way over the threads with each dtype, and with one of the cases."""
    cases = "plain", "causal-offset", "all"
    for (i, name), (j, dtype) in itertools.product(enumerate(SHAPES), enumerate(DTYPES)):
        case = cases[(i + j) % 3]
        yield pytest.param(SHAPES[name], case, dtype, id=f"{name}-{case}-{dtype}")


@pytest.mark.parametrize(("shape", "case", "dtype"), list(_bits_grid()))
def test_the_same_bits(threaded, threads, shape, case, dtype):
    arrays, options = draw(case, shape, dtype_of(dtype))
    same_bits(threads, lambda: run(*arrays, **options))


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("shape", ["one head", "one group", "many heads", "wide"])
def test_the_same_bits_of_large_lse(threaded, threads, shape, dtype):
    """Rows whose weights are summed again, beside others."""
    arrays, options = draw("plain", SHAPES[shape], dtype_of(dtype))
    mask = np.where(np.arange(SHAPES[shape].length) % 3, 0, -3e4)[:, None].astype(dtype_of(dtype))
    same_bits(threads, lambda: run(*arrays, attn_mask=mask, **options))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", ["one group", "decode", "many heads"])
def test_the_same_bits_for_every_option(threaded, threads, shape, case):
    arrays, options = draw(case, SHAPES[shape], np.float32)
    same_bits(threads, lambda: run(*arrays, **options))


@pytest.mark.parametrize("axes", ["bhLS", "LS", "hL1", "S", "1"])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_the_same_bits_of_the_gradient_of_a_mask(threaded, threads, axes, dtype):
    shape = Shape((2,), 4, 4, 200, 150, 8, 8)
    sizes = dict(zip("bhLS", shape.scores, strict=True), **{"1": 1})
    arrays, _ = draw("plain", shape, dtype_of(dtype))
    mask = np.random.default_rng(0).standard_normal([sizes[a] for a in axes])
    mask = mask.astype(arrays[0].dtype)
    same_bits(threads, lambda: run(*arrays, attn_mask=mask))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", [(1, 1), (8, 2)])
@pytest.mark.parametrize("lengths", [[300, 1, 0, 90, 500], [1] * 40, [64] * 10])
def test_the_same_bits_of_packed_sequences(threaded, threads, lengths, heads, dtype):
    shape = Shape((), *heads, sum(lengths), sum(lengths) + 200 * len(lengths), 16, 16)
    arrays, options = draw("plain", shape, dtype_of(dtype))
    g, q, k, v = (a.swapaxes(0, 1) for a in arrays)
    ends_q = np.cumsum([0, *lengths])
    ends = ends_q, ends_q + 200 * np.arange(len(ends_q))
    options |= {"is_causal": True, "q_offset": 200, "window": (220, 0)}

    def call():
        out, lse = fastce.attention_varlen(q, k, v, *ends, return_lse=True, **options)
        grads = fastce.attention_varlen_backward(g, q, k, v, out, lse, *ends, **options)
        return out, lse, *grads

    same_bits(threads, call)


def test_what_several_threads_give_is_right(threaded, threads):
    """Not only the same: also where more threads than processors wait for each other."""
    threads(5)
    for dtype in DTYPES:
        for name in "one head", "split tiles", "three heads":
            shape = SHAPES[name]._replace(width=4, value_width=4)
            arrays, options = draw("causal-offset", shape, dtype_of(dtype))
            check(*arrays, name, **options)


def test_tiles_in_order_do_not_wait_for_ever(threaded, threads):
    """Tiles that see other keys than those before them, and blocks that a mask leaves out."""
    threads(5)
    shape = Shape((), 1, 1, 700, 700, 8, 8)
    arrays, _ = draw("plain", shape, np.float32)
    allowed = np.ones((700, 700), bool)
    allowed[:128, :300] = allowed[128:256, 96:] = allowed[256:320] = False
    allowed[400:, ::2] = False
    for options in (
        {"window": (10, 0)},
        {"window": (0, 10), "q_offset": -300},
        {"window": (3, -1), "q_offset": 500},
        {"is_causal": True, "q_offset": -400},
        {"attn_mask": allowed},
        {"attn_mask": allowed, "window": (200, 50)},
        {"kv_lengths": 1},
        {"kv_lengths": 0},
    ):
        check(*arrays, str(options), **options)


@counts_threads
@pytest.mark.parametrize("where", SHAPES)
def test_the_threads_are_used(threaded, where):
    """Else the tests above would compare one thread with itself."""
    code = f"""
import os, sys
import numpy as np
sys.path.insert(0, {TESTS!r})
from support.attention import LARGE_SHAPES as SHAPES, draw, run
import fastce
def threads():
    return len(os.listdir("/proc/self/task"))
alone = threads()
(g, q, k, v), options = draw("plain", SHAPES[{where!r}], np.float32)
fastce.set_num_threads(2)
out, lse = fastce.scaled_dot_product_attention(q, k, v, return_lse=True, **options)
assert threads() == alone + 1, threads()
fastce.set_num_threads(3)
fastce.scaled_dot_product_attention_backward(g, q, k, v, out, lse, **options)
few = {threaded!r} == "numba" and threads() == alone + 1  # it cuts less finely
assert few or threads() == alone + 2, threads()
print("used")
"""
    status, output, errors = python(code, FASTCE_BACKEND=threaded)
    assert (status, output) == (0, "used"), errors


# --- many callers -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape",
    [
        Shape((), 1, 1, 140, 200, 16, 8),
        Shape((2,), 4, 2, 70, 100, 8, 8),
        Shape((), 4, 1, 1, 3000, 8, 8),
    ],
    ids=str,
)
def test_many_python_threads_at_once(backend, threads, shape):
    threads(2)
    calls = [draw(case, shape, np.float32, seed) for seed in range(4) for case in ("plain", "all")]
    serial = [bits(run(*arrays, **options)) for arrays, options in calls]
    assert len({r[0][2] for r in serial}) == len(calls)  # each has other data

    def again(worker):
        with fastce.use_backend(backend):  # the choice holds for one thread
            mine = [*calls[worker:], *calls[:worker]]
            return [bits(run(*arrays, **options)) for arrays, options in mine]

    with ThreadPoolExecutor(8) as pool:
        for worker, result in enumerate(pool.map(again, range(8))):
            assert result == [*serial[worker:], *serial[:worker]]


# --- forks --------------------------------------------------------------------------------

OF_ATTENTION = (
    FORK
    + f"""
sys.path.insert(0, {TESTS!r})
import fastce
from support.attention import LARGE_SHAPES as SHAPES, draw, run
def compute():
    fastce.set_num_threads(4)
    results = []
    for name in "decode", "one head", "many heads":
        for dtype in np.float32, np.float16:
            arrays, options = draw("causal-offset", SHAPES[name], dtype)
            results += [a.tobytes() for a in run(*arrays, **options)]
    return results
"""
)


@counts_threads
def test_fork_after_a_parallel_call(threaded):
    """The child has none of the parent's threads; were it to wait for them, it would hang."""
    code = """
alone = threads()
right = compute()
assert threads() == alone + 3, threads()
def child():
    assert compute() == right, "other bits"
    assert threads() == 1, threads()
in_child(child)
assert compute() == right  # the parent goes on as before
print("done")
"""
    status, output, errors = python(OF_ATTENTION + code, FASTCE_BACKEND=threaded)
    assert (status, output) == (0, "done"), errors


@counts_threads
def test_fork_before_the_first_call(threaded):
    """A child that loads the kernels itself may use threads."""
    code = """
def child():
    alone = threads()
    compute()
    assert threads() == alone + 3, threads()
in_child(child)
print("done")
"""
    status, output, errors = python(OF_ATTENTION + code, FASTCE_BACKEND=threaded)
    assert (status, output) == (0, "done"), errors


# --- memory -------------------------------------------------------------------------------


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss has another unit")
@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_no_array_of_queries_by_keys(threaded, dtype):
    """One of float32 would be 1 GiB here."""
    code = f"""
import resource
import numpy as np
import fastce
n, e, dtype = 16384, 8, np.{np.dtype(DTYPES[dtype]).name}
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
def forward_and_backward(n):
    q, k, v = (np.random.default_rng(i).standard_normal((1, n, e)).astype(dtype) for i in range(3))
    out, lse = fastce.scaled_dot_product_attention(q, k, v, return_lse=True, is_causal=True)
    grads = fastce.scaled_dot_product_attention_backward(out, q, k, v, out, lse, is_causal=True)
    return sum(float(np.abs(g).max()) for g in grads)
forward_and_backward(300)  # loads what has to be loaded
before = peak()
assert forward_and_backward(n) > 0
print(peak() - before)
"""
    status, output, errors = python(code, FASTCE_BACKEND=threaded)
    assert status == 0, errors
    assert float(output) < 64


def test_the_same_result_for_long_sequences(threaded, threads):
    """A sample of the queries of a long sequence, against the truth."""
    threads(2)
    (_, q, k, v), _ = draw("plain", Shape((), 1, 1, 6000, 6000, 8, 8), np.float32)
    out, lse = fastce.scaled_dot_product_attention(q, k, v, is_causal=True, return_lse=True)
    for i in 0, 1, 63, 64, 95, 96, 3333, 5999:
        right, norm = truth(q[:, i : i + 1], k[:, : i + 1], v[:, : i + 1])
        np.testing.assert_allclose(out[:, i], right[:, 0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(lse[:, i], norm[:, 0], rtol=1e-6)
