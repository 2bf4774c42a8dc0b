// The layer over mma.sync m16n8k8 for float32: NVIDIA GPUs of compute capability 8.0 on.
//
// The instruction takes 11 bits of a number's significand. So each operand becomes two parts that have 22, and a
// product three: big * big and what each small adds to it (Ootomo and Yokota 2022, arXiv:2203.03341). The instruction
// cuts its sums off rather than round them; so a sum goes through few of them, and is added by a plain addition to
// those before it.
//
// What is summed over may come in any order, if it is the same for both operands. So a lane reads neighbours in LDS at
// once: columns of q and k, and of v, whose columns in turn are dealt such that a lane's sums are neighbours.
#pragma once

#include "tile_float.h"
#include "fragments_nvidia.h"

// The eight lanes that are served together read from different banks: four pieces of two rows of q or k, two pieces of
// every other of eight rows of v.
constexpr int QK_ROW = QK_COLUMNS + (QK_COLUMNS % 32 ? 0 : 16), V_ROW = V_COLUMNS + 4;

using Queries = FloatQueries<QK_COLUMNS, QK_ROW>;
using KTile = FloatTile<HEAD_DIM, QK_COLUMNS, QK_ROW, InOrder>;
using VTile = FloatTile<VALUE_DIM, V_COLUMNS, V_ROW, InOrder>;

// Of each 16 columns two tiles, dealt such that a lane has four neighbours.
struct Output : Accumulators<V_COLUMNS> {
    static constexpr int COLUMNS = EACH, RUN = 4;
    __device__ float get(int r, int c) const { return at[r / 2][c / 4 * 2 + c % 2][r % 2 * 2 + c % 4 / 2]; }
    __device__ void set(int r, int c, float x) { at[r / 2][c / 4 * 2 + c % 2][r % 2 * 2 + c % 4 / 2] = x; }
    __device__ static int column(int c) { return c / 4 * 16 + lane_index() % 4 * 4 + c % 4; }
    __device__ void regroup() {}
    __device__ static int regrouped(int c) { return column(c); }
};

constexpr int ROW_TILES = WAVE_ROWS / 16;

struct Parts {
    unsigned big, small;
};

// GUARDED: x may be infinite. Then all of it is small: of the other operand's parts only the big one is multiplied by
// it. (What would be rounded to infinity counts as infinite here.)
template <bool GUARDED = true>
__device__ inline Parts parts(float x) {
    const unsigned rounded = (__builtin_bit_cast(unsigned, x) + 0x1000u) & 0xffffe000u;
    float big = __builtin_bit_cast(float, rounded);
    if (GUARDED && fabsf(big) == INF) big = 0.0f;
    return {__builtin_bit_cast(unsigned, big), __builtin_bit_cast(unsigned, x - big)};
}

// A left operand: of rows L / 4 and L / 4 + 8 an element each, and then another each.
struct Left {
    unsigned big[4], small[4];
    template <bool GUARDED = true>
    __device__ void set(int e, float x) {
        const Parts both = parts<GUARDED>(x);
        big[e] = both.big;
        small[e] = both.small;
    }
};

__device__ inline void multiply(float (&c)[4], const Left& a, const Parts& b0, const Parts& b1) {
    multiply_tf32(c, a.small, b0.big, b1.big);
    multiply_tf32(c, a.big, b0.small, b1.small);
    multiply_tf32(c, a.big, b0.big, b1.big);
}

__device__ inline void add(float (&sum)[4], const float (&more)[4]) {
#pragma unroll
    for (int e = 0; e < 4; ++e) sum[e] += more[e];
}

__device__ inline void multiply_qk(Scores& scores, const Queries& queries, const KTile& k) {
    const int place = lane_index() / 4 * QK_ROW + lane_index() % 4 * 4;
    const float *q = queries.rows + place, *keys = k.lds + place;
    scores.clear();
#pragma unroll 2
    for (int column = 0; column < QK_COLUMNS; column += 16) {
        Left a[ROW_TILES][2];
#pragma unroll
        for (int m = 0; m < ROW_TILES; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const Four x = read(q + (m * 16 + half * 8) * QK_ROW + column);
#pragma unroll
                for (int e = 0; e < 4; ++e) a[m][e / 2].set(e % 2 * 2 + half, x.at[e]);
            }
#pragma unroll
        for (int t = 0; t < BLOCK_N / 8; ++t) {
            const Four x = read(keys + t * 8 * QK_ROW + column);
            Parts b[4];
#pragma unroll
            for (int e = 0; e < 4; ++e) b[e] = parts(x.at[e]);
#pragma unroll
            for (int m = 0; m < ROW_TILES; ++m) {
                float sum[4] = {};
                multiply(sum, a[m][0], b[0], b[1]);
                multiply(sum, a[m][1], b[2], b[3]);
                add(scores.at[m][t], sum);
            }
        }
    }
}

__device__ inline void multiply_pv(Output& out, const Scores& weights, const VTile& v) {
    constexpr int AT_ONCE = BLOCK_N % 32 ? 16 : 32, STEPS = AT_ONCE / 8;  // keys
    const float* values = v.lds + lane_index() % 4 * 2 * V_ROW + lane_index() / 4 * 2;
#pragma unroll
    for (int first = 0; first < BLOCK_N; first += AT_ONCE) {
        Left p[ROW_TILES][STEPS];
#pragma unroll
        for (int m = 0; m < ROW_TILES; ++m)
#pragma unroll
            for (int s = 0; s < STEPS; ++s)
#pragma unroll
                for (int e = 0; e < 4; ++e)
                    p[m][s].template set<false>(e % 2 * 2 + e / 2, weights.at[m][first / 8 + s][e]);
#pragma unroll
        for (int column = 0; column < V_COLUMNS; column += 16) {
            float sum[ROW_TILES][2][4] = {};
#pragma unroll
            for (int s = 0; s < STEPS; ++s) {
                Parts b[2][2];
#pragma unroll
                for (int row = 0; row < 2; ++row) {
                    const float* at = values + (first + s * 8 + row) * V_ROW + column;
                    const auto x = *reinterpret_cast<const Vec<float, 2>*>(at);
#pragma unroll
                    for (int t = 0; t < 2; ++t) b[t][row] = parts(x.at[t]);
                }
#pragma unroll
                for (int m = 0; m < ROW_TILES; ++m)
#pragma unroll
                    for (int t = 0; t < 2; ++t) multiply(sum[m][t], p[m][s], b[t][0], b[t][1]);
            }
#pragma unroll
            for (int m = 0; m < ROW_TILES; ++m)
#pragma unroll
                for (int t = 0; t < 2; ++t) add(out.at[m][column / 8 + t], sum[m][t]);
        }
    }
}
