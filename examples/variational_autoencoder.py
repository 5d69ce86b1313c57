"""A variational autoencoder of handwritten digits: it learns to compress, and to draw new ones.

    python examples/variational_autoencoder.py [--output variational_autoencoder.png]

Encoder and decoder are networks with one hidden layer. The two parts of the loss, in nats for each
digit, are printed and drawn, with digits that the decoder draws from random numbers. It takes about
ten seconds.
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from training import Adam, Network, batches, load, panels, progress, save, tiles

import fastce

EPOCHS, LATENT, HIDDEN = 200, 2, 256


class Parts(NamedTuple):
    """The negative evidence lower bound (ELBO), the mean over digits, in nats."""

    reconstruction: float  # -E[log p(x | z)]
    kl: float  # KL(q(z | x) || p(z))

    @property
    def total(self) -> float:
        return self.reconstruction + self.kl


def gaussian_kl(mean: np.ndarray, log_variance: np.ndarray) -> float:
    """KL(N(mean, variance) || N(0, 1)), summed over all elements."""
    return 0.5 * float(np.sum(mean**2 + np.exp(log_variance) - 1 - log_variance))


class Autoencoder:
    """q(z | x) is a Gaussian for each latent; p(x | z) gives a probability for each pixel."""

    def __init__(self, latent: int, rng: np.random.Generator, dtype: Any = np.float32) -> None:
        self.latent = latent
        self.encoder = Network([64, HIDDEN, 2 * latent], rng, dtype=dtype)
        self.decoder = Network([latent, HIDDEN, 64], rng, dtype=dtype)
        self.parameters = self.encoder.parameters + self.decoder.parameters

    def encode(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and logarithm of the variance of z."""
        return tuple(np.split(self.encoder.forward(images)[0], 2, axis=1))

    def decode(self, z: np.ndarray) -> np.ndarray:
        """The pixels' probabilities."""
        logits = self.decoder.forward(z)[0]
        return 1 / (1 + np.exp(-logits))

    def loss_with_grads(
        self, images: np.ndarray, noise: np.ndarray, kl_weight: float = 1.0
    ) -> tuple[Parts, list[np.ndarray]]:
        """Both parts, and the gradients of reconstruction + kl_weight * kl for the parameters."""
        encoded, entered_encoder = self.encoder.forward(images)
        mean, log_variance = np.split(encoded, 2, axis=1)
        deviation = np.exp(0.5 * log_variance)
        # z ~ q(z | x), written so that it has derivatives for mean and deviation.
        z = mean + deviation * noise
        logits, entered_decoder = self.decoder.forward(z)
        # The sum, not the mean: log p(x | z) is a sum over pixels, as the KL is over latents.
        reconstruction, grad = fastce.binary_cross_entropy_with_logits_with_grad(
            logits, images, reduction="sum", out=logits
        )
        grad_z, grads_decoder = self.decoder.backward(grad, entered_decoder)
        grad_mean = grad_z + kl_weight * mean
        grad_log_variance = 0.5 * (grad_z * noise * deviation + kl_weight * (deviation**2 - 1))
        grad_encoded = np.concatenate([grad_mean, grad_log_variance], axis=1)
        _, grads_encoder = self.encoder.backward(grad_encoded, entered_encoder)
        count = len(images)
        parts = Parts(float(reconstruction) / count, gaussian_kl(mean, log_variance) / count)
        return parts, [g / count for g in grads_encoder + grads_decoder]


