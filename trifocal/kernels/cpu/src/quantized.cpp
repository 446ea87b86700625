// Linear layers whose weights are int8 by output, or int4 by groups of inputs. As in dot.h, lanes are outputs and the
// weights lie row by row.
#include "dot.h"

namespace tri {

constexpr ptrdiff_t PART_BYTES = 128 << 10;

// f(first output, number of rows of this block) for blocks of W outputs, threads taking some at a time.
template <class F>
void for_outputs(ptrdiff_t n, ptrdiff_t row_bytes, int threads, F f) {
    const ptrdiff_t blocks = (n + W - 1) / W;
    ptrdiff_t per_part = PART_BYTES / (W * row_bytes);
    if (per_part < 1) per_part = 1;
    const ptrdiff_t parts = (blocks + per_part - 1) / per_part;
    if (parts < threads) threads = int(parts);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (ptrdiff_t part = 0; part < parts; part++)
        for (ptrdiff_t b = part * per_part; b < blocks && b < (part + 1) * per_part; b++)
            f(b * W, n - b * W < W ? int(n - b * W) : W);
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

#if defined(__AVX512VNNI__)
// The instruction takes unsigned bytes by signed ones: activations are moved up by 128, and weights times 128 are taken
// off again at the end.
inline vi dot_bytes(vi acc, const int8_t* four, vi weights) {
    int32_t all;
    std::memcpy(&all, four, 4);
    all ^= int32_t(0x80808080);
    return (vi)_mm512_dpbusd_epi32((__m512i)acc, _mm512_set1_epi32(all), (__m512i)weights);
}
constexpr bool IS_MOVED = true;
inline vi sum_bytes(vi acc, vi weights) {
    return (vi)_mm512_dpbusd_epi32((__m512i)acc, _mm512_set1_epi32(0x01010101), (__m512i)weights);
}
#else
typedef int16_t vs __attribute__((vector_size(W * 4)));
inline vi multiply_pairs(vs a, vs b) {
#if defined(__AVX512F__)
    return (vi)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#else
    return (vi)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#endif
}
inline vi dot_bytes(vi acc, const int8_t* four, vi weights) {
    int32_t all;
    std::memcpy(&all, four, 4);
    vs x = (vs)(all - vi{}), w = (vs)weights;
    return acc + multiply_pairs(x << 8 >> 8, w << 8 >> 8) + multiply_pairs(x >> 8, w >> 8);
}
constexpr bool IS_MOVED = false;
inline vi sum_bytes(vi acc, vi) { return acc; }
#endif

template <class T>
inline void finish_int8(T* to, vi sums, vf scale, float row_scale, vf bias, int lanes) {
    put(to, __builtin_convertvector(sums, vf) * scale * row_scale + bias, lanes);
}

template <class T>
struct Int8 {
    const int8_t *x, *weight;   // [m, k], [n, k]
    const float *x_scale, *scale;  // [m], [n]
    const T* bias;
    T* y;
    ptrdiff_t m, n, k;
};

template <int R, class T>
void int8_block(const Int8<T>& a, ptrdiff_t token, ptrdiff_t first, int lanes) {
    const char* rows[W];
    for (int i = 0; i < W; i++)
        rows[i] = reinterpret_cast<const char*>(a.weight + (first + (i < lanes ? i : lanes - 1)) * a.k);
    const int8_t* x = a.x + token * a.k;
    vi acc[R] = {}, moved = {};
    for (ptrdiff_t k = 0; k < a.k; k += 16) {
        if (token == 0 && k % 64 == 0) fetch(rows, k, a.k, (W - 1) * a.k);
        vi v[4];
        transpose(rows, k, v);
        for (int j = 0; j < 4; j++) {
            moved = sum_bytes(moved, v[j]);
            for (int r = 0; r < R; r++) acc[r] = dot_bytes(acc[r], x + r * a.k + k + 4 * j, v[j]);
        }
    }
    vf scale = get(a.scale + first, lanes), bias = a.bias ? get(a.bias + first, lanes) : vf{};
    for (int r = 0; r < R; r++) {
        vi sums = IS_MOVED ? acc[r] - 128 * moved : acc[r];
        finish_int8(a.y + (token + r) * a.n + first, sums, scale, a.x_scale[token + r], bias, lanes);
    }
}

template <class T, int... R>
constexpr auto int8_block_of(int rows, std::integer_sequence<int, R...>) {
    constexpr decltype(&int8_block<1, T>) table[] = {int8_block<R + 1, T>...};
    return table[rows - 1];
}

template <class T>
void linear_int8(const Int8<T>& a, int threads) {
    for_outputs(a.n, a.k, threads, [&](ptrdiff_t first, int lanes) {
        for (ptrdiff_t token = 0; token < a.m; token += MAX_ROWS) {
            int rows = a.m - token < MAX_ROWS ? int(a.m - token) : MAX_ROWS;
            int8_block_of<T>(rows, std::make_integer_sequence<int, MAX_ROWS>())(a, token, first, lanes);
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

// (q - zero) * scale for groups of inputs. A row's eight weights k .. k + 8 lie in one 32-bit word, in the order
// 0 2 4 6 1 3 5 7 from its low end: shifted by 4 * i, its halves begin with weights 2 * i and 2 * i + 1.
struct Int4 {
    const bf16* x;            // [m, k]
    const uint8_t* weight;    // [n, k / 2]
    const uint16_t* scale;    // float16 [k / group, n]
    const uint8_t* zero;      // [k / group, n]
    const bf16* bias;
    bf16* y;
    ptrdiff_t m, n, k, group;
};

inline vf load_half(const uint16_t* from, int lanes) {
    uint16_t padded[W] = {};
    std::memcpy(padded, from, lanes * 2);
#if defined(__AVX512F__)
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)padded));
#else
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)padded));
#endif
}

