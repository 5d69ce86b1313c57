# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: binding=True
"""Cross-entropy of logits with its gradient, in one trip through memory; and nll_loss.

The formulas are in kernels/reference/cross_entropy.py. Per row: its state (read _rows.pxi, then
_panels.pxi), from which the loss is a few scalars; then, while the row is in the cache, the
gradient  g * (pull * softmax(x) - q).  q is 0 but for the target class where neither label
smoothing nor a target of probabilities is given, and that one element is written last.

The losses of fixed blocks of rows are summed in double precision and merged in order.
"""

from libc.math cimport expm1

include "_simd.pxi"
include "_arrays.pxi"
include "_threads.pxi"
include "_rows.pxi"
include "_panels.pxi"
include "_labels.pxi"

cdef struct Problem:
    Py_ssize_t outer, n, inner
    Py_ssize_t x_step, t_step, grad_step  # from one plane to the next, in elements
    const int64_t* labels  # (outer, inner), or NULL for a target of probabilities
    const void* weight  # (n,) of the compute type, or NULL for ones
    const void* given_lse  # (outer, inner), or NULL
    const void* upstream  # (outer, inner), or (1, 1), or NULL for 1
    void* loss  # (outer, inner) or NULL
    void* lse  # (outer, inner) or NULL
    bint upstream_per_row, loss_per_row, dense_q, streaming
    int64_t ignore_index
    double denominator, z_loss
    double hard  # 1 - label_smoothing: of the target
    double soft  # label_smoothing / n: of every class
    double soft_total  # soft * (sum of the weights)


# ---- q, the wanted probabilities, but for the part of a class index ---------------------------

cdef inline vector[real] target_part(
    const Problem* p, const real* x, const real* t, Py_ssize_t at, Py_ssize_t n,
    vector[real] soft
) noexcept nogil:
    """soft + hard * t."""
    return mul_add(splat(x, p.hard), load_n(t + at, n, 0.0), soft) if t != NULL else soft


cdef inline vector[real] row_weight(
    const Problem* p, const real* x, Py_ssize_t k, Py_ssize_t n
) noexcept nogil:
    """The weights of n classes from k, side by side."""
    return load_wide(x, p.weight, k, n) if p.weight != NULL else splat(x, 1.0)


cdef inline vector[real] class_weight(
    const Problem* p, const real* x, Py_ssize_t k
) noexcept nogil:
    """The weight of class k in every lane."""
    return splat(x, get_wide(x, p.weight, k) if p.weight != NULL else 1.0)


# ---- rows -----------------------------------------------------------------------------------

cdef struct Cost:
    double loss  # sum of q * (top - x)
    double total  # sum of q


