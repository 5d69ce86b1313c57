"""What the C interface of all ops has in common; each .pxd gives these names, too.

The kernels as C functions on raw pointers, without Python objects and without the GIL:

    from fastce.kernels.cython.cross_entropy cimport ClassLoss, F32, c_cross_entropy_with_grad
    from libc.string cimport memset

    cdef ClassLoss a
    memset(&a, 0, sizeof(a))  # the defaults
    a.x, a.labels, a.loss, a.grad = logits, labels, &loss, grad
    a.outer, a.n, a.denominator = rows, classes, rows
    with nogil:
        failed = c_cross_entropy_with_grad(F32, &a, threads)

Every function takes `int dtype`, a pointer to the struct of its family, and `int threads`.

- `dtype` is that of every array for which nothing else is said; float16 and bfloat16 are their 16
  bits. The compute dtype is double for F64, else float.
- A struct of zeros has the defaults. IN and OUT at a field say which arrays are read and written;
  a function reads only the fields that concern it. A pointer may be NULL where that is said, or
  where its array has no elements.
- Arrays (outer, n, inner) have the classes, or outcomes, on the middle axis: rows of classes have
  inner = 1, which is also what inner = 0 means (of an array without elements, set another size to
  0). Each (n, inner) plane is contiguous. `*_step` is the distance between the starts of
  neighbouring planes, in elements; 0 is n * inner: the planes follow each other. All other arrays
  are contiguous.
- The result is 0, or -1 where memory for intermediate results cannot be allocated, or -2 where
  `dtype` is none of the four; then the outputs hold anything. Nothing else is checked. Pointers
  must be aligned to the elements. An output is exactly one of the inputs of its shape and dtype,
  with the same step, or overlaps no array, if nothing else is said.
- `threads` is how many OpenMP threads may be used; 0 and 1 are the caller's alone. Arrays of fewer
  than 65,536 elements are computed by one. The result does not depend on it, not in the last bit.
  Any thread may call, also several at once; from inside a `prange`, pass 1.

What the functions compute, for infinities and NaN too, is in kernels/reference. Their code is that
of the instruction set level that the process uses (FASTCE_ISA), and is found when the calling
module is imported. Cython compares the names of structs then, not their fields: a struct whose
fields change gets another name.
"""

from libc.stdint cimport int64_t

cdef enum:
    CONTRACT = 2  # see kernels/__init__.py

cdef enum:  # dtype
    F64 = 0
    F32 = 1
    F16 = 2
    BF16 = 3

# Of cross_entropy, nll_loss, categorical_cross_entropy and, within RobustLoss, robust_losses.
cdef struct ClassLoss:
    # IN (outer, n, inner): logits; of nll_loss log-probabilities, of categorical_cross_entropy
    # probabilities
    const void* x
    # IN (outer, inner): the class of each row, at least 0 and less than n, or ignore_index. Others
    # read and write out of bounds: c_scan_target finds them.
    const int64_t* labels
    const void* probabilities  # IN (outer, n, inner): the target where `labels` is NULL
    const void* weight  # IN (n,), compute dtype, or NULL for 1
    # IN, compute dtype, or NULL for 1: the gradient for each loss, of shape (outer, inner), if
    # per_row; else one number
    const void* grad_loss
    void* loss  # OUT, compute dtype: (outer, inner) if per_row; else one number, their sum
    void* lse  # OUT (outer, inner), compute dtype, or NULL: logsumexp; NaN where a row is ignored
    # OUT (outer, n, inner): the gradient for x. It may be x, or `probabilities` of that dtype
    void* grad
    # OUT (2,), of c_scan_target: the first row whose label is out of range, or -1; then the number
    # of rows that are not ignored, or the sum of their weights
    double* stats
    Py_ssize_t outer, n, inner
    Py_ssize_t x_step, probabilities_step, grad_step
    bint wide_probabilities  # `probabilities` are of the compute dtype, not of dtype
    bint per_row
    bint has_ignore_index  # else no row is ignored
    int64_t ignore_index  # not used with `probabilities`
    # Divides losses and gradients, 0 for 1. For the mean: the number of rows, or stats[1] where
    # rows are ignored or have weights (if that is 0, the mean of no row, the loss is 0)
    double denominator
    double label_smoothing  # from 0 to 1
    double z_loss  # at least 0; of cross_entropy only
    double epsilon  # of categorical_cross_entropy: x is clipped to [epsilon, 1 - epsilon]; < 0.5
