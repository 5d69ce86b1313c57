# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: binding=True
"""Cross-entropy of a linear layer, x @ w.T + bias, whose logits are never in memory as a whole.

Rows go in blocks, which take MEMORY at most. Per block: the logits (read
_linear_cross_entropy_products.pxi), their loss and gradient in place (_loss.pxi), dx, and
dw += ..., so three products and nothing is computed twice. A dw of 16 bits cannot be added to
block by block: it is made in a second pass, by chunks of classes, for which the logits are
computed again from the state of each row: four products, as many as there would be without any
logits in memory, and these are of pairs of bfloat16 where the processor has them.

Rejected: tiles of logits that stay in the cache (with the lse first, so four products for all
dtypes: a third more arithmetic, which is all there is to save); rows of all blocks at once, whose
logits are 262 MB for 2048 rows and 32000 classes.

Ignored rows are left out from the start.
"""

from libc.math cimport expm1

cdef enum:
    TRANSFORMED = 0  # see _loss.pxi

ctypedef LinearClassLoss Arguments

include "_loss.pxi"
include "_linear_cross_entropy_products.pxi"

cdef enum:
    MEMORY = 54 << 20  # bytes; with that of threads less than 64 MB beside inputs and outputs
    CHUNK_MEMORY = 12 << 20  # of these, for a chunk of dw in float

cdef struct Linear:  # one call
    Py_ssize_t rows, width, classes  # rows that count
    const Py_ssize_t* row  # their numbers
    const int64_t* labels  # of them
    Py_ssize_t x_row, w_row, dx_row, dw_row  # from one row to the next, in elements
    const void* grad_loss  # of them, in the compute type; or of one number, or NULL
    void* loss  # of them, or NULL
    void* row_max  # of them, or NULL: the states of their logits, see _rows.pxi
    void* sumexp_m1
    double softcap
    int num_threads
    Problem loss_of  # what the loss of a block is