cdef Cost row_cost(const Problem* p, const real* x, const real* t, double row_top) noexcept nogil:
    """What label smoothing and a target of probabilities cost; a second pass over a cached row."""
    cdef Cost cost
    cdef Py_ssize_t w = lanes(x), block, k, at, left
    cdef vector[real] zero = splat(x, 0.0), top = splat(x, row_top), soft = splat(x, p.soft)
    cdef vector[real] weight, part, q, loss, total
    cost.loss = 0
    cost.total = p.soft_total
    for block in range((p.n + BLOCK - 1) // BLOCK):
        loss = zero
        total = zero
        for k in range((min(BLOCK, p.n - block * BLOCK) + w - 1) // w):
            at = block * BLOCK + k * w
            left = min(w, p.n - at)
            weight = row_weight(p, x, at, left)
            part = target_part(p, x, t, at, left, zero)
            total = total + part * weight
            q = (soft + part) * weight
            # Beyond the end x counts as the maximum, which costs nothing.
            loss = loss + where_equal(q, zero, zero, q * (top - load_n(x + at, left, row_top)))
        cost.loss += reduce_add(loss)
        cost.total += reduce_add(total)
    return cost


cdef inline void row_gradient(
    const Problem* p, const real* x, const void* exps, const real* t, real* grad,
    Py_ssize_t first, Py_ssize_t n, double row_top, double slope, double upstream
) noexcept nogil:
    """grad = slope * exp(x - top) - upstream * q for the n classes from `first`.

    `exps` holds the row's exponentials, or is NULL.
    """
    cdef Py_ssize_t w = lanes(x), head, k, at, left, last = first + n
    cdef Reference ref = reference(x, row_top)
    cdef vector[real] shift = splat(x, ref.shift), power = splat(x, ref.power)
    cdef vector[real] a = splat(x, slope * ref.ratio), minus_g = splat(x, -upstream)
    cdef vector[real] soft = splat(x, p.soft), v
    head = first + stream_head(grad + first, n, p.streaming)
    for k in range(-1, (last - head + w - 1) // w):
        # First up to the alignment, then whole vectors, then the tail.
        at = first if k < 0 else head + k * w
        left = head - first if k < 0 else min(w, last - at)
        if left == 0:
            continue
        if exps != NULL:
            v = a * load_wide(x, exps, at, left)
        else:
            v = a * exp_from(load_n(x + at, left, 0.0), shift, power)
        if p.dense_q:
            v = mul_add(minus_g, target_part(p, x, t, at, left, soft) * row_weight(p, x, at, left),
                        v)
        if p.streaming and left == w and k >= 0:
            stream(grad + at, v)
        else:
            store_n(grad + at, v, left)


cdef double row(
    const Problem* p, const real* x, const real* t, real* grad, Py_ssize_t r, int crew
) noexcept nogil:
    """Loss of row r, and its gradient where `grad` is not NULL."""
    cdef Py_ssize_t blocks = (p.n + BLOCK - 1) // BLOCK, k, label = -1
    cdef double weight = 0, gap = 0, loss, lse, log_sum, pull, upstream, share, below = 0
    cdef char memory[BLOCK * 8]
    cdef void* exps = memory if grad != NULL and p.n <= BLOCK and p.given_lse == NULL else NULL
    cdef Cost cost
    cdef State state
    if p.labels != NULL:
        if p.labels[r] == p.ignore_index:
            if p.loss_per_row:
                put_wide(x, p.loss, r, 0 / p.denominator)  # NaN for the mean over no row
            if p.lse != NULL:
                put_wide(x, p.lse, r, 0)
            if grad != NULL:
                memset(grad, 0, p.n * sizeof(real))
            return 0
        label = p.labels[r]
        weight = p.hard * (get_wide(x, p.weight, label) if p.weight != NULL else 1)
    if p.given_lse != NULL:
        state.top = get_wide(x, p.given_lse, r)
        state.rest = 0
    else:
        state = row_state(x, p.n, exps, crew)
    log_sum = log_total(state)
    lse = state.top + log_sum
    cost.loss = 0
    cost.total = 0
    if p.dense_q:
        cost = row_cost(p, x, t, state.top)
    if label >= 0:
        gap = state.top - get(x + label)
        cost.total += weight
        if weight != 0:  # a class of weight 0 costs nothing, even at -inf
            cost.loss += weight * gap
    loss = cost.loss + cost.total * log_sum + p.z_loss * lse * lse
    if p.loss_per_row:
        put_wide(x, p.loss, r, loss / p.denominator)
    if p.lse != NULL:
        put_wide(x, p.lse, r, lse)
    if grad == NULL:
        return loss

    upstream = get_wide(x, p.upstream, r if p.upstream_per_row else 0) if p.upstream != NULL else 1
    upstream = upstream / p.denominator
    pull = cost.total + 2 * p.z_loss * lse
    share = NAN if isinf(state.top) else 1 / (1 + state.rest)
    if label >= 0:  # p - 1 by expm1: nothing cancels where p is nearly 1
        below = expm1(-gap - log_sum)
        weight = weight + p.soft * (get_wide(x, p.weight, label) if p.weight != NULL else 1)
        below = upstream * (weight * below + (pull - weight) * (1 + below))
    if crew == 1:
        row_gradient(p, x, exps, t, grad, 0, p.n, state.top, upstream * pull * share, upstream)
    else:
        for k in prange(blocks, num_threads=crew, schedule="static"):
            row_gradient(p, x, exps, t, grad, k * BLOCK, min(BLOCK, p.n - k * BLOCK), state.top,
                         upstream * pull * share, upstream)
            if p.streaming:
                stream_end()
    if label >= 0:
        put(grad + label, below)
    return loss


include "_cross_entropy_panels.pxi"


# ---- loops over threads ---------------------------------------------------------------------

cdef double turn(
    const Problem* p, const real* x, const real* t, real* grad, Py_ssize_t task
) noexcept nogil:
    """One thread's turn: a panel, or some rows. The sum of its losses."""
    cdef Py_ssize_t panels = (p.inner + PANEL - 1) // PANEL, k, at
    cdef Py_ssize_t rows = tile_rows(p.n, lanes(x)), chunk = rows_per_task(p.n, lanes(x))
    cdef Py_ssize_t last = min(p.outer, (task + 1) * chunk)
    cdef double loss = 0
    if p.inner > 1:
        k = task // panels
        at = task % panels * PANEL
        return panel(p, x + k * p.x_step + at, t + k * p.t_step + at if t != NULL else NULL,
                     grad + k * p.grad_step + at if grad != NULL else NULL, p.inner,
                     min(PANEL, p.inner - at), False, k * p.inner + at)
    if p.n <= SHORT:
        for k in range((last - task * chunk + rows - 1) // rows):
            at = task * chunk + k * rows
            loss += tile(p, x, t, grad, min(rows, last - at), at)
        return loss
    for k in range(task * chunk, last):
        loss += whole_row(p, x, t, grad, k, 1)
    if p.streaming:
        stream_end()
    return loss


cdef inline double whole_row(
    const Problem* p, const real* x, const real* t, real* grad, Py_ssize_t r, int crew
) noexcept nogil:
    return row(p, x + r * p.x_step, t + r * p.t_step if t != NULL else NULL,
               grad + r * p.grad_step if grad != NULL else NULL, r, crew)


cdef double run(
    const Problem* p, const real* x, const real* t, real* grad, double* sums, int crew
) noexcept nogil:
    """The sum of the losses; `sums` has room for one number per task, and one more."""
    cdef Py_ssize_t count = tasks(p.outer, p.n, p.inner, lanes(x)), task, chunk, k
    cdef double loss = 0
    if crew == 1:  # a parallel region of one thread costs as much as a row of 1000
        for task in range(count):
            sums[task] = turn(p, x, t, grad, task)
    elif few_long_rows(p.outer, p.n, p.inner, crew):
        chunk = rows_per_task(p.n, lanes(x))
        for task in range(count):  # in the same groups as elsewhere: the same bits
            sums[task] = 0
            for k in range(task * chunk, min(p.outer, (task + 1) * chunk)):
                sums[task] += whole_row(p, x, t, grad, k, crew)
    else:
        for task in prange(count, num_threads=crew, schedule="dynamic"):
            sums[task] = turn(p, x, t, grad, task)
    for task in range(count):
        loss += sums[task]
    return loss


cdef typed(
    Problem* p, const real* like, cnp.ndarray logits, const void* target, void* grad, int threads
):
    cdef const real* x = <const real*>cnp.PyArray_DATA(logits)
    cdef double loss
    cdef Py_ssize_t elements = p.outer * p.n * p.inner
    cdef double* sums = room(tasks(p.outer, p.n, p.inner, lanes(x)))
    p.streaming = (grad != NULL and grad != <const void*>x
                   and elements * <Py_ssize_t>sizeof(real) > STREAM_ABOVE)
    with nogil:
        loss = run(p, x, <const real*>target, <real*>grad, sums, team(threads, elements))
    free(sums)
    if p.loss != NULL and not p.loss_per_row:
        put_wide(x, p.loss, 0, loss / p.denominator)


cdef compute(
    cnp.ndarray logits, cnp.ndarray target, weight, loss, lse, given_lse, upstream, grad,
    double denominator, int64_t ignore_index, double label_smoothing, double z_loss, int threads
):
    """Loss, lse and gradient, whichever are not None."""
    cdef Problem p
    cdef int dtype = cnp.PyArray_TYPE(logits)
    cdef void* probabilities = NULL
    p.outer = cnp.PyArray_DIM(logits, 0)
    p.n = cnp.PyArray_DIM(logits, 1)
    p.inner = cnp.PyArray_DIM(logits, 2)
    p.x_step = plane_step(logits)
    p.t_step = 0
    p.labels = NULL
    if cnp.PyArray_NDIM(target) == 2:
        p.labels = <const int64_t*>cnp.PyArray_DATA(target)
    else:
        probabilities = cnp.PyArray_DATA(target)
        p.t_step = plane_step(target)
    p.grad_step = 0 if grad is None else plane_step(grad)
    p.weight = data(weight)
    p.given_lse = data(given_lse)
    p.upstream = data(upstream)
    p.upstream_per_row = upstream is not None and cnp.PyArray_SIZE(upstream) > 1
    p.loss = data(loss)
    p.loss_per_row = loss is not None and cnp.PyArray_DIM(loss, 0) == p.outer and (
        cnp.PyArray_DIM(loss, 1) == p.inner)
    p.lse = data(lse)
    p.dense_q = label_smoothing != 0 or probabilities != NULL
    p.ignore_index = ignore_index
    p.denominator = denominator
    p.z_loss = z_loss
    p.hard = 1 - label_smoothing
    p.soft = label_smoothing / p.n if p.n else 0
    p.soft_total = 0
    if label_smoothing != 0:
        p.soft_total = p.soft * (p.n if weight is None else float(weight.sum(dtype="f8")))
    if dtype == cnp.NPY_FLOAT32:
        typed(&p, <const float*>NULL, logits, probabilities, data(grad), threads)
    elif dtype == cnp.NPY_FLOAT64:
        typed(&p, <const double*>NULL, logits, probabilities, data(grad), threads)
    elif dtype == cnp.NPY_FLOAT16:
        typed(&p, <const f16*>NULL, logits, probabilities, data(grad), threads)
    elif dtype == cnp.NPY_UINT16:
        typed(&p, <const bf16*>NULL, logits, probabilities, data(grad), threads)
    else:
        raise TypeError(f"no kernel for dtype {logits.dtype}")


def cross_entropy(logits, target, weight, loss, lse, *, double denominator, int64_t ignore_index,
                  double label_smoothing, double z_loss, int threads):
    compute(logits, target, weight, loss, lse, None, None, None, denominator, ignore_index,
            label_smoothing, z_loss, threads)


def cross_entropy_backward(grad_loss, logits, target, weight, lse, grad, *, double denominator,
                           int64_t ignore_index, double label_smoothing, double z_loss,
                           int threads):
    compute(logits, target, weight, None, None, lse, grad_loss, grad, denominator, ignore_index,
            label_smoothing, z_loss, threads)


def cross_entropy_with_grad(logits, target, weight, loss, grad, *, double denominator,
                            int64_t ignore_index, double label_smoothing, double z_loss,
                            int threads):
    compute(logits, target, weight, loss, None, None, None, grad, denominator, ignore_index,
            label_smoothing, z_loss, threads)


# ---- labels ---------------------------------------------------------------------------------

def scan_target(target, weight, stats, *, Py_ssize_t classes, int64_t ignore_index, int threads):
    cdef Py_ssize_t rows = cnp.PyArray_SIZE(target)
    cdef double* sums = room(2 * label_blocks(rows))
    cdef const int64_t* labels = <const int64_t*>data(target)
    cdef double* result = <double*>data(stats)
    cdef void* weights = data(weight)
    cdef bint doubles = weight is not None and cnp.PyArray_TYPE(weight) == cnp.NPY_FLOAT64
    with nogil:
        if doubles:
            scan(labels, rows, <const double*>weights, classes, ignore_index, result, sums, threads)
        else:
            scan(labels, rows, <const float*>weights, classes, ignore_index, result, sums, threads)
    free(sums)


def nll_loss(cnp.ndarray log_probs, target, weight, loss, *, double denominator,
             int64_t ignore_index, int threads):
    cdef Py_ssize_t rows = cnp.PyArray_SIZE(target)
    cdef const int64_t* labels = <const int64_t*>data(target)
    cdef bint per_row = (<object>loss).shape == target.shape
    cdef void* each = data(loss) if per_row else NULL
    cdef int dtype = cnp.PyArray_TYPE(log_probs)
    cdef double total
    if dtype == cnp.NPY_FLOAT32:
        total = nll_forward(<const float*>NULL, log_probs, labels, rows, data(weight),
                            ignore_index, each, denominator, threads)
    elif dtype == cnp.NPY_FLOAT64:
        total = nll_forward(<const double*>NULL, log_probs, labels, rows, data(weight),
                            ignore_index, each, denominator, threads)
    elif dtype == cnp.NPY_FLOAT16:
        total = nll_forward(<const f16*>NULL, log_probs, labels, rows, data(weight),
                            ignore_index, each, denominator, threads)
    elif dtype == cnp.NPY_UINT16:
        total = nll_forward(<const bf16*>NULL, log_probs, labels, rows, data(weight),
                            ignore_index, each, denominator, threads)
    else:
        raise TypeError(f"no kernel for dtype {log_probs.dtype}")
    if not per_row:
        loss[0, 0] = total / denominator


def nll_loss_backward(grad_loss, target, weight, cnp.ndarray grad, *, double denominator,
                      int64_t ignore_index, int threads):
    cdef const int64_t* labels = <const int64_t*>data(target)
    cdef bint per_row = cnp.PyArray_SIZE(grad_loss) > 1
    cdef int dtype = cnp.PyArray_TYPE(grad)
    if dtype == cnp.NPY_FLOAT32:
        nll_gradient(<const float*>NULL, grad, labels, data(weight), ignore_index,
                     data(grad_loss), per_row, denominator, threads)
    elif dtype == cnp.NPY_FLOAT64:
        nll_gradient(<const double*>NULL, grad, labels, data(weight), ignore_index,
                     data(grad_loss), per_row, denominator, threads)
    elif dtype == cnp.NPY_FLOAT16:
        nll_gradient(<const f16*>NULL, grad, labels, data(weight), ignore_index,
                     data(grad_loss), per_row, denominator, threads)
    elif dtype == cnp.NPY_UINT16:
        nll_gradient(<const bf16*>NULL, grad, labels, data(weight), ignore_index,
                     data(grad_loss), per_row, denominator, threads)
    else:
        raise TypeError(f"no kernel for dtype {grad.dtype}")
