// Linear layers whose weights are int8, one scale for each output. Activations become int8 row by row. Sums are exact
// integers, so that a token gets the same result in any company.
#include "bytes.h"
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
    const float scale = largest / 127, inverse = largest > 0 ? 127 / largest : 0;
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

// Outputs `at ..` of a row, of whole sums [W].
template <class T>
inline void finish(const Int8Args<T>& a, ptrdiff_t token, const Row& row, ptrdiff_t at, vi sums) {
    const int lanes = lanes_of(a.n, at);
    const vf shift = a.bias ? get(a.bias + at, lanes) : vf{}, exact = __builtin_convertvector(sums - RAISED * row.sum, vf);
    put(a.y + token * a.n + at, exact * get(a.scale + at, lanes) * row.scale + shift, lanes);
}

template <class T>
void linear_int8(const Int8Args<T>& a) {
    const ptrdiff_t depth = (a.k + 3) / 4, stride = (a.k + 63) / 64 * 64;
    const Words weight{a.weight, a.n, depth};
    int8_t* q = scratch<int8_t>(1, a.m * stride);
    Row* given = scratch<Row>(2, a.m);
#pragma omp parallel for schedule(static) num_threads(a.m < 16 ? 1 : a.threads)
    for (ptrdiff_t row = 0; row < a.m; row++)
        given[row] = quantize_row(a.x + row * a.k, q + row * stride, a.k, stride);
#if defined(TRI_TILES)
    if (a.m > FEW_ROWS) {
        const char* from = reinterpret_cast<const char*>(q);
        const ptrdiff_t steps = a.k / LINE;
        const TileRows x{from, a.m, stride, steps, a.k % LINE ? from + steps * LINE : nullptr, stride};
        return tile_products<Int8Tiles>(x, weight, a.threads, [&](const int32_t* sums, ptrdiff_t row, int rows, ptrdiff_t at) {
            for (int r = 0; r < rows; r++) finish(a, row + r, given[row + r], at, load<vi>(sums + r * SIDE));
        });
    }
#endif
    for_products(a.m, a.n, a.k, a.threads, [&](ptrdiff_t token, auto rows, ptrdiff_t first, auto vectors,
                                                 const Ahead& ahead) {
        vi acc[rows][vectors] = {};
        weight.along<vectors>(first, ahead, 0, weight.depth, [&](ptrdiff_t i, const vi words[vectors]) {
            for (int r = 0; r < rows; r++)
                for (int b = 0; b < vectors; b++)
                    acc[r][b] = dot_bytes(acc[r][b], four_at(q + (token + r) * stride + 4 * i), words[b]);
        });
        for (int b = 0; b < vectors; b++)
            for (int r = 0; r < rows; r++)
                finish(a, token + r, given[token + r], tile_output(a.n, first, b), acc[r][b]);
    });
}

}  // namespace tri

KERNEL(linear_int8_bf16, tri::Int8Args<tri::bf16>, tri::linear_int8)
KERNEL(linear_int8_f32, tri::Int8Args<float>, tri::linear_int8)
