"""How the tests of the examples run them: as modules, and as programs. Where what the examples
need is missing, a test file that imports this one is skipped.
"""

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

for needed in ("matplotlib", "rich", "sklearn"):
    pytest.importorskip(needed)

ROOT = Path(__file__).parents[2]
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


def check_gradients(loss, parameters, grads, step=1e-6):
    """Each gradient against central differences, along a few random directions. In float64."""
    rng = np.random.default_rng(0)
    for parameter, grad in zip(parameters, grads, strict=True):
        assert parameter.dtype == grad.dtype == np.float64
        assert parameter.shape == grad.shape
        kept = parameter.copy()
        for _ in range(3):
            direction = rng.standard_normal(parameter.shape)
            sides = []
            for sign in 1, -1:
                parameter[...] = kept + sign * step * direction
                sides.append(loss())
            parameter[...] = kept
            found = (sides[0] - sides[1]) / (2 * step)
            np.testing.assert_allclose(found, np.sum(grad * direction), rtol=1e-5, atol=1e-7)
