// rope: rotary position embedding: turns each pair of a head's elements by position * frequency of the pair.
//
// x, out: [batch, tokens, heads, head_dim] of `scalar`, with strides in elements for all but the last dimension; they
// may be the same memory if the strides are the same. The first 2 * `pairs` elements of a head are turned, the
// `rest` after them copied (0 of them where out is x). Pair i is (x[2i], x[2i + 1]) if INTERLEAVED, else
// (x[i], x[i + pairs]). The position of token t is start + starts[b * starts_batch + t * starts_token] + t * step;
// starts may be null.
//
// Angles are in turns. A frequency is turns_high + turns_low, each a float: with their 48 bits the product with a
// position below 2^24 is known to 2^-25 of a turn once its whole turns are taken off, which happens before anything
// is rounded: fma(position, high, -whole) rounds only the rest. sin(position * frequency) in float32 would be wrong
// by 2^-8 radians at position 131072, where neighbouring floats are that far apart.
//
// Bound by memory, almost: each element is read and written once, VECTOR pairs a thread at a time, with a sine and a
// cosine a pair. Two tables of 256 travel with the arguments: no memory to own.
#include "rows.h"

__device__ inline void turn(float& a, float& b, float position, float high, float low) {
    const float whole = rintf(position * high);
    const float twice = 2.0f * fmaf(position, low, fmaf(position, high, -whole));
    const float s = sinpif(twice), c = cospif(twice);
    const float turned = a * c - b * s;
    b = a * s + b * c;
    a = turned;
}

__device__ inline void turn_vector(scalar* out, const scalar* x, i64 pair, float position, const RopeParams& p) {
    // Where the two halves of what this thread moves start, and where their rows end.
    const i64 columns = INTERLEAVED ? 2 * static_cast<i64>(p.pairs) : p.pairs;
    const i64 first = INTERLEAVED ? 2 * pair : pair;
    const i64 second = INTERLEAVED ? first + VECTOR : first;
    const i64 apart = INTERLEAVED ? 0 : p.pairs;
    float values[2][VECTOR];
    load_row(values[0], x, first, columns, 0.0f);
    load_row(values[1], x + apart, second, columns, 0.0f);
    // The tables have a multiple of VECTOR entries: past the last pair there is another to read.
#pragma unroll
    for (int e = 0; e < VECTOR; ++e) {
        // Pair e of 2 * VECTOR neighbours, or of two rows of VECTOR.
        float& a = INTERLEAVED ? values[2 * e / VECTOR][2 * e % VECTOR] : values[0][e];
        float& b = INTERLEAVED ? values[(2 * e + 1) / VECTOR][(2 * e + 1) % VECTOR] : values[1][e];
        turn(a, b, position, p.turns_high[pair + e], p.turns_low[pair + e]);
    }
    store_row(values[0], out, first, columns);
    store_row(values[1], out + apart, second, columns);
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
        for (i64 pair = share.column; pair < p.pairs; pair += share.column_step)
            turn_vector(out, x, pair, static_cast<float>(position), p);
        const i64 turned = 2 * static_cast<i64>(p.pairs);
        for (i64 column = share.column; column < p.rest; column += share.column_step) {
            float values[VECTOR];
            load_row(values, x + turned, column, p.rest, 0.0f);
            store_row(values, out + turned, column, p.rest);
        }
    }
}
