"""Each instruction set level passes the tests of the kernels; which are built, which is used."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from fastce.kernels.cython import _isa

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
FILES = {
    "log_softmax": "ops/test_log_softmax.py",
    "cross_entropy": "ops/test_cross_entropy.py",
    "robust_losses": "ops/test_robust_losses.py",
    "binary_cross_entropy": "ops/test_binary_cross_entropy.py",
    "_vector_math": "backends/test_vector_math.py",
    "attention": "ops/test_attention.py::test_truth",  # the rest takes 90 s per level
}
AT_LEAST = 300  # tests in FILES; a run of none passes too
# Cases of attention whose options reach the vectors; the others only choose which keys are read.
CASES = "plain or softcap or causal-offset or mask or all"
CHOICE = f"not torch and not scipy and not (test_attention and not ({CASES}))"

# The tests, then the files from which the kernels in the same process came.
SUITE = f"""
import sys, pytest
status = pytest.main(["-q", "-p", "no:cacheprovider", "-k", {CHOICE!r}]
                     + {[str(TESTS / name) for name in FILES.values()]})
for name in {list(FILES)}:
    print("loaded", sys.modules["fastce.kernels.cython." + name].__file__)
sys.exit(status)
"""

_, V2 = _isa.X86_64["x86_64_v2"]
_, V3 = _isa.X86_64["x86_64_v3"]
_, V4 = _isa.X86_64["x86_64_v4"]
_, BF16 = _isa.X86_64["x86_64_v4_bf16"]


def python(code, **variables):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("FASTCE_", "PYTEST_"))}
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        env=env | variables,
    )


@pytest.mark.slow
@pytest.mark.parametrize("level", _isa.supported()[:-1])  # all other tests run on the last one
def test_level(cython, level):
    if level not in _isa.built():
        pytest.skip(f"{level} was not built; `make test-full` builds all levels")
    result = python(SUITE, FASTCE_ISA=level, FASTCE_TEST_BACKENDS="cython")
    shown = result.stdout + result.stderr
    assert result.returncode == 0, shown
    counts = {what: int(n) for n, what in re.findall(r"(\d+) (passed|skipped|failed|error)", shown)}
    assert set(counts) == {"passed"}, shown
    assert counts["passed"] >= AT_LEAST, shown
    loaded = re.findall("^loaded (.+)$", result.stdout, re.MULTILINE)
    folders = [Path(name).parent.name for name in loaded]
    below = _isa.supported()[_isa.supported().index(level) - 1]
    only = _isa.ONLY.get(level, FILES)
    assert folders == [level if name in only else below for name in FILES]


def test_the_best_level_is_taken(cython):
    code = "import fastce.kernels.cython.log_softmax as m; print(m.__file__)"
    result = python(code)
    assert Path(result.stdout.strip()).parent.name == _isa.folders()[-1], result.stderr
    assert _isa.folders()[0] == [n for n in _isa.supported() if n in _isa.built()][-1]


@pytest.mark.parametrize("call", ["softmax([1.0])", "cross_entropy([[1.0, 2.0]], [0])"])
def test_unknown_level(call):
    result = python(f"import fastce; fastce.{call}", FASTCE_ISA="x86_64_v9")
    assert result.returncode
    last = result.stderr.strip().splitlines()[-1]
    levels = ", ".join(_isa.supported())
    assert last == f"ValueError: FASTCE_ISA='x86_64_v9', but this processor has {levels}"


def test_unknown_level_is_a_reason():
    """It does not hide behind the reference backend, and does not break the list of backends."""
    code = "import fastce, json; print(json.dumps(fastce.available_backends()))"
    result = python(code, FASTCE_ISA="x86_64_v9")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert "x86_64_v9" in found["cython"]
    assert _isa.supported()[0] in found["cython"]
    assert found["reference"] is None


@pytest.mark.parametrize(
    ("flags", "right"),
    [
        ("", ["x86_64_v2"]),
        (V2, ["x86_64_v2"]),
        (f"{V2} {V3}", ["x86_64_v2", "x86_64_v3"]),
        (f"{V2} {V3} {V4}", ["x86_64_v2", "x86_64_v3", "x86_64_v4"]),
        (f"{V2} {V3} {V4} {BF16}", list(_isa.X86_64)),
        (f"{V2} {V3} {BF16}", ["x86_64_v2", "x86_64_v3"]),
        (f"{V2} {V3} {V4}".replace("avx512vl", ""), ["x86_64_v2", "x86_64_v3"]),
        (f"{V2} {V3}".replace("f16c", ""), ["x86_64_v2"]),
        (f"{V2} {V4}", ["x86_64_v2"]),  # no level without those below it
    ],
)
def test_supported(monkeypatch, flags, right):
    monkeypatch.setattr(_isa, "levels", lambda: _isa.X86_64)
    monkeypatch.setattr(_isa, "_processor_flags", lambda: set(flags.split()))
    monkeypatch.setattr(_isa, "built", lambda: list(_isa.X86_64))
    assert _isa.supported() == right
    monkeypatch.delenv("FASTCE_ISA", raising=False)
    assert _isa.level() == right[-1]
    for name in _isa.X86_64:
        monkeypatch.setenv("FASTCE_ISA", name)
        if name in right:
            assert _isa.level() == name
        else:
            with pytest.raises(ValueError, match=f"but this processor has {', '.join(right)}$"):
                _isa.level()


def test_elsewhere_there_is_one_level(monkeypatch):
    monkeypatch.setattr(_isa.platform, "machine", lambda: "aarch64")
    assert _isa.supported() == ["generic"]


# --- levels that were not built -----------------------------------------------------------


@pytest.fixture
def processor(monkeypatch):
    """A function that says what the processor has, what was built, and FASTCE_ISA."""

    def set_up(flags, built, chosen=""):
        monkeypatch.setattr(_isa, "levels", lambda: _isa.X86_64)
        monkeypatch.setattr(_isa, "_processor_flags", lambda: set(flags.split()))
        monkeypatch.setattr(_isa, "built", lambda: built)
        monkeypatch.setenv("FASTCE_ISA", chosen)

    return set_up


@pytest.mark.parametrize(
    ("flags", "built", "folders"),
    [
        (f"{V2} {V3}", ["x86_64_v2"], ["x86_64_v2"]),
        (f"{V2} {V3}", ["x86_64_v2", "x86_64_v4"], ["x86_64_v2"]),
        (f"{V2} {V3} {V4} {BF16}", ["x86_64_v2", "x86_64_v3"], ["x86_64_v3"]),
        (
            f"{V2} {V3} {V4} {BF16}",
            ["x86_64_v2", "x86_64_v3", "x86_64_v4_bf16"],
            ["x86_64_v4_bf16", "x86_64_v3"],
        ),
        (f"{V2} {V3} {V4}", [], ["x86_64_v4"]),  # where the import of a module fails
    ],
)
def test_the_best_of_what_was_built(processor, flags, built, folders):
    processor(flags, built)
    assert _isa.level() == folders[0]
    assert _isa.folders() == folders


def test_a_level_that_was_not_built(processor):
    flags, built = f"{V2} {V3} {V4}", ["x86_64_v2", "x86_64_v4"]
    processor(flags, built, "x86_64_v3")
    how = ": build from source with FASTCE_BUILD_ISA=all$"
    with pytest.raises(ImportError, match="^FASTCE_ISA='x86_64_v3' was not built, only .*" + how):
        _isa.level()
    processor(V2, ["x86_64_v3"])
    with pytest.raises(ImportError, match="^any of x86_64_v2 was not built, only x86_64_v3" + how):
        _isa.level()


def test_a_level_without_modules(tmp_path):
    """What a user sees of it: a choice does not fall back, and the best that is there is taken."""
    shutil.copytree(ROOT / "fastce", tmp_path / "fastce")
    shutil.copytree(ROOT / "kernels", tmp_path / "fastce" / "kernels")
    built = _isa.built()
    if len(built) < 2:
        pytest.skip("one level was built")
    shutil.rmtree(tmp_path / "fastce" / "kernels" / "cython" / built[-1])
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import fastce; "
    show = "fastce.show_config(); print(fastce.__file__)"
    result = python(code + show)
    assert f"{built[-1]}: was not built" in result.stdout
    assert f"isa_level: {built[-2]}\n" in result.stdout
    assert str(tmp_path) in result.stdout
    for call in "fastce.show_config()", "fastce.softmax([1.0])":
        result = python(code + call, FASTCE_ISA=built[-1])
        assert f"FASTCE_ISA={built[-1]!r} was not built, only " in result.stderr
    assert "BackendError: backend 'cython' cannot compute" in result.stderr


# --- what a build compiles ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "native"),
    [
        (V2, ["x86_64_v2"]),
        (f"{V2} {V3}", ["x86_64_v2", "x86_64_v3"]),
        (f"{V2} {V3} {V4}", ["x86_64_v2", "x86_64_v4"]),
        (f"{V2} {V3} {V4} {BF16}", ["x86_64_v2", "x86_64_v4", "x86_64_v4_bf16"]),
    ],
)
def test_levels_to_build(processor, flags, native):
    processor(flags, [])
    assert _isa.to_build("native") == native
    assert _isa.to_build("all") == list(_isa.X86_64)
    assert _isa.to_build("x86_64_v4,x86_64_v2") == ["x86_64_v2", "x86_64_v4"]
    with pytest.raises(ValueError, match=r"FASTCE_BUILD_ISA='x86_64_v4,avx', but there are all, n"):
        _isa.to_build("x86_64_v4,avx")


@pytest.fixture
def build_ext(tmp_path, monkeypatch):
    """The command, for modules `attention`, `log_softmax` and `_vector_math` in an empty folder."""
    setuptools = pytest.importorskip("setuptools")
    build = runpy.run_path(str(ROOT / "kernels" / "_build.py"))
    (tmp_path / "cython").mkdir()
    (tmp_path / "_build.py").touch()
    (tmp_path / "cython" / "_isa.py").touch()
    modules = []
    for name in "attention", "log_softmax", "_vector_math":
        source = tmp_path / "cython" / f"{name}.cpp"
        source.touch()
        modules.append(setuptools.Extension(f"mine.cython.{name}", [str(source)]))
    monkeypatch.setitem(build["build"].__globals__, "FOLDER", tmp_path / "cython")
    isa = vars(_isa) | {"levels": lambda: _isa.X86_64}
    monkeypatch.setattr(_isa, "levels", isa["levels"])
    monkeypatch.setattr(_isa, "_processor_flags", lambda: set(f"{V2} {V3} {V4} {BF16}".split()))
    extensions = list(build["_extensions"](modules, isa, "headers"))
    command = build["_build_per_level"](extensions, isa)

    def make(**options):
        made = command(setuptools.Distribution({"ext_modules": extensions}))
        vars(made).update(options)
        made.ensure_finalized()
        return made

    return make


def test_extensions_of_a_build(build_ext, monkeypatch):
    def levels(command, name):
        names = [ext.name.split(".") for ext in command.extensions]
        return [level for *_, level, module in names if module == name]

    native = ["x86_64_v2", "x86_64_v4", "x86_64_v4_bf16"]
    for options in {"inplace": True}, {"editable_mode": True}:
        assert levels(build_ext(**options), "attention") == native
        assert levels(build_ext(**options), "log_softmax") == native[:2]
        assert levels(build_ext(**options), "_vector_math") == native[:2]
    assert levels(build_ext(), "attention") == list(_isa.X86_64)
    assert levels(build_ext(), "log_softmax") == list(_isa.X86_64)[:-1]
    assert not levels(build_ext(), "_vector_math")
    monkeypatch.setenv("FASTCE_BUILD_ISA", "x86_64_v3")
    assert levels(build_ext(), "attention") == ["x86_64_v3"]
    assert levels(build_ext(inplace=True), "_vector_math") == ["x86_64_v3"]


def test_a_build_in_place_compiles_what_is_stale(build_ext, tmp_path, monkeypatch):
    cython = tmp_path / "cython"
    compiled = []
    base = type(build_ext()).__mro__[1]
    monkeypatch.setattr(base, "run", base.build_extensions)
    monkeypatch.setattr(base, "build_extension", lambda self, ext: compiled.append(ext.name))
    monkeypatch.setattr(base, "copy_extensions_to_source", lambda self: None)
    for level in _isa.X86_64:
        (cython / level).mkdir()
        for name in "attention", "log_softmax", "_vector_math":
            (cython / level / f"{name}{EXTENSION_SUFFIXES[0]}").touch()

    def build():
        compiled.clear()
        build_ext(inplace=True, build_lib=str(tmp_path / "lib"), parallel=1).run()
        return [name.removeprefix("mine.cython.") for name in compiled]

    def built(name):
        return [level for level in _isa.X86_64 if any((cython / level).glob(f"{name}.*"))]

    assert build() == []
    later = (cython / "x86_64_v3" / f"attention{EXTENSION_SUFFIXES[0]}").stat().st_mtime + 10
    os.utime(cython / "log_softmax.cpp", (later, later))
    assert build() == ["x86_64_v2.log_softmax", "x86_64_v4.log_softmax"]
    # That of x86_64_v3, too, is gone: FASTCE_ISA would choose old code.
    assert built("log_softmax") == ["x86_64_v4_bf16"]
    assert built("attention") == list(_isa.X86_64)
    os.utime(tmp_path / "_build.py", (later, later))
    assert len(build()) == 7
    assert built("attention") == []


@pytest.mark.parametrize("name", [p.name for p in (ROOT / "kernels" / "cython").glob("*.pyx")])
def test_a_module_depends_on_what_it_includes(name):
    """As Cython finds it."""
    pytest.importorskip("Cython")
    from Cython.Build.Dependencies import DependencyTree
    from Cython.Compiler.Main import Context
    from Cython.Compiler.Options import CompilationOptions

    pyx = ROOT / "kernels" / "cython" / name
    context = Context.from_options(CompilationOptions(include_path=[str(pyx.parent)]))
    paths = {Path(path).resolve() for path in DependencyTree(context).all_dependencies(str(pyx))}
    ours = {path for path in paths if path.parent == pyx.parent and path.suffix != ".h"}
    build = runpy.run_path(str(ROOT / "kernels" / "_build.py"))
    assert {path.resolve() for path in build["_included"](pyx)} == ours
    assert len(ours) > 1
