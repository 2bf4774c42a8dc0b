// paged_append: writes new keys and values into the pages of their sequences, both in one launch.
//
// k, v: [batch, tokens, heads, k_dim or v_dim] of `scalar`, or with PACKED [total, heads, dim], where sequence b has
// tokens starts[b] to starts[b + 1] - 1; strides in elements for all but the last dimension. Pools: [pages, page_size,
// heads, dim], with strides likewise. lengths: int [batch], what each sequence holds with its new tokens, which are its
// last ones. table: int [batch, max_pages], rows `table_row` apart: token t of sequence b is in slot t % page_size of
// page table[b, t / page_size]. A token whose place is not in the table, or whose page is not in the pool, is not
// written. A row is one head of one token; the first half of the rows is k, the second v.
//
// Pools are of `scalar` too, or with FP8 of e4m3: see cache_store.h; k_scales and v_scales are float [heads].
//
// Bound by memory: each element is read and written once, VECTOR of them (16 bytes where alignment allows) an access.
#include "cache_store.h"
#include "rows.h"

struct Token {
    int sequence, number, of;  // `number` of the `of` new tokens of the sequence
};

// Finds which sequence a packed token belongs to: the last one that starts at or before it.
__device__ inline Token unpack(int token, const int* starts, int batch) {
    int first = 0, end = batch;
    while (end - first > 1) {
        const int middle = first + (end - first) / 2;
        if (starts[middle] <= token) first = middle;
        else end = middle;
    }
    return {first, token - starts[first], starts[first + 1] - starts[first]};
}

extern "C" __global__ __launch_bounds__(BLOCK) void paged_append(const PagedAppendParams p) {
    const Share share = share_rows(p.row_shift, p.blocks_per_row);
    const unsigned half = p.total * p.heads;  // the host checks that twice this fits
    for (i64 row = share.row; row < 2 * static_cast<i64>(half); row += share.row_step) {
        const bool is_v = row >= half;
        const unsigned index = static_cast<unsigned>(row) - (is_v ? half : 0);
        const i64 h = index % p.heads;
        const int at = index / p.heads, tokens = p.tokens;
        const Token token = PACKED ? unpack(at, static_cast<const int*>(p.starts), p.batch)
                                   : Token{at / tokens, at % tokens, tokens};
        const int position = static_cast<const int*>(p.lengths)[token.sequence] - token.of + token.number;
        const int number = position / p.page_size;
        if (token.number < 0 || token.number >= token.of || position < 0 || number >= p.max_pages) continue;
        const i64 page = static_cast<const int*>(p.table)[token.sequence * p.table_row + number];
        if (page < 0 || page >= p.pages) continue;
        const i64 slot = position % p.page_size;
        const i64 b = PACKED ? 0 : token.sequence, t = PACKED ? at : token.number;
        const scalar* from = is_v
            ? static_cast<const scalar*>(p.v) + b * p.v_batch + t * p.v_token + h * p.v_head
            : static_cast<const scalar*>(p.k) + b * p.k_batch + t * p.k_token + h * p.k_head;
        stored* to = is_v
            ? static_cast<stored*>(p.v_pool) + page * p.v_pool_page + slot * p.v_pool_token + h * p.v_pool_head
            : static_cast<stored*>(p.k_pool) + page * p.k_pool_page + slot * p.k_pool_token + h * p.k_pool_head;
        const float scale = FP8 ? static_cast<const float*>(is_v ? p.v_scales : p.k_scales)[h] : 1.0f;
        const i64 columns = is_v ? p.v_dim : p.k_dim;
        for (i64 column = share.column; column < columns; column += share.column_step)
            put(from + column, to + column, columns - column, scale);
    }
}
