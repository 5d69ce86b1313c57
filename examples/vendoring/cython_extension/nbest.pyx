# cython: boundscheck=False
"""Perplexities of many texts under a language model, from its logits; on all threads, no GIL."""

from cython.parallel cimport prange
from libc.math cimport exp
from libc.stdint cimport int64_t
from libc.string cimport memset

from fastce.kernels.cython.cross_entropy cimport F32, ClassLoss, c_cross_entropy, c_scan_target

import numpy as np


cdef float nats(
    const float* logits, const int64_t* tokens, Py_ssize_t length, Py_ssize_t vocabulary
) noexcept nogil:
    """The sum of -log p of the tokens of one text; logits is (length, vocabulary)."""
    cdef float loss = 0
    cdef ClassLoss a
    memset(&a, 0, sizeof(a))  # the defaults
    a.x, a.labels, a.loss = logits, tokens, &loss
    a.outer, a.n = length, vocabulary
    c_cross_entropy(F32, &a, 1)
    return loss


def perplexities(
    const float[:, ::1] logits, const int64_t[::1] tokens, const int64_t[::1] starts
):
    """Of the texts that lie behind each other: text k has the tokens from starts[k] on.

    logits is (tokens, vocabulary); starts has one more number than there are texts.
    """
    cdef Py_ssize_t texts = starts.shape[0] - 1, vocabulary = logits.shape[1], k, first, length
    check(logits, tokens, starts)
    result = np.empty(texts)
    cdef double[::1] out = result
    for k in prange(texts, nogil=True, schedule="dynamic"):
        first = starts[k]
        length = starts[k + 1] - first
        out[k] = exp(nats(&logits[first, 0], &tokens[first], length, vocabulary) / length)
    return result


def check(const float[:, ::1] logits, const int64_t[::1] tokens, const int64_t[::1] starts):
    """The kernels check nothing: a token that is not in the vocabulary would read elsewhere."""
    cdef double[2] stats
    cdef ClassLoss a
    if logits.shape[0] != tokens.shape[0]:
        raise ValueError(f"{logits.shape[0]} rows of logits for {tokens.shape[0]} tokens")
    edges = np.asarray(starts)
    if [*edges[:1], *edges[-1:]] != [0, tokens.shape[0]] or np.any(np.diff(edges) <= 0):
        raise ValueError(f"starts must rise from 0 to {tokens.shape[0]}, got {edges}")
    memset(&a, 0, sizeof(a))
    a.labels, a.stats = &tokens[0], stats
    a.outer, a.n = tokens.shape[0], logits.shape[1]
    c_scan_target(F32, &a, 1)
    if stats[0] >= 0:
        row = int(stats[0])
        raise IndexError(f"token {row} is {tokens[row]}, of a vocabulary of {logits.shape[1]}")
