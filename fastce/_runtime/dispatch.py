"""Which backend computes. The folder tree under ``fastce.kernels`` is the registry.

Order of choice: ``use_backend`` > ``FASTCE_BACKEND`` > the first backend that loads. An
explicit choice never falls back: it raises and says why.
"""

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

BACKENDS = ("cython", "numba", "reference")  # of processors, fastest first
GPU = "cuda"  # for arrays on a GPU; others are copied there where it is asked for by name
OPS = (
    "log_softmax",
    "cross_entropy",
    "binary_cross_entropy",
    "categorical_cross_entropy",
    "robust_losses",
    "linear_cross_entropy",
    "information",
    "attention",
)
NOT_ON_GPUS = ("categorical_cross_entropy", "linear_cross_entropy", "information")
GPU_OPS = tuple(op for op in OPS if op not in NOT_ON_GPUS)  # those that have kernels for GPUs

_chosen: ContextVar[str | None] = ContextVar(
    "fastce_backend", default=os.environ.get("FASTCE_BACKEND") or None
)


class BackendError(ImportError):
    """The backend that was asked for cannot be used; the message says why."""

    __module__ = "fastce"  # as users import it: every traceback prints it


def kernel(op: str, name: str) -> Callable[..., None]:
    """Function `name` of file `op` in the backend to use now."""
    return _load(_chosen.get(), op, name)


def gpu_kernel(op: str, name: str) -> Callable[..., None]:
    """The same for arrays on a GPU. An op without kernels for GPUs raises, whatever is chosen."""
    chosen = _chosen.get()
    if op in GPU_OPS and chosen not in (None, GPU):
        check_name(chosen)
        raise BackendError(f"backend {chosen!r} cannot compute with arrays on a GPU, {GPU!r} can")
    return _load(GPU, op, name)


@functools.cache
def _load(backend: str | None, op: str, name: str | None) -> Any:
    """That function; of no name, the file itself."""
    if backend == GPU and op not in GPU_OPS:
        hosts = ", ".join(BACKENDS)
        raise BackendError(
            f"there are no kernels of {op} for GPUs; for arrays on the host: {hosts}"
        )
    # Not before the first use. Mypy does not see that fastce.kernels lies in kernels/.
    from .. import kernels  # type: ignore[attr-defined]

    try:
        return kernels.load(op, name, backend)
    except ImportError as error:
        raise BackendError(str(error)) from error


def _ops_of(backend: str) -> tuple[str, ...]:
    return GPU_OPS if backend == GPU else OPS


def check_name(backend: str) -> None:
    if backend not in (*BACKENDS, GPU):
        raise ValueError(f"unknown backend {backend!r}; there are {', '.join((*BACKENDS, GPU))}")


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Compute with one backend inside a ``with`` block; without ``with`` it does nothing.

    The choice holds for the current thread (and asyncio task) and never falls back.

    Parameters
    ----------
    name : {"cython", "numba", "reference", "cuda"}
        See `available_backends`. Arrays on a GPU are computed there without being asked; with
        "cuda", NumPy arrays are copied to the GPU and the results back; a call of an op that has
        no kernels for GPUs raises.

    Raises
    ------
    ValueError
        If there is no backend of that name.
    BackendError
        If the backend cannot be loaded here. The message says why.

    Examples
    --------
    >>> import fastce
    >>> with fastce.use_backend("reference"):
    ...     fastce.softmax([0.0, 0.0])
    array([0.5, 0.5])
    """
    check_name(name)
    for op in _ops_of(name):
        _load(name, op, None)
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


def chosen_backend() -> str:
    """The backend that computes now. Raises as a call would, where a choice cannot be had."""
    backend = _chosen.get()
    if backend:
        check_name(backend)
    return kernel(OPS[0], OPS[0]).__module__.split(".")[-2]


def available_backends() -> dict[str, str | None]:
    """Each backend and why it cannot be used: None where it can.

    Returns
    -------
    dict of str to (str or None)
        In the order of preference.

    Examples
    --------
    >>> import fastce
    >>> fastce.available_backends()["reference"] is None
    True
    """
    reasons: dict[str, str | None] = {}
    for backend in (*BACKENDS, GPU):
        try:
            for op in _ops_of(backend):
                _load(backend, op, None)
            reasons[backend] = None
        except (BackendError, ValueError) as error:  # ValueError: a FASTCE_ISA that is not there
            reasons[backend] = str(error)
    return reasons
