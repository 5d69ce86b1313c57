"""categorical_cross_entropy of probabilities, and its gradients, with sparse and dense targets."""

from . import _Suite, combine

SHAPES = [(32, 1000), (65536, 1000), (1_000_000, 10)]
OPS = ["categorical_cross_entropy", "categorical_cross_entropy_with_grad"]


class CategoricalCrossEntropy(_Suite):
    cases = (
        combine(OPS, SHAPES)
        + combine(OPS, SHAPES, target="probabilities")
        + combine(["categorical_cross_entropy_backward"], SHAPES)
    )
