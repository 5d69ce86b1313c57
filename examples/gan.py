"""A generative adversarial network learns the density of real data in two dimensions.

    python examples/gan.py [--output gan.png] [--saturating]

The data are scanned digits 0, 4 and 6, projected on their two principal components: three clusters
of which a generator that collapses loses one. Both networks have two hidden layers. The program
prints how near to the data the generated points are, and the share of each cluster. It takes about
ten seconds.
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.decomposition import PCA
from sklearn.metrics import pairwise_distances
from sklearn.neighbors import KernelDensity, KNeighborsClassifier
from training import Adam, Network, load, panels, progress, save

import fastce

DIGITS = (0, 4, 6)
STEPS, BATCH = 4000, 128
NOISE, HIDDEN = 8, 64
RATE, BETAS = 5e-4, (0.5, 0.99)  # less momentum than usual: Radford et al., 2016
KEPT = 0.998  # of the averaged generator, in each step
JUDGED, TIMES = 1000, 40  # generated points, and how often they are judged


class Data(NamedTuple):
    training: np.ndarray  # (points, 2)
    labels: np.ndarray  # of the training points
    test: np.ndarray  # (points, 2)


def project() -> Data:
    """Half of the digits to train on; the projection is fitted to them alone."""
    training, test = load(test=0.5)
    chosen, labels = np.isin(training.labels, DIGITS), training.labels
    pca = PCA(2, whiten=True).fit(training.images[chosen])
    held_out = test.images[np.isin(test.labels, DIGITS)]
    return Data(pca.transform(training.images[chosen]), labels[chosen], pca.transform(held_out))


class Players:
    """The generator maps noise to points; the discriminator has a logit for "this is data"."""

    def __init__(self, rng: np.random.Generator, dtype: Any = np.float32) -> None:
        self.generator = Network([NOISE, HIDDEN, HIDDEN, 2], rng, leak=0.2, dtype=dtype)
        self.discriminator = Network([2, HIDDEN, HIDDEN, 1], rng, leak=0.2, dtype=dtype)

    def discriminator_loss_with_grads(
        self, real: np.ndarray, noise: np.ndarray
    ) -> tuple[float, list[np.ndarray]]:
        """Binary cross-entropy; the gradients are for the discriminator's parameters only."""
        fake, _ = self.generator.forward(noise)
        points = np.concatenate([real, fake])
        is_real = np.repeat([True, False], [len(real), len(fake)])[:, None]
        logits, entered = self.discriminator.forward(points)
        loss, grad = fastce.binary_cross_entropy_with_logits_with_grad(logits, is_real, out=logits)
        _, grads = self.discriminator.backward(grad, entered)
        return float(loss), grads

    def generator_loss_with_grads(
        self, noise: np.ndarray, saturating: bool = False
    ) -> tuple[float, list[np.ndarray]]:
        """The gradients go through the discriminator, and are for the generator's parameters."""
        fake, entered = self.generator.forward(noise)
        logits, entered_discriminator = self.discriminator.forward(fake)
        target = np.full(logits.shape, not saturating)
        loss, grad = fastce.binary_cross_entropy_with_logits_with_grad(logits, target, out=logits)
        if saturating:  # log(1 - p), made small, where else it is -log p
            loss, grad = -loss, -grad
        grad_fake, _ = self.discriminator.backward(grad, entered_discriminator)
        _, grads = self.generator.backward(grad_fake, entered)
        return float(loss), grads


class Judge:
    """Generated points against test points, which neither network sees."""

    def __init__(self, data: Data) -> None:
        self.data = data
        self.neighbours = KNeighborsClassifier(5).fit(data.training, data.labels)
        nearest = pairwise_distances(data.test, data.training).min(axis=1)
        self.near = np.quantile(nearest, 0.95)
        self.within = pairwise_distances(data.test).mean()

    def energy_distance(self, points: np.ndarray) -> float:
        """0 where both have one distribution: Szekely and Rizzo, 2013."""
        between = pairwise_distances(points, self.data.test).mean()
        return float(2 * between - pairwise_distances(points).mean() - self.within)

    def share_near(self, points: np.ndarray) -> float:
        """The share that is as near to a training point as 95% of the test points are."""
        nearest = pairwise_distances(points, self.data.training).min(axis=1)
        return float(np.mean(nearest <= self.near))

    def shares(self, points: np.ndarray) -> np.ndarray:
        """The share of each cluster."""
        return np.mean(self.neighbours.predict(points)[:, None] == DIGITS, axis=0)

    def report(self, name: str, points: np.ndarray) -> None:
        shares = " ".join(f"{share:4.0%}" for share in self.shares(points))
        distance, near = self.energy_distance(points), self.share_near(points)
        print(f"{name:16} {distance:15.4f} {near:10.0%}  {shares}")


