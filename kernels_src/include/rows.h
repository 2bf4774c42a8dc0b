// How the threads of a grid share a [rows, columns] array, for kernels that treat each element alone.
//
// 2^row_shift neighbouring threads take a row together, VECTOR elements each at a time; blocks_per_row blocks share
// one row. So a contiguous array is one long row, and a block takes several short rows at once. Both numbers are
// arguments and not constants: they change with the shape, and a kernel is compiled for a dtype.
//
//     const Share share = share_rows(p.row_shift, p.blocks_per_row);
//     for (i64 row = share.row; row < p.rows; row += share.row_step)
//         for (i64 column = share.column; column < p.columns; column += share.column_step)
#pragma once

#include "types.h"

struct Share {
    i64 row, row_step;
    i64 column, column_step;
};

// Among blocks that have numbers of their own.
__device__ inline Share share_rows(unsigned row_shift, unsigned blocks_per_row, unsigned block, unsigned blocks) {
    const unsigned row_threads = 1u << row_shift, rows = BLOCK >> row_shift;
    const unsigned group = block / blocks_per_row, groups = blocks / blocks_per_row;
    const unsigned part = block % blocks_per_row;
    return {
        static_cast<i64>(group) * rows + (threadIdx.x >> row_shift),
        static_cast<i64>(groups) * rows,
        (static_cast<i64>(part) * row_threads + (threadIdx.x & (row_threads - 1))) * VECTOR,
        static_cast<i64>(blocks_per_row) * row_threads * VECTOR,
    };
}

__device__ inline Share share_rows(unsigned row_shift, unsigned blocks_per_row) {
    return share_rows(row_shift, blocks_per_row, blockIdx.x, gridDim.x);
}
