// How one result is made of what flash_decode's blocks gave for parts of the keys: by the last of them to come to its
// end, so that no launch more is needed. (CUDA C++ Programming Guide, "Memory Fence Functions".)
#pragma once

#include "flash_block.h"
#include "wave.h"

// Whether this block is the last of `count` that take a ticket. What they wrote before is there for it to read. The
// ticket is 0 before and after. `flag` lies in LDS.
__device__ inline bool comes_last(unsigned* ticket, unsigned count, int& flag) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        const bool last = atomicAdd(ticket, 1u) == count - 1;
        if (last) *ticket = 0;
        flag = last;
    }
    __syncthreads();
    if (!flag) return false;
    __threadfence();
    return true;
}

// A row of the result, and of what the parts gave for it: `parts` [splits, VALUE_DIM] are their results, `lse` [splits]
// the logarithms, to base 2, of their totals; a part that saw no key has -inf there.
struct MergedRow {
    const float *parts, *lse;
    scalar* out;
    float log2_sum;  // the logarithm of the row's total, when it is merged
};

// Writes ROWS rows, of which `count` exist. With weights w = 2^(lse - max):
//     out = sum w part / sum w, and the logarithm to base 2 of the row's total is log2(sum w) + max
// A wave takes them, WIDTH columns a lane, and adds in the order of the parts: the same, whichever block is last.
// ROWS x 4 parts come from memory at once.
template <int ROWS>
__device__ inline void merge(MergedRow (&rows)[ROWS], int count, int splits) {
    constexpr int MOST = VALUE_DIM / WAVE_SIZE, WIDTH = VALUE_DIM % 4 == 0 && MOST >= 4 ? 4
                                                        : VALUE_DIM % 2 == 0 && MOST >= 2 ? 2 : 1;
    float shift[ROWS], total[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) shift[r] = -INF;
    for (int s = lane_index(); s < splits; s += WAVE_SIZE)
#pragma unroll
        for (int r = 0; r < ROWS; ++r) shift[r] = fmaxf(shift[r], rows[r].lse[s]);
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        shift[r] = wave_max(shift[r]);
        shift[r] = shift[r] == -INF ? 0.0f : shift[r];
    }
    for (int first = 0; first < VALUE_DIM; first += WAVE_SIZE * WIDTH) {
        const int column = first + lane_index() * WIDTH;
        const bool mine = column < VALUE_DIM;
        i64 at = mine ? column : 0;
        float sum[ROWS][WIDTH] = {};
#pragma unroll
        for (int r = 0; r < ROWS; ++r) total[r] = 0.0f;
#pragma unroll 4
        for (int s = 0; s < splits; ++s, at += VALUE_DIM)
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                float x[WIDTH];
                load_vector(x, rows[r].parts + at);
                const float weight = exp2_fast(rows[r].lse[s] - shift[r]);
                total[r] += weight;
#pragma unroll
                for (int e = 0; e < WIDTH; ++e) sum[r][e] = weight == 0.0f ? sum[r][e] : fmaf(weight, x[e], sum[r][e]);
            }
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const float factor = total[r] == 0.0f ? 0.0f : 1.0f / total[r];
#pragma unroll
            for (int e = 0; e < WIDTH; ++e)
                if (mine && r < count) rows[r].out[column + e] = static_cast<scalar>(sum[r][e] * factor);
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r) rows[r].log2_sum = log2f(total[r]) + shift[r];
}
