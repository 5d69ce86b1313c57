"""The variational autoencoder of examples/."""

import numpy as np
import pytest
from support import programs


@pytest.fixture
def example(monkeypatch):
    return programs.load("variational_autoencoder", monkeypatch)


@pytest.mark.parametrize("kl_weight", [1.0, 0.3])
def test_gradients(example, kl_weight):
    rng = np.random.default_rng(0)
    model = example.Autoencoder(3, rng, np.float64)
    images, noise = rng.random((5, 64)), rng.standard_normal((5, 3))

    def loss():
        parts, _ = model.loss_with_grads(images, noise, kl_weight)
        return parts.reconstruction + kl_weight * parts.kl

    _, grads = model.loss_with_grads(images, noise, kl_weight)
    programs.check_gradients(loss, model.parameters, grads)


def test_kl_is_the_mean_of_the_logarithm_of_the_quotient(example):
    mean, deviation = 0.7, 0.4
    z = mean + deviation * np.random.default_rng(0).standard_normal(1_000_000)
    quotient = -0.5 * ((z - mean) / deviation) ** 2 - np.log(deviation) + 0.5 * z**2
    found = example.gaussian_kl(np.array([mean]), np.array([2 * np.log(deviation)]))
    assert abs(found - quotient.mean()) < 0.005
    assert example.gaussian_kl(np.zeros(4), np.zeros(4)) == 0


def test_a_short_training_beats_the_mean_image(example):
    training, test = example.load()
    floor, ceiling = example.bounds(training.images, test.images)
    assert 13 < floor < 14 < 27 < ceiling < 28
    model, history = example.train(training.images, test.images, latent=2, epochs=20)
    _, last = history[-1]
    assert floor < last.total < ceiling - 1.2  # 25.8
    assert 1.5 < last.kl < 3
    # The image comes back, not just any digit: few others are nearer to it (of any, half would be).
    drawn = model.decode(model.encode(test.images)[0])
    distances = np.square(drawn[:, None] - test.images).sum(axis=2)
    rank = np.mean(distances < distances.diagonal()[:, None])
    assert rank < 0.2


def test_too_large_a_weight_of_the_kl_collapses_the_posterior(example):
    training, test = example.load()
    _, history = example.train(training.images, test.images, 2, epochs=10, kl_weight=64)
    assert history[-1][1].kl < 0.05


def test_the_short_program(tmp_path):
    printed = programs.run(
        "variational_autoencoder", "--epochs", "2", "--latent", "3", picture=tmp_path / "a.png"
    )
    assert "KL" in printed


def test_the_picture_of_the_page_is_small():
    picture = programs.ROOT / "docs" / "examples" / "variational_autoencoder.png"
    assert picture.stat().st_size < 120_000
