"""What this fastce is made of and runs on."""

import os
import platform
import sys
from pathlib import Path

import numpy as np

from .._version import __version__
from .dispatch import available_backends, chosen_backend
from .options import get_validation
from .threads import get_num_threads

#: Every environment variable that fastce reads, and what it does. See docs/guide/environment.md.
VARIABLES = {
    "FASTCE_BACKEND": "backend to use, without falling back: cython, numba, reference or cuda",
    "FASTCE_ISA": "instruction set level of the cython backend, instead of the processor's best",
    "FASTCE_BUILD_ISA": "levels that a build from source compiles: all, native, or a list of them",
    "FASTCE_NUM_THREADS": "number of CPU threads (before OMP_NUM_THREADS)",
}
# Numba's own decide where its kernels are kept, and how they run.
_SHOWN = (*VARIABLES, "NUMBA_CACHE_DIR", "NUMBA_THREADING_LAYER", "NUMBA_DISABLE_JIT")


def config() -> dict[str, object]:
    """Versions, processor, instruction set, threads, and each backend or why it is missing.

    Raises ValueError or ImportError for an environment variable that asks for what there is not.
    """
    from ..kernels.cython import _isa

    backends, built = available_backends(), _isa.built()
    return {
        "fastce": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "processor": _processor(),
        "isa_levels": {
            name: None if name in built else f"was not built: {_isa.HOW_TO_BUILD}"
            for name in _isa.supported()
        },
        "isa_level": _isa.level(),
        "threads": get_num_threads(),
        "label_checks": "always" + (", on GPUs too" if get_validation() else ""),
        "backend": chosen_backend(),
        "backends": backends,
        "numba_kernels": _numba_compiled() if backends["numba"] is None else {},
        "environment": {name: os.environ[name] for name in _SHOWN if name in os.environ},
    }


def show_config() -> None:
    """Print versions, processor, threads, and each backend or why it cannot be used.

    Examples
    --------
    >>> import fastce
    >>> fastce.show_config()  # doctest: +ELLIPSIS
    fastce: ...
    """
    for key, value in config().items():
        if isinstance(value, dict):
            print(f"{key}:")
            for name, detail in value.items():
                print(f"  {name}: {'available' if detail is None else detail}")
        else:
            print(f"{key}: {', '.join(value) if isinstance(value, list) else value}")


def _numba_compiled() -> dict[str, str]:
    """What Numba has compiled and keeps, and for how long its first calls had to wait."""
    from ..kernels.numba import _compile

    taken: dict[str, list[float]] = {}
    for entry in _compile.compile_times():
        taken.setdefault(f"{entry['kernel']} {entry['dtype']}", []).append(entry["seconds"])
    return {
        name: f"{sum(seconds):.1f} s" + (f" ({len(seconds)} times)" if len(seconds) > 1 else "")
        for name, seconds in taken.items()
    }


def _processor() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
