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
//     multiply_qk, _pv    the products
//     row_max, row_sum    over the lanes that share a row, of which one leads_row()
//
// Exponentials are taken to base 2: `unit` turns a score into an exponent, `shift` is what is subtracted from it. The
// shift lags behind the maximum by at most LAG, which keeps most tiles from rescaling; a sum of 2^LAG each is exact
// enough in float32.
//
// Order of one tile, with two barriers: while a wave computes, the next tile is on its way.
//     k arrives | v is stored, next k fetched | q k^T | v arrives | next k stored, next v fetched | softmax | p v
#include "flash_score.h"
#include "flash_range.h"

constexpr float LAG = 8.0f;
constexpr float LN_2 = 0.69314718055994530942f;

struct State {
    float shift[Scores::ROWS];
    float total[Scores::ROWS];  // of this lane's keys
};

// The shift of a row that has seen no key is -inf, and -inf - -inf is NaN: such a row has only zeros, whatever is
// subtracted.
__device__ inline float finite_shift(float shift) { return shift == -INF ? 0.0f : shift; }

// Raises the shift of rows whose maximum has outgrown it.
__device__ inline void raise(State& state, Output& out, const Scores& scores, float unit) {
    float grown[Scores::ROWS];
    bool any = false;
#pragma unroll
    for (int r = 0; r < Scores::ROWS; ++r) {
        float highest = scores.get(r, 0);
#pragma unroll
        for (int n = 1; n < Scores::KEYS; ++n) highest = fmaxf(highest, scores.get(r, n));
        grown[r] = row_max(highest) * unit;
        any |= grown[r] > state.shift[r] + LAG;
    }
    if (!__any(any)) return;
#pragma unroll
    for (int r = 0; r < Scores::ROWS; ++r) {
        // Each row for itself: what a row gives does not depend on its neighbours.
        const bool outgrown = grown[r] > state.shift[r] + LAG;
        const float factor = outgrown ? exp2_fast(state.shift[r] - grown[r]) : 1.0f;
        state.shift[r] = outgrown ? grown[r] : state.shift[r];
        state.total[r] *= factor;
        out.scale(r, factor);
    }
}

// Turns scores into weights: 2^(score * unit - shift).
__device__ inline void weigh(Scores& scores, State& state, float unit) {
#pragma unroll
    for (int r = 0; r < Scores::ROWS; ++r) {
        const float shift = finite_shift(state.shift[r]);
#pragma unroll
        for (int n = 0; n < Scores::KEYS; ++n) {
            const float weight = exp2_fast(fmaf(scores.get(r, n), unit, -shift));
            scores.set(r, n, weight);
            state.total[r] += weight;
        }
    }
}

// Adds what a matrix product cannot add right: a NaN or infinity of v, to the rows that see its key and to no others.
// (A hidden key has weight 0, but 0 * NaN is NaN.) In the tile itself these values were replaced by 0.
__device__ inline void add_nonfinite(Output& out, const Scores& scores, const State& state, float unit,
                                     const scalar* v, i64 stride, int keys) {
    for (int key = 0; key < keys; ++key) {
        float weight[Scores::ROWS];
#pragma unroll
        for (int r = 0; r < Scores::ROWS; ++r) {
            float score = -INF;  // of this key, if this lane holds it
#pragma unroll
            for (int n = 0; n < Scores::KEYS; ++n) score = Scores::key(n) == key ? scores.get(r, n) : score;
            // Negative where the key is hidden. The sum brings the weight to all lanes of the row.
            const bool seen = score != -INF;
            const float own = seen ? exp2_fast(fmaf(score, unit, -finite_shift(state.shift[r]))) : 0.0f;
            const float sum = row_sum(own);  // by all lanes: a shuffle that some do not reach never ends
            weight[r] = row_max(seen ? 1.0f : -1.0f) > 0.0f ? sum : -1.0f;
        }
#pragma unroll
        for (int c = 0; c < Output::COLUMNS; ++c) {
            const int column = Output::column(c);
            const float value = column < VALUE_DIM ? static_cast<float>(v[key * stride + column]) : 0.0f;
#pragma unroll
            for (int r = 0; r < Scores::ROWS; ++r) {
                const bool added = !is_finite(value) && !(weight[r] < 0.0f);
                out.set(r, c, out.get(r, c) + (added ? weight[r] * value : 0.0f));
            }
        }
    }
}

