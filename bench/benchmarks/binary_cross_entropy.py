"""Binary cross-entropy of logits and of probabilities, and the sigmoid focal loss."""

from . import _Suite, combine

OPS = [
    "binary_cross_entropy",
    "binary_cross_entropy_with_grad",
    "binary_cross_entropy_with_logits",
    "binary_cross_entropy_with_logits_backward",
    "binary_cross_entropy_with_logits_with_grad",
    "sigmoid_focal_loss",
    "sigmoid_focal_loss_backward",
    "sigmoid_focal_loss_with_grad",
]


class BinaryCrossEntropy(_Suite):
    cases = combine(OPS, [(1000,), (1_000_000,), (20_000_000,)])
