"""Self-attention learns to find one of six handwritten digits by another image of it.

    python examples/self_attention.py [--output PICTURE] [--steps 1500] [--independent] [--seed 0]

Seven cards lie in a row. The first six show different digits, the last one of these digits again,
in another handwriting: at which position is it? The labels are positions, never names of digits. A
layer of self-attention finds them; the picture shows its weights. It takes about a quarter of a
minute.
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from training import Adam, Digits, load, panels, progress, save, tiles

import fastce

STEPS, BATCH, RATE = 1500, 64, 3e-3
CARDS, WIDTH, HEADS = 6, 64, 2


def normal(rng: np.random.Generator, inputs: int, outputs: int) -> np.ndarray:
    return rng.normal(0, inputs**-0.5, (inputs, outputs)).astype(np.float32)


class SelfAttention:
    """Attention of the tokens of each sequence to each other, in several heads.

    Called with x of shape (sequences, tokens, width). `options` are those of
    fastce.scaled_dot_product_attention, say is_causal=True.
    """

    def __init__(self, rng: np.random.Generator, width: int, heads: int, **options: Any) -> None:
        self.heads, self.options = heads, options
        # projections to queries, keys and values, and of the output
        self.parameters = [normal(rng, width, width) for _ in range(4)]

    def split(self, x: np.ndarray) -> np.ndarray:
        """(sequences, tokens, width) seen as (sequences, heads, tokens, width / heads)."""
        return x.reshape(*x.shape[:2], self.heads, -1).swapaxes(1, 2)

    def join(self, x: np.ndarray) -> np.ndarray:
        """The inverse: heads beside each other."""
        return x.swapaxes(1, 2).reshape(len(x), x.shape[2], -1)

    def forward(self, x: np.ndarray) -> np.ndarray:
        *inputs, output = self.parameters
        self.x, self.qkv = x, [self.split(x @ w) for w in inputs]
        self.mixed, self.lse = fastce.scaled_dot_product_attention(
            *self.qkv, return_lse=True, **self.options
        )
        return self.join(self.mixed) @ output

    def backward(self, grad: np.ndarray) -> np.ndarray:
        """The gradient for x; those of the parameters go to `gradients`."""
        *inputs, output = self.parameters
        grads = fastce.scaled_dot_product_attention_backward(
            self.split(grad @ output.T), *self.qkv, self.mixed, self.lse, **self.options
        )
        grads = [self.join(g) for g in grads]
        self.gradients = [product(self.x, g) for g in grads]
        self.gradients.append(product(self.join(self.mixed), grad))
        return sum(g @ w.T for g, w in zip(grads, inputs, strict=True))

    def weights(self) -> np.ndarray:
        """Attention weights of the last forward: (sequences, heads, tokens, tokens).

        The attention never made this array; the logsumexp of its scores is all that is needed.
        """
        q, k, _ = self.qkv
        return np.exp(q @ k.swapaxes(2, 3) / q.shape[-1] ** 0.5 - self.lse[..., None])


def product(x: np.ndarray, grad: np.ndarray) -> np.ndarray:
    """The gradient of w in y = x @ w, over all sequences and tokens."""
    return x.reshape(-1, x.shape[-1]).T @ grad.reshape(-1, grad.shape[-1])


class Hands(NamedTuple):
    images: np.ndarray  # (hands, CARDS + 1, 64)
    classes: np.ndarray  # (hands, CARDS + 1): for the picture, the network does not see them
    answers: np.ndarray  # (hands,): which of the first CARDS shows the digit of the last


def deal(digits: Digits, count: int, rng: np.random.Generator) -> Hands:
    """The last card is never the same image as its match."""
    by_class, sizes = np.argsort(digits.labels, kind="stable"), np.bincount(digits.labels)
    starts, rows = np.cumsum(sizes) - sizes, np.arange(count)
    classes = rng.permuted(np.tile(np.arange(10), (count, 1)), axis=1)[:, : CARDS + 1]
    places = rng.integers(0, sizes[classes])
    answers = rng.integers(0, CARDS, count)
    asked = classes[:, -1] = classes[rows, answers]
    places[:, -1] = (places[rows, answers] + rng.integers(1, sizes[asked])) % sizes[asked]
    return Hands(digits.images[by_class[starts[classes] + places]], classes, answers)


class Network:
    """Cards become tokens, tokens attend to each other, and the last one gives the answer."""

    def __init__(self, rng: np.random.Generator, independent: bool = False) -> None:
        others = ~np.eye(CARDS + 1, dtype=bool)  # no card attends to itself
        self.attention = SelfAttention(rng, WIDTH, HEADS, attn_mask=others)
        if not independent:  # so that at first a card attends to similar ones
            self.attention.parameters[1] = self.attention.parameters[0].copy()
        positions = rng.standard_normal((CARDS + 1, WIDTH), np.float32)
        dense = [normal(rng, *shape) for shape in ((64, WIDTH), (WIDTH, WIDTH), (WIDTH, CARDS))]
        self.parameters = [*self.attention.parameters, positions, *dense]

    def forward(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Hidden values, what attention gives to the last card, and logits of the answer."""
        positions, first, second, last = self.parameters[4:]
        hidden = np.maximum(images @ first, 0)
        found = self.attention.forward(hidden @ second + positions)[:, -1]
        return hidden, found, found @ last

    def loss_and_gradients(self, hands: Hands) -> tuple[float, list[np.ndarray]]:
        """Mean loss, and its gradient with respect to each parameter."""
        second, last = self.parameters[6:]
        hidden, found, logits = self.forward(hands.images)
        loss, grad = fastce.cross_entropy_with_grad(logits, hands.answers, out=logits)
        tokens = np.zeros_like(hidden)
        tokens[:, -1] = grad @ last.T
        tokens = self.attention.backward(tokens)
        below = (tokens @ second.T) * (hidden > 0)
        dense = [product(hands.images, below), product(hidden, tokens), found.T @ grad]
        return float(loss), [*self.attention.gradients, tokens.sum(axis=0), *dense]

    def looks(self, images: np.ndarray) -> np.ndarray:
        """How much of its attention the last card gives to each other: (hands, heads, CARDS)."""
        self.forward(images)
        return self.attention.weights()[:, :, -1, :-1]