__device__ inline void write(const FlashFwdParams& p, const Place& place, const Output& out, const State& state) {
#pragma unroll
    for (int r = 0; r < Scores::ROWS; ++r) {
        const int row = place.first_row + wave_index() * WAVE_ROWS + Scores::row(r);
        const float total = row_sum(state.total[r]);
        const float inverse = total == 0.0f ? 0.0f : 1.0f / total;
        if (row >= place.seq_q) continue;
        scalar* at = place.out + row * p.out_row;
#pragma unroll
        for (int c = 0; c < Output::COLUMNS; c += Output::RUN) {
            float run[Output::RUN];
#pragma unroll
            for (int e = 0; e < Output::RUN; ++e) run[e] = out.get(r, c + e) * inverse;
            const int column = Output::column(c);
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

extern "C" __global__ __launch_bounds__(WAVES * WAVE_SIZE, MIN_WAVES) void flash_fwd(const FlashFwdParams p) {
    extern __shared__ __attribute__((aligned(1024))) char lds[];
    constexpr int TILES_BYTES = KTile::BYTES + VTile::BYTES + Queries::BYTES;
    static_assert(LDS_BYTES == TILES_BYTES + 16, "the launch gives what the layer takes");
    int& nonfinite_tile = *reinterpret_cast<int*>(lds + TILES_BYTES);

    Place place;
    if (!find_place(p, place)) return;
    const Range range(p, place);
    const Score score(p, place);

    Queries queries;
    queries.load(place.q, p.q_row, place.seq_q - place.first_row, p.negate, lds + KTile::BYTES + VTile::BYTES);
    KTile k(place.k, p.k_row, place.seq_k, lds);
    VTile v(place.v, p.v_row, place.seq_k, lds + KTile::BYTES);

    Output out;
    State state;
    out.clear();
#pragma unroll
    for (int r = 0; r < Scores::ROWS; ++r) {
        // A sink is a key of that score, with no value.
        state.shift[r] = score.sink();
        state.total[r] = leads_row() ? exp2_fast(state.shift[r] - finite_shift(state.shift[r])) : 0.0f;
    }

    int tile = range.first();
    if (threadIdx.x == 0) nonfinite_tile = -1;
    if (tile < range.end) {
        k.fetch(tile * BLOCK_N);
        v.fetch(tile * BLOCK_N);
        k.store(tile * BLOCK_N);
    }
    while (tile < range.end) {
        const int next = range.after(tile);
        k.arrive();
        __syncthreads();
        v.store(tile * BLOCK_N);
        if (next < range.end) k.fetch(next * BLOCK_N);
        Scores scores;
        multiply_qk(scores, queries, k);
        v.arrive();
        __syncthreads();
        if (next < range.end) {
            k.store(next * BLOCK_N);
            v.fetch(next * BLOCK_N);
        }
        score.transform(scores, tile * BLOCK_N);
        const bool hides = range.hides(tile);
        if (hides) score.hide(scores, tile * BLOCK_N);
        raise(state, out, scores, score.unit);
        if (hides || score.MAY_HIDE) {
            if (v.clean()) nonfinite_tile = tile;
            __syncthreads();
            if (nonfinite_tile == tile)
                add_nonfinite(out, scores, state, score.unit, place.v + static_cast<i64>(tile) * BLOCK_N * p.v_row,
                              p.v_row, min(BLOCK_N, place.seq_k - tile * BLOCK_N));
        }
        weigh(scores, state, score.unit);
        multiply_pv(out, scores, v);
        tile = next;
    }
    write(p, place, out, state);
}
