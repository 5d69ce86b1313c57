"""A character-level GPT in NumPy and fastce learns to write like Python's documentation.

    python examples/character_gpt.py [--output PICTURE] [--steps 1200]

The text is that of `help("topics")`, which comes with every Python. The transformer has
causal self-attention, and its last layer is fused with the loss: logits over the characters are
never in memory. The picture shows its loss beside the entropies of characters and of pairs; at the
end it generates text. Where PyTorch is installed, the same step is timed there, too. It
takes about two minutes.
"""

import argparse
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import NamedTuple

import numpy as np
from self_attention import SelfAttention, normal, product
from threadpoolctl import threadpool_limits
from training import Adam, panels, progress, save

import fastce

STEPS, BATCH, RATE = 1200, 32, 2e-3
CONTEXT, WIDTH, HEADS, BLOCKS = 64, 128, 4, 2


class Text(NamedTuple):
    characters: str  # the alphabet
    training: np.ndarray  # numbers of characters
    test: np.ndarray


def read() -> Text:
    """A tenth of the topics, drawn at random, is to test with."""
    parts = [topics[name].replace("\u2019", "'") for name in sorted(topics)]
    characters = "".join(sorted({c for part in parts for c in part if c.isascii()}))
    number = {c: i for i, c in enumerate(characters)}
    held_out = np.random.default_rng(0).random(len(parts)) < 0.1
    texts = [
        np.array([number[c] for part, is_test in zip(parts, held_out, strict=True)
                  for c in part if is_test == test and c in number])
        for test in (False, True)
    ]  # fmt: skip
    return Text(characters, *texts)


