"""What another project would write: the kernels of fastce, called through their .pxd files.

Its functions have the names and parameters of the kernels, and return what the C function returns.
Where a field of a struct has its default, it is left at zero.
"""

from cython.parallel cimport prange
from libc.stdint cimport int64_t
from libc.string cimport memset

from fastce.kernels.cython.attention cimport (
    Attention, AttentionArray, AttentionGradient, c_attention, c_attention_backward
)
from fastce.kernels.cython.binary_cross_entropy cimport (
    BinaryLoss, c_binary_cross_entropy, c_binary_cross_entropy_backward,
    c_binary_cross_entropy_with_grad, c_binary_cross_entropy_with_logits,
    c_binary_cross_entropy_with_logits_backward, c_binary_cross_entropy_with_logits_with_grad,
    c_scan_probabilities, c_sigmoid_focal_loss, c_sigmoid_focal_loss_backward,
    c_sigmoid_focal_loss_with_grad
)
from fastce.kernels.cython.categorical_cross_entropy cimport (
    c_categorical_cross_entropy, c_categorical_cross_entropy_backward,
    c_categorical_cross_entropy_with_grad
)
from fastce.kernels.cython.cross_entropy cimport (
    ClassLoss, c_cross_entropy, c_cross_entropy_backward, c_cross_entropy_with_grad, c_nll_loss,
    c_nll_loss_backward, c_scan_target
)
from fastce.kernels.cython.information cimport (
    Information, c_conditional_entropy, c_cross_entropy_of, c_entropy, c_entropy_from_logits,
    c_entropy_from_logits_with_grad, c_js_divergence, c_kl_divergence, c_kl_divergence_from_logits,
    c_kl_divergence_from_logits_with_grad, c_mutual_information
)
from fastce.kernels.cython.linear_cross_entropy cimport (
    LinearClassLoss, c_linear_cross_entropy, c_linear_cross_entropy_backward,
    c_linear_cross_entropy_with_grad
)
from fastce.kernels.cython.log_softmax cimport (
    BF16, CONTRACT, F16, F32, F64, LogSoftmax, c_log_softmax, c_log_softmax_backward, c_logsumexp,
    c_softmax, c_softmax_backward
)

from fastce.kernels.cython.robust_losses cimport (
    RobustLoss, c_robust_losses, c_robust_losses_backward, c_robust_losses_with_grad
)

DTYPES = {"float64": F64, "float32": F32, "float16": F16, "uint16": BF16}
contract = CONTRACT


cdef void* at(a):
    return NULL if a is None else <void*><size_t>a.ctypes.data


cdef Py_ssize_t step_of(a):
    """From one plane, or row, to the next; 0 is the default, if they follow each other."""
    cdef Py_ssize_t plane = 1, n
    if a is None:
        return 0
    for n in a.shape[1:]:
        plane *= n
    return 0 if a.strides[0] == plane * a.itemsize else a.strides[0] // a.itemsize


cdef Py_ssize_t inner_of(a):
    return 0 if a.shape[2] == 1 else a.shape[2]


cdef double denominator_of(double denominator):
    return 0 if denominator == 1 else denominator


# ---- log_softmax ----------------------------------------------------------------------------

ctypedef int (*OfLogSoftmax)(int, const LogSoftmax*, int) noexcept nogil


cdef log_softmax_call(OfLogSoftmax function, x, y, grad, out, int threads):
    cdef LogSoftmax a
    cdef int dtype = DTYPES[out.dtype.name], result
    memset(&a, 0, sizeof(a))
    a.x, a.y, a.grad, a.out = at(x), at(y), at(grad), at(out)
    shaped = y if x is None else x
    a.outer, a.n, a.inner = shaped.shape[0], shaped.shape[1], inner_of(shaped)
    a.x_step, a.y_step, a.grad_step = step_of(x), step_of(y), step_of(grad)
    if out.ndim == 3:
        a.out_step = step_of(out)
    with nogil:
        result = function(dtype, &a, threads)
    return result


def logsumexp(x, out, *, int threads):
    return log_softmax_call(c_logsumexp, x, None, None, out, threads)


def softmax(x, out, *, int threads):
    return log_softmax_call(c_softmax, x, None, None, out, threads)


def log_softmax(x, out, *, int threads):
    return log_softmax_call(c_log_softmax, x, None, None, out, threads)


