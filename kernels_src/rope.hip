// rope: rotary position embedding: turns each pair of a head's elements by position * frequency of the pair.
//
// x, out: [batch, tokens, heads, head_dim] of `scalar`, with strides in elements for all but the last dimension; they
// may be the same memory if the strides are the same. The first 2 * `pairs` elements of a head are turned, the
// `rest` after them copied (0 of them where out is x): see rotary.h. The position of token t is
// start + starts[b * starts_batch + t * starts_token] + t * step; starts may be null.
//
// Bound by memory, almost: each element is read and written once, VECTOR pairs a thread at a time, with a sine and a
// cosine a pair. Two tables of 256 travel with the arguments: no memory to own. `pairs` and `rest` are multiples of
// VECTOR: tests of each element would need more registers for masks than there are.
#include "rotary.h"
#include "rows.h"

__device__ inline void copy_vector(scalar* out, const scalar* x) {
    using Several = Vec<scalar, VECTOR>;
    *reinterpret_cast<Several*>(out) = *reinterpret_cast<const Several*>(x);
}

extern "C" __global__ __launch_bounds__(BLOCK) void rope(const RopeParams p) {
    const Share share = share_rows(p.row_shift, p.blocks_per_row);
    const i64 rows = static_cast<i64>(p.batch) * p.tokens * p.heads;  // the host checks that an unsigned holds it
    const int* starts = static_cast<const int*>(p.starts);
    for (i64 row = share.row; row < rows; row += share.row_step) {
        const unsigned index = static_cast<unsigned>(row);
        const i64 h = index % p.heads, t = index / p.heads % p.tokens, b = index / p.heads / p.tokens;
        i64 position = p.start + t * p.step;
        if (starts != nullptr) position += starts[b * p.starts_batch + t * p.starts_token];
        const scalar* x = static_cast<const scalar*>(p.x) + b * p.x_batch + t * p.x_token + h * p.x_head;
        scalar* out = static_cast<scalar*>(p.out) + b * p.out_batch + t * p.out_token + h * p.out_head;
        for (unsigned pair = share.column; pair < p.pairs; pair += share.column_step)
            store(turned(x, pair, static_cast<float>(position), p), out);
        const i64 after = 2 * static_cast<i64>(p.pairs);
        for (unsigned column = share.column; column < p.rest; column += share.column_step)
            copy_vector(out + after + column, x + after + column);
    }
}
