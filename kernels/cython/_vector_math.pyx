# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: binding=True
"""The functions of vector_math.h on arrays, so that tests can measure their error. Not a kernel."""

include "_simd.pxi"
include "_arrays.pxi"

ctypedef fused wide:
    double
    float

cdef enum:  # the functions
    EXP_SUB
    EXP_FROM
    EXP_2
    LOG
    LOG_1P
    LOG_1P_SMALL
    TANH
    POWER


cdef void apply(
    int function, const wide* x, const wide* m, wide* out, Py_ssize_t n
) noexcept nogil:
    cdef Py_ssize_t w = lanes(x), k, left
    cdef Reference at
    cdef vector[wide] v
    for k in range((n + w - 1) // w):
        left = min(w, n - k * w)
        v = load_n(x + k * w, left, 0.0)
        if function == EXP_FROM:
            at = reference(x, m[0])
            v = exp_from(v, splat(x, at.shift), splat(x, at.power))
        elif function == EXP_SUB:
            v = exp_sub(v, load_n(m + k * w, left, 0.0))
        elif function == EXP_2:
            v = exp_2(x, v)
        elif function == TANH:
            v = tan_h(x, v)
        elif function == POWER:
            v = power_of(v, load_n(m + k * w, left, 1.0))
        elif function == LOG:
            v = log_of(v)
        elif function == LOG_1P_SMALL:
            v = log_1p_small(v)
        else:
            v = log_1p(v)
        store_n(out + k * w, v, left)


cdef by_dtype(int function, cnp.ndarray x, m, out):
    cdef Py_ssize_t n = cnp.PyArray_SIZE(x)
    cdef void* from_ = data(x)
    cdef void* less = data(m)
    cdef void* to = data(out)
    cdef bint doubles = cnp.PyArray_TYPE(x) == cnp.NPY_FLOAT64
    with nogil:
        if doubles:
            apply(function, <const double*>from_, <const double*>less, <double*>to, n)
        else:
            apply(function, <const float*>from_, <const float*>less, <float*>to, n)


def exp_sub_of(x, m, out):
    """out = exp(x - m), for contiguous float64 or float32 arrays with x <= m."""
    by_dtype(EXP_SUB, x, m, out)


def exp_from_of(x, m, out):
    """out = exp(x) / exp(m'), for an m of one element; m' as (shift, power), see vector_math.h."""
    cdef Reference at
    by_dtype(EXP_FROM, x, m, out)
    if x.dtype == "f8":
        at = reference(<const double*>NULL, m[0])
    else:
        at = reference(<const float*>NULL, m[0])
    return at.shift, at.power


def exp_2_of(x, out):
    """out = 2**x, for contiguous float64 or float32 arrays."""
    by_dtype(EXP_2, x, None, out)


def log_of_of(x, out):
    """out = log(x), for contiguous float64 or float32 arrays."""
    by_dtype(LOG, x, None, out)


def log_1p_of(x, out):
    """out = log(1 + x), for contiguous float64 or float32 arrays of at least -1."""
    by_dtype(LOG_1P, x, None, out)


def log_1p_small_of(x, out):
    """out = log(1 + x), for contiguous float64 or float32 arrays from 0 to 1."""
    by_dtype(LOG_1P_SMALL, x, None, out)


def tan_h_of(x, out):
    """out = tanh(x), for contiguous float64 or float32 arrays."""
    by_dtype(TANH, x, None, out)


def power_of_of(x, y, out):
    """out = x**y, for contiguous float64 or float32 arrays, x from 0 to 1 and y > 0."""
    by_dtype(POWER, x, y, out)
