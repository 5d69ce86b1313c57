"""Each instruction set level passes the tests of the kernels, and the choice among them is kept."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fastce.kernels.cython import _isa

TESTS = Path(__file__).parents[1]
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
        cwd=TESTS.parent,
        env=env | variables,
    )


@pytest.mark.slow
@pytest.mark.parametrize("level", _isa.supported()[:-1])  # all other tests run on the last one
def test_level(cython, level):
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
    full = [level for level in _isa.supported() if level not in _isa.ONLY]
    assert Path(result.stdout.strip()).parent.name == full[-1], result.stderr


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
