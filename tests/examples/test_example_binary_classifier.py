"""The example binary_classifier: its gradients, what it learns, and the mistake it shows."""

import numpy as np
import pytest
from support import programs

import fastce


@pytest.fixture
def example(monkeypatch):
    return programs.load("binary_classifier", monkeypatch)


def test_the_data(example):
    training, test = example.load()
    assert len(training.malignant) + len(test.malignant) == 569
    assert training.malignant.sum() + test.malignant.sum() == 212  # the malignant ones
    np.testing.assert_allclose(training.measures.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(training.measures.std(axis=0), 1, atol=1e-5)


def test_gradients_against_finite_differences(example):
    rng = np.random.default_rng(1)
    network = example.Network(rng, inputs=4, hidden=5)
    network.parameters = [p + 0.1 * rng.standard_normal(p.shape) for p in network.parameters]
    x, t = rng.standard_normal((7, 4)), rng.integers(0, 2, 7).astype(float)
    _, grads = network.loss_and_gradients(x, t)
    for parameter, grad in zip(network.parameters, grads, strict=True):
        assert grad.shape == parameter.shape
        for i in np.ndindex(parameter.shape):
            kept, losses = parameter[i], []
            for step in (1e-6, -1e-6):
                parameter[i] = kept + step
                losses.append(network.loss_and_gradients(x, t)[0])
            parameter[i] = kept
            assert grad[i] == pytest.approx((losses[0] - losses[1]) / 2e-6, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", ["gradient descent, 1", "Adam, 0.01"])
def test_a_short_training(example, name):
    training, test = example.load()
    run = example.train(name, training, test, 60)
    assert run.training[-1] < 0.1 < run.training[0]
    assert np.mean((run.scores > 0) == test.malignant) > 0.9
    assert all(p.dtype == np.float32 for p in (training.measures, run.scores))


def test_what_log_of_sigmoid_does_at_large_scores(example):
    x = np.array([17, 100, 1000], np.float32)
    assert np.all(np.isinf(example.naive_loss(x, 0.0)))
    assert np.all(np.isnan(example.naive_loss(x, 1.0)))  # 0 times an infinite logarithm
    assert np.all(example.naive_loss(x, 0.0, 1e-7) < 17)  # and no slope
    loss, grad = fastce.binary_cross_entropy_with_logits_with_grad(
        x, np.zeros_like(x), reduction="none"
    )
    np.testing.assert_array_equal(loss, x)
    np.testing.assert_array_equal(grad, 1)
    with pytest.raises(ValueError, match="for scores there is binary_cross_entropy_with_logits"):
        fastce.binary_cross_entropy(x, np.zeros_like(x))


def test_the_program(tmp_path):
    said = programs.run("binary_classifier", "--steps", "3", picture=tmp_path / "picture.png")
    assert "Adam, 0.01" in said
    assert "of 143 test tumours, 53 malignant" in said
