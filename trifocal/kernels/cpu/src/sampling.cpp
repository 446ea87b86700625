// How tokens are chosen from rows of logits, and what is told of them, without sorting a row.
//
// The arithmetic is that of worker/sampler.py, bit for bit, with every instruction set: levels and weights are made of
// single float operations (this file is compiled without fused ones, see build.py), weights are whole numbers, so that
// sums are exact in any order.
#include <algorithm>
#include <functional>

#include "common.h"

namespace tri {
namespace {

typedef int64_t vl __attribute__((vector_size(W * 4)));  // half as many lanes

constexpr float INF = __builtin_inff();
constexpr float LOWEST = -64;     // of levels
constexpr float WEIGHTLESS = -43;  // from here down, weights are 0
constexpr int UNIT_BITS = 42;      // of the most likely token's weight
constexpr int NOISE_BITS = 53;
constexpr ptrdiff_t STRIPE = 128 * W;  // elements, of which each lane's largest is kept
constexpr ptrdiff_t BLOCK = 32 * W;    // elements whose weights are summed before one is looked for among them
constexpr ptrdiff_t FEW = 1024;        // as many candidates are cheaply sorted
enum Slot { PEAKS, CANDIDATES, LIST, TABLE, BLOCKS };

inline vf larger(vf x, vf y) {  // y where x is no number
#if defined(__AVX512F__)
    return (vf)_mm512_max_ps((__m512)x, (__m512)y);
#else
    return (vf)_mm256_max_ps((__m256)x, (__m256)y);
#endif
}

// y where z > level, else `otherwise`.
inline vf where_above(vf z, float level, vf y, vf otherwise) {
#if defined(__AVX512F__)
    const __mmask16 mask = _mm512_cmp_ps_mask((__m512)z, _mm512_set1_ps(level), _CMP_GT_OQ);
    return (vf)_mm512_mask_mov_ps((__m512)otherwise, mask, (__m512)y);
#else
    return (vf)_mm256_blendv_ps((__m256)otherwise, (__m256)y, (__m256)(z > level));
#endif
}

inline uint32_t bits_of(vi mask) {
#if defined(__AVX512F__)
    return _mm512_movepi32_mask((__m512i)mask);
#else
    return _mm256_movemask_ps((__m256)mask);
#endif
}

// The elements from `at` on, -infinity behind the last.
inline vf part(const float* row, ptrdiff_t n, ptrdiff_t at) {
    if (at + W <= n) return load<vf>(row + at);
    float padded[W];
    std::fill(padded, padded + W, -INF);
    std::memcpy(padded, row + at, (n - at) * sizeof(float));
    return load<vf>(padded);
}

inline int64_t sum(vl x) {
    int64_t total = 0;
    for (int i = 0; i < W / 2; i++) total += x[i];
    return total;
}

// ------------------------------------------------------------------------------------------- levels and weights

// Base-2 logarithms of probabilities, the most likely token's being 0. What lies below `floor` counts as impossible.
struct Levels {
    float most, scale, floor;

