"""binary_cross_entropy and sigmoid_focal_loss for Cython code; first read _c_interface.pxd.

    cdef BinaryLoss a
    memset(&a, 0, sizeof(a))
    a.x, a.target, a.loss, a.grad = logits, target, &loss, grad
    a.n = a.denominator = n  # the mean
    with nogil:
        failed = c_binary_cross_entropy_with_logits_with_grad(F32, &a, threads)
"""

from ._c_interface cimport BF16, CONTRACT, F16, F32, F64

cdef struct BinaryLoss:
    # IN (n,): logits or, of c_binary_cross_entropy*, probabilities. The elements may be in any
    # order, the same in all arrays. Probabilities below 0 or above 1, which c_scan_probabilities
    # finds, give a loss of NaN and any gradient
    const void* x
    const void* target  # IN (n,)
    # IN (weights,), compute dtype, or NULL for 1: element i has weight[i % weights]. A thousand of
    # them are best: repeat fewer
    const void* weight
    const void* pos_weight  # IN (pos_weights,), the same; of c_binary_cross_entropy_with_logits*
    # IN, compute dtype, or NULL for 1: (n,) if per_element; else one number
    const void* grad_loss
    void* loss  # OUT, compute dtype: (n,) if per_element; else one number, their sum
    void* grad  # OUT (n,): the gradient for x. It may be x, or `target` of that dtype
    double* stats  # OUT (1,), of c_scan_probabilities: the first of x out of range, or -1
    Py_ssize_t n
    Py_ssize_t weights, pos_weights  # 0 for n
    bint wide_target  # `target` is of the compute dtype, not of dtype
    bint per_element
    double denominator  # divides losses and gradients, 0 for 1: n for the mean
    double label_smoothing  # from 0 to 1; of c_binary_cross_entropy_with_logits*
    # Of c_sigmoid_focal_loss*: gamma is at least 0; losses of targets of 1 and of 0 are multiplied
    # by `positive` and `negative`, alpha and 1 - alpha for example. Both 0: by 1
    double gamma, positive, negative

# Of each: loss; grad; and loss with grad for a grad_loss of 1.
cdef int c_binary_cross_entropy_with_logits(
    int dtype, const BinaryLoss* a, int threads
) noexcept nogil
cdef int c_binary_cross_entropy_with_logits_backward(
    int dtype, const BinaryLoss* a, int threads
) noexcept nogil
cdef int c_binary_cross_entropy_with_logits_with_grad(
    int dtype, const BinaryLoss* a, int threads
) noexcept nogil

cdef int c_binary_cross_entropy(int dtype, const BinaryLoss* a, int threads) noexcept nogil
cdef int c_binary_cross_entropy_backward(
    int dtype, const BinaryLoss* a, int threads
) noexcept nogil
cdef int c_binary_cross_entropy_with_grad(
    int dtype, const BinaryLoss* a, int threads
) noexcept nogil

cdef int c_sigmoid_focal_loss(int dtype, const BinaryLoss* a, int threads) noexcept nogil
cdef int c_sigmoid_focal_loss_backward(int dtype, const BinaryLoss* a, int threads) noexcept nogil
cdef int c_sigmoid_focal_loss_with_grad(int dtype, const BinaryLoss* a, int threads) noexcept nogil

# stats, from x and n.
cdef int c_scan_probabilities(int dtype, const BinaryLoss* a, int threads) noexcept nogil
