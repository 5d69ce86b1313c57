"""The rules of the project: same kernels and signatures everywhere, and who may import whom."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

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
    """(level, module) of every import statement, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((0, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""


def kernel_functions(backend, op):
    module = importlib.import_module(f"fastce.kernels.{backend}.{op}")
    return {
        name: function
        for name, function in vars(module).items()
        if callable(function)
        and not name.startswith("_")
        and function.__module__ == module.__name__
        and "threads" in inspect.signature(function).parameters
    }


@pytest.mark.parametrize(
    ("backend", "op"),
    [*((b, op) for b in BACKENDS for op in OPS), *((GPU, op) for op in GPU_OPS)],
)
def test_every_backend_has_the_same_kernels_with_the_same_parameters(backend, op):
    def shape(functions):
        return {
            name: [(p.name, p.kind, p.default) for p in inspect.signature(f).parameters.values()]
            for name, f in functions.items()
        }

    oracle = shape(kernel_functions("reference", op))
    assert oracle
    assert shape(kernel_functions(backend, op)) == oracle


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


def test_kernels_import_nothing_but_numpy_and_their_own_folder():
    for path in python_files(KERNELS):
        others = {"numpy"} | ({"Cython", "setuptools"} if path == BUILD else set())
        for level, module in imports(path):
            root = module.partition(".")[0]
            assert level <= 1, f"{path} imports from another folder"
            allowed = sys.stdlib_module_names | {"numpy"} | ENGINES.get(path.parent.name, set())
            assert level == 1 or root in allowed | others, f"{path}: {module}"


def files_needed(path):
    """The files of its folder that a kernel includes or imports, and those that these do."""
    found, new = set(), {path, path.parent / "__init__.py"}
    while new:
        found |= new
        names = {
            name
            for file in new
            for name in re.findall(r'^\s*include "([\w.]+)"', file.read_text(), re.MULTILINE)
        }
        for file in new:
            for node in ast.walk(ast.parse(file.read_text())) if file.suffix == ".py" else ():
                if isinstance(node, ast.ImportFrom) and node.level:
                    modules = [node.module] if node.module else [name.name for name in node.names]
                    names |= {f"{module}.py" for module in modules}
        new = {path.parent / name for name in names if (path.parent / name).is_file()} - found
    return found


def test_what_a_copy_needs_is_what_its_readme_says():
    """Whose files the other ops of a folder need."""
    lines = (KERNELS / "README.md").read_text().splitlines()
    heads = next(line for line in lines if line.startswith("| files of"))
    folders = re.findall(r"`(\w+)/`", heads)
    said = {op: {folder: set() for folder in folders} for op in OPS}
    for line in lines[lines.index(heads) + 2 :]:
        if not line.startswith("|"):
            break
        op, *cells = [cell.strip(" `") for cell in line.strip("|").split("|")]
        said[op] = {f: set(re.findall(r"\w+", c)) for f, c in zip(folders, cells, strict=True)}
    for folder in folders:
        kernels = [p for p in (KERNELS / folder).glob("[!_]*.py*") if p.suffix in (".py", ".pyx")]
        needed = {p.stem: [f.name for f in files_needed(p)] for p in kernels}
        for op in OPS:
            own = re.compile(rf"_?{op}\.|_{op}_")
            by = {other for other in needed if other != op and any(map(own.match, needed[other]))}
            everything = by and by == set(needed) - {op}
            assert by == said[op][folder] or (everything and said[op][folder] == {"all"}), (
                f"{folder}: the files of {op} are needed by {by}"
            )


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
    rooms = {"fastce": ROOT / "fastce", "fastce.kernels": KERNELS}
    found = {
        ".".join([package, *p.parent.relative_to(folder).parts])
        for package, folder in rooms.items()
        for p in folder.rglob("__init__.py")
        if p.parent.resolve() != (ROOT / "fastce" / "kernels").resolve()
    }
    assert set(listed) == found
