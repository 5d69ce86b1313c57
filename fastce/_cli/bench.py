"""Measure each op on this machine beside the machine's limit and NumPy's formula.

The calls alternate in one process. "of limit" is the time of a copy of as many bytes (of a read,
where the op writes none; for attention and linear layers, of NumPy's matrix products of as many
operations) divided by fastce's. "numpy" is the time of the formula as it is written with NumPy,
divided by fastce's: above 1, fastce is faster. Compare ratios, not times: a machine's speed changes
from minute to minute.

SciPy, scikit-learn, PyTorch, JAX and fastce's other backends are compared, and pictures drawn, from
a clone of fastce: `make peers`, or `python -m bench.peers` there.
"""

import argparse
import math
import os
import re
from functools import partial
from importlib import import_module
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np

import fastce

from . import _formulas
from ._output import CommandError
from ._results import Result, add_arguments_of, check_memory, run_all
from ._timing import Call, alternate, limit_call

ATTENTION = "scaled_dot_product_attention"
ROBUST = ("focal_loss", "generalized_cross_entropy", "symmetric_cross_entropy",
          "poly_cross_entropy", "confidence_penalty")  # fmt: skip
BINARY = ("binary_cross_entropy", "binary_cross_entropy_with_logits", "sigmoid_focal_loss")
INFORMATION = ("information.entropy", "information.kl_divergence")
MAPS = ("logsumexp", "softmax", "log_softmax")
GRADIENTS = ("", "_backward", "_with_grad")
TINY = bool(os.environ.get("FASTCE_BENCH_TINY"))  # to test this command itself
COPIES = 8  # of the input: what fastce, the formula and the limit hold at most
SECONDS, QUICK_SECONDS = 4.0, 0.4  # for the rounds of one case


class Case(NamedTuple):
    """One op on one input."""

    op: str
    shape: tuple[int, ...]  # of the logits; (batch, heads, queries, width) of attention
    dtype: str = "float32"
    out: bool = False  # into a given array
    axis: int = -1
    inner: int = 0  # keys of attention, width of the input of a linear layer

    def __str__(self) -> str:
        kind = "keys" if ATTENTION in self.op else "width"
        words = [str(self.shape), f"{kind} {self.inner}" if self.inner else ""]
        words += [self.dtype if self.dtype != "float32" else ""]
        words += [f"axis={self.axis}" if self.axis != -1 else "", "out=" if self.out else ""]
        return ", ".join(filter(None, words))


