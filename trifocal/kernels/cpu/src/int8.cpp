// Linear layers whose weights are int8, one scale for each output. Activations become int8 row by row. Sums are exact
// integers, so that a token gets the same result in any company.
#include "bytes.h"
#include "gate.h"
#include "tile_products.h"

namespace tri {

// Weights lie so much too high, as the instruction wants them; in the end it is taken off again, times the sum of a row.
constexpr int RAISED = 128;

// What an int8 row of activations is worth: x ~ q * scale, and the sum of q.
struct Row {
    float scale;
    int32_t sum;
};

// A row of activations to int8, symmetric, zeros behind it up to `stride`. NaN and infinity make the scale so.
template <class T>
Row quantize_row(const T* x, int8_t* q, ptrdiff_t size, ptrdiff_t stride) {
    typedef int8_t vb __attribute__((vector_size(W)));
    vf most = {}, broken = {};
    along(size, [&](ptrdiff_t i, int lanes) {
        vf v = get(x + i, lanes);
        most = max(most, select(v < 0.0f, -v, v));
        broken += v * 0.0f;  // stays 0 unless something is no number
    });
    const float largest = max(most) + sum(broken);
    const float scale = largest / 127, inverse = 127 / largest;
    if (!(largest <= __FLT_MAX__ && inverse <= __FLT_MAX__)) {  // not a number, too small or 0
        std::memset(q, 0, stride);
        return {scale, 0};
    }
    vi totals = {};
    along(size, [&](ptrdiff_t i, int lanes) {
        const vi whole = __builtin_convertvector(round_even(get(x + i, lanes) * inverse), vi);
        totals += whole;
        vb bytes = __builtin_convertvector(whole, vb);
        std::memcpy(q + i, &bytes, lanes);
    });
    std::memset(q + size, 0, stride - size);
    int32_t total = 0;
    for (int i = 0; i < W; i++) total += totals[i];
    return {scale, total};
}

// x [m, k], weight [n / 16, k / 4, 16] words of four inputs, each plus 128 (k rounded up, anything behind it), scale [n],
// bias [n] or null -> y [m, n].
template <class T>
struct Int8Args {
    const T* x;
    const int32_t* weight;
    const float* scale;
    const T* bias;
    T* y;
    int64_t m, n, k;
    int32_t threads;
};

// What whole sums [W] of outputs `at ..` are worth.
template <class T>
inline vf worth(const Int8Args<T>& a, const Row& row, ptrdiff_t at, int lanes, vi sums) {
    const vf shift = a.bias ? get(a.bias + at, lanes) : vf{}, exact = __builtin_convertvector(sums - RAISED * row.sum, vf);
    return exact * get(a.scale + at, lanes) * row.scale + shift;
}
template <class T>
inline void finish(const Int8Args<T>& a, ptrdiff_t token, const Row& row, ptrdiff_t at, vi sums) {
    const int lanes = lanes_of(a.n, at);
    put(a.y + token * a.n + at, worth(a, row, at, lanes, sums), lanes);
}

// Activations in int8 [m, stride], and what each row is worth.
struct Rows {
    int8_t* q;
    Row* given;
    ptrdiff_t stride;
};
template <class T>
Rows quantize_rows(const Int8Args<T>& a) {
    const ptrdiff_t stride = (a.k + 63) / 64 * 64;
    const Rows rows{scratch<int8_t>(1, a.m * stride), scratch<Row>(2, a.m), stride};
#pragma omp parallel for schedule(static) num_threads(a.m < 16 ? 1 : a.threads)
    for (ptrdiff_t row = 0; row < a.m; row++)
        rows.given[row] = quantize_row(a.x + row * a.k, rows.q + row * stride, a.k, stride);
    return rows;
}

template <class T>
inline Words words_of(const Int8Args<T>& a) {
    return {a.weight, a.n, (a.k + 3) / 4};
}

#if defined(TRI_TILES)
template <class T>
inline TileRows tile_rows(const Int8Args<T>& a, const Rows& rows) {
    const char* from = reinterpret_cast<const char*>(rows.q);
    const ptrdiff_t steps = a.k / LINE;
    return {from, a.m, rows.stride, steps, a.k % LINE ? from + steps * LINE : nullptr, rows.stride};
}

// Outputs are as many gates as values -> y [m, n / 2], silu(gate) * value, each rounded before. n is a multiple of 32, m above 16.
template <class T>
void linear_int8_gated(const Int8Args<T>& a) {
    const Rows x = quantize_rows(a);
    const ptrdiff_t size = a.n / 2;
    gated_tile_products<Int8Tiles>(
        tile_rows(a, x), words_of(a), a.threads,
        [&](const int32_t* gates, const int32_t* values, ptrdiff_t row, int rows, ptrdiff_t at) {
            for (int r = 0; r < rows; r++) {
                const Row& given = x.given[row + r];
                const vf gate = as(a.x, worth(a, given, at, W, load<vi>(gates + r * SIDE)));
                const vf value = as(a.x, worth(a, given, size + at, W, load<vi>(values + r * SIDE)));
                store_float(a.y + (row + r) * size + at, silu_and_mul(a.x, gate, value));
            }
        });
}
#endif

template <class T>
void linear_int8(const Int8Args<T>& a) {
    const Rows x = quantize_rows(a);
    const Words weight = words_of(a);
#if defined(TRI_TILES)
    if (a.m > FEW_ROWS)
        return tile_products<Int8Tiles>(
            tile_rows(a, x), weight, a.threads, [&](const int32_t* sums, ptrdiff_t row, int rows, ptrdiff_t at) {
                for (int r = 0; r < rows; r++) finish(a, row + r, x.given[row + r], at, load<vi>(sums + r * SIDE));
            });
#endif
    for_products(a.m, a.n, a.k, a.threads, [&](ptrdiff_t token, auto rows, ptrdiff_t first, auto vectors,
                                                 const Ahead& ahead) {
        vi acc[rows][vectors] = {};
        weight.along<vectors>(first, ahead, 0, weight.depth, [&](ptrdiff_t i, const vi words[vectors]) {
            for (int r = 0; r < rows; r++)
                for (int b = 0; b < vectors; b++)
                    acc[r][b] = dot_bytes(acc[r][b], four_at(x.q + (token + r) * x.stride + 4 * i), words[b]);
        });
        for (int b = 0; b < vectors; b++)
            for (int r = 0; r < rows; r++)
                finish(a, token + r, x.given[token + r], tile_output(a.n, first, b), acc[r][b]);
    });
}

}  // namespace tri

KERNEL(linear_int8_bf16, tri::Int8Args<tri::bf16>, tri::linear_int8)
KERNEL(linear_int8_f32, tri::Int8Args<float>, tri::linear_int8)
#if defined(TRI_TILES)
KERNEL(linear_int8_gated_bf16, tri::Int8Args<tri::bf16>, tri::linear_int8_gated)
KERNEL(linear_int8_gated_f32, tri::Int8Args<float>, tri::linear_int8_gated)
#endif
