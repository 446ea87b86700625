// y = x W^T + b for a few rows of x: each weight is read once, at the memory's speed.
#include "dot.h"
#include "outputs.h"

namespace tri {

struct Linear {
    const bf16 *x, *weight, *bias;
    bf16* y;
    ptrdiff_t m, n, k;
};

using Act = Operand<bf16>::type;

// Outputs `first .. first + W` of `R` tokens beginning with `token`.
template <int R>
void block(const Linear& a, const Act* x, ptrdiff_t token, ptrdiff_t first) {
    const bf16* rows[W];
    for (ptrdiff_t i = 0; i < W; i++) rows[i] = a.weight + (first + i < a.n ? first + i : a.n - 1) * a.k;
    vf acc[R] = {};
    // oneDNN, which takes over where there are many tokens, sums K in stretches of this length: so do we, and a token
    // gets the same result from both.
    const ptrdiff_t stretch = a.k > 1024 ? 1024 : 512;
    for (ptrdiff_t from = 0; from < a.k; from += stretch) {
        vf part[R] = {};
        dot<R>(x + token * a.k, a.k, rows, from, from + stretch < a.k ? from + stretch : a.k, part,
               token ? 0 : a.k);
        for (int r = 0; r < R; r++) acc[r] += part[r];
    }
    const int count = lanes_of(a.n, first);
    vf bias = a.bias ? get(a.bias + first, count) : vf{};
    for (int r = 0; r < R; r++) put(a.y + (token + r) * a.n + first, acc[r] + bias, count);
}

}  // namespace tri

using namespace tri;

// x [m, k], weight [n, k], bias [n] or null -> y [m, n]; k is a multiple of 8.
EXPORT void tri_linear_bf16(const bf16* x, const bf16* weight, const bf16* bias, bf16* y, int64_t m, int64_t n,
                            int64_t k, int32_t threads) {
    const Linear a{x, weight, bias, y, m, n, k};
    const Act* operand = as_operand<bf16, Act>(x, m * k, 0);
    for_outputs(n, k * ptrdiff_t(sizeof(bf16)), W, threads, [&](ptrdiff_t first) {
        for_tokens<MAX_ROWS>(m, [&](ptrdiff_t token, auto rows) { block<rows>(a, operand, token, first); });
    });
}
