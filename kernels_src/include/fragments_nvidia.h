// What mma.sync and wgmma share (PTX ISA, "Matrix fragments for mma.m16n8k16"): an accumulator tile has 16 rows and 8
// columns, of which lane L holds rows L / 4 and L / 4 + 8, columns 2 (L % 4) and the next.
#pragma once

#include "flash_block.h"
#include "ptx.h"

constexpr int QK_COLUMNS = (HEAD_DIM + 15) / 16 * 16, V_COLUMNS = (VALUE_DIM + 15) / 16 * 16;
static_assert(WAVE_SIZE == 32 && WAVE_ROWS % 16 == 0 && BLOCK_N % 16 == 0);

// Over the lanes that share a row.
__device__ inline float row_max(float x) {
    x = fmaxf(x, __shfl_xor(x, 1));
    return fmaxf(x, __shfl_xor(x, 2));
}
__device__ inline float row_sum(float x) {
    x += __shfl_xor(x, 1);
    return x + __shfl_xor(x, 2);
}
__device__ inline bool leads_row() { return lane_index() % 4 == 0; }

// WIDTH columns of the wave's rows.
template <int WIDTH>
struct Accumulators {
    static constexpr int ROWS = WAVE_ROWS / 8, EACH = WIDTH / 4;
    float at[ROWS / 2][WIDTH / 8][4];

    __device__ void clear() {
#pragma unroll
        for (int r = 0; r < ROWS; ++r)
#pragma unroll
            for (int n = 0; n < EACH; ++n) set(r, n, 0.0f);
    }
    __device__ float get(int r, int n) const { return at[r / 2][n / 2][r % 2 * 2 + n % 2]; }
    __device__ void set(int r, int n, float x) { at[r / 2][n / 2][r % 2 * 2 + n % 2] = x; }
    __device__ void scale(int r, float factor) {
#pragma unroll
        for (int n = 0; n < EACH; ++n) set(r, n, get(r, n) * factor);
    }
    __device__ static int row(int r) { return r / 2 * 16 + r % 2 * 8 + lane_index() / 4; }
    __device__ static int place(int n) { return n / 2 * 8 + lane_index() % 4 * 2 + n % 2; }
};

struct Scores : Accumulators<BLOCK_N> {
    static constexpr int KEYS = EACH;
    __device__ static int key(int n) { return place(n); }
};
