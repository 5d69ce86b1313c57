"""The rules of the project: same kernels and signatures everywhere, and who may import whom."""

import ast
import graphlib
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from support.kernel_copies import copy_without, kernel_functions

import fastce
from fastce._runtime.dispatch import BACKENDS, GPU, GPU_OPS, OPS

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "kernels"
# What only part of the code may import, beside the standard library and NumPy.
ENGINES = {
    "reference": set(),
    "cython": set(),
    "numba": {"numba", "llvmlite"},
    "cuda": {"numba", "llvmlite", "cuda"},
}
FRAMEWORKS = {"dask", "torch"}  # the ops on their arrays
BUILD = KERNELS / "_build.py"  # is run by a setup.py


def python_files(folder):
    found = [p for p in folder.rglob("*.py") if "__pycache__" not in p.parts]
    assert found, folder
    return found


def imports(path):
    """(level, module) of every import statement, wherever it stands; of `from . import name` the
    name.
    """
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((0, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module] if node.module else [name.name for name in node.names]
            yield from ((node.level, module) for module in modules)


@pytest.mark.parametrize(
    ("backend", "op"),
    [*((b, op) for b in BACKENDS for op in OPS), *((GPU, op) for op in GPU_OPS)],
)
def test_every_backend_has_the_same_kernels_with_the_same_parameters(backend, op):
    def kernels_of(backend, op):
        return kernel_functions(importlib.import_module(f"fastce.kernels.{backend}.{op}"))

    def shape(functions):
        return {
            name: [(p.name, p.kind, p.default) for p in inspect.signature(f).parameters.values()]
            for name, f in functions.items()
        }

    oracle = shape(kernels_of("reference", op))
    assert oracle
    assert shape(kernels_of(backend, op)) == oracle


def modules(folder):
    """The modules of a folder that do not begin with an underscore: files, and packages."""
    packages = [p.parent for p in folder.glob("[!_]*/__init__.py")]
    return {p.stem for p in [*folder.glob("[!_]*.py"), *packages]}


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_its_files(op):
    assert (KERNELS / "cython" / f"{op}.pyx").is_file()
    assert (ROOT / "tests" / "ops" / f"test_{op}.py").is_file()
    assert list((ROOT / "docs").rglob(f"{op}.md"))


def test_ops_are_the_modules_that_do_not_begin_with_an_underscore():
    assert modules(ROOT / "fastce") == set(OPS) | FRAMEWORKS
    for folder in KERNELS / "reference", KERNELS / "numba", ROOT / "bench" / "benchmarks":
        assert modules(folder) == set(OPS), folder
    assert {p.stem for p in (KERNELS / "cython").glob("[!_]*.pyx")} == set(OPS)
    assert modules(KERNELS / "cuda") == set(GPU_OPS)


def test_kernels_import_nothing_but_numpy_and_their_own_files():
    """Of its backend, a file imports what the ops share, which begins with an underscore; in a
    package, also the files beside it.
    """
    for path in python_files(KERNELS):
        folders = path.relative_to(KERNELS).parts[:-1]
        allowed = sys.stdlib_module_names | {"numpy"} | ENGINES.get("".join(folders[:1]), set())
        allowed |= {"Cython", "setuptools"} if path == BUILD else set()
        for level, module in imports(path):
            assert level <= len(folders), f"{path} imports from another backend"
            if level == 0:
                assert module.partition(".")[0] in allowed, f"{path}: {module}"
            elif level == len(folders):
                assert module.startswith("_"), f"{path} imports from {module}, which is an op"


DELETED = """
import sys
from importlib import import_module
sys.path[:0] = {paths!r}
from support.kernel_copies import call_all
backends = ["reference", "numba", "cuda"]
try:
    import_module("fastce.kernels.cuda")
except ImportError:  # numba-cuda is not installed
    backends.remove("cuda")
for deleted in {ops!r}:
    for backend in backends:
        for op in {gpu_ops!r} if backend == "cuda" else {ops!r}:
            if op != deleted:
                try:
                    module = import_module(f"without_{{deleted}}.{{backend}}.{{op}}")
                    if backend == "reference":
                        call_all(op, module)
                except Exception as error:
                    print(f"without {{deleted}}, {{op}} of {{backend}}: {{error!r}}")
"""


def test_the_files_of_an_op_may_be_deleted(tmp_path):
    """As kernels/README.md says: all other ops are imported from a copy without it, and those of
    the reference called.
    """
    for op in OPS:
        copy_without(op, tmp_path / f"without_{op}")
    paths = [str(tmp_path), str(ROOT / "tests")]
    code = DELETED.format(paths=paths, ops=OPS, gpu_ops=GPU_OPS)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert not result.stdout, result.stdout
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("op", OPS)
def test_no_file_for_cython_includes_one_of_an_op_that_is_deleted(tmp_path, op):
    copy_without(op, tmp_path / "copy")
    ours, left = KERNELS / "cython", tmp_path / "copy" / "cython"
    assert len(list(left.glob("[!_]*.pyx"))) == len(OPS) - 1
    for path in left.iterdir():
        text = path.read_text()
        names = re.findall(r'(?:include|extern from) "([\w.]+)"', text)
        names += [f"{name}.pxd" for name in re.findall(r"^from \.(\w+) cimport", text, re.M)]
        for name in names:
            assert (left / name).is_file() or not (ours / name).exists(), f"{path.name}: {name}"


def test_the_build_imports_nothing_of_its_package():
    """It is run by its path."""
    assert {level for level, _ in imports(BUILD)} == {0}


def test_cython_kernels_import_nothing_but_c_and_numpy():
    sources = [*(KERNELS / "cython").glob("*.pyx"), *(KERNELS / "cython").glob("*.pxi")]
    assert len(sources) > 5
    for path in sources:
        for line in path.read_text().splitlines():
            if line.startswith(("import ", "from ", "cimport ")):
                module = line.split()[1].partition(".")[0]
                own = line.split()[1] == "._forks"
                assert own or module in {"libc", "cython", "posix", "numpy"}, f"{path}: {line}"


def test_fastce_itself_imports_nothing_of_tests_or_bench():
    for path in python_files(ROOT / "fastce"):
        for level, module in imports(path):
            assert level or module.partition(".")[0] not in {
                "tests",
                "bench",
                "examples",
                "kernels",
            }


def test_no_imports_go_in_a_circle():
    """Of fastce, its kernels and bench, imports within functions too."""
    files = {}
    for folder, package in ("fastce", "fastce"), ("kernels", "fastce.kernels"), ("bench", "bench"):
        for path in python_files(ROOT / folder):
            names = (package, *path.relative_to(ROOT / folder).with_suffix("").parts)
            files[".".join(names).removesuffix(".__init__")] = path
    needs = {}
    for name, path in files.items():
        package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
        modules = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                above = package[: len(package) + 1 - node.level] if node.level else []
                module = ".".join([*above, *filter(None, [node.module])])
                named = {f"{module}.{alias.name}" for alias in node.names}
                modules |= named & set(files) or {module}
        needs[name] = modules & set(files) - {name}
    assert sum(map(len, needs.values())) > 400
    graphlib.TopologicalSorter(needs).prepare()  # CycleError, which shows the circle


def test_nobody_imports_a_second_copy_of_the_kernels():
    for folder in ("fastce", "kernels", "bench", "tests", "examples"):
        for path in python_files(ROOT / folder):
            assert (0, "kernels") not in set(imports(path)), path


def test_importing_fastce_loads_numpy_alone():
    loaded = subprocess.run(
        [sys.executable, "-c", "import fastce, sys; print(*sys.modules)"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert "numpy" in loaded
    unwanted = {
        "numba",
        "cuda",
        "rich",
        "matplotlib",
        "scipy",
        "sklearn",
        "ml_dtypes",
        "torch",
        "jax",
    }
    assert not unwanted & set(loaded)
    assert not [name for name in loaded if name.startswith("fastce.kernels")], "not before use"


def test_every_public_name_is_documented_with_an_example():
    for name in fastce.__all__:
        item = getattr(fastce, name)
        if callable(item):
            assert item.__doc__, name
            assert isinstance(item, type) or ">>> " in item.__doc__, name


def test_packages_are_listed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {"fastce": ROOT / "fastce", "fastce.kernels": KERNELS}
    found = {
        ".".join([package, *p.parent.relative_to(folder).parts])
        for package, folder in folders.items()
        for p in folder.rglob("__init__.py")
        if p.parent.resolve() != (ROOT / "fastce" / "kernels").resolve()
    }
    assert set(listed) == found
