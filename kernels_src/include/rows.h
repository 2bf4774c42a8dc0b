// How the threads of a grid share a [rows, columns] array, for kernels that treat each element alone.
//
// ROW_THREADS neighbouring threads take a row together, VECTOR elements each at a time; p.blocks_per_row blocks
// share one row. So a contiguous array is one long row, and a block takes several short rows at once.
//
//     const Share share = share_rows(p.blocks_per_row);
//     for (i64 row = share.row; row < p.rows; row += share.row_step)
//         for (i64 column = share.column; column < p.columns; column += share.column_step)
#pragma once

#include "types.h"

static_assert(BLOCK % ROW_THREADS == 0, "a block takes whole rows");

struct Share {
    i64 row, row_step;
    i64 column, column_step;
};

__device__ inline Share share_rows(unsigned blocks_per_row) {
    constexpr int ROWS = BLOCK / ROW_THREADS;
    const unsigned group = blockIdx.x / blocks_per_row, groups = gridDim.x / blocks_per_row;
    const unsigned part = blockIdx.x % blocks_per_row;
    return {
        static_cast<i64>(group) * ROWS + threadIdx.x / ROW_THREADS,
        static_cast<i64>(groups) * ROWS,
        (static_cast<i64>(part) * ROW_THREADS + threadIdx.x % ROW_THREADS) * VECTOR,
        static_cast<i64>(blocks_per_row) * ROW_THREADS * VECTOR,
    };
}
