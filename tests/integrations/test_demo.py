"""The example that `make demo` runs."""

import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

for needed in ("matplotlib", "rich", "sklearn"):
    pytest.importorskip(needed)

SCRIPT = Path(__file__).parents[2] / "examples" / "digits.py"


@pytest.fixture(scope="module")
def digits():
    return SimpleNamespace(**runpy.run_path(str(SCRIPT)))


def test_a_short_training(digits):
    training, test = digits.load()
    model = digits.Model()
    losses = [model.loss(training)]
    assert losses[0] == pytest.approx(np.log(10))
    digits.train(model, training, epochs=5, after_epoch=lambda: losses.append(model.loss(training)))
    assert len(losses) == 6
    assert losses[-1] < 0.3
    assert model.accuracy(test) > 0.9


def test_the_whole_demo(tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, "--output", tmp_path / "new" / "folder"],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Accuracy on 450 test digits: 9" in done.stdout
    for name in ("loss_curve.png", "digits.png"):
        picture = (tmp_path / "new" / "folder" / name).read_bytes()
        assert picture.startswith(b"\x89PNG")
        assert len(picture) > 10_000
