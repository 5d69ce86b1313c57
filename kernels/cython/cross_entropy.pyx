# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: binding=True
"""Cross-entropy of logits with its gradient, in one trip through memory; and nll_loss.

The formulas are in kernels/reference/cross_entropy.py. Per row: its state (read _rows.pxi, then
_panels.pxi), from which the loss is a few scalars; then, while the row is in the cache, the
gradient  g * (pull * softmax(x) - q).  q is 0 but for the target class where neither label
smoothing nor a target of probabilities is given, and that one element is written last.

The losses of fixed blocks of rows are summed in double precision and merged in order.
"""

cdef enum:
    CURVED = 0

include "_cross_entropy.pxi"

cdef int compute(
    int dtype, const void* logits, const int64_t* labels, const void* probabilities,
    const void* weight, const void* upstream, void* loss, void* lse, void* grad, Py_ssize_t outer,
    Py_ssize_t n, Py_ssize_t inner, Py_ssize_t logits_step,
    Py_ssize_t probabilities_step, Py_ssize_t grad_step, bint per_row, double denominator,
    int64_t ignore_index, double label_smoothing, double z_loss, int threads
) noexcept nogil:
    """Loss, lse and gradient, whichever are not NULL."""
    cdef Problem p
    p.outer = outer
    p.n = n
    p.inner = inner
    p.x_step = logits_step
    p.t_step = probabilities_step
    p.grad_step = grad_step
    p.labels = labels
    p.weight = weight
    p.upstream = upstream
    p.upstream_per_row = per_row
    p.loss = loss
    p.loss_per_row = per_row and loss != NULL
    p.lse = lse
    p.top = NULL
    p.rest = NULL
    p.dense_q = label_smoothing != 0 or probabilities != NULL
    p.wide_target = dtype == F16 + WIDE_TARGET or dtype == BF16 + WIDE_TARGET
    if p.wide_target:
        dtype -= WIDE_TARGET
    p.ignore_index = ignore_index
    p.denominator = denominator
    p.z_loss = z_loss
    p.hard = 1 - label_smoothing
    p.soft = label_smoothing / n if n else 0
    p.soft_total = 0
    if dtype == F32:
        return typed(&p, <const float*>logits, <const float*>probabilities, <float*>grad, threads)
    if dtype == F64:
        return typed(&p, <const double*>logits, <const double*>probabilities, <double*>grad,
                     threads)
    if dtype == F16:
        return typed(&p, <const f16*>logits, <const f16*>probabilities, <f16*>grad, threads)
    if dtype == BF16:
        return typed(&p, <const bf16*>logits, <const bf16*>probabilities, <bf16*>grad, threads)
    return NO_DTYPE


# ---- for Cython: see cross_entropy.pxd ------------------------------------------------------

cdef int c_cross_entropy(
    int dtype, const void* logits, const int64_t* labels, const void* probabilities,
    const void* weight, void* loss, void* lse, Py_ssize_t outer, Py_ssize_t n, Py_ssize_t inner,
    Py_ssize_t logits_step, Py_ssize_t probabilities_step, bint per_row, double denominator,
    int64_t ignore_index, double label_smoothing, double z_loss, int threads
) noexcept nogil:
    return compute(dtype, logits, labels, probabilities, weight, NULL, loss, lse, NULL, outer,
                   n, inner, logits_step, probabilities_step, 0, per_row, denominator,
                   ignore_index, label_smoothing, z_loss, threads)


cdef int c_cross_entropy_backward(
    int dtype, const void* grad_loss, const void* logits, const int64_t* labels,
    const void* probabilities, const void* weight, void* grad, Py_ssize_t outer, Py_ssize_t n,
    Py_ssize_t inner, Py_ssize_t logits_step, Py_ssize_t probabilities_step,
    Py_ssize_t grad_step, bint per_row, double denominator, int64_t ignore_index,
    double label_smoothing, double z_loss, int threads
) noexcept nogil:
    return compute(dtype, logits, labels, probabilities, weight, grad_loss, NULL, NULL, grad, outer,
                   n, inner, logits_step, probabilities_step, grad_step, per_row,
                   denominator, ignore_index, label_smoothing, z_loss, threads)


