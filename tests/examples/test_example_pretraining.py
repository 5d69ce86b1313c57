"""The self-supervised pre-training of examples/."""

import numpy as np
import pytest
from support import programs


@pytest.fixture
def example(monkeypatch):
    return programs.load("pretraining", monkeypatch)


def test_gradients(example):
    rng = np.random.default_rng(0)
    network = example.Network([64, 9, 8, 9, 64], rng, dtype=np.float64)
    for parameter in network.parameters:  # at biases of 0, units may be just at their bend
        parameter += 0.1 * rng.standard_normal(parameter.shape)
    images, corrupted = rng.random((5, 64)), rng.standard_normal((5, 64))
    _, grads = example.loss_with_grads(network, corrupted, images)
    programs.check_gradients(
        lambda: example.loss_with_grads(network, corrupted, images)[0], network.parameters, grads
    )


def test_the_probe_finds_the_optimum_of_scikit_learn(example):
    from sklearn.linear_model import LogisticRegression

    training, _ = example.load()
    chosen = example.draw_labels(training.labels, 5, seed=0)
    assert np.bincount(training.labels[chosen]).tolist() == [5] * 10
    inputs, labels = example.scaled(training.images, training.images)[0][chosen], np.arange(50) // 5
    weights, bias = example.probe(inputs, labels)
    theirs = LogisticRegression(C=1 / (50 * example.L2), tol=1e-8).fit(inputs, labels)
    np.testing.assert_allclose(weights, theirs.coef_.T, atol=2e-3)
    np.testing.assert_allclose(bias - bias.mean(), theirs.intercept_, atol=2e-3)


def test_what_the_tasks_do_to_an_image(example):
    rng = np.random.default_rng(0)
    images = rng.random((100, 64), dtype=np.float32) + 0.5
    noisy, masked, same = (example.TASKS[t](images, rng) for t in ("noise", "masking", "none"))
    assert noisy.dtype == masked.dtype == same.dtype == np.float32
    assert abs(np.std(noisy - images) - example.NOISE) < 0.02
    assert abs(np.mean(masked == 0) - example.MASKED) < 0.02
    assert np.all((masked == 0) | (masked == images))
    np.testing.assert_array_equal(same, images)


def test_a_short_pretraining_helps_where_labels_are_few(example):
    training, test = example.load()
    network = example.pretrain(training.images, "noise", epochs=30)
    both = training.images, test.images
    inputs = {
        "pixels": example.scaled(*both),
        "noise": example.scaled(*(example.features(network, x) for x in both)),
    }
    found = example.accuracies(inputs, training, test, draws=6, sizes=(1, 2))
    pixels, noise = found["pixels"].mean(axis=1), found["noise"].mean(axis=1)
    assert np.all(noise > pixels + 0.02)
    assert 0.5 < pixels[0] < pixels[1] < 0.85


def test_the_short_program(tmp_path):
    printed = programs.run(
        "pretraining", "--epochs", "1", "--draws", "1", "--validation", picture=tmp_path / "a.png"
    )
    assert "accuracy on 347 digits" in printed


def test_the_picture_of_the_page_is_small():
    assert (programs.ROOT / "docs" / "examples" / "pretraining.png").stat().st_size < 120_000
