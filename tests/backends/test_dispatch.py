"""Which backend computes: the order of choice, and that an explicit choice never falls back."""

import os
import subprocess
import sys
import threading
from contextvars import ContextVar

import numpy as np
import pytest

import fastce
from fastce._runtime import dispatch

# Hides the compiled modules, as on a machine that had no compiler.
HIDE = """
import importlib.abc, sys
class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.startswith("fastce.kernels.cython.") and not name.endswith(("_isa", "_forks")):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hide())
import fastce
"""


def python(code, **variables):
    env = {k: v for k, v in os.environ.items() if not k.startswith("FASTCE_")} | variables
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)


def computed_by(backend=None):
    """The module of the kernel that would compute now."""
    return dispatch.kernel("log_softmax", "softmax").__module__


@pytest.mark.parametrize("name", dispatch.BACKENDS)
def test_use_backend_chooses_and_restores(name):
    before = computed_by()
    with fastce.use_backend(name):
        assert computed_by() == f"fastce.kernels.{name}.log_softmax"
        with fastce.use_backend("reference"):
            assert computed_by() == "fastce.kernels.reference.log_softmax"
        assert computed_by() == f"fastce.kernels.{name}.log_softmax"
    assert computed_by() == before


def test_use_backend_is_undone_by_an_error():
    before = computed_by()
    with pytest.raises(ZeroDivisionError), fastce.use_backend("reference"):
        _ = 1 / 0
    assert computed_by() == before


def test_use_backend_holds_for_its_own_thread():
    seen = []
    with fastce.use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(computed_by()))
        thread.start()
        thread.join()
    assert seen == [computed_by()]


def test_unknown_backend():
    with pytest.raises(
        ValueError, match="unknown backend 'fortran'; there are cython, numba, reference"
    ):
        fastce.use_backend("fortran").__enter__()


def test_variable_chooses():
    result = python(
        "import fastce; from fastce._runtime.dispatch import kernel;"
        "print(kernel('log_softmax', 'softmax').__module__)",
        FASTCE_BACKEND="reference",
    )
    assert result.stdout.strip() == "fastce.kernels.reference.log_softmax", result.stderr


def test_variable_of_an_unknown_backend_raises():
    result = python("import fastce; fastce.softmax([1.0])", FASTCE_BACKEND="fortran")
    assert result.returncode
    assert "ValueError: unknown backend 'fortran'" in result.stderr


SHOW = """
from fastce._runtime.dispatch import kernel
print(fastce.softmax([0.0, 0.0]), fastce.available_backends())
print(kernel("log_softmax", "softmax").__module__)
fastce.show_config()
"""


@pytest.mark.slow
def test_without_compiled_modules_numba_computes_and_the_reason_is_shown():
    pytest.importorskip("numba")
    result = python(HIDE + SHOW)
    assert "[0.5 0.5]" in result.stdout, result.stderr
    assert "\nfastce.kernels.numba.log_softmax\n" in result.stdout
    assert "no C++ compiler when fastce was installed?" in result.stdout
    assert "numba: available" in result.stdout


def test_without_either_the_reference_computes_and_the_reasons_are_shown():
    result = python("import sys; sys.modules['numba'] = None" + HIDE + SHOW)
    assert "[0.5 0.5]" in result.stdout, result.stderr
    assert "\nfastce.kernels.reference.log_softmax\n" in result.stdout
    assert "no C++ compiler when fastce was installed?" in result.stdout
    assert "the package numba is not installed" in result.stdout
    assert "'reference': None" in result.stdout
    assert "reference: available" in result.stdout


@pytest.mark.parametrize(
    ("code", "variables"),
    [
        ("fastce.use_backend('cython').__enter__()", {}),
        ("fastce.softmax([0.0])", {"FASTCE_BACKEND": "cython"}),
        ("fastce.softmax([0.0])", {"FASTCE_ISA": "x86_64_v2"}),
    ],
)
def test_an_explicit_choice_never_falls_back(code, variables):
    result = python(HIDE + code, **variables)
    assert result.returncode
    assert "BackendError: backend 'cython' cannot compute" in result.stderr


def test_available_backends():
    found = fastce.available_backends()
    assert tuple(found) == (*dispatch.BACKENDS, "cuda")
    assert found["reference"] is None


def test_without_numba_cuda_the_reason_is_its_name():
    """The package numba has a numba.cuda of its own, with an `extending` that lacks `overload`."""
    code = (
        "import importlib.machinery, sys, types\n"
        "for name in 'numba', 'numba.cuda', 'numba.cuda.extending':\n"
        "    module = sys.modules[name] = types.ModuleType(name)\n"
        "    module.__path__ = []\n"
        "    module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)\n"
        "sys.modules['numba'].cuda = sys.modules['numba.cuda']\n"
        "import fastce; print(fastce.available_backends()['cuda'])\n"
    )
    done = python(code)
    assert "the package numba-cuda is not installed" in done.stdout, done.stderr


def test_ops_are_all_loadable_from_the_reference():
    for op in dispatch.OPS:
        module = dispatch._load("reference", op, None)
        assert module.__name__ == f"fastce.kernels.reference.{op}"


def test_an_op_without_kernels_for_gpus_says_so(monkeypatch):
    monkeypatch.setattr(dispatch, "GPU_OPS", ("cross_entropy",))
    for chosen in None, "cuda", "reference":
        monkeypatch.setattr(dispatch, "_chosen", ContextVar("chosen", default=chosen))
        with pytest.raises(fastce.BackendError, match="no kernels of attention for GPUs"):
            dispatch.gpu_kernel("attention", "attention")
    monkeypatch.setattr(dispatch, "_chosen", ContextVar("chosen", default="cuda"))
    with pytest.raises(fastce.BackendError, match="no kernels of attention for GPUs"):
        dispatch.kernel("attention", "attention")


def test_show_config(capsys):
    fastce.show_config()
    shown = capsys.readouterr().out
    assert f"fastce: {fastce.__version__}" in shown
    assert f"numpy: {np.__version__}" in shown
    assert "reference: available" in shown


def test_set_validation():
    from fastce._runtime import options

    for value in (True, False):
        fastce.set_validation(value)
        assert options.get_validation() is value
    with pytest.raises(TypeError, match="must be True or False, got 1"):
        fastce.set_validation(1)
    with pytest.raises(IndexError):  # CPU backends always check
        fastce.cross_entropy([[0.0, 0.0]], [2])
