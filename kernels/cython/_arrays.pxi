"""From arrays in canonical form (see kernels/__init__.py) to pointers."""


cdef inline void* data(object a):
    return NULL if a is None else cnp.PyArray_DATA(<cnp.ndarray>a)


cdef inline Py_ssize_t plane_step(cnp.ndarray a):
    return cnp.PyArray_STRIDE(a, 0) // cnp.PyArray_ITEMSIZE(a)
