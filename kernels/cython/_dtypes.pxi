"""Between arrays and the dtypes and results of the functions that the .pxd files declare."""

cdef enum:
    NO_MEMORY = -1
    NO_DTYPE = -2


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


cdef int done(int result) except -1:
    if result == NO_MEMORY:
        raise MemoryError("no memory for the intermediate results of a kernel")
    return 0
