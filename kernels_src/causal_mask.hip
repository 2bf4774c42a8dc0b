// causal_mask_kernel: scores[i, j] = -inf where query i does not see key j, that is j > i + seq_k - seq_q.
//
// scores: [matrices, seq_q, seq_k] of `scalar`, rows `stride` elements apart throughout; rows = matrices * seq_q.
// The last query stands at the last key, so that the queries of a step see all that a KV cache holds.
//
// Bound by memory: writes each hidden element once, VECTOR of them an access where all are hidden; reads nothing
// and touches no other element.
#include "rows.h"

extern "C" __global__ __launch_bounds__(BLOCK) void causal_mask_kernel(const CausalMaskParams p) {
    float hidden[VECTOR];
#pragma unroll
    for (int e = 0; e < VECTOR; ++e) hidden[e] = -INF;

    const Share share = share_rows(p.row_shift, p.blocks_per_row);
    for (i64 row = share.row; row < p.rows; row += share.row_step) {
        scalar* scores = static_cast<scalar*>(p.scores) + row * p.stride;
        // A remainder of 64 bits takes longer than writing the row.
        const i64 query = p.rows >> 32 ? row % p.seq_q : static_cast<unsigned>(row) % static_cast<unsigned>(p.seq_q);
        const i64 after = query + p.seq_k - p.seq_q + 1;
        const i64 first = after > 0 ? after : 0;
        const i64 aligned = first - first % VECTOR;
        for (i64 column = aligned + share.column; column < p.seq_k; column += share.column_step) {
            if (column >= first) {
                store_row(hidden, scores, column, p.seq_k);
            } else {
#pragma unroll
                for (int e = 1; e < VECTOR; ++e)
                    if (column + e >= first && column + e < p.seq_k) scores[column + e] = static_cast<scalar>(-INF);
            }
        }
    }
}
