"""Softmax, cross-entropy and attention kernels for NumPy arrays: fast and exact.

Every op takes any axis and any layout, float64, float32, float16 and bfloat16, and runs over
all CPU threads with results that are the same to the last bit for any number of them.
"""

from . import information
from ._runtime.config import show_config
from ._runtime.dispatch import BackendError, available_backends, use_backend
from ._runtime.options import set_allow_tf32, set_validation
from ._runtime.threads import get_num_threads, set_num_threads
from ._version import __version__
from .attention import (
    attention_varlen,
    attention_varlen_backward,
    scaled_dot_product_attention,
    scaled_dot_product_attention_backward,
)
from .binary_cross_entropy import (
    binary_cross_entropy,
    binary_cross_entropy_backward,
    binary_cross_entropy_with_grad,
    binary_cross_entropy_with_logits,
    binary_cross_entropy_with_logits_backward,
    binary_cross_entropy_with_logits_with_grad,
)
from .categorical_cross_entropy import (
    categorical_cross_entropy,
    categorical_cross_entropy_backward,
    categorical_cross_entropy_with_grad,
)
from .cross_entropy import (
    cross_entropy,
    cross_entropy_backward,
    cross_entropy_with_grad,
    nll_loss,
    nll_loss_backward,
)
from .linear_cross_entropy import (
    linear_cross_entropy,
    linear_cross_entropy_backward,
    linear_cross_entropy_with_grad,
)
from .log_softmax import (
    log_softmax,
    log_softmax_backward,
    logsumexp,
    softmax,
    softmax_backward,
)
from .robust_losses import (
    confidence_penalty,
    confidence_penalty_backward,
    confidence_penalty_with_grad,
    focal_loss,
    focal_loss_backward,
    focal_loss_with_grad,
    generalized_cross_entropy,
    generalized_cross_entropy_backward,
    generalized_cross_entropy_with_grad,
    poly_cross_entropy,
    poly_cross_entropy_backward,
    poly_cross_entropy_with_grad,
    sigmoid_focal_loss,
    sigmoid_focal_loss_backward,
    sigmoid_focal_loss_with_grad,
    symmetric_cross_entropy,
    symmetric_cross_entropy_backward,
    symmetric_cross_entropy_with_grad,
)

__all__ = [
    "BackendError",
    "__version__",
    "attention_varlen",
    "attention_varlen_backward",
    "available_backends",
    "binary_cross_entropy",
    "binary_cross_entropy_backward",
    "binary_cross_entropy_with_grad",
    "binary_cross_entropy_with_logits",
    "binary_cross_entropy_with_logits_backward",
    "binary_cross_entropy_with_logits_with_grad",
    "categorical_cross_entropy",
    "categorical_cross_entropy_backward",
    "categorical_cross_entropy_with_grad",
    "confidence_penalty",
    "confidence_penalty_backward",
    "confidence_penalty_with_grad",
    "cross_entropy",
    "cross_entropy_backward",
    "cross_entropy_with_grad",
    "focal_loss",
    "focal_loss_backward",
    "focal_loss_with_grad",
    "generalized_cross_entropy",
    "generalized_cross_entropy_backward",
    "generalized_cross_entropy_with_grad",
    "get_num_threads",
    "information",
    "linear_cross_entropy",
    "linear_cross_entropy_backward",
    "linear_cross_entropy_with_grad",
    "log_softmax",
    "log_softmax_backward",
    "logsumexp",
    "nll_loss",
    "nll_loss_backward",
    "poly_cross_entropy",
    "poly_cross_entropy_backward",
    "poly_cross_entropy_with_grad",
    "scaled_dot_product_attention",
    "scaled_dot_product_attention_backward",
    "set_allow_tf32",
    "set_num_threads",
    "set_validation",
    "show_config",
    "sigmoid_focal_loss",
    "sigmoid_focal_loss_backward",
    "sigmoid_focal_loss_with_grad",
    "softmax",
    "softmax_backward",
    "symmetric_cross_entropy",
    "symmetric_cross_entropy_backward",
    "symmetric_cross_entropy_with_grad",
    "use_backend",
]
