"""Fixtures of the tests of CUDA kernels, which run on the machine of `ptx_machine.py`, and with
`pytest -m gpu` on a GPU. Loaded by tests/conftest.py.
"""

import numpy as np
import pytest

import fastce


def pytest_generate_tests(metafunc):
    """Tests in `GPU_ONLY` of a module take too long on the machine."""
    for fixture in "cuda_backend", "gpu":
        if fixture in metafunc.fixturenames:
            where = [pytest.param("gpu", marks=pytest.mark.gpu)]
            if metafunc.function not in getattr(metafunc.module, "GPU_ONLY", ()):
                where.insert(0, "machine")
            metafunc.parametrize(fixture, where, indirect=True)


@pytest.fixture
def install_machine(monkeypatch):
    """`install_machine(...)`: a `simulated_gpu.Machine` in place of the driver, undone after the
    test.
    """
    from support import simulated_gpu as sim

    yield lambda *limits: sim.Machine(*limits).install(monkeypatch)
    monkeypatch.undo()
    sim.forget()


@pytest.fixture
def cuda_backend(request, install_machine):
    """The CUDA backend, to and from which NumPy arrays are copied."""
    if request.param == "machine":
        install_machine()
    with fastce.use_backend("cuda"):
        yield "cuda"


class GPU:
    """Puts NumPy arrays on a GPU, and gets them back. `machine` is None on a real one."""

    def __init__(self, machine=None):
        self.machine = machine

    def put(self, a):
        if self.machine:
            from support import simulated_gpu as sim

            return sim.put(self.machine, np.asarray(a))
        from numba import cuda

        return cuda.to_device(np.asarray(a))

    def put_all(self, values):
        """A list or dict with its arrays on the GPU, numbers as they are."""
        if isinstance(values, dict):
            return dict(zip(values, self.put_all(values.values()), strict=True))
        return [self.put(a) if isinstance(a, np.ndarray) else a for a in values]

    def get(self, a):
        return a.get() if self.machine else a.copy_to_host()


@pytest.fixture
def gpu(request, install_machine):
    return GPU(install_machine() if request.param == "machine" else None)
