# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: binding=True
"""Cross-entropy of logits with its gradient, in a single pass over memory; and nll_loss.

The formulas are in kernels/reference/cross_entropy.py. Per row: its state (read _rows.pxi, then
_panels.pxi), from which the loss is a few scalars; then, while the row is in the cache, the
gradient  grad_scale * (p_factor * softmax(x) - q).  q, the target probabilities, is 0 but for the
target class where neither label smoothing nor a target of probabilities is given, and that one
element is written last.

The losses of fixed blocks of rows are summed in double precision and merged in order.
"""

cdef enum:
    TRANSFORMED = 0

cdef enum:  # the ops
    LOSS
    SCAN
    NLL
    NLL_BACKWARD

ctypedef ClassLoss Arguments

include "_loss.pxi"
include "_labels.pxi"


cdef int typed(int op, const ClassLoss* a, const real* like, int threads) noexcept nogil:
    cdef Problem p
    if op == SCAN:
        if real is double:
            return scan(a, <const double*>a.weight, threads)
        else:
            return scan(a, <const float*>a.weight, threads)
    if op == NLL:
        return nll_forward(a, <const real*>a.x, threads)
    if op == NLL_BACKWARD:
        return nll_backward(a, <real*>a.grad, threads)
    p = problem_of(a)
    return compute(&p, <const real*>a.x, <const real*>a.probabilities, <real*>a.grad, threads)


# ---- for Cython: see cross_entropy.pxd ------------------------------------------------------

cdef int from_cython(
    int op, int part, int dtype, const ClassLoss* a, int threads
) noexcept nogil:
    cdef ClassLoss b = with_defaults(a, part)
    return by_dtype(op, dtype, &b, threads)


cdef int c_cross_entropy(int dtype, const ClassLoss* a, int threads) noexcept nogil:
    return from_cython(LOSS, FORWARD, dtype, a, threads)


cdef int c_cross_entropy_backward(int dtype, const ClassLoss* a, int threads) noexcept nogil:
    return from_cython(LOSS, BACKWARD, dtype, a, threads)


cdef int c_cross_entropy_with_grad(int dtype, const ClassLoss* a, int threads) noexcept nogil:
    return from_cython(LOSS, WITH_GRAD, dtype, a, threads)


cdef int c_scan_target(int dtype, const ClassLoss* a, int threads) noexcept nogil:
    return from_cython(SCAN, FORWARD, dtype, a, threads)


cdef int c_nll_loss(int dtype, const ClassLoss* a, int threads) noexcept nogil:
    return from_cython(NLL, FORWARD, dtype, a, threads)


cdef int c_nll_loss_backward(int dtype, const ClassLoss* a, int threads) noexcept nogil:
    return from_cython(NLL_BACKWARD, BACKWARD, dtype, a, threads)


# ---- for Python -----------------------------------------------------------------------------

cdef on_arrays(
    grad_loss, logits, target, weight, loss, lse, grad, double denominator, int64_t ignore_index,
    double label_smoothing, double z_loss, int threads
):
    cdef ClassLoss a = class_loss(
        logits, target, weight, grad_loss, loss, grad, denominator, ignore_index)
    a.lse = data(lse)
    a.label_smoothing = label_smoothing
    a.z_loss = z_loss
    from_python(LOSS, dtype_of(logits), &a, threads)


def cross_entropy(logits, target, weight, loss, lse, *, double denominator, int64_t ignore_index,
                  double label_smoothing, double z_loss, int threads):
    on_arrays(None, logits, target, weight, loss, lse, None, denominator, ignore_index,
              label_smoothing, z_loss, threads)


def cross_entropy_backward(grad_loss, logits, target, weight, grad, *, double denominator,
                           int64_t ignore_index, double label_smoothing, double z_loss,
                           int threads):
    on_arrays(grad_loss, logits, target, weight, None, None, grad, denominator, ignore_index,
              label_smoothing, z_loss, threads)


def cross_entropy_with_grad(logits, target, weight, loss, grad, *, double denominator,
                            int64_t ignore_index, double label_smoothing, double z_loss,
                            int threads):
    on_arrays(None, logits, target, weight, loss, None, grad, denominator, ignore_index,
              label_smoothing, z_loss, threads)


def scan_target(target, weight, stats, *, Py_ssize_t classes, int64_t ignore_index, int threads):
    cdef bint doubles = weight is not None and cnp.PyArray_TYPE(weight) == cnp.NPY_FLOAT64
    cdef ClassLoss a
    a.labels = <const int64_t*>data(target)
    a.weight = data(weight)
    a.stats = <double*>data(stats)
    a.outer = size(target)
    a.n = classes
    a.inner = 1
    a.has_ignore_index = True
    a.ignore_index = ignore_index
    from_python(SCAN, F64 if doubles else F32, &a, threads)


def nll_loss(log_probs, target, weight, loss, *, double denominator, int64_t ignore_index,
             int threads):
    cdef ClassLoss a = class_loss(
        log_probs, target, weight, None, loss, None, denominator, ignore_index)
    from_python(NLL, dtype_of(log_probs), &a, threads)


def nll_loss_backward(grad_loss, target, weight, grad, *, double denominator,
                      int64_t ignore_index, int threads):
    cdef ClassLoss a = class_loss(
        grad, target, weight, grad_loss, None, grad, denominator, ignore_index)
    from_python(NLL_BACKWARD, dtype_of(grad), &a, threads)
