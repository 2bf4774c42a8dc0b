// How new keys and values go into a cache: their bits, or with FP8 e4m3, FNUZ or the OCP's, of each element divided by
// its head's scale.
#pragma once

#include "float8.h"
#include "types.h"

template <bool QUANTISED>
struct Stored {
    using Type = scalar;
};
template <>
struct Stored<true> {
    using Type = unsigned char;
};
using stored = Stored<FP8>::Type;

__device__ inline Vec<unsigned char, VECTOR> quantised(const float (&x)[VECTOR], float scale) {
    Vec<unsigned char, VECTOR> codes;
#pragma unroll
    for (int e = 0; e < VECTOR; ++e) codes.at[e] = to_e4m3<FNUZ>(x[e] / scale);
    return codes;
}

// Writes VECTOR neighbours, or as many as are left.
__device__ inline void put(const scalar* from, scalar* to, i64 left, float) {
    if (left >= VECTOR) {
        using Several = Vec<scalar, VECTOR>;
        *reinterpret_cast<Several*>(to) = *reinterpret_cast<const Several*>(from);
    } else {
        for (int e = 0; e < VECTOR && e < left; ++e) to[e] = from[e];
    }
}

__device__ inline void put(const scalar* from, unsigned char* to, i64 left, float scale) {
    float x[VECTOR];
    load_row(x, from, 0, left, 0.0f);
    const Vec<unsigned char, VECTOR> codes = quantised(x, scale);
    if (left >= VECTOR) {
        store_whole(codes, to);
    } else {
#pragma unroll
        for (int e = 0; e < VECTOR; ++e)
            if (e < left) to[e] = codes.at[e];
    }
}

// Writes VECTOR neighbours that are computed: what is stored is what `scalar` holds of them.
__device__ inline void put(const float (&x)[VECTOR], scalar* to, float) { store_vector(x, to); }

__device__ inline void put(const float (&x)[VECTOR], unsigned char* to, float scale) {
    float rounded[VECTOR];
#pragma unroll
    for (int e = 0; e < VECTOR; ++e) rounded[e] = static_cast<float>(static_cast<scalar>(x[e]));
    store_whole(quantised(rounded, scale), to);
}
