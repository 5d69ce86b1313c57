"""logsumexp, softmax, log_softmax and their gradients, into given outputs."""

from . import _Suite, combine

OPS = ["logsumexp", "softmax", "log_softmax", "softmax_backward", "log_softmax_backward"]


class LogSoftmax(_Suite):
    cases = combine(OPS, [(1, 10), (1024, 32000)]) + combine(OPS, [(16, 1000, 32, 32)], axis=1)
