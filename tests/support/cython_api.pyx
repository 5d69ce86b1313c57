"""What another project would write: the kernels of fastce, called through their .pxd files.

Its functions have the names and parameters of the kernels, and return what the C function returns.
"""

from cython.parallel cimport prange
from libc.stdint cimport int64_t
from libc.string cimport memset

from fastce.kernels.cython.attention cimport (
    Attention, AttentionGradient, Heads, c_attention, c_attention_backward
)
from fastce.kernels.cython.binary_cross_entropy cimport (
    c_binary_cross_entropy, c_binary_cross_entropy_backward, c_binary_cross_entropy_with_grad,
    c_binary_cross_entropy_with_logits, c_binary_cross_entropy_with_logits_backward,
    c_binary_cross_entropy_with_logits_with_grad, c_scan_probabilities, c_sigmoid_focal_loss,
    c_sigmoid_focal_loss_backward, c_sigmoid_focal_loss_with_grad
)
from fastce.kernels.cython.categorical_cross_entropy cimport (
    c_categorical_cross_entropy, c_categorical_cross_entropy_backward,
    c_categorical_cross_entropy_with_grad
)
from fastce.kernels.cython.cross_entropy cimport (
    WIDE_TARGET, c_cross_entropy, c_cross_entropy_backward, c_cross_entropy_with_grad, c_nll_loss,
    c_nll_loss_backward, c_scan_target
)
from fastce.kernels.cython.information cimport (
    c_conditional_entropy, c_cross_entropy_of, c_entropy, c_entropy_from_logits,
    c_entropy_from_logits_with_grad, c_js_divergence, c_kl_divergence, c_kl_divergence_from_logits,
    c_kl_divergence_from_logits_with_grad, c_mutual_information
)
from fastce.kernels.cython.linear_cross_entropy cimport (
    LinearLoss, c_linear_cross_entropy, c_linear_cross_entropy_backward,
    c_linear_cross_entropy_with_grad
)
from fastce.kernels.cython.log_softmax cimport (
    BF16, F16, F32, F64, c_log_softmax, c_log_softmax_backward, c_logsumexp, c_softmax,
    c_softmax_backward
)

from fastce.kernels.cython.robust_losses cimport (
    c_robust_losses, c_robust_losses_backward, c_robust_losses_with_grad
)

DTYPES = {"float64": F64, "float32": F32, "float16": F16, "uint16": BF16}

ctypedef int (*Forward)(
    int, const void*, void*, Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t, int
) noexcept nogil
ctypedef int (*Backward)(
    int, const void*, const void*, void*, Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t,
    Py_ssize_t, Py_ssize_t, int
) noexcept nogil


cdef void* at(a):
    return NULL if a is None else <void*><size_t>a.ctypes.data


cdef struct Planes:  # an array (outer, n, inner), or nothing
    int dtype
    void* data
    Py_ssize_t outer, n, inner, step


cdef Planes planes(a):
    cdef Planes p
    memset(&p, 0, sizeof(p))
    if a is not None:
        p.dtype = DTYPES[a.dtype.name]
        p.data = at(a)
        p.outer, p.n, p.inner = a.shape
        p.step = a.strides[0] // a.itemsize
    return p


# ---- log_softmax ----------------------------------------------------------------------------

def logsumexp(x, out, *, int threads):
    cdef Planes a = planes(x)
    cdef void* to = at(out)
    cdef int result
    with nogil:
        result = c_logsumexp(a.dtype, a.data, to, a.outer, a.n, a.inner, a.step, threads)
    return result


cdef forward(Forward function, x, out, int threads):
    cdef Planes a = planes(x), b = planes(out)
    cdef int result
    with nogil:
        result = function(a.dtype, a.data, b.data, a.outer, a.n, a.inner, a.step, b.step, threads)
    return result


def softmax(x, out, *, int threads):
    return forward(c_softmax, x, out, threads)


def log_softmax(x, out, *, int threads):
    return forward(c_log_softmax, x, out, threads)


cdef backward(Backward function, grad, y, out, int threads):
    cdef Planes a = planes(grad), b = planes(y), c = planes(out)
    cdef int result
    with nogil:
        result = function(a.dtype, a.data, b.data, c.data, a.outer, a.n, a.inner, a.step, b.step,
                          c.step, threads)
    return result


