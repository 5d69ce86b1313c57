"""Cross-entropy on panels (see _panels.pxi): each lane is a row, each vector of lanes is computed
as row() in _loss_rows.pxi computes one row.
"""

cdef inline void panel_dense_sums(
    const Problem* p, const real* x, const real* t, Py_ssize_t stride, Py_ssize_t width,
    vector[real]* maxima, vector[real]* losses, vector[real]* totals, vector[real]* errors
) noexcept nogil:
    """dense_sums for each column; the sums are compensated, `errors` is scratch for two of them."""
    cdef Py_ssize_t w = lanes(x), vectors = (width + w - 1) // w, c, k, at, left
    cdef vector[real] zero = splat(x, 0.0), uniform_share = splat(x, p.uniform_share)
    cdef vector[real] weight, part, q
    for c in range(vectors):
        losses[c] = zero
        totals[c] = splat(x, p.uniform_total)
        errors[c] = zero
        errors[vectors + c] = zero
    for k in range(p.n):
        weight = class_weight(p, x, k)
        for c in range(vectors):
            at = k * stride + c * w
            left = min(w, width - c * w)
            part = target_part(p, x, t, at, left, zero)
            add(totals + c, errors + c, part * weight)
            q = (uniform_share + part) * weight
            add(losses + c, errors + vectors + c,
                where_equal(q, zero, zero, q * (maxima[c] - load_n(x + at, left, 0.0))))
    for c in range(vectors):
        totals[c] = corrected(x, totals[c], errors[c])
        losses[c] = corrected(x, losses[c], errors[vectors + c])


