"""The example that draws the picture of docs/robust_losses.md."""

import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

for needed in ("matplotlib", "sklearn"):
    pytest.importorskip(needed)

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "examples" / "robust_losses.py"


@pytest.fixture(scope="module")
def example():
    return SimpleNamespace(**runpy.run_path(str(SCRIPT)))


def test_the_data(example):
    training, test = example.load(0)
    rng = np.random.default_rng(0)
    wrong = np.mean(example.flipped(training, rng).labels != training.labels)
    assert abs(wrong - example.FLIPPED) < 0.05
    counts = np.bincount(example.imbalanced(training, rng).labels)
    assert all(counts[label] == example.KEPT for label in example.RARE)
    assert np.delete(counts, example.RARE).min() > 80
    assert np.bincount(test.labels).min() > 80


def test_a_short_training_resists_flipped_labels(example):
    training, test = example.load(0)
    wrong = example.flipped(training, np.random.default_rng(0))
    accuracy = {}
    for name in "cross-entropy", "generalized, q 0.7":
        predict = example.train(example.LOSSES[name], wrong, np.random.default_rng(0), 40)
        accuracy[name] = example.accuracy(predict, test)
    assert accuracy["generalized, q 0.7"] > 0.85 > accuracy["cross-entropy"] > 0.5


def test_the_short_program(tmp_path):
    picture = tmp_path / "robust.png"
    done = subprocess.run(
        [sys.executable, SCRIPT, "--runs", "1", "--epochs", "2", "--output", picture],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "generalized, q 0.7" in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_picture_of_the_page_is_small():
    assert (ROOT / "docs" / "robust_losses.png").stat().st_size < 120_000
