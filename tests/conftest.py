"""Every test that asks for `backend` runs on all of them. A missing backend is a failure.

`pytest --fast` is the fast tier: a sample of each test's cases (see `_sample`).
"""

import functools
import gc
import os
import zlib

import hypothesis
import pytest

import fastce
from fastce._runtime.dispatch import BACKENDS

pytest_plugins = ["support.cuda_fixtures"]

# Before Numba is imported: the most threads that it can be told to use. On two processors, too.
os.environ.setdefault("NUMBA_NUM_THREADS", "8")

# FASTCE_TEST_BACKENDS=reference runs a subset, e.g. where there is no compiler.
_NAMES = os.environ.get("FASTCE_TEST_BACKENDS")
SELECTED = tuple(_NAMES.split(",")) if _NAMES else BACKENDS

# deadline: machines of CI stall. too_slow, differing: `backend` is the same for all examples.
hypothesis.settings.register_profile(
    "fastce",
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[
        hypothesis.HealthCheck.function_scoped_fixture,
        hypothesis.HealthCheck.too_slow,
    ],
)
hypothesis.settings.load_profile("fastce")


@pytest.fixture(params=SELECTED)
def backend(request):
    """The name of the backend that computes inside the test."""
    with fastce.use_backend(request.param):  # raises, and says why, where it is not there
        yield request.param


@pytest.fixture(params=[name for name in SELECTED if name != "reference"])
def threaded(request):
    """The name of the backend that computes inside the test, of those that use threads."""
    with fastce.use_backend(request.param):
        yield request.param


@pytest.fixture
def cython():
    """For tests of what only the Cython backend does."""
    if "cython" not in SELECTED:
        pytest.skip("FASTCE_TEST_BACKENDS leaves cython out")
    with fastce.use_backend("cython"):
        yield


@pytest.fixture
def threads():
    """`set_num_threads`, undone after the test."""
    before = fastce.get_num_threads()
    yield fastce.set_num_threads
    fastce.set_num_threads(before)


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", "error::RuntimeWarning")  # NaN is data: no warning


def pytest_addoption(parser):
    parser.addoption(
        "--fast",
        action="store_true",
        help="a sample of each test's cases, and for CUDA kernels one dtype: `make test`",
    )


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--fast"):
        return
    kept = _sample(items)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


# Left to the full tier: what compiles C or code of users, or runs CUDA kernels or programs.
FULL_ONLY = (
    "test_bench",
    "test_cuda_attention",
    "test_cython_api",
    "test_example",
    "test_numba_jit",
)
DTYPES = {"float64", "float32", "float16", "bfloat16", "f64", "f32", "f16", "bf16"}


def _sample(items):
    """Of each test, cases in which each value of each parameter comes up, and each dtype on each
    backend. They are taken in the order of a checksum of their names, so that a new case elsewhere
    changes none.
    """
    seen, kept = set(), set()
    for item in sorted(items, key=lambda item: zlib.crc32(item.nodeid.encode())):
        test, _, case = item.nodeid.rstrip("]").partition("[")
        values = case.split("-")
        dtypes = DTYPES.intersection(values)
        if item.get_closest_marker("slow") or item.path.name.startswith(FULL_ONLY):
            continue
        if _is_cuda(test) and dtypes - {"float32", "f32"}:
            continue
        values += [(b, t) for b in BACKENDS if b in values for t in dtypes]
        new = {(test, value) for value in values} - seen
        if new:
            seen |= new
            kept.add(item)
    return kept


def pytest_collection_finish():
    """What the tests keep, they keep to the end: the 20,000 of them, and what Numba compiled. To
    look through it for garbage after each 700 new objects was an eighth of the time of compiling.
    """
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)


@pytest.hookimpl(optionalhook=True)  # without pytest-xdist there is none
def pytest_xdist_make_scheduler(config, log):
    """With `pytest -n 2 --dist loadgroup` one process compiles Numba's kernels, and not both; one,
    the code of users that calls them; one each, the CUDA kernels of attention and all others; and
    one builds a copy of the kernels. All others are spread by function.

    Not by pytest-xdist's own mark: version 3.8 writes it where pytest 9.2 does not look for it.
    """
    if config.getvalue("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return _group(nodeid)

    return ByGroup(config, log)


def _group(nodeid):
    """What tests of the same process have in common."""
    file, _, name = nodeid.rpartition("/")[2].partition("::")
    if file == "test_vendoring.py":
        return "vendoring"
    if _is_cuda(file):
        of_attention = "attention" in file + name or "warpgroups" in name  # no kernel is in both
        return "cuda attention" if of_attention else "cuda"
    if "numba" in nodeid:
        return "users of numba" if file.startswith("test_numba") else "numba"
    return nodeid.partition("[")[0]


def _is_cuda(name):
    return name.rpartition("/")[2].startswith(("test_cuda", "test_ptx"))


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not _has_gpu():
        pytest.skip("there is no NVIDIA GPU here")


@functools.cache
def _has_gpu():
    from numba import cuda

    return cuda.is_available()
