// Products of int8.
#pragma once

#include "common.h"

namespace tri {

inline vf round_even(vf x) {
#if defined(__AVX512F__)
    return (vf)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT);
#else
    return (vf)_mm256_round_ps((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#endif
}

// acc[lane] += four activations . four weights. The instruction for it takes one side unsigned: the weights.
#if defined(__AVX512VNNI__)
inline vi dot_bytes(vi acc, int32_t four, vi weights) {
    return (vi)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)weights, _mm512_set1_epi32(four));
}
#else
typedef int16_t vs __attribute__((vector_size(W * 4)));
typedef uint16_t vus __attribute__((vector_size(W * 4)));
inline vi multiply_pairs(vs a, vs b) {
#if defined(__AVX512F__)
    return (vi)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#else
    return (vi)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#endif
}
inline vi dot_bytes(vi acc, int32_t four, vi weights) {
    vs x = (vs)(four - vi{});
    vus w = (vus)weights;
    return acc + multiply_pairs(x << 8 >> 8, (vs)(w & 255)) + multiply_pairs(x >> 8, (vs)(w >> 8));
}
#endif

inline int32_t four_at(const int8_t* x) {
    int32_t four;
    std::memcpy(&four, x, 4);
    return four;
}

}  // namespace tri
