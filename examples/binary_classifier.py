"""Malignant or benign: a two-layer network trained by binary cross-entropy, with two optimisers.

    python examples/binary_classifier.py [--output PICTURE] [--steps 300]

On scikit-learn's breast-cancer data, 569 tumours of 30 measurements. Gradient descent and Adam
start from the same weights, each at three rates. The last panel shows what becomes of the loss
when it is written as log(sigmoid(x)). It takes some seconds.
"""

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from training import Adam, panels, progress, save

import fastce

STEPS, HIDDEN = 300, 16
SHOWN = "Adam, 0.01"  # whose test scores are drawn


class Tumours(NamedTuple):
    measures: np.ndarray  # (tumours, 30), float32, standardised
    malignant: np.ndarray  # (tumours,), float32: 1 for malignant, 0 for benign


def load(seed: int = 0) -> tuple[Tumours, Tumours]:
    """Three quarters to train on and one quarter to test with."""
    data = load_breast_cancer()
    malignant = (data.target == 0).astype(np.float32)  # scikit-learn's 1 is benign
    a, b, a_malignant, b_malignant = train_test_split(
        data.data, malignant, test_size=0.25, stratify=malignant, random_state=seed
    )
    mean, deviation = a.mean(axis=0), a.std(axis=0)  # of the training part only
    a, b = (((x - mean) / deviation).astype(np.float32) for x in (a, b))
    return Tumours(a, a_malignant), Tumours(b, b_malignant)


