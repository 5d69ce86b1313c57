"""Cross-entropy of rows whose classes are contiguous; see _rows.pxi."""

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


cdef double weight_sum(const real* like, const void* weight, Py_ssize_t n) noexcept nogil:
    """In blocks, so that rounding errors stay small; as 8 sums, which the compiler vectorizes."""
    cdef double total = 0
    cdef double[8] sums
    cdef Py_ssize_t block, k
    for block in range((n + BLOCK - 1) // BLOCK):
        memset(sums, 0, sizeof(sums))
        for k in range(block * BLOCK, min(n, (block + 1) * BLOCK)):
            sums[k % 8] += get_wide(like, weight, k)
        for k in range(8):
            total += sums[k]
    return total


# ---- rows -----------------------------------------------------------------------------------

cdef struct Cost:
    double loss  # sum of q * (top - x)
    double total  # sum of q


cdef Cost row_cost(const Problem* p, const real* x, const real* t, double row_top) noexcept nogil:
    """What label smoothing and a target of probabilities cost; a second pass over a cached row."""
    cdef Cost cost
    cdef Py_ssize_t w = lanes(x), k, left
    cdef vector[real] zero = splat(x, 0.0), top = splat(x, row_top), soft = splat(x, p.soft)
    cdef vector[real] weight, part, q, loss = zero, total = zero, loss_error = zero, error = zero
    for k in range((p.n + w - 1) // w):
        left = min(w, p.n - k * w)
        weight = row_weight(p, x, k * w, left)
        part = target_part(p, x, t, k * w, left, zero)
        q = (soft + part) * weight
        # Beyond the end x counts as the maximum, which costs nothing.
        add_fast(&loss, &loss_error,
                 where_equal(q, zero, zero, q * (top - load_n(x + k * w, left, row_top))))
        if t != NULL:
            add_fast(&total, &error, part * weight)
    cost.loss = sum_lanes(x, loss, loss_error)
    cost.total = p.soft_total + sum_lanes(x, total, error)
    return cost


cdef double row_mean_gap(
    const Problem* p, const real* x, const void* exps, State state
) noexcept nogil:
    """sum(p * (top - x)): the entropy without the log-sum. All terms are at least 0."""
    cdef Py_ssize_t w = lanes(x), k, left
    cdef Reference ref = reference(x, state.top)
    cdef vector[real] shift = splat(x, ref.shift), power = splat(x, ref.power)
    cdef vector[real] zero = splat(x, 0.0), top = splat(x, state.top), v, e
    cdef vector[real] total = zero, error = zero
    for k in range((p.n + w - 1) // w):
        left = min(w, p.n - k * w)
        v = load_n(x + k * w, left, state.top)  # the maximum has no gap
        e = load_wide(x, exps, k * w, left) if exps != NULL else exp_from(v, shift, power)
        add_fast(&total, &error, where_equal(e, zero, zero, e * (top - v)))  # at -inf, too
    return sum_lanes(x, total, error) * ref.ratio / (1 + state.rest)


cdef inline void row_gradient(
    const Problem* p, const real* x, const void* exps, const real* t, real* grad,
    Py_ssize_t first, Py_ssize_t n, double row_top, double slope, double upstream,
    double gap_slope
) noexcept nogil:
    """grad = (slope - gap_slope * (top - x)) * exp(x - top) - upstream * q, for the n classes from
    `first`; `gap_slope` is for a CURVED loss with entropy.

    `exps` holds the row's exponentials, or is NULL.
    """
    cdef Py_ssize_t w = lanes(x), head, k, at, left, last = first + n
    cdef Reference ref = reference(x, row_top)
    cdef vector[real] shift = splat(x, ref.shift), power = splat(x, ref.power)
    cdef vector[real] a = splat(x, slope * ref.ratio), minus_g = splat(x, -upstream)
    cdef vector[real] soft = splat(x, p.soft), v, e, zero = splat(x, 0.0), top = splat(x, row_top)
    cdef vector[real] b = splat(x, gap_slope * ref.ratio)
    head = first + stream_head(grad + first, n, p.streaming)
    for k in range(-1, (last - head + w - 1) // w):
        # First up to the alignment, then whole vectors, then the tail.
        at = first if k < 0 else head + k * w
        left = head - first if k < 0 else min(w, last - at)
        if left == 0:
            continue
        if exps != NULL:
            e = load_wide(x, exps, at, left)
        else:
            e = exp_from(load_n(x + at, left, 0.0), shift, power)
        v = a * e
        if CURVED and p.curve.beta != 0:
            v = where_equal(e, zero, v, v - b * (top - load_n(x + at, left, 0.0)) * e)
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
    cdef double mean_gap = 0, gap_slope = 0
    cdef char* memory = thread_memory(OF_ROW, BLOCK * 8)
    cdef void* exps = memory if grad != NULL and p.n <= BLOCK and p.given_lse == NULL else NULL
    cdef Cost cost
    cdef State state
    cdef Bent bent
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
    if CURVED and label >= 0:
        bent = bend(&p.curve, state.top, get(x + label), state.rest)
        loss = times(weight, bent.loss, log_sum - log_sum)
        weight = cost.total = times(weight, bent.slope, log_sum - log_sum)
    if CURVED and p.curve.beta != 0:
        mean_gap = row_mean_gap(p, x, exps, state)
        loss = loss - p.curve.beta * (log_sum + mean_gap)
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
    if CURVED and p.curve.beta != 0:  # log p + entropy = mean_gap - gap
        gap_slope = upstream * p.curve.beta
        if label >= 0 and bent.p != 0:
            below += gap_slope * bent.p * (mean_gap - gap)
        pull += p.curve.beta * mean_gap
        gap_slope = gap_slope * share
    if crew == 1:
        row_gradient(p, x, exps, t, grad, 0, p.n, state.top, upstream * pull * share, upstream,
                     gap_slope)
    else:
        for k in prange(blocks, num_threads=crew, schedule="static"):
            row_gradient(p, x, exps, t, grad, k * BLOCK, min(BLOCK, p.n - k * BLOCK), state.top,
                         upstream * pull * share, upstream, gap_slope)
            if p.streaming:
                stream_end()
    if label >= 0:
        put(grad + label, below)
    return loss
