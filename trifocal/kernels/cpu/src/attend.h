// Attention of some rows over keys and values that lie anywhere: what paged attention and that of vision towers share.
//
// Keys and values of a tile are packed once for all rows; both products then run along memory. Lanes are keys in the first
// one and elements of values in the second, so that an output is a chain of sums over its own keys in their order: the same
// for one row or many, and whatever keys that it does not see lie beside them.
#pragma once

#include "dot.h"
#include "tiles.h"

namespace tri {

constexpr ptrdiff_t TILE = 64;          // keys packed at a time, and between two rescalings
constexpr ptrdiff_t STRETCH = 512;      // keys whose sums are made apart from those of others; a multiple of TILE
constexpr ptrdiff_t UNIT_ROWS = 256;    // rows that one packing serves
#if defined(TRI_TILES)
template <class X>
constexpr bool BY_TILES = sizeof(X) == 2;
#else
template <class X>
constexpr bool BY_TILES = false;
#endif
template <class X>
constexpr int BLOCK = BY_TILES<X> ? 16 : W == 16 ? 8 : 6;  // rows multiplied at a time, but for tiles by two vectors
constexpr float LOWEST = -1e30f;        // the maximum of no scores
constexpr float SLACK = 8;              // sums are scaled anew when a score is so much (times LOG2_E) above their maximum
constexpr float LOG2_E = 1.44269504f;

enum Slot { OPERAND, ROWS, KEYS, VALUES, SUMS, ITEMS, SHARED };  // of `scratch`

// 2^x to 2e-7, or to 4e-6 if it becomes a bfloat16, for x up to 0 and a little more: exactly 1 for 0, exactly 0 for -infinity
// and what is far below -126, NaN for NaN.
template <class X>
inline vf exp2(vf x) {
#if defined(__AVX512F__)
    const vf f = (vf)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);  // x - floor(x)
#else
    const vf whole = (vf)_mm256_floor_ps((__m256)x), f = x - whole;
#endif
    vf p;
    if constexpr (sizeof(X) == 2) {
        p = splat(0.01342668797320232f);
        p = p * f + 0.052242468227626154f;
        p = p * f + 0.2412802075983314f;
        p = p * f + 0.6930448445323444f;
    } else {
        p = splat(0.001867130495828203f);
        p = p * f + 0.00901702941474125f;
        p = p * f + 0.055799913759004144f;
        p = p * f + 0.2401644499724848f;
        p = p * f + 0.6931513118200793f;
    }
    p = p * f + 1.0f;
#if defined(__AVX512F__)
    return (vf)_mm512_scalef_ps((__m512)p, (__m512)x);  // p * 2^floor(x)
#else
    vi exponent = __builtin_convertvector(whole, vi) << 23;
    return select(x < -126.0f, splat(0.0f), (vf)((vi)p + exponent));
#endif
}