def windows(
    text: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(count, CONTEXT) characters from anywhere in the text, and those that follow each."""
    at = rng.integers(0, len(text) - CONTEXT, count)[:, None] + np.arange(CONTEXT)
    return text[at], text[at + 1]


# --- layers -------------------------------------------------------------------------------


class Norm:
    """x divided by its root mean square over the width (Zhang and Sennrich, 2019)."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.inverse = 1 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-6)
        self.y = x * self.inverse
        return self.y

    def backward(self, grad: np.ndarray) -> np.ndarray:
        along = np.mean(grad * self.y, axis=-1, keepdims=True)
        return self.inverse * (grad - self.y * along)


class Dense:
    """Two layers with rectified linear units between, for each token by itself."""

    def __init__(self, rng: np.random.Generator, width: int) -> None:
        self.parameters = [normal(rng, width, 4 * width), normal(rng, 4 * width, width)]

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.x, self.hidden = x, np.maximum(x @ self.parameters[0], 0)
        return self.hidden @ self.parameters[1]

    def backward(self, grad: np.ndarray) -> np.ndarray:
        below = (grad @ self.parameters[1].T) * (self.hidden > 0)
        self.gradients = [product(self.x, below), product(self.hidden, grad)]
        return below @ self.parameters[0].T


class GPT:
    """Tokens, to which alternating attention and dense layers add: x + layer(norm(x))."""

    def __init__(self, rng: np.random.Generator, characters: int) -> None:
        self.layers = [
            layer
            for _ in range(BLOCKS)
            for layer in (SelfAttention(rng, WIDTH, HEADS, is_causal=True), Dense(rng, WIDTH))
        ]
        self.norms = [Norm() for _ in range(len(self.layers) + 1)]
        self.tokens = 0.1 * rng.standard_normal((characters, WIDTH), np.float32)
        self.positions = 0.1 * rng.standard_normal((CONTEXT, WIDTH), np.float32)
        self.last = normal(rng, WIDTH, characters).T.copy()  # (characters, WIDTH)
        of_layers = [p for layer in self.layers for p in layer.parameters]
        self.parameters = [self.tokens, self.positions, self.last, *of_layers]

    def forward(self, x: np.ndarray) -> np.ndarray:
        """The input of the last layer, of characters (sequences, length)."""
        h = self.tokens[x] + self.positions[: x.shape[1]]
        for norm, layer in zip(self.norms, self.layers, strict=False):
            h = h + layer.forward(norm.forward(h))
        return self.norms[-1].forward(h)

    def loss(self, x: np.ndarray, following: np.ndarray) -> float:
        return float(fastce.linear_cross_entropy(self.forward(x), self.last, following))

    def loss_and_gradients(
        self, x: np.ndarray, following: np.ndarray
    ) -> tuple[float, list[np.ndarray]]:
        """The mean over all characters, in nats, and its gradient for each parameter."""
        h = self.forward(x)
        loss, grad, d_last, _ = fastce.linear_cross_entropy_with_grad(h, self.last, following)
        grad = self.norms[-1].backward(grad)
        for norm, layer in zip(self.norms[-2::-1], self.layers[::-1], strict=True):
            grad = grad + norm.backward(layer.backward(grad))
        d_tokens, d_positions = np.zeros_like(self.tokens), np.zeros_like(self.positions)
        np.add.at(d_tokens, x, grad)
        d_positions[: x.shape[1]] = grad.sum(axis=0)
        of_layers = [g for layer in self.layers for g in layer.gradients]
        return float(loss), [d_tokens, d_positions, d_last, *of_layers]

    def write(self, start: np.ndarray, count: int, rng: np.random.Generator) -> Iterator[int]:
        """Characters one by one, each drawn from the network's distribution of the next."""
        text = list(start)
        for _ in range(count):
            h = self.forward(np.array([text[-CONTEXT:]]))[0, -1]
            p = fastce.softmax((h @ self.last.T).astype(np.float64))
            text.append(int(rng.choice(len(p), p=p)))
            yield text[-1]


# --- training -----------------------------------------------------------------------------


def train(
    model: GPT, text: Text, steps: int, rng: np.random.Generator
) -> tuple[list[float], list[tuple[int, float]]]:
    """The loss of each step, and at some steps that of the test."""
    adam, losses, tested = Adam(model.parameters, RATE, (0.9, 0.99)), [], []
    held_out = windows(text.test, 256, np.random.default_rng(1))
    for step in progress(range(steps), "Training"):
        adam.rate = RATE * min(1, (step + 1) / 50, (steps - step) / (0.3 * steps))
        loss, gradients = model.loss_and_gradients(*windows(text.training, BATCH, rng))
        adam.step(gradients)
        losses.append(loss)
        if step % 100 == 0 or step == steps - 1:
            tested.append((step + 1, model.loss(*held_out)))
    return losses, tested


def counting(text: np.ndarray) -> dict[str, float]:
    """The entropy of a character, and of one given the last, in nats."""
    before, after = text[:-1], text[1:]
    return {
        "single characters": float(fastce.information.entropy_from_samples(after)),
        "pairs": float(fastce.information.conditional_entropy_from_samples(after, before)),
    }


def draw(path: Path, losses: list[float], tested: list, counted: dict[str, float]) -> None:
    figure, grid = panels(1, 1, 4.4)
    axes = grid[0, 0]
    axes.plot(np.arange(1, len(losses) + 1), losses, color="0.75", label="GPT, each batch")
    axes.plot(*zip(*tested, strict=True), color="C0", marker="o", markersize=3, label="GPT, test")
    for color, (name, entropy) in zip(("C3", "C1"), counted.items(), strict=True):
        axes.axhline(entropy, color=color, linestyle="--", label=f"entropy of {name}")
    axes.set(xlabel="step", ylabel="nats per character", xscale="log")
    axes.legend(frameon=False)
    save(figure, path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("character_gpt.png"))
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args()
    rng, text = np.random.default_rng(0), read()
    model, counted = GPT(rng, len(text.characters)), counting(text.test)
    size = sum(p.size for p in model.parameters)
    print(f"{len(text.training)} characters to learn from, {size} parameters")
    threads = fastce.get_num_threads()
    # Most of a step is NumPy's products. Their threads wait by spinning, and so would fastce's: on
    # two processors a step took 84 ms with one thread of fastce, and 108 to 330 ms with two.
    fastce.set_num_threads(1)
    with threadpool_limits(threads, user_api="blas"):
        losses, tested = train(model, text, args.steps, rng)
        for name, entropy in counted.items():
            print(f"entropy of {name:20} {entropy:.3f} nats")
        print(f"GPT on the test {'':14} {tested[-1][1]:.3f} nats")
        start = np.array([text.characters.index(c) for c in "\nThe "])
        written = [text.characters[c] for c in model.write(start, 400, rng)]
        print(f"\nThe {''.join(written)}\n")
        if importlib.util.find_spec("torch"):
            from character_gpt_torch import compare

            print(compare(model, *windows(text.training, BATCH, rng)))
    draw(args.output, losses, tested, counted)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
