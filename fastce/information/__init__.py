"""Entropies, divergences and mutual information of probabilities, tables, labels and logits.

``fastce.information.entropy(p)`` and so on. Distributions need not sum to 1, they are divided by
their sum; ``0 * log(0)`` is 0; results are in nats unless there is a `base`.
"""

from .logits import (
    entropy_from_logits,
    entropy_from_logits_with_grad,
    kl_divergence_from_logits,
    kl_divergence_from_logits_with_grad,
)
from .probabilities import cross_entropy, entropy, js_divergence, kl_divergence, perplexity
from .samples import (
    conditional_entropy_from_samples,
    entropy_from_samples,
    joint_entropy_from_samples,
    mutual_information_from_samples,
)
from .tables import conditional_entropy, joint_entropy, mutual_information

__all__ = [
    "conditional_entropy",
    "conditional_entropy_from_samples",
    "cross_entropy",
    "entropy",
    "entropy_from_logits",
    "entropy_from_logits_with_grad",
    "entropy_from_samples",
    "joint_entropy",
    "joint_entropy_from_samples",
    "js_divergence",
    "kl_divergence",
    "kl_divergence_from_logits",
    "kl_divergence_from_logits_with_grad",
    "mutual_information",
    "mutual_information_from_samples",
    "perplexity",
]

for _name in __all__:  # help() and pickles name this module, not the private file
    if callable(globals()[_name]):
        globals()[_name].__module__ = __name__