cdef int c_cross_entropy_with_grad(
    int dtype, const void* logits, const int64_t* labels, const void* probabilities,
    const void* weight, void* loss, void* grad, Py_ssize_t outer, Py_ssize_t n, Py_ssize_t inner,
    Py_ssize_t logits_step, Py_ssize_t probabilities_step, Py_ssize_t grad_step, bint per_row,
    double denominator, int64_t ignore_index, double label_smoothing, double z_loss, int threads
) noexcept nogil:
    return compute(dtype, logits, labels, probabilities, weight, NULL, loss, NULL, grad, outer,
                   n, inner, logits_step, probabilities_step, grad_step, per_row,
                   denominator, ignore_index, label_smoothing, z_loss, threads)


cdef int c_scan_target(
    int dtype, const int64_t* labels, const void* weight, double* stats, Py_ssize_t rows,
    Py_ssize_t classes, int64_t ignore_index, int threads
) noexcept nogil:
    if dtype == F64:
        return scan(labels, rows, <const double*>weight, classes, ignore_index, stats, threads)
    return scan(labels, rows, <const float*>weight, classes, ignore_index, stats, threads)


cdef int c_nll_loss(
    int dtype, const void* log_probs, const int64_t* labels, const void* weight, void* loss,
    Py_ssize_t outer, Py_ssize_t n, Py_ssize_t inner, Py_ssize_t step, bint per_row,
    double denominator, int64_t ignore_index, int threads
) noexcept nogil:
    cdef Py_ssize_t rows = outer * inner
    if dtype == F32:
        return nll_forward(<const float*>log_probs, labels, rows, inner, step, weight,
                           ignore_index, loss, per_row, denominator, threads)
    if dtype == F64:
        return nll_forward(<const double*>log_probs, labels, rows, inner, step, weight,
                           ignore_index, loss, per_row, denominator, threads)
    if dtype == F16:
        return nll_forward(<const f16*>log_probs, labels, rows, inner, step, weight,
                           ignore_index, loss, per_row, denominator, threads)
    if dtype == BF16:
        return nll_forward(<const bf16*>log_probs, labels, rows, inner, step, weight,
                           ignore_index, loss, per_row, denominator, threads)
    return NO_DTYPE


cdef int c_nll_loss_backward(
    int dtype, const void* grad_loss, const int64_t* labels, const void* weight, void* grad,
    Py_ssize_t outer, Py_ssize_t n, Py_ssize_t inner, Py_ssize_t step, bint per_row,
    double denominator, int64_t ignore_index, int threads
) noexcept nogil:
    if dtype == F32:
        nll_gradient(<float*>grad, labels, outer, n, inner, step, weight, ignore_index, grad_loss,
                     per_row, denominator, threads)
    elif dtype == F64:
        nll_gradient(<double*>grad, labels, outer, n, inner, step, weight, ignore_index,
                     grad_loss, per_row, denominator, threads)
    elif dtype == F16:
        nll_gradient(<f16*>grad, labels, outer, n, inner, step, weight, ignore_index, grad_loss,
                     per_row, denominator, threads)
    elif dtype == BF16:
        nll_gradient(<bf16*>grad, labels, outer, n, inner, step, weight, ignore_index, grad_loss,
                     per_row, denominator, threads)
    else:
        return NO_DTYPE
    return 0


# ---- for Python -----------------------------------------------------------------------------

