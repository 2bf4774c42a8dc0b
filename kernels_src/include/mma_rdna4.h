// The layer over RDNA4's WMMA: gfx1200, gfx1201.
//
// Operands, lane = L: A[i][k], B[k][j]: i, j = L % 16, k = 8 (L / 16) + e, e < 8. C[i][j]: j = L % 16,
// i = 8 (L / 16) + r: an accumulator of the first product is an operand of the second as it is.
#pragma once

#include "half_wave.h"
#include "tile_rows.h"

using Fragment = Eight;
using Accumulator = float __attribute__((ext_vector_type(8)));

constexpr int LARGEST_HELD = 192;  // head_dim: that of queries in registers

// An operand of which `eight` gives the elements from k on.
template <class F>
__device__ inline Fragment gather(F eight) {
    return eight(8 * lane_half());
}

using RowOrder = InOrder;

// c + a b. A template, so that only the branch that is taken is looked at.
template <class Fragment>
__device__ inline Accumulator multiply(Fragment a, Fragment b, Accumulator c) {
    using Short8 = short __attribute__((ext_vector_type(8)));
    if constexpr (same<scalar, f16>) return __builtin_amdgcn_wmma_f32_16x16x16_f16_w32_gfx12(a, b, c);
    else
        return __builtin_amdgcn_wmma_f32_16x16x16_bf16_w32_gfx12(__builtin_bit_cast(Short8, a),
                                                                 __builtin_bit_cast(Short8, b), c);
}

__device__ inline Fragment as_operand(Eight own) { return own; }

#include "mma_wmma.h"
