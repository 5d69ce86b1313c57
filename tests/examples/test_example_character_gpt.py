"""The example character_gpt: its gradients, that it does not see ahead, and what it learns."""

import numpy as np
import pytest
from support import programs


@pytest.fixture
def example(monkeypatch):
    monkeypatch.setattr("fastce._runtime.threads._num_threads", 1)  # as the program does
    module = programs.load("character_gpt", monkeypatch)
    for name, size in {"CONTEXT": 6, "WIDTH": 8, "HEADS": 2}.items():
        monkeypatch.setattr(module, name, size)
    return module


def in_float64(model):
    """The same model in float64, with larger numbers, so that each gradient shows."""
    model.tokens, model.positions, model.last = (
        2 * p.astype(float) for p in (model.tokens, model.positions, model.last)
    )
    for layer in model.layers:
        layer.parameters = [p.astype(float) for p in layer.parameters]
    of_layers = [p for layer in model.layers for p in layer.parameters]
    model.parameters = [model.tokens, model.positions, model.last, *of_layers]
    return model


def test_gradients(example):
    rng = np.random.default_rng(0)
    model = in_float64(example.GPT(rng, 5))
    x, following = rng.integers(0, 5, (2, 3, 6))
    loss, grads = model.loss_and_gradients(x, following)
    assert loss == pytest.approx(model.loss(x, following))
    programs.check_gradients(lambda: model.loss(x, following), model.parameters, grads)


def test_nothing_is_seen_ahead(example):
    rng = np.random.default_rng(0)
    model, x = example.GPT(rng, 5), rng.integers(0, 5, (3, 6))
    before = model.forward(x).copy()
    x[:, 4] = (x[:, 4] + 1) % 5
    after = model.forward(x)
    np.testing.assert_array_equal(after[:, :4], before[:, :4])
    assert (after[:, 4:] != before[:, 4:]).any(axis=-1).all()


def test_the_text(example):
    text = example.read()
    assert 60 < len(text.characters) < 128
    assert len(text.training) > 200_000 < 20 * len(text.test)
    x, following = example.windows(text.test, 7, np.random.default_rng(0))
    assert x.shape == following.shape == (7, 6)
    np.testing.assert_array_equal(x[:, 1:], following[:, :-1])
    counted = example.counting(text.test)
    assert 3 < counted["single characters"] < 3.6
    assert 2 < counted["pairs"] < 2.7


def test_a_short_training_knows_more_than_the_frequencies(example, monkeypatch):
    monkeypatch.setattr(example, "WIDTH", 64)
    monkeypatch.setattr(example, "CONTEXT", 32)
    rng, text = np.random.default_rng(0), example.read()
    model = example.GPT(rng, len(text.characters))
    _, tested = example.train(model, text, 120, rng)
    assert tested[0][1] > 4
    assert tested[-1][1] < 0.92 * example.counting(text.test)["single characters"]
    written = list(model.write(text.test[:5], 20, rng))
    assert len(written) == 20
    assert set(written) <= set(range(len(text.characters)))


def test_the_program(tmp_path):
    shown = programs.run("character_gpt", "--steps", "3", picture=tmp_path / "gpt.png")
    assert "entropy of pairs" in shown
    assert "GPT on the test" in shown


def test_the_same_step_in_torch(example, monkeypatch):
    pytest.importorskip("torch", reason="PyTorch is not installed: nothing to compare with")
    compare = programs.load("character_gpt_torch", monkeypatch).compare
    rng = np.random.default_rng(0)
    model = example.GPT(rng, 5)
    before = [p.copy() for p in model.parameters]
    assert "times as long" in compare(
        model, *rng.integers(0, 5, (2, 3, 6))
    )  # which checks the loss
    for parameter, kept in zip(model.parameters, before, strict=True):
        np.testing.assert_array_equal(parameter, kept)