cdef Py_ssize_t block_rows(const Linear* a, const real* like) noexcept nogil:
    """Rows of a block, as equal as blocks can be, in whole tiles."""
    cdef Py_ssize_t logits = (a.classes + PADDING) * (2 if a.softcap else 1)
    cdef Py_ssize_t of_row = (logits + 3 * (a.width + PADDING)) * wide_size(like)  # and x, dx
    cdef Py_ssize_t memory = MEMORY if sizeof(real) > 2 else MEMORY - CHUNK_MEMORY
    cdef Py_ssize_t most = max(TILE_ROWS, memory // of_row // TILE_ROWS * TILE_ROWS)
    cdef Py_ssize_t blocks = max(1, (a.rows + most - 1) // most), rows
    rows = (a.rows + blocks - 1) // blocks
    return (rows + TILE_ROWS - 1) // TILE_ROWS * TILE_ROWS


cdef Py_ssize_t chunk_classes(const Linear* a) noexcept nogil:
    """Classes of a chunk of a dw of 16 bits."""
    cdef Py_ssize_t most = CHUNK_MEMORY // (max(1, a.width) * <Py_ssize_t>sizeof(float))
    return max(STRIP, most // STRIP * STRIP)


# ---- rows of logits --------------------------------------------------------------------------

cdef void finish_logits(
    const Block* b, const real* bias, double softcap, Py_ssize_t r
) noexcept nogil:
    """softcap * tanh((logits + bias) / softcap) of row r, without what is NULL or 0."""
    cdef Py_ssize_t w = lanes(bias), k, at, left
    cdef vector[real] cap = splat(bias, softcap), inverse_cap = splat(bias, 1), v
    if softcap != 0:
        inverse_cap = splat(bias, 1 / softcap)
    for k in range((b.classes + w - 1) // w):
        at = r * b.logits_row + k * w
        left = min(w, b.classes - k * w)
        v = load_wide(bias, b.logits, at, left)
        if bias != NULL:
            v = v + load_n(bias + k * w, left, 0.0)
        if softcap != 0:
            v = cap * tan_h(bias, v * inverse_cap)
        store_wide(bias, b.logits, at, v, left)


cdef void softcap_slope(
    const Block* b, const real* like, double softcap, Py_ssize_t r
) noexcept nogil:
    """The gradient of row r for the logits before softcap: times 1 - tanh**2."""
    cdef Py_ssize_t w = lanes(like), k, at, left
    cdef vector[real] one = splat(like, 1.0), cap = splat(like, softcap), t
    for k in range((b.classes + w - 1) // w):
        at = r * b.logits_row + k * w
        left = min(w, b.classes - k * w)
        t = load_wide(like, b.logits, at, left) / cap  # at most 1, unlike the product with 1 / cap
        store_wide(like, b.grad, at,
                   load_wide(like, b.grad, at, left) * ((one - t) * (one + t)), left)


cdef void gradient_from_state(
    const Block* b, const Problem* p, const wide* like, Py_ssize_t first, Py_ssize_t r
) noexcept nogil:
    """The gradient of row r for the classes from `first`, as many as the block has."""
    cdef const wide* x = <const wide*>b.logits + r * b.logits_row
    cdef wide* grad = <wide*>b.grad + r * b.logits_row
    cdef double row_max = get_wide(like, p.row_max, r), sumexp_m1 = get_wide(like, p.sumexp_m1, r)
    # NaN where the maximum is infinite.
    cdef double log_sum = log1p(sumexp_m1) + (row_max - row_max)
    cdef double scale = 1, weight = p.target_scale, p_factor, below = 0
    cdef Py_ssize_t label = p.labels[r] - first
    cdef bint inside = 0 <= label < b.classes
    if p.grad_loss != NULL:
        scale = get_wide(like, p.grad_loss, r if p.grad_loss_per_row else 0)
    scale = scale / p.denominator
    if p.weight != NULL:
        weight = weight * get_wide(like, p.weight, label)
    p_factor = p.uniform_total + weight + 2 * p.z_loss * (row_max + log_sum)
    if inside:
        below = expm1(x[label] - row_max - log_sum)
        weight = weight + p.uniform_share * (
            get_wide(like, p.weight, label) if p.weight != NULL else 1)
        below = scale * (weight * below + (p_factor - weight) * (1 + below))
    row_gradient(p, x, NULL, <const wide*>NULL, grad, 0, b.classes, row_max,
                 scale * p_factor / (1 + sumexp_m1), scale, 0)
    if inside:
        put(grad + label, below)


# ---- blocks and chunks -----------------------------------------------------------------------

cdef void start_block(
    const Linear* a, Block* b, const real* x, Py_ssize_t first, bint panels
) noexcept nogil:
    """The rows of x from number `first`, as many as the block has."""
    cdef Py_ssize_t r, step = 2 if b.pairs else 1
    for r in prange(b.rows, num_threads=a.num_threads, schedule="static"):
        gather_row(b, x + a.row[first + r] * a.x_row, r)
    if panels:
        for r in prange((b.rows + step - 1) // step, num_threads=a.num_threads, schedule="static"):
            fill_panels(b, x, r * step)


cdef void make_logits(
    const Linear* a, const Block* b, const real* w, const real* bias
) noexcept nogil:
    cdef Py_ssize_t width = panel_width(w), panels = (b.classes + width - 1) // width, task
    for task in prange(panels, num_threads=a.num_threads, schedule="dynamic"):
        logits_task(b, w, a.w_row, task, <char*>b.scratch + threadid() * b.scratch_size)
    if bias != NULL or a.softcap != 0:
        for task in prange(b.rows, num_threads=a.num_threads, schedule="static"):
            finish_logits(b, bias, a.softcap, task)


cdef void add_dw(
    const Linear* a, const Block* b, const real* like, void* dw, Py_ssize_t dw_row, void* dbias,
    bint add
) noexcept nogil:
    cdef Py_ssize_t strips = (b.classes + STRIP - 1) // STRIP, task
    for task in prange(strips, num_threads=a.num_threads, schedule="dynamic"):
        dw_task(b, like, dw, dw_row, dbias, task, add,
                <char*>b.scratch + threadid() * b.scratch_size)


cdef void make_dx(
    const Linear* a, const Block* b, const real* w, real* dx, Py_ssize_t first
) noexcept nogil:
    cdef Py_ssize_t groups = (b.width + COLUMN_GROUP - 1) // COLUMN_GROUP, task
    if b.pairs:
        for task in prange(b.rows, num_threads=a.num_threads, schedule="static"):
            narrow_row(b, w, task)
    for task in prange(groups, num_threads=a.num_threads, schedule="dynamic"):
        dx_task(b, w, a.w_row, task, <char*>b.scratch + threadid() * b.scratch_size)
    for task in prange(b.rows, num_threads=a.num_threads, schedule="static"):
        narrow_numbers(dx, b.dx, task * b.width, dx + a.row[first + task] * a.dx_row, b.width)


cdef Problem problem_of_rows(const Linear* a, const real* like, Py_ssize_t first,
                             const Block* b) noexcept nogil:
    cdef Problem p = a.loss_of
    p.outer = b.rows
    p.n = b.classes
    p.inner = 1
    p.x_step = b.logits_row
    p.grad_step = b.logits_row
    p.labels = a.labels + first
    p.loss = at_wide(like, a.loss, first) if a.loss != NULL else NULL
    if a.row_max != NULL:
        p.row_max = at_wide(like, a.row_max, first)
        p.sumexp_m1 = at_wide(like, a.sumexp_m1, first)
    p.grad_loss = a.grad_loss
    if p.grad_loss_per_row:
        p.grad_loss = at_wide(like, <void*>a.grad_loss, first)
    return p


cdef double blocks_of_rows(
    const Linear* a, Block* b, const real* x, const real* w, const real* bias, real* dx, real* dw,
    real* dbias, double* sums
) noexcept nogil:
    """Loss, dx, and dw where its dtype is computed in. The sum of the losses."""
    cdef Py_ssize_t most = b.rows, k, first, r
    cdef bint sum_dw = dw != NULL and (real is double or real is float)
    cdef double total = 0
    cdef Problem p
    for k in range((a.rows + most - 1) // most):
        first = k * most
        b.rows = min(most, a.rows - first)
        start_block(a, b, x, first, sum_dw)
        make_logits(a, b, w, bias)
        p = problem_of_rows(a, x, first, b)
        if real is double:
            total += run(&p, <const double*>b.logits, <const double*>NULL,
                         <double*>b.grad if dx != NULL else NULL, sums, a.num_threads)
        else:
            total += run(&p, <const float*>b.logits, <const float*>NULL,
                         <float*>b.grad if dx != NULL else NULL, sums, a.num_threads)
        if dx == NULL:
            continue
        if a.softcap != 0:
            for r in prange(b.rows, num_threads=a.num_threads, schedule="static"):
                softcap_slope(b, x, a.softcap, r)
        if sum_dw:
            add_dw(a, b, x, dw, a.dw_row, dbias, first > 0)
        make_dx(a, b, w, dx, first)
    b.rows = most
    return total


cdef void chunks_of_classes(
    const Linear* a, Block* b, const real* x, const real* w, const real* bias, real* dw,
    real* dbias, void* sums, void* bias_sums
) noexcept nogil:
    """dw of 16 bits, each chunk of it over all rows, summed in float."""
    cdef Py_ssize_t most = b.rows, classes = b.classes, chunk = chunk_classes(a), k, c, j, first, r
    cdef Problem p
    for k in range((classes + chunk - 1) // chunk):
        c = k * chunk
        b.classes = min(chunk, classes - c)
        for j in range((a.rows + most - 1) // most):
            first = j * most
            b.rows = min(most, a.rows - first)
            start_block(a, b, x, first, True)
            make_logits(a, b, w + c * a.w_row, bias + c if bias != NULL else NULL)
            p = problem_of_rows(a, x, first, b)
            if p.weight != NULL:
                p.weight = at_wide(x, <void*>p.weight, c)
            for r in prange(b.rows, num_threads=a.num_threads, schedule="static"):
                gradient_from_state(b, &p, <const float*>NULL, c, r)
                if a.softcap != 0:
                    softcap_slope(b, x, a.softcap, r)
            add_dw(a, b, x, sums, a.width, bias_sums, first > 0)
        for r in prange(b.classes, num_threads=a.num_threads, schedule="static"):
            narrow_numbers(x, sums, r * a.width, dw + (c + r) * a.dw_row, a.width)
            if dbias != NULL:
                put(dbias + c + r, get_wide(x, bias_sums, r))
    b.classes = classes
    b.rows = most


cdef int typed_linear(
    Linear* a, const real* x, const real* w, const real* bias, real* dx, real* dw, real* dbias,
    double* total, int threads
) noexcept nogil:
    cdef Block b
    cdef Py_ssize_t size = wide_size(x), panels, depth, chunk
    cdef bint halves = dw != NULL and not (real is double or real is float)
    cdef char* memory
    cdef char* part[7]
    cdef Py_ssize_t sizes[7]
    cdef double* sums
    cdef int k
    b.width = a.width
    b.classes = a.classes
    b.rows = min(block_rows(a, x), max(1, a.rows))
    b.pairs = False
    if real is bf16:
        b.pairs = HAS_BF16_PRODUCT and a.width % 2 == 0 and a.w_row % 2 == 0
    b.x_row = a.width + PADDING
    b.logits_row = a.classes + PADDING
    a.num_threads = threads_for(threads, a.rows * a.width * a.classes // 8)
    panels = (a.width + panel_width(x) - 1) // panel_width(x) * panel_width(x)
    depth = max(PANEL_DEPTH * max(COLUMN_GROUP, panel_width(x)), b.rows * STRIP + STRIP)
    b.scratch_size = (depth + PADDING) * size
    chunk = chunk_classes(a) if halves else 0
    sizes[0] = b.rows * b.x_row * size
    sizes[1] = (b.rows + 1) * panels * size
    sizes[2] = b.rows * b.logits_row * size
    sizes[3] = sizes[2] if a.softcap != 0 and dx != NULL else 0
    sizes[4] = b.rows * a.width * size
    sizes[5] = a.num_threads * b.scratch_size
    sizes[6] = chunk * (a.width + 1) * size
    cdef Py_ssize_t whole = 64
    for k in range(7):
        sizes[k] = (sizes[k] + 63) // 64 * 64
        whole += sizes[k]
    memory = <char*>in_huge_pages(whole)
    sums = allocate_sums(tasks(b.rows, a.classes, 1, lanes(x)))
    if memory == NULL or sums == NULL:
        free(memory)
        free(sums)
        return NO_MEMORY
    part[0] = <char*>((<size_t>memory + 63) & ~<size_t>63)
    for k in range(1, 7):
        part[k] = part[k - 1] + sizes[k - 1]
    b.x = part[0]
    b.panels = part[1]
    b.logits = part[2]
    b.grad = part[3] if sizes[3] else part[2]
    b.dx = part[4]
    b.scratch = part[5]
    total[0] = blocks_of_rows(a, &b, x, w, bias, dx, dw, dbias, sums)
    if halves:
        chunks_of_classes(a, &b, x, w, bias, dw, dbias, part[6],
                          part[6] + chunk * a.width * size)
    free(memory)
    free(sums)
    return 0


# ---- one call --------------------------------------------------------------------------------

cdef int typed(int op, const LinearClassLoss* g, const real* x, int threads) noexcept nogil:
    """Loss and gradients, whichever are not NULL: without the rows that are ignored, then these."""
    cdef Linear a
    cdef ClassLoss of_logits
    cdef Py_ssize_t number = wide_size(x), r, k, kept = 0
    cdef real* dx = <real*>g.d_input
    cdef real* dw = <real*>g.d_linear_weight
    cdef real* dbias = <real*>g.d_linear_bias
    cdef double total = 0
    cdef int result = 0
    cdef bint losses = g.per_row and g.loss != NULL, grad_losses = g.per_row and g.grad_loss != NULL
    cdef char* memory = <char*>malloc((g.rows + 1) * (2 * sizeof(int64_t) + 4 * number))
    if memory == NULL:
        return NO_MEMORY
    cdef Py_ssize_t* row = <Py_ssize_t*>memory
    cdef int64_t* labels = <int64_t*>(row + g.rows)
    cdef void* loss = labels + g.rows
    cdef void* grad_loss = at_wide(x, loss, g.rows)
    for r in range(g.rows):
        if g.labels[r] != g.ignore_index:
            row[kept] = r
            labels[kept] = g.labels[r]
            if grad_losses:
                put_wide(x, grad_loss, kept, get_wide(x, g.grad_loss, r))
            kept += 1
    memset(&a, 0, sizeof(a))
    a.rows = kept
    a.width = g.width
    a.classes = g.classes
    a.row = row
    a.labels = labels
    a.x_row = g.input_row
    a.w_row = g.linear_weight_row
    a.dx_row = g.d_input_row
    a.dw_row = g.d_linear_weight_row
    a.softcap = g.softcap
    a.grad_loss = g.grad_loss
    if grad_losses:
        a.grad_loss = grad_loss
    a.loss = loss if losses else NULL
    if dw != NULL and sizeof(real) == 2:  # for the second pass
        a.row_max = at_wide(x, grad_loss, g.rows)
        a.sumexp_m1 = at_wide(x, a.row_max, g.rows)
    memset(&of_logits, 0, sizeof(of_logits))
    of_logits.n = g.classes
    of_logits.weight = g.weight
    of_logits.ignore_index = INT64_MIN
    of_logits.denominator = g.denominator
    of_logits.label_smoothing = g.label_smoothing
    of_logits.z_loss = g.z_loss
    a.loss_of = problem_of(&of_logits)
    a.loss_of.grad_loss_per_row = grad_losses
    a.loss_of.loss_per_row = losses
    a.loss_of.uniform_total = uniform_total(&a.loss_of, x)
    if kept:
        result = typed_linear(&a, <const real*>g.input, <const real*>g.linear_weight,
                              <const real*>g.linear_bias, dx, dw, dbias, &total, threads)
    elif dw != NULL:
        for r in range(g.classes):
            memset(dw + r * g.d_linear_weight_row, 0, g.width * sizeof(real))
        if dbias != NULL:
            memset(dbias, 0, g.classes * sizeof(real))
    if g.loss != NULL and not losses:
        put_wide(x, g.loss, 0, total / g.denominator)
    k = 0
    for r in range(g.rows):
        if k < kept and row[k] == r:
            if losses:
                put_wide(x, g.loss, r, get_wide(x, loss, k))
            k += 1
            continue
        if losses:
            put_wide(x, g.loss, r, 0 / g.denominator)
        if dx != NULL:
            memset(dx + r * g.d_input_row, 0, g.width * sizeof(real))
    free(memory)
    return result


# ---- for Cython: see linear_cross_entropy.pxd ------------------------------------------------

cdef int from_cython(int part, int dtype, const LinearClassLoss* a, int threads) noexcept nogil:
    """Defaults are filled in; what is no argument of the function is not read."""
    cdef LinearClassLoss b = a[0]
    b.input_row = a.input_row or a.width
    b.linear_weight_row = a.linear_weight_row or a.width
    b.d_input_row = a.d_input_row or a.width
    b.d_linear_weight_row = a.d_linear_weight_row or a.width
    b.denominator = a.denominator or 1
    if not a.has_ignore_index:
        b.ignore_index = INT64_MIN
    if part == BACKWARD:
        b.loss = NULL
    else:
        b.grad_loss = NULL
    if part == FORWARD:
        b.d_input = NULL
        b.d_linear_weight = NULL
        b.d_linear_bias = NULL
    return by_dtype(0, dtype, &b, threads)


cdef int c_linear_cross_entropy(int dtype, const LinearClassLoss* a, int threads) noexcept nogil:
    return from_cython(FORWARD, dtype, a, threads)


cdef int c_linear_cross_entropy_backward(
    int dtype, const LinearClassLoss* a, int threads
) noexcept nogil:
    return from_cython(BACKWARD, dtype, a, threads)


cdef int c_linear_cross_entropy_with_grad(
    int dtype, const LinearClassLoss* a, int threads
) noexcept nogil:
    return from_cython(WITH_GRAD, dtype, a, threads)


# ---- for Python ------------------------------------------------------------------------------

cdef on_arrays(
    grad_loss, cnp.ndarray input, linear_weight, linear_bias, target, weight, loss, d_input,
    d_linear_weight, d_linear_bias, double denominator, int64_t ignore_index,
    double label_smoothing, double z_loss, double softcap, int threads
):
    cdef LinearClassLoss a
    cdef cnp.ndarray losses = loss if grad_loss is None else grad_loss
    a.input = data(input)
    a.linear_weight = data(linear_weight)
    a.linear_bias = data(linear_bias)
    a.labels = <const int64_t*>data(target)
    a.weight = data(weight)
    a.grad_loss = data(grad_loss)
    a.loss = data(loss)
    a.d_input = data(d_input)
    a.d_linear_weight = data(d_linear_weight)
    a.d_linear_bias = data(d_linear_bias)
    a.rows = cnp.PyArray_DIM(input, 0)
    a.width = cnp.PyArray_DIM(input, 1)
    a.classes = cnp.PyArray_DIM(<cnp.ndarray>linear_weight, 0)
    a.input_row = plane_step(input)
    a.linear_weight_row = plane_step(linear_weight)
    a.d_input_row = plane_step(d_input)
    a.d_linear_weight_row = plane_step(d_linear_weight)
    a.per_row = cnp.PyArray_DIM(losses, 0) == a.rows
    a.has_ignore_index = True
    a.ignore_index = ignore_index
    a.denominator = denominator
    a.label_smoothing = label_smoothing
    a.z_loss = z_loss
    a.softcap = softcap
    from_python(0, dtype_of(input), &a, threads)


def linear_cross_entropy(
    input, linear_weight, linear_bias, target, weight, loss, *, double denominator,
    int64_t ignore_index, double label_smoothing, double z_loss, double softcap, int threads
):
    on_arrays(None, input, linear_weight, linear_bias, target, weight, loss, None, None, None,
              denominator, ignore_index, label_smoothing, z_loss, softcap, threads)


def linear_cross_entropy_backward(
    grad_loss, input, linear_weight, linear_bias, target, weight, d_input, d_linear_weight,
    d_linear_bias, *, double denominator, int64_t ignore_index, double label_smoothing,
    double z_loss, double softcap, int threads
):
    on_arrays(grad_loss, input, linear_weight, linear_bias, target, weight, None, d_input,
              d_linear_weight, d_linear_bias, denominator, ignore_index, label_smoothing, z_loss,
              softcap, threads)


def linear_cross_entropy_with_grad(
    input, linear_weight, linear_bias, target, weight, loss, d_input, d_linear_weight,
    d_linear_bias, *, double denominator, int64_t ignore_index, double label_smoothing,
    double z_loss, double softcap, int threads
):
    on_arrays(None, input, linear_weight, linear_bias, target, weight, loss, d_input,
              d_linear_weight, d_linear_bias, denominator, ignore_index, label_smoothing, z_loss,
              softcap, threads)