    vf operator()(vf x) const {
        const vf z = larger((x - most) * scale, splat(LOWEST));
#if defined(__AVX512F__)
        const __mmask16 is_below = _mm512_cmp_ps_mask((__m512)z, _mm512_set1_ps(floor), _CMP_LT_OQ);
        return (vf)_mm512_mask_mov_ps((__m512)z, is_below, _mm512_set1_ps(LOWEST));
#else
        return (vf)_mm256_blendv_ps((__m256)z, _mm256_set1_ps(LOWEST), (__m256)(z < floor));
#endif
    }
};

// 2^(z + UNIT_BITS)
inline vf power(vf z) {
    const vf whole = (z + 12582912.0f) - 12582912.0f;  // 1.5 * 2^23: sums are rounded to integers
    const vf f = z - whole;
    vf p = splat(1.5353362e-4f);
    p = p * f + 1.3398874e-3f;
    p = p * f + 9.6184374e-3f;
    p = p * f + 5.5503325e-2f;
    p = p * f + 2.4022648e-1f;
    p = p * f + 6.9314720e-1f;
    p = p * f + 1.0f;
    return p * (vf)((__builtin_convertvector(whole, vi) + (127 + UNIT_BITS)) << 23);
}

// What is whole of v: of the first half of lanes, and of the second.
struct Weights {
    vl low, high;
};
#if defined(__AVX512F__)
inline Weights weights(vf v) {
    const __m512 x = (__m512)v;
    return {(vl)_mm512_cvttps_epi64(_mm512_castps512_ps256(x)), (vl)_mm512_cvttps_epi64(_mm512_extractf32x8_ps(x, 1))};
}
#else
inline vl weights_of_four(__m128i bits) {  // mantissas, shifted by what exponents say
    const __m256i wide = _mm256_cvtepu32_epi64(bits);
    const __m256i mantissa = _mm256_or_si256(_mm256_and_si256(wide, _mm256_set1_epi64x(0x7fffff)), _mm256_set1_epi64x(0x800000));
    const __m256i left = _mm256_sub_epi64(_mm256_srli_epi64(wide, 23), _mm256_set1_epi64x(127 + 23));
    const __m256i right = _mm256_sub_epi64(_mm256_setzero_si256(), left);
    return (vl)_mm256_or_si256(_mm256_sllv_epi64(mantissa, left), _mm256_srlv_epi64(mantissa, right));  // 0 beyond 63
}
inline Weights weights(vf v) {
    const __m256i bits = (__m256i)v;
    return {weights_of_four(_mm256_castsi256_si128(bits)), weights_of_four(_mm256_extracti128_si256(bits, 1))};
}
#endif

inline void store_weights(int64_t* to, vf z) {
    const Weights w = weights(power(z));
    store(to, w.low);
    store(to + W / 2, w.high);
}
inline int64_t weight(float z) { return weights(power(splat(z))).low[0]; }

// ceil or floor of a * b / 2^53, for numbers whose product has no room in 64 bits.
inline int64_t share(int64_t a, int64_t b, bool is_up) {
    const int64_t more = is_up ? (int64_t(1) << NOISE_BITS) - 1 : 0;
    return int64_t(((unsigned __int128)a * b + more) >> NOISE_BITS);
}

// ------------------------------------------------------------------------------------------------- first passes

struct Scan {
    float most;  // no number where one in the row is none
    float* peaks;
    ptrdiff_t num_peaks;  // each the largest of some elements, which no other peak is taken from
};

Scan scan(const float* row, ptrdiff_t n) {
    const ptrdiff_t stripes = (n + STRIPE - 1) / STRIPE;
    float* peaks = scratch<float>(PEAKS, stripes * W);
    vf most = splat(-INF);
    vi bad = {};
    for (ptrdiff_t s = 0; s < stripes; s++) {
        vf best[4] = {splat(-INF), splat(-INF), splat(-INF), splat(-INF)};
        const ptrdiff_t end = std::min(n, (s + 1) * STRIPE);
        ptrdiff_t i = s * STRIPE;
        for (; i + 4 * W <= end; i += 4 * W)
            for (int b = 0; b < 4; b++) {
                const vf x = load<vf>(row + i + b * W);
                bad |= x != x;
                best[b] = larger(x, best[b]);
            }
        for (; i < end; i += W) {
            const vf x = part(row, n, i);
            bad |= x != x;
            best[0] = larger(x, best[0]);
        }
        best[0] = larger(larger(best[0], best[1]), larger(best[2], best[3]));
        store(peaks + s * W, best[0]);
        most = larger(best[0], most);
    }
    return {bits_of(bad) ? __builtin_nanf("") : max(most), peaks, stripes * W};
}

// The first element that equals the largest.
ptrdiff_t first_of(const float* row, ptrdiff_t n, const Scan& s) {
    ptrdiff_t stripe = 0;
    while (!bits_of(load<vf>(s.peaks + stripe * W) == s.most)) stripe++;
    for (ptrdiff_t i = stripe * STRIPE;; i += W)
        if (const uint32_t same = bits_of(part(row, n, i) == s.most)) return i + __builtin_ctz(same);
}

// A part of the order by descending level, then ascending id: what is above `level`, and the first `ties` that are there.
struct Cut {
    float level;
    int64_t ties;
};
constexpr Cut EVERYTHING = {LOWEST - 1, 0};

struct Mass {
    vl low = {}, high = {};

