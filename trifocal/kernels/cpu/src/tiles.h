// The tiles of AMX: 16 rows of activations meet 16 outputs, 64 bytes of inputs of each at a time.
#pragma once

#include "common.h"

#if defined(__AMX_TILE__)
#define TRI_TILES

namespace tri {

constexpr ptrdiff_t LINE = 64;  // bytes of a row of a tile, and of a line of memory
constexpr int SIDE = 16;        // rows of a tile, and 32-bit words of a row
constexpr ptrdiff_t TILE_SIZE = SIDE * LINE, SUMS_OF_TILE = SIDE * SIDE;

// The compiler's own intrinsics do not say that they read and write memory.

template <int T>
inline void tile_load(const void* at, ptrdiff_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(at), "r"(stride), "i"(T) : "memory");
}
template <int T>
inline void tile_store(void* at, ptrdiff_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(at), "r"(stride), "i"(T) : "memory");
}
template <int T>
inline void tile_zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(T));
}
inline void zero_sums() { tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>(); }

// What tiles hold: pairs of bfloat16 summed as float, or activations int8 and weights uint8 summed as int32.
struct Bf16Tiles {
    using Sum = float;
    template <int C, int A, int B>
    static void multiply() {
        asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
    }
};
struct Int8Tiles {
    using Sum = int32_t;
    template <int C, int A, int B>
    static void multiply() {
        asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
    }
};

// The tiles of this thread: 0 .. 3 are sums, 4 and 5 activations of the first and the second 16 rows, 6 and 7 weights; of
// 16 rows and fewer 5 is one of weights. When it ends the system need not save them any more.
class Tiles {
public:
    ~Tiles() { asm volatile("tilerelease"); }

    // From now on there are so many rows of activations, 1 to 32. All tiles become zero if there were others.
    void shape(int rows) {
        if (rows == rows_) return;
        rows_ = rows;
        struct alignas(64) {
            uint8_t palette = 1, start = 0, reserved[14] = {};
            uint16_t bytes[16] = {};
            uint8_t rows[16] = {};
        } shapes;
        const int first = rows < SIDE ? rows : SIDE, second = rows > SIDE ? rows - SIDE : first;
        const int each[8] = {first, first, second, second, first, rows > SIDE ? second : SIDE, SIDE, SIDE};
        for (int t = 0; t < 8; t++) shapes.bytes[t] = LINE, shapes.rows[t] = uint8_t(each[t]);
        asm volatile("ldtilecfg %0" ::"m"(shapes) : "memory");
    }

private:
    int rows_ = 0;
};

}  // namespace tri

#endif
