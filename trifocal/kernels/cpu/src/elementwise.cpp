// Norms, activations and rotary embedding: each rounds where torch's operators would, without their passes over memory.
#include "common.h"

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

inline vf as(const bf16*, vf x) { return rounded(x); }  // what is left of x when it is stored and read again
inline vf as(const float*, vf x) { return x; }

// y = norm(x) * weight; with `delta`, sum = x + scale * delta is stored and normed instead.
template <class T>
void rms_norm(const T* x, ptrdiff_t stride, const T* delta, float scale, const T* weight, float eps, T* total, T* y,
              ptrdiff_t rows, ptrdiff_t size, int threads) {
    for_rows(rows, size, threads, [&](ptrdiff_t row) {
        const T* from = x + row * stride;
        vf squares = {};
        along(size, [&](ptrdiff_t i, int lanes) {
            vf v = get(from + i, lanes);
            if (delta) {
                v = as(x, v + as(x, get(delta + row * size + i, lanes) * scale));
                put(total + row * size + i, v, lanes);
            }
            squares += v * v;
        });
        if (delta) from = total + row * size;
        const float factor = 1 / __builtin_sqrtf(sum(squares) / float(size) + eps);
        along(size, [&](ptrdiff_t i, int lanes) {
            put(y + row * size + i, as(x, get(from + i, lanes) * factor) * get(weight + i, lanes), lanes);
        });
    });
}

// [rows, 2 * size], gates first -> silu(gate) * up.
template <class T>
void silu_and_mul(const T* x, T* y, ptrdiff_t rows, ptrdiff_t size, int threads) {
    for_rows(rows, size, threads, [&](ptrdiff_t row) {
        const T *gate = x + row * 2 * size, *up = gate + size;
        along(size, [&](ptrdiff_t i, int lanes) {
            vf g = get(gate + i, lanes);
            put(y + row * size + i, as(x, g / (1.0f + exp(-g))) * get(up + i, lanes), lanes);
        });
    });
}

// The halves of each head turned against each other; cos and sin [rows, half].
template <class T>
void rotate(const T* x, ptrdiff_t stride, const T* cosines, const T* sines, T* y, ptrdiff_t rows, ptrdiff_t heads,
            ptrdiff_t half, int threads) {
    for_rows(rows, heads * half, threads, [&](ptrdiff_t row) {
        for (ptrdiff_t head = 0; head < heads; head++) {
            const T* from = x + row * stride + head * 2 * half;
            T* to = y + (row * heads + head) * 2 * half;
            along(half, [&](ptrdiff_t i, int lanes) {
                vf first = get(from + i, lanes), second = get(from + half + i, lanes);
                vf c = get(cosines + row * half + i, lanes), s = get(sines + row * half + i, lanes);
                put(to + i, as(x, first * c) - as(x, second * s), lanes);
                put(to + half + i, as(x, second * c) + as(x, first * s), lanes);
            });
        }
    });
}

}  // namespace tri

using tri::bf16;

#define KERNELS(T, NAME)                                                                                               \
    EXPORT void tri_rms_norm_##NAME(const T* x, int64_t stride, const T* delta, float scale, const T* weight,        \
                                    float eps, T* total, T* y, int64_t rows, int64_t size, int32_t threads) {        \
        tri::rms_norm(x, stride, delta, scale, weight, eps, total, y, rows, size, threads);                           \
    }                                                                                                                  \
    EXPORT void tri_silu_and_mul_##NAME(const T* x, T* y, int64_t rows, int64_t size, int32_t threads) {              \
        tri::silu_and_mul(x, y, rows, size, threads);                                                                  \
    }                                                                                                                  \
    EXPORT void tri_rotate_##NAME(const T* x, int64_t stride, const T* cosines, const T* sines, T* y, int64_t rows,  \
                                  int64_t heads, int64_t half, int32_t threads) {                                     \
        tri::rotate(x, stride, cosines, sines, y, rows, heads, half, threads);                                        \
    }

KERNELS(bf16, bf16)
KERNELS(float, f32)

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