def softmax_backward(grad, y, out, *, int threads):
    return log_softmax_call(c_softmax_backward, None, y, grad, out, threads)


def log_softmax_backward(grad, y, out, *, int threads):
    return log_softmax_call(c_log_softmax_backward, None, y, grad, out, threads)


cdef void softmax_of_row(const float* x, float* out, Py_ssize_t n) noexcept nogil:
    cdef LogSoftmax a
    memset(&a, 0, sizeof(a))
    a.x, a.out, a.outer, a.n = x, out, 1, n
    c_softmax(F32, &a, 1)


def softmax_in_prange(float[:, :, ::1] x, float[:, :, ::1] out):
    """Each row by itself, in threads of the caller."""
    cdef Py_ssize_t k
    for k in prange(x.shape[0], nogil=True, num_threads=2):
        softmax_of_row(&x[k, 0, 0], &out[k, 0, 0], x.shape[1])


# ---- losses over classes --------------------------------------------------------------------

ctypedef int (*OfClassLoss)(int, const ClassLoss*, int) noexcept nogil
ctypedef int (*OfRobustLoss)(int, const RobustLoss*, int) noexcept nogil


cdef ClassLoss class_loss(
    x, target, weight, grad_loss, loss, grad, double denominator, ignore_index, lse=None,
    double label_smoothing=0, double z_loss=0, double epsilon=0
):
    cdef ClassLoss a
    memset(&a, 0, sizeof(a))
    shaped = grad if x is None else x
    a.x, a.weight, a.grad_loss = at(x), at(weight), at(grad_loss)
    a.loss, a.lse, a.grad = at(loss), at(lse), at(grad)
    if target is None:
        pass
    elif target.ndim == 2:
        a.labels = <const int64_t*>at(target)
    else:
        a.probabilities, a.probabilities_step = at(target), step_of(target)
        a.wide_probabilities = target.itemsize > shaped.itemsize
    a.outer, a.n, a.inner = shaped.shape[0], shaped.shape[1], inner_of(shaped)
    a.x_step, a.grad_step = step_of(x), step_of(grad)
    losses = loss if grad_loss is None else grad_loss
    a.per_row = losses.shape == (shaped.shape[0], shaped.shape[2])
    a.has_ignore_index, a.ignore_index = True, ignore_index
    a.denominator = denominator_of(denominator)
    a.label_smoothing, a.z_loss, a.epsilon = label_smoothing, z_loss, epsilon
    return a


cdef class_call(OfClassLoss function, x, ClassLoss a, int threads):
    cdef int dtype = DTYPES[x.dtype.name], result
    with nogil:
        result = function(dtype, &a, threads)
    return result


def cross_entropy(logits, target, weight, loss, lse, *, denominator, ignore_index, label_smoothing,
                  z_loss, int threads):
    return class_call(c_cross_entropy, logits, class_loss(
        logits, target, weight, None, loss, None, denominator, ignore_index, lse, label_smoothing,
        z_loss), threads)


def cross_entropy_backward(grad_loss, logits, target, weight, grad, *, denominator, ignore_index,
                           label_smoothing, z_loss, int threads):
    return class_call(c_cross_entropy_backward, logits, class_loss(
        logits, target, weight, grad_loss, None, grad, denominator, ignore_index, None,
        label_smoothing, z_loss), threads)


def cross_entropy_with_grad(logits, target, weight, loss, grad, *, denominator, ignore_index,
                            label_smoothing, z_loss, int threads):
    return class_call(c_cross_entropy_with_grad, logits, class_loss(
        logits, target, weight, None, loss, grad, denominator, ignore_index, None, label_smoothing,
        z_loss), threads)


def scan_target(target, weight, stats, *, classes, ignore_index, int threads,
                has_ignore_index=True):
    cdef ClassLoss a
    cdef int dtype = F32 if weight is None else DTYPES[weight.dtype.name], result
    memset(&a, 0, sizeof(a))
    a.labels, a.weight, a.stats = <const int64_t*>at(target), at(weight), <double*>at(stats)
    a.outer, a.n = target.size, classes
    a.has_ignore_index, a.ignore_index = has_ignore_index, ignore_index
    with nogil:
        result = c_scan_target(dtype, &a, threads)
    return result


