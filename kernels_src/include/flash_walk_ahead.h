// The walk over the keys for asynchronous products, with two stages of k and v in LDS: q k^T of the next tile and p v
// of this one are under way while the next tile's softmax is computed. One barrier a tile:
//     next k and this v arrive | the k after it and next v are stored | q k^T and p v begin | softmax
//
// A tile's store() fills its next stage, clean() looks at it, and turn() makes it the one that is multiplied.
#pragma once

#include "flash_softmax.h"

__device__ inline void walk(Block& block, Output& out, State& state) {
    const Range& range = block.range;
    KTile& k = block.k;
    VTile& v = block.v;
    int tile = range.first();
    if (tile >= range.end) return;
    int next = range.after(tile);
    k.store(tile * BLOCK_N);
    v.store(tile * BLOCK_N);
    v.arrive();
    __syncthreads();
    k.turn();
    if (next < range.end) k.store(next * BLOCK_N);

    Scores scores;
    Weights weights;
    begin_qk(scores, block.queries, k);
    settle(scores);
    soften(block, tile, scores, out, state);
    weights.pack(scores);
    while (next < range.end) {
        tile = next;
        next = range.after(tile);
        v.arrive();
        __syncthreads();
        k.turn();
        v.turn();
        v.store(tile * BLOCK_N);
        if (next < range.end) k.store(next * BLOCK_N);
        begin_qk(scores, block.queries, k);
        begin_pv(out, weights, v);
        settle<1>(scores);
        if (block.careful) {  // it may look at its v
            v.arrive();
            __syncthreads();
        }
        soften(block, tile, scores, out, state);
        stay_before(state.total[0] + state.total[1]);
        settle(out);
        weights.pack(scores);
    }
    v.arrive();
    __syncthreads();
    v.turn();
    begin_pv(out, weights, v);
    settle(out);
}
