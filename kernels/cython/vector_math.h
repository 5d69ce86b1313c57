// exp, exp2, log, log1p, tanh and powers of vectors, within 2 ULP (tanh 3, powers: see there) over
// their whole range.
#pragma once
#include "simd.h"

// value * 2**n for an integer-valued n, correctly rounded where the result is subnormal.
template <class V> INLINE V scale_by_power(V value, V n) {
#if defined(__AVX512F__)
    if constexpr (is<V, f32v>) return _mm512_scalef_ps(value, n);
    else return _mm512_scalef_pd(value, n);
#else
    typedef traits<V> t;
    n = vmax(V{} + (2 - 2 * t::bias), n);  // below, the result is 0 and the exponents would wrap
    auto whole = bits<typename t::ints>(n + t::to_int) - bits<typename t::ints>(V{} + t::to_int);
    auto part = whole >> 1;  // in two steps: 2**n itself may be no normal number
    return value * bits<V>((part + t::bias) << t::mantissa)
        * bits<V>((whole - part + t::bias) << t::mantissa);
#endif
}

// q in exp(r) = 1 + r + r**2 * q(r), |r| <= ln(2) / 2: least squares of the relative error,
// 2**-28.0 with 5 coefficients for float, 2**-57.7 with 10 for double.
INLINE f32v exp_tail(f32v r) {
    f32v q = 1.37511503e-3f * r + 8.36898723e-3f;
    q = q * r + 4.16695443e-2f;
    q = q * r + 1.66665179e-1f;
    return q * r + 4.99999885e-1f;
}
INLINE f64v exp_tail(f64v r) {
    f64v q = 2.5024585741429218e-8 * r + 2.76312725510702821e-7;
    q = q * r + 2.75575080521148186e-6;
    q = q * r + 2.48014899597542431e-5;
    q = q * r + 1.98412695956368644e-4;
    q = q * r + 1.3888888947024378e-3;
    q = q * r + 8.33333333345238636e-3;
    q = q * r + 4.16666666665151239e-2;
    q = q * r + 1.66666666666664806e-1;
    return q * r + 5.00000000000001285e-1;
}

// exp(x - m) for x <= m, within 2 ULP. The rounding error of x - m (two-sum) is added to the
// reduced argument instead of being lost: at x = -80, m = 80 the loss would be 64 ULP in float.
// NaN only where x is NaN: an infinite m counts as the largest finite number.
template <class V> INLINE V exp_sub(V x, V m) {
    typedef traits<V> t;
    m = -vmax(-vmax(m, V{} - t::largest), V{} - t::largest);
    // x below m - apart gives 0, so it is replaced by that; of a huge m the next number is farther.
    V apart = vmax(V{} - t::exp_low, vmax(m, -m) * t::two_steps);
    x = vmax(vmax(m - apart, V{} - t::largest), x);
    V d = x - m, back = d - x;
    V lost = (x - (d - back)) - (m + back);
    d = vmax(V{} + t::exp_low, d);
    V n = (d * (typename t::scalar)1.4426950408889634 + t::to_int) - t::to_int;
    V r = d - n * t::ln2_hi;
    r = r - n * t::ln2_lo + lost;
    return scale_by_power(V{} + 1 + (r + r * r * exp_tail(r)), n);
}

// The same in fewer operations where m is one number for many x: exp(x) / exp(m'), where the
// reference m' = shift + power * ln(2) is near m and chosen so that nothing is rounded. A small m
// becomes a power of two, and x is reduced as it is. Subtracting a large m is exact by Sterbenz's
// lemma, for every x that is not so far below that the result is 0.
struct Reference {
    double shift, power;
    double ratio;  // exp(m' - m)
};
template <class T> INLINE Reference reference(const T *, double m) {
    constexpr double limit = traits<vector<T>>::near_limit, largest = traits<vector<T>>::largest;
    if (-limit < m && m < limit) {
        double power = __builtin_rint(m * 1.4426950408889634);
        // In two parts, the first of them exact: the error of m' would be one of every result.
        typedef traits<f64v> d;
        return {0, power, exp((power * d::ln2_hi - m) + power * d::ln2_lo)};
    }
    return {m < -largest ? -largest : m > largest ? largest : m, 0, 1};
}
template <class V> INLINE V exp_from(V x, V shift, V power) {
    typedef traits<V> t;
    V d = vmax(V{} + t::far_below, x - shift);
    V n = (d * (typename t::scalar)1.4426950408889634 + t::to_int) - t::to_int;
    V r = d - n * t::ln2_hi;
    r = r - n * t::ln2_lo;
    return scale_by_power(V{} + 1 + (r + r * r * exp_tail(r)), n - power);
}

