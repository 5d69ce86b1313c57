"""Cross-entropy of rows whose classes are contiguous; see _rows.pxi."""

# ---- q, the target probabilities, without that of a label -----------------------------------

cdef inline vector[real] target_part(
    const Problem* p, const real* x, const real* t, Py_ssize_t at, Py_ssize_t n,
    vector[real] uniform_share
) noexcept nogil:
    """uniform_share + target_scale * t."""
    if t == NULL:
        return uniform_share
    return mul_add(splat(x, p.target_scale), load_target(t, at, n, p.wide_target), uniform_share)


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


cdef double uniform_total(const Problem* p, const real* like) noexcept nogil:
    """uniform_share times the sum of the weights. In blocks, so that rounding errors stay small; as
    8 sums, which the compiler vectorizes."""
    cdef double total = 0
    cdef double[8] sums
    cdef Py_ssize_t block, k
    if p.uniform_share == 0:
        return 0
    if p.weight == NULL:
        return p.uniform_share * p.n
    for block in range((p.n + BLOCK - 1) // BLOCK):
        memset(sums, 0, sizeof(sums))
        for k in range(block * BLOCK, min(p.n, (block + 1) * BLOCK)):
            sums[k % 8] += get_wide(like, p.weight, k)
        for k in range(8):
            total += sums[k]
    return p.uniform_share * total


# ---- rows -----------------------------------------------------------------------------------

cdef enum:
    SEARCHED = 8  # vectors in which a maximum is looked for at once


cdef struct DenseSums:
    double loss  # sum of q * (row_max - x)
    double total  # sum of q


cdef DenseSums dense_sums(
    const Problem* p, const real* x, const real* t, double row_max
) noexcept nogil:
    """For label smoothing and a target of probabilities; a second pass over a cached row."""
    cdef DenseSums sums
    cdef Py_ssize_t w = lanes(x), k, left
    cdef vector[real] zero = splat(x, 0.0), maximum = splat(x, row_max)
    cdef vector[real] uniform_share = splat(x, p.uniform_share)
    cdef vector[real] weight, part, q, loss = zero, total = zero, loss_error = zero, error = zero
    for k in range((p.n + w - 1) // w):
        left = min(w, p.n - k * w)
        weight = row_weight(p, x, k * w, left)
        part = target_part(p, x, t, k * w, left, zero)
        q = (uniform_share + part) * weight
        # Beyond the end x counts as the maximum, which adds nothing.
        add_fast(&loss, &loss_error,
                 where_equal(q, zero, zero, q * (maximum - load_n(x + k * w, left, row_max))))
        if t != NULL:
            add_fast(&total, &error, part * weight)
    sums.loss = sum_lanes(x, loss, loss_error)
    sums.total = p.uniform_total + sum_lanes(x, total, error)
    return sums


cdef double row_mean_gap(
    const Problem* p, const real* x, const void* exps, State state
) noexcept nogil:
    """sum(p * (row_max - x)): the entropy without the log-sum. All terms are at least 0."""
    cdef Py_ssize_t w = lanes(x), k, left
    cdef Reference ref = reference(x, state.row_max)
    cdef vector[real] shift = splat(x, ref.shift), power = splat(x, ref.power)
    cdef vector[real] zero = splat(x, 0.0), maximum = splat(x, state.row_max), v, e
    cdef vector[real] total = zero, error = zero
    for k in range((p.n + w - 1) // w):
        left = min(w, p.n - k * w)
        v = load_n(x + k * w, left, state.row_max)  # the maximum has no gap
        e = load_wide(x, exps, k * w, left) if exps != NULL else exp_from(v, shift, power)
        add_fast(&total, &error, where_equal(e, zero, zero, e * (maximum - v)))  # at -inf, too
    return sum_lanes(x, total, error) * ref.ratio / (1 + state.sumexp_m1)


cdef inline void row_gradient(
    const Problem* p, const real* x, const void* exps, const real* t, real* grad,
    Py_ssize_t first, Py_ssize_t n, double row_max, double slope, double grad_scale,
    double gap_slope
) noexcept nogil:
    """grad = (slope - gap_slope * (row_max - x)) * exp(x - row_max) - grad_scale * q, for the n
    classes from `first`; `gap_slope` is for a TRANSFORMED loss with entropy.

    `exps` holds the row's exponentials, or is NULL.
    """
    cdef Py_ssize_t w = lanes(x), head, k, at, left, last = first + n
    cdef Reference ref = reference(x, row_max)
    cdef vector[real] shift = splat(x, ref.shift), power = splat(x, ref.power)
    cdef vector[real] a = splat(x, slope * ref.ratio), minus_g = splat(x, -grad_scale)
    cdef vector[real] uniform_share = splat(x, p.uniform_share), maximum = splat(x, row_max)
    cdef vector[real] b = splat(x, gap_slope * ref.ratio), zero = splat(x, 0.0), v, e
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
        if TRANSFORMED and p.transform.beta != 0:
            v = where_equal(e, zero, v, v - b * (maximum - load_n(x + at, left, 0.0)) * e)
        if p.dense_target:
            v = mul_add(
                minus_g,
                target_part(p, x, t, at, left, uniform_share) * row_weight(p, x, at, left), v)
        if p.streaming and left == w and k >= 0:
            stream(grad + at, v)
        else:
            store_n(grad + at, v, left)


cdef Py_ssize_t place_of(const real* x, Py_ssize_t n, double row_max) noexcept nogil:
    """Where a row has its maximum first; -1 in a row of nothing."""
    cdef Py_ssize_t w = lanes(x), group, j, k
    cdef vector[real] m
    for group in range((n + SEARCHED * w - 1) // (SEARCHED * w)):
        m = splat(x, -INFINITY)
        for j in range(SEARCHED):
            k = (group * SEARCHED + j) * w
            if k < n:
                m = vmax(load_n(x + k, min(w, n - k), -INFINITY), m)
        if reduce_max(m) == row_max:
            for k in range(group * SEARCHED * w, min(n, (group + 1) * SEARCHED * w)):
                if get(x + k) == row_max:
                    return k
    return -1


cdef double row(
    const Problem* p, const real* x, const real* t, real* grad, Py_ssize_t r, int num_threads
) noexcept nogil:
    """Loss of row r, and its gradient where `grad` is not NULL."""
    cdef Py_ssize_t blocks = (p.n + BLOCK - 1) // BLOCK, k, label = -1
    cdef double weight = 0, gap = 0, loss, lse, log_sum, p_factor, grad_scale = 1, share
    cdef double below = 0, mean_gap = 0, gap_slope = 0, others, there
    cdef char* memory = thread_memory(OF_ROW, BLOCK * 8)
    cdef void* exps = memory if grad != NULL and p.n <= BLOCK else NULL
    cdef DenseSums sums
    cdef State state
    cdef TransformedLoss transformed
    if p.labels != NULL:
        if p.labels[r] == p.ignore_index:
            if p.loss_per_row:
                put_wide(x, p.loss, r, 0 / p.denominator)  # NaN for the mean over no row
            if p.lse != NULL:
                put_wide(x, p.lse, r, NAN)
            if grad != NULL:
                memset(grad, 0, p.n * sizeof(real))
            return 0
        label = p.labels[r]
        weight = p.target_scale * (get_wide(x, p.weight, label) if p.weight != NULL else 1)
    state = row_state(x, p.n, exps, num_threads)
    log_sum = log_total(state)
    lse = state.row_max + log_sum
    sums.loss = 0
    sums.total = 0
    if p.dense_target:
        sums = dense_sums(p, x, t, state.row_max)
    if label >= 0:
        gap = state.row_max - get(x + label)
        sums.total += weight
        if weight != 0:  # a class of weight 0 adds nothing, even at -inf
            sums.loss += weight * gap
    loss = sums.loss + sums.total * log_sum + p.z_loss * lse * lse
    if TRANSFORMED and label >= 0:
        transformed = transform_loss(&p.transform, state.row_max, get(x + label), state.sumexp_m1)
        loss = weighted(weight, transformed.loss, log_sum - log_sum)
        weight = sums.total = weighted(weight, transformed.slope, log_sum - log_sum)
    if TRANSFORMED and p.transform.beta != 0:
        mean_gap = row_mean_gap(p, x, exps, state)
        loss = loss - p.transform.beta * (log_sum + mean_gap)
    if p.loss_per_row:
        put_wide(x, p.loss, r, loss / p.denominator)
    if p.lse != NULL:
        # Infinite where the maximum is.
        put_wide(x, p.lse, r, state.row_max + log1p(state.sumexp_m1))
    if p.row_max != NULL:
        put_wide(x, p.row_max, r, state.row_max)
        put_wide(x, p.sumexp_m1, r, state.sumexp_m1)
    if grad == NULL:
        return loss

    if p.grad_loss != NULL:
        grad_scale = get_wide(x, p.grad_loss, r if p.grad_loss_per_row else 0)
    grad_scale = grad_scale / p.denominator
    p_factor = sums.total + 2 * p.z_loss * lse
    share = NAN if isinf(state.row_max) else 1 / (1 + state.sumexp_m1)
    if t != NULL and state.sumexp_m1 < 0.5:  # only the maximum can have such a p
        label = place_of(x, p.n, state.row_max)
        if label >= 0:
            weight = p.target_scale * get_target(t, label, p.wide_target)
            weight *= get_wide(x, p.weight, label) if p.weight != NULL else 1
    if label >= 0:  # p - 1 by expm1: nothing cancels where p is nearly 1
        below = expm1(-gap - log_sum)
        weight = weight + p.uniform_share * (
            get_wide(x, p.weight, label) if p.weight != NULL else 1)
        # p_factor - weight, of which less is lost.
        others = (sums.total - weight) + 2 * p.z_loss * lse
        # 1 + below has an error of 1e-16, and p may be far less.
        there = 1 + below if others == 0 or below > -0.5 else exp(-gap - log_sum)
        below = grad_scale * (weight * below + others * there)
    if TRANSFORMED and p.transform.beta != 0:  # log p + entropy = mean_gap - gap
        gap_slope = grad_scale * p.transform.beta
        if label >= 0 and transformed.p != 0:
            below += gap_slope * transformed.p * (mean_gap - gap)
        p_factor += p.transform.beta * mean_gap
        gap_slope = gap_slope * share
    if num_threads == 1:
        row_gradient(p, x, exps, t, grad, 0, p.n, state.row_max, grad_scale * p_factor * share,
                     grad_scale, gap_slope)
    else:
        for k in prange(blocks, num_threads=num_threads, schedule="static"):
            row_gradient(p, x, exps, t, grad, k * BLOCK, min(BLOCK, p.n - k * BLOCK), state.row_max,
                         grad_scale * p_factor * share, grad_scale, gap_slope)
            if p.streaming:
                stream_end()
    if label >= 0:
        put(grad + label, below)
    return loss
