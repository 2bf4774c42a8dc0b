// block_mask: out[b, h, q_tile, k_tile] = what the user's mask leaves of a tile of BLOCK_M queries and BLOCK_N keys:
// 0 nothing, 1 a part, 2 all of it. Positions past seq_q and seq_k do not count; a tile of none is 0.
//
// out: uint8, contiguous. user_mask_mod(b, h, q, k, p) is rendered in front of the source.
//
// Bound by the expression: a wave takes a tile and stops as soon as it has seen a visible and a hidden position, so that
// what is read of a tile that is cut is little. No LDS, no barrier.
#include "types.h"

static_assert(BLOCK % WAVE_SIZE == 0, "a block is made of whole waves");

extern "C" __global__ __launch_bounds__(BLOCK) void block_mask(const BlockMaskParams p) {
    constexpr int WAVES = BLOCK / WAVE_SIZE;
    constexpr int POSITIONS = BLOCK_M * BLOCK_N;
    const int lane = threadIdx.x % WAVE_SIZE, wave = threadIdx.x / WAVE_SIZE;
    unsigned char* out = static_cast<unsigned char*>(p.out);
    for (i64 tile = static_cast<i64>(blockIdx.x) * WAVES + wave; tile < p.tiles;
         tile += static_cast<i64>(gridDim.x) * WAVES) {
        const i64 q_tile = tile / p.k_tiles, head = q_tile / p.q_tiles;
        const int first_k = static_cast<int>(tile % p.k_tiles) * BLOCK_N;
        const int first_q = static_cast<int>(q_tile % p.q_tiles) * BLOCK_M;
        const int b = static_cast<int>(head / p.heads), h = static_cast<int>(head % p.heads);
        bool visible = false, hidden = false;  // the same in every lane
        for (int first = 0; first < POSITIONS && !(visible && hidden); first += WAVE_SIZE) {
            const int at = first + lane;
            const int q = first_q + at / BLOCK_N, k = first_k + at % BLOCK_N;
            const bool exists = at < POSITIONS && q < p.seq_q && k < p.seq_k;
            const bool sees = exists && user_mask_mod(b, h, q, k, p);
            visible = visible || __any(sees);
            hidden = hidden || __any(exists && !sees);
        }
        if (lane == 0) out[tile] = visible ? (hidden ? 1 : 2) : 0;
    }
}
