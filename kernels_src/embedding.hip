// embedding: out[row] = table[ids[row]] * scale + table1[ids1[row]] + table2[ids2[row]]: the first ADDED of the two.
//
// A table: [its size, columns] of `scalar`, rows a stride apart. ids: int [batch, tokens] with a stride each; row
// b * tokens + t of out takes ids[b, t]. out: [batch * tokens, columns] of `out_scalar`, rows `out_stride` apart. The
// sum is formed in float32 and rounded once. A row with an id outside its table becomes NaN: nothing is read outside,
// and nothing that looks right is written.
//
// Bound by memory: each element is read and written once, VECTOR of them an access.
#include "rows.h"

static_assert(ADDED >= 0 && ADDED <= 2, "one table, and up to two more");

constexpr int TABLES = 1 + ADDED;

extern "C" __global__ __launch_bounds__(BLOCK) void embedding(const EmbeddingParams p) {
    const Share share = share_rows(p.row_shift, p.blocks_per_row);
    for (i64 row = share.row; row < p.rows; row += share.row_step) {
        const i64 b = row / p.tokens, t = row % p.tokens;
        out_scalar* out = static_cast<out_scalar*>(p.out) + row * p.out_stride;
        const scalar* from[TABLES];
        bool known = true;
#pragma unroll
        for (int i = 0; i < TABLES; ++i) {
            const i64 at = b * p.ids_batch[i] + t * p.ids_token[i];
            const i64 id = static_cast<const int*>(p.ids[i])[at];
            known = known && id >= 0 && id < p.sizes[i];
            from[i] = static_cast<const scalar*>(p.tables[i]) + id * p.strides[i];
        }
        for (i64 column = share.column; column < p.columns; column += share.column_step) {
            float values[VECTOR];
            if (known) {
                load_row(values, from[0], column, p.columns, 0.0f);
#pragma unroll
                for (int e = 0; e < VECTOR; ++e) values[e] *= p.scale;
#pragma unroll
                for (int i = 1; i < TABLES; ++i) {
                    float more[VECTOR];
                    load_row(more, from[i], column, p.columns, 0.0f);
#pragma unroll
                    for (int e = 0; e < VECTOR; ++e) values[e] += more[e];
                }
            } else {
#pragma unroll
                for (int e = 0; e < VECTOR; ++e) values[e] = INF - INF;
            }
            store_row(values, out, column, p.columns);
        }
    }
}