// (2**r - 1) / r, |r| <= 1/2: least squares of the relative error of 2**r, 2**-28.8 and 2**-57.8.
INLINE f32v exp_2_tail(f32v r) {
    f32v q = 1.53707048e-4f * r + 1.33998483e-3f;
    q = q * r + 9.61837325e-3f;
    q = q * r + 5.55032904e-2f;
    q = q * r + 2.40226485e-1f;
    return q * r + 6.93147206e-1f;
}
INLINE f64v exp_2_tail(f64v r) {
    f64v q = 4.43072789840146544e-10 * r + 7.07381015509986209e-9;
    q = q * r + 1.01782292580493941e-7;
    q = q * r + 1.32154351062474748e-6;
    q = q * r + 1.52527334121407174e-5;
    q = q * r + 1.54035304575188347e-4;
    q = q * r + 1.33335581468747268e-3;
    q = q * r + 9.61812910759373496e-3;
    q = q * r + 5.5504108664819545e-2;
    q = q * r + 2.40226506959101325e-1;
    return q * r + 6.93147180559945335e-1;
}
// 2**x, within 2 ULP; 0 for -inf, NaN for NaN.
template <class V> INLINE V exp_2(V x) {
    typedef traits<V> t;
#if defined(__AVX512F__)  // x less its nearest integer in one operation, which takes infinity too
    V r;
    if constexpr (is<V, f32v>) r = _mm512_reduce_ps(x, 0);
    else r = _mm512_reduce_pd(x, 0);
    V n = x - r;
#else
    constexpr int high = 2 * t::bias + 1;  // 2**high is infinite, and its exponent does not wrap
    x = -vmax(V{} - high, -vmax(V{} + t::far_below, x));
    V n = (x + t::to_int) - t::to_int, r = x - n;
#endif
    return scale_by_power(exp_2_tail(r) * r + 1, n);
}

// tanh(x) = x + x**3 * tanh_tail(x**2), |x| < 0.625: the coefficients of Cephes.
INLINE f32v tanh_tail(f32v z) {
    f32v q = -5.70498872745e-3f * z + 2.06390887954e-2f;
    q = q * z - 5.37397155531e-2f;
    q = q * z + 1.33314422036e-1f;
    return q * z - 3.33332819422e-1f;
}
INLINE f64v tanh_tail(f64v z) {
    f64v p = (-9.64399179425052238628e-1 * z - 9.92877231001918586564e1) * z;
    f64v q = ((z + 1.12811678491632931402e2) * z + 2.23548839060100448583e3) * z;
    return (p - 1.61468768441708447952e3) / (q + 4.84406305325125486048e3);
}
template <class V> INLINE V tan_h(V x) {
    V size = vmax(x, -x), z = x * x;
    V large = 1 - 2 / (exp_2(size * (typename traits<V>::scalar)2.8853900817779268) + 1);
    V near = x + x * z * tanh_tail(z);
    return size < (typename traits<V>::scalar)0.625 ? near : x < 0 ? -large : large;
}

// log(f) - (f - 1) + (f - 1)**2 / 2 = s * (h + R(s**2)), s = (f - 1) / (f + 1): the classic
// coefficients of fdlibm, below 2**-34.2 (float) and 2**-58.4 (double).
INLINE f32v log_tail(f32v z) {
    return z * (0.66666662693f + z * (0.40000972152f + z * (0.28498786688f + z * 0.24279078841f)));
}
INLINE f64v log_tail(f64v z) {
    f64v q = 1.479819860511658591e-01 * z + 1.531383769920937332e-01;
    q = q * z + 1.818357216161805012e-01;
    q = q * z + 2.222219843214978396e-01;
    q = q * z + 2.857142874366239149e-01;
    q = q * z + 3.999999999940941908e-01;
    return z * (q * z + 6.666666666666735130e-01);
}

// log((u + lost) / 2**down) within 2 ULP, where u is 0 or normal, and lost what rounding it lost:
// -infinity for 0, NaN below.
template <class V> INLINE V log_sum(V u, V lost, V down) {
    typedef traits<V> t;
    typedef typename t::ints ints;
    typedef typename t::scalar scalar;
    ints all = bits<ints>(u);
    ints k = (all - (ints{} + t::sqrt_half)) >> t::mantissa;
    V power = __builtin_convertvector(k, V) - down;
    V f = bits<V>(all - (k << t::mantissa)) - 1;
    // lost is scaled with u; 2**-k must be a normal number, and lost is 0 long before it is not
    ints least = k < t::bias ? k : ints{} + t::bias - 1;
    V shift = lost * bits<V>((t::bias - least) << t::mantissa);  // the result is log(1 + f + shift)
    // Where the compiler could fuse one product or another, or none, mul_add says which: bits differed
    // between two copies of one loop, for one thread and for more.
    V s = f / (f + 2), h = mul_add<scalar>((scalar)0.5 * f, f, V{});
    // k * ln2 and f - h may cancel, down to half: their rounding errors are carried along.
    V high = power * t::ln2_hi, part = f - h, sum = high + part;
    V low = mul_add<scalar>(s, h + log_tail(s * s), power * t::ln2_lo);
    V correction = mul_add<scalar>(-shift, f, shift);
    V result = sum + (((high - sum) + part) + ((f - part) - h) + (low + correction));
    V special = u > 0 ? u : u == 0 ? V{} - INFINITY : V{} + NAN;
    return (u > 0) & (u <= t::largest) ? result : special;
}

