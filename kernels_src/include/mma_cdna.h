// The layer over MFMA: gfx908, gfx90a, gfx942, gfx950, 64 lanes.
//
// Products are taken transposed, S^T = k q^T and O^T = v^T p^T: so a query is a column of the accumulator, which a
// lane holds alone or with GROUPS - 1 others, and its running maximum and sum are scalars of the lane. An accumulator
// of S^T is the second product's operand as it is (ColumnTile has v's keys in its order): the weights never leave
// their lane.
//
// Fragments (AMD matrix instruction calculator), M = 32 or 16, lane = L, GROUPS = 64 / M:
//     A[i][k], B[k][j]: i, j = L % M, k = 8 (L / M) + e, e < 8, in one instruction of gfx950. The others take half of
//     it, 4 (L / M) + e, e < 4: which k is which does not matter to the sum, so two of them do the same.
//     C[i][j]: j = L % M, i = 4 GROUPS (r / 4) + 4 (L / M) + r % 4
#pragma once

#include "tile_rows.h"

constexpr int M = MATRIX_ROWS, GROUPS = 64 / M, STEP = 8 * GROUPS;
constexpr int HELD = M * M / 64;  // elements of an accumulator in a lane
constexpr int QK_COLUMNS = (HEAD_DIM + STEP - 1) / STEP * STEP, V_COLUMNS = (VALUE_DIM + M - 1) / M * M;
static_assert(WAVE_SIZE == 64 && (M == 32 || M == 16) && WAVE_ROWS % M == 0 && BLOCK_N % M == 0);

// Weights in f16 are multiplied by this, for the sums' numerators: else the small ones of a long row would be below
// f16's normal numbers, which gfx90a's products take for 0. They are 2^LAG at most. It costs nothing: there is one
// instruction that multiplies and converts. Where one converts two, and small numbers are as good as others: 1.
#if defined(__gfx950__)
#define WEIGHT_SCALE 1.0f
#else
#define WEIGHT_SCALE (same<scalar, f16> ? 128.0f : 1.0f)
#endif

using Accumulator = float __attribute__((ext_vector_type(HELD)));

// Matrix instructions that a product over STEP elements takes.
#if defined(__gfx950__)
constexpr int PRODUCTS = 1;
#elif defined(__gfx908__)
constexpr int PRODUCTS = same<scalar, f16> ? 2 : 4;
#else
constexpr int PRODUCTS = 2;
#endif
// c + a b over STEP elements. A template, so that only the branch that is taken is looked at.
template <int M, class Operand, class Accumulator>
__device__ inline Accumulator multiply(Operand a, Operand b, Accumulator c) {
    constexpr bool half = same<scalar, f16>;
#if defined(__gfx950__)
    if constexpr (M == 32 && half) return __builtin_amdgcn_mfma_f32_32x32x16_f16(a, b, c, 0, 0, 0);
    else if constexpr (M == 32) return __builtin_amdgcn_mfma_f32_32x32x16_bf16(a, b, c, 0, 0, 0);
    else if constexpr (half) return __builtin_amdgcn_mfma_f32_16x16x32_f16(a, b, c, 0, 0, 0);
    else return __builtin_amdgcn_mfma_f32_16x16x32_bf16(a, b, c, 0, 0, 0);
#else
    if constexpr (half) {
        if constexpr (M == 32) {
            c = __builtin_amdgcn_mfma_f32_32x32x8f16(a.lo, b.lo, c, 0, 0, 0);
            return __builtin_amdgcn_mfma_f32_32x32x8f16(a.hi, b.hi, c, 0, 0, 0);
        } else {
            c = __builtin_amdgcn_mfma_f32_16x16x16f16(a.lo, b.lo, c, 0, 0, 0);
            return __builtin_amdgcn_mfma_f32_16x16x16f16(a.hi, b.hi, c, 0, 0, 0);
        }
    } else {
        using Short8 = short __attribute__((ext_vector_type(8)));
        const Short8 x = __builtin_bit_cast(Short8, a), y = __builtin_bit_cast(Short8, b);
#if defined(__gfx908__)
        if constexpr (M == 32) {
            c = __builtin_amdgcn_mfma_f32_32x32x4bf16(x.lo.lo, y.lo.lo, c, 0, 0, 0);
            c = __builtin_amdgcn_mfma_f32_32x32x4bf16(x.lo.hi, y.lo.hi, c, 0, 0, 0);
            c = __builtin_amdgcn_mfma_f32_32x32x4bf16(x.hi.lo, y.hi.lo, c, 0, 0, 0);
            return __builtin_amdgcn_mfma_f32_32x32x4bf16(x.hi.hi, y.hi.hi, c, 0, 0, 0);
        } else {
            c = __builtin_amdgcn_mfma_f32_16x16x8bf16(x.lo.lo, y.lo.lo, c, 0, 0, 0);
            c = __builtin_amdgcn_mfma_f32_16x16x8bf16(x.lo.hi, y.lo.hi, c, 0, 0, 0);
            c = __builtin_amdgcn_mfma_f32_16x16x8bf16(x.hi.lo, y.hi.lo, c, 0, 0, 0);
            return __builtin_amdgcn_mfma_f32_16x16x8bf16(x.hi.hi, y.hi.hi, c, 0, 0, 0);
        }
#else
        if constexpr (M == 32) {
            c = __builtin_amdgcn_mfma_f32_32x32x8bf16_1k(x.lo, y.lo, c, 0, 0, 0);
            return __builtin_amdgcn_mfma_f32_32x32x8bf16_1k(x.hi, y.hi, c, 0, 0, 0);
        } else {
            c = __builtin_amdgcn_mfma_f32_16x16x16bf16_1k(x.lo, y.lo, c, 0, 0, 0);
            return __builtin_amdgcn_mfma_f32_16x16x16bf16_1k(x.hi, y.hi, c, 0, 0, 0);
        }
#endif
    }
#endif
}

