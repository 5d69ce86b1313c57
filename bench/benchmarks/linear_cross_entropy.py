"""Cross-entropy of a linear layer, forward and with its gradients, of (rows, classes)."""

from . import _ProductsSuite, combine

OPS = ["linear_cross_entropy", "linear_cross_entropy_with_grad"]


class LinearCrossEntropy(_ProductsSuite):
    cases = combine(OPS, [(256, 1000), (512, 32000)], width=256)