def noise_for(images: np.ndarray, latent: int, rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((len(images), latent), dtype=np.float32)


def train(
    training: np.ndarray, test: np.ndarray, latent: int, epochs: int, kl_weight: float = 1.0
) -> tuple[Autoencoder, list[tuple[Parts, Parts]]]:
    """The autoencoder, and its loss on training and test digits after each epoch."""
    rng = np.random.default_rng(0)
    model = Autoencoder(latent, rng)
    adam = Adam(model.parameters)
    history = []
    for _ in progress(range(epochs), "training"):
        for chosen in batches(len(training), 32, rng):
            images = training[chosen]
            _, grads = model.loss_with_grads(images, noise_for(images, latent, rng), kl_weight)
            adam.step(grads)
        both = (model.loss_with_grads(x, noise_for(x, latent, rng))[0] for x in (training, test))
        history.append(tuple(both))
    return model, history


def bounds(training: np.ndarray, test: np.ndarray) -> tuple[float, float]:
    """The mean loss of test digits for exact reconstructions, and for the mean training digit."""

    def cost(probabilities: np.ndarray) -> float:
        total = fastce.binary_cross_entropy(probabilities, test, reduction="sum")
        return float(total) / len(test)

    return cost(test), cost(np.tile(training.mean(axis=0), (len(test), 1)))


def draw(path: Path, model: Autoencoder, history: list, test: Any, floor: float) -> None:
    figure, grid = panels(2, 2, 7.2)
    losses, digits, samples, plane = grid.flat
    epochs = range(1, len(history) + 1)
    reconstruction = [parts.reconstruction for _, parts in history]
    total = [parts.total for _, parts in history]
    losses.plot(epochs, [parts.total for parts, _ in history], color="0.5", label="training, total")
    losses.plot(epochs, total, color="C3", label="test, total (negative ELBO)")
    losses.plot(epochs, reconstruction, color="C0", label="test, reconstruction")
    losses.fill_between(epochs, reconstruction, total, color="C3", alpha=0.15, label="KL")
    losses.axhline(floor, color="0.3", linestyle="--", label="entropy of the pixels")
    losses.set(xlabel="epoch", ylim=(floor - 1, min(total[0], 2 * floor) + 0.5))
    losses.set_title("loss of a digit (nats)", loc="left", weight="bold")
    losses.legend(frameon=False, fontsize=9, loc="center", bbox_to_anchor=(0.5, 0.32))

    shown = test.images[:32]
    drawn = model.decode(model.encode(shown)[0])
    pairs = np.stack([shown.reshape(4, 8, 64), drawn.reshape(4, 8, 64)], axis=1)
    tiles(digits, pairs.reshape(64, 64), 8)
    digits.set_title("digits above reconstructions", loc="left", weight="bold")

    z = np.random.default_rng(1).standard_normal((64, model.latent), dtype=np.float32)
    tiles(samples, model.decode(z), 8)
    samples.set_title("new digits, z from the prior", loc="left", weight="bold")

    mean, _ = model.encode(test.images)
    first, second = np.argsort(-mean.var(axis=0))[:2]
    points = plane.scatter(
        mean[:, first], mean[:, second], s=7, linewidths=0, c=test.labels, cmap="tab10"
    )
    plane.legend(
        *points.legend_elements(), frameon=False, fontsize=9, loc="center left",
        bbox_to_anchor=(1, 0.5),
    )  # fmt: skip
    plane.set_aspect("equal", adjustable="datalim")
    plane.set_title("means of q(z | x) of the test digits", loc="left", weight="bold")
    save(figure, path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("variational_autoencoder.png"))
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--latent", type=int, default=LATENT, help="numbers that tell a digit (2+)")
    parser.add_argument("--kl-weight", type=float, default=1.0, help="other than 1: no ELBO")
    args = parser.parse_args()
    if args.latent < 2 or args.epochs < 1:
        parser.error(f"too few: --latent {args.latent} --epochs {args.epochs}")

    training, test = load()
    floor, ceiling = bounds(training.images, test.images)
    model, history = train(training.images, test.images, args.latent, args.epochs, args.kl_weight)
    for name, parts in zip(("training", "test"), history[-1], strict=True):
        reconstruction, kl = parts
        print(f"{name:8} {parts.total:.2f} nats: reconstruction {reconstruction:.2f} + KL {kl:.2f}")
    print(f"mean image on test digits {ceiling:.2f}, entropy of their pixels {floor:.2f}")
    draw(args.output, model, history, test, floor)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