def softmax_backward(grad, y, out, *, int threads):
    return backward(c_softmax_backward, grad, y, out, threads)


def log_softmax_backward(grad, y, out, *, int threads):
    return backward(c_log_softmax_backward, grad, y, out, threads)


def softmax_in_prange(float[:, :, ::1] x, float[:, :, ::1] out):
    """Each row by itself, in threads of the caller."""
    cdef Py_ssize_t k, n = x.shape[1]
    for k in prange(x.shape[0], nogil=True, num_threads=2):
        c_softmax(F32, &x[k, 0, 0], &out[k, 0, 0], 1, n, 1, n, n, 1)


# ---- cross_entropy --------------------------------------------------------------------------

cdef struct Target:
    int64_t* labels
    Planes probabilities
    void* weight
    void* loss  # or its gradient
    bint per_row
    int wide


cdef Target target_of(x, target, weight, loss):
    cdef Target t
    cdef int axes = 0 if target is None else target.ndim
    t.labels = <int64_t*>at(target) if axes == 2 else NULL
    t.probabilities = planes(target if axes == 3 else None)
    t.weight = at(weight)
    t.loss = at(loss)
    t.per_row = loss.shape == (x.shape[0], x.shape[2])
    t.wide = WIDE_TARGET if axes == 3 and target.itemsize > x.itemsize else 0
    return t


def cross_entropy(logits, target, weight, loss, lse, *, double denominator, int64_t ignore_index,
                  double label_smoothing, double z_loss, int threads):
    cdef Planes x = planes(logits)
    cdef Target t = target_of(logits, target, weight, loss)
    cdef void* norms = at(lse)
    cdef int result
    with nogil:
        result = c_cross_entropy(
            x.dtype + t.wide, x.data, t.labels, t.probabilities.data, t.weight, t.loss, norms,
            x.outer, x.n, x.inner, x.step, t.probabilities.step, t.per_row, denominator,
            ignore_index, label_smoothing, z_loss, threads)
    return result


def cross_entropy_backward(grad_loss, logits, target, weight, grad, *, double denominator,
                           int64_t ignore_index, double label_smoothing, double z_loss,
                           int threads):
    cdef Planes x = planes(logits), g = planes(grad)
    cdef Target t = target_of(logits, target, weight, grad_loss)
    cdef int result
    with nogil:
        result = c_cross_entropy_backward(
            x.dtype + t.wide, t.loss, x.data, t.labels, t.probabilities.data, t.weight, g.data,
            x.outer, x.n, x.inner, x.step, t.probabilities.step, g.step, t.per_row, denominator,
            ignore_index, label_smoothing, z_loss, threads)
    return result


def cross_entropy_with_grad(logits, target, weight, loss, grad, *, double denominator,
                            int64_t ignore_index, double label_smoothing, double z_loss,
                            int threads):
    cdef Planes x = planes(logits), g = planes(grad)
    cdef Target t = target_of(logits, target, weight, loss)
    cdef int result
    with nogil:
        result = c_cross_entropy_with_grad(
            x.dtype + t.wide, x.data, t.labels, t.probabilities.data, t.weight, t.loss, g.data,
            x.outer, x.n, x.inner, x.step, t.probabilities.step, g.step, t.per_row, denominator,
            ignore_index, label_smoothing, z_loss, threads)
    return result


def scan_target(target, weight, stats, *, Py_ssize_t classes, int64_t ignore_index, int threads):
    cdef int dtype = F32 if weight is None else DTYPES[weight.dtype.name]
    cdef void* labels = at(target)
    cdef void* weights = at(weight)
    cdef void* found = at(stats)
    cdef Py_ssize_t rows = target.size
    cdef int result
    with nogil:
        result = c_scan_target(dtype, <int64_t*>labels, weights, <double*>found, rows, classes,
                               ignore_index, threads)
    return result


def nll_loss(log_probs, target, weight, loss, *, double denominator, int64_t ignore_index,
             int threads):
    cdef Planes x = planes(log_probs)
    cdef Target t = target_of(log_probs, target, weight, loss)
    cdef int result
    with nogil:
        result = c_nll_loss(x.dtype, x.data, t.labels, t.weight, t.loss, x.outer, x.n, x.inner,
                            x.step, t.per_row, denominator, ignore_index, threads)
    return result


