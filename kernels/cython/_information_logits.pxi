"""Entropy and KL divergence of softmax, with their gradients, from logits.

The states of _rows.pxi and _panels.pxi first; then, with gap = row_max - x and
log p = -gap - log(1 + sumexp_m1):

    H  = log(1 + sumexp_m1) + m,  m = sum of p * gap;  dH/dx = p * (gap - m)
    KL = sum of p * log(p / q) - p + q;  d/dq_logits = q - p;  d/dp_logits = p * (log(p / q) - KL)

No term of the sums is negative.
"""

cdef struct Softmax:  # of a row, in numbers
    double row_max
    double log_total  # log(1 + sumexp_m1); NaN where there is no distribution
    double shift, power  # see Reference
    double share  # p = share * exp_from(x, shift, power); NaN, too


cdef inline Softmax softmax_of(const real* x, Py_ssize_t n, int num_threads) noexcept nogil:
    cdef State state = row_state(x, n, NULL, num_threads)
    cdef Reference at = reference(x, state.row_max)
    cdef Softmax s
    s.row_max = state.row_max
    s.log_total = log_total(state)
    s.shift = at.shift
    s.power = at.power
    s.share = at.ratio / (1 + state.sumexp_m1) + (s.log_total - s.log_total)
    return s


cdef inline vector[real] gap_term(
    const real* like, vector[real] p, vector[real] gap
) noexcept nogil:
    """p * gap, 0 for p = 0, whatever the gap."""
    cdef vector[real] zero = splat(like, 0.0)
    return where_equal(p, zero, zero, p * gap)


