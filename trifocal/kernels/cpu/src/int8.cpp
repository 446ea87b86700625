// Linear layers whose weights are int8, one scale for each output. Activations become int8 row by row. Sums are exact
// integers, so that a token gets the same result in any company.
#include "bytes.h"
#include "outputs.h"

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

template <class T>
void linear_int8(const Int8Args<T>& a) {
    const ptrdiff_t depth = (a.k + 3) / 4, stride = 4 * depth;
    const Words weight{a.weight, a.n, depth};
    int8_t* q = scratch<int8_t>(1, a.m * stride);
    Row* given = scratch<Row>(2, a.m);
#pragma omp parallel for schedule(static) num_threads(a.m < 16 ? 1 : a.threads)
    for (ptrdiff_t row = 0; row < a.m; row++)
        given[row] = quantize_row(a.x + row * a.k, q + row * stride, a.k, stride);
    for_products(a.m, a.n, a.k, a.threads, [&](ptrdiff_t token, auto rows, ptrdiff_t first, auto vectors,
                                                 const Ahead& ahead) {
        vi acc[rows][vectors] = {};
        weight.along<vectors>(first, ahead, 0, weight.depth, [&](ptrdiff_t i, const vi words[vectors]) {
            for (int r = 0; r < rows; r++)
                for (int b = 0; b < vectors; b++)
                    acc[r][b] = dot_bytes(acc[r][b], four_at(q + (token + r) * stride + 4 * i), words[b]);
        });
        for (int b = 0; b < vectors; b++) {
            const ptrdiff_t at = tile_output(a.n, first, b);
            const int lanes = lanes_of(a.n, at);
            const vf shift = a.bias ? get(a.bias + at, lanes) : vf{}, scale = get(a.scale + at, lanes);
            for (int r = 0; r < rows; r++) {
                const Row row = given[token + r];
                const vf exact = __builtin_convertvector(acc[r][b] - RAISED * row.sum, vf);
                put(a.y + (token + r) * a.n + at, exact * scale * row.scale + shift, lanes);
            }
        }
    });
}

}  // namespace tri

KERNEL(linear_int8_bf16, tri::Int8Args<tri::bf16>, tri::linear_int8)
KERNEL(linear_int8_f32, tri::Int8Args<float>, tri::linear_int8)
