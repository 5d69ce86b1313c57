"""Attention: each library's best way to do a case, whose backward is the forward and backward."""

import functools
from types import SimpleNamespace

import numpy as np

from ..benchmarks._cases import ITEMSIZE, Case
from .calls import Call, tensor

CHUNK = 256  # queries: their scores stay in the cache


def _numpy(case: Case, data: SimpleNamespace) -> Call | None:
    """NumPy's matrix products (BLAS) around a softmax in place, for chunks of queries."""
    if ITEMSIZE[case.dtype] == 2 or case.gradient:
        return None
    q, k, v = data.q, data.k, data.v
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


def _torch(case: Case, data: SimpleNamespace) -> Call:
    import torch
    import torch.nn.functional as F

    q, k, v, grad = map(tensor, vars(data).values())
    forward = functools.partial(F.scaled_dot_product_attention, is_causal=case.causal)
    if not case.gradient:
        return Call(functools.partial(forward, q, k, v), torch.inference_mode)
    inputs = [a.requires_grad_() for a in (q, k, v)]
    return Call(lambda: torch.autograd.grad(forward(*inputs), inputs, grad))


def _jax(case: Case, data: SimpleNamespace) -> Call | None:
    """jax.nn.dot_product_attention, jitted; its layout is (batch, length, heads, width)."""
    import jax
    import jax.numpy as jnp

    if case.dtype == "float64":
        return None
    q, k, v, grad = (jnp.array(np.swapaxes(a, 1, 2)) for a in vars(data).values())
    forward = functools.partial(jax.nn.dot_product_attention, is_causal=case.causal)

    def both(q, k, v, grad):
        return jax.vjp(forward, q, k, v)[1](grad)

    function = jax.jit(both if case.gradient else forward)
    given = (q, k, v, grad) if case.gradient else (q, k, v)

    def back(result):
        parts = result if isinstance(result, tuple) else (result,)
        parts = tuple(np.swapaxes(np.asarray(part), 1, 2) for part in parts)
        return parts if isinstance(result, tuple) else parts[0]

    return Call(lambda: jax.block_until_ready(function(*given)), finish=back)


LIBRARIES = {"numpy": _numpy, "torch": _torch, "jax": _jax}
