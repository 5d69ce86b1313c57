"""Numerical kernels of softmax, cross-entropy, attention and information, one folder per backend.

Installed as ``fastce.kernels``. Nothing here imports fastce, so the folder can be
copied into another package and used there.

The contract, the same for every backend
----------------------------------------
A kernel is ``name(inputs..., outputs..., *, options) -> None`` and lives in
``<backend>/<op>.py`` or ``.pyx``, or in a package ``<backend>/<op>/``. Every backend has the same
names and parameters (``tests/backends/test_contract.py``). The caller checks, allocates and brings
the arrays into canonical form; the kernel only computes, holds no GIL while it does, and keeps no
state.

Canonical form of row ops:

``x``, ``logits``, ``grad``, ``y``, ``out``: shape ``(outer, n, inner)``
    The classes lie on the middle axis. Each ``(n, inner)`` plane is C-contiguous; the
    stride between planes is free. An output is either exactly one of the inputs or
    overlaps none of them.
Per-row arrays (``target``, ``loss``, ``lse``, ``grad_loss``): shape ``(outer, inner)``
    C-contiguous. ``loss`` and ``grad_loss`` have shape ``(1, 1)`` where the loss is
    reduced over the rows; the kernel divides by ``denominator``.
``target``
    ``int64`` class indices of shape ``(outer, inner)``, already checked with
    ``scan_target``; or probabilities of the logits' shape and dtype, or float32 beside 16 bits.
``weight``
    None, or one weight per class: ``(n,)`` in the compute dtype.

Canonical form of elementwise ops (binary cross-entropy):

``logits``, ``probs``, ``target``, ``grad``: shape ``(n,)``, contiguous
    All elements in the order in which they lie in memory, the same in all arrays. An output is
    either exactly one of the inputs or overlaps none of them. ``target`` has the dtype of the
    input, or float32 beside 16 bits; ``probs`` have been checked with ``scan_probabilities``.
``weight``, ``pos_weight``
    None, or ``(period,)`` in the compute dtype: element i has number ``i % period``. At least some
    thousands are best, if there are as many elements; a short row is repeated by the caller.
``loss``, ``grad_loss``: shape ``(n,)`` or ``(1,)``
    ``(1,)`` where the loss is reduced; the kernel divides by ``denominator``, which is 1 elsewhere.

Canonical form of ``linear_cross_entropy``:

``input``, ``d_input``: shape ``(rows, width)``
``linear_weight``, ``d_linear_weight``: shape ``(n, width)``
    Rows are contiguous, the stride between them is free. ``linear_bias`` and ``d_linear_bias`` are
    None, or ``(n,)`` in the storage dtype. No output overlaps anything.
``target``, ``weight``, ``loss``, ``grad_loss``
    As for row ops, with one axis: ``(rows,)`` or ``(1,)``.

Canonical form of attention:

``q``, ``out``, ``grad_out``, ``dq``: shape ``(..., heads, L, width)``
``k``, ``v``, ``dk``, ``dv``: shape ``(..., kv_heads, S, width)``
    All have the same batch axes in front, as many as there are. The last axis is contiguous,
    the other strides are free, 0 included for an input that is broadcast. ``heads`` is a multiple
    of ``kv_heads``. ``dk`` and ``dv`` hold zeros. No output overlaps anything.
``mask``
    None, or ``(..., heads, L, S)``, boolean or of q's dtype; the last axis is contiguous or
    broadcast. Its gradient ``dmask`` has the same form in the compute dtype, is added to, and may
    lie in the same place for several batch entries, heads, queries or keys.
``lse``: shape ``(..., heads, L)``
    In the compute dtype, with any strides; None in the forward if not needed.
``spans``: ``int64``, shape ``(batch entries, 5)``
    For each batch entry the first query and the one after the last, the same of the keys, and the
    position of the first query among these keys. Packed sequences have a batch axis of stride 0.
``scale``, ``left``, ``right``, ``softcap``
    As in the reference; -1 is a window without bound, 0 no softcap.

Canonical form of information measures:

``p``, ``q``, ``logits``, ``p_logits``, ``q_logits`` and their gradients
    As ``x`` of row ops; the stride between planes is 0 for what is broadcast. The outcomes lie on
    the middle axis.
``table``: shape ``(tables, rows, columns)``
    Each table is C-contiguous.
``out``: shape ``(outer, inner)``, or ``(tables,)``
    In the compute dtype, C-contiguous. It overlaps nothing.
``unit``, ``exponential``
    What a number of nats is divided by; or, where that is true, exp of it is given instead.

Storage dtypes are float64, float32, float16 and bfloat16. bfloat16 arrays are passed as
their ``uint16`` bits, because NumPy has no such type of its own. The compute dtype is
float64 for float64, else float32: losses, ``lse`` and weights have it.

Every result is the same to the last bit for any number of ``threads``.

The ``cuda`` backend takes memory of a GPU in place of any array, as `cuda._arrays.View`, or with
``__cuda_array_interface__``; NumPy arrays are copied there and back. It has no use for ``threads``,
does not wait, and checks no labels: one out of range makes its row NaN. There, ``target`` may be of
any integer dtype, ``weight``, ``lse`` and ``grad_loss`` of any floating one, and ``denominator``
the ``stats`` that `scan_target` wrote. Probabilities out of range are NaN there. Arrays of
attention are `cuda.attention.arrays.AttentionArray` instead, ``spans`` too if they are on the GPU;
float32 of dtype "tfloat32" goes to tensor cores.

The same kernels for Cython code, as C functions, are declared in ``cython/<op>.pxd``.

``CONTRACT`` is the number of all that: names, parameters, canonical forms, and the functions,
structs and constants of the ``.pxd`` files. It grows when a caller written for it has to change.
New kernels, files that begin with ``_`` and the last bits of results are not part of it. The
``.pxd`` files have the same number, so Cython code knows which one it was compiled for; a C
function whose signature has changed since is a TypeError when that code is imported.
"""