def nll_loss(log_probs, target, weight, loss, *, denominator, ignore_index, int threads):
    return class_call(c_nll_loss, log_probs, class_loss(
        log_probs, target, weight, None, loss, None, denominator, ignore_index), threads)


def nll_loss_backward(grad_loss, target, weight, grad, *, denominator, ignore_index, int threads):
    return class_call(c_nll_loss_backward, grad, class_loss(
        None, target, weight, grad_loss, None, grad, denominator, ignore_index), threads)


def categorical_cross_entropy(probs, target, weight, loss, *, denominator, ignore_index,
                              label_smoothing, epsilon, int threads):
    return class_call(c_categorical_cross_entropy, probs, class_loss(
        probs, target, weight, None, loss, None, denominator, ignore_index, None, label_smoothing,
        0, epsilon), threads)


def categorical_cross_entropy_backward(grad_loss, probs, target, weight, grad, *, denominator,
                                       ignore_index, label_smoothing, epsilon, int threads):
    return class_call(c_categorical_cross_entropy_backward, probs, class_loss(
        probs, target, weight, grad_loss, None, grad, denominator, ignore_index, None,
        label_smoothing, 0, epsilon), threads)


def categorical_cross_entropy_with_grad(probs, target, weight, loss, grad, *, denominator,
                                        ignore_index, label_smoothing, epsilon, int threads):
    return class_call(c_categorical_cross_entropy_with_grad, probs, class_loss(
        probs, target, weight, None, loss, grad, denominator, ignore_index, None, label_smoothing,
        0, epsilon), threads)


cdef robust_call(
    OfRobustLoss function, logits, target, weight, grad_loss, loss, grad, double denominator,
    ignore_index, alpha, gamma, q, epsilon, beta, int threads
):
    cdef RobustLoss a
    cdef int dtype = DTYPES[logits.dtype.name], result
    memset(&a, 0, sizeof(a))
    a.rows = class_loss(logits, target, weight, grad_loss, loss, grad, denominator, ignore_index)
    a.alpha, a.gamma, a.q, a.epsilon, a.beta = alpha, gamma, q, epsilon, beta
    with nogil:
        result = function(dtype, &a, threads)
    return result


def robust_losses(logits, target, weight, loss, *, alpha, gamma, q, epsilon, beta, denominator,
                  ignore_index, int threads):
    return robust_call(c_robust_losses, logits, target, weight, None, loss, None, denominator,
                       ignore_index, alpha, gamma, q, epsilon, beta, threads)


def robust_losses_backward(grad_loss, logits, target, weight, grad, *, alpha, gamma, q, epsilon,
                           beta, denominator, ignore_index, int threads):
    return robust_call(c_robust_losses_backward, logits, target, weight, grad_loss, None, grad,
                       denominator, ignore_index, alpha, gamma, q, epsilon, beta, threads)


def robust_losses_with_grad(logits, target, weight, loss, grad, *, alpha, gamma, q, epsilon, beta,
                            denominator, ignore_index, int threads):
    return robust_call(c_robust_losses_with_grad, logits, target, weight, None, loss, grad,
                       denominator, ignore_index, alpha, gamma, q, epsilon, beta, threads)


# ---- linear_cross_entropy -------------------------------------------------------------------

ctypedef int (*OfLinearClassLoss)(int, const LinearClassLoss*, int) noexcept nogil


cdef linear_call(
    OfLinearClassLoss function, input, linear_weight, linear_bias, target, weight, grad_loss, loss,
    d_input, d_linear_weight, d_linear_bias, double denominator, ignore_index, label_smoothing,
    z_loss, softcap, int threads
):
    cdef LinearClassLoss a
    cdef int dtype = DTYPES[input.dtype.name], result
    memset(&a, 0, sizeof(a))
    a.input, a.linear_weight, a.linear_bias = at(input), at(linear_weight), at(linear_bias)
    a.labels, a.weight = <const int64_t*>at(target), at(weight)
    a.grad_loss, a.loss = at(grad_loss), at(loss)
    a.d_input, a.d_linear_weight = at(d_input), at(d_linear_weight)
    a.d_linear_bias = at(d_linear_bias)
    a.rows, a.width = input.shape
    a.classes = len(linear_weight)
    a.input_row, a.linear_weight_row = step_of(input), step_of(linear_weight)
    a.d_input_row, a.d_linear_weight_row = step_of(d_input), step_of(d_linear_weight)
    a.per_row = len(loss if grad_loss is None else grad_loss) == len(input)
    a.has_ignore_index, a.ignore_index = True, ignore_index
    a.denominator = denominator_of(denominator)
    a.label_smoothing, a.z_loss, a.softcap = label_smoothing, z_loss, softcap
    with nogil:
        result = function(dtype, &a, threads)
    return result


