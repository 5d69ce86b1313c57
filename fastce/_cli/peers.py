"""Each library's best way to do a case. The table of libraries is at the end.

A peer is a function that takes a `Case` and its `Data` and returns a `Call`, or None where the
library has nothing for it. Libraries are imported when a call is made for them, never before.
Whoever times a call first holds its result against fastce's with `disagreement`: a library that
computes something else has no place in a table of speeds.
"""

import functools
import importlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import fastce

from ._attention import ATTENTION, make_heads
from ._binary import BINARY
from ._cases import ITEMSIZE, Case, Data, make_data, tensor
from ._categorical import torch_call as categorical
from ._information import INFORMATION, make_pair
from ._linear import LINEAR, make_layer
from ._robust import torch_call
from ._timing import Call

SMOOTHING = 0.1
REFERENCE_LIMIT = 2**22  # elements; it takes 0.1 s per million, and 100 bytes for each


def _room(
    case: Case, x: Any, copy: Callable, empty_like: Callable
) -> tuple[Any, Callable[[], Any]]:
    """The input to use, and where each call puts its result."""
    if case.into == "in place":
        x = copy(x)
        return x, lambda: x
    if case.into == "out":
        out = empty_like(x)
        return x, lambda: out
    return x, lambda: empty_like(x)


def _fastce(case: Case, data: Data) -> Call:
    x, room = _room(case, data.x, np.copy, np.empty_like)
    inputs: tuple[Any, ...] = (x, data.target)
    options: dict[str, Any] = {}
    if case.op in ("logsumexp", "softmax", "log_softmax"):
        inputs = (x,)
    elif case.op in ("softmax_backward", "log_softmax_backward"):
        inputs = (data.grad, data.y)
    elif case.op.endswith("_backward"):
        inputs = (1.0, *inputs)
    if case.op == "cross_entropy_backward":
        options["lse"] = fastce.logsumexp(x, axis=case.axis)
    if case.axis != -1:
        options["axis"] = case.axis
    if case.options:
        options |= {"weight": data.weight, "label_smoothing": SMOOTHING}
    if case.into != "fresh":
        options["out"] = room()
    return Call(functools.partial(getattr(fastce, case.op), *inputs, **options))


def _reference(case: Case, data: Data) -> Call | None:
    if data.x.size > REFERENCE_LIMIT:
        return None
    return _fastce(case, data)._replace(context=lambda: fastce.use_backend("reference"))


def _numba(case: Case, data: Data) -> Call:
    """fastce's own kernels in Numba."""
    return _fastce(case, data)._replace(context=lambda: fastce.use_backend("numba"))


def _numpy(case: Case, data: Data) -> Call | None:
    if ITEMSIZE[case.dtype] == 2 or case.options or case.target == "probabilities":
        return None
    axis, t, g, y = case.axis, np.expand_dims(data.target, case.axis), data.grad, data.y
    x, room = _room(case, data.x, np.copy, np.empty_like)
    scratch = None if case.op.endswith(("grad", "backward")) else np.empty_like(x)

    def exps(into):
        """Into `into`: exp(x - max). Returns its sum, the maximum and x - max at the target."""
        top = x.max(axis, keepdims=True)
        np.subtract(x, top, out=into)
        picked = np.take_along_axis(into, t, axis) if "entropy" in case.op else None
        np.exp(into, out=into)
        return into.sum(axis, keepdims=True), top, picked

    def logsumexp():
        total, top, _ = exps(scratch)
        return (np.log(total) + top).squeeze(axis)

    def softmax():
        out = room()
        return np.divide(out, exps(out)[0], out=out)

    def log_softmax():
        out = room()
        np.subtract(x, x.max(axis, keepdims=True), out=out)
        total = np.exp(out, out=scratch).sum(axis, keepdims=True)
        return np.subtract(out, np.log(total), out=out)

    def softmax_backward():
        out = room()
        np.subtract(g, np.multiply(g, y, out=out).sum(axis, keepdims=True), out=out)
        return np.multiply(out, y, out=out)

    def log_softmax_backward():
        out = np.exp(y, out=room())
        np.multiply(out, g.sum(axis, keepdims=True), out=out)
        return np.subtract(g, out, out=out)

    def cross_entropy():
        total, _, picked = exps(scratch)
        return (np.log(total) - picked).mean()

    def cross_entropy_with_grad():
        out = room()
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


