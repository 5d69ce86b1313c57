"""Any number of threads gives the same bits; many callers at once; forks; how many there are."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import SELECTED
from support.cases import CASES, PLAIN
from support.processes import FORK, TESTS, bits, counts_threads, python

import fastce
from fastce._runtime.dispatch import OPS
from fastce._runtime.threads import _cgroup_limit, _threads_left

# Each goes another way through the kernels, and is large enough that they spread it.
SHAPES = {
    "rows": ((300, 5000), -1),
    "few-long-rows": ((2, 300_000), -1),
    "short-rows": ((70_000, 10), -1),
    "panels": ((4, 300, 700), 1),
}
SPREAD = [c for c in CASES if c.name in ("", "mean", "weight", "all", "probs-all")]


# --- the same bits ------------------------------------------------------------------------


def same_bits(case, shape, dtype, axis, threads):
    arguments, options = case.inputs(shape, dtype, axis)
    threads(1)
    right = bits(case.run(arguments, options, axis))
    for count in 2, 5:
        threads(count)
        assert bits(case.run(arguments, options, axis)) == right, f"with {count} threads"
    if case.out_like is not None:  # in place nothing is streamed past the caches: another way
        over = arguments[case.out_like]
        assert bits(case.run(arguments, options, axis, out=over)) == right, "in place"


# 176: each shape is spread in another way. Cases: each op, each sum over rows, each kind of target.
@pytest.mark.parametrize(("shape", "axis"), SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("case", SPREAD, ids=str)
def test_the_same_bits(threaded, threads, case, shape, axis):
    same_bits(case, shape, np.float32, axis, threads)


@pytest.mark.parametrize("shape", ["few-long-rows", "short-rows"])
@pytest.mark.parametrize("case", PLAIN, ids=str)
def test_the_same_bits_in_float16(threaded, threads, case, shape):
    same_bits(case, SHAPES[shape][0], np.float16, SHAPES[shape][1], threads)


@counts_threads
@pytest.mark.parametrize("where", SHAPES)
def test_the_threads_are_used(threaded, where):
    """Else the tests above would compare one thread with itself."""
    shape, axis = SHAPES[where]
    code = f"""
import os, sys
import numpy as np
sys.path.insert(0, {TESTS!r})
from support.cases import PLAIN
import fastce
def threads():
    return len(os.listdir("/proc/self/task"))
alone = threads()
for extra, case in enumerate(PLAIN, 1):  # one more for each op, so that it has to start one
    arguments, options = case.inputs({shape}, np.float32, {axis})
    fastce.set_num_threads(1 + extra)
    case.run(arguments, options, {axis})
    if case.op == "nll_loss" and {where!r} != "short-rows":
        continue  # it reads one element per row, and these are few
    assert threads() == alone + extra, (case.op, threads(), alone, extra)
print("used")
"""
    status, output, errors = python(code, FASTCE_BACKEND=threaded)
    assert (status, output) == (0, "used"), errors


# --- many callers -------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "axis"), [((400, 300), -1), ((2, 9000), -1), ((3, 50, 130), 1)])
def test_many_python_threads_at_once(backend, threads, shape, axis):
    threads(2)
    calls = [(case, *case.inputs(shape, np.float32, axis, seed)) for seed in range(8)
             for case in PLAIN]  # fmt: skip
    serial = [bits(case.run(arguments, options, axis)) for case, arguments, options in calls]
    assert len({r[-1][2] for r in serial}) == len(calls)  # each has other data

    def again(worker):
        with fastce.use_backend(backend):  # the choice holds for one thread
            return [
                bits(case.run(arguments, options, axis))
                for case, arguments, options in calls[worker * len(PLAIN) :][: len(PLAIN)] * 3
            ]

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(again, range(8)))
    for worker, result in enumerate(results):
        assert result == serial[worker * len(PLAIN) :][: len(PLAIN)] * 3


# --- forks --------------------------------------------------------------------------------


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
    in_child(grandchild)
def grandchild():
    assert compute() == right, "other bits"
in_child(child)
assert compute() == right  # the parent goes on as before
print("done")
"""
    status, output, errors = python(FORK + code, FASTCE_BACKEND=threaded)
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
    status, output, errors = python(FORK + code, FASTCE_BACKEND=threaded)
    assert (status, output) == (0, "done"), errors


