// Linear layers whose weights are int4, (q - zero) * scale by groups of inputs. A group's sum is made of whole q and scaled
// in float32, in the same order for few tokens and for many.
//
// Weights lie in blocks of 16 outputs, [k / 8][16] words of 32 bits in each: the weights k .. k + 8 of an output are the
// nibbles of a word in the order 0 2 4 6 1 3 5 7 from its low end, so that shifted by 4 * i its halves begin with weights
// 2 * i and 2 * i + 1. Behind the last output a block holds anything.
#include "bytes.h"
#include "dot.h"
#include "tile_products.h"

namespace tri {

struct Int4 {
    const Act* x;            // [m, k]
    const float* sums;       // [m, k / group] of x
    const uint32_t* weight;  // [n / 16, k / 8, 16]
    const uint16_t* scale;   // float16 [n / 16, k / group, 16]
    const uint8_t* zero;     // [n / 16, k / group, 16]
    const bf16* bias;
    bf16* y;
    ptrdiff_t m, n, k, group;

    // Words k .. k + 8 of outputs `first .. first + W`.
    const uint32_t* words(ptrdiff_t first, ptrdiff_t k_at) const {
        return weight + (first / 16 * (k / 8) + k_at / 8) * 16 + first % 16;
    }
    // Index of their scale and zero in group `g`.
    ptrdiff_t at(ptrdiff_t first, ptrdiff_t g) const { return (first / 16 * (k / group) + g) * 16 + first % 16; }
};

inline vf load_half(const uint16_t* from) {
#if defined(__AVX512F__)
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
#else
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
#endif
}

inline vf load_bytes(const uint8_t* from) {
    typedef uint8_t vb __attribute__((vector_size(W)));
    return __builtin_convertvector(load<vb>(from), vf);
}

// Weights PAIR * i .. PAIR * (i + 1) of the eight in each lane, as activations are.
inline vi expand(vi words, int i) {
#if defined(__AVX512BF16__)
    // Only the low five bits of an index count, and both halves of the table are the same: the next nibble's lowest bit
    // does no harm.
    const __m512i table = _mm512_broadcast_i64x4(_mm256_setr_epi16(
        0, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, 0x4100, 0x4110, 0x4120, 0x4130, 0x4140, 0x4150,
        0x4160, 0x4170));
    return (vi)_mm512_permutexvar_epi16((__m512i)(words >> (4 * i)), table);
#else
    return (vi)__builtin_convertvector((words >> (4 * (i / 2) + 16 * (i % 2))) & 15, vf);
#endif
}

// B vectors of outputs of R tokens; `weights(b, k, i)` gives those of vector b as `expand` does. Several vectors at once
// give the few sums of a few tokens something to do while one waits for the other.
template <int R, int B, class F>
inline void tokens(const Int4& a, ptrdiff_t token, ptrdiff_t first, F weights) {
    const ptrdiff_t groups = a.k / a.group;
    vf total[R][B] = {};
    for (ptrdiff_t g = 0; g < groups; g++) {
        vf part[R][B] = {};
        for (ptrdiff_t k = g * a.group; k < (g + 1) * a.group; k += 8)
            for (int i = 0; i < 8 / PAIR; i++) {
                vi each[B];
                for (int b = 0; b < B; b++) each[b] = weights(b, k, i);
                for (int r = 0; r < R; r++)
                    for (int b = 0; b < B; b++)
                        part[r][b] = dot_words(part[r][b], a.x + (token + r) * a.k + k + PAIR * i, each[b]);
            }
        for (int b = 0; b < B; b++) {
            const ptrdiff_t at = a.at(tile_output(a.n, first, b), g);
            vf scale = load_half(a.scale + at), zero = load_bytes(a.zero + at);
            for (int r = 0; r < R; r++) total[r][b] += scale * (part[r][b] - zero * a.sums[(token + r) * groups + g]);
        }
    }
    finish(total, a.bias, a.y, a.n, token, first);
}

// Straight from the nibbles.
template <int B>
void few_tokens(const Int4& a, ptrdiff_t first) {
    const uint32_t* words[B];
    for (int b = 0; b < B; b++) words[b] = a.words(tile_output(a.n, first, b), 0);
    for_tokens<MAX_ROWS / B>(a.m, [&](ptrdiff_t token, auto rows) {
        tokens<rows, B>(a, token, first, [&](int b, ptrdiff_t k, int i) { return expand(load<vi>(words[b] + 2 * k), i); });
    });
}

// From a tile that is expanded once.
void many_tokens(const Int4& a, ptrdiff_t first) {
    vi* tile = scratch<vi>(0, a.k / PAIR * TILE);
    for (ptrdiff_t k = 0; k < a.k; k += 8)
        for (int b = 0; b < TILE; b++) {
            const vi words = load<vi>(a.words(tile_output(a.n, first, b), k));
            for (int i = 0; i < 8 / PAIR; i++) tile[(k / PAIR + i) * TILE + b] = expand(words, i);
        }
    for_tokens<TILE_ROWS>(a.m, [&](ptrdiff_t token, auto rows) {
        tokens<rows, TILE>(a, token, first, [&](int b, ptrdiff_t k, int i) { return tile[(k / PAIR + i) * TILE + b]; });
    });
}

#if defined(TRI_TILES)
constexpr ptrdiff_t NEAR_BYTES = 512 << 10;  // of activations that meet one expanded block after the other

// By tiles, where groups are made of whole ones. Activations have `size` bytes each. expand(words, vectors of weights) takes
// one vector of a block to some; add(total, sums, scale, zero, token, group) adds what a group's sums are worth.
template <class Op, class Expand, class Add>
void by_tiles(const Int4& a, const void* x, ptrdiff_t size, int threads, Expand expand, Add add) {
    const ptrdiff_t groups = a.k / a.group, steps = a.k * size / LINE, per_group = steps / groups, stride = a.k * size;
    const ptrdiff_t fit = NEAR_BYTES / stride / SIDE * SIDE, most = fit < 4 * SIDE ? 4 * SIDE : fit;
    for (ptrdiff_t top = 0; top < a.m; top += most)
        for_outputs(a.n, a.k / 2, SIDE, threads, [&](ptrdiff_t first, ptrdiff_t) {
            vi* weights = scratch<vi>(3, steps * SIDE);
            vf* scale = scratch<vf>(4, 2 * groups);
            for (ptrdiff_t i = 0; i < a.k / 8; i++) expand(load<vi>(a.words(first, 8 * i)), weights + i * 2 * size);
            for (ptrdiff_t g = 0; g < groups; g++) {
                scale[2 * g] = load_half(a.scale + a.at(first, g));
                scale[2 * g + 1] = load_bytes(a.zero + a.at(first, g));
            }
            alignas(64) typename Op::Sum sums[2][SUMS_OF_TILE];
            Tiles tiles;
            for (ptrdiff_t row = top; row < a.m && row < top + most; row += SIDE) {
                const int rows = int(a.m - row < SIDE ? a.m - row : SIDE);
                const char* from = static_cast<const char*>(x) + row * stride;
                tiles.shape(rows);
                auto multiply = [&](ptrdiff_t g) {
                    zero_sums();
                    for (ptrdiff_t i = g * per_group; i < (g + 1) * per_group; i++) {
                        tile_load<4>(from + i * LINE, stride);
                        tile_load<6>(weights + i * SIDE, LINE);
                        Op::template multiply<0, 4, 6>();
                    }
                    tile_store<0>(sums[g % 2], LINE);
                };
                vf total[SIDE] = {};
                multiply(0);
                for (ptrdiff_t g = 0; g < groups; g++) {
                    if (g + 1 < groups) multiply(g + 1);  // while the sums of this one are added
                    for (int r = 0; r < rows; r++)
                        total[r] = add(total[r], sums[g % 2] + r * SIDE, scale[2 * g], scale[2 * g + 1], row + r, g);
                }
                for (int r = 0; r < rows; r++) finish(total[r], a.bias, a.y, a.n, row + r, first);
            }
        });
}
#endif

// `group` is a multiple of 16.
struct Int4Args {
    const bf16* x;
    const uint32_t* weight;
    const uint16_t* scale;
    const uint8_t* zero;
    const bf16* bias;
    bf16* y;
    int64_t m, n, k, group;
    int32_t threads;
};

void linear_int4(const Int4Args& args) {
    const bf16* x = args.x;
    const int threads = args.threads;
    Int4 a{nullptr, nullptr, args.weight, args.scale, args.zero, args.bias, args.y, args.m, args.n, args.k, args.group};
    const ptrdiff_t groups = a.k / a.group;
    float* sums = scratch<float>(1, a.m * groups);
#pragma omp parallel for schedule(static) num_threads(a.m < 16 ? 1 : threads)
    for (ptrdiff_t i = 0; i < a.m * groups; i++) {
        vf part = {};
        for (ptrdiff_t k = 0; k < a.group; k += W) part += load_float(x + i * a.group + k);
        sums[i] = sum(part);
    }
#if defined(TRI_TILES)
    if (a.group % 32 == 0)
        return by_tiles<Bf16Tiles>(
            a, x, sizeof(bf16), threads, [](vi words, vi* to) { for (int i = 0; i < 4; i++) to[i] = expand(words, i); },
            [&](vf total, const float* part, vf scale, vf zero, ptrdiff_t token, ptrdiff_t g) {
                return total + scale * (load<vf>(part) - zero * sums[token * groups + g]);
            });
#endif
    a.x = as_operand<bf16, Act>(x, a.m * a.k, 2);
    a.sums = sums;
    if (a.m <= MAX_ROWS / 4)
        for_outputs(a.n, a.k / 2, 4 * W, threads, [&](ptrdiff_t first, ptrdiff_t) { few_tokens<4>(a, first); });
    else if (a.m <= MAX_ROWS / 2)
        for_outputs(a.n, a.k / 2, 2 * W, threads, [&](ptrdiff_t first, ptrdiff_t) { few_tokens<2>(a, first); });
    else
        for_outputs(a.n, PART_BYTES, TILE * W, threads, [&](ptrdiff_t first, ptrdiff_t) { many_tokens(a, first); });
}

// What int8 activations of a group are worth: x ~ q * scale, and the sum of q. NaN and infinity make the scale so.
struct Group {
    float scale, sum;
};

// Each eight bytes in the order 0 4 1 5 2 6 3 7: as the weights of the low nibbles of a word's bytes, and of the high ones.
typedef int8_t vb __attribute__((vector_size(W)));
inline vb in_order_of_nibbles(vb x) {
#if defined(__AVX512F__)
#define TRI_ORDER 0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15
#else
#define TRI_ORDER 0, 4, 1, 5, 2, 6, 3, 7
#endif
#if defined(__clang__)
    return __builtin_shufflevector(x, x, TRI_ORDER);
#else
    return __builtin_shuffle(x, (vb){TRI_ORDER});
#endif
}

inline Group quantize_group(const bf16* x, int8_t* q, ptrdiff_t size) {
    vf most = {}, broken = {};
    for (ptrdiff_t i = 0; i < size; i += W) {
        const vf v = load_float(x + i);
        most = max(most, select(v < 0.0f, -v, v));
        broken += v * 0.0f;  // stays 0 unless something is no number
    }
    const float largest = max(most) + sum(broken), inverse = 127 / largest;
    if (!(largest <= __FLT_MAX__ && inverse <= __FLT_MAX__)) {  // not a number, too small or 0
        std::memset(q, 0, size);
        return {largest / 127, 0};
    }
    vi totals = {};
    for (ptrdiff_t i = 0; i < size; i += W) {
        const vi whole = __builtin_convertvector(round_even(load_float(x + i) * inverse), vi);
        totals += whole;
        store(q + i, in_order_of_nibbles(__builtin_convertvector(whole, vb)));
    }
    int32_t total = 0;
    for (int i = 0; i < W; i++) total += totals[i];
    return {largest / 127, float(total)};
}

// total plus what whole sums of a group are worth.
inline vf add_group(vf total, vi sums, vf scale, vf zero, const Group& group) {
    return total + scale * group.scale * (__builtin_convertvector(sums, vf) - zero * group.sum);
}

void linear_int4_int8(const Int4Args& a) {
    const ptrdiff_t groups = a.k / a.group, per_group = a.group / 8;
    const Words weight{reinterpret_cast<const int32_t*>(a.weight), a.n, a.k / 8};
    int8_t* q = scratch<int8_t>(1, a.m * a.k);
    Group* given = scratch<Group>(2, a.m * groups);
#pragma omp parallel for schedule(static) num_threads(a.m < 16 ? 1 : a.threads)
    for (ptrdiff_t i = 0; i < a.m * groups; i++) given[i] = quantize_group(a.x + i * a.group, q + i * a.group, a.group);
#if defined(TRI_TILES)
    if (a.m > FEW_ROWS && a.group % 64 == 0) {
        const Int4 each{nullptr, nullptr, a.weight, a.scale, a.zero, a.bias, a.y, a.m, a.n, a.k, a.group};
        return by_tiles<Int8Tiles>(
            each, q, sizeof(int8_t), a.threads,
            [](vi words, vi* to) { to[0] = words & 0x0f0f0f0f, to[1] = (words >> 4) & 0x0f0f0f0f; },
            [&](vf total, const int32_t* sums, vf scale, vf zero, ptrdiff_t token, ptrdiff_t g) {
                return add_group(total, load<vi>(sums), scale, zero, given[token * groups + g]);
            });
    }
#endif
    for_products(a.m, a.n, a.k / 2, a.threads, [&](ptrdiff_t token, auto rows, ptrdiff_t first, auto vectors,
                                                   const Ahead& ahead) {
        auto x = [&](int r) { return q + (token + r) * a.k; };
        vf total[rows][vectors] = {};
        for (ptrdiff_t g = 0; g < groups; g++) {
            vi acc[rows][vectors] = {};
            const ptrdiff_t begin = g * per_group;
            weight.along<vectors>(first, ahead, begin, begin + per_group, [&](ptrdiff_t i, const vi words[vectors]) {
                for (int b = 0; b < vectors; b++) {
                    const vi low = words[b] & 0x0f0f0f0f, high = (words[b] >> 4) & 0x0f0f0f0f;
                    for (int r = 0; r < rows; r++) {
                        acc[r][b] = dot_bytes(acc[r][b], four_at(x(r) + 8 * i), low);
                        acc[r][b] = dot_bytes(acc[r][b], four_at(x(r) + 8 * i + 4), high);
                    }
                }
            });
            for (int b = 0; b < vectors; b++) {
                const ptrdiff_t output = tile_output(a.n, first, b), at = (output / 16 * groups + g) * 16 + output % 16;
                const vf scale = load_half(a.scale + at), zero = load_bytes(a.zero + at);
                for (int r = 0; r < rows; r++)
                    total[r][b] = add_group(total[r][b], acc[r][b], scale, zero, given[(token + r) * groups + g]);
            }
        }
        finish(total, a.bias, a.y, a.n, token, first);
    });
}

}  // namespace tri

KERNEL(linear_int4, tri::Int4Args, tri::linear_int4)
KERNEL(linear_int4_int8, tri::Int4Args, tri::linear_int4_int8)