import functools
import os
from importlib import import_module
from importlib.util import find_spec

CONTRACT = 2
BACKENDS = ("cython", "numba", "reference")  # of processors, fastest first
GPU = "cuda"  # only where it is asked for by name


@functools.cache
def load(op, name, backend=None):
    """Function `name` of file `op`, for example ``load("cross_entropy", "nll_loss")``; the file
    itself where `name` is None.

    That of `backend`, or of the first of `BACKENDS` that loads. A choice, be it of a backend or,
    with ``FASTCE_ISA``, of a level, never falls back: the ImportError says why.
    """
    if backend is None:
        return _first(op, name)
    if backend not in (*BACKENDS, GPU):
        known = ", ".join((*BACKENDS, GPU))
        raise ValueError(f"unknown backend {backend!r}; there are {known}")
    try:
        if backend == GPU:
            import_module(f"{__name__}.{GPU}").require()
        file = import_module(f"{__name__}.{backend}.{op}")
        return file if name is None else getattr(file, name)
    except ImportError as error:
        reason = _reason(error, backend)
        raise ImportError(f"backend {backend!r} cannot compute {name or op}: {reason}") from error


def _first(op, name):
    for backend in BACKENDS[:-1]:
        try:
            return load(op, name, backend)
        except ImportError:
            if backend == "cython" and os.environ.get("FASTCE_ISA") and _has(backend):
                raise
    return load(op, name, BACKENDS[-1])


def _has(backend):
    """Whether its folder is there: a copy of this package may leave it out."""
    return find_spec(f"{__name__}.{backend}") is not None


def _reason(error, backend):
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing == f"{__name__}.{backend}":
        return "its folder is not there"
    if missing == backend:
        return f"the package {backend} is not installed"
    if missing == f"{__name__}.{GPU}.{(missing or '').rpartition('.')[2]}":
        return "there are no kernels of this op for GPUs yet"
    if (missing or "").startswith(f"{__name__}.cython."):
        package = __name__.partition(".")[0]
        return f"its compiled module is not there (no C++ compiler when {package} was installed?)"
    return str(error)
