// rope: rotary position embedding: turns each pair of a head's elements by position * frequency of the pair.
//
// x, out: [batch, tokens, heads, head_dim] of `scalar`, with strides in elements for all but the last dimension; they
// may be the same memory if the strides are the same. The first 2 * `pairs` elements of a head are turned, the
// `rest` after them copied (0 of them where out is x). Pair i is (x[2i], x[2i + 1]) if INTERLEAVED, else
// (x[i], x[i + pairs]). The position of token t is start + starts[b * starts_batch + t * starts_token] + t * step;
// starts may be null.
//
// Angles are in quarter turns. A frequency is high + low, each a float: with their 48 bits the product with a position
// below 2^24 is known to 2^-26 of a quarter turn once its whole quarters are taken off, which happens before anything
// is rounded: fma(position, high, -whole) rounds only the rest. sin(position * frequency) in float32 would be wrong
// by 2^-8 radians at position 131072, where neighbouring floats are that far apart.
//
// Bound by memory, almost: each element is read and written once, VECTOR pairs a thread at a time, with a sine and a
// cosine a pair. Two tables of 256 travel with the arguments: no memory to own. `pairs` and `rest` are multiples of
// VECTOR: tests of each element would need more registers for masks than there are.
#include "rows.h"

struct Angle {
    float sine, cosine;
};

// Of position * (high + low) quarter turns, to 2^-23. The math library's sine and cosine would each reduce the angle
// again, and ask for infinities.
__device__ inline Angle angle_of(float position, float high, float low) {
    const float near = rintf(position * high);  // far away the product is rounded by half a quarter itself
    const float off = fmaf(position, low, fmaf(position, high, -near)), whole = rintf(off);
    const float rest = (off - whole) * 1.57079632679489661923f;
    const float square = rest * rest;
    const float s = fmaf(
        rest * square,
        fmaf(square, fmaf(square, -1.9515295891e-4f, 8.3321608736e-3f), -1.6666654611e-1f), rest);
    const float c = fmaf(
        square * square,
        fmaf(square, fmaf(square, 2.443315711809948e-5f, -1.388731625493765e-3f), 4.166664568298827e-2f),
        fmaf(square, -0.5f, 1.0f));
    // Odd quarters swap the two, and the sign bit is that of the quarter: by bits, for the masks of a comparison each
    // would not fit either.
    const unsigned quarters = static_cast<unsigned>(static_cast<int>(near) + static_cast<int>(whole));
    const unsigned s_bits = __builtin_bit_cast(unsigned, s), c_bits = __builtin_bit_cast(unsigned, c);
    const unsigned swapped = (s_bits ^ c_bits) & (0u - (quarters & 1));
    return {
        __builtin_bit_cast(float, s_bits ^ swapped ^ (quarters & 2) << 30),
        __builtin_bit_cast(float, c_bits ^ swapped ^ (quarters + 1 & 2) << 30),
    };
}

__device__ inline void turn_vector(scalar* out, const scalar* x, i64 pair, float position, const RopeParams& p) {
    // Where what this thread moves lies: 2 * VECTOR neighbours, or two times VECTOR.
    const i64 first = INTERLEAVED ? 2 * pair : pair;
    const i64 second = first + (INTERLEAVED ? VECTOR : p.pairs);
    float values[2][VECTOR];
    load_vector(values[0], x + first);
    load_vector(values[1], x + second);
#pragma unroll
    for (int e = 0; e < VECTOR; ++e) {
        float& a = INTERLEAVED ? values[2 * e / VECTOR][2 * e % VECTOR] : values[0][e];
        float& b = INTERLEAVED ? values[(2 * e + 1) / VECTOR][(2 * e + 1) % VECTOR] : values[1][e];
        const Angle angle = angle_of(position, p.high[pair + e], p.low[pair + e]);
        const float turned = a * angle.cosine - b * angle.sine;
        b = a * angle.sine + b * angle.cosine;
        a = turned;
    }
    store_vector(values[0], out + first);
    store_vector(values[1], out + second);
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
            load_vector(values, x + turned + column);
            store_vector(values, out + turned + column);
        }
    }
}
