// kv_append: writes new keys and values into their caches, both in one launch.
//
// k, v: [batch, tokens, heads, k_dim or v_dim] of `scalar` (any type of its size: bits are copied), with strides in
// elements for all but the last dimension; token t goes to cache token `position` + t of the same batch entry and
// head. A row is one head of one token; the first half of the rows is k, the second v.
//
// Bound by memory: each element is read and written once, VECTOR of them (16 bytes where alignment allows) an
// access.
#include "rows.h"

extern "C" __global__ __launch_bounds__(BLOCK) void kv_append(const KvAppendParams p) {
    const Share share = share_rows(p.row_shift, p.blocks_per_row);
    const unsigned half = p.batch * p.tokens * p.heads;  // the host checks that twice this fits
    for (i64 row = share.row; row < 2 * static_cast<i64>(half); row += share.row_step) {
        const bool is_v = row >= half;
        const unsigned index = static_cast<unsigned>(row) - (is_v ? half : 0);
        const i64 h = index % p.heads, t = index / p.heads % p.tokens, b = index / p.heads / p.tokens;
        const scalar* from = is_v
            ? static_cast<const scalar*>(p.v) + b * p.v_batch + t * p.v_token + h * p.v_head
            : static_cast<const scalar*>(p.k) + b * p.k_batch + t * p.k_token + h * p.k_head;
        const i64 at = p.position + t;
        scalar* to = is_v
            ? static_cast<scalar*>(p.v_cache) + b * p.v_cache_batch + at * p.v_cache_token + h * p.v_cache_head
            : static_cast<scalar*>(p.k_cache) + b * p.k_cache_batch + at * p.k_cache_token + h * p.k_cache_head;
        const i64 columns = is_v ? p.v_dim : p.k_dim;
        for (i64 column = share.column; column < columns; column += share.column_step) {
            if (column + VECTOR <= columns) {
                using Several = Vec<scalar, VECTOR>;
                *reinterpret_cast<Several*>(to + column) = *reinterpret_cast<const Several*>(from + column);
            } else {
                for (int e = 0; e < VECTOR && column + e < columns; ++e) to[column + e] = from[column + e];
            }
        }
    }
}
