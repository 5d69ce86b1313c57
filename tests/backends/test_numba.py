"""What only the Numba backend has: threading layers, its cache, the time to compile, and the row
functions for loops of users. What it computes is tested with the other backends.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import SELECTED
from support.processes import FORK, python

import fastce

if "numba" not in SELECTED:
    pytest.skip("FASTCE_TEST_BACKENDS leaves numba out", allow_module_level=True)

import numba

from fastce.kernels import numba as rows
from fastce.kernels.numba import _compile, _jit_options

KERNELS = Path(_compile.__file__).parent.parent

# --- threading layers ---------------------------------------------------------------------

MANY_CALLERS = """
from concurrent.futures import ThreadPoolExecutor
import numba
right = compute()
with ThreadPoolExecutor(8) as pool:
    for result in pool.map(lambda _: compute(), range(24)):
        assert result == right, "other bits"
print(numba.threading_layer())
"""


@pytest.mark.parametrize("layer", ["omp", "workqueue"])
def test_many_python_threads_at_once(layer):
    """Numba itself ends the process where two parallel loops start at once over workqueue."""
    status, output, errors = python(
        FORK + MANY_CALLERS, timeout=300, FASTCE_BACKEND="numba", NUMBA_THREADING_LAYER=layer
    )
    assert (status, output) == (0, layer), errors


@pytest.mark.parametrize("layer", ["omp", "workqueue"])
def test_fork_while_others_compute(layer):
    """A lock that another thread holds at the fork would never be released in the child."""
    code = """
import threading
right = compute()
stop = False
def go_on():
    while not stop:
        compute()
others = [threading.Thread(target=go_on) for _ in range(3)]
for other in others:
    other.start()
def child():
    assert compute() == right, "other bits"
for _ in range(5):
    in_child(child)
stop = True
for other in others:
    other.join()
print("done")
"""
    status, output, errors = python(
        FORK + code, timeout=300, FASTCE_BACKEND="numba", NUMBA_THREADING_LAYER=layer
    )
    assert (status, output) == (0, "done"), errors


# --- the cache ----------------------------------------------------------------------------

COMPUTE = """
import sys
import numpy as np
import fastce
x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
print(fastce.logsumexp(x).tobytes().hex())
from fastce.kernels.numba import log_softmax
stats = log_softmax.run_logsumexp.start.stats
print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))
"""


@pytest.mark.slow
def test_compiled_once(tmp_path):
    """Another process finds it in the cache, and how long it took."""
    runs = []
    for _ in range(2):
        status, output, errors = python(
            COMPUTE, 120, FASTCE_BACKEND="numba", NUMBA_CACHE_DIR=str(tmp_path)
        )
        assert status == 0, errors
        runs.append(output.splitlines())
    assert [counts for _, counts in runs] == ["0 1", "1 0"]
    assert runs[0][0] == runs[1][0]
    status, output, errors = python(
        "from fastce._cli import main; main(['info', '--json'])", NUMBA_CACHE_DIR=str(tmp_path)
    )
    ((name, taken),) = json.loads(output)["numba_kernels"].items()
    assert name == "log_softmax: logsumexp float32", errors
    assert 0.1 < float(taken.removesuffix(" s")) < 120


@pytest.mark.slow
def test_nowhere_to_write(tmp_path):
    """Then it is compiled in each process."""
    code = """
from numba.core import caching
(caching.CacheImpl if hasattr(caching, "CacheImpl") else caching._CacheImpl)._locator_classes = []
"""
    status, output, errors = python(code + COMPUTE, 120, FASTCE_BACKEND="numba")
    assert status == 0, errors
    assert output.split()[1] == "0", "found in a cache"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "call", "addition", "results"),
    [
        ("_rows.py", "log_softmax.logsumexp(np.zeros((1, 99, 1)), out[None], threads=1)",
         "@internal\ndef row_state(x, memory, exps):\n    return x[0] + 7, 0.0",
         [np.log(99), 7]),
        ("information/rows.py",
         "information.mutual_information(np.ones((1, 2, 2)), out, unit=1.0, threads=1)",
         "@internal\ndef is_distribution(mass):\n    return False",
         [0, np.nan]),
    ],
)  # fmt: skip
def test_a_change_of_any_file_compiles_anew(tmp_path, file, call, addition, results):
    """Numba itself looks at the file of the function alone, not at those that it imports from."""
    shutil.copytree(KERNELS, tmp_path / "copied", ignore=shutil.ignore_patterns("__pycache__"))
    code = f"""
