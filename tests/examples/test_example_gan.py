"""The generative adversarial network of examples/."""

import numpy as np
import pytest
from support import programs


@pytest.fixture
def example(monkeypatch):
    return programs.load("gan", monkeypatch)


@pytest.fixture
def players(example):
    return example.Players(np.random.default_rng(0), np.float64)


def test_gradients_of_the_discriminator(example, players):
    real, noise = np.random.default_rng(1).standard_normal((2, 7, 8))
    real = real[:, :2]
    _, grads = players.discriminator_loss_with_grads(real, noise)
    programs.check_gradients(
        lambda: players.discriminator_loss_with_grads(real, noise)[0],
        players.discriminator.parameters,
        grads,
    )


@pytest.mark.parametrize("saturating", [False, True])
def test_gradients_of_the_generator(example, players, saturating):
    noise = np.random.default_rng(1).standard_normal((7, example.NOISE))
    _, grads = players.generator_loss_with_grads(noise, saturating)
    programs.check_gradients(
        lambda: players.generator_loss_with_grads(noise, saturating)[0],
        players.generator.parameters,
        grads,
    )


def test_the_two_losses_of_the_generator(example, players):
    """Of a discriminator that is sure, only one of them still pulls, and both the same way."""
    noise = np.random.default_rng(1).standard_normal((7, example.NOISE))
    discriminator = players.discriminator.parameters
    discriminator[-2] *= 1e-3
    discriminator[-1][...] = -10  # p = 1 / (1 + exp(10)) = 4.54e-5
    loss, grads = players.generator_loss_with_grads(noise)
    saturated, small = players.generator_loss_with_grads(noise, saturating=True)
    assert abs(loss - 10) < 0.01
    assert abs(saturated / -4.54e-5 - 1) < 0.01
    for grad, other in zip(grads, small, strict=True):
        np.testing.assert_allclose(other, 4.54e-5 * grad, atol=5e-7 * np.abs(grad).max())


def test_the_judge(example):
    data = example.project()
    judge = example.Judge(data)
    assert (len(data.training), len(data.test)) == (269, 271)
    assert abs(judge.energy_distance(data.test)) < 1e-6
    assert judge.energy_distance(data.training) < 0.01
    assert judge.energy_distance(example.gaussian(data)) > 0.05
    assert judge.share_near(data.test) == pytest.approx(0.95, abs=0.01)
    assert judge.share_near(data.test + 5) == 0
    assert judge.shares(data.training).min() > 0.3
    assert judge.shares(data.training[data.labels == 4]) == pytest.approx([0, 1, 0], abs=0.05)


def test_a_short_training_finds_all_clusters(example):
    """Six seeds gave distances of 0.010 to 0.021, 75% to 80% near, and shares of 29% to 37%."""
    data = example.project()
    judge = example.Judge(data)
    trained = example.train(data, judge, steps=2000)
    points = example.sample(trained.average)
    assert judge.energy_distance(points) < 0.035  # of one Gaussian 0.058
    assert judge.share_near(points) > 0.65  # of one Gaussian 0.54
    shares = judge.shares(points)
    assert shares.min() > 0.2
    assert shares.max() < 0.5
    losses = trained.losses[-200:].mean(axis=0)
    np.testing.assert_allclose(losses, np.log(2), atol=0.15)  # neither player has won


def test_the_short_program(tmp_path):
    printed = programs.run("gan", "--steps", "3", "--saturating", picture=tmp_path / "gan.png")
    assert "one Gaussian" in printed


def test_the_picture_of_the_page_is_small():
    assert (programs.ROOT / "docs" / "examples" / "gan.png").stat().st_size < 120_000
