// add: out = a + b, in float32, rounded once.
//
// a, b, out: [rows, columns] of `scalar`, `other_scalar` and `out_scalar`, rows `a_stride`, `b_stride` and
// `out_stride` elements apart; contiguous arrays are one row, and b_stride is 0 where b is a single row that is added
// to each. out may be a or b where type and stride are the same.
//
// Bound by memory: each element is read and written once, VECTOR of them an access.
#include "rows.h"

extern "C" __global__ __launch_bounds__(BLOCK) void add(const AddParams p) {
    const Share share = share_rows(p.row_shift, p.blocks_per_row);
    for (i64 row = share.row; row < p.rows; row += share.row_step) {
        const scalar* a = static_cast<const scalar*>(p.a) + row * p.a_stride;
        const other_scalar* b = static_cast<const other_scalar*>(p.b) + row * p.b_stride;
        out_scalar* out = static_cast<out_scalar*>(p.out) + row * p.out_stride;
        for (i64 column = share.column; column < p.columns; column += share.column_step) {
            float values[VECTOR], other[VECTOR];
            load_row(values, a, column, p.columns, 0.0f);
            load_row(other, b, column, p.columns, 0.0f);
#pragma unroll
            for (int e = 0; e < VECTOR; ++e) values[e] += other[e];
            store_row(values, out, column, p.columns);
        }
    }
}
