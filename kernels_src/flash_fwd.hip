// flash_fwd: out = softmax(score(scale * q @ k^T)) @ v, without the scores in memory.
//
// A block takes BLOCK_M query rows of one head, a wave WAVE_ROWS of them; together they walk over the keys, BLOCK_N
// at a time, with k and v of these keys in LDS. Each row keeps a running maximum and sum of exponentials, and its
// output is rescaled as the maximum grows (Milakov and Gimelshein 2018, arXiv:1805.02867; Dao 2023,
// arXiv:2307.08691). How the two products are done, and which scores a lane holds, is the layer's matter: one of
// mma_*.h, included in front of this file. A layer gives:
//     Scores, Output      a lane's part of WAVE_ROWS x BLOCK_N scores and WAVE_ROWS x VALUE_DIM sums: ROWS rows, of each
//                         KEYS keys or COLUMNS columns (RUN of them neighbours); row(r), key(n), column(c) say which
//     KTile, VTile        BLOCK_N keys in LDS: fetch and store begin to bring them, arrive waits for this thread's part
//     Queries             the wave's rows of q, for the products
//     multiply_qk, _pv    the products, or, with ASYNCHRONOUS_PRODUCTS, begin_qk, _pv and settle, which waits for them
//     row_max, row_sum    over the lanes that share a row, of which one leads_row()
//     OVERLAPPED_PRODUCTS if the walk is to have scores and weights computed side by side, in the order of order_tile()
//     WEIGHT_SCALE        what the second product has its weights multiplied by; 1 if not defined
#include "flash_place.h"

using Params = FlashFwdParams;

#include "flash_attend.h"

__device__ inline void write(const FlashFwdParams& p, const Place& place, Output& out, const State& state) {
    out.regroup();
#pragma unroll
    for (int r = 0; r < Scores::ROWS; ++r) {
        const int row = place.first_row + wave_index() * WAVE_ROWS + Scores::row(r);
        const float total = row_sum(state.total[r]);
        const float inverse = total == 0.0f ? 0.0f : 1.0f / (total * WEIGHT_SCALE);
        if (row >= place.seq_q) continue;
        write_row<(VECTOR >= Output::RUN)>(out, r, inverse, place.out + row * p.out_row);
        if constexpr (LSE)
            if (leads_row()) place.lse[row] = log2_total(total, state.shift[r]) * LN_2;
    }
}

extern "C" __global__ __launch_bounds__(WAVES * WAVE_SIZE, MIN_WAVES) void flash_fwd(const FlashFwdParams p) {
    extern __shared__ __attribute__((aligned(1024))) char lds[];
    Place place;
    if (!find_place(p, place)) return;
    Output out;
    State state;
    attend<false>(p, place, Range(p, place), place.q, place.seq_q - place.first_row, lds, out, state);
    write(p, place, out, state);
}