def nll_loss_backward(grad_loss, target, weight, grad, *, double denominator,
                      int64_t ignore_index, int threads):
    cdef Planes g = planes(grad)
    cdef Target t = target_of(grad, target, weight, grad_loss)
    cdef int result
    with nogil:
        result = c_nll_loss_backward(g.dtype, t.loss, t.labels, t.weight, g.data, g.outer, g.n,
                                     g.inner, g.step, t.per_row, denominator, ignore_index, threads)
    return result


# ---- categorical_cross_entropy --------------------------------------------------------------

def categorical_cross_entropy(probs, target, weight, loss, *, double denominator,
                              int64_t ignore_index, double label_smoothing, double epsilon,
                              int threads):
    cdef Planes x = planes(probs)
    cdef Target t = target_of(probs, target, weight, loss)
    cdef int result
    with nogil:
        result = c_categorical_cross_entropy(
            x.dtype + t.wide, x.data, t.labels, t.probabilities.data, t.weight, t.loss, x.outer,
            x.n, x.inner, x.step, t.probabilities.step, t.per_row, denominator, ignore_index,
            label_smoothing, epsilon, threads)
    return result


def categorical_cross_entropy_backward(grad_loss, probs, target, weight, grad, *,
                                       double denominator, int64_t ignore_index,
                                       double label_smoothing, double epsilon, int threads):
    cdef Planes x = planes(probs), g = planes(grad)
    cdef Target t = target_of(probs, target, weight, grad_loss)
    cdef int result
    with nogil:
        result = c_categorical_cross_entropy_backward(
            x.dtype + t.wide, t.loss, x.data, t.labels, t.probabilities.data, t.weight, g.data,
            x.outer, x.n, x.inner, x.step, t.probabilities.step, g.step, t.per_row, denominator,
            ignore_index, label_smoothing, epsilon, threads)
    return result


def categorical_cross_entropy_with_grad(probs, target, weight, loss, grad, *, double denominator,
                                        int64_t ignore_index, double label_smoothing,
                                        double epsilon, int threads):
    cdef Planes x = planes(probs), g = planes(grad)
    cdef Target t = target_of(probs, target, weight, loss)
    cdef int result
    with nogil:
        result = c_categorical_cross_entropy_with_grad(
            x.dtype + t.wide, x.data, t.labels, t.probabilities.data, t.weight, t.loss, g.data,
            x.outer, x.n, x.inner, x.step, t.probabilities.step, g.step, t.per_row, denominator,
            ignore_index, label_smoothing, epsilon, threads)
    return result


# ---- robust_losses --------------------------------------------------------------------------

def robust_losses(logits, target, weight, loss, *, double alpha, double gamma, double q,
                  double epsilon, double beta, double denominator, int64_t ignore_index,
                  int threads):
    cdef Planes x = planes(logits)
    cdef Target t = target_of(logits, target, weight, loss)
    cdef int result
    with nogil:
        result = c_robust_losses(
            x.dtype, x.data, t.labels, t.weight, t.loss, x.outer, x.n, x.inner, x.step, t.per_row,
            alpha, gamma, q, epsilon, beta, denominator, ignore_index, threads)
    return result


def robust_losses_backward(grad_loss, logits, target, weight, grad, *, double alpha, double gamma,
                           double q, double epsilon, double beta, double denominator,
                           int64_t ignore_index, int threads):
    cdef Planes x = planes(logits), g = planes(grad)
    cdef Target t = target_of(logits, target, weight, grad_loss)
    cdef int result
    with nogil:
        result = c_robust_losses_backward(
            x.dtype, t.loss, x.data, t.labels, t.weight, g.data, x.outer, x.n, x.inner, x.step,
            g.step, t.per_row, alpha, gamma, q, epsilon, beta, denominator, ignore_index, threads)
    return result


def robust_losses_with_grad(logits, target, weight, loss, grad, *, double alpha, double gamma,
                            double q, double epsilon, double beta, double denominator,
                            int64_t ignore_index, int threads):
    cdef Planes x = planes(logits), g = planes(grad)
    cdef Target t = target_of(logits, target, weight, loss)
    cdef int result
    with nogil:
        result = c_robust_losses_with_grad(
            x.dtype, x.data, t.labels, t.weight, t.loss, g.data, x.outer, x.n, x.inner, x.step,
            g.step, t.per_row, alpha, gamma, q, epsilon, beta, denominator, ignore_index, threads)
    return result


