"""The cases in which libraries are compared."""

import os
from itertools import product

from ..benchmarks._cases import ATTENTION, BINARY, Case

TINY = bool(os.environ.get("FASTCE_BENCH_TINY"))  # to test the benchmarks themselves
VOCABULARY, ROWS, SHORT, PLANES = (4096, 32000), (65536, 1000), (1_000_000, 10), (64, 1000, 32, 32)
NUMBERS = (20_000_000,)
GRADIENTS = ("", "_backward", "_with_grad")
ROBUST = (
    "focal_loss",
    "generalized_cross_entropy",
    "symmetric_cross_entropy",
    "poly_cross_entropy",
    "confidence_penalty",
)


def cases(quick: bool = False) -> list[Case]:
    """The cases to run; at toy sizes where ``FASTCE_BENCH_TINY`` is set."""
    chosen = _quick() if quick else _all()
    if TINY:
        chosen = list(dict.fromkeys(case.tiny() for case in chosen))  # some have become equal
    return chosen


def _all() -> list[Case]:
    long = [VOCABULARY, ROWS, (1024, 128256)]
    loss, with_grad = "cross_entropy", "cross_entropy_with_grad"
    linear, information = "linear_cross_entropy", ("entropy", "kl_divergence")
    return [
        *(Case(loss, shape) for shape in (*long, (32, 1000))),
        Case(loss, PLANES, axis=1),
        Case(loss, ROWS, options=True),
        Case(loss, ROWS, target="probabilities"),
        *(Case(with_grad, shape, into=into) for into in ("fresh", "in place") for shape in long),
        *(Case(with_grad, SHORT, into=into) for into in ("fresh", "out", "in place")),
        Case(with_grad, PLANES, axis=1),
        Case(with_grad, ROWS, options=True),
        Case(with_grad, ROWS, target="probabilities"),
        Case("cross_entropy_backward", ROWS),
        Case("logsumexp", VOCABULARY),
        Case("logsumexp", ROWS),
        Case("log_softmax", VOCABULARY, into="out"),
        Case("log_softmax", VOCABULARY),
        Case("log_softmax", PLANES, into="out", axis=1),
        Case("log_softmax", VOCABULARY, "bfloat16", "out"),
        Case("log_softmax", VOCABULARY, "float16", "out"),
        Case("log_softmax", (4096, 16000), "float64", "out"),
        Case("log_softmax", (1, 10)),
        Case("log_softmax", (32, 1000)),
        Case("softmax", VOCABULARY, into="out"),
        Case("softmax", SHORT, into="out"),
        Case("softmax", (1, 10)),
        Case("log_softmax_backward", VOCABULARY, into="out"),
        Case("softmax_backward", VOCABULARY, into="out"),
        Case("nll_loss", ROWS),
        Case("nll_loss_backward", ROWS),
        *(Case("focal_loss_with_grad", shape) for shape in (VOCABULARY, SHORT)),
        *(Case(op + which, ROWS) for op, which in product(ROBUST, GRADIENTS)),
        *(Case(op + which, NUMBERS) for op, which in product(BINARY, GRADIENTS)),
        *(Case(f"{op}_with_grad", NUMBERS, into="out") for op in BINARY[:2]),
        Case(BINARY[1], NUMBERS, "bfloat16"),
        Case(BINARY[1], (1000,)),
        Case(f"{BINARY[1]}_with_grad", NUMBERS, "bfloat16", "out"),
        *(Case(f"categorical_cross_entropy{which}", ROWS) for which in GRADIENTS),
        *(Case(linear + which, (2048, 32000), width=1024) for which in GRADIENTS),
        Case(f"{linear}_with_grad", (2048, 32000), "bfloat16", width=1024),
        *_attention(),
        *(
            Case(f"information.{name}", shape)
            for name, shape in product(information, (ROWS, VOCABULARY, SHORT))
        ),
    ]


def _attention() -> list[Case]:
    forward = [
        Case(ATTENTION, (1, 8, 1024, 64), keys=1024),
        Case(ATTENTION, (1, 8, 2048, 64), keys=2048, causal=True),
        Case(ATTENTION, (1, 8, 2048, 128), keys=2048),
        Case(ATTENTION, (16, 8, 128, 64), keys=128),
        Case(ATTENTION, (1, 1, 16384, 64), keys=16384, causal=True),
        Case(ATTENTION, (1, 8, 128, 64), keys=128),
        Case(ATTENTION, (1, 8, 2048, 128), "bfloat16", keys=2048),
    ]
    decode = Case(ATTENTION, (1, 32, 1, 128), keys=4096)
    return [
        *forward,
        decode,
        decode._replace(dtype="bfloat16"),
        *(case._replace(op=f"{ATTENTION}_backward") for case in forward),
    ]


def _quick() -> list[Case]:
    return [
        Case("cross_entropy", (512, 32000)),
        Case("cross_entropy", (32, 1000)),
        Case("cross_entropy_with_grad", (512, 32000)),
        Case("cross_entropy_with_grad", (512, 32000), into="in place"),
        Case("cross_entropy_with_grad", (300_000, 10)),
        Case("logsumexp", (512, 32000)),
        Case("log_softmax", (512, 32000), into="out"),
        Case("log_softmax", (512, 32000), "bfloat16", "out"),
        Case("log_softmax", (8, 1000, 32, 32), into="out", axis=1),
        Case("log_softmax", (1, 10)),
        Case("softmax", (8192, 1000), into="out"),
        Case("focal_loss_with_grad", (8192, 1000)),
        Case("binary_cross_entropy_with_logits", (2_000_000,)),
        Case("binary_cross_entropy_with_logits_with_grad", (2_000_000,), into="out"),
        Case("linear_cross_entropy_with_grad", (256, 8000), width=256),
        Case(ATTENTION, (1, 8, 1024, 64), keys=1024),
        Case(f"{ATTENTION}_backward", (1, 8, 1024, 64), keys=1024, causal=True),
        Case("information.entropy", (8192, 1000)),
        Case("information.kl_divergence", (8192, 1000)),
    ]
