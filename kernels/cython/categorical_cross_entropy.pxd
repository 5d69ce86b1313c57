"""The kernels of categorical_cross_entropy.pyx for Cython code: raw pointers, no GIL.

    from fastce.kernels.cython.categorical_cross_entropy cimport c_categorical_cross_entropy, F32

    with nogil:
        failed = c_categorical_cross_entropy(
            F32, probs, labels, NULL, NULL, loss, rows, classes, 1, classes, 0, False, rows, -100,
            0, 1e-7, threads)

Every function returns 0, or -1 where there is no memory, or -2 where `dtype` is none of the four;
then the outputs hold anything. Arguments are as in cross_entropy.pxd, and these hold besides:

- `probs` takes the place of the logits. `probabilities` are those of a dense target, one-hot for
  example; it is NULL where there are `labels`.
- `epsilon` is at least 0 and less than 0.5.
- `grad` is exactly `probs` or `probabilities`, with the same step, or overlaps no input.
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

cdef int c_categorical_cross_entropy(
    int dtype, const void* probs, const int64_t* labels, const void* probabilities,
    const void* weight, void* loss, Py_ssize_t outer, Py_ssize_t n, Py_ssize_t inner,
    Py_ssize_t probs_step, Py_ssize_t probabilities_step, bint per_row, double denominator,
    int64_t ignore_index, double label_smoothing, double epsilon, int threads
) noexcept nogil

# grad: that for the probabilities. grad_loss is NULL for 1.
cdef int c_categorical_cross_entropy_backward(
    int dtype, const void* grad_loss, const void* probs, const int64_t* labels,
    const void* probabilities, const void* weight, void* grad, Py_ssize_t outer, Py_ssize_t n,
    Py_ssize_t inner, Py_ssize_t probs_step, Py_ssize_t probabilities_step, Py_ssize_t grad_step,
    bint per_row, double denominator, int64_t ignore_index, double label_smoothing,
    double epsilon, int threads
) noexcept nogil

# Both at once; grad is what c_categorical_cross_entropy_backward gives for a grad_loss of 1.
cdef int c_categorical_cross_entropy_with_grad(
    int dtype, const void* probs, const int64_t* labels, const void* probabilities,
    const void* weight, void* loss, void* grad, Py_ssize_t outer, Py_ssize_t n, Py_ssize_t inner,
    Py_ssize_t probs_step, Py_ssize_t probabilities_step, Py_ssize_t grad_step, bint per_row,
    double denominator, int64_t ignore_index, double label_smoothing, double epsilon, int threads
) noexcept nogil