# ---- linear_cross_entropy -------------------------------------------------------------------

cdef Py_ssize_t row_step(a):
    return 0 if a is None else a.strides[0] // a.itemsize


cdef LinearLoss linear_loss(
    input, linear_weight, linear_bias, target, weight, double denominator, int64_t ignore_index,
    double label_smoothing, double z_loss, double softcap
):
    cdef LinearLoss a
    memset(&a, 0, sizeof(a))
    a.input = at(input)
    a.linear_weight = at(linear_weight)
    a.linear_bias = at(linear_bias)
    a.target = <const int64_t*>at(target)
    a.weight = at(weight)
    a.rows, a.width = input.shape
    a.classes = len(linear_weight)
    a.input_row = row_step(input)
    a.linear_weight_row = row_step(linear_weight)
    a.denominator = denominator
    a.ignore_index = ignore_index
    a.label_smoothing = label_smoothing
    a.z_loss = z_loss
    a.softcap = softcap
    return a


cdef void add_gradients(LinearLoss* a, d_input, d_linear_weight, d_linear_bias):
    a.d_input = at(d_input)
    a.d_linear_weight = at(d_linear_weight)
    a.d_linear_bias = at(d_linear_bias)
    a.d_input_row = row_step(d_input)
    a.d_linear_weight_row = row_step(d_linear_weight)


def linear_cross_entropy(
    input, linear_weight, linear_bias, target, weight, loss, *, denominator, ignore_index,
    label_smoothing, z_loss, softcap, int threads
):
    cdef LinearLoss a = linear_loss(input, linear_weight, linear_bias, target, weight, denominator,
                                    ignore_index, label_smoothing, z_loss, softcap)
    cdef int dtype = DTYPES[input.dtype.name], result
    a.loss = at(loss)
    a.per_row = len(loss) == len(input)
    with nogil:
        result = c_linear_cross_entropy(dtype, &a, threads)
    return result


def linear_cross_entropy_backward(
    grad_loss, input, linear_weight, linear_bias, target, weight, d_input, d_linear_weight,
    d_linear_bias, *, denominator, ignore_index, label_smoothing, z_loss, softcap, int threads
):
    cdef LinearLoss a = linear_loss(input, linear_weight, linear_bias, target, weight, denominator,
                                    ignore_index, label_smoothing, z_loss, softcap)
    cdef int dtype = DTYPES[input.dtype.name], result
    add_gradients(&a, d_input, d_linear_weight, d_linear_bias)
    a.grad_loss = at(grad_loss)
    a.per_row = len(grad_loss) == len(input)
    with nogil:
        result = c_linear_cross_entropy_backward(dtype, &a, threads)
    return result


def linear_cross_entropy_with_grad(
    input, linear_weight, linear_bias, target, weight, loss, d_input, d_linear_weight,
    d_linear_bias, *, denominator, ignore_index, label_smoothing, z_loss, softcap, int threads
):
    cdef LinearLoss a = linear_loss(input, linear_weight, linear_bias, target, weight, denominator,
                                    ignore_index, label_smoothing, z_loss, softcap)
    cdef int dtype = DTYPES[input.dtype.name], result
    add_gradients(&a, d_input, d_linear_weight, d_linear_bias)
    a.loss = at(loss)
    a.per_row = len(loss) == len(input)
    with nogil:
        result = c_linear_cross_entropy_with_grad(dtype, &a, threads)
    return result


# ---- binary_cross_entropy -------------------------------------------------------------------

cdef struct Elements:
    int dtype
    void* x
    void* target
    void* weight
    void* pos_weight
    Py_ssize_t n, weights, pos_weights


cdef Elements elements(x, target=None, weight=None, pos_weight=None):
    cdef Elements e
    e.dtype, e.n = DTYPES[x.dtype.name], x.size
    e.x, e.target, e.weight, e.pos_weight = at(x), at(target), at(weight), at(pos_weight)
    e.weights = 0 if weight is None else weight.size
    e.pos_weights = 0 if pos_weight is None else pos_weight.size
    if target is not None and target.itemsize > x.itemsize:
        e.dtype += WIDE_TARGET
    return e


def scan_probabilities(probs, stats, *, int threads):
    cdef Elements e = elements(probs)
    cdef double* found = <double*>at(stats)
    cdef int result
    with nogil:
        result = c_scan_probabilities(e.dtype, e.x, found, e.n, threads)
    return result


