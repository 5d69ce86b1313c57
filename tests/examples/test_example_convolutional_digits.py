"""The example convolutional_digits: its layers, their gradients, and what it learns."""

import numpy as np
import pytest
from support import programs


@pytest.fixture
def example(monkeypatch):
    monkeypatch.setattr("fastce._runtime.threads._num_threads", 1)  # as the program does
    return programs.load("convolutional_digits", monkeypatch)


def in_float64(layer, rng):
    layer.parameters = [rng.standard_normal(p.shape) for p in layer.parameters]
    return layer


def differences(f, x, step=1e-6):
    """Central differences of a number, for each element of x."""
    result = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        kept = x[i]
        x[i] = kept + step
        above = f()
        x[i] = kept - step
        result[i] = (above - f()) / (2 * step)
        x[i] = kept
    return result


def test_convolution_is_the_sum_it_says(example):
    rng = np.random.default_rng(1)
    layer = in_float64(example.Convolution(rng, 2, 3), rng)
    (weights, bias), x = layer.parameters, rng.standard_normal((2, 4, 6, 2))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = np.zeros((2, 4, 6, 3)) + bias
    for n, i, j, u, v in np.ndindex(2, 4, 6, 3, 3):
        expected[n, i, j] += padded[n, i + u, j + v] @ weights[u, v]
    np.testing.assert_allclose(layer.forward(x), expected, atol=1e-12)


@pytest.mark.parametrize("name", ["convolution", "relu", "pool", "dense"])
def test_gradients_of_layers_against_finite_differences(example, name):
    rng = np.random.default_rng(2)
    layer = {
        "convolution": lambda: in_float64(example.Convolution(rng, 2, 3), rng),
        "relu": example.ReLU,
        "pool": example.MaxPool,
        "dense": lambda: in_float64(example.Dense(rng, 4 * 6 * 2, 5), rng),
    }[name]()
    x = rng.standard_normal((2, 4, 6, 2))
    grad = rng.standard_normal(layer.forward(x).shape)

    def value():
        return (layer.forward(x) * grad).sum()

    value()
    found = layer.backward(grad)
    np.testing.assert_allclose(found, differences(value, x), rtol=1e-7, atol=1e-7)
    for parameter, gradient in zip(layer.parameters, layer.gradients, strict=True):
        expected = differences(value, parameter)
        np.testing.assert_allclose(gradient, expected, rtol=1e-7, atol=1e-7)


def test_equal_pixels_get_one_gradient(example):
    layer = example.MaxPool()
    layer.forward(np.full((1, 2, 2, 1), 3.0))
    assert layer.backward(np.ones((1, 1, 1, 1))).ravel().tolist() == [1, 0, 0, 0]


def test_gradients_of_the_network(example):
    rng = np.random.default_rng(3)
    network = example.Network(rng)
    for layer in network.layers:
        layer.parameters = [p + 0.1 * rng.standard_normal(p.shape) for p in layer.parameters]
    digits = example.Digits(rng.random((5, 64)), rng.integers(0, 10, 5))
    _, gradients = network.loss_and_gradients(digits)
    parameters = [p for layer in network.layers for p in layer.parameters]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        for _ in range(8):
            i = tuple(rng.integers(0, parameter.shape))
            kept, losses = parameter[i], []
            for step in (1e-6, -1e-6):
                parameter[i] = kept + step
                losses.append(network.loss_and_gradients(digits)[0])
            parameter[i] = kept
            assert gradient[i] == pytest.approx((losses[0] - losses[1]) / 2e-6, rel=1e-5, abs=1e-8)


def test_against_torch(example):
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    rng = np.random.default_rng(4)
    network = example.Network(rng)
    digits = example.Digits(rng.random((6, 64), np.float32), rng.integers(0, 10, 6))
    tensors = [torch.tensor(p, requires_grad=True) for p in network.parameters]
    x = torch.tensor(digits.images).reshape(-1, 1, 8, 8)
    for weights, bias in zip(tensors[0:4:2], tensors[1:4:2], strict=True):
        x = torch.nn.functional.conv2d(x, weights.permute(3, 2, 0, 1), bias, padding=1)
        x = torch.nn.functional.max_pool2d(x.relu(), 2)
    logits = x.permute(0, 2, 3, 1).reshape(6, -1) @ tensors[4] + tensors[5]
    theirs = torch.nn.functional.cross_entropy(logits, torch.tensor(digits.labels))
    theirs.backward()
    loss, gradients = network.loss_and_gradients(digits)
    assert loss == pytest.approx(theirs.item(), rel=1e-5)
    for gradient, tensor in zip(gradients, tensors, strict=True):
        assert gradient.dtype == np.float32
        np.testing.assert_allclose(gradient, tensor.grad.numpy(), rtol=1e-4, atol=1e-6)


def test_a_short_training(example):
    training, test = example.load()
    network, history = example.train(training, test, 5)
    assert history[-1].training < 0.5 < history[0].training
    assert history[-1].accuracy > 0.9  # the whole program is above 0.97
    assert network.logits(test.images).dtype == np.float32


def test_the_program(tmp_path):
    said = programs.run("convolutional_digits", "--epochs", "1", picture=tmp_path / "picture.png")
    assert "of 450 test digits misread" in said
