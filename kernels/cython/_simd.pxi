"""simd.h, vector_math.h and tiles.h as Cython sees them, and the storage types that every kernel is
written for once.

`vector[real]` is what a storage type loads into: as many floats (for float, f16 and bf16) or
doubles as a register holds. `a * b + c` on vectors is plain code.
"""

cimport numpy as cnp
from libc.math cimport INFINITY, NAN, exp, isinf, log1p

cdef extern from "simd.h" nogil:
    ctypedef struct f16:
        pass
    ctypedef struct bf16:
        pass

    cdef cppclass vector[T]:
        vector operator+(vector)
        vector operator-(vector)
        vector operator*(vector)
        vector operator/(vector)

    int lanes[T](const T*)
    vector[T] splat[T](const T*, double)
    double largest_of[T](const T*)
    double rounded[T](const T*, double)
    vector[T]* aligned[T](const T*, void*)

    double get[T](const T*)
    void put[T](T*, double)

    vector[T] load[T](const T*)
    vector[T] load_n[T](const T*, Py_ssize_t, double)
    void store[T](T*, vector[T])
    void store_n[T](T*, vector[T], Py_ssize_t)
    Py_ssize_t wide_size[T](const T*)
    double get_wide[T](const T*, const void*, Py_ssize_t)
    void put_wide[T](const T*, void*, Py_ssize_t, double)
    vector[T] load_wide[T](const T*, const void*, Py_ssize_t, Py_ssize_t)
    void store_wide[T](const T*, void*, Py_ssize_t, vector[T], Py_ssize_t)
    const T* target_at[T](const T*, Py_ssize_t, bint)
    double get_target[T](const T*, Py_ssize_t, bint)
    vector[T] load_target[T](const T*, Py_ssize_t, Py_ssize_t, bint)
    void stream[T](T*, vector[T])
    size_t stream_align[T](const T*)
    void stream_copy(void*, const void*, Py_ssize_t)
    void stream_end()
    void prefetch(const void*)

    vector[T] vmax[T](vector[T], vector[T])
    vector[T] sub_before_store[T](const T*, vector[T], vector[T], bint)
    vector[T] mul_add[T](vector[T], vector[T], vector[T])
    vector[T] where_equal[T](vector[T], vector[T], vector[T], vector[T])
    vector[T] add_unless_equal[T](vector[T], vector[T], vector[T], vector[T])
    bint any_equal[T](const T*, vector[T], vector[T])
    Py_ssize_t count_equal[T](const T*, vector[T], vector[T])
    void add_fast[T](vector[T]*, vector[T]*, vector[T])
    vector[T] where_negative[T](vector[T], vector[T], vector[T])
    vector[T] minus_size[T](vector[T])
    vector[T] first_lanes[T](vector[T], Py_ssize_t)
    vector[double] low_doubles[T](vector[T])
    vector[double] high_doubles[T](vector[T])
    double reduce_max[T](vector[T])
    double reduce_add[T](vector[T])

cdef extern from "vector_math.h" nogil:
    vector[T] exp_sub[T](vector[T], vector[T])
    vector[T] exp_from[T](vector[T], vector[T], vector[T])
    vector[T] exp_2[T](const T*, vector[T])
    vector[T] tan_h[T](const T*, vector[T])
    vector[T] log_of[T](vector[T])
    vector[T] log_1p[T](vector[T])
    vector[T] log_1p_small[T](vector[T])
    vector[T] power_of[T](vector[T], vector[T])
    vector[T] log_sum[T](vector[T], vector[T], vector[T])

    vector[T] kl_div_term[T](vector[T], vector[T], vector[T])
    vector[T] kl_div_term_log[T](vector[T], vector[T], vector[T], vector[T]*)
    vector[T] scale_near_one[T](vector[T])

    ctypedef struct Reference:
        double shift, power, ratio
    Reference reference[T](const T*, double)

cdef extern from "tiles.h" nogil:
    void load_tile[T](const T*, Py_ssize_t, Py_ssize_t, Py_ssize_t, vector[T]*, Py_ssize_t)
    void store_tile[T](T*, Py_ssize_t, Py_ssize_t, Py_ssize_t, const vector[T]*, Py_ssize_t)

ctypedef fused real:
    double
    float
    f16
    bf16
