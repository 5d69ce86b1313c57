"""From arrays in canonical form (see kernels/__init__.py) to pointers, sizes and steps."""


cdef inline void* data(object a):
    return NULL if a is None else cnp.PyArray_DATA(<cnp.ndarray>a)


cdef inline Py_ssize_t size(object a):
    return 0 if a is None else cnp.PyArray_SIZE(<cnp.ndarray>a)


cdef inline Py_ssize_t plane_step(object a):
    return 0 if a is None else (
        cnp.PyArray_STRIDE(<cnp.ndarray>a, 0) // cnp.PyArray_ITEMSIZE(<cnp.ndarray>a))
