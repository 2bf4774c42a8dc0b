// flash_combine: makes one of what flash_decode's blocks gave for parts of the keys.
//
// parts [rows, splits, VALUE_DIM] are the parts' outputs, part_lse [rows, splits] the logarithms, to base 2, of their
// totals; a part that saw no key has -inf there, and its output is not read. With weights w = 2^(part_lse - max):
//     out = sum w part / sum w, lse = ln(sum w) + max ln 2
//
// A block takes a row, [batch, heads, seq_q] of them. LANES threads share a part, VECTOR columns each; the parts are
// dealt out to BLOCK / LANES groups of them, which add up through LDS: in an order that depends on `splits` only.
#include "reduce.h"
#include "types.h"

constexpr float LN_2 = 0.69314718055994530942f;
constexpr int GROUPS = BLOCK / LANES;

extern "C" __global__ __launch_bounds__(BLOCK) void flash_combine(const FlashCombineParams p) {
    __shared__ float weights[MAX_SPLITS], scratch[BLOCK / WAVE_SIZE], sums[BLOCK * VECTOR];
    const int thread = threadIdx.x, splits = p.splits;
    const i64 row = blockIdx.x;

    const float* lse = static_cast<const float*>(p.part_lse) + row * splits;
    float highest = -INF;
    for (int s = thread; s < splits; s += BLOCK) highest = fmaxf(highest, lse[s]);
    highest = block_max<BLOCK>(highest, scratch);
    const float shift = highest == -INF ? 0.0f : highest;
    float total = 0.0f;
    for (int s = thread; s < splits; s += BLOCK) total += weights[s] = exp2f(lse[s] - shift);
    total = block_sum<BLOCK>(total, scratch);  // and the weights are there for all
    __syncthreads();
    if constexpr (LSE)
        if (thread == 0) static_cast<float*>(p.lse)[row] = (log2f(total) + shift) * LN_2;

    const float factor = total == 0.0f ? 0.0f : 1.0f / total;
    const int i = row % p.seq_q, h = row / p.seq_q % p.heads;
    const i64 b = row / p.seq_q / p.heads;
    scalar* out = static_cast<scalar*>(p.out) + b * p.out_batch + i * p.out_row + h * p.out_head;
    const float* parts = static_cast<const float*>(p.parts) + row * splits * VALUE_DIM;
    const int group = thread / LANES, lane = thread % LANES;
    for (int first = 0; first < VALUE_DIM; first += LANES * VECTOR) {
        const int column = first + lane * VECTOR;
        float sum[VECTOR] = {};
        if (column < VALUE_DIM)
#pragma unroll 4
            for (int s = group; s < splits; s += GROUPS) {
                const float weight = weights[s];
                float x[VECTOR] = {};
                if (weight != 0.0f) load_vector(x, parts + static_cast<i64>(s) * VALUE_DIM + column);
#pragma unroll
                for (int e = 0; e < VECTOR; ++e) sum[e] = fmaf(weight, x[e], sum[e]);
            }
        __syncthreads();  // the sums before were read
#pragma unroll
        for (int e = 0; e < VECTOR; ++e) sums[thread * VECTOR + e] = sum[e];
        __syncthreads();
        if (group == 0 && column < VALUE_DIM) {
            for (int other = 1; other < GROUPS; ++other)
#pragma unroll
                for (int e = 0; e < VECTOR; ++e) sum[e] += sums[(other * LANES + lane) * VECTOR + e];
#pragma unroll
            for (int e = 0; e < VECTOR; ++e) out[column + e] = static_cast<scalar>(sum[e] * factor);
        }
    }
}