__device__ inline int lane_column() { return lane_index() % M; }
__device__ inline int lane_group() { return lane_index() / M; }

// Over the lanes that share a query.
__device__ inline float row_max(float x) {
#pragma unroll
    for (int distance = M; distance < 64; distance *= 2) x = fmaxf(x, __shfl_xor(x, distance, 64));
    return x;
}
__device__ inline float row_sum(float x) {
#pragma unroll
    for (int distance = M; distance < 64; distance *= 2) x += __shfl_xor(x, distance, 64);
    return x;
}
__device__ inline bool leads_row() { return lane_group() == 0; }

constexpr int NEIGHBOURS = 4;
__device__ inline int held_row(int e) { return 4 * GROUPS * (e / 4) + 4 * lane_group() + e % 4; }

#include "transposed.h"

using KTile = RowTile<HEAD_DIM, QK_COLUMNS>;
// Narrow pieces where that gives more threads a part.
constexpr int V_WIDTH = BLOCK_N / 4 * (V_COLUMNS / 8) >= THREADS ? 8 : 4;
using VTile = ColumnTile<VALUE_DIM, V_COLUMNS, GROUPS, V_WIDTH>;

struct Queries {
    static constexpr int BYTES = 0, STEPS = QK_COLUMNS / STEP;
    Eight at[Scores::ROWS][STEPS];

    // `rows` of the block; `count` of them exist.
    template <class Rows>
    __device__ void load(const Rows& rows, int count, bool negate, char*) {
#pragma unroll
        for (int r = 0; r < Scores::ROWS; ++r) {
            const int row = wave_index() * WAVE_ROWS + Scores::row(r);
#pragma unroll
            for (int s = 0; s < STEPS; ++s) {
                at[r][s] = row < count ? load_eight<HEAD_DIM>(rows.at(row), s * STEP + 8 * lane_group()) : Eight(0);
                if (negate) at[r][s] = -at[r][s];
            }
        }
    }
};

// The order that the compiler is asked for, instruction by instruction: reads from LDS some products ahead, as their
// answers take longer than one, and other arithmetic beside the products where there is some.
#ifdef OVERLAPPED_PRODUCTS
constexpr bool OVERLAPPED = true;
#else
constexpr bool OVERLAPPED = false;
#endif
constexpr int QK_READS = BLOCK_N / M * (QK_COLUMNS / STEP), PV_READS = BLOCK_N / STEP * (V_COLUMNS / M);
constexpr int ARITHMETIC = 0x2, MATRIX = 0x8, LDS_READ = 0x100;

