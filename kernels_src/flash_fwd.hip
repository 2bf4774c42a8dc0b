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
#ifdef ASYNCHRONOUS_PRODUCTS
#include "flash_walk_ahead.h"
#elif defined(OVERLAPPED_PRODUCTS)
#include "flash_walk_overlap.h"
#else
#include "flash_walk.h"
#endif

#ifndef WEIGHT_SCALE
#define WEIGHT_SCALE 1.0f
#endif

constexpr float LN_2 = 0.69314718055994530942f;

__device__ inline void write(const FlashFwdParams& p, const Place& place, Output& out, const State& state) {
    out.regroup();
#pragma unroll
    for (int r = 0; r < Scores::ROWS; ++r) {
        const int row = place.first_row + wave_index() * WAVE_ROWS + Scores::row(r);
        const float total = row_sum(state.total[r]);
        const float inverse = total == 0.0f ? 0.0f : 1.0f / (total * WEIGHT_SCALE);
        if (row >= place.seq_q) continue;
        scalar* at = place.out + row * p.out_row;
#pragma unroll
        for (int c = 0; c < Output::COLUMNS; c += Output::RUN) {
            float run[Output::RUN];
#pragma unroll
            for (int e = 0; e < Output::RUN; ++e) run[e] = out.get(r, c + e) * inverse;
            const int column = Output::regrouped(c);
            if constexpr (VECTOR >= Output::RUN && VALUE_DIM % Output::RUN == 0) {
                if (column < VALUE_DIM) store_vector(run, at + column);
            } else {
#pragma unroll
                for (int e = 0; e < Output::RUN; ++e)
                    if (column + e < VALUE_DIM) at[column + e] = static_cast<scalar>(run[e]);
            }
        }
        if constexpr (LSE)
            if (leads_row()) place.lse[row] = (log2f(total) + finite_shift(state.shift[r])) * LN_2;
    }
}

// Whether `mine` is true of any thread of the block. `flag`, in LDS, is -1 and then something else.
__device__ inline bool block_any(bool mine, int& flag) {
    __syncthreads();
    if (mine) flag = -2;
    __syncthreads();
    return flag == -2;
}

__device__ inline void begin(State& state, Output& out, const Score& score) {
    out.clear();
#pragma unroll
    for (int r = 0; r < Scores::ROWS; ++r) {
        // A sink is a key of that score, with no value.
        state.shift[r] = score.sink();
        state.total[r] = leads_row() ? exp2_fast(state.shift[r] - finite_shift(state.shift[r])) : 0.0f;
    }
}

extern "C" __global__ __launch_bounds__(WAVES * WAVE_SIZE, MIN_WAVES) void flash_fwd(const FlashFwdParams p) {
    extern __shared__ __attribute__((aligned(1024))) char lds[];
    constexpr int V_AT = KTile::BYTES, Q_AT = V_AT + VTile::BYTES, FLAG_AT = Q_AT + Queries::BYTES;
    static_assert(LDS_BYTES == FLAG_AT, "the launch gives what the layer takes, and 16 bytes more");

    Place place;
    if (!find_place(p, place)) return;
    Queries queries;
    queries.load(place.q, p.q_row, place.seq_q - place.first_row, p.negate, lds + Q_AT);
    int& nonfinite_tile = *reinterpret_cast<int*>(lds + FLAG_AT);
    if (threadIdx.x == 0) nonfinite_tile = -1;
    Block block = {p,
                   place,
                   Range(p, place),
                   Score(p, place),
                   queries,
                   KTile(place.k, p.k_row, place.seq_k, lds),
                   VTile(place.v, p.v_row, place.seq_k, lds + V_AT),
                   nonfinite_tile,
                   false};
    Output out;
    State state;
    // A NaN or infinity of v is rare, and to keep it in the rows that see its key takes time: only a block that finds
    // one in its sums walks again, with care.
    for (bool again = true; again; block.careful = true) {
        begin(state, out, block.score);
        walk(block, out, state);
        if (block.careful) break;
        again = block_any(any_nonfinite(out, state), nonfinite_tile);
    }
    write(p, place, out, state);
}