// log(x), also of subnormal numbers.
template <class V> INLINE V log_of(V x) {
    typedef typename traits<V>::scalar scalar;
    auto small = x < traits<V>::least;
    return log_sum(small ? x * (scalar)0x1p64 : x, V{}, small ? V{} + 64 : V{});
}

// log(1 + x) for x >= -1. What 1 + x rounds away returns as a correction, so a small x loses
// nothing.
template <class V> INLINE V log_1p(V x) {
    V u = x + 1, back = u - x;
    return log_sum(u, (x - (u - back)) + (1 - back), V{});
}

// q in log(1 + e) = e + e**2 * q(e), 0 <= e <= 1: minimax of the relative error, 2**-27.5 with 9
// coefficients for float, 2**-59.2 with 21 for double.
INLINE f32v log_1p_tail(f32v e) {
    f32v q = -0.00331846996f * e + 0.0202045722f;
    q = q * e - 0.0576644181f;
    q = q * e + 0.106805526f;
    q = q * e - 0.153553944f;
    q = q * e + 0.196953998f;
    q = q * e - 0.249585873f;
    q = q * e + 0.333305113f;
    return q * e - 0.499999328f;
}
INLINE f64v log_1p_tail(f64v e) {
    f64v q = -1.6599325828352185e-05 * e + 0.000199451904760749622;
    q = q * e - 0.00113966895852180526;
    q = q * e + 0.00413990818150590956;
    q = q * e - 0.0108080748559061298;
    q = q * e + 0.0218084437664177976;
    q = q * e - 0.0358773930975282429;
    q = q * e + 0.0503907090621690881;
    q = q * e - 0.0631094301194415758;
    q = q * e + 0.0734141681914698696;
    q = q * e - 0.0821264165456194045;
    q = q * e + 0.0905747421003253311;
    q = q * e - 0.0999264698527077277;
    q = q * e + 0.111098501608610581;
    q = q * e - 0.12499835233558898;
    q = q * e + 0.142856983772630647;
    q = q * e - 0.16666665578802442;
    q = q * e + 0.19999999950440156;
    q = q * e - 0.249999999986320082;
    q = q * e + 0.333333333333139525;
    return q * e - 0.499999999999999001;
}
// log(1 + e) for e from 0 to 1, without a division.
template <class V> INLINE V log_1p_small(V e) { return e * e * log_1p_tail(e) + e; }

// x**y for x from 0 to 1 and y > 0, within 3 + 2 * y ULP however small the result; NaN below 0. With
// x = 2**k * f it is 2**(y * k + y * log2(f)). The first term may be large, so it is not rounded before
// an integer has been taken away: the upper half of y times k is exact.
template <class V> INLINE V power_of(V x, V y) {
    typedef traits<V> t;
    typedef typename t::ints ints;
    typedef typename t::scalar scalar;
    auto small = x < t::least;
    V u = small ? x * (scalar)0x1p64 : x;
    ints all = bits<ints>(u), k = (all - (ints{} + t::sqrt_half)) >> t::mantissa;
    V whole = __builtin_convertvector(k, V) - (small ? V{} + 64 : V{});
    V f = bits<V>(all - (k << t::mantissa)) - 1;
    V s = f / (f + 2), h = (scalar)0.5 * f * f;
    V log_2 = (f - (h - s * (h + log_tail(s * s)))) * (scalar)1.4426950408889634;
    // Where the result is 0, the remainder does not matter.
    V n = (vmax(V{} - 4 * t::bias, y * (whole + log_2)) + t::to_int) - t::to_int;
    V upper = bits<V>(bits<ints>(y) >> t::mantissa / 2 << t::mantissa / 2);
    V r = (upper * whole - n) + mul_add<scalar>(y - upper, whole, y * log_2);
    r = vmax(V{} - 1, r);
    V result = scale_by_power(exp_2_tail(r) * r + 1, n);
    return x > 0 ? result : x == 0 ? V{} : V{} + NAN;
}