def _cases(quick: bool) -> list[Case]:
    divisor = 2000 if TINY else 8 if quick else 1
    long, rows, short = (4096 // divisor, 32000), (65536 // divisor, 1000), (10**6 // divisor, 10)
    queries = (1, 8, 1024 // max(1, divisor // 8), 64)
    chosen = [
        *(Case(op, long, out=op != "logsumexp") for op in MAPS),
        Case("log_softmax", long, "bfloat16", out=True),
        Case("log_softmax", (max(1, 64 // divisor), 1000, 32, 32), out=True, axis=1),
        Case("log_softmax", (1, 10)),
        *(Case(f"{op}_backward", long, out=True) for op in MAPS[1:]),
        Case("cross_entropy", (32, 1000)),
        *(Case(f"cross_entropy{gradient}", long) for gradient in GRADIENTS),
        Case("cross_entropy_with_grad", long, out=True),
        Case("cross_entropy_with_grad", short),
        *(Case(f"nll_loss{gradient}", rows) for gradient in GRADIENTS[:2]),
        *(Case(op + g, rows) for op in (*ROBUST, "categorical_cross_entropy") for g in GRADIENTS),
        *(Case(op + gradient, (20_000_000 // divisor,)) for op in BINARY for gradient in GRADIENTS),
        *(Case(op, rows) for op in INFORMATION),
        *(
            Case(f"linear_cross_entropy{gradient}", (2048 // divisor, 32000), inner=512)
            for gradient in GRADIENTS
        ),
        *(Case(ATTENTION + gradient, queries, inner=queries[2]) for gradient in GRADIENTS[:2]),
        Case(ATTENTION, (1, 32, 1, 128), inner=4096),
    ]
    if quick:
        chosen = [case for case in chosen if not case.op.startswith(ROBUST[1:])]
        chosen = [case for case in chosen if not re.search("(entropy|loss)_backward", case.op)]
    return chosen


def _normal(shape: tuple[int, ...], dtype: str, seed: int) -> Any:
    """Standard normal; a million draws are repeated, which is as good as new ones for speed."""
    if dtype == "bfloat16":
        import_module("ml_dtypes")  # adds the name to NumPy's
    draws = np.random.default_rng(seed).standard_normal(1_000_003, dtype=np.float32)
    return np.resize(draws.astype(dtype), shape)


def _inputs(case: Case) -> list[Any]:
    """What the op takes, but for the gradient of the loss."""
    op, shape = case.op, case.shape
    x, y = (_normal(shape, case.dtype, seed) for seed in (0, 1))
    if ATTENTION in op:
        keys = (*shape[:2], case.inner, shape[3])
        return [x, *(_normal(keys, case.dtype, seed) for seed in (1, 2))]
    if op in MAPS:
        return [x]
    if op.removesuffix("_backward") in MAPS:
        return [y, fastce.softmax(x)]
    if op in INFORMATION:
        return [abs(x), abs(y)][: 1 + ("divergence" in op)]
    if op.startswith(BINARY):
        probabilities = op.startswith(BINARY[0]) and "logits" not in op
        return [1 / (1 + np.exp(-x)) if probabilities else x, (y > 0).astype("f4")]
    labels = np.random.default_rng(2).integers(0, shape[-1], shape[0])
    if case.inner:
        x, w = (_normal((n, case.inner), case.dtype, seed) for seed, n in enumerate(shape))
        return [x, w / w.dtype.type(case.inner**0.5), labels]
    return [fastce.softmax(x) if op.startswith("categorical") else x, labels]


def _call(case: Case, inputs: list[Any]) -> Call:
    """fastce's. Of attention's backward it is the forward and the backward."""
    function = attrgetter(case.op)(fastce)
    if case.op == f"{ATTENTION}_backward":

        def both() -> Any:
            out, lse = fastce.scaled_dot_product_attention(*inputs, return_lse=True)
            return function(inputs[0], *inputs, out, lse)

        return Call(both)
    options: dict[str, Any] = {"axis": case.axis} if case.axis != -1 else {}
    if case.out:
        options["out"] = np.empty_like(inputs[0])
    if case.op.endswith("_backward") and "softmax" not in case.op:
        inputs = [1.0, *inputs]  # the gradient of the loss
    return Call(partial(function, *inputs, **options))


def _numpy_call(case: Case, inputs: list[Any]) -> Call | None:
    """None where there is no formula, and for 16 bits, which NumPy rounds after each operation."""
    formula = getattr(_formulas, case.op.rpartition(".")[2], None)
    if formula is None or case.dtype != "float32":
        return None
    return Call(partial(formula, *inputs, **({"axis": case.axis} if case.axis != -1 else {})))


def _limits(case: Case, inputs: list[Any]) -> tuple[int, int, float]:
    """What the op must do at least: bytes read, bytes written, operations in products."""
    given, size = sum(a.nbytes for a in inputs), math.prod(case.shape)
    if ATTENTION in case.op:  # one query reads all keys and values
        flops = 4.0 * size * case.inner * (3.5 if case.op.endswith("_backward") else 1)
        return (given, 0, 0.0) if case.shape[-2] == 1 else (0, 0, flops)
    if case.inner:
        return 0, 0, 2.0 * size * case.inner * (1 if case.op.endswith("entropy") else 3)
    is_array = case.op in MAPS[1:] or case.op.endswith(("_backward", "_with_grad"))
    read = given - inputs[0].nbytes if case.op.startswith("nll") else given
    return read, inputs[0].nbytes if is_array else 0, 0.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_arguments_of(parser, [case.op for case in _cases(quick=False)])
    for name in "--peer", "--plot":
        parser.add_argument(name, nargs="+", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    if args.peer or args.plot:
        raise CommandError(
            f"{'--peer' if args.peer else '--plot'}: other libraries are measured and pictures "
            "drawn from a clone of fastce: python -m bench.peers, with the same options"
        )
    run_all(args, _cases(args.quick), _measure, {}, ["numpy"])
    return 0


def _measure(case: Case, quick: bool) -> Result:
    try:
        check_memory(COPIES * math.prod(case.shape) * (2 if case.dtype == "bfloat16" else 4))
        inputs = _inputs(case)
    except (MemoryError, ImportError) as error:
        return Result(case.op, str(case), {}, notes=(f"skipped: {error}",))
    read, written, flops = _limits(case, inputs)
    calls = {
        "fastce": _call(case, inputs),
        "numpy": _numpy_call(case, inputs),
        "limit": limit_call(read + written, written > 0, flops, fastce.get_num_threads()),
    }
    found = {name: call for name, call in calls.items() if call}
    for call in found.values():
        call.run()
    timings = alternate(found, 0.01 if TINY else QUICK_SECONDS if quick else SECONDS)
    return Result(case.op, str(case), timings, read + written, flops)
