// Which rows a block of flash_decode takes, which part of the keys, and where all of it is in memory. A row is a query
// of one of the GROUP heads that read the same keys, a query's heads side by side: one walk over the keys serves all.
#pragma once

#include "division.h"
#include "flash_block.h"

// Rows of q, from the block's first on.
struct PackedRows {
    static constexpr bool EVEN = false, PAGES = false;
    __device__ static constexpr int even_run(int) { return 1; }
    const scalar* base;  // query 0 of the group's first head
    i64 query_stride, stride;  // `stride`: from head to head
    int first;

    __device__ const scalar* at(int row) const {
        row += first;
        return base + row / GROUP * query_stride + row % GROUP * stride;
    }
};

struct Place {
    int b, h;  // h: the group's first
    int first_row;
    int seq_q, seq_k;
    int split;  // which part of the keys
    PackedRows q;
    KeyRows k, v;
    const bias_scalar* bias;
    const unsigned char* mask;
    const unsigned char* tiles;  // none here
    float scales[2];             // of keys and values, where these are quantised

    __device__ static int query(int row) { return row / GROUP; }
    __device__ static int head(int row) { return row % GROUP; }
    // What keys and values are multiplied by, as they are stored.
    __device__ float k_scale() const { return QUANTISED ? scales[0] : 1.0f; }
    __device__ float v_scale() const { return QUANTISED ? scales[1] : 1.0f; }
    __device__ bool has_sink() const { return split == 0; }
    __device__ int rows() const { return seq_q * GROUP; }
};

__device__ inline KeyRows key_rows(const void* tensor, i64 batch, i64 row, i64 head, const Place& place, int group,
                                   [[maybe_unused]] const FlashDecodeParams& p) {
    const cache_scalar* at = static_cast<const cache_scalar*>(tensor) + group * head;
#if defined(PAGED)
    const int* table = static_cast<const int*>(p.block_table) + place.b * p.table_batch;
    return {at, row, batch, table};  // a page takes the place of a batch entry
#else
    return {at + place.b * batch, row};
#endif
}

// Block (x, y) takes part y of the keys. Heads that read other keys of the same tokens run side by side, whose keys lie
// side by side.
__device__ inline Place find_place(const FlashDecodeParams& p) {
    Place place;
    unsigned rest = blockIdx.x;
    const unsigned row_tiles = p.row_tiles, groups = p.groups;
    place.first_row = 0;
    if (row_tiles > 1) place.first_row = rest % row_tiles * BLOCK_M, rest /= row_tiles;  // a division takes long
    place.b = Divisor{groups, p.groups_reciprocal, p.groups_shift}.divide(rest);
    const int group = rest - place.b * groups;
    place.split = SPLIT ? blockIdx.y : 0;
    place.h = group * GROUP;
    place.seq_q = p.seq_q;
    place.seq_k = LENGTHS ? static_cast<const int*>(p.lengths)[place.b] : p.seq_k;

    const i64 b = place.b, h = place.h;
    place.q = {static_cast<const scalar*>(p.q) + b * p.q_batch + h * p.q_head, p.q_row, p.q_head, place.first_row};
    place.k = key_rows(p.k, p.k_batch, p.k_row, p.k_head, place, group, p);
    place.v = key_rows(p.v, p.v_batch, p.v_row, p.v_head, place, group, p);
    if constexpr (QUANTISED) {
        place.scales[0] = static_cast<const float*>(p.k_scales)[group];
        place.scales[1] = static_cast<const float*>(p.v_scales)[group];
    }
    if constexpr (BIAS) place.bias = static_cast<const bias_scalar*>(p.bias) + b * p.bias_batch + h * p.bias_head;
    if constexpr (MASK) place.mask = static_cast<const unsigned char*>(p.mask) + b * p.mask_batch + h * p.mask_head;
    return place;
}
