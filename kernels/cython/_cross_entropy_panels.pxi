"""Cross-entropy on panels (see _panels.pxi): each lane is a row, each vector of lanes is computed
as row() in _cross_entropy_rows.pxi computes one row.
"""

cdef inline void panel_cost(
    const Problem* p, const real* x, const real* t, Py_ssize_t stride, Py_ssize_t width,
    vector[real]* tops, vector[real]* losses, vector[real]* totals, vector[real]* errors
) noexcept nogil:
    """row_cost for each column; the sums are compensated, `errors` is scratch for two of them."""
    cdef Py_ssize_t w = lanes(x), vectors = (width + w - 1) // w, c, k, at, left
    cdef vector[real] zero = splat(x, 0.0), soft = splat(x, p.soft), weight, part, q
    for c in range(vectors):
        losses[c] = zero
        totals[c] = splat(x, p.soft_total)
        errors[c] = zero
        errors[vectors + c] = zero
    for k in range(p.n):
        weight = class_weight(p, x, k)
        for c in range(vectors):
            at = k * stride + c * w
            left = min(w, width - c * w)
            part = target_part(p, x, t, at, left, zero)
            add(totals + c, errors + c, part * weight)
            q = (soft + part) * weight
            add(losses + c, errors + vectors + c,
                where_equal(q, zero, zero, q * (tops[c] - load_n(x + at, left, 0.0))))
    for c in range(vectors):
        totals[c] = corrected(x, totals[c], errors[c])
        losses[c] = corrected(x, losses[c], errors[vectors + c])


cdef inline void panel_mean_gap(
    const Problem* p, const real* x, Py_ssize_t stride, Py_ssize_t width,
    vector[real]* tops, vector[real]* rests, vector[real]* totals, vector[real]* errors
) noexcept nogil:
    """row_mean_gap for each column, into `totals`; `errors` is scratch."""
    cdef Py_ssize_t w = lanes(x), vectors = (width + w - 1) // w, c, k
    cdef vector[real] zero = splat(x, 0.0), v, e
    for c in range(vectors):
        totals[c] = zero
        errors[c] = zero
    for k in range(p.n):
        for c in range(vectors):
            v = load_n(x + k * stride + c * w, min(w, width - c * w), 0.0)
            e = exp_sub(v, tops[c])
            add(totals + c, errors + c, where_equal(e, zero, zero, e * (tops[c] - v)))
    for c in range(vectors):
        totals[c] = corrected(x, totals[c], errors[c]) * inverse(x, rests[c])


cdef inline void bend_lanes(
    const Problem* p, const real* x, vector[real] top, vector[real] picked, vector[real] rest,
    vector[real]* loss, vector[real]* slope, vector[real]* there
) noexcept nogil:
    """bend() for each lane."""
    cdef Bent bent
    cdef int j
    for j in range(lanes(x)):
        bent = bend(&p.curve, get_wide(x, &top, j), get_wide(x, &picked, j), get_wide(x, &rest, j))
        put_wide(x, loss, j, bent.loss)
        put_wide(x, slope, j, bent.slope)
        put_wide(x, there, j, bent.p)


