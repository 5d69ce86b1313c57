"""From a call, by Cython or Python, to the function for its dtype.

Whoever includes this defines Arguments, the struct of its .pxd, and

    cdef int typed(int op, const Arguments* a, const real* like, int threads) noexcept nogil

which computes `op`, one of its own constants. The type of `like`, which is NULL, is the storage
type, and the defaults of `a` have been filled in: a step or denominator of 0 is 0.
"""

cdef enum:
    NO_MEMORY = -1
    NO_DTYPE = -2

cdef enum:  # the three functions of a loss
    FORWARD
    BACKWARD
    WITH_GRAD


cdef int by_dtype(int op, int dtype, const Arguments* a, int threads) noexcept nogil:
    if dtype == F32:
        return typed(op, a, <const float*>NULL, threads)
    if dtype == F64:
        return typed(op, a, <const double*>NULL, threads)
    if dtype == F16:
        return typed(op, a, <const f16*>NULL, threads)
    if dtype == BF16:
        return typed(op, a, <const bf16*>NULL, threads)
    return NO_DTYPE


cdef int dtype_of(cnp.ndarray a) except -1:
    cdef int number = cnp.PyArray_TYPE(a)
    if number == cnp.NPY_FLOAT32:
        return F32
    if number == cnp.NPY_FLOAT64:
        return F64
    if number == cnp.NPY_FLOAT16:
        return F16
    if number == cnp.NPY_UINT16:
        return BF16
    raise TypeError(f"no kernel for dtype {a.dtype}")


cdef int from_python(int op, int dtype, const Arguments* a, int threads) except -1:
    cdef int result
    with nogil:
        result = by_dtype(op, dtype, a, threads)
    if result == NO_MEMORY:
        raise MemoryError("no memory for the intermediate results of a kernel")
    return 0
