// The walk over the keys for what is bound by memory, with STAGES tiles of k and v in LDS: all but one are on their way
// while that one is computed, and where the next one is to come from is looked up. One barrier a tile:
//     k and v arrive | the k and v STAGES - 1 tiles ahead are stored | q k^T | softmax | p v
// A thread's copies of a tile are a group; groups arrive in order.
#pragma once

#include "flash_softmax.h"

// Tiles to come: first those that begin the walk, then one a turn.
struct Coming {
    const Range& range;
    int tile;
    KTile::Pages k_pages;
    VTile::Pages v_pages;

    __device__ Coming(const Range& all, const KTile& k, const VTile& v, int first) : range(all), tile(first) {
        find(k, v);
    }
    __device__ void store(const KTile& k, const VTile& v, int ahead) {
        if (tile < range.end) {
            k.store(tile * BLOCK_N, ahead, k_pages);
            v.store(tile * BLOCK_N, ahead, v_pages);
        }
        tile = range.after(tile);
        find(k, v);
    }

private:
    __device__ void find(const KTile& k, const VTile& v) {
        k_pages = k.find(tile * BLOCK_N);
        v_pages = v.find(tile * BLOCK_N);
    }
};

// Starts the copies of the first tile, for which a walk waits: before the queries are thought of.
__device__ inline void first_keys(const Range& range, const KTile& k, const VTile& v) {
    const int tile = range.first();
    if (tile >= range.end) return;
    k.store(tile * BLOCK_N, 0, k.find(tile * BLOCK_N));
    v.store(tile * BLOCK_N, 0, v.find(tile * BLOCK_N));
}

__device__ inline void walk(Block& block, Output& out, State& state) {
    const Range& range = block.range;
    KTile& k = block.k;
    VTile& v = block.v;
    int tile = range.first();
    Coming coming(range, k, v, range.after(tile));
    end_group();  // the first tile and, the first time, q
#pragma unroll
    for (int ahead = 1; ahead < STAGES - 1; ++ahead) {
        coming.store(k, v, ahead);
        end_group();
    }
    while (tile < range.end) {
        wait_for_groups<STAGES - 2>();
        __syncthreads();  // all threads' copies; and none reads the tile before any more
        k.turn();
        v.turn();
        coming.store(k, v, STAGES - 2);
        end_group();  // of no copies, where there is no such tile: so that the count of groups is right
        Scores scores;
        if (block.idle) scores.clear();
        else multiply_qk(scores, block.queries, k);
        soften(block, tile, scores, out, state);
        if (!block.idle) multiply_pv(out, scores, v);
        tile = range.after(tile);
    }
    wait_for_copies();  // q where there were no keys: a block's copies end before it does
}
