"""What attention and linear_cross_entropy use of products.h."""

cdef extern from "products.h" nogil:
    enum:
        TILE_VECTORS
        TILE_ROWS
        HAS_BF16_PRODUCT

    ctypedef struct bf16_pair:
        pass

    void product[A, B, C](
        const A*, Py_ssize_t, Py_ssize_t, Py_ssize_t, const B*, Py_ssize_t, Py_ssize_t, C*,
        Py_ssize_t, Py_ssize_t, bint)
    void load_lanes[T](const T* const*, Py_ssize_t, Py_ssize_t, vector[T]*, Py_ssize_t)
    void narrow_to(bf16*, vector[float])
    void store_pairs[T](const T*, void*, Py_ssize_t, vector[T], vector[T], Py_ssize_t)
