"""Numerical kernels of the softmax and cross-entropy family, one folder per backend.

Installed as ``fastce.kernels``. Nothing here imports fastce, so the folder can be
copied into another package and used there.

The contract, the same for every backend
----------------------------------------
A kernel is ``name(inputs..., outputs..., *, options) -> None`` and lives in
``<backend>/<op>.py`` or ``.pyx``. Every backend has the same names and parameters
(``tests/test_contract.py``). The caller checks, allocates and brings the arrays into
canonical form; the kernel only computes, holds no GIL while it does, and keeps no state.

Canonical form:

``x``, ``logits``, ``grad``, ``y``, ``out``: shape ``(outer, n, inner)``
    The classes lie on the middle axis. Each ``(n, inner)`` plane is C-contiguous; the
    stride between planes is free. An output is either exactly one of the inputs or
    overlaps none of them.
Per-row arrays (``target``, ``loss``, ``lse``, ``grad_loss``): shape ``(outer, inner)``
    C-contiguous. ``loss`` and ``grad_loss`` have shape ``(1, 1)`` where the loss is
    reduced over the rows; the kernel divides by ``denominator``.
``target``
    ``int64`` class indices of shape ``(outer, inner)``, already checked with
    ``scan_target``; or probabilities of the logits' shape and dtype.
``weight``
    None, or one weight per class: ``(n,)`` in the compute dtype.

Storage dtypes are float64, float32, float16 and bfloat16. bfloat16 arrays are passed as
their ``uint16`` bits, because NumPy has no such type of its own. The compute dtype is
float64 for float64, else float32: losses, ``lse`` and weights have it.

Every result is the same to the last bit for any number of ``threads``.
"""
