"""How the tests of the examples run them: as modules, and as programs."""

import importlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


def load(name, monkeypatch):
    """The module of an example, which may import what lies beside it."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module(name)


def run(name, *arguments, picture):
    """What an example prints; it must succeed, and save a picture."""
    command = [sys.executable, EXAMPLES / f"{name}.py", *arguments, "--output", picture]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
    return done.stdout
