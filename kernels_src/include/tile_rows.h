// Moves keys from memory to LDS through registers, 16 bytes a thread and access: `fetch` starts the loads, `store`
// writes what they brought. Rows past the last key, and columns past the head's, become zeros.
//
// In LDS a row is followed by 16 bytes of nothing: so the rows that a wave reads at once lie in different banks.
#pragma once

#include "flash_place.h"

using Eight = scalar __attribute__((ext_vector_type(8)));
using Four = scalar __attribute__((ext_vector_type(4)));

constexpr int PAD = 8;  // elements

// A tile of rows spans less than 2^32 bytes, if the call did not say that it does not.
template <bool wide>
struct OffsetOf {
    using type = unsigned;
};
template <>
struct OffsetOf<true> {
    using type = i64;
};
using Offset = OffsetOf<WIDE>::type;

// Elements column .. column + 7 of a row of DIM, zeros from there on.
template <int DIM>
__device__ inline Eight load_eight(const scalar* row, int column) {
    if constexpr (VECTOR == 8) {
        return column < DIM ? *reinterpret_cast<const Eight*>(row + column) : Eight(0);
    } else {
        using Part = scalar __attribute__((ext_vector_type(VECTOR)));
        Eight x = Eight(0);
#pragma unroll
        for (int piece = 0; piece < 8; piece += VECTOR)
            if (column + piece < DIM) {
                const Part part = *reinterpret_cast<const Part*>(row + column + piece);
#pragma unroll
                for (int e = 0; e < VECTOR; ++e) x[piece + e] = part[e];
            }
        return x;
    }
}

template <int DIM>
struct Source {
    const scalar* base;
    i64 stride;
    int rows;

    __device__ Eight load(int first, int row, int column) const {
        if (first + row >= rows) return Eight(0);
        const scalar* tile = base + first * stride;  // the same for all threads
        return load_eight<DIM>(tile + static_cast<Offset>(row) * static_cast<Offset>(stride), column);
    }
};

// Replaces what is not finite by 0 in ROWS rows of COLUMNS elements, PAD apart; returns whether there was any among
// this thread's part.
template <int ROWS, int COLUMNS>
__device__ inline bool clean_lds(scalar* lds) {
    bool found = false;
    for (int piece = threadIdx.x; piece < ROWS * (COLUMNS / 8); piece += THREADS) {
        Eight& x = *reinterpret_cast<Eight*>(lds + piece / (COLUMNS / 8) * (COLUMNS + PAD) + piece % (COLUMNS / 8) * 8);
#pragma unroll
        for (int e = 0; e < 8; ++e)
            if (!is_finite(static_cast<float>(x[e]))) {
                x[e] = 0;
                found = true;
            }
    }
    return found;
}

// Rows as they are: [BLOCK_N][COLUMNS + PAD].
template <int DIM, int COLUMNS>
struct RowTile {
    static constexpr int ROW = COLUMNS + PAD;
    static constexpr int BYTES = BLOCK_N * ROW * sizeof(scalar);

    __device__ RowTile(const scalar* base, i64 stride, int rows, char* memory)
        : source{base, stride, rows}, lds(reinterpret_cast<scalar*>(memory)) {}

    __device__ void fetch(int first) {
#pragma unroll
        for (int i = 0; i < EACH; ++i)
            if (mine(i)) held[i] = source.load(first, row(i), column(i));
    }
    __device__ void store(int) {
#pragma unroll
        for (int i = 0; i < EACH; ++i)
            if (mine(i)) *reinterpret_cast<Eight*>(lds + row(i) * ROW + column(i)) = held[i];
    }
    __device__ void arrive() const {}

    __device__ Eight at(int row, int column) const {
        return *reinterpret_cast<const Eight*>(lds + row * ROW + column);
    }

private:
    static constexpr int PIECES = COLUMNS / 8, ALL = BLOCK_N * PIECES, EACH = (ALL + THREADS - 1) / THREADS;
    Source<DIM> source;
    scalar* lds;
    Eight held[EACH];

    __device__ static bool mine(int i) { return ALL % THREADS == 0 || i * THREADS + threadIdx.x < ALL; }
    __device__ static int row(int i) { return (i * THREADS + threadIdx.x) / PIECES; }
    __device__ static int column(int i) { return (i * THREADS + threadIdx.x) % PIECES * 8; }
};

// Columns for rows: [COLUMNS][BLOCK_N + PAD]. A thread turns 4 keys x 8 columns around in registers. Groups of 4 keys
// are put in the order in which a lane holds them in its scores: `GROUPS` lanes share a row, and lane g of them holds
// groups g and GROUPS + g of each 2 * GROUPS; here they lie side by side.
template <int DIM, int COLUMNS, int GROUPS>
struct ColumnTile {
    static constexpr int ROW = BLOCK_N + PAD;
    static constexpr int BYTES = COLUMNS * ROW * sizeof(scalar);
    static_assert(BLOCK_N % (8 * GROUPS) == 0, "keys come in whole groups");

    __device__ ColumnTile(const scalar* base, i64 stride, int rows, char* memory)
        : source{base, stride, rows}, lds(reinterpret_cast<scalar*>(memory)) {}

    __device__ void fetch(int first) {
#pragma unroll
        for (int i = 0; i < EACH; ++i)
            if (mine(i))
#pragma unroll
                for (int key = 0; key < 4; ++key) held[i][key] = source.load(first, quad(i) * 4 + key, column(i));
    }
    __device__ void store(int) {
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            if (!mine(i)) continue;
            scalar* at = lds + column(i) * ROW + place(quad(i)) * 4;
#pragma unroll
            for (int e = 0; e < 8; ++e)
                *reinterpret_cast<Four*>(at + e * ROW) =
                    Four{held[i][0][e], held[i][1][e], held[i][2][e], held[i][3][e]};
        }
    }
    __device__ void arrive() const {}

    // Keys key .. key + 7, in this order of keys, of a column.
    __device__ Eight at(int column, int key) const {
        return *reinterpret_cast<const Eight*>(lds + column * ROW + key);
    }
    __device__ bool clean() { return clean_lds<COLUMNS, BLOCK_N>(lds); }

private:
    static constexpr int QUADS = BLOCK_N / 4, ALL = QUADS * (COLUMNS / 8), EACH = (ALL + THREADS - 1) / THREADS;
    Source<DIM> source;
    scalar* lds;
    Eight held[EACH][4];

    __device__ static bool mine(int i) { return ALL % THREADS == 0 || i * THREADS + threadIdx.x < ALL; }
    __device__ static int quad(int i) { return (i * THREADS + threadIdx.x) % QUADS; }
    __device__ static int column(int i) { return (i * THREADS + threadIdx.x) / QUADS * 8; }
    __device__ static int place(int quad) {
        return quad / (2 * GROUPS) * (2 * GROUPS) + quad % GROUPS * 2 + quad / GROUPS % 2;
    }
};
