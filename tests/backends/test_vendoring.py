"""kernels/ alone, copied into another package, builds and computes: that is what vendoring means.

That package is the example in examples/vendoring/copied_kernels.
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
from support import kernel_copies

import fastce
from fastce import kernels
from fastce._runtime.dispatch import OPS
from fastce.kernels.cython import _isa

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "kernels"
EXAMPLE = ROOT / "examples" / "vendoring" / "copied_kernels"

GUARD = """
import sys
class Guard:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"a vendored kernel imports {name}", name=name)
sys.meta_path.insert(0, Guard())
"""

CODE = """
import numpy as np
from calibration import numerics
x = np.load("x.npy")[:, :, None]
target = np.arange(x.shape[0])[:, None]
log_p, grad, loss = np.empty_like(x), np.empty_like(x), np.empty((1, 1), x.dtype)
log_softmax = numerics.load("log_softmax", "log_softmax")
log_softmax(x, log_p, threads=2)
{loss}
np.savez("results.npz", log_p=log_p[:, :, 0], grad=grad[:, :, 0], loss=loss)
print(log_softmax.__module__)
print(loss_of.__module__)
print(numerics.load("attention", "attention").__module__)
"""
LOSS = """
loss_of = numerics.load("cross_entropy", "cross_entropy_with_grad")
loss_of(
    x, target, None, loss, grad,
    denominator=1.0, ignore_index=-100, label_smoothing=0.0, z_loss=0.0, threads=2,
)
"""
# What Numba compiles in 1 s, and not in 20.
QUICK_LOSS = """
loss_of = numerics.load("cross_entropy", "nll_loss")
loss_of(log_p, target, None, loss, denominator=1.0, ignore_index=-100, threads=2)
grad[...] = 0
"""


WANTED = {"log_softmax", "cross_entropy", "attention"}
LEVEL = _isa.folders()[-1]  # what fastce computes with, except for modules of a level in ONLY


def delete(kernels, ops, levels):
    """As the guide says may be done; all of them together take three minutes to build."""
    for op in ops:
        kernel_copies.delete(op, kernels)
    isa = kernels / "cython" / "_isa.py"
    text = isa.read_text()
    for level in levels:
        text, found = re.subn(rf'^    "{level}": \(.*?\),\n', "", text, flags=re.M | re.S)
        assert found == 1, level
    isa.write_text(text)


def install(folder, **variables):
    """Where the example is installed."""
    project = folder / "project"
    shutil.copytree(EXAMPLE, project, ignore=shutil.ignore_patterns("numerics", "build", "*.egg*"))
    options = ["--no-index", "--no-deps", "--no-build-isolation", "--target", folder / "site"]
    for command in (
        [project / "copy_kernels.py", ROOT],
        ["-m", "pip", "install", "--verbose", *options, project],
    ):
        if "pip" in command:
            numerics = project / "src" / "calibration" / "numerics"
            delete(numerics, {*OPS} - WANTED, {*_isa.levels()} - {LEVEL})
        result = subprocess.run(
            [sys.executable, *command],
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


def run(site, folder, code, blocked):
    """What `code` prints where the example is installed and the packages `blocked` are not."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("FASTCE_")}
    guard = GUARD.replace("BLOCKED", repr(("fastce", "kernels", *blocked)))
    result = subprocess.run(
        [sys.executable, "-c", guard + code],
        cwd=folder, capture_output=True, text=True, timeout=300,
        env=env | {"PYTHONPATH": str(site)},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


def computed(site, folder, n, blocked, loss):
    """The modules that computed, and what."""
    x = np.random.default_rng(0).standard_normal((9, n)).astype(np.float32)
    np.save(folder / "x.npy", x)
    code = CODE.replace("{loss}", loss)
    return run(site, folder, code, blocked).split(), x, np.load(folder / "results.npz")


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
    jit = backend == "numba"
    modules, x, results = computed(site, tmp_path, n, blocked, QUICK_LOSS if jit else LOSS)
    files = [(backend, "log_softmax"), (backend, "cross_entropy"), (attention, "attention")]
    assert modules == [f"calibration.numerics.{folder}.{op}" for folder, op in files]
    with fastce.use_backend(backend):
        log_p = fastce.log_softmax(x)
        if jit:
            loss, grad = fastce.nll_loss(log_p, np.arange(9), reduction="sum"), 0
        else:
            loss, grad = fastce.cross_entropy_with_grad(x, np.arange(9), reduction="sum")
    np.testing.assert_array_equal(results["log_p"], log_p)
    np.testing.assert_array_equal(results["loss"], loss)
    np.testing.assert_array_equal(results["grad"], grad)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "backend"), [("compiled", "cython"), ("not_compiled", "reference")]
)
def test_the_program_of_the_example(request, tmp_path, build, backend):
    site = request.getfixturevalue(build)
    shutil.copy(EXAMPLE / "run.py", tmp_path)
    code = "import runpy; runpy.run_path('run.py', run_name='__main__')"
    lines = run(site, tmp_path, code, ["numba"]).splitlines()
    assert lines == [
        "right: 32.3%, temperature: 3.00",
        "at temperature 1.00: 66.2% sure, loss 2.669",
        "at temperature 3.00: 32.1% sure, loss 1.923",
        f"computed by calibration.numerics.{backend}.log_softmax",
    ]


def test_its_setup_has_the_lines_of_the_readme():
    (block,) = re.findall(
        "```python\n(.*?_build.py.*?)```", (SOURCE / "README.md").read_text(), re.DOTALL
    )
    lines = [line.replace("..., ", "") for line in block.splitlines() if line]
    assert len(lines) == 3
    ours = (
        (EXAMPLE / "setup.py")
        .read_text()
        .replace("src/calibration/", "mine/")
        .replace("calibration.", "mine.")
    )
    assert [line for line in ours.splitlines() if line and "import setup" not in line] == lines


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
