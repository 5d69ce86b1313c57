"""What the training examples share: networks, Adam, digits, a progress bar, pictures."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from rich.progress import track
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_limits  # scikit-learn needs it, too

# Matrices this small gain nothing from more threads, and lose much where another program has the
# other processor: the threads wait for each other.
threadpool_limits(1, user_api="blas")


class Adam:
    """Kingma and Ba, "Adam: A Method for Stochastic Optimization", 2015. Works in place."""

    def __init__(
        self,
        parameters: Sequence[np.ndarray],
        rate: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        self.parameters, self.rate, self.betas, self.steps = list(parameters), rate, betas, 0
        self.means = [np.zeros_like(p) for p in self.parameters]
        self.squares = [np.zeros_like(p) for p in self.parameters]

    def step(self, grads: Iterable[np.ndarray]) -> None:
        """Move each parameter along its gradient."""
        self.steps += 1
        first, second = self.betas
        rate = self.rate * (1 - second**self.steps) ** 0.5 / (1 - first**self.steps)
        moments = zip(self.parameters, grads, self.means, self.squares, strict=True)
        for parameter, grad, mean, square in moments:
            mean += (1 - first) * (grad - mean)
            square += (1 - second) * (grad * grad - square)
            parameter -= rate * mean / (np.sqrt(square) + 1e-8)


class Network:
    """Dense layers with rectified linear units between them: y = max(x W + b, 0) W' + b' ..."""

    def __init__(
        self,
        widths: Sequence[int],
        rng: np.random.Generator,
        leak: float = 0.0,  # slope of the units below 0
        dtype: Any = np.float32,
    ) -> None:
        self.leak = leak
        self.parameters: list[np.ndarray] = []  # W, b of each layer
        for inputs, outputs in pairwise(widths):
            weight = rng.normal(0, (2 / inputs) ** 0.5, (inputs, outputs))  # He et al., 2015
            self.parameters += [weight.astype(dtype), np.zeros(outputs, dtype)]

    def forward(self, x: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """The output, and what the backward pass needs: what went into each layer."""
        entered = [x]
        for weight, bias in zip(self.parameters[:-2:2], self.parameters[1:-2:2], strict=True):
            x = x @ weight + bias
            x = np.where(x > 0, x, self.leak * x)
            entered.append(x)
        return x @ self.parameters[-2] + self.parameters[-1], entered

    def backward(
        self, grad: np.ndarray, entered: list[np.ndarray]
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """From the gradient for the output, that for the input and those for the parameters."""
        grads: list[np.ndarray] = []
        for layer in reversed(range(len(entered))):
            x = entered[layer]
            grads = [x.T @ grad, grad.sum(axis=0), *grads]
            grad = grad @ self.parameters[2 * layer].T
            if layer > 0:
                grad = np.where(x > 0, grad, self.leak * grad)
        return grad, grads


class Digits(NamedTuple):
    """Scikit-learn's handwritten digits."""

    images: np.ndarray  # (digits, 64), float32 from 0 to 1
    labels: np.ndarray  # (digits,), from 0 to 9


def load(test: float = 0.25, seed: int = 0) -> tuple[Digits, Digits]:
    """The digits to train on, and this share of them to test with."""
    data = load_digits()
    images = (data.data / 16).astype(np.float32)
    parts = train_test_split(
        images, data.target, test_size=test, stratify=data.target, random_state=seed
    )
    return Digits(parts[0], parts[2]), Digits(parts[1], parts[3])


def batches(count: int, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """The numbers below `count`, shuffled, in parts of about `size`."""
    yield from np.array_split(rng.permutation(count), max(1, round(count / size)))


def progress(steps: Sequence[Any], what: str) -> Iterable[Any]:
    """The same, with a progress bar in a terminal."""
    return track(steps, what)


def panels(rows: int, columns: int, height: float) -> tuple[Any, Any]:
    """A figure as wide as a page of the guide, and its axes, an array of (rows, columns).

    8.2 inches are 738 pixels at 90 dots per inch, so that a font of 9 points has 11 pixels there.
    """
    figure, grid = plt.subplots(
        rows, columns, figsize=(8.2, height), layout="constrained", squeeze=False
    )
    for axes in grid.flat:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, grid


def tiles(axes: Any, images: np.ndarray, columns: int) -> None:
    """Images of (rows * columns, 8, 8) as one picture."""
    rows = len(images) // columns
    whole = images[: rows * columns].reshape(rows, columns, 8, 8)
    padded = np.pad(whole, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=np.nan)
    axes.imshow(padded.transpose(0, 2, 1, 3).reshape(rows * 9, columns * 9), cmap="gray_r")
    axes.set_axis_off()


def save(figure: Any, path: Path) -> None:
    """Write the picture, and print where it is."""
    figure.savefig(path, dpi=90, pil_kwargs={"optimize": True})
    plt.close(figure)
    print(f"Picture: {path}")
