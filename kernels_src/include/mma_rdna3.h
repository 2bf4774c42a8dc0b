// The layer over RDNA3's WMMA: gfx1100 to gfx1103, gfx1150 to gfx1153.
//
// Operands, lane = L: A[i][k], B[k][j]: i, j = L % 16, k = e, e < 16: lanes 16 to 31 repeat lanes 0 to 15.
// C[i][j]: j = L % 16, i = 2 r + L / 16.
#pragma once

#include "half_wave.h"
#include "tile_rows.h"

using Fragment = scalar __attribute__((ext_vector_type(16)));
using Accumulator = float __attribute__((ext_vector_type(8)));

constexpr int LARGEST_HELD = 128;  // head_dim: that of queries in registers

__device__ inline Fragment join(Eight low, Eight high) {
    return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}

// An operand of which `eight` gives the elements from k on.
template <class F>
__device__ inline Fragment gather(F eight) {
    return join(eight(0), eight(8));
}

// Rows of A lie so in LDS that row 2 r + h of the product is row 8 h + r of 16.
struct RowOrder {
    __device__ static int place(int row) { return row / 16 * 16 + row % 8 * 2 + row / 8 % 2; }
};

// c + a b. A template, so that only the branch that is taken is looked at.
template <class Fragment>
__device__ inline Accumulator multiply(Fragment a, Fragment b, Accumulator c) {
    using Short16 = short __attribute__((ext_vector_type(16)));
    if constexpr (same<scalar, f16>) return __builtin_amdgcn_wmma_f32_16x16x16_f16_w32(a, b, c);
    else
        return __builtin_amdgcn_wmma_f32_16x16x16_bf16_w32(__builtin_bit_cast(Short16, a),
                                                           __builtin_bit_cast(Short16, b), c);
}

// lane_half() == 1, in a register of its own for every use: two selections at once take it from there only.
__device__ inline bool in_upper_half() {
#if defined(SIM_ARCH)
    return lane_half() == 1;
#else
    unsigned lanes = 0xffff0000;
    HINT_HERE("" : "+s"(lanes));
    return __builtin_amdgcn_inverse_ballot_w32(lanes);
#endif
}

// The 16 weights of the lane's query, of which it holds 8 and the other lane 8.
__device__ inline Fragment as_operand(Eight own) {
    using Words = unsigned __attribute__((ext_vector_type(4)));
    const Words mine = __builtin_bit_cast(Words, own);
    Words theirs, low, high;
    const bool upper = in_upper_half();
#pragma unroll
    for (int i = 0; i < 4; ++i) theirs[i] = other_half(mine[i]);
#pragma unroll
    for (int i = 0; i < 4; ++i) low[i] = upper ? theirs[i] : mine[i];
#pragma unroll
    for (int i = 0; i < 4; ++i) high[i] = upper ? mine[i] : theirs[i];
    return join(__builtin_bit_cast(Eight, low), __builtin_bit_cast(Eight, high));
}

#include "mma_wmma.h"
