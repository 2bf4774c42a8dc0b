// The layer over plain multiplications and additions, in float32: float32 on every chip, and all types on chips
// without matrix instructions.
//
// The lanes of a wave form a grid, ROW_LANES x KEY_LANES. A lane holds ROWS x KEYS scores, rows ROW_LANES apart and
// keys in runs; and of its rows COLUMNS sums. q, k and v lie in LDS as float32, and go from there to registers four at a time
// along the head: ROWS + KEYS accesses for 4 * ROWS * KEYS multiplications.
//
// The weights of a wave go from the lanes that computed them to those that need them through a strip of LDS that is
// the wave's own, as many keys at a time as LDS_BYTES leaves room for.
//
// Lanes 0 and 1 differ in their row, 0 and 2 in their keys: NVIDIA's chips serve half a wave's 16-byte reads in one
// cycle if lanes paired in either way read the same.
#pragma once

#include "tile_float.h"

constexpr int ROW_LANES = WAVE_SIZE / KEY_LANES;
constexpr int QK_COLUMNS = (HEAD_DIM + 3) / 4 * 4, RUNS = 4 * KEY_LANES;
constexpr int V_COLUMNS = (VALUE_DIM + RUNS - 1) / RUNS * RUNS;
// An odd number of 16 bytes: 8 rows that are read together lie in different banks.
constexpr int QK_ROW = QK_COLUMNS + (QK_COLUMNS % 8 ? 0 : 4);
static_assert(WAVE_ROWS % ROW_LANES == 0 && BLOCK_N % KEY_LANES == 0);

// Keys whose weights lie in a strip at once: what LDS_BYTES leaves beside q, k and v. 8 floats more a row: the rows of
// neighbouring lanes lie in different banks.
constexpr int FLOATS = LDS_BYTES / 4, STRIP_ROW = (FLOATS - BLOCK_N * (QK_ROW + V_COLUMNS)) / BLOCK_M - QK_ROW;
constexpr int STRIP = STRIP_ROW - 8;
static_assert(STRIP > 0 && STRIP % KEY_LANES == 0 && BLOCK_N % STRIP == 0);

__device__ inline int row_lane() { return lane_index() % 2 + lane_index() / (2 * KEY_LANES) * 2; }
__device__ inline int key_lane() { return lane_index() / 2 % KEY_LANES; }

// What the lanes of a wave wrote to LDS before, they read after.
__device__ inline void wave_sync() {
#if defined(__HIP_PLATFORM_NVIDIA__)
    __syncwarp();
#else
    __builtin_amdgcn_fence(__ATOMIC_ACQ_REL, "wavefront");
    __builtin_amdgcn_wave_barrier();
#endif
}

// Over the lanes that share rows.
__device__ inline float row_max(float x) {
#pragma unroll
    for (int distance = 2; distance < 2 * KEY_LANES; distance *= 2) x = fmaxf(x, __shfl_xor(x, distance, WAVE_SIZE));
    return x;
}
__device__ inline float row_sum(float x) {
#pragma unroll
    for (int distance = 2; distance < 2 * KEY_LANES; distance *= 2) x += __shfl_xor(x, distance, WAVE_SIZE);
    return x;
}
__device__ inline bool leads_row() { return key_lane() == 0; }

// ROWS x EACH numbers of a lane.
template <int EACH>
struct Numbers {
    static constexpr int ROWS = WAVE_ROWS / ROW_LANES;
    float at[ROWS][EACH];

    __device__ void clear() {
#pragma unroll
        for (int r = 0; r < ROWS; ++r)
#pragma unroll
            for (int n = 0; n < EACH; ++n) at[r][n] = 0.0f;
    }
    __device__ float get(int r, int n) const { return at[r][n]; }
    __device__ void set(int r, int n, float x) { at[r][n] = x; }
    __device__ void scale(int r, float factor) {
#pragma unroll
        for (int n = 0; n < EACH; ++n) at[r][n] *= factor;
    }
    __device__ static int row(int r) { return r * ROW_LANES + row_lane(); }
};

struct Scores : Numbers<BLOCK_N / KEY_LANES> {
    // Keys come in runs, whose weights a lane writes at once.
    static constexpr int KEYS = BLOCK_N / KEY_LANES;
    static constexpr int RUN = STRIP % (4 * KEY_LANES) == 0 ? 4 : STRIP % (2 * KEY_LANES) == 0 ? 2 : 1;
    __device__ static int key(int n) { return n / RUN * (RUN * KEY_LANES) + key_lane() * RUN + n % RUN; }
};

struct Output : Numbers<V_COLUMNS / KEY_LANES> {
    static constexpr int COLUMNS = V_COLUMNS / KEY_LANES, RUN = 4;
    __device__ static int column(int c) { return c / RUN * (RUN * KEY_LANES) + key_lane() * RUN + c % RUN; }
    __device__ void regroup() {}
    __device__ static int regrouped(int c) { return column(c); }
};