def linear_cross_entropy(
    input, linear_weight, linear_bias, target, weight, loss, *, denominator, ignore_index,
    label_smoothing, z_loss, softcap, int threads
):
    return linear_call(c_linear_cross_entropy, input, linear_weight, linear_bias, target, weight,
                       None, loss, None, None, None, denominator, ignore_index, label_smoothing,
                       z_loss, softcap, threads)


def linear_cross_entropy_backward(
    grad_loss, input, linear_weight, linear_bias, target, weight, d_input, d_linear_weight,
    d_linear_bias, *, denominator, ignore_index, label_smoothing, z_loss, softcap, int threads
):
    return linear_call(c_linear_cross_entropy_backward, input, linear_weight, linear_bias, target,
                       weight, grad_loss, None, d_input, d_linear_weight, d_linear_bias,
                       denominator, ignore_index, label_smoothing, z_loss, softcap, threads)


def linear_cross_entropy_with_grad(
    input, linear_weight, linear_bias, target, weight, loss, d_input, d_linear_weight,
    d_linear_bias, *, denominator, ignore_index, label_smoothing, z_loss, softcap, int threads
):
    return linear_call(c_linear_cross_entropy_with_grad, input, linear_weight, linear_bias, target,
                       weight, None, loss, d_input, d_linear_weight, d_linear_bias, denominator,
                       ignore_index, label_smoothing, z_loss, softcap, threads)


# ---- binary_cross_entropy -------------------------------------------------------------------

ctypedef int (*OfBinaryLoss)(int, const BinaryLoss*, int) noexcept nogil


cdef binary_call(
    OfBinaryLoss function, x, target, weight, pos_weight, grad_loss, loss, grad,
    double denominator, int threads, double label_smoothing=0, double gamma=0, double positive=1,
    double negative=1
):
    cdef BinaryLoss a
    cdef int dtype = DTYPES[x.dtype.name], result
    memset(&a, 0, sizeof(a))
    a.x, a.target, a.weight, a.pos_weight = at(x), at(target), at(weight), at(pos_weight)
    a.grad_loss, a.loss, a.grad = at(grad_loss), at(loss), at(grad)
    a.n = x.size
    if weight is not None and weight.size != x.size:
        a.weights = weight.size
    if pos_weight is not None and pos_weight.size != x.size:
        a.pos_weights = pos_weight.size
    a.wide_target = target.itemsize > x.itemsize
    a.per_element = (loss if grad_loss is None else grad_loss).size > 1
    a.denominator = denominator_of(denominator)
    a.label_smoothing, a.gamma = label_smoothing, gamma
    if positive != 1 or negative != 1:
        a.positive, a.negative = positive, negative
    with nogil:
        result = function(dtype, &a, threads)
    return result


def scan_probabilities(probs, stats, *, int threads):
    cdef BinaryLoss a
    cdef int dtype = DTYPES[probs.dtype.name], result
    memset(&a, 0, sizeof(a))
    a.x, a.n, a.stats = at(probs), probs.size, <double*>at(stats)
    with nogil:
        result = c_scan_probabilities(dtype, &a, threads)
    return result


def binary_cross_entropy(probs, target, weight, loss, *, denominator, int threads):
    return binary_call(c_binary_cross_entropy, probs, target, weight, None, None, loss, None,
                       denominator, threads)


def binary_cross_entropy_backward(grad_loss, probs, target, weight, grad, *, denominator,
                                  int threads):
    return binary_call(c_binary_cross_entropy_backward, probs, target, weight, None, grad_loss,
                       None, grad, denominator, threads)


def binary_cross_entropy_with_grad(probs, target, weight, loss, grad, *, denominator, int threads):
    return binary_call(c_binary_cross_entropy_with_grad, probs, target, weight, None, None, loss,
                       grad, denominator, threads)


def binary_cross_entropy_with_logits(logits, target, weight, pos_weight, loss, *, denominator,
                                     label_smoothing, int threads):
    return binary_call(c_binary_cross_entropy_with_logits, logits, target, weight, pos_weight,
                       None, loss, None, denominator, threads, label_smoothing)