    void add(vf v) {
        const Weights w = weights(v);
        low += w.low;
        high += w.high;
    }
    int64_t total() const { return sum(low + high); }
};

// The sum of all weights, and of those in each BLOCK.
int64_t mass_of(const float* row, ptrdiff_t n, const Levels& levels, int64_t* blocks) {
    int64_t total = 0;
    for (ptrdiff_t first = 0; first < n; first += BLOCK) {
        Mass mass;
        const ptrdiff_t end = std::min(n, first + BLOCK);
        for (ptrdiff_t i = first; i < end; i += W) mass.add(power(levels(part(row, n, i))));
        total += *blocks++ = mass.total();
    }
    return total;
}

// ---------------------------------------------------------------------------------------------------- selection

struct Candidate {
    float key;
    int32_t id;
};
inline bool by_key(const Candidate& a, const Candidate& b) { return a.key > b.key || (a.key == b.key && a.id < b.id); }
inline bool by_id(const Candidate& a, const Candidate& b) { return a.id < b.id; }

// The `want` first by descending key(x), then ascending id, of those whose key is `lowest` or more; sorted. Returns how many.
template <class Key>
ptrdiff_t first_ones(const float* row, ptrdiff_t n, ptrdiff_t want, float lowest, Key key, Candidate*& best) {
    const ptrdiff_t room = 2 * want + FEW;
    best = scratch<Candidate>(CANDIDATES, room);
    ptrdiff_t count = 0;
    bool is_full = false;
    for (ptrdiff_t i = 0; i < n; i += W) {
        const vf y = key(part(row, n, i));
        uint32_t wanted = bits_of(is_full ? y > lowest : y >= lowest);  // ids come later: equal ones lose
        if (!wanted) continue;
        if (n - i < W) wanted &= (1u << (n - i)) - 1;
        if (count + W > room) {
            std::nth_element(best, best + want - 1, best + count, by_key);
            count = want;
            lowest = best[want - 1].key;
            is_full = true;
            wanted &= bits_of(y > lowest);
        }
        for (; wanted; wanted &= wanted - 1) {
            const int lane = __builtin_ctz(wanted);
            best[count++] = {y[lane], int32_t(i + lane)};
        }
    }
    if (count > want) std::nth_element(best, best + want - 1, best + count, by_key);
    count = std::min(count, want);
    std::sort(best, best + count, by_key);
    return count;
}

// An element that has at least `want - 1` others not below it.
float bound(const Scan& s, ptrdiff_t want) {
    if (want > s.num_peaks) return -INF;
    std::nth_element(s.peaks, s.peaks + want - 1, s.peaks + s.num_peaks, std::greater<float>());
    return s.peaks[want - 1];
}

struct Reached {
    float level;
    int64_t before;  // what the elements above come to
};

// Where elements, in descending order of their levels, come to a limit: their number, or the sum of their weights.
//
// Keys are the bits of -level. They are looked at from the highest to the lowest: first those of all elements, then those of
// elements that agree in what is settled.
template <bool IS_MASS>
class Reach {
public:
    // The limit is at `lowest` or above.
    Reach(const float* row, ptrdiff_t n, const Levels& levels, float lowest, int64_t limit)
        : row(row), n(n), levels(levels), lowest(lowest), limit(limit) {}

