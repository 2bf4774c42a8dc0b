// page_copy: copies pages of a paged cache's pools, in every layer, keys and values, in one launch.
//
// k, v: [layers, pages, page] with a page of `k_bytes` or `v_bytes`, without gaps. Copy c is of page from[c] to page
// to[c]; no page that is written is read. Bytes are copied, so that all dtypes share one kernel. A row is one page of
// one layer; the first half of the rows is k, the second v.
//
// Bound by memory: each byte is read and written once, VECTOR of them an access.
#include "rows.h"

extern "C" __global__ __launch_bounds__(BLOCK) void page_copy(const PageCopyParams p) {
    const Share share = share_rows(p.row_shift, p.blocks_per_row);
    const i64 half = static_cast<i64>(p.layers) * p.copies;
    for (i64 row = share.row; row < 2 * half; row += share.row_step) {
        const bool is_v = row >= half;
        const unsigned index = static_cast<unsigned>(row - (is_v ? half : 0));  // the host checks that it fits
        const i64 layer = index / p.copies;
        const unsigned c = index % p.copies;
        const i64 bytes = is_v ? p.v_bytes : p.k_bytes;
        unsigned char* pool = static_cast<unsigned char*>(is_v ? p.v : p.k) + layer * p.pages * bytes;
        const unsigned char* from = pool + p.from[c] * bytes;
        unsigned char* to = pool + p.to[c] * bytes;
        for (i64 column = share.column; column < bytes; column += share.column_step) {
            if (column + VECTOR <= bytes) {
                store_whole(*reinterpret_cast<const Vec<unsigned char, VECTOR>*>(from + column), to + column);
            } else {
                for (int e = 0; e < VECTOR && column + e < bytes; ++e) to[column + e] = from[column + e];
            }
        }
    }
}
