// Linear layers by AMX. A block of weights (see `Words`) is a column of tiles as it lies. Sums stay in tiles, or between two
// pieces of the inputs in memory, in float32 or int32: each is one chain along the inputs, whatever rows are beside it.
#pragma once

#include "outputs.h"
#include "tiles.h"

#if defined(TRI_TILES)

namespace tri {

// ----------------------------------------------------------------------------------------------------- operands

// Activations of m rows: `steps` times 64 bytes each, and if something is left it lies at `rest`, filled up with zeros.
struct TileRows {
    const char* at;
    ptrdiff_t m, stride, steps;
    const char* rest;  // or null
    ptrdiff_t rest_stride;
};

// Rows [m, size] of elements, as they lie but for the rest.
template <class T>
TileRows tile_rows(const T* x, ptrdiff_t m, ptrdiff_t size, int slot) {
    const ptrdiff_t bytes = size * sizeof(T), left = bytes % LINE;
    const char* from = reinterpret_cast<const char*>(x);
    if (!left) return {from, m, bytes, bytes / LINE, nullptr, 0};
    char* rest = scratch<char>(slot, m * LINE);
    std::memset(rest, 0, m * LINE);
    for (ptrdiff_t row = 0; row < m; row++) std::memcpy(rest + row * LINE, from + (row + 1) * bytes - left, left);
    return {from, m, bytes, bytes / LINE, rest, LINE};
}

// Lines of the two tiles of weights that are needed next, asked for while others are multiplied: some with each step.
struct Soon {
    const char* const* weights;
    ptrdiff_t at, end, each;
    void fetch() {
        for (const ptrdiff_t stop = at + each < end ? at + each : end; at < stop; at++)
            _mm_prefetch(weights[at % 2] + at / 2 * LINE, _MM_HINT_T1);
    }
};

// sums [A tiles of rows][B of outputs] += one step; `weights(b)` is the b-th tile.
template <class Op, int A, int B, class F>
inline void tile_step(const char* x, ptrdiff_t stride, F weights) {
    static_assert((A == 1 && B == 4) || B == 2);
    tile_load<4>(x, stride);
    if constexpr (A == 2) tile_load<5>(x + SIDE * stride, stride);
    tile_load<6>(weights(0), LINE);
    Op::template multiply<0, 4, 6>();
    tile_load<7>(weights(1), LINE);
    Op::template multiply<1, 4, 7>();
    if constexpr (A == 2) {
        Op::template multiply<2, 5, 6>();
        Op::template multiply<3, 5, 7>();
    }
    if constexpr (B == 4) {
        tile_load<5>(weights(2), LINE);
        Op::template multiply<2, 4, 5>();
        tile_load<6>(weights(3), LINE);
        Op::template multiply<3, 4, 6>();
    }
}

// sums += steps begin .. end of rows `row ..`; that behind the last whole one is the rest.
template <class Op, int A, int B>
inline void tile_steps(const TileRows& x, ptrdiff_t row, const char* const (&weights)[B], const char* const (&rest)[B],
                       ptrdiff_t begin, ptrdiff_t end, Soon& soon) {
    const char* from = x.at + row * x.stride;
    const ptrdiff_t whole = end < x.steps ? end : x.steps;
    for (ptrdiff_t i = begin; i < whole; i++) {
        tile_step<Op, A, B>(from + i * LINE, x.stride, [&](int b) { return weights[b] + i * TILE_SIZE; });
        soon.fetch();
    }
    if (end > whole) tile_step<Op, A, B>(x.rest + row * x.rest_stride, x.rest_stride, [&](int b) { return rest[b]; });
}

template <class Sum>
inline void load_sums(const Sum* from, int count) {
    tile_load<0>(from, LINE);
    tile_load<1>(from + SUMS_OF_TILE, LINE);
    if (count > 2) tile_load<2>(from + 2 * SUMS_OF_TILE, LINE), tile_load<3>(from + 3 * SUMS_OF_TILE, LINE);
}
template <class Sum>
inline void store_sums(Sum* to, int count) {
    tile_store<0>(to, LINE);
    tile_store<1>(to + SUMS_OF_TILE, LINE);
    if (count > 2) tile_store<2>(to + 2 * SUMS_OF_TILE, LINE), tile_store<3>(to + 3 * SUMS_OF_TILE, LINE);
}

// B tiles of outputs, `gap` apart, from `first` on; instead of one beyond the last output the first.
template <int B>
struct TileColumns {
    const char *weights[B], *rest[B];

