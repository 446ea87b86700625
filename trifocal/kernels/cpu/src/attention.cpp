// Causal attention over a paged cache: decoding and chunks of prompts alike.
//
// A query's sums run over stretches of its context that lie at fixed positions, in order, so its result does not depend
// on what else is in the step, on how its prompt was cut, or on the number of threads.
#include "attend.h"

namespace tri {

// What changes from step to step; all layers of a step share it.
struct Step {
    const int64_t* slots;         // [tokens], block * block_size + offset
    const int64_t* tables;        // [seqs, table_stride]
    const int64_t* query_lens;    // [seqs]
    const int64_t* context_lens;  // [seqs]
    int64_t num_seqs, num_tokens, table_stride;
};

struct Attention {
    const Step* step;
    const void *q, *k, *v;             // [tokens, heads or kv_heads, head_dim], the strides of tokens in elements below
    void* out;                         // [tokens, heads, head_dim]
    void *keys, *values;               // of one layer, [blocks, kv_heads, block_size, head_dim]
    float *key_scales, *value_scales;  // [blocks, kv_heads, block_size], of an int8 cache
    int64_t q_stride, k_stride, v_stride, block_size, heads, kv_heads, head_dim;
    int64_t window;                    // a query sees so many of the last keys, its own included
    float scale;
    int32_t threads;
};

constexpr ptrdiff_t FEW_ROWS = 16;  // queries times heads up to which a context is shared out among threads

// Some queries of one sequence with the heads that share a kv head; row = query * group + head of the group.
struct Item {
    ptrdiff_t seq, kv_head, token, position, rows;  // of the first query: its row of q, its position
    ptrdiff_t first, stretches;                     // its stretches are parts `first ..` of the step
    ptrdiff_t begin;                                // the first stretch that a query sees a key of
};

inline ptrdiff_t group_of(const Attention& a) { return a.heads / a.kv_heads; }

// A row of the cache, in rows of head_dim: that of a slot's key for a head.
inline ptrdiff_t row_of(const Attention& a, int64_t block, ptrdiff_t head, ptrdiff_t inside) {
    return (block * a.kv_heads + head) * a.block_size + inside;
}

// See `Place`; memory behind `count` positions from `first` on may be unwritten (NaN).
template <class C>
void locate(const Attention& a, const Item& item, ptrdiff_t first, ptrdiff_t count, Place<C>& place) {
    const int64_t* table = a.step->tables + item.seq * a.step->table_stride + first / a.block_size;
    ptrdiff_t inside = first % a.block_size, t = 0;
    for (; t < count; table++, inside = 0) {
        ptrdiff_t row = row_of(a, *table, item.kv_head, inside);
        for (; t < count && inside < a.block_size; t++, inside++, row++) {
            place.keys[t] = static_cast<const C*>(a.keys) + row * a.head_dim;
            place.values[t] = static_cast<const C*>(a.values) + row * a.head_dim;
            if constexpr (sizeof(C) == 1) {
                place.key_scales[t] = a.key_scales[row];
                place.value_scales[t] = a.value_scales[row];
            }
        }
    }
    for (; t < TILE; t++) {
        place.keys[t] = place.keys[count - 1], place.values[t] = place.values[count - 1];
        place.key_scales[t] = place.value_scales[t] = 0;
    }
}

// The end of stretch `stretch` of a context, or of the context.
inline ptrdiff_t end_of(const Attention& a, const Item& item, ptrdiff_t stretch) {
    ptrdiff_t end = item.position + item.rows / group_of(a);
    return end < (stretch + 1) * STRETCH ? end : (stretch + 1) * STRETCH;
}

// Where the sums of stretch `stretch` begin: tiles that no query of the item sees are left out.
inline ptrdiff_t start_of(const Attention& a, const Item& item, ptrdiff_t stretch) {
    const ptrdiff_t seen = (item.position + 1 - a.window) / TILE * TILE;
    return seen > stretch * STRETCH ? seen : stretch * STRETCH;
}

// All items of a step; returns how many there are, `parts` becomes the number of stretches that are shared out.
ptrdiff_t plan(const Attention& a, Item* items, ptrdiff_t* parts) {
    const ptrdiff_t group = group_of(a);
    const ptrdiff_t most = UNIT_ROWS / group < 1 ? 1 : UNIT_ROWS / group;  // queries in an item
    ptrdiff_t count = 0, token = 0;
    *parts = 0;
    for (ptrdiff_t seq = 0; seq < a.step->num_seqs; seq++) {
        const ptrdiff_t length = a.step->query_lens[seq], start = a.step->context_lens[seq] - length;
        for (ptrdiff_t query = 0; query < length; query += most) {
            const ptrdiff_t queries = length - query < most ? length - query : most, rows = queries * group;
            const ptrdiff_t behind = start + query + 1 - a.window, begin = behind > 0 ? behind / STRETCH : 0;
            const ptrdiff_t stretches = (start + query + queries + STRETCH - 1) / STRETCH - begin;
            const bool is_shared = rows <= FEW_ROWS && stretches > 1;
            for (ptrdiff_t head = 0; head < a.kv_heads; head++, count++) {
                if (items) items[count] = {seq, head, token + query, start + query, rows, *parts, is_shared ? stretches : 1, begin};
                *parts += is_shared ? stretches : 1;
            }
        }
        token += length;
    }
    return count;
}

// A token's keys or values into its row of the cache.
template <class T>
void write(const T* from, ptrdiff_t size, T* to, float*) {
    std::memcpy(to, from, size * sizeof(T));
}
// In int8: whole numbers of 1/127 of the largest; where an element is none, the scale says so (NaN).
template <class T>
void write(const T* from, ptrdiff_t size, int8_t* to, float* scale) {
    vf most = {}, none = {};
    for (ptrdiff_t i = 0; i < size; i += W) {
        vf x = load_float(from + i);
        most = larger(most, larger(x, -x));
        none += x - x;
    }
    *scale = largest(most) / 127 + sum(none);
    const float divisor = *scale > 0 ? *scale : 1;
    for (ptrdiff_t i = 0; i < size; i += W) {
        vf whole = (load_float(from + i) / divisor + 12582912.0f) - 12582912.0f;
        store(to + i, __builtin_convertvector(__builtin_convertvector(whole, vi), vb));
    }
}

template <class T, class C>
void write_token(const Attention& a, ptrdiff_t token) {
    const ptrdiff_t d = a.head_dim;
    for (ptrdiff_t head = 0; head < a.kv_heads; head++) {
        const ptrdiff_t row = row_of(a, a.step->slots[token] / a.block_size, head, a.step->slots[token] % a.block_size);
        write(static_cast<const T*>(a.k) + token * a.k_stride + head * d, d, static_cast<C*>(a.keys) + row * d,
              a.key_scales + row);
        write(static_cast<const T*>(a.v) + token * a.v_stride + head * d, d, static_cast<C*>(a.values) + row * d,
              a.value_scales + row);
    }
}

template <class T, class C>
void finish(const Attention& a, const Item& item, ptrdiff_t width, Sums sums) {
    const ptrdiff_t group = group_of(a);
    for (ptrdiff_t r = 0; r < item.rows; r++) {
        ptrdiff_t head = item.kv_head * group + r % group;
        T* to = static_cast<T*>(a.out) + ((item.token + r / group) * a.heads + head) * a.head_dim;
        put_row<T, C>(to, a.head_dim, width, sums, r);
    }
}

// Part `part` of an item: one stretch of a context that is shared out, else all of them.
template <class T, class C>
void run(const Attention& a, const Item& item, ptrdiff_t part, float* shared) {
    using X = typename Operand<T>::type;
    const ptrdiff_t d = a.head_dim, width = width_of(d), group = group_of(a), floats = floats_of(item.rows, width);
    const T* from = static_cast<const T*>(a.q) + item.token * a.q_stride + item.kv_head * group * d;
    const ptrdiff_t depth = depth_of<X>(d);
    const X* rows = gather<T, X>(from, a.q_stride, item.rows / group, group, d, depth);
    const Queries<X> q{rows, item.rows, group, item.position, d, depth, width, a.scale, a.window};
    auto where = [&](ptrdiff_t first, ptrdiff_t count, Place<C>& place) { locate(a, item, first, count, place); };
    auto sum_up = [&](ptrdiff_t stretch, Sums sums) {
        attend<C>(q, start_of(a, item, stretch), end_of(a, item, stretch), where, sums, a.block_size % 16 == 0);
    };
    if (item.stretches > 1) return sum_up(item.begin + part - item.first, sums_at(shared, item.rows, width));
    float* own = scratch<float>(SUMS, 2 * floats);
    Sums sums = sums_at(own, item.rows, width), next = sums_at(own + floats, item.rows, width);
    const ptrdiff_t begin = item.begin;
    for (ptrdiff_t stretch = begin; stretch == begin || end_of(a, item, stretch) > stretch * STRETCH; stretch++) {
        sum_up(stretch, stretch > begin ? next : sums);
        if (stretch > begin) merge(item.rows, width, sums, next);
    }
    finish<T, C>(a, item, width, sums);
}

template <class T, class C>
void attention(const Attention& a) {
    ptrdiff_t parts;
    const ptrdiff_t count = plan(a, nullptr, &parts), width = width_of(a.head_dim), slice = floats_of(FEW_ROWS, width);
    Item* items = scratch<Item>(ITEMS, count);
    plan(a, items, &parts);
    float* shared = parts > count ? scratch<float>(SHARED, parts * slice) : nullptr;
#pragma omp parallel num_threads(a.threads)
    {
#pragma omp for schedule(static)
        for (ptrdiff_t token = 0; token < a.step->num_tokens; token++) write_token<T, C>(a, token);
#pragma omp for schedule(dynamic)
        for (ptrdiff_t i = 0; i < parts; i++) {
            const ptrdiff_t part = parts - 1 - i;  // the last ones of a prompt take longest
            ptrdiff_t low = 0, high = count;       // the last item that begins at or before this part
            while (high - low > 1) (items[(low + high) / 2].first <= part ? low : high) = (low + high) / 2;
            run<T, C>(a, items[low], part, shared + part * slice);
        }
#pragma omp for schedule(dynamic)
        for (ptrdiff_t i = 0; i < count; i++) {
            const Item& item = items[i];
            if (item.stretches == 1) continue;
            Sums sums = sums_at(shared + item.first * slice, item.rows, width);
            for (ptrdiff_t stretch = 1; stretch < item.stretches; stretch++)
                merge(item.rows, width, sums, sums_at(shared + (item.first + stretch) * slice, item.rows, width));
            finish<T, C>(a, item, width, sums);
        }
    }
}

}  // namespace tri

SIZE(step, tri::Step)
// head_dim times the size of a cached element is a multiple of 16, heads of kv_heads.
KERNEL(attention_bf16, tri::Attention, (tri::attention<tri::bf16, tri::bf16>))
KERNEL(attention_f32, tri::Attention, (tri::attention<float, float>))
KERNEL(attention_int8_bf16, tri::Attention, (tri::attention<tri::bf16, int8_t>))
KERNEL(attention_int8_f32, tri::Attention, (tri::attention<float, int8_t>))
