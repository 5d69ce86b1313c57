"""The example that draws the picture of docs/guide/robust_losses.md."""

import numpy as np
import pytest
from support import programs


@pytest.fixture
def example(monkeypatch):
    return programs.load("robust_losses", monkeypatch)


def test_the_data(example):
    training, test = example.load(test=0.5, seed=0)
    rng = np.random.default_rng(0)
    wrong = np.mean(example.flipped(training, rng).labels != training.labels)
    assert abs(wrong - example.FLIPPED) < 0.05
    counts = np.bincount(example.imbalanced(training, rng).labels)
    assert all(counts[label] == example.KEPT for label in example.RARE)
    assert np.delete(counts, example.RARE).min() > 80
    assert np.bincount(test.labels).min() > 80


def test_a_short_training_resists_flipped_labels(example):
    training, test = example.load(test=0.5, seed=0)
    wrong = example.flipped(training, np.random.default_rng(0))
    accuracy = {}
    for name in "cross-entropy", "generalized, q 0.7":
        predict = example.train(example.LOSSES[name], wrong, np.random.default_rng(0), 40)
        accuracy[name] = example.accuracy(predict, test)
    assert accuracy["generalized, q 0.7"] > 0.85 > accuracy["cross-entropy"] > 0.5


def test_the_short_program(tmp_path):
    picture = tmp_path / "robust.png"
    short = "--runs", "1", "--epochs", "2"
    printed = programs.run("robust_losses", *short, picture=picture)
    assert "generalized, q 0.7" in printed


def test_the_picture_of_the_page_is_small():
    assert (programs.ROOT / "docs" / "robust_losses.png").stat().st_size < 120_000
