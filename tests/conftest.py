"""Every test that asks for `backend` runs on all of them. A missing backend is a failure."""

import functools
import os

import hypothesis
import pytest

import fastce
from fastce._dispatch import BACKENDS

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


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks for groups
def pytest_collection_modifyitems(items):
    """With `pytest -n 2 --dist loadgroup` one process compiles Numba's kernels, and not both; one,
    the code of users that calls them; one each, the CUDA kernels of attention and all others; and
    one builds a copy of the kernels.
    """
    groups = {"test_vendoring.py": "vendoring"}
    cuda = "test_cuda.py", "test_cuda_attention.py", "test_cuda_binary_cross_entropy.py"
    groups |= dict.fromkeys((*cuda, "test_ptx.py"), "cuda")
    for item in items:
        group = groups.get(item.path.name)
        if group == "cuda" and "attention" in item.nodeid:  # no kernel is in both
            group = "cuda attention"
        if group is None and "numba" in item.nodeid:
            group = "users of numba" if item.path.name.startswith("test_numba") else "numba"
        if group:
            item.add_marker(pytest.mark.xdist_group(group))


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not _has_gpu():
        pytest.skip("there is no NVIDIA GPU here")


@functools.cache
def _has_gpu():
    from numba import cuda

    return cuda.is_available()