def _scipy(case: Case, data: Data) -> Call | None:
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


def _sklearn(case: Case, data: Data) -> Call | None:
    """Its loss is that of each row, and its gradient not divided by the rows: in its favour."""
    plain = case.target == "index" and not case.options and case.axis == -1
    if not plain or case.op not in ("cross_entropy", "cross_entropy_with_grad"):
        return None
    from sklearn._loss.loss import HalfMultinomialLoss

    x, room = _room(case, data.x, np.copy, np.empty_like)  # C order: 1.1 times as fast as Fortran
    y = data.target.astype(x.dtype)
    loss = HalfMultinomialLoss(n_classes=case.classes)
    # Outputs given, unless the case is about fresh ones.
    options: dict[str, Any] = {"n_threads": fastce.get_num_threads()}
    if case.op == "cross_entropy" or case.into != "fresh":
        options["loss_out"] = np.empty_like(y)
    if case.op == "cross_entropy":
        return Call(lambda: loss.loss(y, x, None, **options), finish=np.mean)
    if case.into != "fresh":
        options["gradient_out"] = room()
    return Call(
        lambda: loss.loss_gradient(y, x, None, **options),
        finish=lambda result: (result[0].mean(), result[1] / x.dtype.type(case.rows)),
    )


def _torch(case: Case, data: Data) -> Call:
    """Functions of torch.nn.functional; gradients by autograd, as everyone writes them."""
    import torch
    import torch.nn.functional as F

    if case.robust:
        return torch_call(case, data)
    axis = case.axis
    x, t = tensor(data.x), tensor(data.target)
    function: Any
    options: dict[str, Any] = {}
    if case.op in ("logsumexp", "softmax", "log_softmax"):
        if case.into != "fresh":
            options["out"] = torch.empty_like(x)
        function = getattr(torch, case.op)
        return Call(functools.partial(function, x, axis, **options), torch.inference_mode)
    if case.op in ("softmax_backward", "log_softmax_backward"):
        function = getattr(torch.ops.aten, f"_{case.op}_data")
        if case.into != "fresh":
            function = function.out
            name = "grad_input" if case.op == "softmax_backward" else "out"
            options[name] = torch.empty_like(x)
        inputs = (tensor(data.grad), tensor(data.y), axis, x.dtype)
        return Call(functools.partial(function, *inputs, **options), torch.inference_mode)
    if case.options:
        options = {"weight": tensor(data.weight), "label_smoothing": SMOOTHING}
    function = F.nll_loss if case.op.startswith("nll") else F.cross_entropy
    if case.op in ("cross_entropy", "nll_loss"):
        return Call(functools.partial(function, x, t, **options), torch.inference_mode)
    x = x.detach().requires_grad_()
    if case.op.endswith("_backward"):
        loss = function(x, t, **options)  # keeps the log-probabilities for the gradient
        return Call(functools.partial(torch.autograd.grad, loss, x, retain_graph=True))

    def cross_entropy_with_grad():
        loss = function(x, t, **options)
        return loss, torch.autograd.grad(loss, x)[0]

    return Call(cross_entropy_with_grad)


def _torch_by_hand(case: Case, data: Data) -> Call | None:
    """Cross-entropy written out over one array, which the forward keeps from call to call.

    Faster than the functions, autograd or torch.compile, and the gradient can be in place.
    """
    plain = case.target == "index" and not case.options and case.axis == -1
    if not plain or case.op not in ("cross_entropy", "cross_entropy_with_grad"):
        return None
    import torch
    import torch.nn.functional as F

    x, room = _room(case, tensor(data.x), torch.clone, torch.empty_like)
    t = tensor(data.target)
    if case.op == "cross_entropy":
        scratch = torch.empty_like(x)
        return Call(
            lambda: F.nll_loss(torch.log_softmax(x, 1, out=scratch), t), torch.inference_mode
        )
    where, minus = t[:, None], torch.full((case.rows, 1), -1.0, dtype=x.dtype)

    def cross_entropy_with_grad():
        out = torch.log_softmax(x, 1, out=room())
        loss = F.nll_loss(out, t)
        return loss, out.exp_().scatter_add_(1, where, minus).mul_(1 / case.rows)

    return Call(cross_entropy_with_grad, torch.inference_mode)