class Check(NamedTuple):
    step: int
    loss: float  # of training hands since the last check, in nats
    accuracy: float  # of test hands
    right: np.ndarray  # attention to the right card, for each head


def train(
    training: Digits, hands: Hands, steps: int, independent: bool = False, seed: int = 0
) -> tuple[Network, list[Check]]:
    rng = np.random.default_rng(seed)
    network = Network(rng, independent)
    optimiser = Adam(network.parameters, RATE)
    checks, losses = [], []
    every = max(1, steps // 30)
    for step in progress(range(1, steps + 1), "training"):
        optimiser.rate = RATE * (1 - step / (steps + 1))
        loss, gradients = network.loss_and_gradients(deal(training, BATCH, rng))
        optimiser.step(gradients)
        losses.append(loss)
        if step % every == 0:
            logits = network.forward(hands.images)[-1]
            right = float(np.mean(logits.argmax(axis=1) == hands.answers))
            looks = network.looks(hands.images)[np.arange(len(logits)), :, hands.answers]
            checks.append(Check(step, float(np.mean(losses)), right, looks.mean(axis=0)))
            losses.clear()
    return network, checks


def draw(path: Path, network: Network, checks: list[Check], hands: Hands) -> None:
    figure, grid = panels(2, 2, 7.5)
    steps, rows = [check.step for check in checks], np.arange(len(hands.answers))
    axes = grid[0, 0]
    axes.plot(steps, [check.accuracy for check in checks], color="0.3", label="right answers")
    for head in range(HEADS):
        shares = [check.right[head] for check in checks]
        axes.plot(steps, shares, label=f"attention to the right card, head {head + 1}")
    axes.axhline(1 / CARDS, color="0.7", linestyle=":", label="chance")
    axes.set(xlabel="step", ylim=(0, 1))
    axes.legend(frameon=False, fontsize=9, loc=(0.37, 0.22))
    axes.set_title("hands of unseen digits", loc="left", weight="bold")

    looks = network.looks(hands.images)
    total, seen = np.zeros((10, 10)), np.zeros((10, 10))
    pairs = hands.classes[:, -1:], hands.classes[:, :-1]
    np.add.at(total, pairs, looks.mean(axis=1))
    np.add.at(seen, pairs, 1)
    axes = grid[0, 1]
    shown = axes.imshow(total / seen, cmap="Blues", vmin=0)
    axes.set(xlabel="digit of the card it attends to", ylabel="digit of the last card")
    axes.set(xticks=range(10), yticks=range(10))
    figure.colorbar(shown, ax=axes)
    axes.set_title("mean attention of both heads", loc="left", weight="bold")

    wrong = network.forward(hands.images)[-1].argmax(axis=1) != hands.answers
    chosen = np.concatenate([rows[~wrong][:5], rows[wrong][:2]])
    tiles(grid[1, 0], hands.images[chosen].reshape(-1, 64), CARDS + 1)
    grid[1, 0].set_title("hands, the last two answered wrong", loc="left", weight="bold")
    axes = grid[1, 1]
    axes.imshow(looks[chosen].reshape(len(chosen), -1), cmap="Blues", vmin=0, vmax=1)
    for head in range(HEADS):
        right = hands.answers[chosen] + head * CARDS
        axes.plot(right, range(len(chosen)), "o", color="C3", fillstyle="none")
    axes.axvline(CARDS - 0.5, color="0.3")
    axes.set_xticks(range(HEADS * CARDS), list(range(1, CARDS + 1)) * HEADS, fontsize=9)
    axes.set_yticks(range(len(chosen)), [f"asks for {c}" for c in hands.classes[chosen, -1]])
    axes.set(xlabel="head 1 | head 2; circles: the right card")
    axes.set_title("attention of their last card", loc="left", weight="bold")
    for axes in (grid[0, 1], grid[1, 1]):
        axes.grid(visible=False)
    save(figure, path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("self_attention.png"))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--independent", action="store_true", help="queries unlike keys at first")
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    args = parser.parse_args()
    fastce.set_num_threads(1)  # arrays are small, and NumPy's matrix products have their own
    training, test = load()
    hands = deal(test, 2000, np.random.default_rng(1))
    network, checks = train(training, hands, args.steps, args.independent, args.seed)
    last = checks[-1]
    print(
        f"loss {last.loss:.4f}, right answers for {len(hands.answers)} hands: {last.accuracy:.1%}"
    )
    for head, share in enumerate(last.right, 1):
        print(f"head {head} gives {share:.0%} of its attention to the right card")
    draw(args.output, network, checks, hands)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