cdef on_arrays(
    cnp.ndarray logits, cnp.ndarray target, weight, loss, lse, upstream, grad, double denominator,
    int64_t ignore_index, double label_smoothing, double z_loss, int threads
):
    cdef bint hard = cnp.PyArray_NDIM(target) == 2
    cdef bint wide_target = not hard and (
        cnp.PyArray_ITEMSIZE(target) > cnp.PyArray_ITEMSIZE(logits))
    cdef int dtype = dtype_of(logits) + (WIDE_TARGET if wide_target else 0), result
    cdef const int64_t* labels = <const int64_t*>data(target) if hard else NULL
    cdef void* probabilities = NULL if hard else data(target)
    cdef Py_ssize_t x_step = plane_step(logits), grad_step = plane_step(grad)
    cdef Py_ssize_t t_step = 0 if hard else plane_step(target)
    cdef bint rows = per_row(logits, upstream if loss is None else loss)
    cdef void* x = data(logits)
    cdef void* weights = data(weight)
    cdef void* slope = data(upstream)
    cdef void* losses = data(loss)
    cdef void* lses = data(lse)
    cdef void* out = data(grad)
    with nogil:
        result = compute(
            dtype, x, labels, probabilities, weights, slope, losses, lses, out,
            cnp.PyArray_DIM(logits, 0), cnp.PyArray_DIM(logits, 1), cnp.PyArray_DIM(logits, 2),
            x_step, t_step, grad_step, rows, denominator, ignore_index, label_smoothing, z_loss,
            threads)
    done(result)


def cross_entropy(logits, target, weight, loss, lse, *, double denominator, int64_t ignore_index,
                  double label_smoothing, double z_loss, int threads):
    on_arrays(logits, target, weight, loss, lse, None, None, denominator, ignore_index,
              label_smoothing, z_loss, threads)


def cross_entropy_backward(grad_loss, logits, target, weight, grad, *, double denominator,
                           int64_t ignore_index, double label_smoothing, double z_loss,
                           int threads):
    on_arrays(logits, target, weight, None, None, grad_loss, grad, denominator, ignore_index,
              label_smoothing, z_loss, threads)


def cross_entropy_with_grad(logits, target, weight, loss, grad, *, double denominator,
                            int64_t ignore_index, double label_smoothing, double z_loss,
                            int threads):
    on_arrays(logits, target, weight, loss, None, None, grad, denominator, ignore_index,
              label_smoothing, z_loss, threads)


def scan_target(target, weight, stats, *, Py_ssize_t classes, int64_t ignore_index, int threads):
    cdef bint doubles = weight is not None and cnp.PyArray_TYPE(weight) == cnp.NPY_FLOAT64
    cdef const int64_t* labels = <const int64_t*>data(target)
    cdef Py_ssize_t rows = cnp.PyArray_SIZE(target)
    cdef void* weights = data(weight)
    cdef double* found = <double*>data(stats)
    cdef int result
    with nogil:
        result = c_scan_target(F64 if doubles else F32, labels, weights, found, rows, classes,
                               ignore_index, threads)
    done(result)


def nll_loss(cnp.ndarray log_probs, target, weight, loss, *, double denominator,
             int64_t ignore_index, int threads):
    cdef const int64_t* labels = <const int64_t*>data(target)
    cdef void* weights = data(weight)
    cdef void* losses = data(loss)
    cdef Py_ssize_t step = plane_step(log_probs)
    cdef bint rows = per_row(log_probs, loss)
    cdef int dtype = dtype_of(log_probs), result
    with nogil:
        result = c_nll_loss(
            dtype, cnp.PyArray_DATA(log_probs), labels, weights, losses,
            cnp.PyArray_DIM(log_probs, 0), cnp.PyArray_DIM(log_probs, 1),
            cnp.PyArray_DIM(log_probs, 2), step, rows, denominator, ignore_index, threads)
    done(result)


def nll_loss_backward(grad_loss, target, weight, cnp.ndarray grad, *, double denominator,
                      int64_t ignore_index, int threads):
    cdef const int64_t* labels = <const int64_t*>data(target)
    cdef void* weights = data(weight)
    cdef void* slope = data(grad_loss)
    cdef Py_ssize_t step = plane_step(grad)
    cdef bint rows = per_row(grad, grad_loss)
    cdef int dtype = dtype_of(grad)
    with nogil:
        c_nll_loss_backward(
            dtype, slope, labels, weights, cnp.PyArray_DATA(grad), cnp.PyArray_DIM(grad, 0),
            cnp.PyArray_DIM(grad, 1), cnp.PyArray_DIM(grad, 2), step, rows, denominator,
            ignore_index, threads)
