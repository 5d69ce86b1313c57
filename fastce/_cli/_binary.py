"""Binary cross-entropy in the benchmarks: each library's best way to do a case."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

import fastce

from ._cases import ITEMSIZE, Case, Data, tensor
from ._timing import Call

REFERENCE_LIMIT = 2**22  # elements, as for the other ops


def _has(case: Case, part: str) -> bool:
    """Whether the case is of "logits", or a "_with_grad" or "_backward"."""
    return part in case.op


def _fastce(case: Case, data: Data) -> Call:
    inputs = (1.0, data.x, data.target) if _has(case, "_backward") else (data.x, data.target)
    options = {"out": np.empty_like(data.x)} if case.into == "out" else {}
    return Call(functools.partial(getattr(fastce, case.op), *inputs, **options))


def _reference(case: Case, data: Data) -> Call | None:
    if data.x.size > REFERENCE_LIMIT:
        return None
    return _fastce(case, data)._replace(context=lambda: fastce.use_backend("reference"))


def _numba(case: Case, data: Data) -> Call:
    """fastce's own kernels in Numba."""
    return _fastce(case, data)._replace(context=lambda: fastce.use_backend("numba"))


def _numpy(case: Case, data: Data) -> Call | None:
    """The formulas over arrays that are kept, but for the gradient where it is to be fresh."""
    if ITEMSIZE[case.dtype] == 2 or _has(case, "_backward") or _has(case, "focal"):
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
        if _has(case, "logits"):
            np.exp(np.negative(x, out=out), out=out)
            np.subtract(np.divide(1, np.add(out, 1, out=out), out=out), t, out=out)
        else:
            np.multiply(x, np.subtract(1, x, out=out), out=out)
            np.divide(np.subtract(x, t, out=more), np.maximum(out, 1e-12, out=out), out=out)
        return np.divide(out, x.size, out=out)

    loss = loss_of_logits if _has(case, "logits") else loss_of_probabilities
    return Call((lambda: (loss(), slopes())) if _has(case, "_with_grad") else loss)


def _sklearn(case: Case, data: Data) -> Call | None:
    """Its loss is that of each element, and its gradient not divided by them: in its favour."""
    if ITEMSIZE[case.dtype] == 2 or not _has(case, "logits") or _has(case, "_backward"):
        return None
    from sklearn._loss.loss import HalfBinomialLoss

    loss, (x, t) = HalfBinomialLoss(), (data.x, data.target)
    options: dict[str, Any] = {"loss_out": np.empty_like(x)}
    options["n_threads"] = fastce.get_num_threads()
    if not _has(case, "_with_grad"):
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


def _torch(case: Case, data: Data) -> Call:
    import torch
    import torch.nn.functional as F

    name = case.op.removesuffix("_with_grad").removesuffix("_backward")
    function = _torch_focal if _has(case, "focal") else getattr(F, name)
    x, t = tensor(data.x), tensor(data.target)
    if name == case.op:
        return Call(functools.partial(function, x, t), torch.inference_mode)
    x = x.detach().requires_grad_()
    if _has(case, "_backward"):
        loss = function(x, t)
        return Call(functools.partial(torch.autograd.grad, loss, x, retain_graph=True))

    def both():
        loss = function(x, t)
        return loss, torch.autograd.grad(loss, x)[0]

    return Call(both)


def _jax(case: Case, data: Data) -> Call | None:
    """Optax's formula, jitted; 16 bits are widened inside, where XLA fuses the conversions."""
    import jax
    import jax.numpy as jnp

    if _has(case, "_backward") or not _has(case, "logits"):
        return None
    jax.config.update("jax_enable_x64", case.dtype == "float64")

    def loss(x, t):
        if ITEMSIZE[case.dtype] == 2:
            x, t = x.astype(jnp.float32), t.astype(jnp.float32)
        return (jnp.maximum(x, 0) - x * t + jnp.log1p(jnp.exp(-jnp.abs(x)))).mean()

    function = jax.jit(jax.value_and_grad(loss) if _has(case, "_with_grad") else loss)
    x, t = jnp.array(data.x), jnp.array(data.target)
    return Call(lambda: jax.block_until_ready(function(x, t)))


BINARY: dict[str, Callable[[Case, Data], Call | None]] = {
    "fastce": _fastce,
    "reference": _reference,
    "numba": _numba,
    "numpy": _numpy,
    "scikit-learn": _sklearn,
    "torch": _torch,
    "jax": _jax,
}
