"""Which backend computes. The folder tree under ``fastce.kernels`` is the registry.

Order of choice: ``use_backend`` > ``FASTCE_BACKEND`` > the first backend that loads. An
explicit choice never falls back: it raises and says why.
"""

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module

BACKENDS = ("cython", "reference")  # fastest first
OPS = ("log_softmax", "cross_entropy", "attention")

_chosen: ContextVar[str | None] = ContextVar(
    "fastce_backend", default=os.environ.get("FASTCE_BACKEND") or None
)


class BackendError(ImportError):
    """The backend that was asked for cannot be used; the message says why."""


def kernel(op: str, name: str) -> Callable[..., None]:
    """Function `name` of file `op` in the backend to use now."""
    backend = _chosen.get()
    return _load(backend, op, name) if backend else _first(op, name)


@functools.cache
def _load(backend: str, op: str, name: str) -> Callable[..., None]:
    check_name(backend)
    try:
        return getattr(import_module(f"fastce.kernels.{backend}.{op}"), name)
    except ImportError as error:
        raise BackendError(
            f"backend {backend!r} cannot compute {name}: {_reason(error)}"
        ) from error


@functools.cache
def _first(op: str, name: str) -> Callable[..., None]:
    for backend in BACKENDS[:-1]:
        try:
            return _load(backend, op, name)
        except BackendError:  # its reason is shown by available_backends()
            if os.environ.get("FASTCE_ISA"):  # an explicit choice, though of a level
                raise
    return _load(BACKENDS[-1], op, name)


def _reason(error: ImportError) -> str:
    if isinstance(error, ModuleNotFoundError) and (error.name or "").startswith("fastce.kernels"):
        return "its compiled module is not there (no C++ compiler when fastce was installed?)"
    return str(error)


def check_name(backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; there are {', '.join(BACKENDS)}")


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Compute with one backend inside a ``with`` block; without ``with`` it does nothing.

    The choice holds for the current thread (and asyncio task) and never falls back.

    Parameters
    ----------
    name : {"cython", "reference"}
        See `available_backends`.

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
    for op in OPS:
        _load(name, op, op)
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
    for backend in BACKENDS:
        try:
            for op in OPS:
                _load(backend, op, op)
            reasons[backend] = None
        except (BackendError, ValueError) as error:  # ValueError: a FASTCE_ISA that is not there
            reasons[backend] = str(error)
    return reasons
