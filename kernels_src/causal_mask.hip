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
    const i64 query_step = share.row_step % p.seq_q;  // once: a remainder takes longer than writing a row
    i64 query = share.row % p.seq_q;
    for (i64 row = share.row; row < p.rows; row += share.row_step, query += query_step) {
        if (query >= p.seq_q) query -= p.seq_q;
        scalar* scores = static_cast<scalar*>(p.scores) + row * p.stride;
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
