// convert: out = x, from `in_scalar` to `out_scalar`.
//
// x, out: [rows, columns], rows `in_stride` and `out_stride` elements apart; a contiguous array is one row. Rounds
// to nearest even; what is too large becomes infinity, NaN stays NaN. The arrays do not overlap.
//
// Bound by memory: each element is read and written once, VECTOR of them an access.
#include "rows.h"

extern "C" __global__ __launch_bounds__(BLOCK) void convert(const ConvertParams p) {
    const Share share = share_rows(p.row_shift, p.blocks_per_row);
    for (i64 row = share.row; row < p.rows; row += share.row_step) {
        const in_scalar* x = static_cast<const in_scalar*>(p.x) + row * p.in_stride;
        out_scalar* out = static_cast<out_scalar*>(p.out) + row * p.out_stride;
        for (i64 column = share.column; column < p.columns; column += share.column_step) {
            float values[VECTOR];
            load_row(values, x, column, p.columns, 0.0f);
            store_row(values, out, column, p.columns);
        }
    }
}
