"""CONTRIBUTING.md is right: every file, command, variable and name in it exists; and the hooks are
what `make lint` runs.
"""

import re
from pathlib import Path

import pytest

from fastce._runtime.config import VARIABLES
from fastce._runtime.dispatch import GPU_OPS, OPS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
WORDS = set(re.findall("`([^`\n]+)`", TEXT)) - {"area: what"}
PATHS = {word for word in WORDS if re.fullmatch(r"[\w.<>*-]*/[\w./<>*-]*|[\w-]+\.(md|py)", word)}
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def sources():
    for folder in "fastce", "kernels", "tests":
        for path in (ROOT / folder).rglob("*.py*"):
            if path.suffix in (".py", ".pyx"):
                yield path.read_text()


@pytest.mark.parametrize("path", sorted(PATHS))
def test_paths(path):
    if path in ("docs/_build/html", "fastce.kernels"):  # is built, is a module
        return
    for op in (GPU_OPS if "cuda" in path else OPS) if "<op>" in path else ("",):
        pattern = path.replace("<op>", op).rstrip("/")
        assert any(ROOT.glob(pattern)), f"{pattern} is not there"


def test_links():
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        assert (ROOT / target).is_file(), target


def test_commands():
    named = {word.split()[1] for word in WORDS if word.startswith("make ")}
    assert len(named) > 10
    assert named <= TARGETS
    everything = set(re.findall(r"make ([\w-]+) ", (ROOT / "Makefile").read_text()))
    assert everything & TARGETS == named, "of `make help`"


def test_variables():
    words = {word.partition("=")[0] for word in WORDS}
    ours = {word for word in words if word.startswith("FASTCE_")} - {"FASTCE_TEST_BACKENDS"}
    assert ours == set(VARIABLES)


@pytest.mark.parametrize(
    ("name", "file"), re.findall(r"`(\w+)(?:\([^)`]*\))?`\s+(?:in|of)\s+`([\w./]+)`", TEXT)
)
def test_names_of_files(name, file):
    assert re.search(rf"^(def |class )?{name}\b", (ROOT / file).read_text(), re.MULTILINE)


def test_other_names_are_in_the_sources():
    text = "\n".join(sources())
    names = {word for word in WORDS if re.fullmatch(r"\w+", word)} - TARGETS
    assert len(names) > 10
    assert not [name for name in names if not re.search(rf"\b{name}\b", text)]


def test_hooks_are_make_lint():
    makefile = (ROOT / "Makefile").read_text()
    (recipe,) = re.findall(r"^lint:.*\n((?:\t.*\n)+)", makefile, flags=re.MULTILINE)
    lint = [line.partition("  #")[0].strip() for line in recipe.splitlines()]
    lint = [line.replace("$(BIN)", ".venv/bin").replace("$$", "$") for line in lint]
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    commands = re.findall(r"entry: (?:bash -c ')?((?:\.venv|PATH).*?)'?$", hooks, re.MULTILINE)
    assert commands == lint
