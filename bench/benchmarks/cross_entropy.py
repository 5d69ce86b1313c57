"""cross_entropy and nll_loss with class indices, and their gradients."""

from . import _Suite, combine

SHAPES = [(32, 1000), (1024, 32000), (1_000_000, 10)]
OPS = [
    "cross_entropy",
    "cross_entropy_backward",
    "cross_entropy_with_grad",
    "nll_loss",
    "nll_loss_backward",
]


class CrossEntropy(_Suite):
    cases = combine(OPS, SHAPES) + [
        case._replace(into="in place") for case in combine(["cross_entropy_with_grad"], SHAPES)
    ]
