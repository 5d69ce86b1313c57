"""Losses for noisy labels and rare classes, from logits, each in one trip through memory.

Each is a curve over the probability of the row's class, so its gradient is that of cross-entropy
times one number per row; the confidence penalty is the entropy of the row. The sigmoid focal loss
is of single logits: its kernels are in the files of binary cross-entropy.
"""

from ._confidence import (
    confidence_penalty,
    confidence_penalty_backward,
    confidence_penalty_with_grad,
    poly_cross_entropy,
    poly_cross_entropy_backward,
    poly_cross_entropy_with_grad,
)
from ._focal_loss import focal_loss, focal_loss_backward, focal_loss_with_grad
from ._noisy_labels import (
    generalized_cross_entropy,
    generalized_cross_entropy_backward,
    generalized_cross_entropy_with_grad,
    symmetric_cross_entropy,
    symmetric_cross_entropy_backward,
    symmetric_cross_entropy_with_grad,
)
from ._sigmoid_focal_loss import (
    sigmoid_focal_loss,
    sigmoid_focal_loss_backward,
    sigmoid_focal_loss_with_grad,
)

__all__ = [
    "confidence_penalty",
    "confidence_penalty_backward",
    "confidence_penalty_with_grad",
    "focal_loss",
    "focal_loss_backward",
    "focal_loss_with_grad",
    "generalized_cross_entropy",
    "generalized_cross_entropy_backward",
    "generalized_cross_entropy_with_grad",
    "poly_cross_entropy",
    "poly_cross_entropy_backward",
    "poly_cross_entropy_with_grad",
    "sigmoid_focal_loss",
    "sigmoid_focal_loss_backward",
    "sigmoid_focal_loss_with_grad",
    "symmetric_cross_entropy",
    "symmetric_cross_entropy_backward",
    "symmetric_cross_entropy_with_grad",
]
