// How one result is made of what flash_decode's blocks gave for parts of the keys: by the last of them to come to its
// end, so that no launch more is needed. (Thread fence reduction: CUDA C++ Programming Guide, "Memory Fence Functions".)
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

// Writes a row of the result. `parts` [splits, VALUE_DIM] are the parts' results, `part_lse` [splits] the logarithms, to
// base 2, of their totals; a part that saw no key has -inf there. With weights w = 2^(part_lse - max):
//     out = sum w part / sum w, and the logarithm to base 2 of the row's total, which is returned, log2(sum w) + max
// A wave takes the row, WIDTH columns a lane, and adds in the order of the parts: the same, whichever block is last.
template <class T>
__device__ inline float merge_row(const float* parts, const float* part_lse, int splits, T* out) {
    constexpr int MOST = VALUE_DIM / WAVE_SIZE, WIDTH = VALUE_DIM % 4 == 0 && MOST >= 4 ? 4
                                                        : VALUE_DIM % 2 == 0 && MOST >= 2 ? 2 : 1;
    float highest = -INF;
    for (int s = lane_index(); s < splits; s += WAVE_SIZE) highest = fmaxf(highest, part_lse[s]);
    highest = wave_max(highest);
    const float shift = highest == -INF ? 0.0f : highest;
    float total = 0.0f;
    for (int first = 0; first < VALUE_DIM; first += WAVE_SIZE * WIDTH) {
        const int column = first + lane_index() * WIDTH;
        const bool mine = column < VALUE_DIM;
        const float* part = parts + (mine ? column : 0);
        float sum[WIDTH] = {};
        total = 0.0f;
#pragma unroll 8
        for (int s = 0; s < splits; ++s, part += VALUE_DIM) {
            float x[WIDTH];
            load_vector(x, part);
            const float weight = exp2f(part_lse[s] - shift);
            total += weight;
#pragma unroll
            for (int e = 0; e < WIDTH; ++e) sum[e] = weight == 0.0f ? sum[e] : fmaf(weight, x[e], sum[e]);
        }
        const float factor = total == 0.0f ? 0.0f : 1.0f / total;
        if (mine)
#pragma unroll
            for (int e = 0; e < WIDTH; ++e) out[column + e] = static_cast<T>(sum[e] * factor);
    }
    return log2f(total) + shift;
}