#if defined(__AVX512F__)
inline vf larger(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
inline float largest(vf x) { return _mm512_reduce_max_ps((__m512)x); }
#else
inline vf larger(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
inline float largest(vf x) { return max(x); }
#endif

// The largest element of each of W vectors, in the lane of its number; the vectors are lost.
#if defined(__AVX512F__)
template <int HALF = W / 2>
inline vf largest_of_each(vf (&x)[W]) {
    vi crossed;
    uint32_t second = 0;  // lanes that are those of the second half's vectors
    for (int i = 0; i < W; i++) crossed[i] = i & HALF ? W + i - HALF : i + HALF, second |= (i & HALF ? 1u : 0u) << i;
    for (int i = 0; i < HALF; i++) {
        const __m512 one = (__m512)x[i], two = (__m512)x[i + HALF];
        x[i] = larger((vf)_mm512_mask_blend_ps(second, one, two), (vf)_mm512_permutex2var_ps(one, (__m512i)crossed, two));
    }
    if constexpr (HALF > 1) return largest_of_each<HALF / 2>(x);
    return x[0];
}
#else
inline vf largest_of_each(vf (&x)[W]) {
    vf all;
    for (int i = 0; i < W; i++) all[i] = largest(x[i]);
    return all;
}
#endif

// acc + x * y, of a float or of two bfloat16s in each lane; x is the same for all lanes.
inline vf multiply(vf acc, const float* x, vi y) { return acc + *x * (vf)y; }
#if defined(__AVX512BF16__)
inline vf multiply(vf acc, const bf16* x, vi y) { return dot_pairs(acc, x, y); }
#endif

inline void narrow(float* to, vf one, vf two) { store(to, one), store(to + W, two); }
#if defined(__AVX512BF16__)
inline void narrow(bf16* to, vf one, vf two) { store(to, _mm512_cvtne2ps_pbh((__m512)two, (__m512)one)); }
#endif

// ------------------------------------------------------------------------------------------------------ packing

// Where the keys and values of a tile lie; behind `count` of them the last one is repeated. Scales are those of int8.
template <class C>
struct Place {
    const C *keys[TILE], *values[TILE];
    alignas(64) float key_scales[TILE], value_scales[TILE];
};

// The upper half of W numbers as float, in the lower half of each lane: bfloat16, and whole numbers to 255, exactly.
inline vu upper(const bf16* from, int lanes) {
    bf16 padded[W] = {};
    if (lanes < W) from = static_cast<const bf16*>(std::memcpy(padded, from, lanes * sizeof(bf16)));
#if defined(__AVX512F__)
    return (vu)_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#else
    return (vu)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#endif
}
typedef int8_t vb __attribute__((vector_size(W)));
inline vf load_float(const int8_t* from) {
#if defined(__AVX512F__)
    return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#else
    return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
#endif
}
inline vu upper(const int8_t* from, int) { return (vu)load_float(from) >> 16; }  // lanes == W: rows are whole vectors

// One 32-bit word of each of W keys of type C, as operands of type X.
template <class C, class X>
inline vi* unpack(vi word, vi* to) {
    if constexpr (sizeof(C) == 1) {
        vf part[4];
        for (int i = 0; i < 4; i++) part[i] = __builtin_convertvector((word << (24 - 8 * i)) >> 24, vf);
        if constexpr (sizeof(X) == 4) {
            for (int i = 0; i < 4; i++) *to++ = (vi)part[i];
        } else {
            for (int i = 0; i < 4; i += 2) *to++ = (vi)((vu)part[i] >> 16 | (vu)part[i + 1]);
        }
    } else if constexpr (sizeof(C) < sizeof(X)) {
        *to++ = word << 16;
        *to++ = word & (int32_t)0xffff0000;
    } else {
        *to++ = word;
    }
    return to;
}

// Packing is where memory is waited for. Each step asks for a line of the tile that comes next (`soon`): spread out like this
// the requests hide behind arithmetic; the processor would not guess them, for blocks lie anywhere.
inline void fetch(const void* at) { _mm_prefetch(static_cast<const char*>(at), _MM_HINT_T0); }

// -> [tile / W][words of a key][W], an even number of vectors; zeros behind a key up to `depth` elements.
template <class C, class X>
void pack_keys(const C* const keys[TILE], const C* const soon[TILE], ptrdiff_t count, ptrdiff_t head_dim, ptrdiff_t depth,
               vi* to) {
    for (ptrdiff_t t = 0; t < count; t += 2 * W)
        for (ptrdiff_t half = t; half < t + 2 * W; half += W) {
            for (ptrdiff_t k = 0; k < head_dim * ptrdiff_t(sizeof(C)); k += 16) {
                for (int i = 0; i < W / 4; i++)  // a quarter of the rows: a line is four steps long
                    fetch(reinterpret_cast<const char*>(soon[half + k / 16 % 4 * (W / 4) + i]) + k / 64 * 64);
                vi word[4];
                transpose(reinterpret_cast<const char* const*>(keys + half), k, word);
                for (vi each : word) to = unpack<C, X>(each, to);
            }
            for (ptrdiff_t k = head_dim; k < depth; k += 4 / ptrdiff_t(sizeof(X))) *to++ = vi{};
        }
}

// Whether values are paired by an instruction that does so within quarters of a vector. Of 32 elements the first vector then
// holds the first four of each eight, the other one the rest; `put_row` puts them in order.
template <class C, class X>
inline bool in_quarters(ptrdiff_t head_dim) {
    return sizeof(C) == 2 && sizeof(X) == 2 && head_dim % (2 * W) == 0;
}

// -> [tile][width] floats, or [tile / 2][width] pairs of bfloat16s that belong to two tokens.
template <class C, class X>
void pack_values(const C* const values[TILE], const C* const soon[TILE], ptrdiff_t count, ptrdiff_t head_dim,
                 ptrdiff_t width, vi* to) {
    constexpr ptrdiff_t PER = 4 / sizeof(X);
#if defined(__AVX512BF16__)
    if (in_quarters<C, X>(head_dim)) {
        for (ptrdiff_t t = 0; t < count; t += 2)
            for (ptrdiff_t i = 0; i < head_dim; i += 2 * W, to += 2) {
                const __m512i one = _mm512_loadu_si512(values[t] + i), two = _mm512_loadu_si512(values[t + 1] + i);
                fetch(soon[t] + i), fetch(soon[t + 1] + i);
                store(to, _mm512_unpacklo_epi16(one, two));
                store(to + 1, _mm512_unpackhi_epi16(one, two));
            }
        return;
    }
#endif
    for (ptrdiff_t t = 0; t < count; t += PER)
        for (ptrdiff_t i = 0; i < width; i += W, to++) {
            const int lanes = lanes_of(head_dim, i);
            fetch(soon[t + i / W % PER] + i);
            if constexpr (PER == 1 && sizeof(C) == 1) {
                *to = (vi)load_float(values[t] + i);
            } else if constexpr (PER == 1) {
                *to = (vi)get(values[t] + i, lanes);
            } else {
                *to = (vi)(upper(values[t] + i, lanes) | upper(values[t + 1] + i, lanes) << 16);
            }
        }
}

// ----------------------------------------------------------------------------------------------------- the sums

// Softmax so far, by row: weighted sum of values [width], sum of weights in W lanes, maximum (times LOG2_E; up to SLACK less).
struct Sums {
    float *values, *total, *most;
};

template <class X>
inline ptrdiff_t depth_of(ptrdiff_t head_dim) {
    return BY_TILES<X> ? (head_dim + 31) / 32 * 32 : head_dim;
}
inline ptrdiff_t width_of(ptrdiff_t head_dim) { return (head_dim + W - 1) / W * W; }
inline ptrdiff_t floats_of(ptrdiff_t rows, ptrdiff_t width) { return rows * (width + W) + (rows + 15) / 16 * 16; }
inline Sums sums_at(float* at, ptrdiff_t rows, ptrdiff_t width) {
    return {at, at + rows * width, at + rows * (width + W)};
}

// Rows one after the other, filled up to `depth` elements; row r sees the last `window` keys up to position + r / group.
template <class X>
struct Queries {
    const X* data;
    ptrdiff_t count, group, position, head_dim, depth, width;
    float scale;
    ptrdiff_t window = ptrdiff_t(1) << 60;
    ptrdiff_t seen(ptrdiff_t row) const { return position + row / group + 1; }
};

template <int R, class X>
void score(const X* q, ptrdiff_t depth, const vi* keys, ptrdiff_t vectors, float* scores) {
    constexpr ptrdiff_t PER = 4 / sizeof(X);
    const ptrdiff_t words = depth / PER;
    for (ptrdiff_t n = 0; n < vectors; n += 2, keys += 2 * words, scores += 2 * W) {
        vf acc[R][2] = {};
        for (ptrdiff_t k = 0; k < words; k++) {
            const vi one = keys[k], two = keys[words + k];
            for (int r = 0; r < R; r++) {
                acc[r][0] = multiply(acc[r][0], q + r * depth + k * PER, one);
                acc[r][1] = multiply(acc[r][1], q + r * depth + k * PER, two);
            }
        }
        for (int r = 0; r < R; r++) store(scores + r * TILE, acc[r][0]), store(scores + r * TILE + W, acc[r][1]);
    }
}

// values[r] = values[r] * decay[r] + sum over `count` tokens of weights[r][t] * v[t], for N vectors of R rows.
template <int R, int N, class X>
void weigh(const X* weights, const vi* v, ptrdiff_t count, ptrdiff_t width, const float* decay, float* values) {
    constexpr ptrdiff_t PER = 4 / sizeof(X);
    vf acc[R][N];
    for (int r = 0; r < R; r++)
        for (int n = 0; n < N; n++) acc[r][n] = load<vf>(values + r * width + n * W) * decay[r];
    for (ptrdiff_t t = 0; t < count; t += PER, v += width / W)
        for (int r = 0; r < R; r++)
            for (int n = 0; n < N; n++) acc[r][n] = multiply(acc[r][n], weights + r * TILE + t, v[n]);
    for (int r = 0; r < R; r++)
        for (int n = 0; n < N; n++) store(values + r * width + n * W, acc[r][n]);
}

#if defined(TRI_TILES)
// Both products by tiles, for as many rows as they are shaped for: `score`, and `weigh` of all vectors but for the decay.
inline void score(const bf16* q, ptrdiff_t depth, const vi* keys, ptrdiff_t vectors, float* scores) {
    const ptrdiff_t words = depth / 2;
    zero_sums();
    for (ptrdiff_t k = 0; k < words; k += SIDE) {
        tile_load<4>(q + 2 * k, depth * 2);
        tile_load<5>(keys + k, LINE);
        Bf16Tiles::multiply<0, 4, 5>();
        tile_load<6>(keys + words + k, LINE);
        Bf16Tiles::multiply<1, 4, 6>();
        if (vectors == 2) continue;
        tile_load<7>(keys + 2 * words + k, LINE);
        Bf16Tiles::multiply<2, 4, 7>();
        tile_load<5>(keys + 3 * words + k, LINE);
        Bf16Tiles::multiply<3, 4, 5>();
    }
    tile_store<0>(scores, TILE * 4);
    tile_store<1>(scores + W, TILE * 4);
    if (vectors == 2) return;
    tile_store<2>(scores + 2 * W, TILE * 4);
    tile_store<3>(scores + 3 * W, TILE * 4);
}

template <int N>
inline void weigh(const bf16* weights, const vi* v, ptrdiff_t count, ptrdiff_t width, float* values) {
    tile_load<0>(values, width * 4);
    if constexpr (N > 1) tile_load<1>(values + W, width * 4);
    if constexpr (N > 2) tile_load<2>(values + 2 * W, width * 4);
    if constexpr (N > 3) tile_load<3>(values + 3 * W, width * 4);
    for (ptrdiff_t t = 0; t < count; t += 2 * SIDE, v += SIDE * width / W) {
        tile_load<4>(weights + t, TILE * 2);
        tile_load<5>(v, width * 4);
        Bf16Tiles::multiply<0, 4, 5>();
        if constexpr (N > 1) tile_load<6>(v + 1, width * 4), Bf16Tiles::multiply<1, 4, 6>();
        if constexpr (N > 2) tile_load<7>(v + 2, width * 4), Bf16Tiles::multiply<2, 4, 7>();
        if constexpr (N > 3) tile_load<5>(v + 3, width * 4), Bf16Tiles::multiply<3, 4, 5>();
    }
    tile_store<0>(values, width * 4);
    if constexpr (N > 1) tile_store<1>(values + W, width * 4);
    if constexpr (N > 2) tile_store<2>(values + 2 * W, width * 4);
    if constexpr (N > 3) tile_store<3>(values + 3 * W, width * 4);
}

inline void weigh(const bf16* weights, const vi* v, ptrdiff_t count, ptrdiff_t width, float* values) {
    ptrdiff_t n = 0;
    for (; n + 4 <= width / W; n += 4) weigh<4>(weights, v + n, count, width, values + n * W);
    switch (width / W - n) {
        case 3: return weigh<3>(weights, v + n, count, width, values + n * W);
        case 2: return weigh<2>(weights, v + n, count, width, values + n * W);
        case 1: return weigh<1>(weights, v + n, count, width, values + n * W);
    }
}

// Scores of up to 16 rows with keys that lie together 16 by 16, which are tiles as they lie: each key meets all rows, the
// result is turned around. `queries` [head_dim / 2][16] are words of each row; keys of the next tile are asked for.
inline void score_lying(int rows, const vi* queries, const bf16* const* keys, const bf16* const* soon, ptrdiff_t count,
                        ptrdiff_t head_dim, float* scores) {
    alignas(64) float sums[TILE / SIDE][SUMS_OF_TILE];
    for (ptrdiff_t key = 0; key < count; key += SIDE) {
        tile_zero<5>();
        for (ptrdiff_t k = 0; k < head_dim; k += 2 * SIDE) {
            tile_load<6>(keys[key] + k, head_dim * sizeof(bf16));
            tile_load<7>(queries + k / 2, LINE);
            Bf16Tiles::multiply<5, 6, 7>();
            for (int i = 0; i < SIDE; i++) fetch(soon[key + i] + k);
        }
        tile_store<5>(sums[key / SIDE], LINE);
    }
    for (ptrdiff_t key = 0; key < count; key += SIDE) {
        const char* lines[SIDE];
        for (int i = 0; i < SIDE; i++) lines[i] = reinterpret_cast<const char*>(sums[key / SIDE] + i * SIDE);
        for (int r = 0; r < rows; r += 4) {
            vi turned[4];
            transpose(lines, r * sizeof(float), turned);
            for (int i = 0; i < 4; i++) store(scores + (r + i) * TILE + key, turned[i]);
        }
    }
}

inline void scale_rows(int rows, ptrdiff_t width, const float* decay, float* values) {
    for (int r = 0; r < rows; r++)
        if (decay[r] != 1)
            for (ptrdiff_t i = r * width; i < (r + 1) * width; i += W) store(values + i, load<vf>(values + i) * decay[r]);
}
#endif

template <class X, int... R>
constexpr auto score_of(int rows, std::integer_sequence<int, R...>) {
    constexpr decltype(&score<1, X>) table[] = {score<R + 1, X>...};
    return table[rows - 1];
}
template <class X, int N, int... R>
constexpr auto weigh_of(int rows, std::integer_sequence<int, R...>) {
    constexpr decltype(&weigh<1, N, X>) table[] = {weigh<R + 1, N, X>...};
    return table[rows - 1];
}

// The two products of a block of rows, by vectors or by tiles.
template <class X, bool = BY_TILES<X>>
struct Block {
    static constexpr auto SIZES = std::make_integer_sequence<int, BLOCK<X>>();

    // How many values are packed for `count` keys.
    ptrdiff_t whole(ptrdiff_t count) const { return count; }
    void score(int rows, const X* q, ptrdiff_t depth, const vi* keys, ptrdiff_t vectors, float* scores) {
        score_of<X>(rows, SIZES)(q, depth, keys, vectors, scores);
    }
    void weigh(int rows, const X* weights, const vi* v, ptrdiff_t count, ptrdiff_t width, const float* decay, float* values) {
        ptrdiff_t n = 0;
        for (; n + 2 <= width / W; n += 2) weigh_of<X, 2>(rows, SIZES)(weights, v + n, count, width, decay, values + n * W);
        if (n < width / W) weigh_of<X, 1>(rows, SIZES)(weights, v + n, count, width, decay, values + n * W);
    }
};
#if defined(TRI_TILES)
template <class X>
struct Block<X, true> {
    Tiles tiles;

    ptrdiff_t whole(ptrdiff_t count) const { return (count + 2 * SIDE - 1) / (2 * SIDE) * (2 * SIDE); }
    void score(int rows, const X* q, ptrdiff_t depth, const vi* keys, ptrdiff_t vectors, float* scores) {
        tiles.shape(rows);
        tri::score(q, depth, keys, vectors, scores);
    }
    void score_lying(int rows, const vi* queries, const bf16* const* keys, const bf16* const* soon, ptrdiff_t count,
                     ptrdiff_t head_dim, float* scores) {
        tiles.shape(rows);
        tri::score_lying(rows, queries, keys, soon, count, head_dim, scores);
    }
    void weigh(int rows, const X* weights, const vi* v, ptrdiff_t count, ptrdiff_t width, const float* decay, float* values) {
        tiles.shape(rows);
        scale_rows(rows, width, decay, values);
        tri::weigh(weights, v, count, width, values);
    }
};
#endif

// Weights of a tile from the scores of rows `row ..`; the first `vectors` of them, an even number, hold all that these rows see.
template <class C, class X>
void soften(const Queries<X>& q, const Place<C>& place, ptrdiff_t tile, ptrdiff_t row, int rows, ptrdiff_t vectors,
            float* scores, X* weights, Sums sums, float* decay) {
    const float scale = q.scale * LOG2_E, none = -__builtin_inff();
    vi lane;
    for (int i = 0; i < W; i++) lane[i] = i;
    alignas(64) float before[W] = {}, after[W];
    vf most[W];
    for (vf& each : most) each = splat(none);
    ptrdiff_t sees = q.seen(row) - tile, alike = q.group - row % q.group;  // and how many rows see the same
    for (int r = 0; r < rows; r++, alike--) {
        if (alike == 0) sees++, alike = q.group;
        before[r] = sums.most[row + r];
        const ptrdiff_t behind = sees - q.window;  // keys of the tile that lie behind the row's window
        for (ptrdiff_t n = 0; n < vectors; n++) {
            float* at = scores + r * TILE + n * W;
            vf s = load<vf>(at);
            const bool is_cut = sees < (n + 1) * W || behind > n * W;
            if constexpr (sizeof(C) == 1) s = s * load<vf>(place.key_scales + n * W);
            if (is_cut) {
                const vi key = lane + int(n * W);
                s = select(key < int(sees), s, splat(none));
                if (behind > n * W) s = select(key >= int(behind < TILE ? behind : TILE), s, splat(none));
            }
            if (is_cut || sizeof(C) == 1) store(at, s);
            most[r] = larger(most[r], s);
        }
    }
    const vf was = load<vf>(before), found = largest_of_each(most) * scale, is = select(found > was + SLACK, found, was);
    store(after, is);
    store(decay, exp2<float>(was - is));
    for (int r = 0; r < rows; r++) {
        sums.most[row + r] = after[r];
        vf total = {};
        for (ptrdiff_t n = 0; n < vectors; n += 2) {
            const float* at = scores + r * TILE + n * W;
            vf one = exp2<X>(load<vf>(at) * scale - after[r]), two = exp2<X>(load<vf>(at + W) * scale - after[r]);
            total += one + two;
            if constexpr (sizeof(C) == 1) {
                one = one * load<vf>(place.value_scales + n * W);
                two = two * load<vf>(place.value_scales + (n + 1) * W);
            }
            narrow(weights + r * TILE + n * W, one, two);
        }
        float* to = sums.total + (row + r) * W;
        store(to, load<vf>(to) * decay[r] + total);
    }
}

// Words of up to 16 rows -> [words of a row][16].
template <class X>
void turn(const Queries<X>& q, vi* to) {
    const char* rows[W];
    for (ptrdiff_t i = 0; i < W; i++) rows[i] = reinterpret_cast<const char*>(q.data + (i < q.count ? i : 0) * q.depth);
    for (ptrdiff_t k = 0; k < q.depth * ptrdiff_t(sizeof(X)); k += 16, to += 4) transpose(rows, k, to);
}

// The sums over keys from .. to; locate(first, count, place) says where those of a tile lie. `is_together`: keys lie side by
// side, 16 of them from each multiple of 16 on, and all 16 may be read.
template <class C, class X, class Locate>
void attend(const Queries<X>& q, ptrdiff_t from, ptrdiff_t to, const Locate& locate, Sums sums, bool is_together = false) {
    constexpr ptrdiff_t PER = 4 / sizeof(X);
    for (ptrdiff_t r = 0; r < q.count; r++) sums.most[r] = LOWEST;
    std::memset(sums.values, 0, q.count * (q.width + W) * sizeof(float));  // and the totals behind them
    vi* keys = scratch<vi>(KEYS, TILE * q.depth * sizeof(X) / sizeof(vi) + 1);
    vi* values = scratch<vi>(VALUES, TILE / PER * q.width / W);
    alignas(64) float scores[2][BLOCK<X> * TILE], decay[2][W];
    alignas(64) X weights[2][BLOCK<X> * TILE];
    Place<C> places[2];
    Block<X> block;
    const bool as_they_lie = BY_TILES<X> && sizeof(C) == sizeof(X) && is_together && q.count <= BLOCK<X> && q.head_dim == q.depth;
    if (as_they_lie) turn(q, keys);
    locate(from, to - from < TILE ? to - from : TILE, places[from / TILE % 2]);
    for (ptrdiff_t tile = from; tile < to; tile += TILE) {
        const ptrdiff_t count = to - tile < TILE ? to - tile : TILE;
        const Place<C>& place = places[tile / TILE % 2];
        Place<C>& next = places[(tile / TILE + 1) % 2];
        const ptrdiff_t left = to - tile - count;
        if (left > 0) locate(tile + TILE, left < TILE ? left : TILE, next);
        const Place<C>& soon = left > 0 ? next : place;
        if (!as_they_lie) pack_keys<C, X>(place.keys, soon.keys, count, q.head_dim, q.depth, keys);
        pack_values<C, X>(place.values, soon.values, block.whole(count), q.head_dim, q.width, values);
        const ptrdiff_t first = tile > q.position && !as_they_lie ? (tile - q.position) * q.group : 0;  // to see some of the tile
        const ptrdiff_t blocks = (q.count - first + BLOCK<X> - 1) / BLOCK<X>;
        // Three blocks at a time are on their way: tiles multiply for the first and the last while vectors soften the other.
        for (ptrdiff_t turn = 0; turn < blocks + 2; turn++) {
            auto with = [&](ptrdiff_t i, auto f) {
                if (i < 0 || i >= blocks) return;
                const ptrdiff_t row = first + i * BLOCK<X>;
                const int rows = q.count - row < BLOCK<X> ? int(q.count - row) : BLOCK<X>;
                const ptrdiff_t last = q.seen(row + rows - 1) - tile, visible = last < count ? last : count;
                f(row, rows, visible, (visible + 2 * W - 1) / (2 * W) * 2, i % 2);
            };
            with(turn, [&](ptrdiff_t row, int rows, ptrdiff_t, ptrdiff_t vectors, ptrdiff_t i) {
                if constexpr (BY_TILES<X> && sizeof(C) == sizeof(X)) {
                    if (as_they_lie) return block.score_lying(rows, keys, place.keys, soon.keys, count, q.head_dim, scores[i]);
                }
                block.score(rows, q.data + row * q.depth, q.depth, keys, vectors, scores[i]);
            });
            with(turn - 2, [&](ptrdiff_t row, int rows, ptrdiff_t visible, ptrdiff_t, ptrdiff_t i) {
                block.weigh(rows, weights[i], values, visible, q.width, decay[i], sums.values + row * q.width);
            });
            with(turn - 1, [&](ptrdiff_t row, int rows, ptrdiff_t, ptrdiff_t vectors, ptrdiff_t i) {
                soften(q, place, tile, row, rows, vectors, scores[i], weights[i], sums, decay[i]);
            });
        }
    }
}

// sums += part, of rows that part has seen keys for.
inline void merge(ptrdiff_t rows, ptrdiff_t width, Sums sums, Sums part) {
    for (ptrdiff_t r = 0; r < rows; r++) {
        if (part.most[r] == LOWEST) continue;
        float most = sums.most[r] < part.most[r] ? part.most[r] : sums.most[r];
        vf keep = exp2<float>(splat(sums.most[r] - most)), take = exp2<float>(splat(part.most[r] - most));
        for (ptrdiff_t i = r * width; i < (r + 1) * width; i += W)
            store(sums.values + i, load<vf>(sums.values + i) * keep + load<vf>(part.values + i) * take);
        store(sums.total + r * W, load<vf>(sums.total + r * W) * keep + load<vf>(part.total + r * W) * take);
        sums.most[r] = most;
    }
}

// Row r of the result, for a head of its own.
template <class T, class C>
void put_row(T* to, ptrdiff_t head_dim, ptrdiff_t width, Sums sums, ptrdiff_t r) {
    const float total = sum(load<vf>(sums.total + r * W));
#if defined(__AVX512BF16__)
    if (in_quarters<C, typename Operand<T>::type>(head_dim)) {
        const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
        const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
        for (ptrdiff_t i = 0; i < head_dim; i += 2 * W) {
            const float* from = sums.values + r * width + i;
            const __m512 low = (__m512)(load<vf>(from) / total), high = (__m512)(load<vf>(from + W) / total);
            store_float(to + i, (vf)_mm512_permutex2var_ps(low, first, high));
            store_float(to + i + W, (vf)_mm512_permutex2var_ps(low, second, high));
        }
        return;
    }
#endif
    along(head_dim, [&](ptrdiff_t i, int lanes) { put(to + i, load<vf>(sums.values + r * width + i) / total, lanes); });
}

// `group` vectors of each of `count` tokens, one after the other, filled up with zeros to `depth` elements, as operands.
template <class T, class X>
const X* gather(const T* from, ptrdiff_t stride, ptrdiff_t count, ptrdiff_t group, ptrdiff_t head_dim, ptrdiff_t depth) {
    T* rows = scratch<T>(ROWS, count * group * depth);
    for (ptrdiff_t i = 0; i < count * group; i++) {
        std::memcpy(rows + i * depth, from + i / group * stride + i % group * head_dim, head_dim * sizeof(T));
        std::memset(rows + i * depth + head_dim, 0, (depth - head_dim) * sizeof(T));
    }
    return as_operand<T, X>(rows, count * group * depth, OPERAND);
}

}  // namespace tri
