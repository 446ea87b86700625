// Linear layers whose weights are int8, one scale for each output. Activations become int8 row by row. Sums are exact
// integers, so that a token gets the same result in any company.
#include "dot.h"
#include "outputs.h"

namespace tri {

inline vf round_even(vf x) {
#if defined(__AVX512F__)
    return (vf)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT);
#else
    return (vf)_mm256_round_ps((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#endif
}

// acc[lane] += four activations . four weights. Where there is an instruction it takes unsigned activations: they are moved
// up by 128 before, and 128 times the sum of the weights is taken off again in the end.
#if defined(__AVX512VNNI__)
constexpr int MOVED = 128;
inline vi dot_bytes(vi acc, int32_t four, vi weights) {
    return (vi)_mm512_dpbusd_epi32((__m512i)acc, _mm512_set1_epi32(four), (__m512i)weights);
}
#else
constexpr int MOVED = 0;
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

// One row of activations to int8 as `dot_bytes` takes them, symmetric, zeros behind it up to `stride`: returns the scale,
// x ~ q * scale. NaN and infinity make the scale so.
template <class T>
float quantize_row(const T* x, int8_t* q, ptrdiff_t size, ptrdiff_t stride) {
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
        vi whole = __builtin_convertvector(round_even(get(x + i, lanes) * inverse), vi) + MOVED;
        vb bytes = __builtin_convertvector(whole, vb);
        std::memcpy(q + i, &bytes, lanes);
    });
    std::memset(q + size, 0, stride - size);
    return scale;
}

template <class T>
struct Int8 {
    const int8_t *x, *weight;      // [m, stride], [n, k]
    const float *x_scale, *scale;  // [m], [n]
    const T* bias;
    T* y;
    ptrdiff_t m, n, k, stride;

    // Rows `first .. first + W` of the weight, the last one instead of those behind it.
    void rows(ptrdiff_t first, const char* out[W]) const {
        for (ptrdiff_t i = 0; i < W; i++)
            out[i] = reinterpret_cast<const char*>(weight) + (first + i < n ? first + i : n - 1) * k;
    }

    // Store what `sums` of activations times weights come to; `moved` are the sums of the weights alone.
    void finish(ptrdiff_t token, ptrdiff_t first, vi sums, vi moved) const {
        const int lanes = lanes_of(n, first);
        vf shift = bias ? get(bias + first, lanes) : vf{};
        vf exact = __builtin_convertvector(sums - MOVED * moved, vf);
        put(y + token * n + first, exact * get(scale + first, lanes) * x_scale[token] + shift, lanes);
    }
};

// f(k, words) for the weights of W rows, 16 inputs at a time; behind the last input there are zeros.
template <class F>
inline void for_words(const char* const rows[W], ptrdiff_t k, bool is_fetched, F f) {
    vi words[4];
    ptrdiff_t at = 0;
    for (; at + 16 <= k; at += 16) {
        if (is_fetched && at % 64 == 0) fetch(rows, at, k, (W - 1) * k);
        transpose(rows, at, words);
        f(at, words);
    }
    if (at == k) return;
    char tail[W][16] = {};
    const char* padded[W];
    for (int i = 0; i < W; i++) {
        std::memcpy(tail[i], rows[i] + at, k - at);
        padded[i] = tail[i];
    }
    transpose(padded, 0, words);
    f(at, words);
}

inline int32_t four_at(const int8_t* x) {
    int32_t four;
    std::memcpy(&four, x, 4);
    return four;
}

// W outputs of R tokens, straight from the rows.
template <int R, class T>
void few_tokens(const Int8<T>& a, ptrdiff_t token, ptrdiff_t first) {
    const char* rows[W];
    a.rows(first, rows);
    const int8_t* x = a.x + token * a.stride;
    vi acc[R] = {}, moved = {};
    for_words(rows, a.k, token == 0, [&](ptrdiff_t k, const vi words[4]) {
        for (int j = 0; j < 4; j++) {
            if (MOVED) moved = dot_bytes(moved, 0x01010101, words[j]);
            for (int r = 0; r < R; r++) acc[r] = dot_bytes(acc[r], four_at(x + r * a.stride + k + 4 * j), words[j]);
        }
    });
    for (int r = 0; r < R; r++) a.finish(token + r, first, acc[r], moved);
}

// A tile of outputs of R tokens; `tile` holds its weights, four inputs of TILE vectors of outputs side by side.
template <int R, class T>
void tile_tokens(const Int8<T>& a, const vi* tile, const vi moved[TILE], ptrdiff_t token, ptrdiff_t first) {
    const int8_t* x = a.x + token * a.stride;
    vi acc[R][TILE] = {};
    for (ptrdiff_t k = 0; k < a.stride; k += 4, tile += TILE)
        for (int r = 0; r < R; r++) {
            const int32_t four = four_at(x + r * a.stride + k);
            for (int b = 0; b < TILE; b++) acc[r][b] = dot_bytes(acc[r][b], four, tile[b]);
        }
    for (int r = 0; r < R; r++)
        for (int b = 0; b < TILE; b++) a.finish(token + r, tile_output(a.n, first, b), acc[r][b], moved[b]);
}

template <class T>
void many_tokens(const Int8<T>& a, ptrdiff_t first) {
    vi* tile = scratch<vi>(0, a.stride / 4 * TILE);
    vi moved[TILE] = {};
    for (int b = 0; b < TILE; b++) {
        const char* rows[W];
        a.rows(tile_output(a.n, first, b), rows);
        for_words(rows, a.k, true, [&](ptrdiff_t k, const vi words[4]) {
            for (int j = 0; j < 4; j++) {
                tile[(k / 4 + j) * TILE + b] = words[j];
                if (MOVED) moved[b] = dot_bytes(moved[b], 0x01010101, words[j]);
            }
        });
    }
    for_tokens<TILE_ROWS>(a.m, [&](ptrdiff_t token, auto rows) { tile_tokens<rows>(a, tile, moved, token, first); });
}

// x [m, k], weight [n, k], scale [n], bias [n] or null -> y [m, n].
template <class T>
struct Int8Args {
    const T* x;
    const int8_t* weight;
    const float* scale;
    const T* bias;
    T* y;
    int64_t m, n, k;
    int32_t threads;
};

template <class T>
void linear_int8(const Int8Args<T>& args) {
    const ptrdiff_t m = args.m, k = args.k, stride = (k + 15) / 16 * 16;
    const T* x = args.x;
    int8_t* q = scratch<int8_t>(1, m * stride);
    float* x_scale = scratch<float>(2, m);
#pragma omp parallel for schedule(static) num_threads(m < 16 ? 1 : args.threads)
    for (ptrdiff_t row = 0; row < m; row++) x_scale[row] = quantize_row(x + row * k, q + row * stride, k, stride);
    const Int8<T> a{q, args.weight, x_scale, args.scale, args.bias, args.y, m, args.n, k, stride};
    if (m > MAX_ROWS)
        for_outputs(a.n, PART_BYTES, TILE * W, args.threads, [&](ptrdiff_t first) { many_tokens(a, first); });
    else
        for_outputs(a.n, k, W, args.threads, [&](ptrdiff_t first) {
            for_tokens<MAX_ROWS>(m, [&](ptrdiff_t token, auto rows) { few_tokens<rows>(a, token, first); });
        });
}

}  // namespace tri

KERNEL(linear_int8_bf16, tri::Int8Args<tri::bf16>, tri::linear_int8)
KERNEL(linear_int8_f32, tri::Int8Args<float>, tri::linear_int8)
