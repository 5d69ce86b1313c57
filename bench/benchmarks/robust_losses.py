"""The robust losses with class indices, and their gradients."""

from . import _Suite, combine

OPS = [
    "focal_loss",
    "focal_loss_backward",
    "focal_loss_with_grad",
    "generalized_cross_entropy_with_grad",
    "symmetric_cross_entropy_with_grad",
    "poly_cross_entropy_with_grad",
    "confidence_penalty_with_grad",
]


class RobustLosses(_Suite):
    cases = combine(OPS, [(32, 1000), (65536, 1000), (1_000_000, 10)])
