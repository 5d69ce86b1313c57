"""Attention in the benchmarks: inputs, and each library's best way to do a case.

A case of the backward is the forward and the backward together, since that is how the libraries
give gradients.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

import fastce

from ._cases import ITEMSIZE, Case, normal, tensor
from ._timing import Call

CHUNK = 256  # queries: their scores stay in the cache


class Heads(NamedTuple):
    """The arrays of a case."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    grad: np.ndarray


def make_heads(case: Case) -> Heads:
    batch, heads, _, width = case.shape
    keys = (batch, heads, case.keys, width)
    shapes = (case.shape, keys, keys, case.shape)
    return Heads(*(normal(shape, case.dtype, seed) for seed, shape in enumerate(shapes)))


def _with_gradient(case: Case) -> bool:
    return case.op.endswith("_backward")


def _fastce(case: Case, data: Heads) -> Call:
    q, k, v, grad = data
    forward = functools.partial(fastce.scaled_dot_product_attention, q, k, v, is_causal=case.causal)
    if not _with_gradient(case):
        return Call(forward)

    def both():
        out, lse = forward(return_lse=True)
        return fastce.scaled_dot_product_attention_backward(
            grad, q, k, v, out, lse, is_causal=case.causal
        )

    return Call(both)


def _reference(case: Case, data: Heads) -> Call | None:
    if case.flops > 1e9:
        return None
    return _fastce(case, data)._replace(context=lambda: fastce.use_backend("reference"))


def _numba(case: Case, data: Heads) -> Call:
    """fastce's own kernels in Numba."""
    return _fastce(case, data)._replace(context=lambda: fastce.use_backend("numba"))


def _numpy(case: Case, data: Heads) -> Call | None:
    """NumPy's matrix products (BLAS) around a softmax in place, for chunks of queries."""
    if ITEMSIZE[case.dtype] == 2 or _with_gradient(case):
        return None
    q, k, v, _ = data
    length, scale = q.shape[2], q.dtype.type(q.shape[3] ** -0.5)

    def attend():
        out = np.empty(q.shape[:3] + v.shape[3:], q.dtype)
        for index in np.ndindex(q.shape[:2]):
            for first in range(0, length, CHUNK):
                rows = slice(first, min(first + CHUNK, length))
                last = rows.stop if case.causal else case.keys
                scores = (q[index][rows] * scale) @ k[index][:last].T
                if case.causal:
                    later = np.arange(last) > np.arange(first, rows.stop)[:, None]
                    np.putmask(scores, later, -np.inf)
                np.subtract(scores, scores.max(-1, keepdims=True), out=scores)
                np.exp(scores, out=scores)
                np.divide(scores, scores.sum(-1, keepdims=True), out=scores)
                np.matmul(scores, v[index][:last], out=out[index][rows])
        return out

    return Call(attend)


def _torch(case: Case, data: Heads) -> Call:
    import torch
    import torch.nn.functional as F

    q, k, v, grad = map(tensor, data)
    forward = functools.partial(F.scaled_dot_product_attention, is_causal=case.causal)
    if not _with_gradient(case):
        return Call(functools.partial(forward, q, k, v), torch.inference_mode)
    inputs = [a.requires_grad_() for a in (q, k, v)]
    return Call(lambda: torch.autograd.grad(forward(*inputs), inputs, grad))


def _jax(case: Case, data: Heads) -> Call | None:
    """jax.nn.dot_product_attention, jitted; its layout is (batch, length, heads, width)."""
    import jax
    import jax.numpy as jnp

    if case.dtype == "float64":
        return None
    q, k, v, grad = (jnp.array(np.swapaxes(a, 1, 2)) for a in data)
    forward = functools.partial(jax.nn.dot_product_attention, is_causal=case.causal)

    def both(q, k, v, grad):
        return jax.vjp(forward, q, k, v)[1](grad)

    function = jax.jit(both if _with_gradient(case) else forward)
    given = (q, k, v, grad) if _with_gradient(case) else (q, k, v)

    def back(result):
        parts = result if isinstance(result, tuple) else (result,)
        parts = tuple(np.swapaxes(np.asarray(part), 1, 2) for part in parts)
        return parts if isinstance(result, tuple) else parts[0]

    return Call(lambda: jax.block_until_ready(function(*given)), finish=back)


ATTENTION: dict[str, Callable[[Case, Heads], Call | None]] = {
    "fastce": _fastce,
    "reference": _reference,
    "numba": _numba,
    "numpy": _numpy,
    "torch": _torch,
    "jax": _jax,
}


def products_call(flops: float) -> Call:
    """As many floating-point operations in NumPy's matrix products, which BLAS does at its best."""
    side = 1024
    depth = max(1, round(flops / (2 * side * side)))
    times, depth = max(1, depth // side), min(depth, side)
    a, b = np.ones((side, depth), np.float32), np.ones((depth, side), np.float32)
    out = np.empty((side, side), np.float32)

    def multiply() -> None:
        for _ in range(times):
            np.matmul(a, b, out=out)

    return Call(multiply)
