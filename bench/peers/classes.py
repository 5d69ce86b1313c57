"""softmax and its family, cross-entropy and nll_loss: each library's best way to do a case."""

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

import fastce

from ..benchmarks._cases import ITEMSIZE, SMOOTHING, Case
from .calls import Call, placed, tensor, torch_loss


def _numpy(case: Case, data: SimpleNamespace) -> Call | None:
    if ITEMSIZE[case.dtype] == 2 or case.options or case.target == "probabilities":
        return None
    axis, given = case.axis, vars(data)
    g, y = given.get("grad"), given.get("y")
    t = np.expand_dims(data.target, axis) if "target" in given else None
    x, new = placed(case, given.get("x", y), np.copy, np.empty_like)
    scratch = None if case.gradient else np.empty_like(x)

    def exps(into):
        """Into `into`: exp(x - max). Returns its sum, the maximum and x - max at the target."""
        row_max = x.max(axis, keepdims=True)
        np.subtract(x, row_max, out=into)
        picked = np.take_along_axis(into, t, axis) if "entropy" in case.op else None
        np.exp(into, out=into)
        return into.sum(axis, keepdims=True), row_max, picked

    def logsumexp():
        total, row_max, _ = exps(scratch)
        return (np.log(total) + row_max).squeeze(axis)

    def softmax():
        out = new()
        return np.divide(out, exps(out)[0], out=out)

    def log_softmax():
        out = new()
        np.subtract(x, x.max(axis, keepdims=True), out=out)
        total = np.exp(out, out=scratch).sum(axis, keepdims=True)
        return np.subtract(out, np.log(total), out=out)

    def softmax_backward():
        out = new()
        np.subtract(g, np.multiply(g, y, out=out).sum(axis, keepdims=True), out=out)
        return np.multiply(out, y, out=out)

    def log_softmax_backward():
        out = np.exp(y, out=new())
        np.multiply(out, g.sum(axis, keepdims=True), out=out)
        return np.subtract(g, out, out=out)

    def cross_entropy():
        total, _, picked = exps(scratch)
        return (np.log(total) - picked).mean()

    def cross_entropy_with_grad():
        out = new()
        total, _, picked = exps(out)
        np.multiply(out, 1 / (total * case.rows), out=out)
        np.put_along_axis(out, t, np.take_along_axis(out, t, axis) - 1 / case.rows, axis)
        return (np.log(total) - picked).mean(), out

    def nll_loss():
        return -np.take_along_axis(x, t, axis).mean()

    def nll_loss_backward():
        out = np.zeros_like(x)
        np.put_along_axis(out, t, -1 / case.rows, axis)
        return out

    run = locals().get(case.op)
    return Call(run) if run else None


def _scipy(case: Case, data: SimpleNamespace) -> Call | None:
    if ITEMSIZE[case.dtype] == 2:
        return None
    from scipy import special

    if case.op in ("logsumexp", "softmax", "log_softmax"):
        return Call(functools.partial(getattr(special, case.op), data.x, axis=case.axis))
    if case.op != "cross_entropy" or case.options or case.target == "probabilities":
        return None
    x, t, axis = data.x, np.expand_dims(data.target, case.axis), case.axis
    # Twice as fast as through its logsumexp.
    return Call(lambda: -np.take_along_axis(special.log_softmax(x, axis), t, axis).mean())


def _sklearn(case: Case, data: SimpleNamespace) -> Call | None:
    """Its loss is that of each row, and its gradient not divided by the rows: in its favour."""
    plain = case.target == "index" and not case.options and case.axis == -1
    if not plain or case.op not in ("cross_entropy", "cross_entropy_with_grad"):
        return None
    from sklearn._loss.loss import HalfMultinomialLoss

    x, new = placed(case, data.x, np.copy, np.empty_like)  # C order: 1.1 times as fast as Fortran
    y = data.target.astype(x.dtype)
    loss = HalfMultinomialLoss(n_classes=case.classes)
    # Outputs given, unless the case is about fresh ones.
    options: dict[str, Any] = {"n_threads": fastce.get_num_threads()}
    if case.op == "cross_entropy" or case.into != "fresh":
        options["loss_out"] = np.empty_like(y)
    if case.op == "cross_entropy":
        return Call(lambda: loss.loss(y, x, None, **options), finish=np.mean)
    if case.into != "fresh":
        options["gradient_out"] = new()
    return Call(
        lambda: loss.loss_gradient(y, x, None, **options),
        finish=lambda result: (result[0].mean(), result[1] / x.dtype.type(case.rows)),
    )


