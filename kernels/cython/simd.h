// The vectors of the Cython kernels, of float (f32v) and double (f64v), as wide as the instruction
// set level has them, and the operations on them. No algorithms.
//
// Built on the vector extensions of GCC and Clang, so `a * b + c` and `a < b ? c : d` are plain
// code; intrinsics only where the extensions lack an instruction. Four storage types (double,
// float, f16, bf16) load into and store from the two vector types. Every function takes the same
// name for each type, so one Cython function serves all four.
#pragma once
#include <stdint.h>
#include <string.h>
#include <math.h>
#include <type_traits>
#include <utility>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX2__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif
#define INLINE static inline __attribute__((always_inline))

typedef float f32v __attribute__((vector_size(VECTOR_BYTES)));
typedef double f64v __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t i32v __attribute__((vector_size(VECTOR_BYTES)));
typedef int64_t i64v __attribute__((vector_size(VECTOR_BYTES)));
typedef uint16_t half_bits __attribute__((vector_size(VECTOR_BYTES / 2)));
typedef struct { uint16_t bits; } f16;
typedef struct { uint16_t bits; } bf16;

// Integers of the same width and the constants of each floating type.
template <class V> struct traits;
template <> struct traits<f32v> {
    typedef float scalar;
    typedef i32v ints;
    static constexpr int mantissa = 23, bias = 127;
    static constexpr float to_int = 12582912.0f;  // 1.5 * 2**23: adding it rounds to an integer
    static constexpr float ln2_hi = 0x1.63p-1f;   // 9 bits: times an exponent it stays exact
    static constexpr float ln2_lo = -2.12194440e-4f;
    static constexpr float exp_low = -104.0f;     // exp of it rounds to 0
    static constexpr float near_limit = 256.0f;   // more than twice that, see exp_from
    static constexpr float far_below = -1024.0f;
    static constexpr float largest = 3.40282347e38f;
    static constexpr float least = 0x1p-126f;     // normal number
    static constexpr float tiny = 0x1p-63f, untiny = 0x1p86f, untiny_power = 86;  // see kl_div_term
    static constexpr float two_steps = 0x1p-22f;  // of the last place, relatively
    static constexpr int sqrt_half = 0x3f3504f3;
};
template <> struct traits<f64v> {
    typedef double scalar;
    typedef i64v ints;
    static constexpr int mantissa = 52, bias = 1023;
    static constexpr double to_int = 6755399441055744.0;
    static constexpr double ln2_hi = 6.93147180369123816490e-01;  // 32 bits
    static constexpr double ln2_lo = 1.90821492927058770002e-10;
    static constexpr double exp_low = -746.0;
    static constexpr double near_limit = 2048.0;
    static constexpr double far_below = -8192.0;
    static constexpr double largest = 1.7976931348623157e308;
    static constexpr double least = 0x1p-1022;
    static constexpr double tiny = 0x1p-500, untiny = 0x1p600, untiny_power = 600;
    static constexpr double two_steps = 0x1p-51;
    static constexpr int64_t sqrt_half = 0x3fe6a09e667f3bcdLL;
};
template <class V> constexpr int WIDTH = VECTOR_BYTES / sizeof(typename traits<V>::scalar);

template <class T> struct vector_of;
template <> struct vector_of<double> { typedef f64v type; };
template <> struct vector_of<float> { typedef f32v type; };
template <> struct vector_of<f16> { typedef f32v type; };
template <> struct vector_of<bf16> { typedef f32v type; };
template <class T> using vector = typename vector_of<T>::type;  // what a storage type loads into
template <class T> using compute = typename traits<vector<T>>::scalar;
template <class A, class B> constexpr bool is = std::is_same<A, B>::value;

template <class T> INLINE constexpr int lanes(const T *) { return WIDTH<vector<T>>; }

// A vector of the type that `like` loads into, every lane `value`.
template <class T> INLINE vector<T> splat(const T *, double value) {
    return vector<T>{} + (compute<T>)value;
}

// The largest finite number of the compute type.
template <class T> INLINE constexpr double largest_of(const T *) { return traits<vector<T>>::largest; }

// A number rounded to the compute type.
template <class T> INLINE double rounded(const T *, double value) { return (compute<T>)value; }

// Memory as vectors: the first aligned address. It takes up to one vector more.
template <class T> INLINE vector<T> *aligned(const T *, void *memory) {
    return (vector<T> *)(((uintptr_t)memory + VECTOR_BYTES - 1) & -(uintptr_t)VECTOR_BYTES);
}