// The lanes' n-th keys lie side by side, so that they are read together.
struct Dealt {
    __device__ static int place(int key) {
        constexpr int RUN = Scores::RUN, GROUP = RUN * KEY_LANES;
        return (key / GROUP * RUN + key % RUN) * KEY_LANES + key % GROUP / RUN;
    }
};
using KTile = FloatTile<HEAD_DIM, QK_COLUMNS, QK_ROW, Dealt>;

using Queries = FloatQueries<QK_COLUMNS, QK_ROW>;

// And behind it a strip of weights for each wave.
struct VTile : FloatTile<VALUE_DIM, V_COLUMNS, V_COLUMNS, InOrder> {
    using Base = FloatTile<VALUE_DIM, V_COLUMNS, V_COLUMNS, InOrder>;
    static constexpr int BYTES = Base::BYTES + BLOCK_M * STRIP_ROW * sizeof(float);

    float* weights;  // of this wave: [WAVE_ROWS][STRIP_ROW]

    __device__ VTile(const KeyRows& from, int rows, char* memory)
        : Base(from, rows, memory),
          weights(reinterpret_cast<float*>(memory + Base::BYTES) + wave_index() * WAVE_ROWS * STRIP_ROW) {}
};

// How often a loop is unrolled: enough reads to hide their latency, few enough for their registers. (AMD's compiler
// moves all reads of a body to its front.)
constexpr int READS = 16;
__device__ constexpr int unrolled(int reads) { return reads < READS ? READS / reads : 1; }

__device__ inline void multiply_qk(Scores& scores, const Queries& queries, const KTile& k) {
    constexpr int UNROLLED = unrolled(Scores::ROWS + Scores::KEYS);
    const float *q = queries.rows + row_lane() * QK_ROW, *key = k.lds + key_lane() * QK_ROW;
    scores.clear();
#pragma unroll UNROLLED
    for (int d = 0; d < QK_COLUMNS; d += 4, q += 4, key += 4) {
        Four a[Scores::ROWS];
#pragma unroll
        for (int r = 0; r < Scores::ROWS; ++r) a[r] = read(q + r * ROW_LANES * QK_ROW);
#pragma unroll
        for (int n = 0; n < Scores::KEYS; ++n) {
            const Four b = read(key + n * KEY_LANES * QK_ROW);
#pragma unroll
            for (int e = 0; e < 4; ++e)
#pragma unroll
                for (int r = 0; r < Scores::ROWS; ++r)
                    scores.at[r][n] = fmaf(a[r].at[e], b.at[e], scores.at[r][n]);
        }
    }
}

__device__ inline void multiply_pv(Output& out, const Scores& scores, const VTile& v) {
    constexpr int RUN = Scores::RUN, HELD = STRIP / KEY_LANES;
    constexpr int UNROLLED = unrolled(Scores::ROWS + Output::COLUMNS);
    float* const weights = v.weights + row_lane() * STRIP_ROW;
    const float* value = v.lds + key_lane() * Output::RUN;
#pragma unroll
    for (int first = 0; first < Scores::KEYS; first += HELD) {
        wave_sync();  // the strip was read
#pragma unroll
        for (int r = 0; r < Scores::ROWS; ++r)
#pragma unroll
            for (int n = 0; n < HELD; n += RUN) {
                Vec<float, RUN> run;
#pragma unroll
                for (int e = 0; e < RUN; ++e) run.at[e] = scores.at[r][first + n + e];
                *reinterpret_cast<Vec<float, RUN>*>(weights + r * ROW_LANES * STRIP_ROW + Scores::key(n)) = run;
            }
        wave_sync();
        const float* p = weights;
#pragma unroll UNROLLED
        for (int n = 0; n < STRIP; n += 4, p += 4) {
            Four a[Scores::ROWS];
#pragma unroll
            for (int r = 0; r < Scores::ROWS; ++r) a[r] = read(p + r * ROW_LANES * STRIP_ROW);
#pragma unroll
            for (int e = 0; e < 4; ++e, value += V_COLUMNS)
#pragma unroll
                for (int c = 0; c < Output::COLUMNS; c += 4) {
                    const Four b = read(value + c * KEY_LANES);
#pragma unroll
                    for (int r = 0; r < Scores::ROWS; ++r)
#pragma unroll
                        for (int i = 0; i < 4; ++i) {
                            const int x = r % 2 ? 3 - i : i;  // an operand is the one before's: fewer registers to read
                            out.at[r][c + x] = fmaf(a[r].at[e], b.at[x], out.at[r][c + x]);
                        }
                }
        }
    }
}