def _torch(case: Case, data: SimpleNamespace) -> Call:
    """Functions of torch.nn.functional; gradients by autograd, as everyone writes them."""
    import torch
    import torch.nn.functional as F

    axis = case.axis
    options: dict[str, Any] = {}
    if case.op.endswith("softmax_backward"):
        function = getattr(torch.ops.aten, f"_{case.op}_data")
        grad, y = tensor(data.grad), tensor(data.y)
        if case.into != "fresh":
            function = function.out
            name = "grad_input" if case.op == "softmax_backward" else "out"
            options[name] = torch.empty_like(y)
        inputs = (grad, y, axis, y.dtype)
        return Call(functools.partial(function, *inputs, **options), torch.inference_mode)
    x = tensor(data.x)
    if case.op in ("logsumexp", "softmax", "log_softmax"):
        if case.into != "fresh":
            options["out"] = torch.empty_like(x)
        function = getattr(torch, case.op)
        return Call(functools.partial(function, x, axis, **options), torch.inference_mode)
    if case.options:
        options = {"weight": tensor(data.weight), "label_smoothing": SMOOTHING}
    function = functools.partial(getattr(F, case.loss), **options)
    return torch_loss(case, function, x, tensor(data.target))


def _torch_by_hand(case: Case, data: SimpleNamespace) -> Call | None:
    """Cross-entropy written out over one array, which the forward keeps from call to call.

    Faster than the functions, autograd or torch.compile, and the gradient can be in place.
    """
    plain = case.target == "index" and not case.options and case.axis == -1
    if not plain or case.op not in ("cross_entropy", "cross_entropy_with_grad"):
        return None
    import torch
    import torch.nn.functional as F

    x, new = placed(case, tensor(data.x), torch.clone, torch.empty_like)
    t = tensor(data.target)
    if case.op == "cross_entropy":
        scratch = torch.empty_like(x)
        return Call(
            lambda: F.nll_loss(torch.log_softmax(x, 1, out=scratch), t), torch.inference_mode
        )
    where, minus = t[:, None], torch.full((case.rows, 1), -1.0, dtype=x.dtype)

    def cross_entropy_with_grad():
        out = torch.log_softmax(x, 1, out=new())
        loss = F.nll_loss(out, t)
        return loss, out.exp_().scatter_add_(1, where, minus).mul_(1 / case.rows)

    return Call(cross_entropy_with_grad, torch.inference_mode)


def _jax(case: Case, data: SimpleNamespace) -> Call | None:
    """One jitted function. XLA chooses its number of threads, and has no out=."""
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", case.dtype == "float64")  # else it makes float32 of it
    axis = case.axis

    def loss(x, t, w):
        if case.target == "probabilities":
            return -(t * jax.nn.log_softmax(x, axis)).sum(axis).mean()
        picked = jnp.take_along_axis(x, jnp.expand_dims(t, axis), axis).squeeze(axis)
        lse = jax.nn.logsumexp(x, axis)
        if w is None:
            return (lse - picked).mean()
        even = (w * (lse[:, None] - x)).sum(axis) * (SMOOTHING / case.classes)
        return ((1 - SMOOTHING) * w[t] * (lse - picked) + even).sum() / w[t].sum()

    def wide(x):  # 16 bits are not enough inside; XLA fuses the conversions
        return x.astype(jnp.float32) if ITEMSIZE[case.dtype] == 2 else x

    functions: dict[str, Callable[..., Any]] = {
        "logsumexp": lambda x: jax.nn.logsumexp(wide(x), axis).astype(x.dtype),
        "softmax": lambda x: jax.nn.softmax(wide(x), axis).astype(x.dtype),
        "log_softmax": lambda x: jax.nn.log_softmax(wide(x), axis).astype(x.dtype),
        "softmax_backward": lambda g, y: y * (g - (g * y).sum(axis, keepdims=True)),
        "log_softmax_backward": lambda g, y: g - jnp.exp(y) * g.sum(axis, keepdims=True),
        "cross_entropy": loss,
        "cross_entropy_with_grad": jax.value_and_grad(loss),
    }
    if case.op not in functions:
        return None
    if case.op.startswith("cross_entropy"):
        labels = data.target if case.target == "probabilities" else data.target.astype(np.int32)
        given = [data.x, labels, vars(data).get("weight")]
    else:
        given = list(vars(data).values())
    first, *others = (None if a is None else jnp.array(a) for a in given)
    if case.into != "in place":
        function = jax.jit(functions[case.op])
        return Call(lambda: jax.block_until_ready(function(first, *others)))
    function = jax.jit(functions[case.op], donate_argnums=0)  # the gradient takes its memory

    def in_place():
        nonlocal first
        result = jax.block_until_ready(function(first, *others))
        first = result[1]
        return result

    return Call(in_place)


LIBRARIES = {
    "numpy": _numpy,
    "scipy": _scipy,
    "scikit-learn": _sklearn,
    "torch": _torch,
    "torch by hand": _torch_by_hand,
    "jax": _jax,
}