def binary_cross_entropy(probs, target, weight, loss, *, double denominator, int threads):
    cdef Elements e = elements(probs, target, weight)
    cdef void* losses = at(loss)
    cdef bint each = loss.size > 1
    cdef int result
    with nogil:
        result = c_binary_cross_entropy(
            e.dtype, e.x, e.target, e.weight, e.weights, losses, e.n, each, denominator, threads)
    return result


def binary_cross_entropy_backward(grad_loss, probs, target, weight, grad, *, double denominator,
                                  int threads):
    cdef Elements e = elements(probs, target, weight)
    cdef void* upstream = at(grad_loss)
    cdef void* slopes = at(grad)
    cdef bint each = grad_loss.size > 1
    cdef int result
    with nogil:
        result = c_binary_cross_entropy_backward(
            e.dtype, upstream, e.x, e.target, e.weight, e.weights, slopes, e.n, each, denominator,
            threads)
    return result


def binary_cross_entropy_with_grad(probs, target, weight, loss, grad, *, double denominator,
                                   int threads):
    cdef Elements e = elements(probs, target, weight)
    cdef void* losses = at(loss)
    cdef void* slopes = at(grad)
    cdef bint each = loss.size > 1
    cdef int result
    with nogil:
        result = c_binary_cross_entropy_with_grad(
            e.dtype, e.x, e.target, e.weight, e.weights, losses, slopes, e.n, each, denominator,
            threads)
    return result


def binary_cross_entropy_with_logits(logits, target, weight, pos_weight, loss, *,
                                     double denominator, double label_smoothing, int threads):
    cdef Elements e = elements(logits, target, weight, pos_weight)
    cdef void* losses = at(loss)
    cdef bint each = loss.size > 1
    cdef int result
    with nogil:
        result = c_binary_cross_entropy_with_logits(
            e.dtype, e.x, e.target, e.weight, e.weights, e.pos_weight, e.pos_weights, losses, e.n,
            each, denominator, label_smoothing, threads)
    return result


def binary_cross_entropy_with_logits_backward(grad_loss, logits, target, weight, pos_weight, grad,
                                              *, double denominator, double label_smoothing,
                                              int threads):
    cdef Elements e = elements(logits, target, weight, pos_weight)
    cdef void* upstream = at(grad_loss)
    cdef void* slopes = at(grad)
    cdef bint each = grad_loss.size > 1
    cdef int result
    with nogil:
        result = c_binary_cross_entropy_with_logits_backward(
            e.dtype, upstream, e.x, e.target, e.weight, e.weights, e.pos_weight, e.pos_weights,
            slopes, e.n, each, denominator, label_smoothing, threads)
    return result


def binary_cross_entropy_with_logits_with_grad(logits, target, weight, pos_weight, loss, grad, *,
                                               double denominator, double label_smoothing,
                                               int threads):
    cdef Elements e = elements(logits, target, weight, pos_weight)
    cdef void* losses = at(loss)
    cdef void* slopes = at(grad)
    cdef bint each = loss.size > 1
    cdef int result
    with nogil:
        result = c_binary_cross_entropy_with_logits_with_grad(
            e.dtype, e.x, e.target, e.weight, e.weights, e.pos_weight, e.pos_weights, losses,
            slopes, e.n, each, denominator, label_smoothing, threads)
    return result


def sigmoid_focal_loss(logits, target, loss, *, double denominator, double gamma, double positive,
                       double negative, int threads):
    cdef Elements e = elements(logits, target)
    cdef void* losses = at(loss)
    cdef bint each = loss.size > 1
    cdef int result
    with nogil:
        result = c_sigmoid_focal_loss(e.dtype, e.x, e.target, losses, e.n, each, denominator, gamma,
                                      positive, negative, threads)
    return result


def sigmoid_focal_loss_backward(grad_loss, logits, target, grad, *, double denominator,
                                double gamma, double positive, double negative, int threads):
    cdef Elements e = elements(logits, target)
    cdef void* upstream = at(grad_loss)
    cdef void* slopes = at(grad)
    cdef bint each = grad_loss.size > 1
    cdef int result
    with nogil:
        result = c_sigmoid_focal_loss_backward(e.dtype, upstream, e.x, e.target, slopes, e.n, each,
                                               denominator, gamma, positive, negative, threads)
    return result


