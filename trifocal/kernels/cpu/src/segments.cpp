// Attention of vision towers: not causal, within consecutive segments of a packed sequence.
#include "attend.h"

namespace tri {

struct Segments {
    const void *q, *k, *v;  // [tokens, heads, head_dim], the strides of tokens in elements below
    void* out;              // [tokens, heads, head_dim]
    const int64_t* lengths; // [count]
    int64_t q_stride, k_stride, v_stride;
    int64_t count, heads, head_dim;
    float scale;
    int32_t threads;
};

// Some rows of a segment for one head.
struct Part {
    ptrdiff_t start, length, head, first, rows;  // of the segment; of its rows
};

// All parts; returns how many there are.
ptrdiff_t plan(const Segments& a, Part* parts) {
    ptrdiff_t count = 0, start = 0;
    for (ptrdiff_t i = 0; i < a.count; start += a.lengths[i++])
        for (ptrdiff_t head = 0; head < a.heads; head++)
            for (ptrdiff_t first = 0; first < a.lengths[i]; first += UNIT_ROWS, count++) {
                const ptrdiff_t left = a.lengths[i] - first, rows = left < UNIT_ROWS ? left : UNIT_ROWS;
                if (parts) parts[count] = {start, a.lengths[i], head, first, rows};
            }
    return count;
}

template <class T>
void run(const Segments& a, const Part& part) {
    using X = typename Operand<T>::type;
    const ptrdiff_t d = a.head_dim, width = width_of(d), token = part.start + part.first;
    const ptrdiff_t depth = depth_of<X>(d);
    const T* from = static_cast<const T*>(a.q) + token * a.q_stride + part.head * d;
    const X* rows = gather<T, X>(from, a.q_stride, part.rows, 1, d, depth);
    // All rows see the whole segment.
    const Queries<X> q{rows, part.rows, part.rows, part.length - 1, d, depth, width, a.scale};
    auto where = [&](ptrdiff_t first, ptrdiff_t count, Place<T>& place) {
        for (ptrdiff_t t = 0; t < TILE; t++) {
            const ptrdiff_t at = part.start + first + (t < count ? t : count - 1);
            place.keys[t] = static_cast<const T*>(a.k) + at * a.k_stride + part.head * d;
            place.values[t] = static_cast<const T*>(a.v) + at * a.v_stride + part.head * d;
        }
    };
    Sums sums = sums_at(scratch<float>(SUMS, floats_of(part.rows, width)), part.rows, width);
    attend<T>(q, 0, part.length, where, sums);
    for (ptrdiff_t r = 0; r < part.rows; r++)
        put_row<T, T>(static_cast<T*>(a.out) + ((token + r) * a.heads + part.head) * d, d, width, sums, r);
}

template <class T>
void segments(const Segments& a) {
    const ptrdiff_t count = plan(a, nullptr);
    Part* parts = scratch<Part>(ITEMS, count);
    plan(a, parts);
#pragma omp parallel for schedule(dynamic) num_threads(a.threads)
    for (ptrdiff_t i = 0; i < count; i++) run<T>(a, parts[i]);
}

}  // namespace tri

// head_dim times the size of an element is a multiple of 16.
KERNEL(segments_bf16, tri::Segments, tri::segments<tri::bf16>)
KERNEL(segments_f32, tri::Segments, tri::segments<float>)
