"""The example softmax_regression: gradients, penalties, early stopping, and what it shows."""

import numpy as np
import pytest
from support import programs


@pytest.fixture
def example(monkeypatch):
    return programs.load("softmax_regression", monkeypatch)


@pytest.fixture
def float64(example):
    training, _, _ = example.split()
    return training._replace(images=training.images.astype(float))


def test_the_data(example):
    training, validation, test = example.split()
    assert [len(part.labels) for part in (training, validation, test)] == [100, 400, 1297]
    right, _ = example.load(test=1297)
    np.testing.assert_array_equal(training.images, right.images[:100])
    assert np.flatnonzero(training.labels != right.labels[:100]).tolist() == list(range(20))
    np.testing.assert_array_equal(validation.labels, right.labels[100:])


@pytest.mark.parametrize("one_hot", [False, True])
def test_gradients_against_finite_differences(example, float64, one_hot):
    rng = np.random.default_rng(2)
    model = example.Model(l2=0.3, dtype=float)
    model.weights += rng.standard_normal(model.weights.shape)
    model.bias += rng.standard_normal(10)
    digits = float64._replace(labels=np.eye(10)[float64.labels]) if one_hot else float64
    weights, bias = model.gradients(digits)

    def objective():
        return model.loss(digits) + 0.15 * (model.weights**2).sum()

    places = [(model.weights, weights, tuple(rng.integers(0, (64, 10)))) for _ in range(30)]
    places += [(model.bias, bias, (k,)) for k in range(10)]
    for parameter, grad, i in places:
        kept, values = parameter[i], []
        for step in (1e-5, -1e-5):
            parameter[i] = kept + step
            values.append(objective())
        parameter[i] = kept
        assert grad[i] == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6, abs=1e-8)


def test_labels_and_one_hot_rows_give_one_gradient(example):
    assert example.one_hot_difference(example.split()[0]) < 2e-9  # gradients are up to 0.01


def test_soft_threshold_is_the_proximal_step(example):
    v = np.linspace(-2, 2, 4001)
    for w in (-1.5, -0.3, 0.0, 0.2, 0.31, 1.0):
        best = v[np.argmin((v - w) ** 2 / 2 + 0.3 * np.abs(v))]
        assert example.soft_threshold(np.array([w]), 0.3)[0] == pytest.approx(best, abs=2e-3)
    assert np.all(example.soft_threshold(np.array([-0.3, 0.29, 0.3]), 0.3) == 0)


def test_l1_ends_at_its_optimum(example, float64):
    model = example.Model(l1=0.03, dtype=float)
    for _ in range(5000):
        model.step(float64)
    weights, bias = model.gradients(float64)
    zero = model.weights == 0
    assert 0.5 < zero.mean() < 1
    assert np.abs(weights[zero]).max() <= 0.03 + 1e-6
    np.testing.assert_allclose(weights[~zero], -0.03 * np.sign(model.weights[~zero]), atol=1e-4)
    np.testing.assert_allclose(bias, 0, atol=1e-4)


def test_l2_ends_where_scikit_learn_does(example, float64):
    from sklearn.linear_model import LogisticRegression

    model = example.Model(l2=0.3, dtype=float)
    for _ in range(5000):
        model.step(float64)
    theirs = LogisticRegression(C=1 / (0.3 * 100), tol=1e-10, solver="newton-cg")
    theirs.fit(float64.images, float64.labels)
    np.testing.assert_allclose(model.weights, theirs.coef_.T, atol=1e-6)


def test_a_short_experiment(example):
    training, validation, test = example.split()
    none = example.train(example.Model(), training, validation, 3000)
    stopped = example.train(example.Model(), training, validation, 3000, example.PATIENCE)
    best = int(np.argmin(none.validation))
    assert stopped.validation == none.validation[: best + example.PATIENCE + 1]
    assert stopped.model.loss(validation) == none.validation[best]
    assert none.training[-1] < 0.3 < 0.8 < none.validation[-1]  # overfitted
    assert stopped.model.loss(test) < none.model.loss(test) - 0.08
    assert stopped.model.accuracy(test) > 0.75
    l2 = example.train(example.Model(l2=0.003), training, validation, 3000)
    assert l2.model.loss(test) < none.model.loss(test) - 0.05


def test_the_program(tmp_path):
    said = programs.run("softmax_regression", "--epochs", "20", picture=tmp_path / "picture.png")
    assert "gradients differ by" in said
    assert "early stopping" in said