def sigmoid_focal_loss_with_grad(logits, target, loss, grad, *, double denominator, double gamma,
                                 double positive, double negative, int threads):
    cdef Elements e = elements(logits, target)
    cdef void* losses = at(loss)
    cdef void* slopes = at(grad)
    cdef bint each = loss.size > 1
    cdef int result
    with nogil:
        result = c_sigmoid_focal_loss_with_grad(e.dtype, e.x, e.target, losses, slopes, e.n, each,
                                                denominator, gamma, positive, negative, threads)
    return result


# ---- attention ------------------------------------------------------------------------------

cdef enum:
    AXES = 2  # most batch axes

cdef struct Strides:
    Py_ssize_t[AXES] batch


cdef Heads heads_of(a, int axes, Strides* strides):
    cdef Heads heads
    cdef int k
    memset(&heads, 0, sizeof(heads))
    if a is None:
        return heads
    for k in range(axes):
        strides.batch[k] = a.strides[k]
    heads.data = at(a)
    heads.batch = strides.batch
    heads.head = a.strides[axes]
    heads.row = a.strides[axes + 1]
    if a.ndim > axes + 2:
        heads.item = a.strides[axes + 2]
    return heads


cdef Attention attention_of(
    q, k, v, mask, spans, out, lse, double scale, Py_ssize_t left, Py_ssize_t right,
    double softcap, Py_ssize_t* shape, Strides* strides
):
    cdef Attention a
    cdef int axes = q.ndim - 3, axis
    memset(&a, 0, sizeof(a))
    for axis in range(axes):
        shape[axis] = q.shape[axis]
    a.axes = axes
    a.shape = shape
    a.heads = q.shape[axes]
    a.kv_heads = k.shape[axes]
    a.queries = q.shape[axes + 1]
    a.keys = k.shape[axes + 1]
    a.width = q.shape[axes + 2]
    a.value_width = v.shape[axes + 2]
    if axes == 1:  # elsewhere the default, which is the same
        a.spans = <int64_t*>at(spans)
    a.scale = scale
    a.softcap = softcap
    if left >= 0 or right >= 0:
        a.windowed, a.left, a.right = True, left, right
    a.q = heads_of(q, axes, strides)
    a.k = heads_of(k, axes, strides + 1)
    a.v = heads_of(v, axes, strides + 2)
    a.out = heads_of(out, axes, strides + 3)
    a.lse = heads_of(lse, axes, strides + 4)
    a.mask = heads_of(mask, axes, strides + 5)
    a.bool_mask = mask is not None and mask.dtype == bool
    return a


def attention(q, k, v, mask, spans, out, lse, *, scale, left, right, softcap, int threads):
    cdef Py_ssize_t[AXES] shape
    cdef Strides[6] strides
    cdef int dtype = DTYPES[q.dtype.name]
    cdef Attention a = attention_of(q, k, v, mask, spans, out, lse, scale, left, right, softcap,
                                    shape, strides)
    cdef int result
    with nogil:
        result = c_attention(dtype, &a, threads)
    return result


def attention_backward(grad_out, q, k, v, mask, spans, out, lse, dq, dk, dv, dmask, *, scale, left,
                       right, softcap, int threads):
    cdef Py_ssize_t[AXES] shape
    cdef Strides[11] strides
    cdef int dtype = DTYPES[q.dtype.name], axes = q.ndim - 3
    cdef AttentionGradient g
    cdef Attention a = attention_of(q, k, v, mask, spans, out, lse, scale, left, right, softcap,
                                    shape, strides)
    g.grad_out = heads_of(grad_out, axes, strides + 6)
    g.dq = heads_of(dq, axes, strides + 7)
    g.dk = heads_of(dk, axes, strides + 8)
    g.dv = heads_of(dv, axes, strides + 9)
    g.dmask = heads_of(dmask, axes, strides + 10)
    cdef int result
    with nogil:
        result = c_attention_backward(dtype, &a, &g, threads)
    return result


# ---- information ----------------------------------------------------------------------------

def entropy(p, out, *, double unit, bint exponential, int threads):
    cdef Planes a = planes(p)
    cdef void* to = at(out)
    cdef int result
    with nogil:
        result = c_entropy(a.dtype, a.data, to, a.outer, a.n, a.inner, a.step, unit, exponential,
                           threads)
    return result


