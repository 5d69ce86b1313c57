"""Softmax regression on few digits, some of them mislabelled: overfitting, and three remedies.

    python examples/softmax_regression.py [--output PICTURE] [--epochs 10000] [--wrong 20]

A linear classifier of 650 numbers learns scikit-learn's digits from 100 images, 20 of which have a
wrong label: without a remedy, with early stopping, with an L1 penalty (proximal steps) and with an
L2 penalty. 400 other images choose the strength of the penalty and the moment to stop; the rest is
the test. It takes a quarter of a minute.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
from training import Digits, load, panels, progress, save, tiles

import fastce

EPOCHS = 10_000
RATE = 0.3
WRONG = 20  # mislabelled training digits
PATIENCE = 100  # epochs without a lower validation loss
STRENGTHS = {
    "L1": (0.0003, 0.001, 0.003, 0.01, 0.03),
    "L2": (0.001, 0.003, 0.01, 0.03, 0.1),
}


def split(wrong: int = WRONG) -> tuple[Digits, Digits, Digits]:
    """100 digits to train on, the first mislabelled, 400 to validate with, and 1297 to test."""
    few, test = load(test=1297)
    labels = few.labels[:100].copy()
    labels[:wrong] = (labels[:wrong] + np.random.default_rng(0).integers(1, 10, wrong)) % 10
    return Digits(few.images[:100], labels), Digits(few.images[100:], few.labels[100:]), test


class Model:
    """logits = images @ weights + bias, with a penalty for the weights and none for the bias.

    The penalty is l1 * sum |w| + l2 / 2 * sum w^2, beside the mean loss.
    """

    def __init__(self, l1: float = 0.0, l2: float = 0.0, dtype: type = np.float32) -> None:
        self.l1, self.l2 = l1, l2
        self.weights, self.bias = np.zeros((64, 10), dtype), np.zeros(10, dtype)

    def logits(self, images: np.ndarray) -> np.ndarray:
        return images @ self.weights + self.bias

    def loss(self, digits: Digits) -> float:
        """Cross-entropy alone, in nats."""
        return float(fastce.cross_entropy(self.logits(digits.images), digits.labels))

    def accuracy(self, digits: Digits) -> float:
        return float(np.mean(self.logits(digits.images).argmax(axis=1) == digits.labels))

    def gradients(self, digits: Digits) -> tuple[np.ndarray, np.ndarray]:
        """Of the loss and the L2 penalty, which are smooth. Labels or one-hot rows will do."""
        logits = self.logits(digits.images)
        _, grad = fastce.cross_entropy_with_grad(logits, digits.labels, out=logits)
        return digits.images.T @ grad + self.l2 * self.weights, grad.sum(axis=0)

    def step(self, digits: Digits, rate: float = RATE) -> None:
        """One step down the smooth part, and one towards 0 for the L1 penalty, which is not."""
        weights, bias = self.gradients(digits)
        self.weights -= rate * weights
        self.bias -= rate * bias
        if self.l1:
            self.weights = soft_threshold(self.weights, rate * self.l1)


def soft_threshold(w: np.ndarray, threshold: float) -> np.ndarray:
    """The v with the least (v - w)^2 / 2 + threshold * |v|: nearer to 0, and 0 if near enough."""
    return w - np.clip(w, -threshold, threshold)


class Run(NamedTuple):
    model: Model
    training: list[float]  # loss before each epoch and after the last, in nats
    validation: list[float]


def train(
    model: Model, training: Digits, validation: Digits, epochs: int, patience: int | None = None
) -> Run:
    """All epochs; or, with patience, the weights of the lowest validation loss."""
    run = Run(model, [], [])
    best, kept = 0, (model.weights.copy(), model.bias.copy())
    for epoch in range(epochs + 1):
        run.training.append(model.loss(training))
        run.validation.append(model.loss(validation))
        if run.validation[epoch] < run.validation[best]:
            best, kept = epoch, (model.weights.copy(), model.bias.copy())
        if patience is not None and epoch - best >= patience:
            break
        if epoch < epochs:
            model.step(training)
    if patience is not None:
        model.weights, model.bias = kept
    return run


def experiment(training: Digits, validation: Digits, epochs: int) -> dict[str, list[Run]]:
    """The runs of each remedy: of a penalty, one for each strength."""
    data = training, validation, epochs
    runs = {"none": [train(Model(), *data)], "early stopping": [train(Model(), *data, PATIENCE)]}
    for name, strengths in STRENGTHS.items():
        models = [Model(**{name.lower(): strength}) for strength in strengths]
        runs[name] = [train(model, *data) for model in progress(models, name)]
    return runs


def choose(runs: list[Run]) -> Run:
    """The strength with the lowest validation loss at the end of the training."""
    return min(runs, key=lambda run: run.validation[-1])


def one_hot_difference(digits: Digits) -> float:
    """The largest difference of the gradients for labels and for one-hot rows."""
    logits = np.random.default_rng(0).standard_normal((len(digits.labels), 10), dtype=np.float32)
    one_hot = np.eye(10, dtype=np.float32)[digits.labels]
    _, grad = fastce.cross_entropy_with_grad(logits, digits.labels)
    _, same = fastce.cross_entropy_with_grad(logits, one_hot)
    return float(np.abs(grad - same).max())


def draw(path: Path, runs: dict[str, list[Run]]) -> None:
    figure, grid = panels(2, 3, 5.4)
    chosen = {name: choose(some) for name, some in runs.items()}
    largest = np.abs(chosen["L2"].model.weights).max()  # one scale for all
    shown = {"none": "no penalty", "L1": f"L1, {chosen['L1'].model.l1}"}
    shown["L2"] = f"L2, {chosen['L2'].model.l2}"
    for i, name in enumerate(shown):
        run = chosen[name]
        grid[0, 0].plot(run.training, color=f"C{i}", label=shown[name])
        grid[0, 1].plot(run.validation, color=f"C{i}")
        tiles(grid[1, i], run.model.weights.T, 5)
        grid[1, i].images[0].set(cmap="RdBu_r", clim=(-largest, largest))
        grid[1, i].set_title(f"weights, {shown[name]}", loc="left", weight="bold")
    stop = chosen["early stopping"].validation
    best = int(np.argmin(stop))
    grid[0, 1].plot(best, stop[best], "o", color="0.3", label=f"early stopping: epoch {best}")
    for axes, title in zip(grid[0], ("training loss", "validation loss"), strict=False):
        axes.set(xlabel="epoch", ylabel="nats", xscale="log", ylim=(0, 2.3))
        axes.set_title(title, loc="left", weight="bold")
    axes = grid[0, 2]
    for i, (name, strengths) in enumerate(STRENGTHS.items(), 1):
        last = [run.validation[-1] for run in runs[name]]
        axes.plot(strengths, last, "o-", color=f"C{i}", label=name)
    axes.axhline(chosen["none"].validation[-1], color="C0", label="no penalty")
    axes.axhline(stop[best], color="0.3", linestyle=":", label="early stopping")
    axes.set(xlabel="strength", ylabel="nats", xscale="log")
    axes.set_title("final validation loss", loc="left", weight="bold")
    for axes in grid[0]:
        axes.legend(frameon=False, fontsize=9)
    save(figure, path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("softmax_regression.png"))
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--wrong", type=int, default=WRONG, choices=range(101), metavar="LABELS")
    args = parser.parse_args()
    training, validation, test = split(args.wrong)
    print(f"labels or one-hot rows: gradients differ by {one_hot_difference(training):g}")
    runs = experiment(training, validation, args.epochs)
    print(f"{'':16} strength  training  validation: last, lowest   test  accuracy  weights of 0")
    for name, run in ((name, choose(some)) for name, some in runs.items()):
        m = run.model
        print(
            f"{name:16} {m.l1 or m.l2:8} {m.loss(training):9.4f} {run.validation[-1]:17.3f} "
            f"{min(run.validation):7.3f} {m.loss(test):6.3f} {m.accuracy(test):9.1%} "
            f"{np.mean(m.weights == 0):13.0%}"
        )
    draw(args.output, runs)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
