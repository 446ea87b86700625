// y = x W^T + b in bfloat16, for one token and for many. A word of W holds two inputs of an output.
//
// Each output is a chain of sums along the inputs, so that a token gets the same result in any company.
#include "dot.h"
#include "gate.h"
#include "tile_products.h"

namespace tri {

// x [m, k], weight [n / 16, k / 2, 16] words, bias [n] or null -> y [m, n].
struct LinearArgs {
    const bf16* x;
    const int32_t* weight;
    const bf16* bias;
    bf16* y;
    int64_t m, n, k;
    int32_t threads;
};

#if defined(TRI_TILES)
constexpr ptrdiff_t AHEAD = 4096;  // bytes: the processor's own prefetching ends with each page

// As tiles multiply, for few rows: memory is read more quickly this way. Within 16 words the first inputs of all pairs are
// summed and the second ones, then both are added to what was before.
template <int R, int B>
inline void one_step(vf (&sums)[R][B], const float* x, ptrdiff_t stride, const int32_t* const (&words)[B], ptrdiff_t count) {
    vf first[R][B] = {}, second[R][B] = {};
    for (ptrdiff_t i = 0; i < count; i++)
        for (int b = 0; b < B; b++) {
            const vi both = load<vi>(words[b] + i * W);
            _mm_prefetch(reinterpret_cast<const char*>(words[b] + i * W) + AHEAD, _MM_HINT_T1);
            for (int r = 0; r < R; r++) {
                first[r][b] += x[r * stride + 2 * i] * (vf)(both << 16);
                second[r][b] += x[r * stride + 2 * i + 1] * (vf)(both & int32_t(0xffff0000));
            }
        }
    for (int r = 0; r < R; r++)
        for (int b = 0; b < B; b++) sums[r][b] += first[r][b] + second[r][b];
}

constexpr int VERY_FEW_ROWS = 2;

void very_few_rows(const LinearArgs& a) {
    const Words weight{a.weight, a.n, a.k / 2};
    const float* x = as_operand<bf16, float>(a.x, a.m * a.k, 0);
    constexpr int B = 4;
    for_outputs(a.n, 2 * a.k, B * W, a.threads, [&](ptrdiff_t first, ptrdiff_t) {
        const int32_t* from[B];
        for (int b = 0; b < B; b++) from[b] = weight.of(tile_output(a.n, first, b));
        for_tokens<VERY_FEW_ROWS>(a.m, [&](ptrdiff_t token, auto rows) {
            vf sums[rows][B] = {};
            const int32_t* words[B] = {from[0], from[1], from[2], from[3]};
            for (ptrdiff_t i = 0; i < weight.depth; i += SIDE) {
                one_step<rows, B>(sums, x + token * a.k + 2 * i, a.k, words, weight.depth - i < SIDE ? weight.depth - i : SIDE);
                for (const int32_t*& each : words) each += SIDE * W;
            }
            finish(sums, a.bias, a.y, a.n, token, first);
        });
    });
}

void linear(const LinearArgs& a) {
    if (a.m <= VERY_FEW_ROWS) return very_few_rows(a);
    tile_products<Bf16Tiles>(
        tile_rows(a.x, a.m, a.k, REST), Words{a.weight, a.n, a.k / 2}, a.threads,
        [&](const float* sums, ptrdiff_t row, int rows, ptrdiff_t output) {
            for (int r = 0; r < rows; r++) finish(load<vf>(sums + r * SIDE), a.bias, a.y, a.n, row + r, output);
        });
}

// Outputs are as many gates as values -> y [m, n / 2], silu(gate) * value, each rounded before. n is a multiple of 32, m above 16.
void linear_gated(const LinearArgs& a) {
    const ptrdiff_t size = a.n / 2;
    const bf16* type = nullptr;
    gated_tile_products<Bf16Tiles>(
        tile_rows(a.x, a.m, a.k, REST), Words{a.weight, a.n, a.k / 2}, a.threads,
        [&](const float* gates, const float* values, ptrdiff_t row, int rows, ptrdiff_t at) {
            const vf gate_bias = a.bias ? load_float(a.bias + at) : vf{}, bias = a.bias ? load_float(a.bias + size + at) : vf{};
            for (int r = 0; r < rows; r++) {
                const vf gate = rounded(load<vf>(gates + r * SIDE) + gate_bias), value = rounded(load<vf>(values + r * SIDE) + bias);
                store_float(a.y + (row + r) * size + at, silu_and_mul(type, gate, value));
            }
        });
}
#else
void linear(const LinearArgs& a) {
    const Words weight{a.weight, a.n, a.k / 2};
    const Act* x = as_operand<bf16, Act>(a.x, a.m * a.k, 0);
    for_products(a.m, a.n, 2 * a.k, a.threads, [&](ptrdiff_t token, auto rows, ptrdiff_t first, auto vectors,
                                                 const Ahead& ahead) {
        vf acc[rows][vectors] = {};
        weight.along<vectors>(first, ahead, 0, weight.depth, [&](ptrdiff_t i, const vi words[vectors]) {
            for (int r = 0; r < rows; r++)
                for (int b = 0; b < vectors; b++) {
                    const Act* pair = x + (token + r) * a.k + 2 * i;
                    if constexpr (PAIR == 2) {
                        acc[r][b] = dot_words(acc[r][b], pair, words[b]);
                    } else {
                        acc[r][b] = dot_words(acc[r][b], pair, words[b] << 16);
                        acc[r][b] = dot_words(acc[r][b], pair + 1, words[b] & int32_t(0xffff0000));
                    }
                }
        });
        finish(acc, a.bias, a.y, a.n, token, first);
    });
}
#endif

}  // namespace tri

KERNEL(linear_bf16, tri::LinearArgs, tri::linear)
#if defined(TRI_TILES)
KERNEL(linear_gated_bf16, tri::LinearArgs, tri::linear_gated)
#endif

// Rows that meet a weight at a time: as many as that cost little more than one does.
#if defined(TRI_TILES)
EXPORT int64_t tri_rows_at_once() { return tri::SIDE; }
#else
EXPORT int64_t tri_rows_at_once() { return tri::TILE_ROWS; }
#endif
