// The walk over the keys, one tile after the other, with two barriers each. While a wave computes, the next tile is
// on its way:
//     k arrives | v is stored, next k fetched | q k^T | v arrives | next k stored, next v fetched | softmax | p v
#pragma once

#include "flash_softmax.h"

__device__ inline void walk(Block& block, Output& out, State& state) {
    const Range& range = block.range;
    KTile& k = block.k;
    VTile& v = block.v;
    int tile = range.first();
    if (tile >= range.end) return;
    k.fetch(tile * BLOCK_N);
    v.fetch(tile * BLOCK_N);
    k.store(tile * BLOCK_N);
    while (tile < range.end) {
        const int next = range.after(tile);
        k.arrive();
        lds_barrier();
        v.store(tile * BLOCK_N);
        if (next < range.end) k.fetch(next * BLOCK_N);
        Scores scores;
        if (block.idle) scores.clear();
        else multiply_qk(scores, block.queries, k);
        v.arrive();
        lds_barrier();
        if (next < range.end) {
            k.store(next * BLOCK_N);
            v.fetch(next * BLOCK_N);
        }
        soften(block, tile, scores, out, state);
        if (!block.idle) multiply_pv(out, scores, v);
        tile = next;
    }
}