def _jax(case: Case, data: Data) -> Call | None:
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
        given = [data.x, labels, data.weight]
    else:
        given = [data.x] if data.grad is None else [data.grad, data.y]
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


def nothing(case: Case, data: Any) -> None:
    """The library has nothing for any case."""


class Peer(NamedTuple):
    package: str  # what to import
    make: Callable[[Case, Data], Call | None]  # but for those of `call`

    def call(self, name: str, case: Case, data: Any) -> Call | None:
        if case.keys:
            return ATTENTION.get(name, nothing)(case, data)
        if case.op.startswith("categorical") and name not in ("fastce", "reference", "numba"):
            return categorical(case, data) if name == "torch" else None
        if case.width:
            return LINEAR.get(name, nothing)(case, data)
        if case.is_binary:
            return BINARY.get(name, nothing)(case, data)
        if is_information(case):
            return INFORMATION.get(name, nothing)(case, data)
        return self.make(case, data)


def is_information(case: Case) -> bool:
    return case.op.startswith("information.")


def make_inputs(case: Case) -> Any:
    """What `Peer.call` takes for this case."""
    if case.keys:
        return make_heads(case)
    if case.width:
        return make_layer(case)
    return make_pair(case) if is_information(case) else make_data(case)


PEERS = {
    "fastce": Peer("fastce", _fastce),
    "reference": Peer("fastce", _reference),
    "numba": Peer("numba", _numba),
    "numpy": Peer("numpy", _numpy),
    "scipy": Peer("scipy", _scipy),
    "scikit-learn": Peer("sklearn", _sklearn),
    "torch": Peer("torch", _torch),
    "torch by hand": Peer("torch", _torch_by_hand),
    "jax": Peer("jax", _jax),
}


def installed(names: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Of these peers, the versions of those that are here, and why the others are not."""
    versions, missing = {}, {}
    for name in names:
        try:
            versions[name] = importlib.import_module(PEERS[name].package).__version__
        except (ImportError, OSError) as error:  # OSError: a shared library of it is not there
            missing[name] = str(error)
    return versions, missing


def sample(result: Any) -> list[np.ndarray]:
    """About a million elements of each array of a result, spread evenly, in float64."""
    parts = result if isinstance(result, tuple | list) else (result,)
    taken = []
    for part in parts:
        if hasattr(part, "detach"):  # torch, whose bfloat16 NumPy cannot view
            flat = part.detach().reshape(-1)
            taken.append(flat[:: _step(flat.shape[0])].double().numpy().copy())
        else:
            flat = np.asarray(part).reshape(-1)
            taken.append(flat[:: _step(flat.size)].astype(np.float64))
    return taken


def _step(size: int) -> int:
    step = max(1, size // 1_000_000)
    while math.gcd(step, size) > 1:  # else it would only see some of the columns
        step += 1
    return step


def disagreement(case: Case, result: Any, expected: list[np.ndarray]) -> str | None:
    """How a result differs from the `sample` of fastce's; None where it does not."""
    eps = {"bfloat16": 2.0**-7, "float16": 2.0**-10}.get(case.dtype, 0.0)
    got = sample(result)
    for ours, theirs in zip(expected, got, strict=True):
        if ours.shape != theirs.shape:
            return f"{theirs.size} elements, not {ours.size}"
        # Beside the peaks of a gradient, its other elements are differences of rounded numbers; in
        # products of 16 bits, so are the weights.
        slack = max(1e-5, 4 * eps) if case.is_products else 1e-6
        error = np.abs(ours - theirs) - slack * np.max(np.abs(ours))
        worst = int(np.argmax(error - max(1e-3, 2 * eps) * np.abs(ours)))
        if not error[worst] <= max(1e-3, 2 * eps) * abs(ours[worst]):
            return f"{theirs[worst]:.6g} where fastce has {ours[worst]:.6g}"
    return None
