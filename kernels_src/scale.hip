// scale_inplace: x *= factor.
//
// x: [rows, columns] of `scalar`, rows `stride` elements apart; a contiguous array is one row. The product is
// formed in float32 and rounded once. Elements between the rows are not touched.
//
// Bound by memory: each element is read and written once, VECTOR of them (16 bytes where alignment allows) an
// access. VECTOR elements at a multiple of VECTOR in a row are aligned.
#include "rows.h"

extern "C" __global__ __launch_bounds__(BLOCK) void scale_inplace(const ScaleParams p) {
    const Share share = share_rows(p.row_shift, p.blocks_per_row);
    for (i64 row = share.row; row < p.rows; row += share.row_step) {
        scalar* x = static_cast<scalar*>(p.x) + row * p.stride;
        for (i64 column = share.column; column < p.columns; column += share.column_step) {
            float values[VECTOR];
            load_row(values, x, column, p.columns, 0.0f);
#pragma unroll
            for (int e = 0; e < VECTOR; ++e) values[e] *= p.factor;
            store_row(values, x, column, p.columns);
        }
    }
}