template <int KIND, int COUNT>
__device__ inline void then() {
#if defined(__AMDGCN__)
    if constexpr (COUNT != 0) __builtin_amdgcn_sched_group_barrier(KIND, COUNT, 0);
#endif
}
template <int READS, int BESIDE>
__device__ inline void then_multiply() {
#pragma unroll
    for (int i = 0; i < READS; ++i) {
#pragma unroll
        for (int n = 0; n < WAVE_ROWS / M * PRODUCTS; ++n) then<MATRIX, 1>(), then<ARITHMETIC, BESIDE>();
        then<LDS_READ, 1>();
    }
}
// Of q k^T. Which order the compiler then finds is best with so many, by a count of the cycles of its loop.
constexpr int READS_AHEAD = same<scalar, f16> && QK_COLUMNS == 64 ? 2 : 4;
__device__ inline void order_qk() { then<LDS_READ, READS_AHEAD>(), then_multiply<QK_READS, 0>(); }
__device__ inline void order_pv() {
#if defined(__gfx950__)
    if constexpr (V_COLUMNS > 64) then<LDS_READ, 4>(), then<ARITHMETIC, 32>(), then_multiply<PV_READS, 0>();
#endif
}
__device__ inline void order_tile() {
    then<LDS_READ, 8>(), then_multiply<QK_READS, 1>(), then_multiply<PV_READS, 0>();
}

__device__ inline void multiply_qk(Scores& scores, const Queries& q, const KTile& k) {
    scores.clear();
#pragma unroll
    for (int t = 0; t < BLOCK_N / M; ++t)
#pragma unroll
        for (int s = 0; s < Queries::STEPS; ++s) {
            const Eight keys = k.at(t * M + lane_column(), s * STEP + 8 * lane_group());
#pragma unroll
            for (int r = 0; r < Scores::ROWS; ++r) scores.tile[r][t] = multiply<M>(keys, q.at[r][s], scores.tile[r][t]);
        }
    if constexpr (!OVERLAPPED) order_qk();
}

// Weights as operands, rounded to nearest even.
__device__ inline Eight pack_weights(const float (&x)[8]) {
    Eight packed;
#if !defined(__gfx950__)
    if constexpr (same<scalar, bf16>) {
        // What the compiler makes of a conversion looks for NaN as well; a row with one becomes NaN through its sum.
        using Words = unsigned __attribute__((ext_vector_type(4)));
        Words words;
#pragma unroll
        for (int w = 0; w < 4; ++w) {
            unsigned bits[2];
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const unsigned u = __builtin_bit_cast(unsigned, x[2 * w + e]);
                bits[e] = u + 0x7fff + (u >> 16 & 1);
            }
            words[w] = __builtin_amdgcn_perm(bits[1], bits[0], 0x07060302);
        }
        return __builtin_bit_cast(Eight, words);
    }
#endif
#pragma unroll
    for (int e = 0; e < 8; ++e) packed[e] = static_cast<scalar>(x[e] * WEIGHT_SCALE);
    return packed;
}

__device__ inline void multiply_pv(Output& out, const Scores& weights, const VTile& v) {
#pragma unroll
    for (int step = 0; step < BLOCK_N / STEP; ++step) {
        Eight p[Scores::ROWS];
#pragma unroll
        for (int r = 0; r < Scores::ROWS; ++r) {
            float x[8];
#pragma unroll
            for (int e = 0; e < 8; ++e) x[e] = weights.get(r, step * 8 + e);
            p[r] = pack_weights(x);
        }
#pragma unroll
        for (int t = 0; t < V_COLUMNS / M; ++t) {
            const Eight values = v.at(t * M + lane_column(), step * STEP + 8 * lane_group());
#pragma unroll
            for (int r = 0; r < Scores::ROWS; ++r) out.tile[r][t] = multiply<M>(values, p[r], out.tile[r][t]);
        }
    }
    if constexpr (!OVERLAPPED) order_pv();
}
