"""What the robust losses of `robust_losses.py` have in common: curves, and calls of the kernels."""

import math
from typing import Any, NamedTuple

from ._inputs import host


class Curve(NamedTuple):
    """What a row costs, as the kernels take it: see `kernels/reference/robust_losses.py`."""

    alpha: float = 1.0
    gamma: float = 0.0
    q: float = 0.0
    epsilon: float = 0.0
    beta: float = 0.0


def number_of(value: Any, name: str, least: float = -math.inf, most: float = math.inf) -> float:
    number = host.number(value, name)
    if math.isfinite(number) and least <= number <= most:
        return number
    wanted = ["finite"]
    wanted += [f"at least {least:g}"] if least > -math.inf else []
    wanted += [f"at most {most:g}"] if most < math.inf else []
    raise ValueError(f"{name} must be {' and '.join(wanted)}, got {value!r}")


def loss_of(p: Any, curve: Curve, logits: Any) -> Any:
    loss_rows, loss = p.new_loss()
    p.kernel("robust_losses", "robust_losses")(
        p.logits, p.target, p.weight, loss_rows, **p.options, **curve._asdict()
    )
    return host.like(logits, loss)


def grad_of(p: Any, curve: Curve, grad_loss: Any, logits: Any, out: Any) -> Any:
    grad_rows, grad = p.new_grad()
    p.kernel("robust_losses_backward", "robust_losses")(
        p.grad_loss(grad_loss), p.logits, p.target, p.weight, grad_rows,
        **p.options, **curve._asdict(),
    )  # fmt: skip
    return host.like(logits, grad) if out is None else out


def loss_and_grad_of(p: Any, curve: Curve, logits: Any, out: Any) -> tuple[Any, Any]:
    loss_rows, loss = p.new_loss()
    grad_rows, grad = p.new_grad()
    p.kernel("robust_losses_with_grad", "robust_losses")(
        p.logits, p.target, p.weight, loss_rows, grad_rows, **p.options, **curve._asdict()
    )
    return host.like(logits, loss), host.like(logits, grad) if out is None else out
