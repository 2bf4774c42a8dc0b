// What the flash kernels share of a block's work: from its queries and keys to the sums and totals of its rows, and
// from these to rows in memory. The kernel has included its Place, and said Params.
#pragma once

#ifdef ASYNCHRONOUS_PRODUCTS
#include "flash_walk_ahead.h"
#elif defined(OVERLAPPED_PRODUCTS)
#include "flash_walk_overlap.h"
#elif defined(RING)
#include "flash_walk_ring.h"
#else
#include "flash_walk.h"
#endif

#ifndef WEIGHT_SCALE
#define WEIGHT_SCALE 1.0f
#endif

constexpr float LN_2 = 0.69314718055994530942f;

// Where things lie in a block's LDS.
constexpr int V_AT = KTile::BYTES, Q_AT = V_AT + VTile::BYTES, FLAG_AT = Q_AT + Queries::BYTES;
static_assert(LDS_BYTES == FLAG_AT, "the launch gives what the layer takes, and 16 bytes more");

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
        state.shift[r] = score.sink(r);
        state.total[r] = leads_row() ? exp2_fast(state.shift[r] - finite_shift(state.shift[r])) : 0.0f;
    }
}

// Sums the values of the keys in `range`. `rows` are the block's, of which `count` exist; MAY_IDLE: perhaps too few for
// all waves.
template <bool MAY_IDLE, class Rows>
__device__ inline void attend(const Params& p, const Place& place, const Range& range, const Rows& rows, int count,
                              char* lds, Output& out, State& state) {
    first_keys(range, KTile(place.k, place.seq_k, lds), VTile(place.v, place.seq_k, lds + V_AT));
    Queries queries;
    queries.load(rows, count, p.negate, lds + Q_AT);
    int& nonfinite_tile = *reinterpret_cast<int*>(lds + FLAG_AT);
    if (threadIdx.x == 0) nonfinite_tile = -1;
    Block block = {p,
                   place,
                   range,
                   Score(p, place),
                   queries,
                   KTile(place.k, place.seq_k, lds),
                   VTile(place.v, place.seq_k, lds + V_AT),
                   nonfinite_tile,
                   false,
                   MAY_IDLE && wave_index() * WAVE_ROWS >= count};
    // A NaN or infinity of v is rare, and to keep it in the rows that see its key takes time: only a block that finds
    // one in its sums walks again, with care.
    for (bool again = true; again; block.careful = true) {
        begin(state, out, block.score);
        if (block.careful) first_keys(range, block.k, block.v);
        walk(block, out, state);
        if (block.careful) break;
        again = block_any(any_nonfinite(out, state), nonfinite_tile);
    }
}

// Writes row r of the sums, each times `factor`, after out.regroup(). ALIGNED: rows begin where Output::RUN elements
// can be written at once.
template <bool ALIGNED, class T>
__device__ inline void write_row(const Output& out, int r, float factor, T* at) {
    constexpr int MOST = 16 / sizeof(T), WIDTH = Output::RUN < MOST ? Output::RUN : MOST;
#pragma unroll
    for (int c = 0; c < Output::COLUMNS; c += Output::RUN) {
        const int column = Output::regrouped(c);
#pragma unroll
        for (int part = 0; part < Output::RUN; part += WIDTH) {
            float run[WIDTH];
#pragma unroll
            for (int e = 0; e < WIDTH; ++e) run[e] = out.get(r, c + part + e) * factor;
            if constexpr (ALIGNED && VALUE_DIM % WIDTH == 0) {
                if (column + part < VALUE_DIM) store_vector(run, at + column + part);
            } else {
#pragma unroll
                for (int e = 0; e < WIDTH; ++e)
                    if (column + part + e < VALUE_DIM) at[column + part + e] = static_cast<T>(run[e]);
            }
        }
    }
}

// The logarithm to base 2 of a row's total.
__device__ inline float log2_total(float total, float shift) { return log2f(total) + finite_shift(shift); }
