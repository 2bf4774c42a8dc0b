// activation: out = f(x + bias) * up; without BIAS no bias, without GATED no factor.
//
// x, up, out: [rows, columns] of `scalar`, rows `x_stride`, `up_stride` and `out_stride` elements apart; out may be x
// or up where the stride is the same. bias: [columns] of `bias_scalar`. Arithmetic in float32. f is
//     SILU       x / (1 + exp(-x)); times `up` it is SwiGLU
//     GELU       x/2 * (1 + erf(x / sqrt(2))), as x/2 * erfc(-x / sqrt(2)): no digits are lost below 0
//     GELU_TANH  x/2 * (1 + tanh(u)) with u = sqrt(2 / pi) * (x + 0.044715 x^3), as x / (1 + exp(-2u))
// All are 0 (negative) below -100, where they are less than the least float, and so at -inf, where they would be NaN.
//
// Bound by memory: each element is read and written once, VECTOR of them an access.
#include "rows.h"

static_assert(KIND >= 0 && KIND < 3, "silu, gelu, gelu_tanh");
constexpr bool SILU = KIND == 0, GELU = KIND == 1;

__device__ inline float activate(float x) {
    if (x < -100.0f) return -0.0f;
    if constexpr (SILU) return x / (1.0f + expf(-x));
    else if constexpr (GELU) return 0.5f * x * erfcf(x * -0.70710678118654752440f);
    else return x / (1.0f + expf(-1.59576912160573071176f * (x + 0.044715f * x * x * x)));
}

extern "C" __global__ __launch_bounds__(BLOCK) void activation(const ActivationParams p) {
    const Share share = share_rows(p.row_shift, p.blocks_per_row);
    for (i64 row = share.row; row < p.rows; row += share.row_step) {
        const scalar* x = static_cast<const scalar*>(p.x) + row * p.x_stride;
        const scalar* up = static_cast<const scalar*>(p.up) + row * p.up_stride;
        scalar* out = static_cast<scalar*>(p.out) + row * p.out_stride;
        for (i64 column = share.column; column < p.columns; column += share.column_step) {
            float values[VECTOR], other[VECTOR];
            load_row(values, x, column, p.columns, 0.0f);
            if constexpr (BIAS) {
                load_row(other, static_cast<const bias_scalar*>(p.bias), column, p.columns, 0.0f);
#pragma unroll
                for (int e = 0; e < VECTOR; ++e) values[e] += other[e];
            }
#pragma unroll
            for (int e = 0; e < VECTOR; ++e) values[e] = activate(values[e]);
            if constexpr (GATED) {
                load_row(other, up, column, p.columns, 0.0f);
#pragma unroll
                for (int e = 0; e < VECTOR; ++e) values[e] *= other[e];
            }
            store_row(values, out, column, p.columns);
        }
    }
}
