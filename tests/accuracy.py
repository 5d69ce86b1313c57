"""exp and log1p of both CPU backends over every float32, in ULP: `make accuracy`.

The truth is NumPy's float64. Prints the largest error and where it is; exits with 1 beyond 2 ULP.
"""

import functools
import importlib
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from fastce import get_num_threads

MODULES = {"cython": "fastce.kernels.cython._vector_math", "numba": "support.numba_math"}
BOUND = 2.0  # ULP
CHUNK = 1 << 20


def ulp_error(result, truth):
    """Distance from a float64 truth in units of the last place of a float32 near it."""
    with np.errstate(divide="ignore"):
        exponent = np.maximum(np.floor(np.log2(np.abs(truth))), -126)
    return np.where(result == truth, 0, np.abs(result - truth) / np.exp2(exponent - 23))


def exp_error(math, bits):
    """Largest error of exp(-x) for the floats x >= 0 of these bit patterns, and its x."""
    x = -bits.view(np.float32)
    result = np.empty_like(x)
    math.exp_sub_of(x, np.zeros_like(x), result)
    with np.errstate(under="ignore"):
        error = ulp_error(result.astype(np.float64), np.exp(x.astype(np.float64)))
    return error.max(), x[error.argmax()]


def log_error(math, bits):
    """The same for log(1 + x)."""
    x = bits.view(np.float32)
    result = np.empty_like(x)
    math.log_1p_of(x, result)
    error = ulp_error(result.astype(np.float64), np.log1p(x.astype(np.float64)))
    return error.max(), x[error.argmax()]


def main() -> int:
    infinity = int(np.float32(np.inf).view(np.uint32))  # the bit patterns below are all x >= 0
    failed = False
    for backend, module in MODULES.items():
        math = importlib.import_module(module)
        for name, error in (("exp", exp_error), ("log1p", log_error)):
            chunks = (
                np.arange(first, min(first + CHUNK, infinity), dtype=np.uint32)
                for first in range(0, infinity, CHUNK)
            )
            with ThreadPoolExecutor(get_num_threads()) as pool:
                worst, where = max(pool.map(functools.partial(error, math), chunks))
            print(f"{backend} {name}: {worst:.3f} ULP at {where!r}, of {infinity} floats")
            failed |= not worst <= BOUND
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
