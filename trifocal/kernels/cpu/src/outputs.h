// How the outputs of a linear layer are dealt out to threads, and where their weights lie.
#pragma once

#include "common.h"

namespace tri {

constexpr ptrdiff_t PART_BYTES = 128 << 10;  // of weights that a thread takes at a time

// f(first output, that of the block that this thread will probably have next) for blocks of `outputs` outputs, threads
// taking some at a time.
template <class F>
void for_outputs(ptrdiff_t n, ptrdiff_t row_bytes, ptrdiff_t outputs, int threads, F f) {
    const ptrdiff_t blocks = (n + outputs - 1) / outputs;
    ptrdiff_t per_part = PART_BYTES / (outputs * row_bytes);
    if (per_part < 1) per_part = 1;
    const ptrdiff_t parts = (blocks + per_part - 1) / per_part;
#pragma omp parallel for schedule(dynamic) num_threads(parts < threads ? int(parts) : threads)
    for (ptrdiff_t part = 0; part < parts; part++)
        for (ptrdiff_t i = 0; i < per_part && part * per_part + i < blocks; i++) {
            const ptrdiff_t block = part * per_part + i;
            f(block * outputs, (i + 1 < per_part ? block + 1 : (part + threads) * per_part) * outputs);
        }
}

// Beyond a few rows weights are laid out once as the instruction wants them, TILE vectors of outputs at a time, in memory
// that a core's own cache holds; rows meet them TILE_ROWS at a time. Both together leave registers for weights.
#if defined(__AVX512F__)
constexpr int TILE = 4, TILE_ROWS = 6, FEW_ROWS = 6;
#else
constexpr int TILE = 2, TILE_ROWS = 4, FEW_ROWS = 2;
#endif

// First output of vector `b` of the tile that begins with `first`; beyond the last output, the last vector again.
inline ptrdiff_t tile_output(ptrdiff_t n, ptrdiff_t first, int b) {
    const ptrdiff_t last = (n - 1) / W * W;
    return first + b * W < last ? first + b * W : last;
}

// f(token, number) for m tokens, MOST at a time and then what is left; `number` is a std::integral_constant.
template <int R, class F>
inline void for_rest(ptrdiff_t token, ptrdiff_t left, F f) {
    if constexpr (R > 0) {
        if (left == R) return f(token, std::integral_constant<int, R>());
        for_rest<R - 1>(token, left, f);
    }
}
template <int MOST, class F>
inline void for_tokens(ptrdiff_t m, F f) {
    ptrdiff_t token = 0;
    for (; token + MOST <= m; token += MOST) f(token, std::integral_constant<int, MOST>());
    for_rest<MOST - 1>(token, m - token, f);
}

// A sum plus bias as outputs `at ..` of a token, y [m, n].
template <class T>
inline void finish(vf sum, const T* bias, T* y, ptrdiff_t n, ptrdiff_t token, ptrdiff_t at) {
    const int lanes = lanes_of(n, at);
    put(y + token * n + at, bias ? sum + get(bias + at, lanes) : sum, lanes);
}
template <int R, int B, class T>
inline void finish(const vf (&sums)[R][B], const T* bias, T* y, ptrdiff_t n, ptrdiff_t token, ptrdiff_t first) {
    for (int b = 0; b < B; b++)
        for (int r = 0; r < R; r++) finish(sums[r][b], bias, y, n, token + r, tile_output(n, first, b));
}

// A block of outputs that is to be fetched while rows meet the present one, a share of it with each of `passes` over that.
struct Ahead {
    ptrdiff_t first;
    int pass, passes;
};

// f(token, rows, first output, vectors, ahead) for all tokens and outputs; rows and vectors are std::integral_constants.
// Several vectors at once give the few sums of a few tokens something to do while one waits for the other.
template <class F>
inline void for_products(ptrdiff_t m, ptrdiff_t n, ptrdiff_t row_bytes, int threads, F f) {
    auto run = [&](auto most_rows, auto vectors) {
        const int passes = int((m + most_rows - 1) / most_rows);
        for_outputs(n, row_bytes, vectors * W, threads, [&](ptrdiff_t first, ptrdiff_t next) {
            for_tokens<most_rows>(m, [&](ptrdiff_t token, auto rows) {
                f(token, rows, first, vectors, Ahead{next, int(token / most_rows), passes});
            });
        });
    };
    if (m <= FEW_ROWS)
        run(std::integral_constant<int, FEW_ROWS>(), std::integral_constant<int, 4>());
    else if (m <= MAX_ROWS / 2)
        run(std::integral_constant<int, MAX_ROWS / 2>(), std::integral_constant<int, 2>());
    else
        run(std::integral_constant<int, TILE_ROWS>(), std::integral_constant<int, TILE>());
}

constexpr ptrdiff_t NEAR = 64;  // words ahead, of each vector of a tile, that memory is asked for

// Weights in blocks of 16 outputs, [depth][16] words of 32 bits in each: a word holds some consecutive inputs of an output.
// A block is read from its beginning to its end. Behind the last output it holds anything.
struct Words {
    const int32_t* words;
    ptrdiff_t n, depth;

    // Words of outputs `first .. first + W`; the next ones are 16 words further on.
    const int32_t* of(ptrdiff_t first) const { return words + first / 16 * depth * 16 + first % 16; }

    // f(i, words) for i in begin .. end: the i-th words of B vectors of outputs from `first` on, at their places in the tile.
    // Memory is asked for what comes NEAR words later, in this tile or the next one: the processor would not guess where
    // that one begins. Where a tile is passed over several times, it comes from memory in the first of them alone: then each
    // asks for a share of the next one.
    template <int B, class F>
    void along(ptrdiff_t first, const Ahead& ahead, ptrdiff_t begin, ptrdiff_t end, F f) const {
        const int32_t *from[B], *soon[B];
        for (int b = 0; b < B; b++) {
            from[b] = of(tile_output(n, first, b));
            soon[b] = of(tile_output(n, ahead.first, b));
        }
        const bool is_once = ahead.passes == 1;
        ptrdiff_t wait = is_once || ahead.first >= n ? -1 : (ahead.pass + ahead.passes - begin % ahead.passes) % ahead.passes;
        for (ptrdiff_t i = begin; i < end; i++) {
            vi each[B];
            for (int b = 0; b < B; b++) each[b] = load<vi>(from[b] + 16 * i);
            auto fetch = [&](const int32_t* const* where, ptrdiff_t at) {
                for (int b = 0; b < B; b++) _mm_prefetch(reinterpret_cast<const char*>(where[b] + 16 * at), _MM_HINT_T1);
            };
            if (is_once) {
                i + NEAR < depth ? fetch(from, i + NEAR) : fetch(soon, i + NEAR - depth);
            } else if (wait-- == 0) {
                wait = ahead.passes - 1;
                fetch(soon, i);
            }
            f(i, each);
        }
    }
};

}  // namespace tri
