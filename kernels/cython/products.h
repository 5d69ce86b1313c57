// Products of small matrices whose sums stay in registers, and what attention needs around them.
//
//     c[r, :] (+)= sum over k of a[r, k] * b[k, :]
//
// goes in tiles of TILE_ROWS rows by TILE_VECTORS vectors of columns: a vector of b is loaded once
// for six rows, a number of a is broadcast to four vectors. With AVX-512 the 24 sums leave 8
// registers, and 8 sums are enough to hide the latency of the multiply-add; AVX2 has half as many
// registers. Neither matrix is packed: a is read by single numbers, b by whole rows.
#pragma once
#include "tiles.h"

#if defined(__AVX512F__)
#define TILE_VECTORS 4
#else
#define TILE_VECTORS 2
#endif
#define TILE_ROWS 6

// Two bfloat16 that are neighbours along k. Their vectors are only bits to all but add_product.
typedef struct { uint16_t even, odd; } bf16_pair;
template <> struct vector_of<bf16_pair> { typedef f32v type; };

// The first n columns. Pairs lie in scratch memory only, where whole vectors can be read.
template <class B> INLINE vector<B> load_row(const B *p, long n) {
    if constexpr (is<B, bf16_pair>) return load((const float *)p);
    else return load_n(p, n, 0);
}
INLINE f32v add_product(const float *a, f32v b, f32v sum) { return *a * b + sum; }
INLINE f64v add_product(const double *a, f64v b, f64v sum) { return *a * b + sum; }
#if defined(__AVX512BF16__)
#define HAS_BF16_PRODUCT 1
INLINE f32v add_product(const bf16_pair *a, f32v b, f32v sum) {
    return _mm512_dpbf16_ps(sum, bits<__m512bh>(b), bits<__m512bh>(i32v{} + bits<int32_t>(*a)));
}
#else
#define HAS_BF16_PRODUCT 0  // the next function is never called
INLINE f32v add_product(const bf16_pair *, f32v, f32v sum) { return sum; }
#endif

#define EACH_ROW _Pragma("GCC unroll 8") for (int r = 0; r < ROWS; r++)
#define EACH_VECTOR _Pragma("GCC unroll 8") for (int v = 0; v < VECTORS; v++)

template <class A, class B, class C> struct Product {
    const A *a;
    long a_row, a_step;  // from r to r + 1, from k to k + 1, in elements
    const B *b;
    long b_row;
    C *c;
    long c_row;
    long n;  // values of k
    bool add;  // to what c holds
};

// One tile; of its last vector only `last` columns exist, in b as in c. What c holds is added at the
// end: a sum of 32000 products in parts of 512 has a sixth of the error of one that runs through.
template <int ROWS, int VECTORS, class A, class B, class C>
static __attribute__((noinline)) void product_tile(
    const Product<A, B, C> p, long row, long column, long last) {
    typedef vector<C> V;
    constexpr int w = WIDTH<V>, end = (VECTORS - 1) * w;
    const A *a = p.a + row * p.a_row;
    const B *b = p.b + column;
    C *c = p.c + row * p.c_row + column;
    V sum[ROWS][VECTORS], line[VECTORS];
    EACH_ROW EACH_VECTOR {
        sum[r][v] = V{};
        if (p.add) prefetch_write(c + r * p.c_row + v * w);
    }
    for (long k = 0; k < p.n; k++, a += p.a_step, b += p.b_row) {
        EACH_VECTOR line[v] = load_row(b + v * w, v * w < end ? w : last);
        EACH_ROW EACH_VECTOR sum[r][v] = add_product(a + r * p.a_row, line[v], sum[r][v]);
    }
    EACH_ROW EACH_VECTOR {
        C *at = c + r * p.c_row + v * w;
        if (p.add) sum[r][v] = sum[r][v] + (v * w < end ? load(at) : load_n(at, last, 0));
        if (v * w < end) store(at, sum[r][v]);
        else store_n(at, sum[r][v], last);
    }
}
template <int ROWS, int VECTORS, class P>
INLINE void sized_tile(const P &p, long row, long column, long rows, long columns) {
    constexpr int w = WIDTH<vector<std::remove_pointer_t<decltype(p.c)>>>;
    if constexpr (ROWS > 1)
        if (rows < ROWS) return sized_tile<ROWS - 1, VECTORS>(p, row, column, rows, columns);
    if constexpr (VECTORS > 1)
        if (columns <= (VECTORS - 1) * w)
            return sized_tile<ROWS, VECTORS - 1>(p, row, column, rows, columns);
    long left = columns - (VECTORS - 1) * w;
    product_tile<ROWS, VECTORS>(p, row, column, left < w ? left : w);
}