// x * log(x / y) - x + y for x and y from 0 up to far below the largest number: y for x = 0, infinity
// for y = 0, and never negative. Where x and y are nearly equal it is about (y - x)**2 / (2 * x), and
// as exact as y - x is, to which `low` is added: what rounding x and y lost of it.
//
// With y / x = 2**power * (1 + f), it is x * (f - log(1 + f)) if power is 0; else y - x is added, and
// x * (f + power * log(2)) taken away.
template <class V> INLINE V kl_div_term(V x, V y, V low) {
    typedef traits<V> t;
    typedef typename t::ints ints;
    typedef typename t::scalar scalar;
    // The ratio must be a normal number. Of nearly equal ones both are scaled, or neither.
    V limit = V{} + t::tiny, twice = limit + limit;
    auto tiny_x = x < (y < twice ? twice : limit), tiny_y = y < (x < twice ? twice : limit);
    V a = tiny_x ? x * t::untiny : x, b = tiny_y ? y * t::untiny : y;
    V down = (tiny_y ? V{} + t::untiny_power : V{}) - (tiny_x ? V{} + t::untiny_power : V{});
    V inverse = 1 / a, u = b * inverse, lost = mul_add<scalar>(-u, a, b) * inverse;
    ints all = bits<ints>(u), k = (all - (ints{} + t::sqrt_half)) >> t::mantissa;
    V power = __builtin_convertvector(k, V) - down;
    V f = (bits<V>(all - (k << t::mantissa)) - 1) + lost * bits<V>((t::bias - k) << t::mantissa);
    f = power == 0 ? ((b - a) + low) * inverse : f;
    V s = f / (f + 2), h = (scalar)0.5 * f * f;
    V near = x * (h - s * (h + log_tail(s * s)));
    V far = (y - x) - x * (power * t::ln2_hi + (f + power * t::ln2_lo));
    V result = power == 0 ? near : near + far;
    return x == 0 ? y : y == 0 ? V{} + INFINITY : result;
}

// The same of p and q, given log_ratio = log(p / q), and in `apart` q - p, exact in the same way.
template <class V> INLINE V kl_div_term_log(V p, V q, V log_ratio, V *apart) {
    typedef typename traits<V>::scalar scalar;
    V r = -log_ratio, square = r * r, tail = exp_tail(r);  // expm1(r) = r + square * tail
    auto near = (r < (scalar)0.34657359) & (r > (scalar)-0.34657359);
    // Each written as mul_add: sums of products may else be fused, in one copy of a loop only.
    V difference = mul_add<scalar>(V{} + 1, q, -p);
    *apart = near ? p * mul_add<scalar>(square, tail, r) : difference;
    V result = near ? p * (square * tail) : mul_add<scalar>(p, log_ratio, difference);
    return p == 0 ? q : result;
}

// A power of two that brings x >= 0 near 1: to [1, 2), or [2, 4), or less for a subnormal number.
template <class V> INLINE V scale_near_one(V x) {
    typedef traits<V> t;
    typedef typename t::ints ints;
    ints exponent = bits<ints>(x) >> t::mantissa;
    ints inverse = 2 * t::bias - exponent;
    return bits<V>((inverse > 1 ? inverse : ints{} + 1) << t::mantissa);
}

// Cython calls these with the storage type, as in exp_sub<f16>(x, m).
template <class T> INLINE vector<T> kl_div_term(vector<T> x, vector<T> y, vector<T> low) {
    return kl_div_term<vector<T>>(x, y, low);
}
template <class T>
INLINE vector<T> kl_div_term_log(vector<T> p, vector<T> q, vector<T> log_ratio, vector<T> *apart) {
    return kl_div_term_log<vector<T>>(p, q, log_ratio, apart);
}
template <class T> INLINE vector<T> scale_near_one(vector<T> x) {
    return scale_near_one<vector<T>>(x);
}
template <class T> INLINE vector<T> exp_sub(vector<T> x, vector<T> m) {
    return exp_sub<vector<T>>(x, m);
}
template <class T> INLINE vector<T> log_sum(vector<T> u, vector<T> lost, vector<T> down) {
    return log_sum<vector<T>>(u, lost, down);
}
template <class T> INLINE vector<T> log_of(vector<T> x) { return log_of<vector<T>>(x); }
template <class T> INLINE vector<T> log_1p(vector<T> x) { return log_1p<vector<T>>(x); }
template <class T> INLINE vector<T> log_1p_small(vector<T> e) { return log_1p_small<vector<T>>(e); }
template <class T> INLINE vector<T> exp_from(vector<T> x, vector<T> shift, vector<T> power) {
    return exp_from<vector<T>>(x, shift, power);
}
template <class T> INLINE vector<T> exp_2(const T *, vector<T> x) { return exp_2<vector<T>>(x); }
template <class T> INLINE vector<T> power_of(vector<T> x, vector<T> y) {
    return power_of<vector<T>>(x, y);
}
template <class T> INLINE vector<T> tan_h(const T *, vector<T> x) {
    return tan_h<vector<T>>(x);
}
