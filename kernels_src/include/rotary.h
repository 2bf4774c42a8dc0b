// Pairs of a head's elements, turned by position * frequency of the pair: rotary position embedding.
//
// Pair i is (x[2i], x[2i + 1]) if INTERLEAVED, else (x[i], x[i + pairs]). Params has `pairs`, a multiple of VECTOR, and
// two tables of 256 floats, `high` and `low`.
//
// Angles are in quarter turns. A frequency is high + low, each a float: with their 48 bits the product with a position
// below 2^24 is known to 2^-26 of a quarter turn once its whole quarters are taken off, which happens before anything
// is rounded: fma(position, high, -whole) rounds only the rest. sin(position * frequency) in float32 would be wrong
// by 2^-8 radians at position 131072, where neighbouring floats are that far apart.
#pragma once

#include "types.h"

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

// What a thread moves: 2 * VECTOR neighbours, or two times VECTOR.
struct Pairs {
    i64 first, second;
    float values[2][VECTOR];
};

template <typename Params>
__device__ inline Pairs turned(const scalar* x, i64 pair, float position, const Params& p) {
    Pairs pairs;
    pairs.first = INTERLEAVED ? 2 * pair : pair;
    pairs.second = pairs.first + (INTERLEAVED ? VECTOR : p.pairs);
    load_vector(pairs.values[0], x + pairs.first);
    load_vector(pairs.values[1], x + pairs.second);
#pragma unroll
    for (int e = 0; e < VECTOR; ++e) {
        float& a = INTERLEAVED ? pairs.values[2 * e / VECTOR][2 * e % VECTOR] : pairs.values[0][e];
        float& b = INTERLEAVED ? pairs.values[(2 * e + 1) / VECTOR][(2 * e + 1) % VECTOR] : pairs.values[1][e];
        const Angle angle = angle_of(position, p.high[pair + e], p.low[pair + e]);
        // What is fused is said here: each kernel gives the same bits.
        const float across = b * angle.sine;
        b = fmaf(a, angle.sine, b * angle.cosine);
        a = fmaf(a, angle.cosine, -across);
    }
    return pairs;
}

__device__ inline void store(const Pairs& pairs, scalar* out) {
    store_vector(pairs.values[0], out + pairs.first);
    store_vector(pairs.values[1], out + pairs.second);
}
