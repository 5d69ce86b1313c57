"""Losses over classes: a ClassLoss from its defaults or from arrays, and what loops make of it."""

from libc.stdint cimport INT64_MIN, int64_t
from libc.string cimport memset

ctypedef fused wide:  # the compute types
    double
    float

cdef struct LossTransform:  # see _loss_transform.pxi
    double alpha, gamma, q, epsilon, beta

cdef struct Problem:
    Py_ssize_t outer, n, inner
    Py_ssize_t x_step, t_step, grad_step  # from one plane to the next, in elements
    const int64_t* labels  # (outer, inner), or NULL for a target of probabilities
    const void* weight  # (n,) of the compute type, or NULL for ones
    const void* grad_loss  # (outer, inner), or (1, 1), or NULL for 1
    void* loss  # (outer, inner), or (1, 1), or NULL
    void* lse  # (outer, inner) or NULL; NaN where a row is ignored
    bint grad_loss_per_row, loss_per_row
    bint dense_target  # every class has a target probability, not only that of the label
    bint wide_target  # probabilities of the compute type, beside `x` of 16 bits
    bint streaming
    int64_t ignore_index
    double denominator, z_loss
    double target_scale  # 1 - label_smoothing: of the target
    double uniform_share  # label_smoothing / n: of every class
    # In _loss.pxi:
    double uniform_total  # uniform_share * (sum of the weights)
    void* row_max  # (outer, inner) or NULL: the state of each row, as _rows.pxi has it
    void* sumexp_m1  # the same
    LossTransform transform  # only where TRANSFORMED
    # In categorical_cross_entropy.pyx:
    double low, high  # the bounds of the clip, in the compute type
    double low_loss, high_loss  # -log of them


cdef inline double* allocate_sums(Py_ssize_t numbers) noexcept nogil:
    """Memory for partial sums, or NULL."""
    return <double*>malloc((numbers + 1) * sizeof(double))


cdef inline Problem problem_of(const ClassLoss* a) noexcept nogil:
    cdef Problem p
    memset(&p, 0, sizeof(p))
    p.outer = a.outer
    p.n = a.n
    p.inner = a.inner
    p.x_step = a.x_step
    p.t_step = a.probabilities_step
    p.grad_step = a.grad_step
    p.labels = a.labels
    p.weight = a.weight
    p.grad_loss = a.grad_loss
    p.grad_loss_per_row = a.per_row
    p.loss = a.loss
    p.loss_per_row = a.per_row and a.loss != NULL
    p.lse = a.lse
    p.dense_target = a.label_smoothing != 0 or a.probabilities != NULL
    p.wide_target = a.wide_probabilities
    p.ignore_index = a.ignore_index
    p.denominator = a.denominator
    p.z_loss = a.z_loss
    p.target_scale = 1 - a.label_smoothing
    p.uniform_share = a.label_smoothing / a.n if a.n else 0
    return p


cdef inline ClassLoss with_defaults(const ClassLoss* a, int part) noexcept nogil:
    """Filled in, and without what is no argument of FORWARD, BACKWARD or WITH_GRAD."""
    cdef ClassLoss b = a[0]
    cdef Py_ssize_t plane
    b.inner = a.inner or 1
    plane = a.n * b.inner
    b.x_step = a.x_step or plane
    b.probabilities_step = a.probabilities_step or plane
    b.grad_step = a.grad_step or plane
    b.denominator = a.denominator or 1
    if a.labels != NULL:
        b.probabilities = NULL
    if not a.has_ignore_index:
        b.ignore_index = INT64_MIN
    if part == BACKWARD:
        b.loss = NULL
    else:
        b.grad_loss = NULL
    if part == FORWARD:
        b.grad = NULL
    else:
        b.lse = NULL
    return b


cdef ClassLoss class_loss(
    cnp.ndarray x, cnp.ndarray target, weight, grad_loss, loss, grad, double denominator,
    int64_t ignore_index
):
    """Of arrays in canonical form. `x` may be `grad`, for its shape."""
    cdef ClassLoss a
    cdef cnp.ndarray losses = loss if grad_loss is None else grad_loss
    memset(&a, 0, sizeof(a))
    a.x = data(x)
    a.outer = cnp.PyArray_DIM(x, 0)
    a.n = cnp.PyArray_DIM(x, 1)
    a.inner = cnp.PyArray_DIM(x, 2)
    a.x_step = plane_step(x)
    if target is None:
        pass
    elif cnp.PyArray_NDIM(target) == 2:
        a.labels = <const int64_t*>data(target)
    else:
        a.probabilities = data(target)
        a.probabilities_step = plane_step(target)
        a.wide_probabilities = cnp.PyArray_ITEMSIZE(target) > cnp.PyArray_ITEMSIZE(x)
    a.weight = data(weight)
    a.grad_loss = data(grad_loss)
    a.loss = data(loss)
    a.grad = data(grad)
    a.grad_step = plane_step(grad)
    a.per_row = losses is not None and (cnp.PyArray_DIM(losses, 0) == a.outer
                                        and cnp.PyArray_DIM(losses, 1) == a.inner)
    a.has_ignore_index = True
    a.ignore_index = ignore_index
    a.denominator = denominator
    return a
