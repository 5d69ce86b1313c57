"""Entropies and divergences of probabilities and of logits."""

from . import _Suite, combine

OPS = [
    "information.entropy",
    "information.cross_entropy",
    "information.kl_divergence",
    "information.js_divergence",
    "information.entropy_from_logits",
    "information.kl_divergence_from_logits",
    "information.kl_divergence_from_logits_with_grad",
]


class Information(_Suite):
    cases = combine(OPS, [(32, 1000), (1024, 32000), (1_000_000, 10)])
