// norm_rows: out[row] = (x - mean) / sqrt(variance + eps) * weight + bias, the variance that of the row (LayerNorm);
// without LAYER mean is 0: x / sqrt(mean(x^2) + eps) * weight (RMSNorm).
//
// x: [rows, columns] of `in_scalar`, rows `in_stride` elements apart; out: the same shape of `out_scalar`, rows
// `out_stride` apart. weight, bias (with BIAS): [columns] of `weight_scalar`. With RESIDUAL what is normalised is
// x + residual, of x's type, in float32; with SUM it is written to sum_out as well, rounded to x's type. out may be
// x or residual where type and stride are the same, and so may sum_out; not both the same.
//
// GROUP threads take a row: part of a wave, a wave, or the block, whose waves meet in LDS. A row of at most
// GROUP * HELD elements is read once and stays in registers; of a longer one (HELD = 0) each step reads it again, and
// the last one writes, so that it never matters whether outputs are inputs. The variance is of the differences to
// the mean, not a difference of sums: rows far from 0 keep their digits.
//
// Bound by memory: each element is read and written once, VECTOR of them an access; the weights stay in the cache.
#include "types.h"
#include "hints.h"
#include "reduce.h"

static_assert(GROUP <= WAVE_SIZE || GROUP == BLOCK, "a row is taken by part of a wave, a wave, or the block");
static_assert(HELD % VECTOR == 0, "a thread holds whole vectors");
static_assert(RESIDUAL || !SUM, "the sum is that of x and the residual");

__device__ inline float group_sum(float x, float* scratch) {
    if constexpr (GROUP <= WAVE_SIZE) return wave_sum<GROUP>(x);
    else return block_sum<BLOCK>(x, scratch);
}

struct Row {
    const in_scalar* in;
    const in_scalar* residual;
    in_scalar* sum;
    out_scalar* out;
    const weight_scalar* weight;
    const weight_scalar* bias;
    i64 columns;
    float inverse_columns, eps;
    int thread;  // in the group
};

// VECTOR elements of the row, 0 past its end.
__device__ inline void load_sum(float (&x)[VECTOR], const Row& row, i64 column) {
    load_row(x, row.in, column, row.columns, 0.0f);
    if constexpr (RESIDUAL) {
        float other[VECTOR];
        load_row(other, row.residual, column, row.columns, 0.0f);
#pragma unroll
        for (int e = 0; e < VECTOR; ++e) x[e] += other[e];
    }
}

// The squares of the elements' distances to `mean`; none past the row's end.
__device__ inline float squares(const float (&x)[VECTOR], const Row& row, i64 column, float mean) {
    float sum = 0.0f;
#pragma unroll
    for (int e = 0; e < VECTOR; ++e) {
        const float distance = column + e < row.columns ? x[e] - mean : 0.0f;
        sum += distance * distance;
    }
    return sum;
}

__device__ inline void store_normal(float (&x)[VECTOR], const Row& row, i64 column, float mean, float factor) {
    if constexpr (SUM) store_row(x, row.sum, column, row.columns);
    float weight[VECTOR], bias[VECTOR];
    load_row(weight, row.weight, column, row.columns, 0.0f);
    if constexpr (BIAS) load_row(bias, row.bias, column, row.columns, 0.0f);
#pragma unroll
    for (int e = 0; e < VECTOR; ++e) {
        x[e] = (x[e] - mean) * factor * weight[e];
        if constexpr (BIAS) x[e] += bias[e];
    }
    store_row(x, row.out, column, row.columns);
}

__device__ inline float factor_of(float sum_of_squares, const Row& row) {
    return 1.0f / sqrtf(sum_of_squares * row.inverse_columns + row.eps);
}

// Each pass has columns of its own: of the same ones, addresses and masks would stay in registers from pass to pass.
__device__ inline void norm_held(const Row& row, float* scratch) {
    constexpr int VECTORS = HELD > 0 ? HELD / VECTOR : 1;  // compiled, though not called, for HELD = 0 too
    float x[VECTORS][VECTOR];
    float mean = 0.0f, sum = 0.0f;
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) load_sum(x[v], row, (v * GROUP + row.thread) * VECTOR);
    if constexpr (LAYER) {
#pragma unroll
        for (int v = 0; v < VECTORS; ++v)
#pragma unroll
            for (int e = 0; e < VECTOR; ++e) sum += x[v][e];
        mean = group_sum(sum, scratch) * row.inverse_columns;
        sum = 0.0f;
    }
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) sum += squares(x[v], row, own_value((v * GROUP + row.thread) * VECTOR), mean);
    const float factor = factor_of(group_sum(sum, scratch), row);
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
        const int column = own_value((v * GROUP + row.thread) * VECTOR);
        if (column < row.columns) store_normal(x[v], row, column, mean, factor);
    }
}

__device__ inline void norm_streamed(const Row& row, float* scratch) {
    const i64 first = row.thread * VECTOR;
    constexpr int STEP = GROUP * VECTOR;
    float x[VECTOR];
    float mean = 0.0f, sum = 0.0f;
    if constexpr (LAYER) {
        for (i64 column = first; column < row.columns; column += STEP) {
            load_sum(x, row, column);
#pragma unroll
            for (int e = 0; e < VECTOR; ++e) sum += x[e];
        }
        mean = group_sum(sum, scratch) * row.inverse_columns;
        sum = 0.0f;
    }
    for (i64 column = first; column < row.columns; column += STEP) {
        load_sum(x, row, column);
        sum += squares(x, row, column, mean);
    }
    const float factor = factor_of(group_sum(sum, scratch), row);
    for (i64 column = first; column < row.columns; column += STEP) {
        load_sum(x, row, column);
        store_normal(x, row, column, mean, factor);
    }
}

extern "C" __global__ __launch_bounds__(BLOCK) void norm_rows(const NormParams p) {
    __shared__ float scratch[BLOCK / WAVE_SIZE];
    constexpr int ROWS = BLOCK / GROUP;
    for (i64 base = static_cast<i64>(blockIdx.x) * ROWS; base < p.rows; base += static_cast<i64>(gridDim.x) * ROWS) {
        const i64 index = base + (GROUP == BLOCK ? 0 : threadIdx.x / GROUP);  // 0: the row's addresses are scalars
        const Row row = {
            static_cast<const in_scalar*>(p.x) + index * p.in_stride,
            static_cast<const in_scalar*>(p.residual) + index * p.residual_stride,
            static_cast<in_scalar*>(p.sum_out) + index * p.sum_stride,
            static_cast<out_scalar*>(p.out) + index * p.out_stride,
            static_cast<const weight_scalar*>(p.weight),
            static_cast<const weight_scalar*>(p.bias),
            index < p.rows ? p.columns : 0,  // past the last row: nothing to read, but a part in the reductions
            1.0f / static_cast<float>(p.columns),
            p.eps,
            // Of this row: addresses and masks of its columns would be kept from row to row.
            own_offset(static_cast<int>(threadIdx.x % GROUP), static_cast<int>(base)),
        };
        if constexpr (HELD > 0) norm_held(row, scratch);
        else norm_streamed(row, scratch);
    }
}
