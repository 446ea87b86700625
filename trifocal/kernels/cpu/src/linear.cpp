// y = x W^T + b for up to some dozens of rows of x: each weight is read once, at the memory's speed if they are few.
//
// oneDNN, which takes over where there are more, sums K in stretches of a certain length: so do we, and a token gets the
// same result from both.
#include "dot.h"
#include "outputs.h"

namespace tri {

struct Linear {
    const Act* x;
    const bf16 *weight, *bias;
    bf16* y;
    ptrdiff_t m, n, k;

    // f(from, to) for each stretch.
    template <class F>
    void stretches(F f) const {
        const ptrdiff_t length = k > 1024 ? 1024 : 512;
        for (ptrdiff_t from = 0; from < k; from += length) f(from, from + length < k ? from + length : k);
    }

    // Rows `first .. first + W` of the weight, the last one instead of those behind it.
    void rows(ptrdiff_t first, const bf16* out[W]) const {
        for (ptrdiff_t i = 0; i < W; i++) out[i] = weight + (first + i < n ? first + i : n - 1) * k;
    }

    void finish(ptrdiff_t token, ptrdiff_t first, vf sums) const {
        const int lanes = lanes_of(n, first);
        vf shift = bias ? get(bias + first, lanes) : vf{};
        put(y + token * n + first, sums + shift, lanes);
    }
};

// W outputs of R tokens, straight from the rows.
template <int R>
void few_tokens(const Linear& a, ptrdiff_t token, ptrdiff_t first) {
    const bf16* rows[W];
    a.rows(first, rows);
    vf acc[R] = {};
    a.stretches([&](ptrdiff_t from, ptrdiff_t to) {
        vf part[R] = {};
        dot<R>(a.x + token * a.k, a.k, rows, from, to, part, token ? 0 : a.k);
        for (int r = 0; r < R; r++) acc[r] += part[r];
    });
    for (int r = 0; r < R; r++) a.finish(token + r, first, acc[r]);
}

// A tile of outputs of R tokens; `tile` holds its weights, PAIR inputs of TILE vectors of outputs side by side.
template <int R>
void tile_tokens(const Linear& a, const vi* tile, ptrdiff_t token, ptrdiff_t first) {
    vf acc[R][TILE] = {};
    a.stretches([&](ptrdiff_t from, ptrdiff_t to) {
        vf part[R][TILE] = {};
        for (ptrdiff_t k = from; k < to; k += PAIR, tile += TILE)
            for (int r = 0; r < R; r++)
                for (int b = 0; b < TILE; b++)
                    part[r][b] = dot_words(part[r][b], a.x + (token + r) * a.k + k, tile[b]);
        for (int r = 0; r < R; r++)
            for (int b = 0; b < TILE; b++) acc[r][b] += part[r][b];
    });
    for (int r = 0; r < R; r++)
        for (int b = 0; b < TILE; b++) a.finish(token + r, tile_output(a.n, first, b), acc[r][b]);
}

void many_tokens(const Linear& a, ptrdiff_t first) {
    constexpr int WORDS = 2 / PAIR;  // that two weights become
    vi* tile = scratch<vi>(0, a.k / PAIR * TILE);
    for (int b = 0; b < TILE; b++) {
        const bf16* rows[W];
        a.rows(tile_output(a.n, first, b), rows);
        const char* bytes[W];
        for (int i = 0; i < W; i++) bytes[i] = reinterpret_cast<const char*>(rows[i]);
        for (ptrdiff_t k = 0; k < a.k; k += 8) {
            if (k % 32 == 0) fetch(bytes, 2 * k, 2 * a.k, (W - 1) * 2 * a.k);
            vi v[4];
            transpose(bytes, 2 * k, v);
            for (int j = 0; j < 4; j++) {
                vi* to = tile + (k / PAIR + WORDS * j) * TILE + b;
                if constexpr (WORDS == 1) {
                    to[0] = v[j];
                } else {
                    to[0] = v[j] << 16;
                    to[TILE] = v[j] & int32_t(0xffff0000);
                }
            }
        }
    }
    for_tokens<TILE_ROWS>(a.m, [&](ptrdiff_t token, auto rows) { tile_tokens<rows>(a, tile, token, first); });
}

// x [m, k], weight [n, k], bias [n] or null -> y [m, n]; k is a multiple of 8.
struct LinearArgs {
    const bf16 *x, *weight, *bias;
    bf16* y;
    int64_t m, n, k;
    int32_t threads;
};

void linear(const LinearArgs& args) {
    const Act* x = as_operand<bf16, Act>(args.x, args.m * args.k, 0);
    const Linear a{x, args.weight, args.bias, args.y, args.m, args.n, args.k};
    if (a.m > MAX_ROWS)
        for_outputs(a.n, PART_BYTES, TILE * W, args.threads, [&](ptrdiff_t first) { many_tokens(a, first); });
    else
        for_outputs(a.n, a.k * ptrdiff_t(sizeof(bf16)), W, args.threads, [&](ptrdiff_t first) {
            for_tokens<MAX_ROWS>(a.m, [&](ptrdiff_t token, auto rows) { few_tokens<rows>(a, token, first); });
        });
}

}  // namespace tri

KERNEL(linear_bf16, tri::LinearArgs, tri::linear)
