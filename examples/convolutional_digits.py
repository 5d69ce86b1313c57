"""A small convolutional network in NumPy reads handwritten digits.

    python examples/convolutional_digits.py [--output PICTURE] [--epochs 30]

Two convolutions, each with ReLU and max-pooling, and a dense layer, on scikit-learn's digits of
8 x 8 pixels, trained by fastce.cross_entropy_with_grad and Adam. A convolution is one matrix
product. It takes about ten seconds.
"""

import argparse
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from training import Adam, Digits, batches, load, panels, progress, save, tiles

import fastce

EPOCHS, BATCH, RATE = 30, 64, 3e-3
CHANNELS = (1, 16, 32)  # of the images, and after each convolution


def patches(x: np.ndarray) -> np.ndarray:
    """The 3 x 3 neighbourhood of each pixel, 0 outside: (n, h, w, c) to (n * h * w, 9 * c)."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    return windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, 9 * x.shape[3])


class Convolution:
    """y[i, j, o] = bias[o] + sum over u, v, c of x[i + u - 1, j + v - 1, c] weights[u, v, c, o]."""

    def __init__(self, rng: np.random.Generator, channels: int, filters: int) -> None:
        deviation = (2 / (9 * channels)) ** 0.5  # He et al. 2015
        weights = rng.normal(0, deviation, (3, 3, channels, filters)).astype(np.float32)
        self.parameters = [weights, np.zeros(filters, np.float32)]

    def forward(self, x: np.ndarray) -> np.ndarray:
        weights, bias = self.parameters
        self.columns = patches(x)
        y = self.columns @ weights.reshape(-1, len(bias)) + bias
        return y.reshape(*x.shape[:3], len(bias))

    def backward(self, grad: np.ndarray) -> np.ndarray:
        """The gradient for x; those of the parameters go to `gradients`."""
        weights, bias = self.parameters
        flat = grad.reshape(-1, len(bias))
        self.gradients = [(self.columns.T @ flat).reshape(weights.shape), flat.sum(axis=0)]
        # Pixel i was read by i + 1 - u with weight u: a convolution with the weights rotated.
        turned = weights[::-1, ::-1].swapaxes(2, 3)
        return (patches(grad) @ turned.reshape(-1, weights.shape[2])).reshape(*grad.shape[:3], -1)


class ReLU:
    parameters = gradients = ()

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.positive = x > 0
        return x * self.positive

    def backward(self, grad: np.ndarray) -> np.ndarray:
        return grad * self.positive


class MaxPool:
    """The largest of each 2 x 2 pixels. Of equal ones the first gets the gradient, all of it."""

    parameters = gradients = ()

    def forward(self, x: np.ndarray) -> np.ndarray:
        n, h, w, c = x.shape
        blocks = x.reshape(n, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 5, 2, 4)
        blocks = blocks.reshape(n, h // 2, w // 2, c, 4)
        self.largest = blocks.argmax(axis=-1)[..., None]
        return np.take_along_axis(blocks, self.largest, axis=-1)[..., 0]

    def backward(self, grad: np.ndarray) -> np.ndarray:
        n, h, w, c = grad.shape
        blocks = np.zeros((n, h, w, c, 4), grad.dtype)
        np.put_along_axis(blocks, self.largest, grad[..., None], axis=-1)
        blocks = blocks.reshape(n, h, w, c, 2, 2).transpose(0, 1, 4, 2, 5, 3)
        return blocks.reshape(n, 2 * h, 2 * w, c)


class Dense:
    def __init__(self, rng: np.random.Generator, inputs: int, outputs: int) -> None:
        weights = rng.normal(0, (1 / inputs) ** 0.5, (inputs, outputs)).astype(np.float32)
        self.parameters = [weights, np.zeros(outputs, np.float32)]

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.x = x
        weights, bias = self.parameters
        return x.reshape(len(x), -1) @ weights + bias

    def backward(self, grad: np.ndarray) -> np.ndarray:
        self.gradients = [self.x.reshape(len(grad), -1).T @ grad, grad.sum(axis=0)]
        return (grad @ self.parameters[0].T).reshape(self.x.shape)


class Network:
    def __init__(self, rng: np.random.Generator) -> None:
        self.layers = []
        for channels, filters in pairwise(CHANNELS):
            self.layers += [Convolution(rng, channels, filters), ReLU(), MaxPool()]
        self.layers.append(Dense(rng, 2 * 2 * CHANNELS[-1], 10))
        self.parameters = [p for layer in self.layers for p in layer.parameters]

    def logits(self, images: np.ndarray) -> np.ndarray:
        x = images.reshape(-1, 8, 8, 1)
        for layer in self.layers:
            x = layer.forward(x)
        return x

    def loss_and_gradients(self, digits: Digits) -> tuple[float, list[np.ndarray]]:
        """Mean loss, and its gradient with respect to each parameter."""
        logits = self.logits(digits.images)
        loss, grad = fastce.cross_entropy_with_grad(logits, digits.labels, out=logits)
        for layer in reversed(self.layers):
            grad = layer.backward(grad)
        return float(loss), [g for layer in self.layers for g in layer.gradients]


class Epoch(NamedTuple):
    training: float  # mean loss of its batches, in nats
    test: float
    accuracy: float  # of the test digits


def train(training: Digits, test: Digits, epochs: int) -> tuple[Network, list[Epoch]]:
    rng = np.random.default_rng(0)
    network = Network(rng)
    optimiser = Adam(network.parameters, RATE)
    history = []
    for epoch in progress(range(epochs), "training"):
        optimiser.rate = RATE * (1 - epoch / epochs)
        losses = []
        for chosen in batches(len(training.labels), BATCH, rng):
            batch = Digits(training.images[chosen], training.labels[chosen])
            loss, gradients = network.loss_and_gradients(batch)
            optimiser.step(gradients)
            losses.append(loss)
        log_p = fastce.log_softmax(network.logits(test.images))
        right = log_p.argmax(axis=1) == test.labels
        test_loss = float(fastce.nll_loss(log_p, test.labels))
        history.append(Epoch(float(np.mean(losses)), test_loss, float(right.mean())))
    return network, history


def draw(path: Path, history: list[Epoch], log_p: np.ndarray, test: Digits) -> None:
    figure, grid = panels(2, 2, 7)
    axes, epochs = grid[0, 0], np.arange(1, len(history) + 1)
    axes.plot(epochs, [epoch.training for epoch in history], label="training")
    axes.plot(epochs, [epoch.test for epoch in history], label="test")
    axes.set(xlabel="epoch", ylabel="nats", yscale="log")
    axes.set_title("loss", loc="left", weight="bold")
    axes.legend(frameon=False, fontsize=9)

    axes, read = grid[0, 1], log_p.argmax(axis=1)
    counts = np.zeros((10, 10), int)
    np.add.at(counts, (test.labels, read), 1)
    axes.imshow(counts, cmap="Blues", vmax=counts.max() * 1.5)
    for label, other in np.argwhere(counts):
        axes.text(other, label, counts[label, other], ha="center", va="center", fontsize=9)
    axes.set(xlabel="read as", ylabel="digit", xticks=range(10), yticks=range(10))
    axes.set_title("test digits", loc="left", weight="bold")

    hardest = log_p[np.arange(len(log_p)), test.labels].argsort()[:8]
    names = [f"{test.labels[i]} as {read[i]}" for i in hardest]
    tiles(grid[1, 0], test.images[hardest], 4)
    for place, (i, name) in enumerate(zip(hardest, names, strict=True)):
        colour = "0.3" if read[i] == test.labels[i] else "C3"
        grid[1, 0].text(place % 4 * 9, place // 4 * 9 - 0.6, name, color=colour, fontsize=9)
    grid[1, 0].set_title("the hardest: label, read as", loc="left", weight="bold", pad=16)
    axes = grid[1, 1]
    heat = axes.imshow(log_p[hardest], vmin=-10, vmax=0, aspect="auto")
    axes.plot(test.labels[hardest], np.arange(8), "o", color="C3", fillstyle="none")
    axes.set(xticks=range(10), xlabel="class; the circle is the label")
    axes.set_yticks(range(8), names, fontsize=9)
    figure.colorbar(heat, ax=axes, label="log p (nats)")
    axes.set_title("their log-probabilities", loc="left", weight="bold")
    for axes in (grid[0, 1], grid[1, 1]):
        axes.grid(visible=False)
    save(figure, path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("convolutional_digits.png"))
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    args = parser.parse_args()
    fastce.set_num_threads(1)  # arrays are small, and NumPy's matrix products have their own
    training, test = load()
    network, history = train(training, test, args.epochs)
    log_p = fastce.log_softmax(network.logits(test.images))
    wrong = int(np.sum(log_p.argmax(axis=1) != test.labels))
    print(
        f"after {args.epochs} epochs: loss {history[-1].training:.4f}, test {history[-1].test:.4f}"
    )
    print(f"{wrong} of {len(test.labels)} test digits misread: accuracy {history[-1].accuracy:.1%}")
    draw(args.output, history, log_p, test)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
