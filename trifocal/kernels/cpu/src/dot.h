// Rows of activations times W rows of weights that lie as a checkpoint has them: row by row, K along memory.
//
// Lanes are weight rows, so that each output is a chain of sums along K, the same for one row of activations or many.
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

// Fetches lines that come soon: those of the W rows at byte `at` and some further on, up to `end` of each row, and `skip`
// bytes later beyond it, where the next W rows begin.
inline void fetch(const char* const rows[W], ptrdiff_t at, ptrdiff_t end, ptrdiff_t skip) {
    constexpr ptrdiff_t EARLY = 512;
    const ptrdiff_t next = at + EARLY < end ? at + EARLY : at + EARLY + skip;
    for (int i = 0; i < W; i++) _mm_prefetch(rows[i] + next, _MM_HINT_T0);
}

// acc[r][lane] += x row r . weight row `lane`, over elements from .. to; the bytes of these are a multiple of 16.
// With `length`, that of a row, the lines that come next are fetched, those of the rows behind these included.
template <int R, class T, class X>
inline void dot(const X* x, ptrdiff_t stride, const T* const rows[W], ptrdiff_t from, ptrdiff_t to, vf acc[R],
                ptrdiff_t length = 0) {
    constexpr ptrdiff_t SIZE = sizeof(T), STEP = 16 / SIZE;
    const char* bytes[W];
    for (int i = 0; i < W; i++) bytes[i] = reinterpret_cast<const char*>(rows[i]);
    for (ptrdiff_t k = from; k < to; k += STEP) {
        if (length && k * SIZE % 64 == 0) fetch(bytes, k * SIZE, length * SIZE, (W - 1) * length * SIZE);
        vi v[4];
        transpose(bytes, k * SIZE, v);
        if constexpr (sizeof(T) == 4) {
            for (int j = 0; j < 4; j++)
                for (int r = 0; r < R; r++) acc[r] += x[r * stride + k + j] * (vf)v[j];
        } else if constexpr (sizeof(X) == 4) {
            for (int j = 0; j < 4; j++) {
                vf even = (vf)(v[j] << 16), odd = (vf)(v[j] & (int32_t)0xffff0000);
                for (int r = 0; r < R; r++) {
                    const X* at = x + r * stride + k + 2 * j;
                    acc[r] += at[0] * even;
                    acc[r] += at[1] * odd;
                }
            }
        } else {
#if defined(__AVX512BF16__)
            for (int j = 0; j < 4; j++)
                for (int r = 0; r < R; r++) acc[r] = dot_pairs(acc[r], x + r * stride + k + 2 * j, v[j]);
#endif
        }
    }
}

}  // namespace tri
