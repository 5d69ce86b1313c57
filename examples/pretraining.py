"""Self-supervised pre-training: features of digits without labels, when labels are few.

    python examples/pretraining.py [--output pretraining.png] [--validation]

An autoencoder learns, without labels, to clean noisy digits. Then softmax regression is trained on
10 to 500 labelled digits, once on their pixels and once on features of the autoencoder, and for
comparison on features of three encoders that learned another task, or nothing. It takes about
half a minute.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from training import Adam, Digits, Network, batches, load, panels, progress, save, tiles

import fastce

EPOCHS, DRAWS = 60, 20
WIDTHS = [64, 256, 256, 256, 64]  # the features are the second of the hidden layers
NOISE, MASKED = 0.5, 0.5
PER_CLASS = (1, 2, 5, 10, 20, 50)  # labels
L2, STEPS, RATE = 0.1, 300, 0.05  # of the probe

Corrupt = Callable[[np.ndarray, np.random.Generator], np.ndarray]

# The input of the autoencoder for an image that it should reconstruct.
TASKS: dict[str, Corrupt] = {
    "noise": lambda x, rng: x + np.float32(NOISE) * rng.standard_normal(x.shape, dtype=np.float32),
    "masking": lambda x, rng: x * (rng.random(x.shape, dtype=np.float32) >= MASKED),
    "none": lambda x, rng: x,
}

COLOURS = {"pixels": "C0", "noise": "C3", "masking": "C2", "none": "C1", "untrained": "0.5"}


def loss_with_grads(
    network: Network, corrupted: np.ndarray, images: np.ndarray
) -> tuple[float, list[np.ndarray]]:
    """The cross-entropy of an image in nats, a sum over its pixels; its gradients."""
    logits, entered = network.forward(corrupted)
    loss, grad = fastce.binary_cross_entropy_with_logits_with_grad(
        logits, images, reduction="sum", out=logits
    )
    _, grads = network.backward(grad / len(images), entered)
    return float(loss) / len(images), grads


def pretrain(images: np.ndarray, task: str, epochs: int = EPOCHS) -> Network:
    """An autoencoder that learned this task. Nothing here sees a label."""
    rng = np.random.default_rng(0)
    network = Network(WIDTHS, rng)
    adam = Adam(network.parameters)
    for _ in progress(range(epochs), f"pre-training: {task}"):
        for chosen in batches(len(images), 64, rng):
            clean = images[chosen]
            _, grads = loss_with_grads(network, TASKS[task](clean, rng), clean)
            adam.step(grads)
    return network


def features(network: Network, images: np.ndarray) -> np.ndarray:
    """What enters the third layer. There is no noise here."""
    _, entered = network.forward(images)
    return entered[2]


def scaled(training: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both, of mean 0 and as a whole of deviation 1 in training: one L2 then suits all."""
    mean, deviation = training.mean(axis=0), training.std()
    return (training - mean) / deviation, (test - mean) / deviation


def probe(inputs: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights and bias of softmax regression: they minimise cross-entropy + L2 / 2 Σ W²."""
    weights, bias = np.zeros((inputs.shape[1], 10), np.float32), np.zeros(10, np.float32)
    adam = Adam([weights, bias], RATE)
    for _ in range(STEPS):
        logits = inputs @ weights + bias
        _, grad = fastce.cross_entropy_with_grad(logits, labels, out=logits)
        adam.step([inputs.T @ grad + L2 * weights, grad.sum(axis=0)])
    return weights, bias


def draw_labels(labels: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """Which digits have a label, equally many of each class."""
    rng = np.random.default_rng(seed)
    classes = (np.flatnonzero(labels == k) for k in range(10))
    return np.concatenate([rng.choice(those, per_class, replace=False) for those in classes])


def accuracies(
    inputs: dict[str, tuple[np.ndarray, np.ndarray]],
    training: Digits,
    test: Digits,
    draws: int = DRAWS,
    sizes: tuple[int, ...] = PER_CLASS,
) -> dict[str, np.ndarray]:
    """Accuracy on the test, (sizes, draws), of probes on each kind of inputs: training and test.

    In each draw all kinds have the same labelled digits.
    """
    found = {name: np.empty((len(sizes), draws)) for name in inputs}
    for draw in progress(range(draws), "probes"):
        for i, size in enumerate(sizes):
            chosen = draw_labels(training.labels, size, draw)
            for name, (known, unknown) in inputs.items():
                weights, bias = probe(known[chosen], training.labels[chosen])
                predicted = np.argmax(unknown @ weights + bias, axis=1)
                found[name][i, draw] = np.mean(predicted == test.labels)
    return found


def picture(path: Path, found: dict[str, np.ndarray], network: Network, test: Digits) -> None:
    figure, ((curves, gains, cleaned),) = panels(1, 3, 3.4)
    labels = 10 * np.array(PER_CLASS)
    for name, values in found.items():
        colour, beside = COLOURS[name], 0.96 if name == "pixels" else 1.04
        compared = name in ("pixels", "noise")
        curves.plot(labels, values.mean(axis=1), "-" if compared else ":", color=colour, label=name)
        if compared:
            curves.plot(beside * labels, values, ".", color=colour, markersize=3, alpha=0.5)
    curves.set_title("test accuracy", loc="left", weight="bold")
    curves.legend(frameon=False, fontsize=9)

    gain = found["noise"] - found["pixels"]
    gains.plot(labels, gain, ".", color="0.6", markersize=4)
    gains.plot(labels, gain.mean(axis=1), color="C3", linewidth=2)
    gains.axhline(0, color="0.3", linewidth=1)
    gains.set_title("gain over pixels", loc="left", weight="bold")
    for axes in curves, gains:
        axes.set(xscale="log", xlabel="labelled digits")
        axes.set_xticks(labels, labels)
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")

    clean = test.images[:24]
    noisy = TASKS["noise"](clean, np.random.default_rng(1))
    back = 1 / (1 + np.exp(-network.forward(noisy)[0]))
    rows = [np.clip(x, 0, 1).reshape(3, 8, 64) for x in (clean, noisy, back)]
    tiles(cleaned, np.stack(rows, axis=1).reshape(72, 64), 8)
    cleaned.set_title("clean, noisy, cleaned", loc="left", weight="bold")
    save(figure, path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("pretraining.png"))
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of pre-training")
    parser.add_argument("--draws", type=int, default=DRAWS, help="of the labelled digits")
    parser.add_argument("--validation", action="store_true", help="leave the test digits alone")
    args = parser.parse_args()

    training, test = load()
    if args.validation:
        training, test = (
            Digits(training.images[part], training.labels[part])
            for part in (slice(1000), slice(1000, None))
        )
    networks = {task: pretrain(training.images, task, args.epochs) for task in TASKS}
    networks["untrained"] = Network(WIDTHS, np.random.default_rng(0))
    inputs = {"pixels": scaled(training.images, test.images)} | {
        name: scaled(features(network, training.images), features(network, test.images))
        for name, network in networks.items()
    }
    found = accuracies(inputs, training, test, args.draws)
    print(f"accuracy on {len(test.labels)} digits, mean and deviation of {args.draws} draws")
    print(f"{'labels':14}" + "".join(f"{10 * size:13}" for size in PER_CLASS))
    for name, values in found.items():
        cells = (f"{row.mean():7.1%}{row.std():6.1%}" for row in values)
        print(f"{name:14}" + "".join(cells))
    wins = np.mean(found["noise"] > found["pixels"], axis=1)
    print("noise > pixels" + "".join(f"{share:7.0%}{'':6}" for share in wins))
    picture(args.output, found, networks["noise"], test)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
