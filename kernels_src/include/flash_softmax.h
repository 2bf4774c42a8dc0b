// From the scores of a tile to weights, with the running maximum and sum of each row.
//
// Exponentials are taken to base 2: `unit` turns a score into an exponent, `shift` is what is subtracted from it. The
// shift lags behind the maximum by at most LAG, which keeps most tiles from rescaling; a sum of 2^LAG each is exact
// enough in float32.
#pragma once

#include "flash_range.h"
#include "flash_score.h"
#include "hints.h"

constexpr float LAG = 8.0f;

struct State {
    float shift[Scores::ROWS];
    float total[Scores::ROWS];  // of this lane's keys
};

// The shift of a row that has seen no key is -inf, and -inf - -inf is NaN: such a row has only zeros, whatever is
// subtracted.
__device__ inline float finite_shift(float shift) { return shift == -INF ? 0.0f : shift; }

#ifndef ASYNCHRONOUS_PRODUCTS
__device__ inline void settle(Output&) {}
#endif

// Raises the shift of rows whose maximum has outgrown it.
__device__ inline void raise(State& state, Output& out, const Scores& scores, float unit) {
    float highest[Scores::ROWS];  // of this lane's keys
    bool any = false;
#pragma unroll
    for (int r = 0; r < Scores::ROWS; ++r) {
        highest[r] = scores.get(r, 0);
#pragma unroll
        for (int n = 1; n < Scores::KEYS; ++n) highest[r] = fmaxf(highest[r], scores.get(r, n));
        any |= highest[r] * unit > state.shift[r] + LAG;
    }
    if (!__any(any)) return;
    settle(out);
#pragma unroll
    for (int r = 0; r < Scores::ROWS; ++r) {
        // Each row for itself: what a row gives does not depend on its neighbours.
        const float grown = row_max(highest[r]) * unit;
        const bool outgrown = grown > state.shift[r] + LAG;
        const float factor = outgrown ? exp2_fast(state.shift[r] - grown) : 1.0f;
        state.shift[r] = outgrown ? grown : state.shift[r];
        state.total[r] *= factor;
        out.scale(r, factor);
    }
}

// Turns scores into weights: 2^(score * unit - shift).
__device__ inline void weigh(Scores& scores, State& state, float unit) {
#pragma unroll
    for (int r = 0; r < Scores::ROWS; ++r) {
        const float shift = finite_shift(state.shift[r]);
        float sum[2] = {};  // two additions at once
#pragma unroll
        for (int n = 0; n < Scores::KEYS; ++n) {
            const float weight = exp2_fast(fmaf(scores.get(r, n), unit, -shift));
            scores.set(r, n, weight);
            sum[n % 2] += weight;
        }
        state.total[r] += sum[0] + sum[1];
    }
}

// Whether a NaN or infinity of v reached a sum: in the rows of finite total, which no NaN of q or k reached.
__device__ inline bool any_nonfinite(const Output& out, const State& state) {
    bool any = false;
#pragma unroll
    for (int r = 0; r < Scores::ROWS; ++r) {
        float sum = 0.0f;
#pragma unroll
        for (int c = 0; c < Output::COLUMNS; ++c) sum += out.get(r, c) * 0.0f;
        any |= sum != 0.0f && is_finite(state.total[r]);
    }
    return any;
}

// Adds what a matrix product cannot add right: a NaN or infinity of v, to the rows that see its key and to no others.
// (A hidden key has weight 0, but 0 * NaN is NaN.) In the tile itself these values were replaced by 0.
__device__ inline void add_nonfinite(Output& out, const Scores& scores, const State& state, float unit,
                                     const KeyRows& v, int first, int keys) {
    for (int key = 0; key < keys; ++key) {
        const cache_scalar* row = v.common_at(first + key);
        float weight[Scores::ROWS];
#pragma unroll
        for (int r = 0; r < Scores::ROWS; ++r) {
            float score = -INF;  // of this key, if this lane holds it
            const int at = own_value(key - Scores::key(0));
#pragma unroll
            for (int n = 0; n < Scores::KEYS; ++n)
                score = Scores::key(n) - Scores::key(0) == at ? scores.get(r, n) : score;
            // Negative where the key is hidden. The sum brings the weight to all lanes of the row.
            const bool seen = score != -INF;
            const float own = seen ? exp2_fast(fmaf(score, unit, -finite_shift(state.shift[r]))) : 0.0f;
            const float sum = row_sum(own);  // by all lanes: a shuffle that some do not reach never ends
            weight[r] = row_max(seen ? 1.0f : -1.0f) > 0.0f ? sum : -1.0f;
        }
#pragma unroll
        for (int c = 0; c < Output::COLUMNS; ++c) {
            const int column = Output::column(c);
            const float value = column < VALUE_DIM ? as_float(row[column]) : 0.0f;
#pragma unroll
            for (int r = 0; r < Scores::ROWS; ++r) {
                const bool added = !is_finite(value) && !(weight[r] < 0.0f);
                out.set(r, c, out.get(r, c) + (added ? weight[r] * value : 0.0f));
            }
            if (c % 4 == 3) keep_order();
        }
    }
}

struct Block {
    const Params& p;
    const Place& place;
    const Range range;
    const Score score;
    const Queries& queries;
    KTile k;
    VTile v;
    int& nonfinite_tile;  // in LDS: the last tile in which v had a NaN or infinity that not all rows see
    bool careful;         // whether v is looked through for them
    bool idle;            // none of the wave's rows exists: it only brings keys
};

#ifndef RING
__device__ inline void first_keys(const Range&, const KTile&, const VTile&) {}  // the walk brings them
#endif

// Hides what a row does not see of a tile, and lets the maximum follow the rest.
__device__ inline void follow(const Block& block, int tile, Scores& scores, Output& out, State& state) {
    block.score.transform(scores, tile * BLOCK_N);
    if (block.range.hides(tile)) block.score.hide(scores, tile * BLOCK_N);
    raise(state, out, scores, block.score.unit);
}

// Adds what is not finite in v of a tile that hides keys, and takes it out of the v in LDS.
__device__ inline void mend(Block& block, int tile, const Scores& scores, Output& out, const State& state) {
    if (!block.careful || (!block.range.hides(tile) && !block.score.MAY_HIDE)) return;
    if (block.v.clean()) block.nonfinite_tile = tile;
    __syncthreads();
    if (block.nonfinite_tile == tile) {
        settle(out);
        add_nonfinite(out, scores, state, block.score.unit, block.place.v, tile * BLOCK_N,
                      min(BLOCK_N, block.place.seq_k - tile * BLOCK_N));
    }
}

// From scores to weights. v of the tile is in LDS if the tile hides keys.
__device__ inline void soften(Block& block, int tile, Scores& scores, Output& out, State& state) {
    follow(block, tile, scores, out, state);
    mend(block, tile, scores, out, state);
    weigh(scores, state, block.score.unit);
}