cdef double panel(
    const Problem* p, const real* x, const real* t, real* grad, Py_ssize_t stride,
    Py_ssize_t width, bint tile, Py_ssize_t r
) noexcept nogil:
    """Loss of the rows r to r + width, one in each column, and their gradient."""
    cdef char* memory = thread_memory(OF_PANEL, 3 * PANEL_MEMORY)  # nine arrays
    cdef Py_ssize_t w = lanes(x), vectors = (width + w - 1) // w, c, j, k, at, left, label
    cdef vector[real]* tops = aligned(x, memory)
    cdef vector[real]* rests = tops + vectors  # later: the slope of the gradient
    cdef vector[real]* losses = rests + vectors  # later: the gradient at the target class
    cdef vector[real]* totals = losses + vectors  # later: the upstream gradient
    cdef vector[real]* keeps = totals + vectors  # 1 where the row counts, else 0
    cdef vector[real]* picked = keeps + vectors  # x at the target class
    cdef vector[real]* weights = picked + vectors  # of the target class
    cdef vector[real]* mean_gaps = weights + vectors  # where the entropy is wanted
    cdef vector[real]* gap_slopes = mean_gaps + vectors  # the same
    cdef vector[real] zero = splat(x, 0.0), one = splat(x, 1.0), two_z = splat(x, 2 * p.z_loss)
    cdef vector[real] z = splat(x, p.z_loss), hard = splat(x, p.hard), soft = splat(x, p.soft)
    cdef vector[real] scale = splat(x, 1 / p.denominator), g = scale
    cdef vector[real] top, keep, log_sum, lse, loss, total, gap, weight, pull, share, there, below
    cdef vector[real] v, e, lane_x, lane_weight, bent, slope, beta
    cdef bint all_kept = True, entropy = CURVED and p.curve.beta != 0
    cdef double loss_sum = 0
    # A tile is private memory: the exponentials can take the place of x, unless it is wanted too.
    cdef real* exps = grad if tile and not (p.dense_q or entropy) and p.given_lse == NULL else NULL
    for c in range(vectors):
        left = min(w, width - c * w)
        keep = one
        lane_x = zero
        lane_weight = zero
        for j in range(w):
            at = c * w + j
            if j >= left or (p.labels != NULL and p.labels[r + at] == p.ignore_index):
                put_wide(x, &keep, j, 0)
                all_kept = all_kept and j >= left
            elif p.labels != NULL:
                label = p.labels[r + at]
                put_wide(x, &lane_x, j, get(x + label * stride + at))
                put_wide(x, &lane_weight, j,
                         get_wide(x, p.weight, label) if p.weight != NULL else 1)
        keeps[c] = keep
        picked[c] = lane_x
        weights[c] = lane_weight
    if p.given_lse == NULL and tile:
        tile_state(x, exps, p.n, stride, tops, rests)
    elif p.given_lse == NULL:
        panel_state(x, p.n, stride, width, tops, rests, losses)
    else:
        for c in range(vectors):
            tops[c] = load_wide(x, p.given_lse, r + c * w, min(w, width - c * w))
            rests[c] = zero
    for c in range(vectors):
        losses[c] = zero
        totals[c] = zero
    if p.dense_q:
        panel_cost(p, x, t, stride, width, tops, losses, totals, mean_gaps)
    if entropy:
        panel_mean_gap(p, x, stride, width, tops, rests, mean_gaps, gap_slopes)
        beta = splat(x, p.curve.beta)

    for c in range(vectors):
        left = min(w, width - c * w)
        keep = keeps[c]
        lane_weight = weights[c]
        top = tops[c]
        log_sum = log_1p(rests[c]) + (top - top)  # NaN where the maximum is infinite
        lse = top + log_sum
        gap = top - picked[c]
        weight = hard * lane_weight
        total = totals[c] + weight
        # A class of weight 0 costs nothing, even at -inf.
        loss = losses[c] + where_equal(weight, zero, zero, weight * gap)
        loss = loss + total * log_sum + z * lse * lse
        if CURVED:
            bend_lanes(p, x, top, picked[c], rests[c], &bent, &slope, &there)
            loss = where_equal(weight, zero, zero, weight * bent) + (log_sum - log_sum)
            lane_weight = where_equal(weight, zero, zero, weight * slope) + (log_sum - log_sum)
            weight = total = lane_weight
        if entropy:
            loss = loss - beta * (log_sum + mean_gaps[c])
        loss = where_equal(keep, one, loss, zero)
        loss_sum += reduce_add(loss)
        if p.loss_per_row and p.denominator == 1:
            store_wide(x, p.loss, r + c * w, loss, left)
        elif p.loss_per_row:  # the mean over a single row
            put_wide(x, p.loss, r, reduce_add(loss) / p.denominator)
        if p.lse != NULL:
            store_wide(x, p.lse, r + c * w, where_equal(keep, one, lse, zero), left)
        if grad == NULL:
            continue
        if p.upstream != NULL:
            g = splat(x, get_wide(x, p.upstream, 0))
            if p.upstream_per_row:
                g = load_wide(x, p.upstream, r + c * w, left)
            g = g * scale
        pull = total + two_z * lse
        share = inverse(x, rests[c]) + (top - top)
        # p and p - 1 at the target class, the latter without cancellation where p is nearly 1
        if not CURVED:
            there = exp_sub(picked[c], top) * share
        below = where_equal(gap, zero, (zero - rests[c]) * share, there - one)
        weight = weight + soft * lane_weight
        losses[c] = g * (weight * below + (pull - weight) * there)
        if entropy:  # log p + entropy = mean_gap - gap
            v = g * beta * there * (mean_gaps[c] - gap)
            losses[c] = losses[c] + where_equal(there, zero, zero, v)
            gap_slopes[c] = g * beta * share
            pull = pull + beta * mean_gaps[c]
        rests[c] = where_equal(keep, one, g * pull * share, zero)
        totals[c] = g
    if grad == NULL:
        return loss_sum

    for k in range(p.n):
        weight = class_weight(p, x, k)
        for c in range(vectors):
            at = k * stride + c * w
            left = min(w, width - c * w)
            gap = load_n(x + at, left, 0.0)
            e = gap if exps != NULL else exp_sub(gap, tops[c])
            v = rests[c] * e
            if entropy:
                gap = tops[c] - gap
                v = where_equal(e, zero, v, v - gap_slopes[c] * gap * e)
            if p.dense_q:
                v = mul_add(zero - totals[c], target_part(p, x, t, at, left, soft) * weight, v)
            if not all_kept:
                v = where_equal(keeps[c], one, v, zero)
            store_n(grad + at, v, left)
    if p.labels != NULL:
        for j in range(width):
            label = p.labels[r + j]
            if label != p.ignore_index:
                put(grad + label * stride + j, get_wide(x, losses, j))
    return loss_sum


cdef double tile(
    const Problem* p, const real* x, const real* t, real* grad, Py_ssize_t rows, Py_ssize_t r
) noexcept nogil:
    """Up to tile_rows short rows, from row r, as a panel of the compute type."""
    cdef char* memory = thread_memory(OF_TILE, 2 * TILE_MEMORY)
    cdef Py_ssize_t w = lanes(x), stride = (rows + w - 1) // w * w
    cdef double loss
    cdef vector[real]* a = aligned(x, memory)
    cdef vector[real]* b = NULL
    cdef vector[real]* result = a if grad != NULL else NULL
    load_tiles(x + r * p.x_step, p.x_step, rows, p.n, a)
    if t != NULL:
        b = a + p.n * stride // w
        load_tiles(t + r * p.t_step, p.t_step, rows, p.n, b)
    if real is double:
        loss = panel(p, <double*>a, <double*>b, <double*>result, stride, rows, True, r)
    else:
        loss = panel(p, <float*>a, <float*>b, <float*>result, stride, rows, True, r)
    if grad != NULL:
        store_tiles(grad + r * p.grad_step, p.grad_step, rows, p.n, a)
    return loss
