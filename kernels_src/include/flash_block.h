// A block's threads, and rows in memory.
#pragma once

#include "hints.h"
#include "types.h"

constexpr int BLOCK_M = ROW_WAVES * WAVE_ROWS;  // the other waves only bring keys
constexpr int THREADS = WAVES * WAVE_SIZE;

// What keys and values are stored as, if no header in front says otherwise (cache_e4m3.h). A layer's tiles are of
// `scalar`, or float.
#ifndef CACHE_E4M3
using cache_scalar = scalar;
__device__ inline float as_float(cache_scalar x) { return static_cast<float>(x); }
#endif
constexpr bool QUANTISED = !same<cache_scalar, scalar>;

// Rows of a tensor, evenly spaced. Other kinds of rows say how many of `count`, which begin at a multiple of it, are
// spaced by `stride`: even_run(count) of them, from each multiple of that on. PAGES: a table says where they are.
template <class T>
struct EvenRows {
    static constexpr bool EVEN = true, PAGES = false;
    __device__ static constexpr int even_run(int count) { return count; }
    const T* base;
    i64 stride;

    __device__ const T* at(int row) const { return base + row * stride; }
    // Of a row that is the same for all threads.
    __device__ const T* common_at(int row) const { return common_address(at(row)); }
};

__device__ inline int wave_index() { return threadIdx.x / WAVE_SIZE; }
__device__ inline int lane_index() { return threadIdx.x % WAVE_SIZE; }

// All threads of the block see what any of them wrote to LDS. What is on its way from memory stays on it, which
// __syncthreads would wait for on some chips.
__device__ inline void lds_barrier() {
#if defined(__AMDGCN__)
    __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup", "local");
    __builtin_amdgcn_s_barrier();
    __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup", "local");
#else
    __syncthreads();
#endif
}
