"""Cross-entropy of a linear layer: each library's best way, gradients in new arrays."""

from types import SimpleNamespace
from typing import Any

from ..benchmarks._cases import Case
from .calls import Call, tensor


def _torch(case: Case, data: SimpleNamespace) -> Call:
    """All logits at once, which is PyTorch's fastest way."""
    import torch
    from torch.nn.functional import cross_entropy

    x, w, target = map(tensor, vars(data).values())
    if not case.gradient:
        return Call(lambda: cross_entropy(x @ w.T, target), torch.inference_mode)
    x.requires_grad_()
    w.requires_grad_()

    def with_gradient() -> tuple[Any, ...]:
        loss = cross_entropy(x @ w.T, target)
        grads = torch.autograd.grad(loss, (x, w))
        return grads if case.gradient == "_backward" else (loss, *grads)

    return Call(with_gradient)


LIBRARIES = {"torch": _torch}
