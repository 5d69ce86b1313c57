"""Softmax regression on handwritten digits: 1,797 scanned digits of 8 x 8 pixels.

    pip install ".[cli]" scikit-learn    # in a clone of fastce
    python examples/digits.py --output demo

trains a linear classifier with one call of fastce per step, prints its accuracy on digits that
it has not seen, and draws the loss curve and some of those digits.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from rich.progress import BarColumn, Progress, TimeElapsedColumn
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import fastce

matplotlib.use("Agg")  # draw into files: no window is needed
import matplotlib.pyplot as plt

EPOCHS = 40
WANTED_ACCURACY = 0.95
BLUE, ORANGE, RED = "#2a6fbb", "#e08214", "#c8102e"


class Digits(NamedTuple):
    images: np.ndarray  # (digits, 64), from 0 to 1
    labels: np.ndarray  # (digits,), from 0 to 9


def load() -> tuple[Digits, Digits]:
    """Three quarters to train on and one quarter to test with, always the same."""
    data = load_digits()
    images = (data.data / 16).astype(np.float32)
    a, b, a_labels, b_labels = train_test_split(
        images, data.target, test_size=0.25, stratify=data.target, random_state=0
    )
    return Digits(a, a_labels), Digits(b, b_labels)


class Model:
    """logits = images @ weights + bias."""

    def __init__(self, pixels: int = 64, classes: int = 10) -> None:
        self.weights = np.zeros((pixels, classes), np.float32)
        self.bias = np.zeros(classes, np.float32)

    def logits(self, images: np.ndarray) -> np.ndarray:
        return images @ self.weights + self.bias

    def loss(self, digits: Digits) -> float:
        return float(fastce.cross_entropy(self.logits(digits.images), digits.labels))

    def accuracy(self, digits: Digits) -> float:
        return float(np.mean(self.logits(digits.images).argmax(axis=1) == digits.labels))


def train(
    model: Model,
    digits: Digits,
    *,
    epochs: int = EPOCHS,
    batch: int = 64,
    rate: float = 0.2,
    momentum: float = 0.9,
    after_epoch: Callable[[], None] = lambda: None,
) -> None:
    """Stochastic gradient descent with momentum."""
    rng = np.random.default_rng(0)
    speed_w, speed_b = np.zeros_like(model.weights), np.zeros_like(model.bias)
    for _ in range(epochs):
        shuffled = rng.permutation(len(digits.labels))
        for chosen in np.array_split(shuffled, max(1, len(shuffled) // batch)):
            images, labels = digits.images[chosen], digits.labels[chosen]
            logits = model.logits(images)
            # The gradient with respect to the logits takes their place: nothing is allocated.
            _, grad = fastce.cross_entropy_with_grad(logits, labels, out=logits)
            speed_w = momentum * speed_w - rate * (images.T @ grad)
            speed_b = momentum * speed_b - rate * grad.sum(axis=0)
            model.weights += speed_w
            model.bias += speed_b
        after_epoch()


def draw_losses(path: Path, losses: list[tuple[float, float]]) -> None:
    """The loss on both halves of the data after each epoch."""
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    epochs = np.arange(len(losses))
    for name, values, colour in zip(
        ("training digits", "test digits"), zip(*losses, strict=True), (BLUE, ORANGE), strict=True
    ):
        axes.plot(epochs, values, color=colour, linewidth=2)
        axes.annotate(
            f"{name}\n{values[-1]:.3f}", (epochs[-1], values[-1]), (8, 0),
            textcoords="offset points", va="center", color=colour,
        )  # fmt: skip
    axes.set(xlabel="epoch", ylabel="cross-entropy (nats)", yscale="log", xlim=(0, None))
    ticks = [0.05, 0.1, 0.2, 0.5, 1, 2]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_title("Softmax regression on handwritten digits", loc="left", weight="bold")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_digits(path: Path, model: Model, digits: Digits, rows: int = 4, columns: int = 10) -> None:
    """Test digits with their prediction: first those that are wrong, in red, then others."""
    probabilities = fastce.softmax(model.logits(digits.images))
    predicted = probabilities.argmax(axis=1)
    wrong = predicted != digits.labels
    order = np.argsort(~wrong, kind="stable")[: rows * columns]
    figure, grid = plt.subplots(rows, columns, figsize=(11, 6.2), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.1)
    for axes, i in zip(grid.flat, order, strict=True):
        colour = RED if wrong[i] else "black"
        axes.imshow(digits.images[i].reshape(8, 8), cmap="gray_r")
        truth = f", not {digits.labels[i]}" if wrong[i] else ""
        axes.set_title(f"{predicted[i]}{truth}", color=colour, weight="bold")
        sure = probabilities[i, predicted[i]]
        axes.set_xlabel("> 99.9%" if sure > 0.999 else f"{sure:.1%}", color=colour)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(color=colour, linewidth=2 if wrong[i] else 0.8)
    figure.suptitle(
        f"Test digits, each with its prediction and the probability given to that; "
        f"{wrong.sum()} of {len(wrong)} are wrong",
        weight="bold",
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder of the pictures")
    output = parser.parse_args().output

    training, test = load()
    model = Model()
    losses = [(model.loss(training), model.loss(test))]
    columns = "[bold]training", BarColumn(), "epoch {task.completed}", "{task.fields[losses]}"
    with Progress(*columns, TimeElapsedColumn()) as progress:
        bar = progress.add_task("", total=EPOCHS, losses="")

        def after_epoch() -> None:
            losses.append((model.loss(training), model.loss(test)))
            shown = "loss {:.3f}, on test digits {:.3f}".format(*losses[-1])
            progress.update(bar, advance=1, losses=shown)

        train(model, training, after_epoch=after_epoch)

    output.mkdir(parents=True, exist_ok=True)
    draw_losses(output / "loss_curve.png", losses)
    draw_digits(output / "digits.png", model, test)
    accuracy = model.accuracy(test)
    print(f"Accuracy on {len(test.labels)} test digits: {accuracy:.2%}")
    print(f"Pictures: {output / 'loss_curve.png'}, {output / 'digits.png'}")
    if accuracy < WANTED_ACCURACY:
        print(f"That is less than the {WANTED_ACCURACY:.0%} that it should be.")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
