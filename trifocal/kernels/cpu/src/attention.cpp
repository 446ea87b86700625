// Causal attention over a paged cache: decoding and chunks of prompts alike, all in float32 but for the operands.
//
// A query's sums run over stretches of its context that lie at fixed positions, in order, so its result does not depend
// on what else is in the step, on how its prompt was cut, or on the number of threads.
#include "dot.h"

namespace tri {

struct Attention {
    const void *q, *k, *v;        // [tokens, heads or kv_heads, head_dim], the strides of tokens in elements below
    void* out;                    // [tokens, heads, head_dim]
    void *keys, *values;          // of one layer, [blocks, block_size, kv_heads, head_dim]
    const int64_t* slots;         // [tokens]
    const int64_t* tables;        // [seqs, table_stride]
    const int64_t* query_lens;    // [seqs]
    const int64_t* context_lens;  // [seqs]
    int64_t q_stride, k_stride, v_stride;
    int64_t num_seqs, num_tokens, table_stride, block_size, heads, kv_heads, head_dim;
    float scale;
    int32_t threads;
};

constexpr ptrdiff_t TILE = 64;      // tokens between two rescalings
constexpr ptrdiff_t STRETCH = 512;  // tokens summed up by one thread, a multiple of TILE
constexpr ptrdiff_t FEW_ROWS = 16;  // queries times heads up to which a context is shared out among threads
constexpr ptrdiff_t MANY_ROWS = 64;
constexpr int PV_ROWS = 8;

// Some queries of one sequence with the heads that share a kv head; row = query * group + head of the group.
struct Item {
    ptrdiff_t seq, kv_head, token, position, rows;  // of the first query: its row of q, its position
    ptrdiff_t first, stretches;                     // its stretches are parts `first ..` of the step
};

// Softmax so far: maximum, sum of weights, weighted sum of values [rows, width].
struct Sums {
    float *most, *total, *values;
};

struct Shape {
    ptrdiff_t group, width;
    explicit Shape(const Attention& a) : group(a.heads / a.kv_heads), width((a.head_dim + W - 1) / W * W) {}
    ptrdiff_t floats(ptrdiff_t rows) const { return rows * (width + 2); }
    Sums sums(float* at, ptrdiff_t rows) const { return {at, at + rows, at + 2 * rows}; }
};

// Where the keys and values of `count` positions from `first` on lie; behind them, where memory may be unwritten (NaN), the
// last one is repeated.
template <class T>
void locate(const Attention& a, const Item& item, ptrdiff_t first, ptrdiff_t count, const T* keys[], const T* values[]) {
    const ptrdiff_t step = a.kv_heads * a.head_dim;
    const int64_t* table = a.tables + item.seq * a.table_stride + first / a.block_size;
    ptrdiff_t inside = first % a.block_size, t = 0;
    for (; t < count; table++, inside = 0) {
        ptrdiff_t at = ((*table * a.block_size + inside) * a.kv_heads + item.kv_head) * a.head_dim;
        for (; t < count && inside < a.block_size; t++, inside++, at += step) {
            keys[t] = static_cast<const T*>(a.keys) + at;
            values[t] = static_cast<const T*>(a.values) + at;
        }
    }
    for (; t < TILE; t++) keys[t] = keys[count - 1], values[t] = values[count - 1];
}

template <int R, class T, class X>
void score(const X* q, ptrdiff_t head_dim, const T* const keys[W], float* scores) {
    vf acc[R] = {};
    dot<R>(q, head_dim, keys, 0, head_dim, acc);
    for (int r = 0; r < R; r++) store(scores + r * TILE, acc[r]);
}

// values[r] = values[r] * decay[r] + sum over tokens of weights[r][t] * v[t], for N vectors of R rows.
template <int R, int N, class T>
void weigh(const float* weights, const T* const* v, ptrdiff_t count, ptrdiff_t offset, int lanes, const float* decay,
           float* values, ptrdiff_t width) {
    vf acc[R][N];
    for (int r = 0; r < R; r++)
        for (int n = 0; n < N; n++) acc[r][n] = load<vf>(values + r * width + n * W) * decay[r];
    for (ptrdiff_t t = 0; t < count; t++) {
        vf row[N];
        for (int n = 0; n < N; n++)
            row[n] = lanes == W ? load_float(v[t] + offset + n * W) : load_some(v[t] + offset + n * W, lanes);
        for (int r = 0; r < R; r++)
            for (int n = 0; n < N; n++) acc[r][n] += weights[r * TILE + t] * row[n];
    }
    for (int r = 0; r < R; r++)
        for (int n = 0; n < N; n++) store(values + r * width + n * W, acc[r][n]);
}

template <class T, class X, int... R>
constexpr auto score_of(int rows, std::integer_sequence<int, R...>) {
    constexpr decltype(&score<1, T, X>) table[] = {score<R + 1, T, X>...};
    return table[rows - 1];
}
template <class T, int N, int... R>
constexpr auto weigh_of(int rows, std::integer_sequence<int, R...>) {
    constexpr decltype(&weigh<1, N, T>) table[] = {weigh<R + 1, N, T>...};
    return table[rows - 1];
}

// Weights of one tile in place of its scores; rows from `first` on see at least one of its tokens.
void soften(const Attention& a, const Item& item, ptrdiff_t tile, ptrdiff_t count, ptrdiff_t first, float* scores,
            Sums sums, float* decay) {
    const ptrdiff_t group = Shape(a).group, vectors = (count + W - 1) / W;
    float after[MANY_ROWS + W];
    vi lane;
    for (int i = 0; i < W; i++) lane[i] = i;
    for (ptrdiff_t r = first; r < item.rows; r++) {
        const int seen = int(item.position + r / group + 1 - tile);
        vf most = splat(sums.most[r]);
        for (ptrdiff_t n = 0; n < vectors; n++) {
            vf s = load<vf>(scores + r * TILE + n * W) * a.scale;
            s = select(lane + int(n * W) < (seen < count ? seen : int(count)), s, splat(-__builtin_inff()));
            store(scores + r * TILE + n * W, s);
            most = max(most, s);
        }
        after[r] = max(most);
    }
    for (ptrdiff_t r = first; r < item.rows; r += W) {
        ptrdiff_t some = item.rows - r < W ? item.rows - r : W;
        store_some(decay + r, exp(load_some(sums.most + r, some) - load_some(after + r, some)), some);
    }
    for (ptrdiff_t r = first; r < item.rows; r++) {
        vf total = {};
        for (ptrdiff_t n = 0; n < vectors; n++) {
            vf weight = exp(load<vf>(scores + r * TILE + n * W) - after[r]);
            store(scores + r * TILE + n * W, weight);
            total += weight;
        }
        sums.total[r] = sums.total[r] * decay[r] + sum(total);
        sums.most[r] = after[r];
    }
}

// The sums over positions from .. to; `from` is a multiple of STRETCH, q holds the item's rows one after the other.
template <class T, class X>
void attend(const Attention& a, const Item& item, const X* q, ptrdiff_t from, ptrdiff_t to, Sums sums) {
    const Shape shape(a);
    const ptrdiff_t d = a.head_dim, width = shape.width;
    for (ptrdiff_t r = 0; r < item.rows; r++) sums.most[r] = -__builtin_inff(), sums.total[r] = 0;
    std::memset(sums.values, 0, item.rows * width * sizeof(float));
    alignas(64) float scores[MANY_ROWS * TILE];
    float decay[MANY_ROWS + W];
    const T *keys[TILE], *values[TILE];
    for (ptrdiff_t tile = from; tile < to; tile += TILE) {
        const ptrdiff_t count = to - tile < TILE ? to - tile : TILE;
        locate(a, item, tile, count, keys, values);
        const ptrdiff_t first = tile > item.position ? (tile - item.position) * shape.group : 0;
        for (ptrdiff_t t = 0; t < count; t += W)
            for (ptrdiff_t r = first; r < item.rows; r += MAX_ROWS) {
                int rows = item.rows - r < MAX_ROWS ? int(item.rows - r) : MAX_ROWS;
                auto run = score_of<T, X>(rows, std::make_integer_sequence<int, MAX_ROWS>());
                run(q + r * d, d, keys + t, scores + r * TILE + t);
            }
        soften(a, item, tile, count, first, scores, sums, decay);
        for (ptrdiff_t r = first; r < item.rows; r += PV_ROWS) {
            int rows = item.rows - r < PV_ROWS ? int(item.rows - r) : PV_ROWS;
            const float* weights = scores + r * TILE;
            float* to_values = sums.values + r * width;
            ptrdiff_t at = 0;
            auto two = weigh_of<T, 2>(rows, std::make_integer_sequence<int, PV_ROWS>());
            auto one = weigh_of<T, 1>(rows, std::make_integer_sequence<int, PV_ROWS>());
            for (; at + 2 * W <= d; at += 2 * W) two(weights, values, count, at, W, decay + r, to_values + at, width);
            for (; at < d; at += W) {
                int lanes = d - at < W ? int(d - at) : W;
                one(weights, values, count, at, lanes, decay + r, to_values + at, width);
            }
        }
    }
}

// sums += part, of rows that part has seen tokens for.
void merge(const Shape& shape, ptrdiff_t rows, Sums sums, Sums part) {
    for (ptrdiff_t r = 0; r < rows; r++) {
        if (part.total[r] == 0) continue;
        float most = sums.most[r] > part.most[r] ? sums.most[r] : part.most[r];
        float keep = exp(splat(sums.most[r] - most))[0], take = exp(splat(part.most[r] - most))[0];
        for (ptrdiff_t i = r * shape.width; i < (r + 1) * shape.width; i += W)
            store(sums.values + i, load<vf>(sums.values + i) * keep + load<vf>(part.values + i) * take);
        sums.total[r] = sums.total[r] * keep + part.total[r] * take;
        sums.most[r] = most;
    }
}

template <class T>
void finish(const Attention& a, const Item& item, Sums sums) {
    const Shape shape(a);
    for (ptrdiff_t r = 0; r < item.rows; r++) {
        ptrdiff_t head = item.kv_head * shape.group + r % shape.group;
        T* to = static_cast<T*>(a.out) + ((item.token + r / shape.group) * a.heads + head) * a.head_dim;
        for (ptrdiff_t i = 0; i < a.head_dim; i += W) {
            vf value = load<vf>(sums.values + r * shape.width + i) / sums.total[r];
            put(to + i, value, lanes_of(a.head_dim, i));
        }
    }
}

// The item's queries, row after row.
template <class T, class X>
const X* gather(const Attention& a, const Item& item) {
    const ptrdiff_t group = Shape(a).group, d = a.head_dim;
    T* rows = scratch<T>(1, item.rows * d);
    for (ptrdiff_t i = 0; i < item.rows / group; i++) {
        const T* from = static_cast<const T*>(a.q) + (item.token + i) * a.q_stride + item.kv_head * group * d;
        std::memcpy(rows + i * group * d, from, group * d * sizeof(T));
    }
    return as_operand<T, X>(rows, item.rows * d, 0);
}

ptrdiff_t end_of(const Attention& a, const Item& item, ptrdiff_t stretch) {
    ptrdiff_t end = item.position + item.rows / Shape(a).group;
    return end < (stretch + 1) * STRETCH ? end : (stretch + 1) * STRETCH;
}

// All items of a step; returns how many there are, `parts` becomes the number of stretches that are shared out.
ptrdiff_t plan(const Attention& a, Item* items, ptrdiff_t* parts) {
    const ptrdiff_t group = Shape(a).group;
    const ptrdiff_t most = MANY_ROWS / group < 1 ? 1 : MANY_ROWS / group;  // queries in an item
    ptrdiff_t count = 0, token = 0;
    *parts = 0;
    for (ptrdiff_t seq = 0; seq < a.num_seqs; seq++) {
        const ptrdiff_t length = a.query_lens[seq], start = a.context_lens[seq] - length;
        for (ptrdiff_t query = 0; query < length; query += most) {
            const ptrdiff_t queries = length - query < most ? length - query : most, rows = queries * group;
            const ptrdiff_t stretches = (start + query + queries + STRETCH - 1) / STRETCH;
            const bool is_shared = rows <= FEW_ROWS && stretches > 1;
            for (ptrdiff_t head = 0; head < a.kv_heads; head++, count++) {
                if (items) items[count] = {seq, head, token + query, start + query, rows, *parts, is_shared ? stretches : 1};
                *parts += is_shared ? stretches : 1;
            }
        }
        token += length;
    }
    return count;
}

template <class T>
void write(const Attention& a, ptrdiff_t token) {
    const ptrdiff_t size = a.kv_heads * a.head_dim;
    auto copy = [&](void* cache, const void* from, ptrdiff_t stride) {
        std::memcpy(static_cast<T*>(cache) + a.slots[token] * size, static_cast<const T*>(from) + token * stride,
                    size * sizeof(T));
    };
    copy(a.keys, a.k, a.k_stride);
    copy(a.values, a.v, a.v_stride);
}

// Part `part` of an item: one stretch of a context that is shared out, else all of them.
template <class T>
void run(const Attention& a, const Item& item, ptrdiff_t part, float* shared) {
    using X = typename Operand<T>::type;
    const Shape shape(a);
    const X* q = gather<T, X>(a, item);
    const ptrdiff_t floats = shape.floats(item.rows);
    if (item.stretches > 1) {
        ptrdiff_t stretch = part - item.first;
        attend<T>(a, item, q, stretch * STRETCH, end_of(a, item, stretch), shape.sums(shared, item.rows));
        return;
    }
    float* own = scratch<float>(2, 2 * floats);
    Sums sums = shape.sums(own, item.rows), next = shape.sums(own + floats, item.rows);
    for (ptrdiff_t stretch = 0; stretch == 0 || end_of(a, item, stretch) > stretch * STRETCH; stretch++) {
        attend<T>(a, item, q, stretch * STRETCH, end_of(a, item, stretch), stretch ? next : sums);
        if (stretch) merge(shape, item.rows, sums, next);
    }
    finish<T>(a, item, sums);
}

template <class T>
void attention(const Attention& a) {
    ptrdiff_t parts;
    const ptrdiff_t count = plan(a, nullptr, &parts);
    const Shape shape(a);
    const ptrdiff_t slice = shape.floats(FEW_ROWS);
    Item* items = scratch<Item>(3, count);
    plan(a, items, &parts);
    float* shared = parts > count ? scratch<float>(4, parts * slice) : nullptr;
#pragma omp parallel num_threads(a.threads)
    {
#pragma omp for schedule(static)
        for (ptrdiff_t token = 0; token < a.num_tokens; token++) write<T>(a, token);
#pragma omp for schedule(dynamic)
        for (ptrdiff_t part = 0; part < parts; part++) {
            ptrdiff_t low = 0, high = count;  // the last item that begins at or before this part
            while (high - low > 1) (items[(low + high) / 2].first <= part ? low : high) = (low + high) / 2;
            run<T>(a, items[low], part, shared + part * slice);
        }
#pragma omp for schedule(dynamic)
        for (ptrdiff_t i = 0; i < count; i++) {
            const Item& item = items[i];
            if (item.stretches == 1) continue;
            Sums sums = shape.sums(shared + item.first * slice, item.rows);
            for (ptrdiff_t stretch = 1; stretch < item.stretches; stretch++)
                merge(shape, item.rows, sums, shape.sums(shared + (item.first + stretch) * slice, item.rows));
            finish<T>(a, item, sums);
        }
    }
}

}  // namespace tri

// head_dim times the size of an element is a multiple of 16, heads of kv_heads.
EXPORT void tri_attention_bf16(const tri::Attention* a) { tri::attention<tri::bf16>(*a); }
EXPORT void tri_attention_f32(const tri::Attention* a) { tri::attention<float>(*a); }
