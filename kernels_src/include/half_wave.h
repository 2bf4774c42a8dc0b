// A query that two lanes share, L % 16 and L % 16 + 16 of a wave of 32: what they say to each other.
#pragma once

#include "flash_block.h"

static_assert(WAVE_SIZE == 32);

__device__ inline int lane_column() { return lane_index() % 16; }
__device__ inline int lane_half() { return lane_index() / 16; }

// What the other lane has.
__device__ inline unsigned other_half(unsigned x) {
    return __builtin_amdgcn_permlanex16(x, x, 0x76543210, 0xfedcba98, false, true);
}
__device__ inline float other_half(float x) {
    return __builtin_bit_cast(float, other_half(__builtin_bit_cast(unsigned, x)));
}

__device__ inline float row_max(float x) { return fmaxf(x, other_half(x)); }
__device__ inline float row_sum(float x) { return x + other_half(x); }
__device__ inline bool leads_row() { return lane_half() == 0; }