def binary_cross_entropy_with_logits_backward(grad_loss, logits, target, weight, pos_weight, grad,
                                              *, denominator, label_smoothing, int threads):
    return binary_call(c_binary_cross_entropy_with_logits_backward, logits, target, weight,
                       pos_weight, grad_loss, None, grad, denominator, threads, label_smoothing)


def binary_cross_entropy_with_logits_with_grad(logits, target, weight, pos_weight, loss, grad, *,
                                               denominator, label_smoothing, int threads):
    return binary_call(c_binary_cross_entropy_with_logits_with_grad, logits, target, weight,
                       pos_weight, None, loss, grad, denominator, threads, label_smoothing)


def sigmoid_focal_loss(logits, target, loss, *, denominator, gamma, positive, negative,
                       int threads):
    return binary_call(c_sigmoid_focal_loss, logits, target, None, None, None, loss, None,
                       denominator, threads, 0, gamma, positive, negative)


def sigmoid_focal_loss_backward(grad_loss, logits, target, grad, *, denominator, gamma, positive,
                                negative, int threads):
    return binary_call(c_sigmoid_focal_loss_backward, logits, target, None, None, grad_loss, None,
                       grad, denominator, threads, 0, gamma, positive, negative)


def sigmoid_focal_loss_with_grad(logits, target, loss, grad, *, denominator, gamma, positive,
                                 negative, int threads):
    return binary_call(c_sigmoid_focal_loss_with_grad, logits, target, None, None, None, loss, grad,
                       denominator, threads, 0, gamma, positive, negative)


# ---- attention ------------------------------------------------------------------------------

cdef enum:
    AXES = 2  # most batch axes

cdef struct Strides:
    Py_ssize_t[AXES] batch


cdef AttentionArray array_of(a, int axes, Strides* strides):
    cdef AttentionArray array
    cdef int k
    memset(&array, 0, sizeof(array))
    if a is None:
        return array
    for k in range(axes):
        strides.batch[k] = a.strides[k]
    array.data = at(a)
    array.batch = strides.batch
    array.head = a.strides[axes]
    array.row = a.strides[axes + 1]
    if a.ndim > axes + 2:
        array.item = a.strides[axes + 2]
    return array


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
    a.q = array_of(q, axes, strides)
    a.k = array_of(k, axes, strides + 1)
    a.v = array_of(v, axes, strides + 2)
    a.out = array_of(out, axes, strides + 3)
    a.lse = array_of(lse, axes, strides + 4)
    a.mask = array_of(mask, axes, strides + 5)
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
    g.grad_out = array_of(grad_out, axes, strides + 6)
    g.dq = array_of(dq, axes, strides + 7)
    g.dk = array_of(dk, axes, strides + 8)
    g.dv = array_of(dv, axes, strides + 9)
    g.dmask = array_of(dmask, axes, strides + 10)
    cdef int result
    with nogil:
        result = c_attention_backward(dtype, &a, &g, threads)
    return result


# ---- information ----------------------------------------------------------------------------

ctypedef int (*OfInformation)(int, const Information*, int) noexcept nogil


cdef information_call(
    OfInformation function, p, q, out, p_grad, q_grad, double unit, int threads,
    bint exponential=False
):
    cdef Information a
    cdef int dtype = DTYPES[p.dtype.name], result
    memset(&a, 0, sizeof(a))
    a.p, a.q, a.out, a.p_grad, a.q_grad = at(p), at(q), at(out), at(p_grad), at(q_grad)
    a.outer, a.n, a.inner = p.shape[0], p.shape[1], inner_of(p)
    a.p_step, a.q_step = step_of(p), step_of(q)
    a.p_grad_step, a.q_grad_step = step_of(p_grad), step_of(q_grad)
    a.p_broadcast = p.strides[0] == 0
    a.q_broadcast = q is not None and q.strides[0] == 0
    a.unit, a.exponential = denominator_of(unit), exponential
    with nogil:
        result = function(dtype, &a, threads)
    return result


def entropy(p, out, *, unit, exponential, int threads):
    return information_call(c_entropy, p, None, out, None, None, unit, threads, exponential)


def cross_entropy_of(p, q, out, *, unit, exponential, int threads):
    return information_call(c_cross_entropy_of, p, q, out, None, None, unit, threads, exponential)


