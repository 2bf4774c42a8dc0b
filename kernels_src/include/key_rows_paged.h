// Where the rows of k and v are in memory: in pages of PAGE_SIZE rows, which a sequence's row of the block table names
// in their order. Only rows that exist have an address: what the table holds past a sequence's last page is not read.
#pragma once

#include "flash_block.h"

#define PAGED

struct KeyRows {
    static constexpr bool EVEN = false, PAGES = true;
    __device__ static constexpr int even_run(int count) {
        return PAGE_SIZE % count == 0 ? count : count % PAGE_SIZE == 0 ? PAGE_SIZE : 1;
    }
    const cache_scalar* base;  // row 0 of page 0
    i64 stride, page_stride;
    const int* table;

    __device__ int page(unsigned row) const { return table[row / PAGE_SIZE]; }
    __device__ const cache_scalar* at(unsigned row, int page) const {
        return base + page * page_stride + row % PAGE_SIZE * stride;
    }
    __device__ const cache_scalar* at(unsigned row) const { return at(row, page(row)); }
    __device__ const cache_scalar* common_at(unsigned row) const { return at(row, common_value(page(row))); }
};
