"""Information measures: each library's best way to do a case."""

import functools
from types import SimpleNamespace

import numpy as np

from ..benchmarks._cases import Case
from .calls import Call, tensor


def _numpy(case: Case, data: SimpleNamespace) -> Call:
    """For numbers above 0, in as few passes as there can be over memory that is kept."""
    p, scratch = data.p, np.empty_like(data.p)

    def entropy():
        total = p.sum(-1)
        np.multiply(p, np.log(p, out=scratch), out=scratch)
        return np.log(total) - scratch.sum(-1) / total

    def kl_divergence():
        q = data.q
        p_sum, q_sum = p.sum(-1), q.sum(-1)
        np.log(np.divide(p, q, out=scratch), out=scratch)
        return np.multiply(p, scratch, out=scratch).sum(-1) / p_sum + np.log(q_sum / p_sum)

    return Call(entropy if case.op.endswith("entropy") else kl_divergence)


def _scipy(case: Case, data: SimpleNamespace) -> Call:
    from scipy import stats

    return Call(functools.partial(stats.entropy, *vars(data).values(), axis=-1))


def _torch(case: Case, data: SimpleNamespace) -> Call:
    """PyTorch has entr and kl_div; their inputs must sum to 1."""
    import torch
    import torch.nn.functional as F

    p, *others = map(tensor, vars(data).values())
    scratch, other = torch.empty_like(p), torch.empty_like(p)

    def entropy():
        torch.div(p, p.sum(-1, keepdim=True), out=scratch)
        return torch.special.entr(scratch, out=scratch).sum(-1)

    def kl_divergence():
        torch.div(p, p.sum(-1, keepdim=True), out=scratch)
        (q,) = others
        torch.div(q, q.sum(-1, keepdim=True), out=other).log_()
        return F.kl_div(other, scratch, reduction="none").sum(-1)

    return Call(entropy if case.op.endswith("entropy") else kl_divergence, torch.inference_mode)


LIBRARIES = {"numpy": _numpy, "scipy": _scipy, "torch": _torch}
