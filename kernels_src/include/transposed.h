// The accumulators of a layer that takes its products transposed, S^T = k q^T and O^T = v^T p^T: a query is a column of
// them, of which a lane holds HELD of M rows. The layer, which includes this, has said M, HELD and Accumulator;
// lane_column(); held_row(e), which row element e is; and NEIGHBOURS, how many elements lie side by side.
#pragma once

// TILES accumulators for each M queries of the wave: as many as WAVE_ROWS x (TILES * M) numbers need.
template <int TILES>
struct Accumulators {
    static constexpr int ROWS = WAVE_ROWS / M, EACH = TILES * HELD;
    Accumulator tile[ROWS][TILES];

    __device__ void clear() {
#pragma unroll
        for (int r = 0; r < ROWS; ++r)
#pragma unroll
            for (int t = 0; t < TILES; ++t) tile[r][t] = Accumulator(0.0f);
    }
    __device__ float get(int r, int n) const { return tile[r][n / HELD][n % HELD]; }
    __device__ void set(int r, int n, float x) { tile[r][n / HELD][n % HELD] = x; }
    __device__ void scale(int r, float factor) {
#pragma unroll
        for (int t = 0; t < TILES; ++t) tile[r][t] *= factor;
    }
    // Element n's place in the direction of the accumulators' rows.
    __device__ static int place(int n) { return n / HELD * M + held_row(n % HELD); }
    __device__ static int row(int r) { return r * M + lane_column(); }
};

struct Scores : Accumulators<BLOCK_N / M> {
    static constexpr int KEYS = EACH;
    __device__ static int key(int n) { return place(n); }
};

struct Output : Accumulators<V_COLUMNS / M> {
    static constexpr int COLUMNS = EACH, RUN = NEIGHBOURS;
    __device__ static int column(int c) { return place(c); }
    __device__ void regroup() {}
    __device__ static int regrouped(int c) { return column(c); }
};