    Reached operator()() {
        count_row();
        settle(0);
        collect();
        for (int step = 1; step < 3; step++) {
            const auto ends = std::minmax_element(list, list + left);
            if (*ends.first == *ends.second) return {level_of(*ends.first), before};
            count_list(step);
            settle(step);
            left = std::remove_if(list, list + left, [&](uint32_t key) { return (key ^ found) >> SHIFTS[step]; }) - list;
        }
        return {level_of(found), before};
    }

private:
    static constexpr int SHIFTS[] = {19, 8, 0}, BUCKETS[] = {0x42800000 / (1 << 19) + 1, 1 << 11, 1 << 8};

    const float* row;
    const ptrdiff_t n;
    const Levels& levels;
    const float lowest;
    const int64_t limit;
    int64_t* const table = scratch<int64_t>(TABLE, BUCKETS[0]);
    uint32_t* const list = scratch<uint32_t>(LIST, n + W);  // keys that agree with `found`
    ptrdiff_t left = 0;
    int64_t before = 0;
    uint32_t found = 0;

    static vu key_of(vf z) { return (vu)z & 0x7fffffff; }
    static float level_of(uint32_t key) {
        key |= 0x80000000;
        float level;
        std::memcpy(&level, &key, 4);
        return level;
    }

    void clear(int step) { std::fill(table, table + BUCKETS[step], 0); }

    void count(vu key, int step, int lanes) {
        uint32_t buckets[W];
        int64_t measures[W];
        store(buckets, key >> SHIFTS[step] & (step ? BUCKETS[step] - 1 : ~0u));
        if (IS_MASS) store_weights(measures, (vf)(key | 0x80000000));
        for (int i = 0; i < lanes; i++) table[buckets[i]] += IS_MASS ? measures[i] : 1;
    }

    void count_list(int step) {
        clear(step);
        for (ptrdiff_t i = 0; i < left; i += W) {
            const int lanes = lanes_of(left, i);
            uint32_t keys[W] = {};
            std::memcpy(keys, list + i, lanes * sizeof(uint32_t));
            count(load<vu>(keys), step, lanes);
        }
    }

    // The bucket in which the limit is.
    void settle(int step) {
        uint32_t bucket = 0;
        while (before + table[bucket] < limit) before += table[bucket++];
        found |= bucket << SHIFTS[step];
    }

    void count_row() {
        clear(0);
        for (ptrdiff_t i = 0; i < n; i += W) {
            const vf z = levels(part(row, n, i));
            if (bits_of(z >= lowest)) count(key_of(z), 0, lanes_of(n, i));
        }
    }

