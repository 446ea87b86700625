// Norms, activations and rotary embedding: each rounds where torch's operators would, without their passes over memory.
#include "gate.h"

namespace tri {

constexpr ptrdiff_t SERIAL = 32 << 10;  // elements below which waking threads costs more than they save

// f(i) for rows 0 .. rows, by several threads where it pays.
template <class F>
inline void for_rows(ptrdiff_t rows, ptrdiff_t size, int threads, F f) {
    if (threads == 1 || rows == 1 || rows * size < SERIAL) {
        for (ptrdiff_t i = 0; i < rows; i++) f(i);
        return;
    }
#pragma omp parallel for schedule(static) num_threads(threads)
    for (ptrdiff_t i = 0; i < rows; i++) f(i);
}

// y = norm(x) * weight; with `delta`, sum = x + scale * delta is stored and normed instead.
template <class T>
struct NormArgs {
    const T *x, *delta, *weight;
    T *total, *y;
    int64_t stride, rows, size;  // of x: elements from one row to the next
    float scale, eps;
    int32_t threads;
};

// y = norm(x) * weight, of x whose squares are summed in `squares`, lane by lane.
template <class T>
inline void store_normed(const T* x, vf squares, const T* weight, T* y, ptrdiff_t size, float eps) {
    const float factor = 1 / __builtin_sqrtf(sum(squares) / float(size) + eps);
    along(size, [&](ptrdiff_t i, int lanes) {
        put(y + i, as(x, get(x + i, lanes) * factor) * get(weight + i, lanes), lanes);
    });
}

template <class T>
void rms_norm(const NormArgs<T>& a) {
    for_rows(a.rows, a.size, a.threads, [&](ptrdiff_t row) {
        const T* from = a.x + row * a.stride;
        vf squares = {};
        along(a.size, [&](ptrdiff_t i, int lanes) {
            vf v = get(from + i, lanes);
            if (a.delta) {
                v = as(a.x, v + as(a.x, get(a.delta + row * a.size + i, lanes) * a.scale));
                put(a.total + row * a.size + i, v, lanes);
            }
            squares += v * v;
        });
        if (a.delta) from = a.total + row * a.size;
        store_normed(from, squares, a.weight, a.y + row * a.size, a.size, a.eps);
    });
}

// Heads of each row normed one by one: the first `first` of them with one weight, the others with another.
template <class T>
struct NormHeadsArgs {
    const T *x, *first_weight, *other_weight;
    T* y;
    int64_t stride, rows, heads, first, size;  // of x: elements from one row to the next
    float eps;
    int32_t threads;
};

template <class T>
void norm_heads(const NormHeadsArgs<T>& a) {
    for_rows(a.rows, a.heads * a.size, a.threads, [&](ptrdiff_t row) {
        for (ptrdiff_t head = 0; head < a.heads; head++) {
            const T* from = a.x + row * a.stride + head * a.size;
            vf squares = {};
            along(a.size, [&](ptrdiff_t i, int lanes) {
                vf v = get(from + i, lanes);
                squares += v * v;
            });
            const T* weight = head < a.first ? a.first_weight : a.other_weight;
            store_normed(from, squares, weight, a.y + (row * a.heads + head) * a.size, a.size, a.eps);
        }
    });
}

// [rows, 2 * size], gates first -> silu(gate) * up.
template <class T>
struct SiluArgs {
    const T* x;
    T* y;
    int64_t rows, size;
    int32_t threads;
};

template <class T>
void silu_and_mul(const SiluArgs<T>& a) {
    for_rows(a.rows, a.size, a.threads, [&](ptrdiff_t row) {
        const T *gate = a.x + row * 2 * a.size, *up = gate + a.size;
        along(a.size, [&](ptrdiff_t i, int lanes) {
            put(a.y + row * a.size + i, silu_and_mul(a.x, get(gate + i, lanes), get(up + i, lanes)), lanes);
        });
    });
}

// The halves of each head turned against each other; cos and sin [rows, half].
template <class T>
struct RotateArgs {
    const T *x, *cosines, *sines;
    T* y;
    int64_t stride, rows, heads, half;
    int32_t threads;
};

template <class T>
void rotate(const RotateArgs<T>& a) {
    for_rows(a.rows, a.heads * a.half, a.threads, [&](ptrdiff_t row) {
        for (ptrdiff_t head = 0; head < a.heads; head++) {
            const T* from = a.x + row * a.stride + head * 2 * a.half;
            T* to = a.y + (row * a.heads + head) * 2 * a.half;
            along(a.half, [&](ptrdiff_t i, int lanes) {
                vf first = get(from + i, lanes), second = get(from + a.half + i, lanes);
                vf c = get(a.cosines + row * a.half + i, lanes), s = get(a.sines + row * a.half + i, lanes);
                put(to + i, as(a.x, first * c) - as(a.x, second * s), lanes);
                put(to + a.half + i, as(a.x, second * c) + as(a.x, first * s), lanes);
            });
        }
    });
}

}  // namespace tri

#define KERNELS(NAME, ARGS, CALL)           \
    KERNEL(NAME##_bf16, ARGS<tri::bf16>, CALL) \
    KERNEL(NAME##_f32, ARGS<float>, CALL)

KERNELS(rms_norm, tri::NormArgs, tri::rms_norm)
KERNELS(norm_heads, tri::NormHeadsArgs, tri::norm_heads)
KERNELS(silu_and_mul, tri::SiluArgs, tri::silu_and_mul)
KERNELS(rotate, tri::RotateArgs, tri::rotate)

// Reads memory and does next to nothing with it: what benchmarks call the memory's speed. `bytes` is a multiple of 4096.
EXPORT int32_t tri_read(const char* from, int64_t bytes, int32_t threads) {
    using tri::vi;
    int32_t seen = 0;
#pragma omp parallel for schedule(dynamic, 16) num_threads(threads) reduction(^ : seen)
    for (ptrdiff_t page = 0; page < bytes / 4096; page++) {
        vi mixed[4] = {};
        for (ptrdiff_t i = 0; i < 4096; i += 4 * sizeof(vi))
            for (int n = 0; n < 4; n++) mixed[n] ^= tri::load<vi>(from + page * 4096 + i + n * sizeof(vi));
        mixed[0] ^= mixed[1] ^ mixed[2] ^ mixed[3];
        for (int n = 0; n < tri::W; n++) seen ^= mixed[0][n];
    }
    return seen;
}
