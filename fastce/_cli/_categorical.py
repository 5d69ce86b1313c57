"""categorical_cross_entropy in the benchmarks: Keras' formula in PyTorch."""

from typing import Any

from ._cases import Case, Data, tensor
from ._timing import Call

EPSILON = 1e-7


def _loss(p: Any, target: Any) -> Any:
    """Probabilities are normalised and clipped; one of each row is looked up."""
    import torch

    p = (p / p.sum(1, keepdim=True)).clip(EPSILON, 1 - EPSILON)
    return -torch.log(p.gather(1, target[:, None])).mean()


def torch_call(case: Case, data: Data) -> Call:
    import torch

    p, target = tensor(data.x), tensor(data.target)
    if case.op == "categorical_cross_entropy":
        return Call(lambda: _loss(p, target), torch.inference_mode)
    p = p.detach().requires_grad_()
    if case.op.endswith("_backward"):
        return Call(lambda: torch.autograd.grad(_loss(p, target), p))

    def with_grad() -> tuple[Any, ...]:
        loss = _loss(p, target)
        return (loss, *torch.autograd.grad(loss, p))

    return Call(with_grad)
