// rope_append: turns queries and keys by their position, and writes keys and values into a cache, in one launch.
//
// q, k: [batch, tokens, heads or heads_kv, head_dim] of `scalar`, turned where they lie: see rotary.h; `rest` elements
// after the 2 * `pairs` that are turned stay as they are. v: [batch, tokens, heads_kv, v_dim]. Strides in elements for
// all but the last dimension.
//
// Token t of sequence b has the position start + ends[b] + t, in RoPE and in the cache; ends is int [batch] or null.
// Caches: [pages, page_size, heads_kv, dim], strides likewise. The position is in slot position % page_size of page
// table[b, position / page_size], int [batch, max_pages], rows `table_row` apart; where table is null, sequence b has
// page b alone. A token that has no place there is turned, and not written. Caches are of `scalar` too, or with FP8 of
// e4m3: see cache_store.h; `scales`, of keys and of values, are float [heads_kv].
//
// Bound by memory, almost, as rope is; with one token of each sequence by the launch, of which this saves one.
// `pairs`, `rest` and `v_dim` are multiples of VECTOR. A row is one head of one token. What differs between the three
// lies in arrays, for a thread to look up: one by one it would not fit the scalar registers.
#include "cache_store.h"
#include "rotary.h"
#include "rows.h"

enum Which { Q, K, V };

extern "C" __global__ __launch_bounds__(BLOCK) void rope_append(const RopeAppendParams p) {
    const Share share = share_rows(p.row_shift, p.blocks_per_row);
    const unsigned heads = p.heads + 2 * p.heads_kv;
    const i64 rows = static_cast<i64>(p.batch) * p.tokens * heads;  // the host checks that an unsigned holds it
    const int *ends = static_cast<const int*>(p.ends), *table = static_cast<const int*>(p.table);
    for (i64 row = share.row; row < rows; row += share.row_step) {
        const unsigned index = static_cast<unsigned>(row), head = index % heads;
        const i64 t = index / heads % p.tokens, b = index / heads / p.tokens;
        const i64 position = p.start + t + (ends ? ends[b] : 0);
        const int which = head < p.heads ? Q : head < p.heads + p.heads_kv ? K : V;
        const i64 h = head - (which == Q ? 0 : which == K ? p.heads : p.heads + p.heads_kv);
        scalar* x = static_cast<scalar*>(p.x[which]);
        x += b * p.x_batch[which] + t * p.x_token[which] + h * p.x_head[which];

        stored* to = nullptr;
        float scale = 1.0f;
        if (which != Q && position >= 0 && position < static_cast<i64>(p.max_pages) * p.page_size) {
            const unsigned at = static_cast<unsigned>(position), number = at / p.page_size;
            const i64 page = table ? table[b * p.table_row + number] : b, slot = at - number * p.page_size;
            if (page >= 0 && page < p.pages)
                to = static_cast<stored*>(p.cache[which - K]) + page * p.cache_page[which - K]
                    + slot * p.cache_token[which - K] + h * p.cache_head[which - K];
            if (FP8) scale = static_cast<const float*>(p.scales[which - K])[h];
        }

        const i64 after = which == V ? 0 : 2 * static_cast<i64>(p.pairs);
        if (which != V)
            for (i64 pair = share.column; pair < p.pairs; pair += share.column_step) {
                const Pairs pairs = turned(x, pair, static_cast<float>(position), p);
                store(pairs, x);
                if (to) {
                    put(pairs.values[0], to + pairs.first, scale);
                    put(pairs.values[1], to + pairs.second, scale);
                }
            }
        if (to)
            for (i64 column = share.column; column < (which == V ? p.v_dim : p.rest); column += share.column_step)
                put(x + after + column, to + after + column, VECTOR, scale);
    }
}
