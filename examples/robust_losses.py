"""Trains on handwritten digits with wrong labels, and with rare classes, and draws the result.

    python examples/robust_losses.py [--output docs/robust_losses.png]

A network with one hidden layer, in NumPy alone, is trained with each of the losses for labels that
noise can reach. Each training is repeated with other noise; the picture shows all runs. It takes
about a quarter of a minute.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from training import Digits, batches, load, panels, progress, save

import fastce

RUNS, EPOCHS = 5, 80
FLIPPED = 0.4  # of the labels, to any other class
RARE = (1, 4, 8)  # classes of which only KEPT digits are left
KEPT = 8
HIDDEN = 128

# name -> function (logits, labels, out=) that gives the loss and its gradient
LOSSES: dict[str, Callable] = {
    "cross-entropy": fastce.cross_entropy_with_grad,
    "label smoothing 0.2": lambda x, t, out: fastce.cross_entropy_with_grad(
        x, t, label_smoothing=0.2, out=out
    ),
    "confidence penalty 0.5": lambda x, t, out: fastce.confidence_penalty_with_grad(
        x, t, beta=0.5, out=out
    ),
    "focal, gamma 2": fastce.focal_loss_with_grad,
    "poly, epsilon 1": fastce.poly_cross_entropy_with_grad,
    "generalized, q 0.7": fastce.generalized_cross_entropy_with_grad,
    "symmetric, 0.1 and 1": fastce.symmetric_cross_entropy_with_grad,
}


def flipped(digits: Digits, rng: np.random.Generator, share: float = FLIPPED) -> Digits:
    """Some labels become another class."""
    wrong = rng.random(len(digits.labels)) < share
    other = (digits.labels + rng.integers(1, 10, len(digits.labels))) % 10
    return digits._replace(labels=np.where(wrong, other, digits.labels))


def imbalanced(digits: Digits, rng: np.random.Generator) -> Digits:
    """Few digits of some classes are left."""
    kept = ~np.isin(digits.labels, RARE)
    for label in RARE:
        kept[rng.choice(np.flatnonzero(digits.labels == label), KEPT, replace=False)] = True
    return Digits(digits.images[kept], digits.labels[kept])


def train(
    loss: Callable, digits: Digits, rng: np.random.Generator, epochs: int = EPOCHS
) -> Callable[[np.ndarray], np.ndarray]:
    """A function that gives the classes of images, after gradient descent with momentum."""
    first = rng.normal(0, (2 / 64) ** 0.5, (64, HIDDEN)).astype(np.float32)
    second = rng.normal(0, (1 / HIDDEN) ** 0.5, (HIDDEN, 10)).astype(np.float32)
    weights = [first, np.zeros(HIDDEN, np.float32), second, np.zeros(10, np.float32)]
    speeds = [np.zeros_like(w) for w in weights]
    for _ in range(epochs):
        for chosen in batches(len(digits.labels), 64, rng):
            images = digits.images[chosen]
            hidden = np.maximum(images @ weights[0] + weights[1], 0)
            logits = hidden @ weights[2] + weights[3]
            _, grad = loss(logits, digits.labels[chosen], out=logits)
            below = (grad @ weights[2].T) * (hidden > 0)
            grads = (images.T @ below, below.sum(axis=0), hidden.T @ grad, grad.sum(axis=0))
            for w, speed, g in zip(weights, speeds, grads, strict=True):
                speed *= 0.9
                speed -= 0.1 * g
                w += speed
    return lambda images: np.argmax(
        np.maximum(images @ weights[0] + weights[1], 0) @ weights[2] + weights[3], axis=1
    )


def accuracy(predict: Callable, test: Digits, among: tuple[int, ...] = tuple(range(10))) -> float:
    chosen = np.isin(test.labels, among)
    return float(np.mean(predict(test.images[chosen]) == test.labels[chosen]))


def compare(runs: int = RUNS, epochs: int = EPOCHS) -> tuple[dict, dict]:
    """Accuracy of each loss in each run: trained on flipped labels; on rare classes, of these."""
    noisy: dict[str, list[float]] = {}
    rare: dict[str, list[float]] = {}
    for seed in progress(range(runs), "Training"):
        training, test = load(test=0.5, seed=seed)
        wrong = flipped(training, np.random.default_rng(seed))
        few = imbalanced(training, np.random.default_rng(seed))
        counts = np.bincount(few.labels, minlength=10)
        alpha = (len(few.labels) / 10 / counts).astype(np.float32)
        balanced = {
            "focal, alpha by class": lambda x, t, out, alpha=alpha: fastce.focal_loss_with_grad(
                x, t, alpha=alpha, out=out
            ),
            "cross-entropy, weighted": lambda x, t, out, alpha=alpha: (
                fastce.cross_entropy_with_grad(x, t, weight=alpha, out=out)
            ),
        }
        for name, loss in LOSSES.items():
            predict = train(loss, wrong, np.random.default_rng(seed), epochs)
            noisy.setdefault(name, []).append(accuracy(predict, test))
        for name, loss in (LOSSES | balanced).items():
            predict = train(loss, few, np.random.default_rng(seed), epochs)
            rare.setdefault(name, []).append(accuracy(predict, test, RARE))
    return noisy, rare


def curves(p: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Each loss over p of the row's class, and minus its gradient for the logit of the class."""
    logits = np.stack([np.log(p), np.log1p(-p)], axis=1)
    labels = np.zeros(len(p), int)
    shown = {
        "cross-entropy": (fastce.cross_entropy_with_grad, {}),
        "focal, gamma 2": (fastce.focal_loss_with_grad, {}),
        "poly, epsilon 1": (fastce.poly_cross_entropy_with_grad, {}),
        "generalized, q 0.7": (fastce.generalized_cross_entropy_with_grad, {}),
        "symmetric, 0.1 and 1": (fastce.symmetric_cross_entropy_with_grad, {}),
    }
    found = {}
    for name, (function, options) in shown.items():
        loss, grad = function(logits, labels, reduction="none", **options)
        found[name] = loss, -grad[:, 0]
    return found