import sys
import numpy as np
sys.path.insert(0, {str(tmp_path)!r})
from copied.numba import {call.partition(".")[0]}
out = np.empty(1)
{call}
print(float(out[0]).hex())
"""
    source = tmp_path / "copied" / "numba" / file
    for right in results:
        status, result, errors = python(code, 120, NUMBA_CACHE_DIR=str(tmp_path))
        assert status == 0, errors
        np.testing.assert_array_equal(float.fromhex(result), right)
        source.write_text(f"{source.read_text()}\n\n{addition}\n")


# --- rows for loops of the user -----------------------------------------------------------


@numba.njit
def every_row_function(x, label):
    softmax, log_softmax, grad = np.empty_like(x), np.empty_like(x), np.empty_like(x)
    rows.row_softmax(x, softmax)
    rows.row_log_softmax(x, log_softmax)
    loss = rows.row_cross_entropy_with_grad(x, label, grad)
    return rows.row_logsumexp(x), softmax, log_softmax, rows.row_cross_entropy(x, label), loss, grad


ROWS = {
    "short": [0.5, -1.0, 3.0],
    "one": [4.0],
    "far": [50.0, 0.0, 0.0, 0.0],
    "huge": [1e30, -1e30, 1e30],
    "-inf": [-np.inf, 1.0, 2.0],
    "no maximum": [-np.inf, -np.inf],
    "+inf": [np.inf, 1.0],
    "nan": [0.0, np.nan, 2.0],
    "long": np.random.default_rng(0).standard_normal(20_000) * 5,
}


# Contiguous rows of float64 are those of test_rows_in_a_loop_over_threads and of the docstrings.
@pytest.mark.parametrize(("dtype", "step"), [(np.float32, 1), (np.float32, -3), (np.float64, -3)])
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_rows(row, step, dtype):
    """Against the reference, in any stride."""
    memory = np.zeros(3 * len(row), dtype)
    x = memory[:: abs(step)][: len(row)] if step != 1 else memory[: len(row)]
    x = x[::-1] if step < 0 else x
    x[:] = row
    label = len(row) // 2
    total, softmax, log_softmax, loss, same_loss, grad = every_row_function(x, label)
    with fastce.use_backend("reference"):
        y = np.ascontiguousarray(x)
        right_loss, right_grad = fastce.cross_entropy_with_grad(y, label)
        right = fastce.logsumexp(y), fastce.softmax(y), fastce.log_softmax(y), right_loss
    tolerance = {"rtol": 8 * np.finfo(dtype).eps, "atol": 8 * np.finfo(dtype).tiny}
    for ours, theirs in zip((total, softmax, log_softmax, loss), right, strict=True):
        np.testing.assert_allclose(ours, theirs, **tolerance)
    np.testing.assert_array_equal(loss, same_loss)
    np.testing.assert_allclose(grad, right_grad, **tolerance)
    assert softmax.dtype == log_softmax.dtype == grad.dtype == dtype
    # Results may be written over the row, and with any step.
    for memory in x.copy(), np.repeat(x, 2):
        over, between = memory[:: memory.size // x.size], memory[1::2]
        kept = between.copy()
        for write, right_one in (
            (rows.row_softmax, softmax),
            (rows.row_log_softmax, log_softmax),
            (lambda a, b: rows.row_cross_entropy_with_grad(a, label, b), grad),
        ):
            over[:] = x
            write(over, over)
            np.testing.assert_array_equal(over, right_one)
            if memory.size > x.size:
                np.testing.assert_array_equal(between, kept)


def test_no_element():
    x = np.empty(0)
    assert rows.row_logsumexp(x) == -np.inf
    rows.row_softmax(x, x)
    rows.row_log_softmax(x, x)


def test_rows_in_a_loop_over_threads():
    @numba.njit(parallel=True)
    def compute(x, labels):
        losses, grad = np.empty(len(x)), np.empty_like(x)
        for r in numba.prange(len(x)):
            losses[r] = rows.row_cross_entropy_with_grad(x[r], labels[r], grad[r])
        return losses, grad

    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((500, 300)), rng.integers(0, 300, 500)
    losses, grad = compute(x, labels)
    right, right_grad = fastce.cross_entropy_with_grad(x, labels, reduction="none")
    np.testing.assert_allclose(losses, right, rtol=1e-14)
    np.testing.assert_allclose(grad, right_grad, rtol=1e-13, atol=1e-300)


@pytest.mark.parametrize("wrong", [np.zeros((2, 2)), np.zeros(2, np.int64), np.zeros(2, np.uint16)])
def test_what_is_no_row(wrong):
    with pytest.raises(numba.TypingError, match="a row must be a 1-d array of float64 or float32"):
        rows.row_logsumexp(wrong)


# --- half floats --------------------------------------------------------------------------

HALVES = """
import numpy as np
from fastce.kernels.numba import _storage
from fastce.kernels.numba._compile import compiled
@compiled
def widen(a, out):
    for i in range(a.size):
        out[i] = _storage.widen(a[i])
