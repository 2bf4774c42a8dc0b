// Which rows of which head a block of flash_fwd takes, and where they are in memory. A row is a query of one head.
#pragma once

#include "flash_block.h"

struct Place {
    int b, h;
    int first_row;  // of the block, counted from the sequence's start
    int seq_q, seq_k;
    EvenRows<scalar> q;  // of the block
    KeyRows k, v;        // of the sequence
    scalar* out;
    float* lse;
    const bias_scalar* bias;
    const unsigned char* mask;
    const unsigned char* tiles;  // of block_mask.hip: what of each tile is visible

    __device__ int query(int row) const { return row; }
    __device__ static int head(int) { return 0; }
    __device__ static float k_scale() { return 1.0f; }
    __device__ static bool has_sink() { return true; }
};

// Which tile of queries, and of which head of which batch entry: `rest` counts both.
//
// Where later queries see more keys, the tiles that have most to visit go first, so that none of them starts when the
// others are done. That is so within a section of heads, whose keys and values stay in the chip's last cache while all
// tiles visit them. Otherwise a head's tiles follow each other.
struct Turn {
    unsigned tile, rest;
};

__device__ inline Turn turn_of_block(const FlashFwdParams& p) {
    const unsigned q_tiles = p.q_tiles;
    if constexpr (BOUND_RIGHT) {
        const unsigned all = gridDim.x / q_tiles, last = all / p.section - 1;  // which has what is left, too
        const unsigned section = min(blockIdx.x / (p.section * q_tiles), last), before = section * p.section;
        const unsigned size = section < last ? p.section : all - before;
        const unsigned in_section = blockIdx.x - before * q_tiles;
        return {q_tiles - 1 - in_section / size, before + in_section % size};
    } else {
        return {blockIdx.x % q_tiles, blockIdx.x / q_tiles};
    }
}

// Returns false where the block has no rows.
__device__ inline bool find_place(const FlashFwdParams& p, Place& place) {
    const unsigned q_tiles = p.q_tiles, heads = p.heads;
    auto [tile, rest] = turn_of_block(p);
    place.h = rest % heads;
    place.b = rest / heads;
    i64 q_start = 0, k_start = 0;
    place.seq_q = p.seq_q;
    place.seq_k = p.seq_k;
    if constexpr (VARLEN) {
        // Sequence b has the tiles from cu[b] / BLOCK_M + b to before cu[b + 1] / BLOCK_M + b + 1: enough for its
        // rows, and b is found by bisection. The last of them may be empty.
        const int *cu_q = static_cast<const int*>(p.cu_seqlens_q), *cu_k = static_cast<const int*>(p.cu_seqlens_k);
        unsigned low = 0, high = p.batch;
        while (high - low > 1) {
            const unsigned middle = (low + high) / 2;
            if (cu_q[middle] / BLOCK_M + middle <= tile) low = middle;
            else high = middle;
        }
        place.b = low;
        q_start = cu_q[low], k_start = cu_k[low];
        place.seq_q = cu_q[low + 1] - cu_q[low];
        place.seq_k = cu_k[low + 1] - cu_k[low];
        tile -= cu_q[low] / BLOCK_M + low;
    }
    place.first_row = tile * BLOCK_M;
    if (place.first_row >= place.seq_q) return false;

    const i64 b = VARLEN ? 0 : place.b, h = place.h, h_kv = h / p.heads_per_kv;
    const i64 first_query = q_start + place.first_row;
    place.q = {static_cast<const scalar*>(p.q) + b * p.q_batch + h * p.q_head + first_query * p.q_row, p.q_row};
    place.k = {static_cast<const scalar*>(p.k) + b * p.k_batch + h_kv * p.k_head + k_start * p.k_row, p.k_row};
    place.v = {static_cast<const scalar*>(p.v) + b * p.v_batch + h_kv * p.v_head + k_start * p.v_row, p.v_row};
    place.out = static_cast<scalar*>(p.out) + b * p.out_batch + h * p.out_head + q_start * p.out_row;
    if constexpr (LSE) place.lse = static_cast<float*>(p.lse) + b * p.lse_batch + h * p.lse_head + q_start;
    if constexpr (BIAS) place.bias = static_cast<const bias_scalar*>(p.bias) + b * p.bias_batch + h * p.bias_head;
    if constexpr (MASK) place.mask = static_cast<const unsigned char*>(p.mask) + b * p.mask_batch + h * p.mask_head;
    if constexpr (BLOCK_MASK) {
        const i64 k_tiles = (p.seq_k + BLOCK_N - 1) / BLOCK_N;
        place.tiles = static_cast<const unsigned char*>(p.block_mask) + b * p.block_mask_batch +
                      h * p.block_mask_head + tile * k_tiles;
    }
    return true;
}
