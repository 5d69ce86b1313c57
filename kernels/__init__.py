"""Numerical kernels of softmax, cross-entropy and attention, one folder per backend.

Installed as ``fastce.kernels``. Nothing here imports fastce, so the folder can be
copied into another package and used there.

The contract, the same for every backend
----------------------------------------
A kernel is ``name(inputs..., outputs..., *, options) -> None`` and lives in
``<backend>/<op>.py`` or ``.pyx``. Every backend has the same names and parameters
(``tests/test_contract.py``). The caller checks, allocates and brings the arrays into
canonical form; the kernel only computes, holds no GIL while it does, and keeps no state.

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
    ``scan_target``; or probabilities of the logits' shape and dtype.
``weight``
    None, or one weight per class: ``(n,)`` in the compute dtype.

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
    In the compute dtype, with any strides; None in the forward where it is not wanted.
``spans``: ``int64``, shape ``(batch entries, 5)``
    For each batch entry the first query and the one after the last, the same of the keys, and the
    position of the first query among these keys. Packed sequences have a batch axis of stride 0.
``scale``, ``left``, ``right``, ``softcap``
    As in the reference; -1 is a window without bound, 0 no softcap.

Storage dtypes are float64, float32, float16 and bfloat16. bfloat16 arrays are passed as
their ``uint16`` bits, because NumPy has no such type of its own. The compute dtype is
float64 for float64, else float32: losses, ``lse`` and weights have it.

Every result is the same to the last bit for any number of ``threads``.
"""
