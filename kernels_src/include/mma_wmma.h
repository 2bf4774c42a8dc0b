// What the layers over WMMA share. mma_rdna3.h and mma_rdna4.h, which include it, say what an operand is.
//
// Products are taken transposed, S^T = k q^T and O^T = v^T p^T: so a query is a column of the accumulator, which two
// lanes share, and its running maximum and sum are scalars of the lane. Of 16 keys, or columns of the output, a lane
// holds 8 neighbours: 8 (L / 16) + e of query L % 16.
#pragma once

constexpr int M = 16;    // rows, columns and depth of a product
constexpr int HELD = 8;  // elements of an accumulator in a lane
constexpr int QK_COLUMNS = (HEAD_DIM + M - 1) / M * M, V_COLUMNS = (VALUE_DIM + M - 1) / M * M;
static_assert(WAVE_ROWS % M == 0 && BLOCK_N % M == 0);

constexpr int NEIGHBOURS = HELD;
__device__ inline int held_row(int e) { return lane_half() * HELD + e; }

#include "transposed.h"

using KTile = RowTile<HEAD_DIM, QK_COLUMNS, RowOrder>;
// Keys in their order. Fewer columns a thread where there are more threads than work.
using VTile = ColumnTile<VALUE_DIM, V_COLUMNS, 1, (V_COLUMNS * BLOCK_N > 16 * THREADS ? 8 : 4), RowOrder>;

// The wave's rows of q, as operands: in registers if there are enough, else in LDS, where a lane finds what it wrote.
struct Queries {
    static constexpr int STEPS = QK_COLUMNS / M, ROW = QK_COLUMNS + PAD;
    static constexpr bool IN_LDS = HEAD_DIM > LARGEST_HELD;
    static constexpr int BYTES = IN_LDS ? BLOCK_M * ROW * sizeof(scalar) : 0;

    // `rows` of the block; `count` of them exist.
    template <class Rows>
    __device__ void load(const Rows& rows, int count, bool negate, char* memory) {
        lds = reinterpret_cast<scalar*>(memory);
        const bool idle = ROW_WAVES < WAVES && wave_index() >= ROW_WAVES;
#pragma unroll
        for (int r = 0; r < Scores::ROWS; ++r) {
            const int row = wave_index() * WAVE_ROWS + Scores::row(r);
            const scalar* from = rows.at(row);
#pragma unroll
            for (int s = 0; s < STEPS; ++s) {
                const auto eight = [&](int k) {
                    Eight x = row < count ? load_eight<HEAD_DIM>(from, s * M + k) : Eight(0);
                    if (negate) x = -x;
                    if constexpr (IN_LDS)
                        if (!idle) *place(r, s, k) = x;
                    return x;
                };
                const Fragment all = gather(eight);
                if constexpr (!IN_LDS) held[r][s] = all;
            }
        }
    }
    __device__ Fragment at(int r, int s) const {
        if constexpr (IN_LDS) return gather([&](int k) { return *place(r, s, k); });
        else return held[r][s];
    }

private:
    scalar* lds;
    Fragment held[Scores::ROWS][IN_LDS ? 1 : STEPS];

    __device__ Eight* place(int r, int s, int k) const {
        return reinterpret_cast<Eight*>(lds + (wave_index() * WAVE_ROWS + Scores::row(r)) * ROW + s * M + k);
    }
};

// Eight weights, rounded to nearest even.
__device__ inline Eight narrow(Accumulator x) {
    Eight y;
    if constexpr (same<scalar, f16>) {
        // A product that is rounded once is one instruction, which packs its result as well; a conversion is not.
        const float one = unknown(1.0f);
#pragma unroll
        for (int e = 0; e < HELD; ++e) y[e] = static_cast<scalar>(x[e] * one);
    } else {
        // 65536 x less 65535 x, rounded, is x rounded to the upper half of its bits (Dekker's splitting; a tie goes to
        // even, because 65536 x is even there). No weight is infinite, or near.
        unsigned word[HELD];
#pragma unroll
        for (int e = 0; e < HELD; ++e)
            word[e] = __builtin_bit_cast(unsigned, fmaf(x[e], 65536.0f, x[e] * -65535.0f));
        unsigned pair[HELD / 2];
#pragma unroll
        for (int e = 0; e < HELD / 2; ++e) pair[e] = __builtin_amdgcn_perm(word[2 * e + 1], word[2 * e], 0x07060302);
        __builtin_memcpy(&y, pair, sizeof(y));
    }
    return y;
}

// Fragments read from LDS ahead of the product that takes them: no more than hide LDS, for each takes registers.
constexpr int AHEAD = HEAD_DIM > 192 || VALUE_DIM > 192 ? 1 : 2;

__device__ inline void multiply_qk(Scores& scores, const Queries& q, const KTile& k) {
    constexpr int TILES = BLOCK_N / M, COUNT = TILES * Queries::STEPS;
    const auto keys_of = [&](int n) {
        return gather([&](int e) { return k.at(n % TILES * M + lane_column(), n / TILES * M + e); });
    };
    scores.clear();
    Fragment keys[COUNT], queries[Scores::ROWS][Queries::STEPS];
#pragma unroll
    for (int n = 0; n < COUNT + AHEAD; ++n) {
        if (n < COUNT) {
            keys[n] = keys_of(n);
#pragma unroll
            for (int r = 0; r < Scores::ROWS; ++r)
                if (n % TILES == 0) queries[r][n / TILES] = q.at(r, n / TILES);
        }
        keep_order();
        if (n >= AHEAD) {
            const int now = n - AHEAD, t = now % TILES, s = now / TILES;
#pragma unroll
            for (int r = 0; r < Scores::ROWS; ++r)
                scores.tile[r][t] = multiply(keys[now], queries[r][s], scores.tile[r][t]);
        }
    }
#pragma unroll
    for (int r = 0; r < Scores::ROWS; ++r)
#pragma unroll
        for (int t = 0; t < TILES; ++t) finish(scores.tile[r][t]);
}

__device__ inline void multiply_pv(Output& out, const Scores& weights, const VTile& v) {
    constexpr int TILES = V_COLUMNS / M, COUNT = TILES * (BLOCK_N / M);
    const auto values_of = [&](int n) {
        return gather([&](int e) { return v.at(n % TILES * M + lane_column(), n / TILES * M + e); });
    };
    Fragment values[COUNT], p[Scores::ROWS];
#pragma unroll
    for (int n = 0; n < COUNT + AHEAD; ++n) {
        if (n < COUNT) values[n] = values_of(n);
        keep_order();
        if (n >= AHEAD) {
            const int now = n - AHEAD, t = now % TILES, s = now / TILES;
#pragma unroll
            for (int r = 0; r < Scores::ROWS; ++r) {
                if (t == 0) p[r] = as_operand(narrow(weights.tile[r][s]));
                out.tile[r][t] = multiply(values[now], p[r], out.tile[r][t]);
            }
        }
    }
}
