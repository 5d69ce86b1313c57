"""Information measures in the benchmarks: inputs, and each library's best way to do a case."""

import functools
from collections.abc import Callable
from operator import attrgetter
from typing import NamedTuple

import numpy as np

import fastce

from ._cases import Case, normal, tensor
from ._timing import Call

REFERENCE_LIMIT = 2**22  # elements; it takes 0.1 s per million, and 100 bytes for each


class Pair(NamedTuple):
    """Distributions that do not sum to 1, as those of `scipy.stats.entropy`."""

    p: np.ndarray
    q: np.ndarray


def make_pair(case: Case) -> Pair:
    p, q = (normal(case.shape, case.dtype, seed) for seed in (0, 1))
    return Pair(np.abs(p, out=p), np.abs(q, out=q))


def _of_two(case: Case) -> bool:
    return case.op.endswith("kl_divergence")


def _fastce(case: Case, data: Pair) -> Call:
    arrays = data if _of_two(case) else data[:1]
    return Call(functools.partial(attrgetter(case.op)(fastce), *arrays))


def _reference(case: Case, data: Pair) -> Call | None:
    if data.p.size > REFERENCE_LIMIT:
        return None
    return _fastce(case, data)._replace(context=lambda: fastce.use_backend("reference"))


def _numba(case: Case, data: Pair) -> Call:
    """fastce's own kernels in Numba."""
    return _fastce(case, data)._replace(context=lambda: fastce.use_backend("numba"))


def _numpy(case: Case, data: Pair) -> Call:
    """For numbers above 0, in as few passes as there can be over memory that is kept."""
    (p, q), scratch = data, np.empty_like(data.p)

    def entropy():
        total = p.sum(-1)
        np.multiply(p, np.log(p, out=scratch), out=scratch)
        return np.log(total) - scratch.sum(-1) / total

    def kl_divergence():
        p_sum, q_sum = p.sum(-1), q.sum(-1)
        np.log(np.divide(p, q, out=scratch), out=scratch)
        return np.multiply(p, scratch, out=scratch).sum(-1) / p_sum + np.log(q_sum / p_sum)

    return Call(kl_divergence if _of_two(case) else entropy)


def _scipy(case: Case, data: Pair) -> Call:
    from scipy import stats

    arrays = data if _of_two(case) else data[:1]
    return Call(functools.partial(stats.entropy, *arrays, axis=-1))


def _torch(case: Case, data: Pair) -> Call:
    """PyTorch has entr and kl_div; what they are given must sum to 1."""
    import torch
    import torch.nn.functional as F

    p, q = map(tensor, data)
    scratch, other = torch.empty_like(p), torch.empty_like(p)

    def entropy():
        torch.div(p, p.sum(-1, keepdim=True), out=scratch)
        return torch.special.entr(scratch, out=scratch).sum(-1)

    def kl_divergence():
        torch.div(p, p.sum(-1, keepdim=True), out=scratch)
        torch.div(q, q.sum(-1, keepdim=True), out=other).log_()
        return F.kl_div(other, scratch, reduction="none").sum(-1)

    return Call(kl_divergence if _of_two(case) else entropy, torch.inference_mode)


INFORMATION: dict[str, Callable[[Case, Pair], Call | None]] = {
    "fastce": _fastce,
    "reference": _reference,
    "numba": _numba,
    "numpy": _numpy,
    "scipy": _scipy,
    "torch": _torch,
}