EVERY_OP = f"""
sys.path.insert(0, {TESTS!r})
def every_op(*ops):  # on one thread, with two allowed
    from support.every_op import bits
    import fastce
    for op in ops:
        fastce.set_num_threads(2)
        result = bits(op, "float32")
        assert threads() == 1, (op, threads())
        fastce.set_num_threads(1)
        assert result == bits(op, "float32"), op
"""

LATE = """
import fastce
fastce.set_num_threads(2)
alone = threads()
x = np.random.default_rng(0).standard_normal((4096, 100), np.float32)
fastce.cross_entropy(x, np.arange(4096) % 100)
assert threads() == alone + 1, threads()
"""


@counts_threads
@pytest.mark.parametrize("op", OPS)
def test_fork_before_an_op_is_loaded(cython, op):
    """A module first loaded in a forked child must not use the threads of the parent."""
    status, output, errors = python(
        FORK + EVERY_OP + LATE + f"in_child(lambda: every_op({op!r})); print('done')",
        FASTCE_BACKEND="cython",
    )
    assert (status, output) == (0, "done"), errors


@counts_threads
def test_multiprocessing_fork_pool(threaded):
    code = """
import multiprocessing
with multiprocessing.get_context("fork").Pool(2) as pool:
    rows = pool.map(fastce.softmax, [x, x + 1, x - 1])
assert all(np.array_equal(a, b) for a, b in zip(rows, map(fastce.softmax, [x, x + 1, x - 1])))
print("done")
"""
    status, output, errors = python(FORK + LATE + code, FASTCE_BACKEND=threaded)
    assert (status, output) == (0, "done"), errors


TORCH = "import torch; torch.set_num_threads(2); torch.randn(4096, 100).softmax(1)"
NUMBA = """
import numba
@numba.njit(parallel=True)
def twice(x):
    result = np.empty_like(x)
    for i in numba.prange(len(x)):
        result[i] = 2 * x[i]
    return result
twice(np.ones(10_000))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux whether a process was forked")
@pytest.mark.parametrize(
    ("backend", "other", "layer"),
    [
        ("cython", "torch", ""),
        ("cython", "numba", "omp"),
        ("numba", "torch", "omp"),
        ("numba", "numba", "omp"),
        ("numba", "numba", "workqueue"),
    ],
)
def test_fork_after_a_parallel_call_of_others(backend, other, layer):
    """fastce is loaded in the child alone, which lacks the threads that its parent had.

    A worker of PyTorch's DataLoader is such a child.
    """
    if backend not in SELECTED:
        pytest.skip(f"FASTCE_TEST_BACKENDS leaves {backend} out")
    pytest.importorskip(other)
    code = f"""
alone = threads()
{TORCH if other == "torch" else NUMBA}
assert threads() > alone, threads()
in_child(lambda: every_op("log_softmax"))
print("done")
"""
    status, output, errors = python(
        FORK + EVERY_OP + code,
        timeout=300,
        FASTCE_BACKEND=backend,
        **({"NUMBA_THREADING_LAYER": layer} if layer else {}),
    )
    assert (status, output) == (0, "done"), errors


# --- little memory for a thread -------------------------------------------------------------


@pytest.mark.parametrize("op", OPS)
def test_small_stacks(cython, op):
    """16 KB are the least that glibc takes; arrays on the stack of a thread ended the process."""
    code = f"""
import sys
sys.path.insert(0, {TESTS!r})
import fastce
from support.every_op import bits
for dtype in "float64", "float16":  # of the largest items, and of those that are converted
    fastce.set_num_threads(2)
    result = bits({op!r}, dtype)
    fastce.set_num_threads(1)
    assert result == bits({op!r}, dtype), dtype