def kl_divergence(p, q, out, *, unit, int threads):
    return information_call(c_kl_divergence, p, q, out, None, None, unit, threads)


def js_divergence(p, q, out, *, unit, int threads):
    return information_call(c_js_divergence, p, q, out, None, None, unit, threads)


def conditional_entropy(table, out, *, unit, int threads):
    return information_call(c_conditional_entropy, table, None, out, None, None, unit, threads)


def mutual_information(table, out, *, unit, int threads):
    return information_call(c_mutual_information, table, None, out, None, None, unit, threads)


def entropy_from_logits(logits, out, *, unit, int threads):
    return information_call(c_entropy_from_logits, logits, None, out, None, None, unit, threads)


def entropy_from_logits_with_grad(logits, out, grad, *, unit, int threads):
    return information_call(c_entropy_from_logits_with_grad, logits, None, out, grad, None, unit,
                            threads)


def kl_divergence_from_logits(p_logits, q_logits, out, *, unit, int threads):
    return information_call(c_kl_divergence_from_logits, p_logits, q_logits, out, None, None, unit,
                            threads)


def kl_divergence_from_logits_with_grad(p_logits, q_logits, out, q_grad, p_grad, *, unit,
                                        int threads):
    return information_call(c_kl_divergence_from_logits_with_grad, p_logits, q_logits, out, p_grad,
                            q_grad, unit, threads)


# ---- zeroed memory --------------------------------------------------------------------------

def zeroed(int dtype):
    """What every kind of function returns for a struct of zeros, which is a problem of size 0."""
    cdef LogSoftmax s
    cdef ClassLoss c
    cdef RobustLoss r
    cdef BinaryLoss b
    cdef LinearClassLoss n
    cdef Information i
    cdef Attention a
    cdef AttentionGradient g
    cdef double loss = 7
    cdef double[2] stats
    memset(&s, 0, sizeof(s))
    memset(&c, 0, sizeof(c))
    memset(&r, 0, sizeof(r))
    memset(&b, 0, sizeof(b))
    memset(&n, 0, sizeof(n))
    memset(&i, 0, sizeof(i))
    memset(&a, 0, sizeof(a))
    memset(&g, 0, sizeof(g))
    c.loss = r.rows.loss = b.loss = n.loss = &loss
    c.stats = b.stats = stats
    return [
        c_softmax(dtype, &s, 1), c_log_softmax_backward(dtype, &s, 1),
        c_cross_entropy(dtype, &c, 1), c_cross_entropy_with_grad(dtype, &c, 1),
        c_nll_loss(dtype, &c, 1), c_nll_loss_backward(dtype, &c, 1), c_scan_target(dtype, &c, 1),
        c_categorical_cross_entropy(dtype, &c, 1), c_robust_losses(dtype, &r, 1),
        c_binary_cross_entropy(dtype, &b, 1), c_sigmoid_focal_loss(dtype, &b, 1),
        c_scan_probabilities(dtype, &b, 1), c_linear_cross_entropy(dtype, &n, 1),
        c_entropy(dtype, &i, 1), c_mutual_information(dtype, &i, 1),
        c_attention(dtype, &a, 1), c_attention_backward(dtype, &a, &g, 1),
    ]


def losses_with_class_0(const float[:, ::1] x, const int64_t[::1] labels):
    """Sums of losses with ignore_index left at zero: of the logits, and of the linear layer whose
    weights are the unit matrix."""
    cdef ClassLoss c
    cdef LinearClassLoss n
    cdef float[2] loss
    cdef float[16] unit
    cdef Py_ssize_t k
    memset(&c, 0, sizeof(c))
    c.x, c.labels, c.loss = &x[0, 0], &labels[0], &loss[0]
    c.outer, c.n = x.shape[0], x.shape[1]
    c_cross_entropy(F32, &c, 1)
    memset(&n, 0, sizeof(n))
    memset(unit, 0, sizeof(unit))
    for k in range(x.shape[1]):
        unit[k * (x.shape[1] + 1)] = 1
    n.input, n.linear_weight, n.labels, n.loss = &x[0, 0], unit, &labels[0], &loss[1]
    n.rows, n.width, n.classes = x.shape[0], x.shape[1], x.shape[1]
    c_linear_cross_entropy(F32, &n, 1)
    return loss[0], loss[1]
