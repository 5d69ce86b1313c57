"""The kernels of cross_entropy.pyx for Cython code: raw pointers, no Python objects, no GIL.

    from fastce.kernels.cython.cross_entropy cimport c_cross_entropy_with_grad, F32

    with nogil:
        failed = c_cross_entropy_with_grad(
            F32, logits, labels, NULL, NULL, loss, grad, rows, classes, 1, classes, 0, classes,
            False, rows, -100, 0, 0, threads)

Every function returns 0, or -1 where there is no memory, or -2 where `dtype` is none of the four;
then the outputs hold anything. Nothing else is checked, so the following must hold:

- `logits`, `log_probs`, `probabilities` and `grad` have shape (outer, n, inner), and the classes
  lie on the middle axis: for rows of classes, inner = 1. Each (n, inner) plane is contiguous;
  `*_step` is the distance between the starts of neighbouring planes, in elements. They are of
  `dtype`; float16 and bfloat16 are their 16 bits. Beside these `probabilities` may be of float:
  then WIDE_TARGET is added to `dtype`.
- The target is either `labels`, contiguous (outer, inner), or `probabilities`; the other is NULL.
  A label is at least 0 and less than n, or `ignore_index`: c_scan_target checks that. A label out
  of range reads and writes out of bounds.
- `weight` holds one number for each class, or is NULL: each is 1. `weight`, `loss`, `grad_loss` and
  `lse` are of the compute dtype: double for F64, else float.
- `loss` and `grad_loss` are contiguous (outer, inner) where `per_row` is true, else one number:
  the sum over the rows. `lse` is contiguous (outer, inner).
- Losses are divided by `denominator`: 1 for losses by row and their sum, and for their mean the
  number of rows that are not ignored, or the sum of their weights (stats[1] of c_scan_target).
- `label_smoothing` is from 0 to 1 and `z_loss` at least 0; 0 is none of them. `ignore_index` is not
  used with probabilities.
- Pointers are aligned to their elements, and NULL only where that is said here, or an array has no
  elements. `grad` is exactly `logits` or `probabilities`, with the same step, or overlaps no
  input; no other output overlaps anything.
- `threads` is how many OpenMP threads may be used; 0 and 1 are the caller's alone. Arrays of fewer
  than 65,536 elements are not spread. The result does not depend on it, not in the last bit. Any
  thread may call, also several at once; from inside a `prange`, pass 1.

What the functions compute, and what becomes of infinities and NaN, is what the functions of
these names in fastce compute. Their code is that of the instruction set level that is used by the
process (FASTCE_ISA), and is found when the calling module is imported.
"""

from libc.stdint cimport int64_t

cdef enum:
    CONTRACT = 2  # see kernels/__init__.py

cdef enum:  # dtype
    F64 = 0
    F32 = 1
    F16 = 2
    BF16 = 3
    WIDE_TARGET = 4  # added to F16 or BF16

# loss and lse, the logsumexp of each row (NaN where it is ignored), are NULL where not wanted.
cdef int c_cross_entropy(
    int dtype, const void* logits, const int64_t* labels, const void* probabilities,
    const void* weight, void* loss, void* lse, Py_ssize_t outer, Py_ssize_t n, Py_ssize_t inner,
    Py_ssize_t logits_step, Py_ssize_t probabilities_step, bint per_row, double denominator,
    int64_t ignore_index, double label_smoothing, double z_loss, int threads
) noexcept nogil

# grad: that for the logits. grad_loss is NULL for 1.
cdef int c_cross_entropy_backward(
    int dtype, const void* grad_loss, const void* logits, const int64_t* labels,
    const void* probabilities, const void* weight, void* grad, Py_ssize_t outer, Py_ssize_t n,
    Py_ssize_t inner, Py_ssize_t logits_step, Py_ssize_t probabilities_step,
    Py_ssize_t grad_step, bint per_row, double denominator, int64_t ignore_index,
    double label_smoothing, double z_loss, int threads
) noexcept nogil

# Both at once; grad is what c_cross_entropy_backward gives for a grad_loss of 1.
cdef int c_cross_entropy_with_grad(
    int dtype, const void* logits, const int64_t* labels, const void* probabilities,
    const void* weight, void* loss, void* grad, Py_ssize_t outer, Py_ssize_t n, Py_ssize_t inner,
    Py_ssize_t logits_step, Py_ssize_t probabilities_step, Py_ssize_t grad_step, bint per_row,
    double denominator, int64_t ignore_index, double label_smoothing, double z_loss, int threads
) noexcept nogil

# stats[0]: the first of the rows whose label is wrong, or -1; then stats[1]: the sum of the
# weights of the rows that are not ignored. `dtype` is that of the logits. Never returns -2.
cdef int c_scan_target(
    int dtype, const int64_t* labels, const void* weight, double* stats, Py_ssize_t rows,
    Py_ssize_t classes, int64_t ignore_index, int threads
) noexcept nogil

# The loss of log-probabilities; `step` is that of log_probs.
cdef int c_nll_loss(
    int dtype, const void* log_probs, const int64_t* labels, const void* weight, void* loss,
    Py_ssize_t outer, Py_ssize_t n, Py_ssize_t inner, Py_ssize_t step, bint per_row,
    double denominator, int64_t ignore_index, int threads
) noexcept nogil

# Its gradient, which does not depend on the log-probabilities; `step` is that of grad.
cdef int c_nll_loss_backward(
    int dtype, const void* grad_loss, const int64_t* labels, const void* weight, void* grad,
    Py_ssize_t outer, Py_ssize_t n, Py_ssize_t inner, Py_ssize_t step, bint per_row,
    double denominator, int64_t ignore_index, int threads
) noexcept nogil