print("done")
"""
    status, output, errors = python(code, FASTCE_BACKEND="cython", OMP_STACKSIZE="16k")
    assert (status, output) == (0, "done"), errors


# --- how many -----------------------------------------------------------------------------


def test_set_and_get(threads):
    for count in 1, 3, np.int64(2), 4096:
        result = threads(count)
        assert result == fastce.get_num_threads() == count
        assert type(result) is type(fastce.get_num_threads()) is int


@pytest.mark.parametrize("wrong", [0, -1, 4097, 2**70])
def test_wrong_number(threads, wrong):
    threads(3)
    with pytest.raises(ValueError, match=f"must be 1 to 4096, got {wrong}"):
        fastce.set_num_threads(wrong)
    assert fastce.get_num_threads() == 3


@pytest.mark.parametrize("wrong", [2.0, "2", None, True, [2]])
def test_wrong_type(threads, wrong):
    threads(3)
    with pytest.raises(TypeError, match="number of threads must be an integer, got"):
        fastce.set_num_threads(wrong)
    assert fastce.get_num_threads() == 3


PRINT = "import fastce; print(fastce.get_num_threads())"


@pytest.mark.parametrize(
    ("variables", "right"),
    [
        ({"FASTCE_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "5"}, 5),
        ({"OMP_NUM_THREADS": "4,2"}, 4),  # one number per level of nested loops
        ({"FASTCE_NUM_THREADS": "3", "OMP_NUM_THREADS": "5"}, 3),
        ({"FASTCE_NUM_THREADS": "", "OMP_NUM_THREADS": " 5 "}, 5),
    ],
    ids=str,
)
def test_variables(variables, right):
    status, output, errors = python(PRINT, **variables)
    assert (status, output) == (0, str(right)), errors


def test_set_num_threads_comes_before_variables():
    status, output, errors = python(
        "import fastce; fastce.set_num_threads(2); print(fastce.get_num_threads())",
        FASTCE_NUM_THREADS="3",
    )
    assert (status, output) == (0, "2"), errors


def test_the_operating_system_decides_without_variables():
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system has no processor affinity")
    status, output, errors = python(
        "import os; os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1]);" + PRINT
    )
    assert (status, output) == (0, "1"), errors
    status, output, errors = python(PRINT)
    assert status == 0, errors
    granted = len(os.sched_getaffinity(0))
    assert int(output) == max(1, min(granted, _cgroup_limit(), 1 + _threads_left()))


@pytest.mark.parametrize("name", ["FASTCE_NUM_THREADS", "OMP_NUM_THREADS"])
@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "5000", "²"])
def test_wrong_variables(name, value):
    status, output, errors = python(PRINT, **{name: value})
    assert status, f"it took {value!r} for {output}"
    last = errors.strip().splitlines()[-1]
    assert last.startswith("ValueError"), errors
    assert value in last
    assert name in last  # who set it must be able to find it


@pytest.mark.parametrize(
    ("files", "right"),
    [
        ({}, 4096),
        ({"cpu.max": "max 100000\n"}, 4096),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 2),  # one and a half: two, of which one waits
        ({"cpu.max": "1000 100000\n"}, 1),
        ({"cpu.max": ""}, 4096),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4096),
        ({"cpu/cpu.cfs_quota_us": "350000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "350000\n"}, 4096),
    ],
    ids=str,
)
def test_cgroup_limit(tmp_path, files, right):
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert _cgroup_limit(tmp_path) == right


@pytest.mark.parametrize(
    ("files", "right"),
    [
        ({}, 4096),
        ({"pids.max": "100\n", "pids.current": "97\n"}, 3),
        ({"pids.max": "max\n", "pids.current": "97\n"}, 4096),
        ({"pids.max": "100\n"}, 4096),
        ({"pids/pids.max": "20\n", "pids/pids.current": "20\n"}, 0),
    ],
    ids=str,
)
def test_threads_left(tmp_path, files, right):
    (tmp_path / "pids").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert _threads_left(tmp_path) == right
