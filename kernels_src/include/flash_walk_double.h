// The walk over the keys for what is bound by memory, with two stages of k and v in LDS: all of the next tile is on its
// way while this one is computed. One barrier a tile:
//     k and v arrive | next k and v are stored | q k^T | softmax | p v
#pragma once

#include "flash_softmax.h"

// Starts the copies of the first tile, for which a walk waits: before the queries are thought of.
__device__ inline void first_keys(const Range& range, const KTile& k, const VTile& v) {
    const int tile = range.first();
    if (tile >= range.end) return;
    k.store(tile * BLOCK_N);
    v.store(tile * BLOCK_N);
}

__device__ inline void walk(Block& block, Output& out, State& state) {
    const Range& range = block.range;
    KTile& k = block.k;
    VTile& v = block.v;
    int tile = range.first();
    while (tile < range.end) {
        const int next = range.after(tile);
        v.arrive();  // all of this thread's copies: k and, the first time, q
        __syncthreads();  // all threads' copies; and none reads the tile before any more
        k.turn();
        v.turn();
        if (next < range.end) {
            k.store(next * BLOCK_N);
            v.store(next * BLOCK_N);
        }
        Scores scores;
        if (block.idle) scores.clear();
        else multiply_qk(scores, block.queries, k);
        soften(block, tile, scores, out, state);
        if (!block.idle) multiply_pv(out, scores, v);
        tile = next;
    }
    v.arrive();  // q where there were no keys: a block's copies end before it does
}