class Network:
    """score = max(x w1 + b1, 0) w2 + b2, the logit of the probability sigmoid(score)."""

    def __init__(self, rng: np.random.Generator, inputs: int = 30, hidden: int = HIDDEN) -> None:
        first = rng.normal(0, (2 / inputs) ** 0.5, (inputs, hidden)).astype(np.float32)
        second = rng.normal(0, (1 / hidden) ** 0.5, hidden).astype(np.float32)
        self.parameters = [first, np.zeros(hidden, np.float32), second, np.zeros(1, np.float32)]

    def forward(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Hidden values and scores."""
        w1, b1, w2, b2 = self.parameters
        hidden = np.maximum(x @ w1 + b1, 0)
        return hidden, hidden @ w2 + b2

    def loss_and_gradients(self, x: np.ndarray, t: np.ndarray) -> tuple[float, list[np.ndarray]]:
        """Mean loss, and its gradient with respect to each parameter."""
        hidden, scores = self.forward(x)
        # Logits go in, and no sigmoid before. The gradient (sigmoid(scores) - t) / n replaces them.
        loss, grad = fastce.binary_cross_entropy_with_logits_with_grad(scores, t, out=scores)
        below = np.outer(grad, self.parameters[2]) * (hidden > 0)
        return float(loss), [x.T @ below, below.sum(axis=0), grad @ hidden, grad.sum(keepdims=True)]


class GradientDescent:
    def __init__(self, parameters: Sequence[np.ndarray], rate: float) -> None:
        self.parameters, self.rate = parameters, rate

    def step(self, grads: Iterable[np.ndarray]) -> None:
        for parameter, grad in zip(self.parameters, grads, strict=True):
            parameter -= self.rate * grad


OPTIMISERS: dict[str, tuple[Callable, float]] = {
    "gradient descent, 0.01": (GradientDescent, 0.01),
    "gradient descent, 0.1": (GradientDescent, 0.1),
    "gradient descent, 1": (GradientDescent, 1.0),
    "Adam, 0.001": (Adam, 0.001),
    "Adam, 0.01": (Adam, 0.01),
    "Adam, 0.1": (Adam, 0.1),
}


class Run(NamedTuple):
    training: list[float]  # mean loss before each step, in nats
    test: list[float]
    scores: np.ndarray  # of the test tumours, at the end


def train(name: str, training: Tumours, test: Tumours, steps: int = STEPS) -> Run:
    """Steps of one optimiser, each over all training tumours, from the same weights."""
    network = Network(np.random.default_rng(0))
    make, rate = OPTIMISERS[name]
    optimiser = make(network.parameters, rate)
    losses: tuple[list[float], list[float]] = [], []
    for _ in range(steps):
        _, scores = network.forward(test.measures)
        losses[1].append(float(fastce.binary_cross_entropy_with_logits(scores, test.malignant)))
        loss, grads = network.loss_and_gradients(*training)
        losses[0].append(loss)
        optimiser.step(grads)
    return Run(*losses, network.forward(test.measures)[1])


def naive_loss(x: np.ndarray, t: np.ndarray | float, epsilon: float = 0.0) -> np.ndarray:
    """Binary cross-entropy as tutorials write it, with the errors that follow."""
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        p = 1 / (1 + np.exp(-x))
        return -(t * np.log(p + epsilon) + (1 - t) * np.log(1 - p + epsilon))


def draw(path: Path, runs: dict[str, Run], test: Tumours) -> None:
    figure, grid = panels(2, 2, 6.6)
    for i, what in enumerate(("training", "test")):
        for j, (name, run) in enumerate(runs.items()):
            style = {"color": f"C{j // 3}", "linestyle": (":", "-", "--")[j % 3]}
            grid[0, i].plot(run[i], label=name, linewidth=1.6, **style)
        grid[0, i].set(xlabel="step", ylabel="nats", yscale="log")
        grid[0, i].set_title(f"loss, {what}", loc="left", weight="bold")
    grid[0, 1].set_ylim(0.06, 1.5)
    grid[0, 1].legend(frameon=False, fontsize=9, loc="upper right")

    axes, scores = grid[1, 0], runs[SHOWN].scores
    edges = np.linspace(scores.min(), scores.max(), 40)
    for value, name, colour in (0, "benign", "C2"), (1, "malignant", "C3"):
        axes.hist(scores[test.malignant == value], edges, color=colour, alpha=0.7, label=name)
    axes.axvline(0, color="0.3", linewidth=1)
    axes.set(xlabel="score (logit); 0 is a probability of one half", ylabel="test tumours")
    axes.set_title(f"scores after {SHOWN}", loc="left", weight="bold")
    axes.legend(frameon=False, fontsize=9)

    axes, x = grid[1, 1], np.linspace(0, 30, 301, dtype=np.float32)
    right = fastce.binary_cross_entropy_with_logits(x, np.zeros_like(x), reduction="none")
    axes.plot(x, right, color="0.7", linewidth=5, label="from the logit")
    axes.plot(x, naive_loss(x, 0.0), color="C3", label="log(1 - p): infinite beyond 17")
    axes.plot(x, naive_loss(x, 0.0, 1e-7), "--", color="C1", label="log(1 - p + 1e-7)")
    axes.set(xlabel="score of a benign tumour", ylabel="nats", ylim=(0, 31))
    axes.set_title("loss of one mistake, float32", loc="left", weight="bold")
    axes.legend(frameon=False, fontsize=9)
    save(figure, path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("binary_classifier.png"))
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args()
    training, test = load()
    runs = {
        name: train(name, training, test, args.steps)
        for name in progress(list(OPTIMISERS), "training")
    }
    head = f"after {args.steps} steps"
    print(f"{head:24} training  test: loss, lowest, at step, errors, AUC")
    for name, run in runs.items():
        errors = np.sum((run.scores > 0) != test.malignant)
        last = fastce.binary_cross_entropy_with_logits(run.scores, test.malignant)
        print(
            f"{name:24} {run.training[-1]:8.4f}  {last:10.3f} {min(run.test):7.3f} "
            f"{np.argmin(run.test):8} {errors:7} {roc_auc_score(test.malignant, run.scores):.3f}"
        )
    print(f"of {len(test.malignant)} test tumours, {int(test.malignant.sum())} malignant")
    mean = naive_loss(runs[SHOWN].scores, test.malignant).mean()
    print(f"test loss after {SHOWN}, written as log(sigmoid(x)): {mean:.3f}")
    draw(args.output, runs, test)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
