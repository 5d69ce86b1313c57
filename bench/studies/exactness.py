"""Largest error in ULP of fastce and whichever peers are installed: the README's table.

float32 against float64 truth that keeps the dominant element: log1p of the sum of the others.
"""

import sys
from importlib.util import find_spec

import numpy as np

import fastce

SHAPE = (512, 32000)


def truth(x):
    """log_softmax, softmax and logsumexp in float64."""
    x = x.astype(np.float64)
    top = x.max(axis=1, keepdims=True)
    below = np.exp(x - top)
    np.put_along_axis(below, x.argmax(axis=1, keepdims=True), 0, axis=1)
    rest = below.sum(axis=1, keepdims=True)
    log_p = (x - top) - np.log1p(rest)
    return {
        "log_softmax": log_p,
        "softmax": np.exp(log_p),
        "logsumexp": (top + np.log1p(rest))[:, 0],
    }


def ulp(result, exact):
    exponent = np.maximum(np.floor(np.log2(np.maximum(np.abs(exact), 1e-300))), -126)
    return (np.abs(np.asarray(result, np.float64) - exact) / np.exp2(exponent - 23)).max()


def peers():
    """Each library's three functions."""
    yield "fastce", fastce.log_softmax, fastce.softmax, fastce.logsumexp
    if find_spec("torch"):
        import torch

        yield (
            "torch",
            lambda x: torch.log_softmax(torch.from_numpy(x), -1).numpy(),
            lambda x: torch.softmax(torch.from_numpy(x), -1).numpy(),
            lambda x: torch.logsumexp(torch.from_numpy(x), -1).numpy(),
        )
    if find_spec("scipy"):
        from scipy import special

        yield (
            "scipy",
            lambda x: special.log_softmax(x, -1),
            lambda x: special.softmax(x, -1),
            lambda x: special.logsumexp(x, -1),
        )
    if find_spec("jax"):
        import jax

        yield (
            "jax",
            jax.jit(jax.nn.log_softmax),
            jax.jit(jax.nn.softmax),
            jax.jit(lambda x: jax.scipy.special.logsumexp(x, -1)),
        )


def main() -> int:
    normal = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    inputs = [normal, normal * np.float32(20), normal + np.float32(10000)]
    truths = [truth(x) for x in inputs]
    print("| | log_softmax | softmax | logsumexp |")
    print("|---|---|---|---|")
    for name, *functions in peers():
        cells = [
            " / ".join(f"{ulp(f(x), t[op]):.3g}" for x, t in zip(inputs, truths, strict=True))
            for op, f in zip(("log_softmax", "softmax", "logsumexp"), functions, strict=True)
        ]
        print(f"| {name} |", " | ".join(cells), "|", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
