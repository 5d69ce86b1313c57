"""The ops of log_softmax.pyx on panels and tiles; see _panels.pxi."""

cdef inline void panel_sum(
    int op, const real* g, const real* y, Py_ssize_t n, Py_ssize_t stride, Py_ssize_t width,
    vector[real]* sums, vector[real]* errors
) noexcept nogil:
    """The backward ops' sum of each column, compensated; `errors` is scratch."""
    cdef Py_ssize_t w = lanes(g), vectors = (width + w - 1) // w, c, k, at, left
    cdef vector[real] a
    for c in range(vectors):
        sums[c] = splat(g, 0.0)
        errors[c] = splat(g, 0.0)
    for k in range(n):
        for c in range(vectors):
            at = k * stride + c * w
            left = min(w, width - c * w)
            a = load_n(g + at, left, 0.0)
            if op == SOFTMAX_BACKWARD:
                a = a * load_n(y + at, left, 0.0)
            add(sums + c, errors + c, a)
    for c in range(vectors):
        sums[c] = corrected(g, sums[c], errors[c])


cdef void panel(
    int op, const real* x, const real* second, real* out, Py_ssize_t n, Py_ssize_t stride,
    Py_ssize_t width, bint tile, bint halves, real* lse
) noexcept nogil:
    """Any op on `width` <= PANEL columns; logsumexp goes to `lse`.

    A tile is private memory: softmax keeps the exponentials there instead of computing them twice.
    With `halves`, it is going to be rounded to f16 or bf16.
    """
    cdef char* memory = thread_memory(OF_PANEL, PANEL_MEMORY)
    cdef Py_ssize_t w = lanes(x), vectors = (width + w - 1) // w, c, k, at, left
    cdef vector[real]* maxima = aligned(x, memory)
    cdef vector[real]* scales = maxima + vectors
    cdef real* exps = out if op == SOFTMAX and tile else NULL
    cdef vector[real] a, value, row_max, scale
    if op == SOFTMAX_BACKWARD or op == LOG_SOFTMAX_BACKWARD:
        panel_sum(op, x, second, n, stride, width, maxima, scales)
    else:
        if tile:
            tile_state(x, exps, n, stride, maxima, scales)
        else:
            panel_state(x, n, stride, width, maxima, scales, scales + vectors)
        for c in range(vectors):
            row_max = maxima[c]
            scale = log_1p(scales[c])
            if op == LOGSUMEXP:
                store_n(lse + c * w, row_max + scale, min(w, width - c * w))
                continue
            if op == SOFTMAX:
                scale = inverse(x, scales[c])
            scales[c] = scale + (row_max - row_max)  # NaN where the maximum is infinite
    if op == LOGSUMEXP:
        return
    for k in range(n):
        for c in range(vectors):
            at = k * stride + c * w
            left = min(w, width - c * w)
            a = load_n(x + at, left, 0.0)
            if exps != NULL:
                value = load(exps + at) * scales[c]
            elif op == SOFTMAX or op == LOG_SOFTMAX:
                value = exp_sub(a, maxima[c]) * scales[c] if op == SOFTMAX else (
                    sub_before_store(x, a - maxima[c], scales[c], halves))
            else:
                value = backward_value(op, x, a, load_n(second + at, left, 0.0), maxima[c])
            store_n(out + at, value, left)


cdef void tile(
    int op, const real* x, const real* second, real* out, Py_ssize_t rows, Py_ssize_t n,
    Py_ssize_t x_step, Py_ssize_t second_step, Py_ssize_t out_step
) noexcept nogil:
    """Any op on up to tile_rows short rows, as a panel of the compute type."""
    cdef char* memory = thread_memory(OF_TILE, 2 * TILE_MEMORY)
    cdef Py_ssize_t w = lanes(x), stride = (rows + w - 1) // w * w, k
    cdef vector[real]* a = aligned(x, memory)
    cdef vector[real]* b = a + n * stride // w
    load_tiles(x, x_step, rows, n, a)
    if op == SOFTMAX_BACKWARD or op == LOG_SOFTMAX_BACKWARD:
        load_tiles(second, second_step, rows, n, b)
    if real is double:
        panel(op, <double*>a, <double*>b, <double*>a, n, stride, stride, True, False, <double*>b)
    else:
        panel(op, <float*>a, <float*>b, <float*>a, n, stride, stride, True,
              real is f16 or real is bf16, <float*>b)
    if op != LOGSUMEXP:
        store_tiles(out, out_step, rows, n, a)
        return
    for k in range(rows):
        put(out + k, get_wide(out, b, k))