@compiled
def narrow(a, out):
    for i in range(a.size):
        out[i] = _storage.narrow(a[i], out)
every = np.arange(1 << 16).astype(np.uint16)
floats = np.empty(every.size, np.float32)
widen(every, floats)
np.testing.assert_array_equal(floats, every.view(np.float16).astype(np.float32))
# Every half, every middle between two, and the floats next to both.
exact = every.view(np.float16).astype(np.float64)
finite = np.sort(exact[np.isfinite(exact)])
x = np.concatenate([finite, (finite[1:] + finite[:-1]) / 2, [65520, 1e30, np.inf, np.nan, 1e-30]])
x = x.astype(np.float32)
x = np.concatenate([x, np.nextafter(x, np.float32(9e9)), np.nextafter(x, np.float32(-9e9)), -x])
halves = np.empty(x.size, np.uint16)
narrow(x, halves)
with np.errstate(over="ignore"):
    right = x.astype(np.float16)
np.testing.assert_array_equal(halves.view(np.float16), right)
print("by the processor" if _storage.HAS_F16C else "in steps")
"""


@pytest.mark.parametrize("cpu", ["", "generic"])
def test_every_half_float(cpu):
    """Also where Numba compiles for a processor that cannot convert them."""
    status, output, errors = python(HALVES, 120, **({"NUMBA_CPU_NAME": cpu} if cpu else {}))
    assert status == 0, errors
    assert output == "in steps" or not cpu


def test_every_bfloat16():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    every = np.arange(1 << 16).astype(np.uint16)
    x = every.view(ml_dtypes.bfloat16)
    with fastce.use_backend("numba"):  # of one class: x - x, so that NaN and infinity show
        result = fastce.logsumexp(x[:, None])
    np.testing.assert_array_equal(result.astype(np.float32), x.astype(np.float32))


# --- how all of it is compiled ------------------------------------------------------------


def test_no_function_is_compiled_with_fastmath():
    """It would take NaN and infinity for what cannot be, in every function that is called."""
    for path in (KERNELS / "numba").rglob("*.py"):
        assert "fastmath=" not in path.read_text(), path
    assert _compile.OPTIONS["fastmath"] is False  # that of a caller would be inherited


def test_internal_functions_have_no_machine_code():
    """Numba would compile it for itself, which doubles the time of a first call."""
    if "pipeline_class" not in _jit_options.INTERNAL:
        pytest.skip(f"Numba {numba.__version__} is not one of {_jit_options.TESTED}")

    @_jit_options.internal
    def inside(x):
        return x + 1

    @_compile.compiled
    def kernel(x):
        return inside(x) * 2

    assert kernel(3) == 8
    for function, compiled in (inside, False), (kernel, True):
        (result,) = function.overloads.values()
        assert getattr(result.library, "_compiled", False) is compiled


def test_examples_in_docstrings():
    """`pytest --pyargs fastce` does not reach them: kernels/ lies elsewhere."""
    import doctest

    from fastce.kernels.numba import _one_row

    found = [getattr(rows, name) for name in rows.__all__]
    runner = doctest.DocTestRunner()
    for function in found:
        (test,) = doctest.DocTestFinder(recurse=False).find(
            function.py_func, function.__name__, module=_one_row, globs={}
        )
        assert test.examples, function
        assert runner.run(test).failed == 0


# --- vectors ------------------------------------------------------------------------------


@pytest.mark.parametrize(("loop", "divisions"), [("of_logits", 1), ("of_probabilities", 3)])
def test_binary_cross_entropy_is_vectorised(loop, divisions):
    """Its loops divide vectors: for the slope, and for each of two logarithms."""
    from fastce.kernels.numba import binary_cross_entropy as kernels

    function, given = getattr(kernels, loop), (np.full(kernels.TILE, 0.5, np.float32),) * 5

    @_compile.compiled
    def run(a, b, c, d, e):
        function(a, b, c, d, e)

    run(*given)
    (assembly,) = run.inspect_asm().values()
    if "vdivss" not in assembly:
        pytest.skip("not a processor with AVX")
    assert assembly.count("vdivps") >= divisions
