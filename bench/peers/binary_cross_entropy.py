"""Binary cross-entropy: each library's best way to do a case."""

from types import SimpleNamespace
from typing import Any

import numpy as np

import fastce

from ..benchmarks._cases import ITEMSIZE, Case
from .calls import Call, tensor, torch_loss


def _numpy(case: Case, data: SimpleNamespace) -> Call | None:
    """The formulas over arrays that are kept, but for the gradient where it is to be fresh."""
    if ITEMSIZE[case.dtype] == 2 or case.gradient == "_backward" or "focal" in case.op:
        return None
    x, t = data.x, data.target
    scratch, more = np.empty_like(x), np.empty_like(x)
    kept = np.empty_like(x) if case.into == "out" else None

    def loss_of_logits():
        np.exp(np.negative(np.abs(x, out=scratch), out=scratch), out=scratch)
        np.log1p(scratch, out=scratch)
        np.add(scratch, np.maximum(x, 0, out=more), out=scratch)
        return np.subtract(scratch, np.multiply(x, t, out=more), out=scratch).mean()

    def loss_of_probabilities():
        np.maximum(np.log(x, out=scratch), -100, out=scratch)
        np.multiply(scratch, t, out=scratch)
        np.maximum(np.log1p(np.negative(x, out=more), out=more), -100, out=more)
        return -np.add(scratch, np.multiply(1 - t, more, out=more), out=scratch).mean()

    def slopes():
        out = np.empty_like(x) if kept is None else kept
        if "logits" in case.op:
            np.exp(np.negative(x, out=out), out=out)
            np.subtract(np.divide(1, np.add(out, 1, out=out), out=out), t, out=out)
        else:
            np.multiply(x, np.subtract(1, x, out=out), out=out)
            np.divide(np.subtract(x, t, out=more), np.maximum(out, 1e-12, out=out), out=out)
        return np.divide(out, x.size, out=out)

    loss = loss_of_logits if "logits" in case.op else loss_of_probabilities
    return Call((lambda: (loss(), slopes())) if case.gradient == "_with_grad" else loss)


def _sklearn(case: Case, data: SimpleNamespace) -> Call | None:
    """Its loss is that of each element, and its gradient not divided by them: in its favour."""
    if ITEMSIZE[case.dtype] == 2 or "logits" not in case.op or case.gradient == "_backward":
        return None
    from sklearn._loss.loss import HalfBinomialLoss

    loss, (x, t) = HalfBinomialLoss(), (data.x, data.target)
    options: dict[str, Any] = {"loss_out": np.empty_like(x)}
    options["n_threads"] = fastce.get_num_threads()
    if not case.gradient:
        return Call(lambda: loss.loss(t, x, None, **options), finish=np.mean)
    if case.into == "out":
        options["gradient_out"] = np.empty_like(x)
    return Call(
        lambda: loss.loss_gradient(t, x, None, **options),
        finish=lambda result: (result[0].mean(), result[1] / x.dtype.type(x.size)),
    )


def _torch_focal(x: Any, t: Any) -> Any:
    """torchvision.ops.sigmoid_focal_loss with its defaults, but for the mean."""
    import torch
    import torch.nn.functional as F

    p = torch.sigmoid(x)
    loss = F.binary_cross_entropy_with_logits(x, t, reduction="none")
    loss = loss * (1 - (p * t + (1 - p) * (1 - t))) ** 2
    return ((0.25 * t + 0.75 * (1 - t)) * loss).mean()


def _torch(case: Case, data: SimpleNamespace) -> Call:
    import torch.nn.functional as F

    function = _torch_focal if "focal" in case.op else getattr(F, case.loss)
    return torch_loss(case, function, tensor(data.x), tensor(data.target))


def _jax(case: Case, data: SimpleNamespace) -> Call | None:
    """Optax's formula, jitted; 16 bits are widened inside, where XLA fuses the conversions."""
    import jax
    import jax.numpy as jnp

    if case.gradient == "_backward" or "logits" not in case.op:
        return None
    jax.config.update("jax_enable_x64", case.dtype == "float64")

    def loss(x, t):
        if ITEMSIZE[case.dtype] == 2:
            x, t = x.astype(jnp.float32), t.astype(jnp.float32)
        return (jnp.maximum(x, 0) - x * t + jnp.log1p(jnp.exp(-jnp.abs(x)))).mean()

    function = jax.jit(jax.value_and_grad(loss) if case.gradient == "_with_grad" else loss)
    x, t = jnp.array(data.x), jnp.array(data.target)
    return Call(lambda: jax.block_until_ready(function(x, t)))


LIBRARIES = {"numpy": _numpy, "scikit-learn": _sklearn, "torch": _torch, "jax": _jax}