def draw(path: Path, noisy: dict, rare: dict) -> None:
    figure, grid = panels(2, 2, 6.4)
    p = np.linspace(0.005, 0.995, 199)
    for i, what in enumerate(("loss (nats)", "gradient, -dloss/dlogit")):
        axes = grid[0, i]
        for name, both in curves(p).items():
            axes.plot(p, both[i], label=name, linewidth=1.8)
        axes.set(xlabel="p of the label", xlim=(0, 1), ylim=(0, (6, 1.25)[i]))
        axes.set_title(what, loc="left", weight="bold")
    grid[0, 0].legend(frameon=False, fontsize=9)
    titles = (
        f"accuracy, {FLIPPED:.0%} of labels flipped",
        f"accuracy, {len(RARE)} rare classes",
    )
    for axes, results, title in zip(grid[1], (noisy, rare), titles, strict=True):
        names = list(results)[::-1]
        for y, name in enumerate(names):
            axes.plot(results[name], [y] * len(results[name]), "o", color="0.7", markersize=4)
            axes.plot(np.mean(results[name]), y, "|", color="C3", markersize=13, markeredgewidth=3)
        axes.set_yticks(range(len(names)), names, fontsize=9)
        axes.xaxis.set_major_formatter("{x:.0%}")
        axes.set_title(title, loc="left", weight="bold", fontsize=10)
    save(figure, path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("robust_losses.png"))
    parser.add_argument("--runs", type=int, default=RUNS, help="trainings of each loss")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    args = parser.parse_args()
    noisy, rare = compare(args.runs, args.epochs)
    print(f"mean test accuracy of {args.runs} runs: flipped labels, rare classes")
    for name in rare:
        first = f"{np.mean(noisy[name]):6.1%}" if name in noisy else "     -"
        print(f"{name:24} {first} {np.mean(rare[name]):6.1%}")
    draw(args.output, noisy, rare)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
