"""The libraries, and a case measured in them: each result is verified before it is timed."""

import gc
import importlib
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

import fastce
from fastce._cli._results import Result, check_memory
from fastce._cli._timing import alternate, limit_call

from ..benchmarks._cases import ATTENTION, BINARY, Case, make_call, make_data, traffic
from . import (
    attention,
    binary_cross_entropy,
    classes,
    information,
    linear_cross_entropy,
    robust_losses,
)
from .calls import Call
from .cases import TINY

SECONDS, QUICK_SECONDS, TINY_SECONDS = 6.0, 0.5, 0.01  # for the rounds of one case
REFERENCE_LIMIT = 2**22  # elements; it takes 0.1 s per million, and 100 bytes for each
REFERENCE_FLOPS = 1e9
ARRAYS = 14  # of the input's size: what all libraries together hold at most (measured: 12)
# What to import for each. fastce and its other backends come first.
PACKAGES = {
    "fastce": "fastce",
    "reference": "fastce",
    "numba": "numba",
    "numpy": "numpy",
    "scipy": "scipy",
    "scikit-learn": "sklearn",
    "torch": "torch",
    "torch by hand": "torch",
    "jax": "jax",
}
OURS = ("fastce", "reference", "numba")


def libraries_of(case: Case) -> dict[str, Callable[[Case, SimpleNamespace], Call | None]]:
    """Functions that make each library's call; None where it has nothing for the case."""
    if case.loss == ATTENTION:
        return attention.LIBRARIES
    if case.loss in BINARY:
        return binary_cross_entropy.LIBRARIES
    if case.op.startswith("information."):
        return information.LIBRARIES
    if case.width:
        return linear_cross_entropy.LIBRARIES
    return robust_losses.LIBRARIES if case.loss in robust_losses.FORMULAS else classes.LIBRARIES


def call_of(name: str, case: Case, data: SimpleNamespace) -> Call | None:
    if name not in OURS:
        make = libraries_of(case).get(name)
        return make(case, data) if make else None
    size, most = math.prod(case.shape), REFERENCE_LIMIT
    if case.is_products:
        size, most = case.flops, REFERENCE_FLOPS
    if name == "reference" and size > most:
        return None
    call = Call(make_call(case, data))
    return call if name == "fastce" else call._replace(context=lambda: fastce.use_backend(name))


def installed(names: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Of these libraries, the versions of those that are here, and why the others are not."""
    versions, missing = {}, {}
    for name in names:
        try:
            versions[name] = importlib.import_module(PACKAGES[name]).__version__
        except (ImportError, OSError) as error:  # OSError: a shared library of it is missing
            missing[name] = str(error)
    return versions, missing


def measure(names: list[str], case: Case, quick: bool) -> Result:
    """Make, verify and time one case in each of these libraries."""
    try:
        check_memory(ARRAYS * case.nbytes)
        data = make_data(case)
    except (MemoryError, ImportError) as error:  # ml_dtypes, for bfloat16
        return Result(case.op, case.label, {}, notes=(f"skipped: {error}",))
    expected = sample(make_call(case._replace(into="fresh"), data)())
    calls: dict[str, Call] = {}
    notes = []
    for name in names:
        try:
            call = call_of(name, case, data)
            if call is None:
                continue
            with call.context():
                problem = disagreement(case, call.finish(call.run()), expected)
        except Exception as error:  # another library's failure must not stop the others
            problem = f"{type(error).__name__}: {error}"
        if problem:
            notes.append(f"{name} left out: {problem}")
        else:
            calls[name] = call
    nbytes, flops = traffic(case, data), case.flops if case.is_products else 0.0
    limit = limit_call(nbytes, case.writes, 0 if nbytes else flops, fastce.get_num_threads())
    if limit:
        limit.run()
        calls["limit"] = limit
    timings = alternate(calls, TINY_SECONDS if TINY else QUICK_SECONDS if quick else SECONDS)
    del calls
    gc.collect()
    return Result(case.op, case.label, timings, nbytes, 0 if nbytes else flops, tuple(notes))


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