class Trained(NamedTuple):
    players: Players
    average: Network  # of the generator, over the last steps
    losses: np.ndarray  # (steps, 2): discriminator, generator
    distances: list[tuple[int, float, float]]  # step, of the generator, of the average


def sample(generator: Network) -> np.ndarray:
    noise = np.random.default_rng(1).standard_normal((JUDGED, NOISE), dtype=np.float32)
    return generator.forward(noise)[0]


def train(
    data: Data, judge: Judge, steps: int = STEPS, saturating: bool = False, seed: int = 0
) -> Trained:
    """Alternating steps of Adam, one for each network."""
    rng = np.random.default_rng(seed)
    players = Players(rng)
    average = Network([NOISE, HIDDEN, HIDDEN, 2], rng, leak=0.2)
    average.parameters = [p.copy() for p in players.generator.parameters]
    adams = [
        Adam(player.parameters, RATE, BETAS)
        for player in (players.discriminator, players.generator)
    ]
    losses, distances = [], []
    for step in progress(range(steps), "training"):
        real = data.training[rng.integers(len(data.training), size=BATCH)]
        noise, other = rng.standard_normal((2, BATCH, NOISE), dtype=np.float32)
        first, grads = players.discriminator_loss_with_grads(real, noise)
        adams[0].step(grads)
        second, grads = players.generator_loss_with_grads(other, saturating)
        adams[1].step(grads)
        for mean, parameter in zip(average.parameters, players.generator.parameters, strict=True):
            mean += (1 - KEPT) * (parameter - mean)
        losses.append((first, second))
        if (step + 1) % max(1, steps // TIMES) == 0:
            both = (judge.energy_distance(sample(x)) for x in (players.generator, average))
            distances.append((step + 1, *both))
    return Trained(players, average, np.array(losses), distances)


def gaussian(data: Data) -> np.ndarray:
    """Points of the Gaussian with the mean and the covariance of the data: one cluster."""
    mean, covariance = data.training.mean(axis=0), np.cov(data.training.T)
    return np.random.default_rng(2).multivariate_normal(mean, covariance, JUDGED)


def draw_density(axes: Any, points: np.ndarray, title: str) -> None:
    x, y = np.meshgrid(np.linspace(-2.2, 2.2, 80), np.linspace(-2.2, 2.2, 80))
    logs = KernelDensity(bandwidth=0.15).fit(points).score_samples(np.c_[x.ravel(), y.ravel()])
    levels = np.arange(0.03, 0.5, 0.06)
    axes.contourf(x, y, np.exp(logs).reshape(x.shape), levels, cmap="Blues", extend="max")
    axes.plot(*points[:250].T, ".", color="C3", markersize=2)
    axes.set_aspect("equal")
    axes.set_title(title, loc="left", weight="bold")


def draw(path: Path, data: Data, judge: Judge, trained: Trained) -> None:
    figure, ((real, fake), (losses, distances)) = panels(2, 2, 7.2)
    draw_density(real, data.training, "digits 0, 4 and 6: two components")
    draw_density(fake, sample(trained.average), "generated points")

    block = max(1, len(trained.losses) // 200)  # the means of some steps: each alone is noise
    blocks = trained.losses[: len(trained.losses) // block * block].reshape(-1, block, 2)
    steps = block * np.arange(1, len(blocks) + 1)
    losses.plot(steps, blocks.mean(axis=1), label=["discriminator", "generator"])
    losses.axhline(np.log(2), color="0.3", linestyle="--", label="log 2")
    losses.set_title("binary cross-entropies (nats)", loc="left", weight="bold")

    steps, last, average = zip(*trained.distances, strict=True)
    distances.plot(steps, last, color="0.7", label="generator")
    distances.plot(steps, average, color="C3", label="its average")
    for name, points, line in ("one Gaussian", gaussian(data), ":"), ("data", data.training, "--"):
        distances.axhline(judge.energy_distance(points), color="0.3", linestyle=line, label=name)
    distances.set(yscale="log")
    distances.set_title("energy distance to test digits", loc="left", weight="bold")
    for axes in losses, distances:
        axes.set_xlabel("step")
        axes.legend(frameon=False, fontsize=9)
    save(figure, path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("gan.png"))
    parser.add_argument("--steps", type=int, default=STEPS, help="of each player")
    parser.add_argument("--saturating", action="store_true", help="the generator's loss of theory")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.steps < 1:
        parser.error(f"--steps must be at least 1, got {args.steps}")
    data = project()
    judge = Judge(data)
    trained = train(data, judge, args.steps, args.saturating, args.seed)
    print(f"{'':16} energy distance  near data  shares of {DIGITS}")
    judge.report("training digits", data.training)
    judge.report("one Gaussian", gaussian(data))
    judge.report("generator", sample(trained.players.generator))
    judge.report("its average", sample(trained.average))
    draw(args.output, data, judge, trained)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
