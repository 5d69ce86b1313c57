"""kernels/ alone, copied into another package, builds and computes: that is what vendoring means.

The lines that the project adds to its setup.py are those of kernels/README.md.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import SELECTED

import fastce
from fastce import kernels

SOURCE = Path(__file__).parent.parent / "kernels"
LEFT_OUT = ("__pycache__", "*.cpp", "*.so", "x86_64_*", "generic")
# README.md allows to delete them; attention would take most of the build.
DELETED = ("attention.*", "_attention_*", "_vector_math.*")
PYPROJECT = """
[build-system]
requires = ["setuptools", "Cython", "numpy"]
build-backend = "setuptools.build_meta"
[project]
name = "mine"
version = "1"
"""

CODE = """
import sys
class Guard:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"a vendored kernel imports {name}", name=name)
sys.meta_path.insert(0, Guard())

import numpy as np
from mine import numerics
x = np.load("x.npy")[:, :, None]
target = np.arange(x.shape[0])[:, None]
log_p, grad, loss = np.empty_like(x), np.empty_like(x), np.empty((1, 1), x.dtype)
log_softmax = numerics.load("log_softmax", "log_softmax")
log_softmax(x, log_p, threads=2)
cross_entropy = numerics.load("cross_entropy", "cross_entropy_with_grad")
cross_entropy(
    x, target, None, loss, grad,
    denominator=1.0, ignore_index=-100, label_smoothing=0.0, z_loss=0.0, threads=2,
)
np.savez("results.npz", log_p=log_p[:, :, 0], grad=grad[:, :, 0], loss=loss)
print(log_softmax.__module__)
print(cross_entropy.__module__)
print(numerics.load("attention", "attention").__module__)
assert not set(BLOCKED) & set(sys.modules)
"""


def lines_of_the_readme():
    text = (SOURCE / "README.md").read_text()
    (block,) = re.findall("```python\n(.*?_build.py.*?)```", text, re.DOTALL)
    assert len([line for line in block.splitlines() if line]) == 3
    return block


def install(folder, **variables):
    """Where a project is installed that has nothing but a copy of kernels/."""
    project = folder / "project"
    copy = project / "mine" / "numerics"
    shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns(*LEFT_OUT))
    for pattern in DELETED:
        for path in (copy / "cython").glob(pattern):
            path.unlink()
    (project / "mine" / "__init__.py").touch()
    setup = "from setuptools import setup\n" + lines_of_the_readme()
    (project / "setup.py").write_text(setup.replace("..., ", ""))
    (project / "pyproject.toml").write_text(PYPROJECT)
    options = ["--no-index", "--no-deps", "--no-build-isolation", "--target", folder / "site"]
    result = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--verbose", *options, project],
        capture_output=True, text=True, env=os.environ | variables,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    return folder / "site"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    if "cython" not in SELECTED:
        pytest.skip("FASTCE_TEST_BACKENDS leaves cython out")
    return install(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="module")
def not_compiled(tmp_path_factory):
    nothing = {"CC": "/nonexistent", "CXX": "/nonexistent"}
    return install(tmp_path_factory.mktemp("not_compiled"), **nothing)


def computed(site, folder, n, blocked):
    """The modules that computed, and what."""
    x = np.random.default_rng(0).standard_normal((9, n)).astype(np.float32)
    np.save(folder / "x.npy", x)
    env = {k: v for k, v in os.environ.items() if not k.startswith("FASTCE_")}
    code = CODE.replace("BLOCKED", repr(("fastce", "kernels", *blocked)))
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder, capture_output=True, text=True, timeout=300,
        env=env | {"PYTHONPATH": str(site)},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout.split(), x, np.load(folder / "results.npz")


@pytest.mark.slow
@pytest.mark.parametrize("n", [10, 5000])
@pytest.mark.parametrize(
    ("build", "blocked", "backend", "attention"),
    [
        ("compiled", (), "cython", "numba"),
        ("compiled", ("numba",), "cython", "reference"),
        ("not_compiled", (), "numba", "numba"),
        ("not_compiled", ("numba",), "reference", "reference"),
    ],
    ids=["all", "without-numba", "without-compiler", "without-both"],
)
def test_a_copy_under_another_name(request, tmp_path, build, blocked, backend, attention, n):
    if not blocked and "numba" not in SELECTED:
        pytest.skip("numba is not among the backends that are tested")
    site = request.getfixturevalue(build)
    modules, x, results = computed(site, tmp_path, n, blocked)
    files = [(backend, "log_softmax"), (backend, "cross_entropy"), (attention, "attention")]
    assert modules == [f"mine.numerics.{folder}.{op}" for folder, op in files]
    with fastce.use_backend(backend):
        loss, grad = fastce.cross_entropy_with_grad(x, np.arange(9), reduction="sum")
        np.testing.assert_array_equal(results["log_p"], fastce.log_softmax(x))
    np.testing.assert_array_equal(results["loss"], loss)
    np.testing.assert_array_equal(results["grad"], grad)


# --- load ---------------------------------------------------------------------------------


def test_load_takes_the_first_backend_that_loads(cython):
    from fastce.kernels.cython.cross_entropy import nll_loss

    assert kernels.load("cross_entropy", "nll_loss") is nll_loss


def test_load_of_a_backend_is_that_or_an_error(tmp_path):
    from fastce.kernels.reference.cross_entropy import nll_loss

    assert kernels.load("cross_entropy", "nll_loss", backend="reference") is nll_loss
    with pytest.raises(ValueError, match="unknown backend 'fortran'; there are cython, numba"):
        kernels.load("cross_entropy", "nll_loss", backend="fortran")
    shutil.copytree(SOURCE / "reference", tmp_path / "only" / "reference")
    (tmp_path / "only" / "cython").mkdir()
    for name in ("__init__.py", "cython/__init__.py", "cython/_isa.py"):
        shutil.copy(SOURCE / name, tmp_path / "only" / name)
    code = """
import only
print(only.load("cross_entropy", "nll_loss").__module__)
for backend in "cython", "numba":
    try:
        only.load("cross_entropy", "nll_loss", backend=backend)
    except ImportError as error:
        print(error)
"""
    env = {k: v for k, v in os.environ.items() if not k.startswith("FASTCE_")}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=env)
    assert result.stdout.splitlines() == [
        "only.reference.cross_entropy",
        "backend 'cython' cannot compute nll_loss: its compiled module is not there "
        "(no C++ compiler when only was installed?)",
        "backend 'numba' cannot compute nll_loss: its folder is not there",
    ], result.stderr
    env["FASTCE_ISA"] = next(iter(kernels.cython._isa.levels()))  # a choice never falls back
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=env)
    assert "ImportError: backend 'cython' cannot compute nll_loss" in result.stderr
    shutil.rmtree(tmp_path / "only" / "cython")
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=env)
    assert result.stdout.startswith("only.reference.cross_entropy"), result.stderr
