"""Scaled dot-product attention as the formula reads, with the whole array of queries by keys.

    s = scale * q k^T,  then softcap * tanh(s / softcap),  then + mask
    p = softmax(s) over the keys that are allowed,  out = p v

The backward computes p = exp(s - lse), except in rows of a large lse: rounded to a size of 1e9 it
is the same for one key and for a thousand. There p is computed from the scores alone.

Query i of a batch entry stands at position i + offset among its keys; it may see key j where
position - left <= j <= position + right, unless left or right is -1. A query that may see no key
gets 0, and lse = -inf.
"""

import numpy as np

from ._widen import narrow, widen

# Of lse, in nats. Its rounding changes weights by up to |lse| / 2**24 of them in float32: 1e-5.
LARGE = 256 * np.log(2)


def _entries(q, spans):
    """Per batch entry its index, and its slices of queries and keys, and its offset."""
    for number, index in enumerate(np.ndindex(q.shape[:-3])):
        q_first, q_last, k_first, k_last, offset = (int(i) for i in spans[number])
        yield index, slice(q_first, q_last), slice(k_first, k_last), offset


def _per_query_head(a, heads):
    """Keys or values of grouped heads, repeated for each head of the queries."""
    return np.repeat(a, heads // max(1, a.shape[0]), axis=0)


def _scores(q, k, mask, index, rows, keys, offset, scale, left, right, softcap):
    """Scores of one batch entry (heads, queries, keys), and d(score) / d(scale * q k^T)."""
    s = scale * (widen(q[index][:, rows]) @ np.swapaxes(k, -1, -2))
    slope = np.ones_like(s)
    if softcap:
        t = np.tanh(s / softcap)
        s, slope = softcap * t, 1 - t * t
    if mask is not None:
        m = mask[index][:, rows, keys]
        m = np.where(m, 0.0, -np.inf) if m.dtype == bool else widen(m)
        s = np.where(m == -np.inf, m, s + m)  # -inf hides NaN too
    position = np.arange(s.shape[1])[:, None] + offset
    key = np.arange(s.shape[2])
    allowed = np.ones(s.shape[1:], bool)
    if left >= 0:
        allowed &= key >= position - left
    if right >= 0:
        allowed &= key <= position + right
    return np.where(allowed, s, -np.inf), slope


def _powers(s):
    """exp(s - row_max), row_max (0 where nothing is allowed), and the sums."""
    row_max = np.max(s, axis=-1, keepdims=True, initial=-np.inf)
    row_max = np.where(row_max == -np.inf, 0.0, row_max)
    powers = np.exp(s - row_max)
    return powers, row_max, powers.sum(axis=-1, keepdims=True)


def attention(q, k, v, mask, spans, out, lse, *, scale, left, right, softcap, threads):
    heads = q.shape[-3]
    for index, rows, keys, offset in _entries(q, spans):
        kk = _per_query_head(widen(k[index][:, keys]), heads)
        vv = _per_query_head(widen(v[index][:, keys]), heads)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            s, _ = _scores(q, kk, mask, index, rows, keys, offset, scale, left, right, softcap)
            p, row_max, total = _powers(s)
            result = np.where(total == 0, 0.0, (p @ vv) / total)
            narrow(result, out[index][:, rows])
            if lse is not None:
                lse[index][:, rows] = np.where(total == 0, -np.inf, row_max + np.log(total))[..., 0]


def attention_backward(grad_out, q, k, v, mask, spans, out, lse, dq, dk, dv, dmask, *, scale, left,
                       right, softcap, threads):  # fmt: skip
    heads = q.shape[-3]
    for index, rows, keys, offset in _entries(q, spans):
        kk = _per_query_head(widen(k[index][:, keys]), heads)
        vv = _per_query_head(widen(v[index][:, keys]), heads)
        qq, g = widen(q[index][:, rows]), widen(grad_out[index][:, rows])
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            s, slope = _scores(q, kk, mask, index, rows, keys, offset, scale, left, right, softcap)
            norm = lse[index][:, rows].astype(np.float64)[..., None]
            # No weight is above 1, however lse was rounded.
            p = np.where(norm == -np.inf, 0.0, np.exp(np.minimum(s - norm, 0.0)))
            mean = (g * widen(out[index][:, rows])).sum(axis=-1, keepdims=True)
            grad_p = g @ np.swapaxes(vv, -1, -2)
            large = np.isfinite(norm) & (np.abs(norm) > LARGE)
            powers, _, total = _powers(s)
            p = np.where(large, powers / total, p)
            mean = np.where(large, (p * grad_p).sum(axis=-1, keepdims=True), mean)
            ds = p * (grad_p - mean)
            if dmask is not None:
                # Where the mask was broadcast, its gradient is too, with strides of 0.
                np.add.at(dmask[index], np.s_[:, rows, keys], ds)
            ds = ds * slope * scale
            narrow(ds @ kk, dq[index][:, rows])
            grouped = (k.shape[-3], heads // max(1, k.shape[-3]))
            for product, to in (
                (np.swapaxes(ds, -1, -2) @ qq, dk),
                (np.swapaxes(p, -1, -2) @ g, dv),
            ):
                total = product.reshape(*grouped, *product.shape[1:]).sum(axis=1)
                narrow(total, to[index][:, keys])
