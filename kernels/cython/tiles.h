// Rows into lanes and back: squares of as many vectors as a vector has lanes are transposed in
// registers.
#pragma once
#include "simd.h"

template <class V, int... I> INLINE void zip(V a, V b, V &low, V &high,
                                             std::integer_sequence<int, I...>) {
    constexpr int w = WIDTH<V>;
    typedef typename traits<V>::ints ints;
#if defined(__clang__)
    low = __builtin_shufflevector(a, b, (I / 2 + I % 2 * w)...);
    high = __builtin_shufflevector(a, b, (w / 2 + I / 2 + I % 2 * w)...);
#else
    low = __builtin_shuffle(a, b, ints{(I / 2 + I % 2 * w)...});
    high = __builtin_shuffle(a, b, ints{(w / 2 + I / 2 + I % 2 * w)...});
#endif
}
// Transpose as many vectors as a vector has lanes: a perfect shuffle, log2(lanes) times.
template <class V> INLINE void transpose(V *v) {
    constexpr int w = WIDTH<V>;
    V other[w];
#pragma GCC unroll 8
    for (int done = 1; done < w; done *= 2) {
#pragma GCC unroll 16
        for (int i = 0; i < w / 2; i++)
            zip(v[i], v[i + w / 2], other[2 * i], other[2 * i + 1],
                std::make_integer_sequence<int, w>());
#pragma GCC unroll 16
        for (int i = 0; i < w; i++) v[i] = other[i];
    }
}

// How many rows ahead of those being loaded are prefetched: the processor's own prefetching is too
// late for short rows (11 instead of 6 ns per row of 10 floats).
constexpr int TILE_AHEAD = 256;

// Rows to lanes: lane r of tile[j * step] = x[r * stride + j], for j < n and r < rows. Lanes
// beyond `rows` repeat the last row.
template <class T>
INLINE void load_tile(const T *x, long stride, long rows, long n, vector<T> *tile, long step) {
    constexpr int w = WIDTH<vector<T>>;
    vector<T> v[w];
    for (long j = 0; j < n; j += w) {
        long count = n - j < w ? n - j : w;
        for (int r = 0; r < w; r++) {
            prefetch(x + (r + TILE_AHEAD) * stride + j);
            v[r] = load_n(x + (r < rows ? r : rows - 1) * stride + j, count, 0);
        }
        transpose(v);
        for (long i = 0; i < count; i++) tile[(j + i) * step] = v[i];
    }
}
// And back.
template <class T>
INLINE void store_tile(T *x, long stride, long rows, long n, const vector<T> *tile, long step) {
    constexpr int w = WIDTH<vector<T>>;
    vector<T> v[w];
    for (long j = 0; j < n; j += w) {
        long count = n - j < w ? n - j : w;
        for (int i = 0; i < w; i++) v[i] = tile[(i < count ? j + i : j) * step];
        transpose(v);
        for (int r = 0; r < w && r < rows; r++) {
            prefetch_write(x + (r + TILE_AHEAD) * stride + j);
            store_n(x + r * stride + j, v[r], count);
        }
    }
}

// Elements `from` to `from + n` of up to as many rows as a vector has lanes: lane r of
// tile[j * step] = x[r][from + j]. A row that is NULL gives 0.
template <class T>
INLINE void load_lanes(const T *const *x, long from, long n, vector<T> *tile, long step) {
    constexpr int w = WIDTH<vector<T>>;
    vector<T> v[w];
    for (long j = 0; j < n; j += w) {
        long count = n - j < w ? n - j : w;
        for (int r = 0; r < w; r++) v[r] = x[r] ? load_n(x[r] + from + j, count, 0) : vector<T>{};
        transpose(v);
        for (long i = 0; i < count; i++) tile[(j + i) * step] = v[i];
    }
}
// And back.
template <class T>
INLINE void store_lanes(T *const *x, long n, const vector<T> *tile, long step) {
    constexpr int w = WIDTH<vector<T>>;
    vector<T> v[w];
    for (long j = 0; j < n; j += w) {
        long count = n - j < w ? n - j : w;
        for (int i = 0; i < w; i++) v[i] = tile[(i < count ? j + i : j) * step];
        transpose(v);
        for (int r = 0; r < w; r++)
            if (x[r]) store_n(x[r] + j, v[r], count);
    }
}
