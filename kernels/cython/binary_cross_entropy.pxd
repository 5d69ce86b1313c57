"""The kernels of binary_cross_entropy.pyx for Cython code: raw pointers, no Python objects, no GIL.

    from fastce.kernels.cython.binary_cross_entropy cimport (
        c_binary_cross_entropy_with_logits_with_grad, F32)

    with nogil:
        failed = c_binary_cross_entropy_with_logits_with_grad(
            F32, logits, target, NULL, 0, NULL, 0, loss, grad, n, False, n, 0, threads)

Every function returns 0, or -1 where there is no memory, or -2 where `dtype` is none of the four;
then the outputs hold anything. Nothing else is checked, so the following must hold:

- `logits`, `probs`, `target` and `grad` are n numbers of `dtype`, one after another; float16 and
  bfloat16 are their 16 bits. The elements may be in any order, the same in all arrays. Beside 16
  bits `target` may be of float: then WIDE_TARGET is added to `dtype`.
- Probabilities are from 0 to 1 or NaN: c_scan_probabilities checks that. Others give a loss of NaN
  and any gradient.
- `weight` is `weights` numbers, and element i has number i % weights; so have `pos_weight` and
  `pos_weights`. At least a thousand are best: repeat fewer. NULL is 1 for each element.
- `weight`, `pos_weight`, `loss` and `grad_loss` are of the compute dtype: double for F64, else
  float. `loss` and `grad_loss` are n numbers where `per_element` is true, else one: the sum over
  the elements. NULL for `grad_loss` is 1.
- The sum is divided by `denominator`: n for the mean; 1 where `per_element` is true.
- `label_smoothing` is from 0 to 1, `gamma` at least 0. `positive` and `negative` are what targets
  of 1 and of 0 count: alpha and 1 - alpha, or 1 and 1.
- Pointers are aligned to their elements. `grad` is exactly `logits`, `probs` or `target`, or
  overlaps no input; no other output overlaps anything.
- `threads` is how many OpenMP threads may be used; 0 and 1 are the caller's alone. Arrays of fewer
  than 65,536 elements are not spread. The result does not depend on it, not in the last bit. Any
  thread may call, also several at once; from inside a `prange`, pass 1.

What the functions compute, and what becomes of infinities and NaN, is what the functions of
these names in fastce compute. Their code is that of the instruction set level that is used by the
process (FASTCE_ISA), and is found when the calling module is imported.
"""

cdef enum:
    CONTRACT = 2  # see kernels/__init__.py

cdef enum:  # dtype
    F64 = 0
    F32 = 1
    F16 = 2
    BF16 = 3
    WIDE_TARGET = 4  # added to F16 or BF16

cdef int c_binary_cross_entropy_with_logits(
    int dtype, const void* logits, const void* target, const void* weight, Py_ssize_t weights,
    const void* pos_weight, Py_ssize_t pos_weights, void* loss, Py_ssize_t n, bint per_element,
    double denominator, double label_smoothing, int threads
) noexcept nogil

# grad: that for the logits.
cdef int c_binary_cross_entropy_with_logits_backward(
    int dtype, const void* grad_loss, const void* logits, const void* target, const void* weight,
    Py_ssize_t weights, const void* pos_weight, Py_ssize_t pos_weights, void* grad, Py_ssize_t n,
    bint per_element, double denominator, double label_smoothing, int threads
) noexcept nogil

# Both at once; grad is what the backward gives for a grad_loss of 1.
cdef int c_binary_cross_entropy_with_logits_with_grad(
    int dtype, const void* logits, const void* target, const void* weight, Py_ssize_t weights,
    const void* pos_weight, Py_ssize_t pos_weights, void* loss, void* grad, Py_ssize_t n,
    bint per_element, double denominator, double label_smoothing, int threads
) noexcept nogil

# The same of probabilities.
cdef int c_binary_cross_entropy(
    int dtype, const void* probs, const void* target, const void* weight, Py_ssize_t weights,
    void* loss, Py_ssize_t n, bint per_element, double denominator, int threads
) noexcept nogil

cdef int c_binary_cross_entropy_backward(
    int dtype, const void* grad_loss, const void* probs, const void* target, const void* weight,
    Py_ssize_t weights, void* grad, Py_ssize_t n, bint per_element, double denominator, int threads
) noexcept nogil

cdef int c_binary_cross_entropy_with_grad(
    int dtype, const void* probs, const void* target, const void* weight, Py_ssize_t weights,
    void* loss, void* grad, Py_ssize_t n, bint per_element, double denominator, int threads
) noexcept nogil

cdef int c_sigmoid_focal_loss(
    int dtype, const void* logits, const void* target, void* loss, Py_ssize_t n, bint per_element,
    double denominator, double gamma, double positive, double negative, int threads
) noexcept nogil

cdef int c_sigmoid_focal_loss_backward(
    int dtype, const void* grad_loss, const void* logits, const void* target, void* grad,
    Py_ssize_t n, bint per_element, double denominator, double gamma, double positive,
    double negative, int threads
) noexcept nogil

cdef int c_sigmoid_focal_loss_with_grad(
    int dtype, const void* logits, const void* target, void* loss, void* grad, Py_ssize_t n,
    bint per_element, double denominator, double gamma, double positive, double negative,
    int threads
) noexcept nogil

# stats[0]: the first probability that is below 0 or above 1, or -1.
cdef int c_scan_probabilities(
    int dtype, const void* probs, double* stats, Py_ssize_t n, int threads
) noexcept nogil
