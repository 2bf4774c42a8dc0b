// The walk over the keys for chips whose matrix cores work beside the other arithmetic of the same wave: q k^T of the
// next tile is computed while this one's scores become weights. Two barriers a tile:
//     this v, next k arrive | next v, the k after it fetched | q k^T and softmax | p v | what was fetched is stored
// The layer's order_tile() asks the compiler to mix the two.
#pragma once

#include "flash_softmax.h"

__device__ inline void walk(Block& block, Output& out, State& state) {
    const Range& range = block.range;
    KTile& k = block.k;
    VTile& v = block.v;
    int tile = range.first();
    if (tile >= range.end) return;
    int next = range.after(tile);
    k.fetch(tile * BLOCK_N);
    v.fetch(tile * BLOCK_N);
    k.store(tile * BLOCK_N);
    v.store(tile * BLOCK_N);
    if (next < range.end) k.fetch(next * BLOCK_N);
    lds_barrier();
    Scores scores;
    multiply_qk(scores, block.queries, k);
    lds_barrier();
    if (next < range.end) k.store(next * BLOCK_N);
    follow(block, tile, scores, out, state);
    while (next < range.end) {
        const int after = range.after(next);
        lds_barrier();
        v.fetch(next * BLOCK_N);
        if (after < range.end) k.fetch(after * BLOCK_N);
        mend(block, tile, scores, out, state);
        Scores ahead;
        multiply_qk(ahead, block.queries, k);
        weigh(scores, state, block.score.unit);
        multiply_pv(out, scores, v);
        order_tile();
        lds_barrier();
        v.store(next * BLOCK_N);
        if (after < range.end) k.store(after * BLOCK_N);
        scores = ahead;
        tile = next;
        next = after;
        follow(block, tile, scores, out, state);
    }
    lds_barrier();
    mend(block, tile, scores, out, state);
    weigh(scores, state, block.score.unit);
    multiply_pv(out, scores, v);
}
