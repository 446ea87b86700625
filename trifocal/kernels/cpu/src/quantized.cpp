// Linear layers whose weights are int8 by output, or int4 by groups of inputs. As in dot.h, lanes are outputs and the
// weights lie row by row.
#include "dot.h"

namespace tri {

constexpr ptrdiff_t PART_BYTES = 128 << 10;

// f(first output) for blocks of `outputs` outputs, threads taking some at a time.
template <class F>
void for_outputs(ptrdiff_t n, ptrdiff_t row_bytes, ptrdiff_t outputs, int threads, F f) {
    const ptrdiff_t blocks = (n + outputs - 1) / outputs;
    ptrdiff_t per_part = PART_BYTES / (outputs * row_bytes);
    if (per_part < 1) per_part = 1;
    const ptrdiff_t parts = (blocks + per_part - 1) / per_part;
#pragma omp parallel for schedule(dynamic) num_threads(parts < threads ? int(parts) : threads)
    for (ptrdiff_t part = 0; part < parts; part++)
        for (ptrdiff_t b = part * per_part; b < blocks && b < (part + 1) * per_part; b++) f(b * outputs);
}

// ------------------------------------------------------------------------------------------------------- int8

inline vf round_even(vf x) {
#if defined(__AVX512F__)
    return (vf)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT);
#else
    return (vf)_mm256_round_ps((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#endif
}

// One row of activations to int8, symmetric: returns the scale, x ~ q * scale. NaN and infinity make the scale so.
template <class T>
float quantize_row(const T* x, int8_t* q, ptrdiff_t size) {
    typedef int8_t vb __attribute__((vector_size(W)));
    vf most = {}, broken = {};
    along(size, [&](ptrdiff_t i, int lanes) {
        vf v = get(x + i, lanes);
        most = max(most, select(v < 0.0f, -v, v));
        broken += v * 0.0f;  // stays 0 unless something is no number
    });
    const float largest = max(most) + sum(broken);
    const float scale = largest / 127, inverse = largest > 0 ? 127 / largest : 0;
    along(size, [&](ptrdiff_t i, int lanes) {
        vb bytes = __builtin_convertvector(__builtin_convertvector(round_even(get(x + i, lanes) * inverse), vi), vb);
        std::memcpy(q + i, &bytes, lanes);
    });
    return scale;
}

// acc[lane] += four activations . four weights. Where there is an instruction it takes unsigned activations: they are moved
// up by 128 before, and 128 times the sum of the weights is taken off again in the end.
#if defined(__AVX512VNNI__)
constexpr bool IS_MOVED = true;
inline vi dot_bytes(vi acc, int32_t four, vi weights) {
    return (vi)_mm512_dpbusd_epi32((__m512i)acc, _mm512_set1_epi32(four), (__m512i)weights);
}
#else
constexpr bool IS_MOVED = false;
typedef int16_t vs __attribute__((vector_size(W * 4)));
inline vi multiply_pairs(vs a, vs b) {
#if defined(__AVX512F__)
    return (vi)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#else
    return (vi)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#endif
}
inline vi dot_bytes(vi acc, int32_t four, vi weights) {
    vs x = (vs)(four - vi{}), w = (vs)weights;
    return acc + multiply_pairs(x << 8 >> 8, w << 8 >> 8) + multiply_pairs(x >> 8, w >> 8);
}
#endif

template <class T>
inline void finish_int8(T* to, vi sums, vf scale, float row_scale, vf bias, int lanes) {
    put(to, __builtin_convertvector(sums, vf) * scale * row_scale + bias, lanes);
}

template <class T>
struct Int8 {
    const int8_t *x, *weight;      // [m, k], [n, k]
    const float *x_scale, *scale;  // [m], [n]
    const T* bias;
    T* y;
    ptrdiff_t m, n, k;

    void finish(ptrdiff_t token, ptrdiff_t first, vi sums) const {
        const int lanes = lanes_of(n, first);
        vf shift = bias ? get(bias + first, lanes) : vf{};
        finish_int8(y + token * n + first, sums, get(scale + first, lanes), x_scale[token], shift, lanes);
    }
};

// Of `R` tokens beginning with `token`, straight from the rows.
template <int R, class T>
void int8_block(const Int8<T>& a, ptrdiff_t token, ptrdiff_t first) {
    const char* rows[W];
    for (ptrdiff_t i = 0; i < W; i++)
        rows[i] = reinterpret_cast<const char*>(a.weight) + (first + i < a.n ? first + i : a.n - 1) * a.k;
    const int8_t* x = a.x + token * a.k;
    vi acc[R] = {}, weights = {};
    for (ptrdiff_t k = 0; k < a.k; k += 16) {
        if (token == 0 && k % 64 == 0) fetch(rows, k, a.k, (W - 1) * a.k);
        vi v[4];
        transpose(rows, k, v);
        for (int j = 0; j < 4; j++) {
            if (IS_MOVED) weights = dot_bytes(weights, 0x01010101, v[j]);
            for (int r = 0; r < R; r++) {
                int32_t four;
                std::memcpy(&four, x + r * a.k + k + 4 * j, 4);
                acc[r] = dot_bytes(acc[r], four, v[j]);
            }
        }
    }
    for (int r = 0; r < R; r++) a.finish(token + r, first, acc[r] - 128 * weights);
}

template <class T, int... R>
constexpr auto int8_block_of(int rows, std::integer_sequence<int, R...>) {
    constexpr decltype(&int8_block<1, T>) table[] = {int8_block<R + 1, T>...};
    return table[rows - 1];
}

template <class T>
void linear_int8(Int8<T> a, int threads) {
    if (IS_MOVED) {
        int8_t* moved = scratch<int8_t>(1, a.m * a.k);
        for (ptrdiff_t i = 0; i < a.m * a.k; i++) moved[i] = int8_t(a.x[i] ^ 0x80);
        a.x = moved;
    }
    for_outputs(a.n, a.k, W, threads, [&](ptrdiff_t first) {
        for (ptrdiff_t token = 0; token < a.m; token += MAX_ROWS) {
            const int rows = a.m - token < MAX_ROWS ? int(a.m - token) : MAX_ROWS;
            int8_block_of<T>(rows, std::make_integer_sequence<int, MAX_ROWS>())(a, token, first);
        }
    });
}

template <class T>
void quantize(const T* x, int8_t* q, float* scales, ptrdiff_t rows, ptrdiff_t size, int threads) {
#pragma omp parallel for schedule(static) num_threads(rows < 16 ? 1 : threads)
    for (ptrdiff_t row = 0; row < rows; row++) scales[row] = quantize_row(x + row * size, q + row * size, size);
}

template <class T>
void finish_rows(const int32_t* sums, const float* row_scales, const float* scale, const T* bias, T* y, ptrdiff_t rows,
                 ptrdiff_t size, int threads) {
#pragma omp parallel for schedule(static) num_threads(rows < 16 ? 1 : threads)
    for (ptrdiff_t row = 0; row < rows; row++)
        for (ptrdiff_t i = 0; i < size; i += W) {
            const int lanes = size - i < W ? int(size - i) : W;
            int32_t part[W] = {};
            std::memcpy(part, sums + row * size + i, lanes * sizeof(int32_t));
            vf bias_part = bias ? get(bias + i, lanes) : vf{};
            finish_int8(y + row * size + i, load<vi>(part), get(scale + i, lanes), row_scales[row], bias_part, lanes);
        }
}

// ------------------------------------------------------------------------------------------------------- int4

// (q - zero) * scale for groups of inputs. Weights lie in blocks of 16 outputs, [k / 8][16] words of 32 bits in each: the
// weights k .. k + 8 of an output are the nibbles of a word in the order 0 2 4 6 1 3 5 7 from its low end, so that shifted
// by 4 * i its halves begin with weights 2 * i and 2 * i + 1. Behind the last output a block holds anything.
struct Int4 {
    const bf16* x;          // [m, k]
    const uint32_t* weight; // [n / 16, k / 8, 16]
    const uint16_t* scale;  // float16 [n / 16, k / group, 16]
    const uint8_t* zero;    // [n / 16, k / group, 16]
    const bf16* bias;
    bf16* y;
    ptrdiff_t m, n, k, group;

    // Words k .. k + 8 of outputs `first .. first + W`.
    const uint32_t* words(ptrdiff_t first, ptrdiff_t k_at) const {
        return weight + (first / 16 * (k / 8) + k_at / 8) * 16 + first % 16;
    }
    // Index of their scale and zero in group `g`.
    ptrdiff_t at(ptrdiff_t first, ptrdiff_t g) const { return (first / 16 * (k / group) + g) * 16 + first % 16; }
};

inline vf load_half(const uint16_t* from) {
#if defined(__AVX512F__)
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
#else
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
#endif
}

inline vf load_bytes(const uint8_t* from) {
    typedef uint8_t vb __attribute__((vector_size(W)));
    return __builtin_convertvector(load<vb>(from), vf);
}

using Act = Operand<bf16>::type;

// acc[r][b] += x row r . q over the eight weights in each lane of words[b].
template <int R, int B>
inline void dot_nibbles(vf acc[R][B], const Act* x, ptrdiff_t stride, const vi words[B]) {
#if defined(__AVX512BF16__)
    // Only the low five bits of an index count, and both halves of the table are the same: the next nibble's lowest bit
    // does no harm.
    const __m512i table = _mm512_broadcast_i64x4(_mm256_setr_epi16(
        0, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, 0x4100, 0x4110, 0x4120, 0x4130, 0x4140, 0x4150,
        0x4160, 0x4170));
    for (int i = 0; i < 4; i++) {
        vi pairs[B];
        for (int b = 0; b < B; b++) pairs[b] = (vi)_mm512_permutexvar_epi16((__m512i)(words[b] >> (4 * i)), table);
        for (int r = 0; r < R; r++)
            for (int b = 0; b < B; b++) acc[r][b] = dot_pairs(acc[r][b], x + r * stride + 2 * i, pairs[b]);
    }
#else
    for (int i = 0; i < 8; i++)
        for (int b = 0; b < B; b++) {
            vf q = __builtin_convertvector((words[b] >> (4 * (i / 2) + 16 * (i % 2))) & 15, vf);
            for (int r = 0; r < R; r++) acc[r][b] += x[r * stride + i] * q;
        }
#endif
}

// B times W outputs of R tokens; `sums` [m, k / group] of the activations of each group. Several blocks at once give the
// few sums of a few tokens something to do while one waits for the other.
template <int R, int B>
void int4_block(const Int4& a, const Act* x, const float* sums, ptrdiff_t token, ptrdiff_t first) {
    const ptrdiff_t groups = a.k / a.group;
    vf total[R][B] = {};
    for (ptrdiff_t g = 0; g < groups; g++) {
        vf part[R][B] = {};
        for (ptrdiff_t k = g * a.group; k < (g + 1) * a.group; k += 8) {
            vi words[B];
            for (int b = 0; b < B; b++) words[b] = load<vi>(a.words(first + b * W, k));
            dot_nibbles<R, B>(part, x + token * a.k + k, a.k, words);
        }
        for (int b = 0; b < B; b++) {
            const ptrdiff_t at = a.at(first + b * W, g);
            vf scale = load_half(a.scale + at), zero = load_bytes(a.zero + at);
            for (int r = 0; r < R; r++) total[r][b] += scale * (part[r][b] - zero * sums[(token + r) * groups + g]);
        }
    }
    for (int b = 0; b < B; b++) {
        const ptrdiff_t at = first + b * W;
        const int lanes = lanes_of(a.n, at);
        vf bias = a.bias ? get(a.bias + at, lanes) : vf{};
        for (int r = 0; r < R; r++) put(a.y + (token + r) * a.n + at, total[r][b] + bias, lanes);
    }
}

template <int B, int... R>
constexpr auto int4_block_of(int rows, std::integer_sequence<int, R...>) {
    constexpr decltype(&int4_block<1, B>) table[] = {int4_block<R + 1, B>...};
    return table[rows - 1];
}

// Tokens of one block of `B` times W outputs.
template <int B>
void int4_tokens(const Int4& a, const Act* x, const float* sums, ptrdiff_t first) {
    constexpr int MOST = MAX_ROWS / B;
    for (ptrdiff_t token = 0; token < a.m; token += MOST) {
        const int rows = a.m - token < MOST ? int(a.m - token) : MOST;
        int4_block_of<B>(rows, std::make_integer_sequence<int, MOST>())(a, x, sums, token, first);
    }
}

void linear_int4(const Int4& a, int threads) {
    const ptrdiff_t groups = a.k / a.group;
    float* sums = scratch<float>(1, a.m * groups);
    for (ptrdiff_t i = 0; i < a.m * groups; i++) {
        vf part = {};
        for (ptrdiff_t k = 0; k < a.group; k += W) part += load_float(a.x + i * a.group + k);
        sums[i] = sum(part);
    }
    const Act* x = as_operand<bf16, Act>(a.x, a.m * a.k, 0);
    const int at_once = a.m <= MAX_ROWS / 4 ? 4 : a.m <= MAX_ROWS / 2 ? 2 : 1;
    for_outputs(a.n, a.k / 2, at_once * W, threads, [&](ptrdiff_t first) {
        const ptrdiff_t left = (a.n - first + W - 1) / W;
        for (ptrdiff_t b = 0; b < at_once && b < left; b++) {
            if (b == 0 && at_once == 4 && left >= 4) return int4_tokens<4>(a, x, sums, first);
            if (b == 0 && at_once == 2 && left >= 2) return int4_tokens<2>(a, x, sums, first);
            int4_tokens<1>(a, x, sums, first + b * W);
        }
    });
}

// The weights of all outputs as bfloat16 [n, k], rounded once.
void expand_int4(const Int4& a, bf16* to, int threads) {
    const ptrdiff_t groups = a.k / a.group;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (ptrdiff_t row = 0; row < a.n; row++)
        for (ptrdiff_t g = 0; g < groups; g++) {
            const ptrdiff_t block = a.at(row / W * W, g);
            const float scale = load_half(a.scale + block)[row % W], zero = float(a.zero[block + row % W]);
            bf16 table[16];
            for (int q = 0; q < 16; q += W) {
                vf values;
                for (int i = 0; i < W; i++) values[i] = float(q + i);
                store_float(table + q, (values - zero) * scale);
            }
            for (ptrdiff_t k = g * a.group; k < (g + 1) * a.group; k += 8) {
                const uint32_t word = *a.words(row, k);
                for (int i = 0; i < 8; i++) to[row * a.k + k + i] = table[(word >> (4 * (i / 2) + 16 * (i % 2))) & 15];
            }
        }
}

}  // namespace tri

using namespace tri;

#define INT8(T, NAME)                                                                                                \
    EXPORT void tri_quantize_##NAME(const T* x, int8_t* q, float* scales, int64_t rows, int64_t size,               \
                                    int32_t threads) {                                                               \
        quantize(x, q, scales, rows, size, threads);                                                                 \
    }                                                                                                                \
    EXPORT void tri_linear_int8_##NAME(const int8_t* x, const float* x_scale, const int8_t* weight,                 \
                                       const float* scale, const T* bias, T* y, int64_t m, int64_t n, int64_t k,    \
                                       int32_t threads) {                                                            \
        linear_int8(Int8<T>{x, weight, x_scale, scale, bias, y, m, n, k}, threads);                                  \
    }                                                                                                                \
    EXPORT void tri_finish_int8_##NAME(const int32_t* sums, const float* x_scale, const float* scale, const T* bias, \
                                       T* y, int64_t m, int64_t n, int32_t threads) {                                \
        finish_rows(sums, x_scale, scale, bias, y, m, n, threads);                                                   \
    }

INT8(bf16, bf16)
INT8(float, f32)

EXPORT void tri_linear_int4(const bf16* x, const uint32_t* weight, const uint16_t* scale, const uint8_t* zero,
                            const bf16* bias, bf16* y, int64_t m, int64_t n, int64_t k, int64_t group,
                            int32_t threads) {
    linear_int4(Int4{x, weight, scale, zero, bias, y, m, n, k, group}, threads);
}

EXPORT void tri_expand_int4(const uint32_t* weight, const uint16_t* scale, const uint8_t* zero, bf16* y, int64_t n,
                            int64_t k, int64_t group, int32_t threads) {
    expand_int4(Int4{nullptr, weight, scale, zero, nullptr, nullptr, 0, n, k, group}, y, threads);
}
