"""The example self_attention: the layer, its gradients, and what it learns to look at."""

import numpy as np
import pytest
from support import programs


@pytest.fixture
def example(monkeypatch):
    monkeypatch.setattr("fastce._runtime.threads._num_threads", 1)  # as the program does
    return programs.load("self_attention", monkeypatch)


def layer(example, rng, **options):
    made = example.SelfAttention(rng, 6, 2, **options)
    made.parameters = [2 * p.astype(float) for p in made.parameters]
    return made


def difference(f, x, i, step=1e-6):
    """The central difference of a number for element i of x."""
    kept, values = x[i], []
    for x[i] in (kept + step, kept - step):
        values.append(f())
    x[i] = kept
    return (values[0] - values[1]) / (2 * step)


@pytest.mark.parametrize(
    "options",
    [{}, {"is_causal": True}, {"attn_mask": ~np.eye(4, dtype=bool)}, {"softcap": 2, "scale": 0.7}],
)
def test_gradients_of_the_layer_against_finite_differences(example, options):
    rng = np.random.default_rng(1)
    attention, x = layer(example, rng, **options), rng.standard_normal((3, 4, 6))
    grad = rng.standard_normal((3, 4, 6))
    attention.forward(x)
    found = [attention.backward(grad), *attention.gradients]
    for array, gradient in zip([x, *attention.parameters], found, strict=True):
        assert gradient.shape == array.shape
        for i in np.ndindex(array.shape):
            expected = difference(lambda: (attention.forward(x) * grad).sum(), array, i)
            assert gradient[i] == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_weights_are_those_of_the_attention(example):
    rng = np.random.default_rng(2)
    attention = layer(example, rng)
    attention.forward(rng.standard_normal((3, 5, 6)))
    weights = attention.weights()
    assert weights.shape == (3, 2, 5, 5)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-12)
    np.testing.assert_allclose(weights @ attention.qkv[2], attention.mixed, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
def test_against_torch(example, causal):
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    rng = np.random.default_rng(3)
    attention = layer(example, rng, is_causal=causal)
    x, grad = rng.standard_normal((2, 3, 5, 6))
    theirs = torch.nn.MultiheadAttention(6, 2, bias=False, batch_first=True).double()
    *inputs, output = (torch.tensor(p.T) for p in attention.parameters)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat(inputs))
        theirs.out_proj.weight.copy_(output)
    xt = torch.tensor(x, requires_grad=True)
    hidden = torch.ones(5, 5, dtype=torch.bool).triu(1) if causal else None
    y, weights = theirs(xt, xt, xt, attn_mask=hidden, average_attn_weights=False)
    y.backward(torch.tensor(grad))
    close = {"rtol": 1e-10, "atol": 1e-10}
    np.testing.assert_allclose(attention.forward(x), y.detach().numpy(), **close)
    np.testing.assert_allclose(attention.backward(grad), xt.grad.numpy(), **close)
    expected = [w.numpy().T for w in theirs.in_proj_weight.grad.chunk(3)]
    expected.append(theirs.out_proj.weight.grad.numpy().T)
    for gradient, w in zip(attention.gradients, expected, strict=True):
        np.testing.assert_allclose(gradient, w, **close)
    seen = np.tril(np.ones((5, 5))) if causal else 1
    np.testing.assert_allclose(attention.weights() * seen, weights.detach().numpy(), **close)


def test_hands(example):
    _, test = example.load()
    hands = example.deal(test, 500, np.random.default_rng(4))
    assert hands.images.shape == (500, 7, 64)
    rows = np.arange(500)
    assert np.all(hands.classes[rows, hands.answers] == hands.classes[:, -1])
    same = hands.images[rows, hands.answers] == hands.images[:, -1]
    assert not same.all(axis=1).any()
    assert all(len(set(row)) == 6 for row in hands.classes[:, :6])
    assert np.bincount(hands.answers).min() > 50
    label_of = {image.tobytes(): label for image, label in zip(*test, strict=True)}
    pairs = zip(hands.images.reshape(-1, 64), hands.classes.ravel(), strict=True)
    assert all(label_of[image.tobytes()] == label for image, label in pairs)


def test_gradients_of_the_network(example):
    rng = np.random.default_rng(5)
    network = example.Network(rng)
    network.parameters = [p.astype(float) for p in network.parameters]
    network.attention.parameters = network.parameters[:4]
    hands = example.deal(example.load()[0], 4, rng)
    hands = hands._replace(images=hands.images.astype(float))
    _, gradients = network.loss_and_gradients(hands)
    for array, gradient in zip(network.parameters, gradients, strict=True):
        for _ in range(6):
            i = tuple(rng.integers(0, array.shape))
            expected = difference(lambda: network.loss_and_gradients(hands)[0], array, i)
            assert gradient[i] == pytest.approx(expected, rel=1e-5, abs=1e-8)


def test_a_short_training_looks_at_the_right_card(example):
    training, test = example.load()
    hands = example.deal(test, 500, np.random.default_rng(1))
    network, checks = example.train(training, hands, 240)
    assert checks[-1].accuracy > 0.7  # chance is 1 / 6; the whole program is above 0.95
    assert checks[-1].right.min() > 0.4
    looks = network.looks(hands.images)
    assert looks.dtype == np.float32
    np.testing.assert_allclose(looks.sum(axis=-1), 1, rtol=1e-5)  # it cannot look at itself


def test_the_program(tmp_path):
    said = programs.run("self_attention", "--steps", "2", picture=tmp_path / "picture.png")
    assert "of its attention to the right card" in said