template <class To, class From> INLINE To bits(From value) {
    static_assert(sizeof(To) == sizeof(From), "same width");
    To result;
    memcpy(&result, &value, sizeof(To));
    return result;
}

// ---- storage types: one value ---------------------------------------------------------------

INLINE float half_to_float(uint16_t half) {
    uint32_t magnitude = (uint32_t)(half & 0x7fff) << 13;
    // Rescaling the exponent also normalises subnormal halves; infinity and NaN need their own.
    float value = bits<float>(magnitude) * 0x1p112f;
    if (magnitude >= 0x7c00u << 13) value = bits<float>(magnitude | 0x7f800000u);
    return bits<float>(bits<uint32_t>(value) | (uint32_t)(half & 0x8000) << 16);
}
INLINE uint16_t float_to_half(float value) {  // to nearest even
    uint32_t all = bits<uint32_t>(value), sign = all >> 16 & 0x8000, magnitude = all & 0x7fffffff;
    if (magnitude > 0x7f800000) return sign | 0x7e00;
    if (magnitude >= 0x477ff000) return sign | 0x7c00;  // 65520 and above round to infinity
    if (magnitude < 0x38800000)  // subnormal: let the addition do the rounding
        return sign | (bits<uint32_t>(bits<float>(magnitude) + 0.5f) - 0x3f000000);
    return sign | (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
}
INLINE float bfloat_to_float(uint16_t bfloat) { return bits<float>((uint32_t)bfloat << 16); }
INLINE uint16_t float_to_bfloat(float value) {
    uint32_t all = bits<uint32_t>(value);
    if (value != value) return all >> 16 | 0x40;
    return (all + 0x7fff + (all >> 16 & 1)) >> 16;
}

template <class T> INLINE double get(const T *p) {
    if constexpr (is<T, f16>) return half_to_float(p->bits);
    else if constexpr (is<T, bf16>) return bfloat_to_float(p->bits);
    else return *p;
}
template <class T> INLINE void put(T *p, double value) {
    if constexpr (is<T, f16>) p->bits = float_to_half((float)value);
    else if constexpr (is<T, bf16>) p->bits = float_to_bfloat((float)value);
    else *p = (T)value;
}

// ---- storage types: one vector --------------------------------------------------------------

template <class T> INLINE vector<T> load(const T *p) {
    if constexpr (is<T, f16>) {
#if defined(__AVX512F__)
        return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#elif defined(__F16C__)
        return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
#else
        f32v v;
        for (int i = 0; i < WIDTH<f32v>; i++) v[i] = half_to_float(p[i].bits);
        return v;
#endif
    } else if constexpr (is<T, bf16>) {
#if defined(__AVX512F__)  // one instruction, where the conversion below takes five
        return bits<f32v>(_mm512_slli_epi32(
            _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
#endif
        half_bits h;
        memcpy(&h, p, sizeof h);
        return bits<f32v>(__builtin_convertvector(h, i32v) << 16);
    } else {
        vector<T> v;
        memcpy(&v, p, sizeof v);
        return v;
    }
}

// The bits of a vector in storage type T, rounded to nearest even.
template <class T> INLINE auto narrow(vector<T> v) {
    if constexpr (is<T, f16>) {
#if defined(__AVX512F__)
        return bits<half_bits>(_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
        return bits<half_bits>(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#else
        half_bits h;
        for (int i = 0; i < WIDTH<f32v>; i++) h[i] = float_to_half(v[i]);
        return h;
#endif
    } else if constexpr (is<T, bf16>) {
        i32v all = bits<i32v>(v), upper = all >> 16 & 0xffff;
        i32v rounded = (all + 0x7fff + (upper & 1)) >> 16;
        return __builtin_convertvector(v == v ? rounded : upper | 0x40, half_bits);
    } else {
        return v;
    }
}
template <class T> INLINE void store(T *p, vector<T> v) {
    auto all = narrow<T>(v);
    memcpy(p, &all, sizeof all);
}

// The first n lanes only, 0 <= n <= lanes; what is not loaded is `fill`.
template <class T> INLINE vector<T> load_n(const T *p, long n, double fill) {
    if (n == lanes(p)) return load(p);
#if defined(__AVX512F__)
    if constexpr (is<T, float>)
        return _mm512_mask_loadu_ps(splat(p, fill), (__mmask16)((1u << n) - 1), p);
    if constexpr (is<T, double>)
        return _mm512_mask_loadu_pd(splat(p, fill), (__mmask8)((1u << n) - 1), p);
#endif
    T whole[WIDTH<vector<T>>];
    for (int i = 0; i < WIDTH<vector<T>>; i++) put(whole + i, fill);
    for (long i = 0; i < n; i++) whole[i] = p[i];
    return load(whole);
}
template <class T> INLINE void store_n(T *p, vector<T> v, long n) {
    if (n == lanes(p)) return store(p, v);
#if defined(__AVX512F__)
    if constexpr (is<T, float>)
        return _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), v);
    if constexpr (is<T, double>)
        return _mm512_mask_storeu_pd(p, (__mmask8)((1u << n) - 1), v);
#endif
    T whole[WIDTH<vector<T>>];
    store(whole, v);
    for (long i = 0; i < n; i++) p[i] = whole[i];
}

// Arrays of the compute type beside those of storage type T: `values` holds compute<T>.
template <class T> INLINE constexpr long wide_size(const T *) { return sizeof(compute<T>); }
template <class T> INLINE double get_wide(const T *, const void *values, long at) {
    return ((const compute<T> *)values)[at];
}
template <class T> INLINE void put_wide(const T *, void *values, long at, double value) {
    ((compute<T> *)values)[at] = (compute<T>)value;
}
template <class T> INLINE vector<T> load_wide(const T *, const void *values, long at, long n) {
    return load_n((const compute<T> *)values + at, n, 0);
}
template <class T> INLINE void store_wide(const T *, void *values, long at, vector<T> v, long n) {
    store_n((compute<T> *)values + at, v, n);
}

// A target beside numbers of storage type T: of that type or, where it is `wide`, of compute<T>.
template <class T> INLINE const T *target_at(const T *t, long at, bool wide) {
    if (!t) return t;
    return wide ? (const T *)((const compute<T> *)t + at) : t + at;
}
template <class T> INLINE double get_target(const T *t, long at, bool wide) {
    return wide ? get_wide(t, t, at) : get(t + at);
}
template <class T> INLINE vector<T> load_target(const T *t, long at, long n, bool wide) {
    if (wide && sizeof(T) == 2) return load_wide(t, t, at, n);  // for others there is one type
    return load_n(t + at, n, 0);
}

// Past the caches, without reading the line first; p must be aligned as `stream_align` says.
template <class T> INLINE constexpr size_t stream_align(const T *) {
    return WIDTH<vector<T>> * sizeof(T);
}
template <class T> INLINE void stream(T *p, vector<T> v) {
    auto all = narrow<T>(v);
#if defined(__AVX512F__)
    if constexpr (sizeof all == 64) return _mm512_stream_si512((__m512i *)p, bits<__m512i>(all));
#endif
#if defined(__AVX2__)
    if constexpr (sizeof all == 32) return _mm256_stream_si256((__m256i *)p, bits<__m256i>(all));
#endif
#if defined(__x86_64__)
    if constexpr (sizeof all == 16) return _mm_stream_si128((__m128i *)p, bits<__m128i>(all));
#endif
    memcpy(p, &all, sizeof all);
}
INLINE void stream_end() {  // streamed lines are visible to other threads after this
#if defined(__x86_64__)
    _mm_sfence();
#endif
}
// The same of bytes; those before the first aligned address and after the last go the usual way.
INLINE void stream_copy(void *to, const void *from, long bytes) {
    long head = -(uintptr_t)to % VECTOR_BYTES, at = head < bytes ? head : bytes;
    memcpy(to, from, at);
    for (; at + VECTOR_BYTES <= bytes; at += VECTOR_BYTES)
        stream((double *)((char *)to + at), load((const double *)((const char *)from + at)));
    memcpy((char *)to + at, (const char *)from + at, bytes - at);
}
INLINE void prefetch(const void *p) { __builtin_prefetch(p, 0, 3); }
INLINE void prefetch_write(const void *p) { __builtin_prefetch(p, 1, 3); }

// ---- arithmetic -----------------------------------------------------------------------------

// NaN in `a` is ignored, so that maxima skip NaN; the sums have it.
template <class V> INLINE V vmax(V a, V b) {
#if defined(__AVX512F__)  // one instruction, which the compiler does not see in the last line
    if constexpr (is<V, f32v>) return _mm512_max_ps(a, b);
    else return _mm512_max_pd(a, b);
#elif defined(__AVX2__)
    if constexpr (is<V, f32v>) return _mm256_max_ps(a, b);
    else return _mm256_max_pd(a, b);
#elif defined(__x86_64__)
    if constexpr (is<V, f32v>) return _mm_max_ps(a, b);
    else return _mm_max_pd(a, b);
#else
    return a > b ? a : b;
#endif
}
template <class V> INLINE double reduce_max(V v) {
#if defined(__AVX512F__)  // in vectors; the loop below is done by scalars
    if constexpr (is<V, f32v>) return _mm512_reduce_max_ps(v);
    else return _mm512_reduce_max_pd(v);
#endif
#pragma GCC unroll 4
    for (int half = WIDTH<V> / 2; half; half /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < half; i++) v[i] = v[i] > v[i + half] ? v[i] : v[i + half];
    return v[0];
}
// The lanes of a vector as doubles, in two vectors; of doubles, the second one is 0.
INLINE f64v low_doubles(f64v v) { return v; }
INLINE f64v high_doubles(f64v) { return f64v{}; }
#if defined(__AVX512F__)
INLINE f64v low_doubles(f32v v) { return _mm512_cvtps_pd(_mm512_castps512_ps256(v)); }
INLINE f64v high_doubles(f32v v) {
    return _mm512_cvtps_pd(_mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1)));
}
#else
typedef float half_f32v __attribute__((vector_size(VECTOR_BYTES / 2)));
INLINE f64v doubles_at(const char *lanes) {
    half_f32v half;
    memcpy(&half, lanes, sizeof half);
    return __builtin_convertvector(half, f64v);
}
INLINE f64v low_doubles(f32v v) { return doubles_at((const char *)&v); }
INLINE f64v high_doubles(f32v v) { return doubles_at((const char *)&v + sizeof(half_f32v)); }
#endif
template <class V> INLINE double reduce_add(V v) {  // in double, lanes in order of halves
#if defined(__AVX512F__)  // the same order; GCC 12.2 made a wrong sum of the loop below
    if constexpr (is<V, f64v>) return _mm512_reduce_add_pd(v);
    else return _mm512_reduce_add_pd(low_doubles(v) + high_doubles(v));
#endif
    double part[WIDTH<V>];
    for (int i = 0; i < WIDTH<V>; i++) part[i] = v[i];
#pragma GCC unroll 4
    for (int half = WIDTH<V> / 2; half; half /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < half; i++) part[i] += part[i + half];
    return part[0];
}
// The first n lanes, and 0 in the others.
template <class V> INLINE V first_lanes(V v, long n) {
    typename traits<V>::ints beyond;
    for (int i = 0; i < WIDTH<V>; i++) beyond[i] = i - n;
    return beyond < 0 ? v : V{};
}
// -abs(v)
template <class V> INLINE V minus_size(V v) {
    return bits<V>(bits<typename traits<V>::ints>(v) | bits<typename traits<V>::ints>(-V{}));
}

// a - b for a <= 0 <= b, rounded to odd: of the two floats around an inexact result, the one whose
// last bit is 1. Rounding that again, to a type with at least two bits less, gives what rounding the
// exact number would have given; to nearest, 0.6% of the log-probabilities of f16 were one step off.
template <class V> INLINE V sub_to_odd(V a, V b) {
    typedef typename traits<V>::ints ints;
#if defined(__AVX512F__)  // the two floats differ where the result is inexact
    if constexpr (is<V, f32v>) {
        V above = _mm512_sub_round_ps(a, b, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC);
        V below = _mm512_sub_round_ps(a, b, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
        __mmask16 inexact = _mm512_cmp_ps_mask(above, below, _CMP_NEQ_OQ);
        return bits<V>(_mm512_mask_or_epi32(bits<__m512i>(above), inexact, bits<__m512i>(above),
                                            bits<__m512i>(ints{} + 1)));
    }
#endif
    V result = a - b, back = result - a, error = (a - (result - back)) - (b + back);
    ints all = bits<ints>(result);
    ints towards = ((all ^ bits<ints>(error)) >> (8 * sizeof(typename traits<V>::scalar) - 1)) | 1;
    ints inexact = (error < 0) | (error > 0);  // neither for NaN
    return bits<V>(all + (inexact & ((all & 1) - 1) & towards));
}

// Cython calls these with the storage type, as in vmax<f16>(a, b).
template <class T> INLINE vector<T> vmax(vector<T> a, vector<T> b) { return vmax<vector<T>>(a, b); }
// a - b that is going to be stored as T or, if `again`, rounded once more elsewhere.
template <class T>
INLINE vector<T> sub_before_store(const T *, vector<T> a, vector<T> b, bool again) {
    return again || sizeof(T) == 2 ? sub_to_odd(a, b) : a - b;
}
template <class T> INLINE double reduce_max(vector<T> v) { return reduce_max<vector<T>>(v); }
template <class T> INLINE double reduce_add(vector<T> v) { return reduce_add<vector<T>>(v); }
// a * b + c, rounded once where there is such an instruction. Written out, the compiler may make two
// roundings of it, and did in one copy of a loop while it made one in another.
template <class T> INLINE vector<T> mul_add(vector<T> a, vector<T> b, vector<T> c) {
#if defined(__AVX512F__)
    if constexpr (is<vector<T>, f32v>) return _mm512_fmadd_ps(a, b, c);
    else return _mm512_fmadd_pd(a, b, c);
#elif defined(__FMA__)
    if constexpr (is<vector<T>, f32v>) return _mm256_fmadd_ps(a, b, c);
    else return _mm256_fmadd_pd(a, b, c);
#else
    return a * b + c;
#endif
}
// sum + term in the lanes where a and b are not equal.
template <class T>
INLINE vector<T> add_unless_equal(vector<T> sum, vector<T> a, vector<T> b, vector<T> term) {
#if defined(__AVX512F__)  // one masked addition, which the compiler does not see in the last line
    if constexpr (is<vector<T>, f32v>)
        return _mm512_mask_add_ps(sum, _mm512_cmp_ps_mask(a, b, _CMP_NEQ_UQ), sum, term);
    else
        return _mm512_mask_add_pd(sum, _mm512_cmp_pd_mask(a, b, _CMP_NEQ_UQ), sum, term);
#else
    return sum + (a == b ? vector<T>{} : term);
#endif
}
// Bit i says whether lane i of a and b are equal.
template <class V> INLINE unsigned equal_lanes(V a, V b) {
#if defined(__AVX512F__)
    if constexpr (is<V, f32v>) return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ);
    else return _mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ);
#elif defined(__AVX2__)
    if constexpr (is<V, f32v>) return _mm256_movemask_ps(bits<f32v>(a == b));
    else return _mm256_movemask_pd(bits<f64v>(a == b));
#elif defined(__x86_64__)
    if constexpr (is<V, f32v>) return _mm_movemask_ps(bits<f32v>(a == b));
    else return _mm_movemask_pd(bits<f64v>(a == b));
#else
    auto equal = a == b;
    unsigned mask = 0;
    for (int i = 0; i < WIDTH<V>; i++) mask |= (unsigned)(equal[i] & 1) << i;
    return mask;
#endif
}
template <class T> INLINE bool any_equal(const T *, vector<T> a, vector<T> b) {
    return __builtin_expect(equal_lanes(a, b) != 0, 0);
}
template <class T> INLINE long count_equal(const T *, vector<T> a, vector<T> b) {
    return __builtin_popcount(equal_lanes(a, b));
}
// total += term, and what rounding that loses to `error`, for terms of one sign. All of it where
// total >= term already. A larger term may lose half a unit of its own last place; as the total has
// then doubled, all such losses together stay below one unit of the sum.
template <class T> INLINE void add_fast(vector<T> *total, vector<T> *error, vector<T> term) {
    vector<T> sum = *total + term;
    *error = *error + (term - (sum - *total));
    *total = sum;
}
template <class T>
INLINE vector<T> where_equal(vector<T> a, vector<T> b, vector<T> then, vector<T> otherwise) {
    return a == b ? then : otherwise;
}
template <class T>
INLINE vector<T> where_negative(vector<T> a, vector<T> then, vector<T> otherwise) {
    return a < 0 ? then : otherwise;
}
template <class T> INLINE vector<T> minus_size(vector<T> v) { return minus_size<vector<T>>(v); }
template <class T> INLINE vector<T> first_lanes(vector<T> v, long n) {
    return first_lanes<vector<T>>(v, n);
}
template <class T> INLINE f64v low_doubles(vector<T> v) { return low_doubles(v); }
template <class T> INLINE f64v high_doubles(vector<T> v) { return high_doubles(v); }
