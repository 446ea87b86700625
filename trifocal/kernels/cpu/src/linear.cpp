// y = x W^T + b in bfloat16, for one token and for many. A word of W holds two inputs of an output.
//
// Each output is a chain of sums along the inputs, so that a token gets the same result in any company.
#include "dot.h"
#include "tiles.h"

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
void linear(const LinearArgs& a) {
    tile_products<Bf16Tiles>(
        tile_rows(a.x, a.m, a.k, REST), Words{a.weight, a.n, a.k / 2}, a.threads,
        [&](const float* sums, ptrdiff_t row, int rows, ptrdiff_t output) {
            const int lanes = lanes_of(a.n, output);
            const vf shift = a.bias ? get(a.bias + output, lanes) : vf{};
            for (int r = 0; r < rows; r++) put(a.y + (row + r) * a.n + output, load<vf>(sums + r * ROWS) + shift, lanes);
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