    TileColumns(const Words& words, ptrdiff_t first, ptrdiff_t gap, const TileRows& x, int slot) {
        const ptrdiff_t left = words.depth - x.steps * SIDE;  // words that make no whole tile
        char* copy = left ? scratch<char>(slot, B * TILE_SIZE) : nullptr;
        for (int b = 0; b < B; b++) {
            weights[b] = reinterpret_cast<const char*>(words.of(first + b * gap < words.n ? first + b * gap : first));
            rest[b] = copy + b * TILE_SIZE;
            if (!left) continue;
            std::memcpy(copy + b * TILE_SIZE, weights[b] + x.steps * TILE_SIZE, left * LINE);
            std::memset(copy + b * TILE_SIZE + left * LINE, 0, TILE_SIZE - left * LINE);
        }
    }
};

// ------------------------------------------------------------------------------------------------------ products

constexpr ptrdiff_t PIECE = 14;                // steps: two tiles of so many weights stay in the nearest cache
constexpr ptrdiff_t MOST_ROWS = 256;           // whose sums are made together: with a piece of each in the next cache
constexpr ptrdiff_t PART_OUTPUTS = 8 * 2 * SIDE;

enum TileSlot { REST = 3, WEIGHT_REST, TILE_SUMS = 6 };  // of `scratch`

// For up to 16 rows, as the memory brings the weights. finish(sums, row, rows, first output): sums [4][16][16] by tiles.
template <class Op, class F>
void few_tile_rows(const TileRows& x, const Words& words, int threads, F finish) {
    constexpr int B = 4;
    for_outputs(words.n, words.depth * 4, B * SIDE, threads, [&](ptrdiff_t first, ptrdiff_t) {
        Tiles tiles;
        tiles.shape(int(x.m));
        const TileColumns<B> columns(words, first, SIDE, x, WEIGHT_REST);
        alignas(64) typename Op::Sum sums[B * SUMS_OF_TILE];
        Soon soon{};
        zero_sums();
        tile_steps<Op, 1, B>(x, 0, columns.weights, columns.rest, 0, x.steps + (x.rest != nullptr), soon);
        store_sums(sums, B);
        for (int b = 0; b < B && first + b * SIDE < words.n; b++) finish(sums + b * SUMS_OF_TILE, 0, int(x.m), first + b * SIDE);
    });
}

// For more: outputs `first .. last` of all rows, two tiles at a time: those that lie side by side, or each of the first half
// with its like of the second, then `gap` is that half. Pieces of the inputs are the outer loop, so that what is read over and
// over lies near. finish(sums, row, rows, output): sums [2][16][16].
template <class Op, class F>
void tile_part(const TileRows& x, const Words& words, ptrdiff_t first, ptrdiff_t last, ptrdiff_t gap, F finish) {
    using Sum = typename Op::Sum;
    constexpr ptrdiff_t PAIR_SUMS = 4 * SUMS_OF_TILE, PAIRS = MOST_ROWS / (2 * SIDE);
    const ptrdiff_t span = gap == SIDE ? 2 * SIDE : SIDE;
    Sum* sums = scratch<Sum>(TILE_SUMS, (last - first + span - 1) / span * PAIRS * PAIR_SUMS);
    const ptrdiff_t steps = x.steps + (x.rest != nullptr);
    Tiles tiles;
    for (ptrdiff_t top = 0; top < x.m; top += MOST_ROWS) {
        const ptrdiff_t bottom = top + MOST_ROWS < x.m ? top + MOST_ROWS : x.m, passes = (bottom - top + 2 * SIDE - 1) / (2 * SIDE);
        for (ptrdiff_t begin = 0; begin < steps; begin += PIECE) {
            const ptrdiff_t end = begin + PIECE < steps ? begin + PIECE : steps;
            Sum* kept = sums;
            for (ptrdiff_t output = first; output < last; output += span) {
                const TileColumns<2> columns(words, output, gap, x, WEIGHT_REST);
                const ptrdiff_t following = output + span < last ? output + span : output;
                const TileColumns<2> next(words, following, gap, x, WEIGHT_REST + 1);
                Soon soon{next.weights, 2 * begin * SIDE, 2 * end * SIDE, (2 * SIDE + passes - 1) / passes};
                for (ptrdiff_t row = top; row < bottom; row += 2 * SIDE, kept += PAIR_SUMS) {
                    const int rows = int(x.m - row < 2 * SIDE ? x.m - row : 2 * SIDE), count = rows > SIDE ? 4 : 2;
                    tiles.shape(rows);
                    begin ? load_sums(kept, count) : zero_sums();
                    if (rows > SIDE)
                        tile_steps<Op, 2, 2>(x, row, columns.weights, columns.rest, begin, end, soon);
                    else
                        tile_steps<Op, 1, 2>(x, row, columns.weights, columns.rest, begin, end, soon);
                    store_sums(kept, count);
                    if (end < steps) continue;
                    finish(kept, row, rows < SIDE ? rows : SIDE, output);
                    if (rows > SIDE) finish(kept + 2 * SUMS_OF_TILE, row + SIDE, rows - SIDE, output);
                }
            }
        }
    }
}

// All of `size` outputs, as many parts as give each thread the same.
template <class Op, class F>
void tile_parts(const TileRows& x, const Words& words, ptrdiff_t size, ptrdiff_t gap, int threads, F finish) {
    const ptrdiff_t rounds = (size + threads * PART_OUTPUTS - 1) / (threads * PART_OUTPUTS), parts = rounds * threads;
    const ptrdiff_t part = ((size + parts - 1) / parts + 2 * SIDE - 1) / (2 * SIDE) * (2 * SIDE);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (ptrdiff_t first = 0; first < size; first += part)
        tile_part<Op>(x, words, first, first + part < size ? first + part : size, gap, finish);
}

// finish(sums, row, rows, output): sums [rows][16] of outputs `output ..` are complete, lines of 64 bytes.
template <class Op, class F>
void tile_products(const TileRows& x, const Words& words, int threads, F finish) {
    if (x.m <= SIDE) return few_tile_rows<Op>(x, words, threads, finish);
    tile_parts<Op>(x, words, words.n, SIDE, threads, [&](const auto* sums, ptrdiff_t row, int rows, ptrdiff_t output) {
        finish(sums, row, rows, output);
        if (output + SIDE < words.n) finish(sums + SUMS_OF_TILE, row, rows, output + SIDE);
    });
}

// Outputs are as many gates as values: finish(gates, values, row, rows, output), each of them as above. For more than 16
// rows; there are whole tiles of gates.
template <class Op, class F>
void gated_tile_products(const TileRows& x, const Words& words, int threads, F finish) {
    const ptrdiff_t size = words.n / 2;
    tile_parts<Op>(x, words, size, size, threads, [&](const auto* sums, ptrdiff_t row, int rows, ptrdiff_t output) {
        finish(sums, sums + SUMS_OF_TILE, row, rows, output);
    });
}

}  // namespace tri

#endif
