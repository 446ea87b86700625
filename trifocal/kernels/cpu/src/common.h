// Vectors, conversions and the one transposition that the kernels share.
//
// Every file is compiled once per instruction set (see build.py); W, the lanes of a float vector, is the only thing that
// most code knows of it. Vectors are the compiler's own (GCC and Clang), intrinsics are used where it needs them.
#pragma once

#include <immintrin.h>
#include <omp.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>

#define EXPORT extern "C" __attribute__((visibility("default")))
// What library.py compares with its own struct: how many bytes NAME's is.
#define SIZE(NAME, STRUCT) \
    EXPORT int64_t tri_##NAME##_bytes() { return sizeof(STRUCT); }
// A kernel takes the address of one struct, so that calls can be kept and made again (see calls.cpp).
#define KERNEL(NAME, ARGS, CALL)                                                         \
    EXPORT void tri_##NAME(const void* args) { CALL(*static_cast<const ARGS*>(args)); } \
    SIZE(NAME, ARGS)

namespace tri {

#if defined(__AVX512F__)
constexpr int W = 16;
constexpr int MAX_ROWS = 16;  // accumulators that leave registers for the rest
#else
constexpr int W = 8;
constexpr int MAX_ROWS = 8;
#endif

using bf16 = uint16_t;
typedef float vf __attribute__((vector_size(W * 4)));
typedef int32_t vi __attribute__((vector_size(W * 4)));
typedef uint32_t vu __attribute__((vector_size(W * 4)));
typedef uint16_t vh __attribute__((vector_size(W * 2)));

template <class V>
inline V load(const void* from) {
    V v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

template <class V>
inline void store(void* to, V v) {
    std::memcpy(to, &v, sizeof v);
}

inline vf splat(float x) { return x - vf{}; }
inline vf select(vi mask, vf yes, vf no) { return (vf)((mask & (vi)yes) | (~mask & (vi)no)); }

inline float to_float(bf16 x) {
    uint32_t bits = uint32_t(x) << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}
inline float to_float(float x) { return x; }

// bfloat16 by round to nearest even, NaN stays NaN.
inline vu round_bits(vf x) {
    vu bits = (vu)x;
    vu rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    vu is_nan = (vu)(x != x);
    return (rounded & ~is_nan) | (((bits >> 16) | 0x40) & is_nan);
}
#if defined(__AVX512BF16__)
inline vh to_bf16(vf x) { return (vh)_mm512_cvtneps_pbh((__m512)x); }  // what is below 2^-126 becomes 0
#else
inline vh to_bf16(vf x) { return __builtin_convertvector(round_bits(x), vh); }
#endif
inline vf to_float(vh x) { return (vf)(__builtin_convertvector(x, vu) << 16); }
inline vf rounded(vf x) { return to_float(to_bf16(x)); }

inline vf load_float(const bf16* from) { return to_float(load<vh>(from)); }
inline vf load_float(const float* from) { return load<vf>(from); }
inline void store_float(bf16* to, vf x) { store(to, to_bf16(x)); }
inline void store_float(float* to, vf x) { store(to, x); }

// The first `count` lanes; the others read as 0 and are not written.
template <class T>
inline vf load_some(const T* from, int count) {
    T padded[W] = {};
    std::memcpy(padded, from, count * sizeof(T));
    return load_float(padded);
}
template <class T>
inline void store_some(T* to, vf x, int count) {
    T padded[W];
    store_float(padded, x);
    std::memcpy(to, padded, count * sizeof(T));
}

// f(i, lanes) along a row, W elements at a time and then what is left.
template <class F>
inline void along(ptrdiff_t size, F f) {
    ptrdiff_t i = 0;
    for (; i + W <= size; i += W) f(i, W);
    if (i < size) f(i, int(size - i));
}

template <class T>
inline vf get(const T* from, int lanes) {
    return lanes == W ? load_float(from) : load_some(from, lanes);
}
template <class T>
inline void put(T* to, vf x, int lanes) {
    lanes == W ? store_float(to, x) : store_some(to, x, lanes);
}

// How many of W elements from `at` on there are.
inline int lanes_of(ptrdiff_t size, ptrdiff_t at) { return size - at < W ? int(size - at) : W; }

inline float sum(vf x) {
    float lanes[W];
    store(lanes, x);
    for (int half = W / 2; half; half /= 2)
        for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
    return lanes[0];
}
inline float max(vf x) {
    float lanes[W];
    store(lanes, x);
    float most = lanes[0];
    for (int i = 1; i < W; i++) most = lanes[i] > most ? lanes[i] : most;
    return most;
}
inline vf max(vf a, vf b) { return select(a > b, a, b); }

// e^x to 1e-7; exactly 0 below -87, e.g. for -infinity, and infinity above 88.
inline vf exp(vf x) {
#if defined(__AVX512F__)
    vf c = (vf)_mm512_min_ps(_mm512_set1_ps(88), _mm512_max_ps(_mm512_set1_ps(-87), (__m512)x));  // NaN stays
#else
    vf c = select(x < -87.0f, splat(-87.0f), x);
    c = select(c > 88.0f, splat(88.0f), c);
#endif
    vf whole = (c * 1.44269504f + 12582912.0f) - 12582912.0f;  // 1.5 * 2^23: sums are rounded to integers
    vf r = c - whole * 0.693359375f;
    r = r + whole * 2.12194440e-4f;
    vf p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + (r + 1.0f);
#if defined(__AVX512F__)
    const __mmask16 is_some = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-87), _CMP_NLT_UQ);
    const __mmask16 is_beyond = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(88), _CMP_GT_OQ);
    const __m512 y = _mm512_maskz_scalef_ps(is_some, (__m512)p, (__m512)whole);
    return (vf)_mm512_mask_mov_ps(y, is_beyond, _mm512_set1_ps(__builtin_inff()));