cdef inline void panel_mean_gap(
    const Problem* p, const real* x, Py_ssize_t stride, Py_ssize_t width,
    vector[real]* maxima, vector[real]* sumexps_m1, vector[real]* totals, vector[real]* errors
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
            e = exp_sub(v, maxima[c])
            add(totals + c, errors + c, where_equal(e, zero, zero, e * (maxima[c] - v)))
    for c in range(vectors):
        totals[c] = corrected(x, totals[c], errors[c]) * inverse(x, sumexps_m1[c])


cdef inline void transform_lanes(
    const Problem* p, const real* x, vector[real] row_max, vector[real] picked,
    vector[real] sumexp_m1, vector[real]* loss, vector[real]* slope, vector[real]* there
) noexcept nogil:
    """transform_loss() for each lane."""
    cdef TransformedLoss result
    cdef int j
    for j in range(lanes(x)):
        result = transform_loss(&p.transform, get_wide(x, &row_max, j), get_wide(x, &picked, j),
                                get_wide(x, &sumexp_m1, j))
        put_wide(x, loss, j, result.loss)
        put_wide(x, slope, j, result.slope)
        put_wide(x, there, j, result.p)


cdef double panel(
    const Problem* p, const real* x, const real* t, real* grad, Py_ssize_t stride,
    Py_ssize_t width, bint tile, Py_ssize_t r
) noexcept nogil:
    """Loss of the rows r to r + width, one in each column, and their gradient."""
    cdef char* memory = thread_memory(OF_PANEL, 3 * PANEL_MEMORY)  # nine arrays
    cdef Py_ssize_t w = lanes(x), vectors = (width + w - 1) // w, c, j, k, at, left, label
    cdef vector[real]* maxima = aligned(x, memory)
    cdef vector[real]* sumexps_m1 = maxima + vectors  # later: the slope of the gradient
    cdef vector[real]* losses = sumexps_m1 + vectors  # later: the gradient at the target class
    cdef vector[real]* totals = losses + vectors  # later: grad_scale
    cdef vector[real]* masks = totals + vectors  # 1 where the row counts, else 0
    # x at the target class, its weight, and two for the entropy. Where the target is probabilities,
    # what the gradient of a class of nearly 1 is made of: its x, g * p, sum(q) and g * (1 - p); and
    # g * p * (the part of z_loss) in `losses`.
    cdef vector[real]* picked = masks + vectors
    cdef vector[real]* weights = picked + vectors
    cdef vector[real]* mean_gaps = weights + vectors
    cdef vector[real]* gap_slopes = mean_gaps + vectors
    cdef vector[real] zero = splat(x, 0.0), one = splat(x, 1.0), two_z = splat(x, 2 * p.z_loss)
    cdef vector[real] z = splat(x, p.z_loss), target_scale = splat(x, p.target_scale)
    cdef vector[real] uniform_share = splat(x, p.uniform_share)
    cdef vector[real] scale = splat(x, 1 / p.denominator), g = scale
    cdef vector[real] row_max, mask, log_sum, lse, loss, total, gap, weight, p_factor, share
    cdef vector[real] there, below, v, e, q, lane_x, lane_weight, transformed, slope, beta
    cdef bint all_counted = True, entropy = TRANSFORMED and p.transform.beta != 0
    cdef double loss_sum = 0
    # A tile is private memory: the exponentials can take the place of x, unless x is read again.
    cdef real* exps = grad if tile and not (p.dense_target or entropy) else NULL
    for c in range(vectors):
        left = min(w, width - c * w)
        mask = one
        lane_x = zero
        lane_weight = zero
        for j in range(w):
            at = c * w + j
            if j >= left or (p.labels != NULL and p.labels[r + at] == p.ignore_index):
                put_wide(x, &mask, j, 0)
                all_counted = all_counted and j >= left
            elif p.labels != NULL:
                label = p.labels[r + at]
                put_wide(x, &lane_x, j, get(x + label * stride + at))
                put_wide(x, &lane_weight, j,
                         get_wide(x, p.weight, label) if p.weight != NULL else 1)
        masks[c] = mask
        picked[c] = lane_x
        weights[c] = lane_weight
    if tile:
        tile_state(x, exps, p.n, stride, maxima, sumexps_m1)
    else:
        panel_state(x, p.n, stride, width, maxima, sumexps_m1, losses)
    for c in range(vectors):
        losses[c] = zero
        totals[c] = zero
    if p.dense_target:
        panel_dense_sums(p, x, t, stride, width, maxima, losses, totals, mean_gaps)
    if entropy:
        panel_mean_gap(p, x, stride, width, maxima, sumexps_m1, mean_gaps, gap_slopes)
        beta = splat(x, p.transform.beta)

    for c in range(vectors):
        left = min(w, width - c * w)
        mask = masks[c]
        lane_weight = weights[c]
        row_max = maxima[c]
        log_sum = log_1p(sumexps_m1[c]) + (row_max - row_max)  # NaN where the maximum is infinite
        lse = row_max + log_sum
        gap = row_max - picked[c]
        weight = target_scale * lane_weight
        total = totals[c] + weight
        # A class of weight 0 adds nothing, even at -inf.
        loss = losses[c] + where_equal(weight, zero, zero, weight * gap)
        loss = loss + total * log_sum + z * lse * lse
        if TRANSFORMED:
            transform_lanes(p, x, row_max, picked[c], sumexps_m1[c], &transformed, &slope,
                            &there)
            loss = where_equal(weight, zero, zero, weight * transformed) + (log_sum - log_sum)
            lane_weight = where_equal(weight, zero, zero, weight * slope) + (log_sum - log_sum)
            weight = total = lane_weight
        if entropy:
            loss = loss - beta * (log_sum + mean_gaps[c])
        loss = where_equal(mask, one, loss, zero)
        loss_sum += reduce_add(loss)
        if p.loss_per_row and p.denominator == 1:
            store_wide(x, p.loss, r + c * w, loss, left)
        elif p.loss_per_row:  # the mean over a single row
            put_wide(x, p.loss, r, reduce_add(loss) / p.denominator)
        if p.lse != NULL:
            lse = row_max + log_1p(sumexps_m1[c])  # infinite where the maximum is
            store_wide(x, p.lse, r + c * w, where_equal(mask, one, lse, splat(x, NAN)), left)
        if p.row_max != NULL:
            store_wide(x, p.row_max, r + c * w, row_max, left)
            store_wide(x, p.sumexp_m1, r + c * w, sumexps_m1[c], left)
        if grad == NULL:
            continue
        if p.grad_loss != NULL:
            g = splat(x, get_wide(x, p.grad_loss, 0))
            if p.grad_loss_per_row:
                g = load_wide(x, p.grad_loss, r + c * w, left)
            g = g * scale
        p_factor = total + two_z * lse
        share = inverse(x, sumexps_m1[c]) + (row_max - row_max)
        # p and p - 1 at the target class, the latter without cancellation where p is nearly 1
        if not TRANSFORMED:
            there = exp_sub(picked[c], row_max) * share
        below = where_equal(gap, zero, (zero - sumexps_m1[c]) * share, there - one)
        weight = weight + uniform_share * lane_weight
        losses[c] = g * (weight * below + (p_factor - weight) * there)
        if entropy:  # log p + entropy = mean_gap - gap
            v = g * beta * there * (mean_gaps[c] - gap)
            losses[c] = losses[c] + where_equal(there, zero, zero, v)
            gap_slopes[c] = g * beta * share
            p_factor = p_factor + beta * mean_gaps[c]
        if t != NULL:  # of the maximum, where nothing must cancel either
            picked[c] = where_negative(sumexps_m1[c] - splat(x, 0.5), row_max, splat(x, NAN))
            weights[c] = g * share
            mean_gaps[c] = total
            gap_slopes[c] = weights[c] * sumexps_m1[c]
            losses[c] = weights[c] * two_z * lse
        sumexps_m1[c] = where_equal(mask, one, g * p_factor * share, zero)
        totals[c] = g
    if grad == NULL:
        return loss_sum

    for k in range(p.n):
        weight = class_weight(p, x, k)
        for c in range(vectors):
            at = k * stride + c * w
            left = min(w, width - c * w)
            lane_x = load_n(x + at, left, 0.0)
            e = lane_x if exps != NULL else exp_sub(lane_x, maxima[c])
            v = sumexps_m1[c] * e
            if entropy:
                gap = maxima[c] - lane_x
                v = where_equal(e, zero, v, v - gap_slopes[c] * gap * e)
            if p.dense_target:
                q = target_part(p, x, t, at, left, uniform_share) * weight
                v = mul_add(zero - totals[c], q, v)
            if t != NULL:
                below = mul_add(zero - gap_slopes[c], q, weights[c] * (mean_gaps[c] - q))
                v = where_equal(lane_x, picked[c], below + losses[c], v)
            if not all_counted:
                v = where_equal(masks[c], one, v, zero)
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
        if p.wide_target and (real is f16 or real is bf16):
            load_tiles(<const float*>t + r * p.t_step, p.t_step, rows, p.n, <vector[float]*>b)
        else:
            load_tiles(t + r * p.t_step, p.t_step, rows, p.n, b)
    if real is double:
        loss = panel(p, <double*>a, <double*>b, <double*>result, stride, rows, True, r)
    else:
        loss = panel(p, <float*>a, <float*>b, <float*>result, stride, rows, True, r)
    if grad != NULL:
        store_tiles(grad + r * p.grad_step, p.grad_step, rows, p.n, a)
    return loss
