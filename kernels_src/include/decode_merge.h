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
// A wave takes them, WIDTH columns a lane, and adds in the order of the parts: the same, whichever block is last. The
// maximum is that of the parts so far, so that all of a part comes from memory at once, and AT_ONCE parts.
template <int AT_ONCE, int ROWS>
__device__ inline void merge(MergedRow (&rows)[ROWS], int count, int splits) {
    constexpr int MOST = VALUE_DIM / WAVE_SIZE, WIDTH = VALUE_DIM % 4 == 0 && MOST >= 4 ? 4
                                                        : VALUE_DIM % 2 == 0 && MOST >= 2 ? 2 : 1;
    for (int first = 0; first < VALUE_DIM; first += WAVE_SIZE * WIDTH) {
        const int column = first + lane_index() * WIDTH;
        const bool mine = column < VALUE_DIM;
        float shift[ROWS], total[ROWS] = {}, sum[ROWS][WIDTH] = {};
#pragma unroll
        for (int r = 0; r < ROWS; ++r) shift[r] = -INF;
        for (int s = 0; s < splits; s += AT_ONCE) {
            float lse[AT_ONCE][ROWS], x[AT_ONCE][ROWS][WIDTH];
#pragma unroll
            for (int i = 0; i < AT_ONCE; ++i)
#pragma unroll
                for (int r = 0; r < ROWS; ++r) {
                    const int part = min(s + i, splits - 1);
                    lse[i][r] = s + i < splits ? rows[r].lse[part] : -INF;
                    load_vector(x[i][r], rows[r].parts + static_cast<i64>(part) * VALUE_DIM + (mine ? column : 0));
                }
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                float highest = shift[r];
#pragma unroll
                for (int i = 0; i < AT_ONCE; ++i) highest = fmaxf(highest, lse[i][r]);
                const float base = highest == -INF ? 0.0f : highest;  // no part so far saw a key: all weights are 0
                const float factor = exp2_fast(shift[r] - base);
                shift[r] = highest;
                total[r] *= factor;
#pragma unroll
                for (int e = 0; e < WIDTH; ++e) sum[r][e] *= factor;
#pragma unroll
                for (int i = 0; i < AT_ONCE; ++i) {
                    const float weight = exp2_fast(lse[i][r] - base);
                    total[r] += weight;
#pragma unroll
                    for (int e = 0; e < WIDTH; ++e)
                        sum[r][e] = lse[i][r] == -INF ? sum[r][e] : fmaf(weight, x[i][r][e], sum[r][e]);
                }
            }
        }
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const float factor = total[r] == 0.0f ? 0.0f : 1.0f / total[r];
#pragma unroll
            for (int e = 0; e < WIDTH; ++e)
                if (mine && r < count) rows[r].out[column + e] = static_cast<scalar>(sum[r][e] * factor);
            rows[r].log2_sum = log2f(total[r]) + (shift[r] == -INF ? 0.0f : shift[r]);
        }
    }
}
