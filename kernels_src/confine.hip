// confine_nonfinite: keep a NaN or infinity of v in the rows of out that see its key.
//
// A matrix product multiplies hidden keys by a weight of 0, and 0 * NaN is NaN: a NaN in v[j] spreads to the rows
// that do not see key j. Under a causal mask this kernel finds the columns of v that hold such a value and computes
// them again from what each row sees: out[i, d] = sum over j <= i + seq_k - seq_q of weights[i, j] * v[j, d].
//
// weights: [batch * heads * seq_q, seq_k], rows `weights_row` elements apart; v and out: [batch, heads, rows, columns]
// with strides in elements and contiguous columns; query head h reads head h / heads_per_kv of v. A block takes
// COLUMNS columns of one head.
//
// Reads v once a query head, and, where all is finite, does nothing else: a small part of what the scores' traffic
// takes. Bound by latency where heads are few.
#include "types.h"

extern "C" __global__ __launch_bounds__(BLOCK) void confine_nonfinite(const ConfineParams p) {
    constexpr int ROWS = BLOCK / COLUMNS;
    __shared__ int found[COLUMNS];
    const int chunks = (p.columns + COLUMNS - 1) / COLUMNS;
    const int head_index = blockIdx.x / chunks;
    const int b = head_index / p.heads, h = head_index % p.heads;
    const int column = threadIdx.x % COLUMNS, first = blockIdx.x % chunks * COLUMNS;
    const scalar* v = static_cast<const scalar*>(p.v) + b * p.v_batch + h / p.heads_per_kv * p.v_head + first;
    scalar* out = static_cast<scalar*>(p.out) + b * p.out_batch + h * p.out_head + first;
    const scalar* weights = static_cast<const scalar*>(p.weights) + head_index * p.seq_q * p.weights_row;

    if (threadIdx.x < COLUMNS) found[threadIdx.x] = 0;
    __syncthreads();
    bool finite = true;
    if (first + column < p.columns)
        // No early end: so that several loads are under way at once.
#pragma unroll 8
        for (i64 j = threadIdx.x / COLUMNS; j < p.seq_k; j += ROWS)
            finite &= is_finite(static_cast<float>(v[j * p.v_row + column]));
    if (!finite) found[column] = 1;  // several threads may write, all the same
    __syncthreads();

    for (int c = 0; c < COLUMNS; ++c) {
        if (!found[c]) continue;
        for (i64 i = threadIdx.x; i < p.seq_q; i += BLOCK) {
            const i64 last = i + p.seq_k - p.seq_q;  // the last key that row i sees
            float sum = 0.0f;
            for (i64 j = 0; j <= last; ++j)
                sum += static_cast<float>(weights[i * p.weights_row + j]) *
                       static_cast<float>(v[j * p.v_row + c]);
            out[i * p.out_row + c] = static_cast<scalar>(sum);
        }
    }
}