    // Make the list.
    void collect() {
        for (ptrdiff_t i = 0; i < n; i += W) {
            const vu key = key_of(levels(part(row, n, i)));
            uint32_t same = bits_of((vi)(key >> SHIFTS[0] == found >> SHIFTS[0]));
            if (n - i < W) same &= (1u << (n - i)) - 1;
            if (same == (1u << W) - 1) {
                store(list + left, key);
                left += W;
            } else {
                for (; same; same &= same - 1) list[left++] = key[__builtin_ctz(same)];
            }
        }
    }
};

// ------------------------------------------------------------------------------------------------------ drawing

struct Draw {
    int64_t top_k, top_p, noise;  // the last two in units of 2^-53
};

// Of elements that come to `limit` with the level that is reached there, how many of that one.
inline int64_t ties_for(int64_t limit, int64_t before, int64_t each) { return (limit - before + each - 1) / each; }

ptrdiff_t draw_of_few(const float* row, ptrdiff_t n, const Scan& s, const Levels& levels, const Draw& draw) {
    const float least = levels(splat(bound(s, draw.top_k)))[0];
    Candidate* best;
    ptrdiff_t count = first_ones(row, n, draw.top_k, std::max(least, WEIGHTLESS), levels, best);
    int64_t mass = 0;
    for (ptrdiff_t i = 0; i < count; i++) mass += weight(best[i].key);
    const int64_t limit = share(draw.top_p, mass, true);
    int64_t kept = 0;
    ptrdiff_t used = 0;
    while (used < count && kept < limit) kept += weight(best[used++].key);
    std::sort(best, best + used, by_id);
    int64_t target = share(draw.noise, kept, false);
    ptrdiff_t i = 0;
    while ((target -= weight(best[i].key)) >= 0) i++;
    return best[i].id;
}

// The element of a block at which the sum of weights by ascending id goes beyond `target`, which it does.
ptrdiff_t walk(const float* row, ptrdiff_t n, const Levels& levels, Cut cut, ptrdiff_t first, int64_t target) {
    for (ptrdiff_t i = first;; i += W) {
        const vf z = levels(part(row, n, i));
        int64_t w[W];
        store_weights(w, z);
        for (int lane = 0; lane < W; lane++) {
            if (!(z[lane] > cut.level) && !(z[lane] == cut.level && cut.ties-- > 0)) continue;
            if ((target -= w[lane]) < 0) return i + lane;
        }
    }
}

ptrdiff_t draw_from(const float* row, ptrdiff_t n, const Levels& levels, const int64_t* blocks, int64_t target) {
    ptrdiff_t block = 0;
    while (target >= blocks[block]) target -= blocks[block++];
    return walk(row, n, levels, EVERYTHING, block * BLOCK, target);
}

// The same of a part of all elements, whose blocks are summed on the way.
ptrdiff_t draw_from(const float* row, ptrdiff_t n, const Levels& levels, Cut cut, int64_t target) {
    const int64_t each = weight(cut.level);
    for (ptrdiff_t first = 0;; first += BLOCK) {
        const ptrdiff_t end = std::min(n, first + BLOCK);
        Mass above;
        vi ties = {};
        for (ptrdiff_t i = first; i < end; i += W) {
            const vf z = levels(part(row, n, i));
            if (!bits_of(z >= cut.level)) continue;
            above.add(where_above(z, cut.level, power(z), vf{}));
            ties -= z == cut.level;
        }
        int64_t num_ties = 0;
        for (int lane = 0; lane < W; lane++) num_ties += ties[lane];
        num_ties = std::min(num_ties, cut.ties);
        const int64_t mass = above.total() + num_ties * each;
        if (target < mass) return walk(row, n, levels, cut, first, target);
        target -= mass;
        cut.ties -= num_ties;
    }
}

int64_t mass_of(const float* row, ptrdiff_t n, const Levels& levels, Cut cut) {
    Mass above;
    for (ptrdiff_t i = 0; i < n; i += W) {
        const vf z = levels(part(row, n, i));
        if (bits_of(z > cut.level)) above.add(where_above(z, cut.level, power(z), vf{}));
    }
    return above.total() + cut.ties * weight(cut.level);
}

ptrdiff_t draw_of_many(const float* row, ptrdiff_t n, const Levels& levels, const Draw& draw) {
    Cut cut = EVERYTHING;
    int64_t mass, *blocks = scratch<int64_t>(BLOCKS, n / BLOCK + 1);
    if (draw.top_k < n) {
        const Reached reached = Reach<false>(row, n, levels, LOWEST, draw.top_k)();
        cut = {reached.level, draw.top_k - reached.before};
        mass = mass_of(row, n, levels, cut);
    } else {
        mass = mass_of(row, n, levels, blocks);
    }
    const int64_t limit = share(draw.top_p, mass, true);
    if (limit < mass) {
        // All elements together with less than `each` have no more than may be left out.
        const int64_t each = (mass - limit) / n;
        const float lowest = each > 1 ? float(63 - __builtin_clzll(each) - UNIT_BITS - 1) : LOWEST;
        const Reached reached = Reach<true>(row, n, levels, std::max(lowest, cut.level), limit)();
        const int64_t of_tie = weight(reached.level);
        cut = {reached.level, ties_for(limit, reached.before, of_tie)};
        mass = reached.before + cut.ties * of_tie;
    }
    const int64_t target = share(draw.noise, mass, false);
    return cut.level < LOWEST ? draw_from(row, n, levels, blocks, target) : draw_from(row, n, levels, cut, target);
}

// f(i) for each row, by several threads where it pays.
template <class F>
void each_row(ptrdiff_t rows, ptrdiff_t vocab, int threads, F f) {
    if (threads == 1 || rows == 1 || rows * vocab < (32 << 10)) {
        for (ptrdiff_t i = 0; i < rows; i++) f(i);
        return;
    }
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (ptrdiff_t i = 0; i < rows; i++) f(i);
}

}  // namespace

// Of each row its largest logit, no number where one is none, and a token: the first of the largest where `scale` is 0 or
// there are no scales, else one that is drawn. Tensors [rows] but for logits [rows, vocab].
struct ChooseArgs {
    const float *logits, *scale, *floor;
    const int64_t *top_k, *top_p, *noise;
    int64_t* tokens;
    float* largest;
    int64_t stride, rows, vocab;
    int32_t threads;
};

void choose(const ChooseArgs& a) {
    each_row(a.rows, a.vocab, a.threads, [&](ptrdiff_t r) {
        const float* row = a.logits + r * a.stride;
        const Scan s = scan(row, a.vocab);
        a.largest[r] = s.most;
        a.tokens[r] = 0;
        if (!(s.most > -INF && s.most < INF)) return;
        if (!a.scale || a.scale[r] == 0) {
            a.tokens[r] = first_of(row, a.vocab, s);
            return;
        }
        const Levels levels{s.most, a.scale[r], a.floor[r]};
        const Draw draw{a.top_k[r], a.top_p[r], a.noise[r]};
        const bool is_few = draw.top_k <= FEW && draw.top_k < a.vocab;
        a.tokens[r] = is_few ? draw_of_few(row, a.vocab, s, levels, draw) : draw_of_many(row, a.vocab, levels, draw);
    });
}

// Of some rows of logits: the largest (no number where one is none), the sum of weights, the chosen token's logit and rank,
// and the `wanted` largest with their ids. Tensors [count], but for logits [.., vocab], ids and values [count, width].
struct LikelyArgs {
    const float* logits;
    const int64_t *rows, *chosen, *wanted;
    float *largest, *own, *values;
    int64_t *totals, *ranks, *ids;
    int64_t stride, count, vocab, width;
    float scale;
    int32_t threads;
};

void likely(const LikelyArgs& a) {
    each_row(a.count, a.vocab, a.threads, [&](ptrdiff_t r) {
        const float* row = a.logits + a.rows[r] * a.stride;
        const Scan s = scan(row, a.vocab);
        a.largest[r] = s.most;
        if (!(s.most > -INF && s.most < INF)) return;
        a.totals[r] = mass_of(row, a.vocab, Levels{s.most, a.scale, -INF}, EVERYTHING);
        const float own = a.own[r] = row[a.chosen[r]];
        vi above = {};
        for (ptrdiff_t i = 0; i < a.vocab; i += W) above -= part(row, a.vocab, i) > own;
        a.ranks[r] = 1;
        for (int lane = 0; lane < W; lane++) a.ranks[r] += above[lane];
        if (!a.wanted[r]) return;
        Candidate* best;
        const ptrdiff_t count = first_ones(row, a.vocab, a.wanted[r], bound(s, a.wanted[r]), [](vf x) { return x; }, best);
        for (ptrdiff_t i = 0; i < count; i++) {
            a.ids[r * a.width + i] = best[i].id;
            a.values[r * a.width + i] = best[i].key;
        }
    });
}

}  // namespace tri

KERNEL(choose, tri::ChooseArgs, tri::choose)
KERNEL(likely, tri::LikelyArgs, tri::likely)