def cross_entropy_of(p, q, out, *, double unit, bint exponential, int threads):
    cdef Planes a = planes(p), b = planes(q)
    cdef void* to = at(out)
    cdef int result
    with nogil:
        result = c_cross_entropy_of(a.dtype, a.data, b.data, to, a.outer, a.n, a.inner, a.step,
                                    b.step, unit, exponential, threads)
    return result


ctypedef int (*Divergence)(
    int, const void*, const void*, void*, Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t,
    Py_ssize_t, double, int
) noexcept nogil


cdef divergence(Divergence function, p, q, out, double unit, int threads):
    cdef Planes a = planes(p), b = planes(q)
    cdef void* to = at(out)
    cdef int result
    with nogil:
        result = function(a.dtype, a.data, b.data, to, a.outer, a.n, a.inner, a.step, b.step, unit,
                          threads)
    return result


def kl_divergence(p, q, out, *, double unit, int threads):
    return divergence(c_kl_divergence, p, q, out, unit, threads)


def js_divergence(p, q, out, *, double unit, int threads):
    return divergence(c_js_divergence, p, q, out, unit, threads)


def kl_divergence_from_logits(p_logits, q_logits, out, *, double unit, int threads):
    return divergence(c_kl_divergence_from_logits, p_logits, q_logits, out, unit, threads)


ctypedef int (*OfOne)(
    int, const void*, void*, Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t, double, int
) noexcept nogil


cdef of_one(OfOne function, x, out, double unit, int threads):
    cdef Planes a = planes(x)
    cdef void* to = at(out)
    cdef int result
    with nogil:
        result = function(a.dtype, a.data, to, a.outer, a.n, a.inner, a.step, unit, threads)
    return result


def conditional_entropy(table, out, *, double unit, int threads):
    return of_one(c_conditional_entropy, table, out, unit, threads)


def mutual_information(table, out, *, double unit, int threads):
    return of_one(c_mutual_information, table, out, unit, threads)


def entropy_from_logits(logits, out, *, double unit, int threads):
    return of_one(c_entropy_from_logits, logits, out, unit, threads)


def entropy_from_logits_with_grad(logits, out, grad, *, double unit, int threads):
    cdef Planes a = planes(logits), b = planes(grad)
    cdef void* to = at(out)
    cdef int result
    with nogil:
        result = c_entropy_from_logits_with_grad(
            a.dtype, a.data, to, b.data, a.outer, a.n, a.inner, a.step, b.step, unit, threads)
    return result


def kl_divergence_from_logits_with_grad(
    p_logits, q_logits, out, q_grad, p_grad, *, double unit, int threads
):
    cdef Planes a = planes(p_logits), b = planes(q_logits), c = planes(q_grad), d = planes(p_grad)
    cdef void* to = at(out)
    cdef int result
    with nogil:
        result = c_kl_divergence_from_logits_with_grad(
            a.dtype, a.data, b.data, to, c.data, d.data, a.outer, a.n, a.inner, a.step, b.step,
            c.step, d.step, unit, threads)
    return result


def unknown_dtype():
    cdef Attention a
    cdef AttentionGradient g
    memset(&a, 0, sizeof(a))
    memset(&g, 0, sizeof(g))
    return [
        c_softmax(4, NULL, NULL, 0, 0, 0, 0, 0, 1),
        c_nll_loss(-1, NULL, NULL, NULL, NULL, 0, 0, 0, 0, False, 1, 0, 1),
        c_categorical_cross_entropy(
            8, NULL, NULL, NULL, NULL, NULL, 0, 0, 0, 0, 0, False, 1, 0, 0, 0, 1),
        c_robust_losses(9, NULL, NULL, NULL, NULL, 0, 0, 0, 0, False, 1, 0, 0, 0, 0, 1, 0, 1),
        c_scan_probabilities(4, NULL, NULL, 0, 1),
        c_binary_cross_entropy(5, NULL, NULL, NULL, 0, NULL, 0, False, 1, 1),
        c_attention(7, &a, 1),
        c_attention_backward(7, &a, &g, 1),
        c_entropy(4, NULL, NULL, 0, 0, 0, 0, 1, False, 1),
        c_mutual_information(4, NULL, NULL, 0, 0, 0, 0, 1, 1),
    ]
