"""How long the first call of each op takes on the Numba backend: docs/benchmarks/numba.md.

Each call has a process of its own: first with an empty cache, where Numba compiles, then again,
where it finds compiled code. Loading Numba is not counted, nor is the second call of the process.
"""

import os
import subprocess
import sys
import tempfile

OPS = {
    "logsumexp": "fastce.logsumexp(x)",
    "log_softmax": "fastce.log_softmax(x)",
    "log_softmax_backward": "fastce.log_softmax_backward(x, x)",
    "cross_entropy": "fastce.cross_entropy(x, t)",
    "cross_entropy_with_grad": "fastce.cross_entropy_with_grad(x, t)",
    "binary_cross_entropy_with_logits_with_grad": (
        "fastce.binary_cross_entropy_with_logits_with_grad(x, x)"
    ),
    "focal_loss_with_grad": "fastce.focal_loss_with_grad(x, t)",
    "categorical_cross_entropy_with_grad": "fastce.categorical_cross_entropy_with_grad(x, t)",
    "linear_cross_entropy_with_grad": "fastce.linear_cross_entropy_with_grad(x, x, t)",
    "information.kl_divergence": "fastce.information.kl_divergence(x, x)",
    "scaled_dot_product_attention": "fastce.scaled_dot_product_attention(q, q, q)",
    "scaled_dot_product_attention_backward": (
        "fastce.scaled_dot_product_attention_backward(q, q, q, q, q, lse)"
    ),
}
DTYPES = ("float32", "float64", "float16")
CODE = """
import time
import numba, numpy as np
import fastce
dtype = np.dtype({dtype!r})
x, t = np.zeros((8, 100), dtype), np.zeros(8, int)
q, lse = np.zeros((8, 64, 16), dtype), np.zeros((8, 64), "f8" if dtype == "f8" else "f4")
fastce.available_backends()
start = time.perf_counter()
{call}
first = time.perf_counter()
{call}
print(first - start - (time.perf_counter() - first))
"""


def seconds(call, dtype, cache):
    code = CODE.format(call=call, dtype=dtype)
    env = os.environ | {"NUMBA_CACHE_DIR": cache, "FASTCE_BACKEND": "numba"}
    done = subprocess.run([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, check=True)
    return float(done.stdout)


def main():
    print("|", " | ".join(["", *DTYPES, "from the cache"]), "|")
    print("|" + "---|" * (len(DTYPES) + 2))
    for op, call in OPS.items():
        cells, cached = [], []
        for dtype in DTYPES:
            with tempfile.TemporaryDirectory() as cache:
                cells.append(f"{seconds(call, dtype, cache):.1f} s")
                cached.append(seconds(call, dtype, cache))
        print("|", " | ".join([f"`{op}`", *cells, f"{max(cached):.1f} s"]), "|", flush=True)


if __name__ == "__main__":
    main()
