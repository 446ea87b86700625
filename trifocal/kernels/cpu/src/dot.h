// Activations times 32-bit words of weights, one output in each lane.
#pragma once

#include "common.h"

namespace tri {

// What activations are turned into before they meet weights of type T: bfloat16 stays where there is an instruction.
template <class T>
struct Operand {
    using type = float;
};
#if defined(__AVX512BF16__)
template <>
struct Operand<bf16> {
    using type = bf16;
};
#endif

template <class T, class X>
inline const X* as_operand(const T* x, ptrdiff_t count, int slot) {
    if constexpr (sizeof(T) == sizeof(X)) {
        return x;
    } else {
        X* wide = scratch<X>(slot, count);
        ptrdiff_t i = 0;
        for (; i + W <= count; i += W) store_float(wide + i, load_float(x + i));
        for (; i < count; i++) wide[i] = to_float(x[i]);
        return wide;
    }
}

#if defined(__AVX512BF16__)
inline vf dot_pairs(vf acc, const bf16* pair, vi weights) {
    int32_t both;
    std::memcpy(&both, pair, 4);
    return (vf)_mm512_dpbf16_ps((__m512)acc, (__m512bh)_mm512_set1_epi32(both), (__m512bh)weights);
}
#endif

// Activations as bfloat16 weights and those of four bits meet them, and how many weights of an output are in 32 bits then.
using Act = Operand<bf16>::type;
constexpr int PAIR = 4 / sizeof(Act);

// acc[lane] += PAIR activations . PAIR weights.
inline vf dot_words(vf acc, const Act* x, vi weights) {
#if defined(__AVX512BF16__)
    return dot_pairs(acc, x, weights);
#else
    return acc + *x * (vf)weights;
#endif
}

}  // namespace tri