template <class A, class B, class C>
static void product(const A *a, long a_row, long a_step, long rows, const B *b, long b_row, long n,
                    C *c, long c_row, long columns, bool add) {
    constexpr int width = TILE_VECTORS * WIDTH<vector<C>>;
    const Product<A, B, C> p = {a, a_row, a_step, b, b_row, c, c_row, n, add};
    for (long column = 0; column < columns; column += width)
        for (long row = 0; row < rows; row += TILE_ROWS)
            sized_tile<TILE_ROWS, TILE_VECTORS>(p, row, column, rows - row, columns - column);
}

// Dot products of up to as many rows of x as a vector has lanes with y, one in each lane.
template <class T>
INLINE vector<T> row_products(const T *x, long stride, long rows, const compute<T> *y, long n) {
    constexpr int w = WIDTH<vector<T>>;
    vector<T> v[w];
    for (int r = 0; r < w; r++) {
        const T *row = x + (r < rows ? r : rows - 1) * stride;
        vector<T> even{}, odd{};
        long j = 0;
        for (; j + 2 * w <= n; j += 2 * w) {
            even = load(row + j) * load(y + j) + even;
            odd = load(row + j + w) * load(y + j + w) + odd;
        }
        for (; j < n; j += w) {
            long count = n - j < w ? n - j : w;
            even = load_n(row + j, count, 0) * load_n(y + j, count, 0) + even;
        }
        v[r] = even + odd;
    }
    transpose(v);
#pragma GCC unroll 4
    for (int half = w / 2; half; half /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < half; i++) v[i] = v[i] + v[i + half];
    return v[0];
}

// n pairs (even[i], odd[i]), rounded to bfloat16, from pair number `at` of `to`.
template <class T>
INLINE void store_pairs(const T *, void *to, long at, vector<T> even, vector<T> odd, long n) {
#if defined(__AVX512BF16__)
    if constexpr (is<vector<T>, f32v>) {
        typedef uint16_t u16v __attribute__((vector_size(64)));
        u16v both = bits<u16v>(_mm512_cvtne2ps_pbh(odd, even));  // 16 of even, then 16 of odd
        both = __builtin_shuffle(both, u16v{
            0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23,
            8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31});
        store_n((float *)to + at, bits<f32v>(both), n);
    }
#endif
}

// A vector rounded to bfloat16: its lanes are pairs of neighbours.
INLINE void narrow_to(bf16 *to, f32v v) {
#if defined(__AVX512BF16__)
    auto all = bits<half_bits>(_mm512_cvtneps_pbh(v));
    memcpy(to, &all, sizeof all);
#else
    store(to, v);
#endif
}

// A mask: floating numbers of the storage type, or bytes, where 0 (not allowed) stands for -inf.
template <class T> INLINE vector<T> load_mask(const T *, const void *row, bool bytes, long n) {
    if (!bytes) return load_n((const T *)row, n, 0);
    constexpr int w = WIDTH<vector<T>>;
    typedef uint8_t part __attribute__((vector_size(w)));
    part whole;
    memset(&whole, 1, w);
    memcpy(&whole, row, n);
    return __builtin_convertvector(whole, typename traits<vector<T>>::ints) != 0
        ? vector<T>{} : vector<T>{} - INFINITY;
}
// load_lanes of a mask whose rows are `item` bytes for an element, or 0 where one serves all keys.
template <class T>
INLINE void load_mask_lanes(const T *like, const char *const *x, bool bytes, long item, long from,
                            long n, vector<T> *tile, long step) {
    constexpr int w = WIDTH<vector<T>>;
    vector<T> v[w];
    for (long j = 0; j < n; j += w) {
        long count = n - j < w ? n - j : w;
        for (int r = 0; r < w; r++)
            v[r] = load_mask(like, x[r] + (from + j) * item, bytes, item ? count : 1);
        transpose(v);
        for (long i = 0; i < count; i++) tile[(j + i) * step] = v[item ? i : 0];
    }
}

// x in the lanes where low <= at < high, else -inf.
template <class T>
INLINE vector<T> where_between(const T *, vector<T> x, vector<T> at, vector<T> low,
                               vector<T> high) {
    return (low <= at) & (at < high) ? x : vector<T>{} - INFINITY;
}
// 0, 1, 2, ... in the lanes.
template <class T> INLINE vector<T> count_up(const T *) {
    vector<T> v;
    for (int i = 0; i < WIDTH<vector<T>>; i++) v[i] = i;
    return v;
}
