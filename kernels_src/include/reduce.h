// Reductions over a block of THREADS threads: within each wave by shuffles, between the waves through LDS.
//
// Every thread of the block calls, and gets the result, the same bits in each. `scratch` is LDS for one float per
// wave; reductions may share it.
#pragma once

#include "wave.h"

template <int THREADS, typename Combine>
__device__ inline float across_waves(float x, float* scratch, Combine combine) {
    static_assert(THREADS % WAVE_SIZE == 0, "a block is made of whole waves");
    constexpr int WAVES = THREADS / WAVE_SIZE;
    if constexpr (WAVES > 1) {
        __syncthreads();  // an earlier reduction may still be reading
        if (threadIdx.x % WAVE_SIZE == 0) scratch[threadIdx.x / WAVE_SIZE] = x;
        __syncthreads();
        x = scratch[0];
#pragma unroll
        for (int wave = 1; wave < WAVES; ++wave) x = combine(x, scratch[wave]);
    }
    return x;
}

template <int THREADS>
__device__ inline float block_max(float x, float* scratch) {
    return across_waves<THREADS>(wave_max(x), scratch, [](float a, float b) { return fmaxf(a, b); });
}

template <int THREADS>
__device__ inline float block_sum(float x, float* scratch) {
    return across_waves<THREADS>(wave_sum(x), scratch, [](float a, float b) { return a + b; });
}