#else
    vi exponent = __builtin_convertvector(whole, vi) << 23;
    vf y = select(x < -87.0f, splat(0.0f), (vf)((vi)p + exponent));
    return select(x > 88.0f, splat(__builtin_inff()), y);
#endif
}

// ---------------------------------------------------------------------------------------------- transposition

#if defined(__clang__)
#define TRI_SHUFFLE16(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define TRI_SHUFFLE16(a, b, ...) __builtin_shuffle(a, b, (vi){__VA_ARGS__})
#endif
#if defined(__AVX512F__)
#define TRI_UNPACK(a, b, i, j)                                                                                \
    TRI_SHUFFLE16(a, b, i, 16 + i, j, 16 + j, 4 + i, 20 + i, 4 + j, 20 + j, 8 + i, 24 + i, 8 + j, 24 + j, 12 + i, \
                  28 + i, 12 + j, 28 + j)
#define TRI_PAIRS(a, b, i)                                                                                    \
    TRI_SHUFFLE16(a, b, i, i + 1, 16 + i, 17 + i, 4 + i, 5 + i, 20 + i, 21 + i, 8 + i, 9 + i, 24 + i, 25 + i, 12 + i, \
                  13 + i, 28 + i, 29 + i)
#else
#define TRI_UNPACK(a, b, i, j) TRI_SHUFFLE16(a, b, i, 8 + i, j, 8 + j, 4 + i, 12 + i, 4 + j, 12 + j)
#define TRI_PAIRS(a, b, i) TRI_SHUFFLE16(a, b, i, i + 1, 8 + i, 9 + i, 4 + i, 5 + i, 12 + i, 13 + i)
#endif

// 16 bytes from each of W rows -> four vectors: lane r of vector j is the j-th 32-bit word of row r.
inline void transpose(const char* const rows[W], ptrdiff_t offset, vi out[4]) {
    vi z[4];
    for (int e = 0; e < 4; e++) {
        auto part = [&](int lane) { return _mm_loadu_si128((const __m128i*)(rows[4 * lane + e] + offset)); };
#if defined(__AVX512F__)
        __m512i wide = _mm512_castsi128_si512(part(0));
        wide = _mm512_inserti32x4(wide, part(1), 1);
        wide = _mm512_inserti32x4(wide, part(2), 2);
        z[e] = (vi)_mm512_inserti32x4(wide, part(3), 3);
#else
        z[e] = (vi)_mm256_inserti128_si256(_mm256_castsi128_si256(part(0)), part(1), 1);
#endif
    }
    vi low01 = TRI_UNPACK(z[0], z[1], 0, 1), high01 = TRI_UNPACK(z[0], z[1], 2, 3);
    vi low23 = TRI_UNPACK(z[2], z[3], 0, 1), high23 = TRI_UNPACK(z[2], z[3], 2, 3);
    out[0] = TRI_PAIRS(low01, low23, 0);
    out[1] = TRI_PAIRS(low01, low23, 2);
    out[2] = TRI_PAIRS(high01, high23, 0);
    out[3] = TRI_PAIRS(high01, high23, 2);
}

// ------------------------------------------------------------------------------------------------------ scratch

// Memory of the calling thread, kept from call to call; `slot` keeps several apart.
template <class T>
inline T* scratch(int slot, size_t count) {
    static thread_local struct Buffers {
        void* data[7] = {};
        size_t bytes[7] = {};
        ~Buffers() {
            for (void* each : data) std::free(each);
        }
    } buffers;
    size_t bytes = (count * sizeof(T) + 127) / 64 * 64;
    if (buffers.bytes[slot] < bytes) {
        std::free(buffers.data[slot]);
        buffers.data[slot] = std::aligned_alloc(64, bytes);
        if (!buffers.data[slot]) std::abort();
        buffers.bytes[slot] = bytes;
    }
    return static_cast<T*>(buffers.data[slot]);
}

}  // namespace tri
