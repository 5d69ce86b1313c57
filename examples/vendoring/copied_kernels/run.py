"""Calibrates a classifier whose logits are three times too large."""

import calibration
import numpy as np


def overconfident(rows=20_000, classes=10):
    """Its logits, and labels that are drawn from the probabilities of a third of them."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((rows, classes))
    return 3 * logits, (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)


def main():
    logits, labels = overconfident()
    right = np.mean(logits.argmax(axis=1) == labels)
    found = calibration.best_temperature(logits, labels)
    print(f"right: {right:.1%}, temperature: {found:.2f}")
    for temperature in (1.0, found):
        loss, _ = calibration.loss(logits, labels, temperature)
        sure = calibration.probabilities(logits, temperature).max(axis=1).mean()
        print(f"at temperature {temperature:.2f}: {sure:.1%} sure, loss {loss:.3f}")
    print(f"computed by {calibration.softmax.__module__}")


if __name__ == "__main__":
    main()