inline vf load_bytes(const uint8_t* from, int lanes) {
    typedef uint8_t vb __attribute__((vector_size(W)));
    uint8_t padded[W] = {};
    std::memcpy(padded, from, lanes);
    return __builtin_convertvector(load<vb>(padded), vf);
}

using Act = Operand<bf16>::type;

// acc[r] += x row r . q over the eight weights in each lane of `words`.
template <int R>
inline void dot_nibbles(vf acc[R], const Act* x, ptrdiff_t stride, vi words) {
#if defined(__AVX512BF16__)
    // Only the low five bits of an index count, and both halves of the table are the same: the neighbour's bit is no harm.
    const __m512i table = _mm512_broadcast_i64x4(_mm256_setr_epi16(
        0, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, 0x4100, 0x4110, 0x4120, 0x4130, 0x4140, 0x4150,
        0x4160, 0x4170));
    for (int i = 0; i < 4; i++) {
        vi pairs = (vi)_mm512_permutexvar_epi16((__m512i)(words >> (4 * i)), table);
        for (int r = 0; r < R; r++) acc[r] = dot_pairs(acc[r], x + r * stride + 2 * i, pairs);
    }
#else
    for (int i = 0; i < 8; i++) {
        vf q = __builtin_convertvector((words >> (4 * (i / 2) + 16 * (i % 2))) & 15, vf);
        for (int r = 0; r < R; r++) acc[r] += x[r * stride + i] * q;
    }
#endif
}

// `sums` [m, k / group]: of the activations of each group.
template <int R>
void int4_block(const Int4& a, const Act* x, const float* sums, ptrdiff_t token, ptrdiff_t first, int lanes) {
    const ptrdiff_t groups = a.k / a.group;
    const char* rows[W];
    for (int i = 0; i < W; i++)
        rows[i] = reinterpret_cast<const char*>(a.weight + (first + (i < lanes ? i : lanes - 1)) * (a.k / 2));
    vf total[R] = {};
    for (ptrdiff_t g = 0; g < groups; g++) {
        vf part[R] = {};
        for (ptrdiff_t k = g * a.group; k < (g + 1) * a.group; k += 32) {
            if (token == 0 && k % 128 == 0) fetch(rows, k / 2, a.k / 2, (W - 1) * a.k / 2);
            vi words[4];
            transpose(rows, k / 2, words);
            for (int j = 0; j < 4; j++) dot_nibbles<R>(part, x + token * a.k + k + 8 * j, a.k, words[j]);
        }
        vf scale = load_half(a.scale + g * a.n + first, lanes), zero = load_bytes(a.zero + g * a.n + first, lanes);
        for (int r = 0; r < R; r++) total[r] += scale * (part[r] - zero * sums[(token + r) * groups + g]);
    }
    vf bias = a.bias ? get(a.bias + first, lanes) : vf{};
    for (int r = 0; r < R; r++) put(a.y + (token + r) * a.n + first, total[r] + bias, lanes);
}

template <int... R>
constexpr auto int4_block_of(int rows, std::integer_sequence<int, R...>) {
    constexpr decltype(&int4_block<1>) table[] = {int4_block<R + 1>...};
    return table[rows - 1];
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
    for_outputs(a.n, a.k / 2, threads, [&](ptrdiff_t first, int lanes) {
        for (ptrdiff_t token = 0; token < a.m; token += MAX_ROWS) {
            int rows = a.m - token < MAX_ROWS ? int(a.m - token) : MAX_ROWS;
            int4_block_of(rows, std::make_integer_sequence<int, MAX_ROWS>())(a, x, sums, token, first, lanes);
        }
    });
}

// The weights of all outputs as bfloat16 [n, k], rounded once.
void expand_int4(const Int4& a, bf16* to, int threads) {
    const ptrdiff_t groups = a.k / a.group;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (ptrdiff_t row = 0; row < a.n; row++)
        for (ptrdiff_t g = 0; g < groups; g++) {
            const float scale = load_half(a.scale + g * a.n + row, 1)[0], zero = float(a.zero[g * a.n + row]);
            bf16 table[16];
            for (int q = 0; q < 16; q += W) {
                vf values;
                for (int i = 0; i < W; i++) values[i] = float(q + i);
                store_float(table + q, (values - zero) * scale);
            }
            for (ptrdiff_t k = g * a.group; k < (g + 1) * a.group; k += 8) {
                uint32_t word;
                std::memcpy(&word, a.weight + (row * a.k + k) / 2, 4);
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

EXPORT void tri_linear_int4(const bf16* x, const uint8_t* weight, const uint16_t* scale, const uint8_t* zero,
                            const bf16* bias, bf16* y, int64_t m, int64_t n, int64_t k, int64_t group,
                            int32_t threads) {
    linear_int4(Int4{x, weight, scale, zero, bias, y, m, n, k, group}, threads);
}

EXPORT void tri_expand_int4(const uint8_t* weight, const uint16_t* scale, const uint8_t* zero, bf16* y, int64_t n,
                            int64_t k, int64_t group, int32_t threads) {
    expand_int4(Int4{nullptr, weight, scale, zero, nullptr, nullptr, 0, n, k, group}, y, threads);
}