cdef double block_mean(const real* x, Py_ssize_t n, Softmax s) noexcept nogil:
    """The sum of p * gap over up to BLOCK logits."""
    cdef Py_ssize_t group, k, w = lanes(x), count = (n + w - 1) // w
    cdef vector[real] row_max = splat(x, s.row_max), shift = splat(x, s.shift)
    cdef vector[real] power = splat(x, s.power), part, a
    cdef vector[double] total = splat(<const double*>NULL, 0.0), more = total
    for group in range((count + SUMS - 1) // SUMS):
        part = splat(x, 0.0)
        for k in range(group * SUMS, min(count, (group + 1) * SUMS)):
            a = load_n(x + k * w, min(w, n - k * w), -INFINITY)
            part = part + gap_term(x, exp_from(a, shift, power), row_max - a)
        add_part(&total, &more, x, part)
    return s.share * sum_of_parts(x, total, more)


cdef void entropy_gradient(
    const real* x, real* grad, Py_ssize_t n, Softmax s, double mean, double unit
) noexcept nogil:
    cdef Py_ssize_t k, w = lanes(x), left
    cdef vector[real] row_max = splat(x, s.row_max), shift = splat(x, s.shift)
    cdef vector[real] power = splat(x, s.power)
    cdef vector[real] share = splat(x, s.share / unit), center = splat(x, mean), a
    for k in range((n + w - 1) // w):
        left = min(w, n - k * w)
        a = load_n(x + k * w, left, -INFINITY)
        a = gap_term(x, exp_from(a, shift, power) * share, (row_max - a) - center)
        store_n(grad + k * w, a, left)


cdef inline vector[real] ratio_term(
    const real* like, vector[real] a, vector[real] b, const Softmax* s, const Softmax* t,
    vector[real]* p, vector[real]* log_ratio, vector[real]* apart
) noexcept nogil:
    """A term of KL; p, log(p / q) and q - p."""
    p[0] = exp_from(a, splat(like, s.shift), splat(like, s.power)) * splat(like, s.share)
    cdef vector[real] q = (exp_from(b, splat(like, t.shift), splat(like, t.power))
                           * splat(like, t.share))
    log_ratio[0] = (((a - splat(like, s.row_max)) - (b - splat(like, t.row_max)))
                    - splat(like, s.log_total - t.log_total))
    return kl_div_term_log(p[0], q, log_ratio[0], apart)


cdef double block_kl(
    const real* x, const real* y, Py_ssize_t n, Softmax s, Softmax t
) noexcept nogil:
    cdef Py_ssize_t group, k, w = lanes(x), left, count = (n + w - 1) // w
    cdef vector[real] part, a, b, p, log_ratio, apart
    cdef vector[double] total = splat(<const double*>NULL, 0.0), more = total
    for group in range((count + SUMS - 1) // SUMS):
        part = splat(x, 0.0)
        for k in range(group * SUMS, min(count, (group + 1) * SUMS)):
            left = min(w, n - k * w)
            a = load_n(x + k * w, left, -INFINITY)
            b = load_n(y + k * w, left, -INFINITY)
            part = part + ratio_term(x, a, b, &s, &t, &p, &log_ratio, &apart)
        add_part(&total, &more, x, part)
    return sum_of_parts(x, total, more)


cdef void kl_gradients(
    const real* x, const real* y, real* q_grad, real* p_grad, Py_ssize_t n, Softmax s, Softmax t,
    double kl, double unit
) noexcept nogil:
    cdef Py_ssize_t k, w = lanes(x), left
    cdef vector[real] factor = splat(x, 1 / unit), center = splat(x, kl)
    cdef vector[real] a, b, p, log_ratio, apart
    for k in range((n + w - 1) // w):
        left = min(w, n - k * w)
        a = load_n(x + k * w, left, -INFINITY)
        b = load_n(y + k * w, left, -INFINITY)
        ratio_term(x, a, b, &s, &t, &p, &log_ratio, &apart)
        store_n(q_grad + k * w, apart * factor, left)
        if p_grad != NULL:
            store_n(p_grad + k * w, gap_term(x, p, log_ratio - center) * factor, left)


cdef double logits_sum(
    int op, const real* x, const real* y, Py_ssize_t n, Softmax s, Softmax t, int num_threads
) noexcept nogil:
    """The entropy less log_total, or the divergence, of a row."""
    cdef Py_ssize_t blocks = (n + BLOCK - 1) // BLOCK, k
    cdef double total = 0, lost = 0, part
    cdef double* parts = NULL
    if num_threads > 1:
        parts = <double*>malloc(blocks * sizeof(double))
    if parts != NULL:
        for k in prange(blocks, num_threads=num_threads, schedule="static"):
            parts[k] = block_logits(op, x + k * BLOCK, y + k * BLOCK, min(BLOCK, n - k * BLOCK), s,
                                    t)
    for k in range(blocks):
        if parts != NULL:
            part = parts[k]
        else:
            part = block_logits(op, x + k * BLOCK, y + k * BLOCK, min(BLOCK, n - k * BLOCK), s, t)
        add_double(&total, &lost, part)
    free(parts)
    return settled(total, lost)


cdef inline double block_logits(
    int op, const real* x, const real* y, Py_ssize_t n, Softmax s, Softmax t
) noexcept nogil:
    return block_mean(x, n, s) if op == LOGITS_ENTROPY else block_kl(x, y, n, s, t)


cdef inline void block_gradients(
    int op, const real* x, const real* y, real* grad, real* p_grad, Py_ssize_t n, Softmax s,
    Softmax t, double value, double unit
) noexcept nogil:
    if op == LOGITS_ENTROPY:
        entropy_gradient(x, grad, n, s, value, unit)
    else:
        kl_gradients(x, y, grad, p_grad, n, s, t, value, unit)


cdef double logits_row(
    int op, const real* x, const real* y, real* grad, real* p_grad, Py_ssize_t n, double unit,
    int num_threads
) noexcept nogil:
    """The result in nats, and the gradients that are not NULL."""
    cdef Py_ssize_t blocks = (n + BLOCK - 1) // BLOCK, k, at
    cdef Softmax s = softmax_of(x, n, num_threads), t = s
    cdef double value
    if op == LOGITS_KL:
        t = softmax_of(y, n, num_threads)
        s.share += t.log_total - t.log_total  # NaN, too, so that all gradients are
    # NaN where there is no distribution
    value = logits_sum(op, x, y, n, s, t, num_threads) + (s.log_total - s.log_total) + (
        t.log_total - t.log_total)
    if grad != NULL and num_threads == 1:
        block_gradients(op, x, y, grad, p_grad, n, s, t, value, unit)
    elif grad != NULL:
        for k in prange(blocks, num_threads=num_threads, schedule="static"):
            at = k * BLOCK
            block_gradients(op, x + at, y + at, grad + at, moved(p_grad, at),
                            min(BLOCK, n - at), s, t, value, unit)
    return value + s.log_total if op == LOGITS_ENTROPY else value


# ---- side by side in the lanes ---------------------------------------------------------------

cdef inline void lane_softmax(
    const real* x, Py_ssize_t n, Py_ssize_t stride, Py_ssize_t left,
    vector[real]* row_max, vector[real]* log_total, vector[real]* share
) noexcept nogil:
    """As in Softmax: p = share * exp_sub(x, row_max)."""
    cdef Py_ssize_t k
    cdef vector[real] zero = splat(x, 0.0), one = splat(x, 1.0), others = zero
    cdef vector[real] largest = splat(x, -INFINITY), total = zero, error = zero, a
    for k in range(n):
        largest = vmax(load_n(x + k * stride, left, 0.0), largest)
    for k in range(n):
        a = load_n(x + k * stride, left, 0.0)
        add(&total, &error, where_equal(a, largest, zero, exp_sub(a, largest)))
        others = add_unless_equal(others, a, largest, one)
    total = (total + error) + (splat(x, n - 1) - others)
    row_max[0] = largest
    log_total[0] = log_1p(total) + (largest - largest)  # NaN where the maximum is infinite
    share[0] = inverse(x, total) + (largest - largest)


cdef inline vector[real] lane_logits(
    int op, const real* x, const real* y, real* grad, real* p_grad, Py_ssize_t n,
    Py_ssize_t stride, Py_ssize_t left, double unit
) noexcept nogil:
    """The results in nats, and the gradients that are not NULL."""
    cdef Py_ssize_t k
    cdef vector[real] zero = splat(x, 0.0), factor = splat(x, 1 / unit)
    cdef vector[real] row_max, log_total, share, y_max, y_log_total, y_share, shift
    cdef vector[real] terms = zero, error = zero, a, b, p, log_ratio, apart
    lane_softmax(x, n, stride, left, &row_max, &log_total, &share)
    y_max = row_max
    y_log_total = log_total
    y_share = share
    if op == LOGITS_KL:
        lane_softmax(y, n, stride, left, &y_max, &y_log_total, &y_share)
    shift = log_total - y_log_total
    share = share + (shift - shift)  # NaN where either is no distribution: all gradients are
    for k in range(n):
        a = load_n(x + k * stride, left, 0.0)
        p = exp_sub(a, row_max) * share
        if op == LOGITS_ENTROPY:
            add(&terms, &error, gap_term(x, p, row_max - a))
        else:
            b = load_n(y + k * stride, left, 0.0)
            log_ratio = ((a - row_max) - (b - y_max)) - shift
            add(&terms, &error, kl_div_term_log(p, exp_sub(b, y_max) * y_share, log_ratio, &apart))
    terms = corrected(x, terms, error) + (shift - shift)  # NaN where there is no distribution
    if grad != NULL:
        for k in range(n):
            a = load_n(x + k * stride, left, 0.0)
            p = exp_sub(a, row_max) * share
            if op == LOGITS_ENTROPY:
                apart = gap_term(x, p, (row_max - a) - terms)
            else:
                b = load_n(y + k * stride, left, 0.0)
                log_ratio = ((a - row_max) - (b - y_max)) - shift
                kl_div_term_log(p, exp_sub(b, y_max) * y_share, log_ratio, &apart)
                if p_grad != NULL:
                    store_n(p_grad + k * stride, gap_term(x, p, log_ratio - terms) * factor, left)
            store_n(grad + k * stride, apart * factor, left)
    return terms + log_total if op == LOGITS_ENTROPY else terms


cdef inline void lanes_of_logits(
    int op, const Information* a, const real* x, const real* y, Py_ssize_t at, real* grad,
    real* p_grad, Py_ssize_t stride, Py_ssize_t left
) noexcept nogil:
    """Results number `at` and following."""
    cdef vector[real] value
    if op == LOGITS_ENTROPY:
        value = lane_logits(LOGITS_ENTROPY, x, y, grad, p_grad, a.n, stride, left, a.unit)
    else:
        value = lane_logits(LOGITS_KL, x, y, grad, p_grad, a.n, stride, left, a.unit)
    store_wide(x, a.out, at, value / splat(x, a.unit), left)


cdef void logits_panel(
    int op, const Information* a, const real* x, const real* y, Py_ssize_t at, real* grad,
    real* p_grad, Py_ssize_t width
) noexcept nogil:
    cdef Py_ssize_t w = lanes(x), c
    for c in range((width + w - 1) // w):
        lanes_of_logits(op, a, x + c * w, y + c * w, at + c * w, moved(grad, c * w),
                        moved(p_grad, c * w), a.inner, min(w, width - c * w))


cdef void logits_tile(
    int op, const Information* a, const real* x, const real* y, Py_ssize_t at, real* grad,
    real* p_grad, Py_ssize_t rows
) noexcept nogil:
    """Up to tile_rows short rows; their gradients take the place of the logits in the tile."""
    cdef char* memory = thread_memory(OF_TILE, 2 * TILE_MEMORY)
    cdef Py_ssize_t w = lanes(x), vectors = (rows + w - 1) // w, c, left
    cdef vector[real]* u = aligned(x, memory)
    cdef vector[real]* v = u if op == LOGITS_ENTROPY else u + a.n * vectors
    cdef void* to
    cdef void* p_to
    load_tiles(x, a.p_step, rows, a.n, u)
    if op == LOGITS_KL:
        load_tiles(y, a.q_step, rows, a.n, v)
    for c in range(vectors):
        left = min(w, rows - c * w)
        to = NULL if grad == NULL else v + c
        p_to = NULL if p_grad == NULL else u + c
        if real is double:
            lanes_of_logits(op, a, <double*>(u + c), <double*>(v + c), at + c * w, <double*>to,
                            <double*>p_to, vectors * w, left)
        else:
            lanes_of_logits(op, a, <float*>(u + c), <float*>(v + c), at + c * w, <float*>to,
                            <float*>p_to, vectors * w, left)
    if grad != NULL:
        store_tiles(grad, a.q_grad_step, rows, a.n, v)
    if p_grad != NULL:
        store_tiles(p_grad, a.p_grad_step, rows, a.n, u)
