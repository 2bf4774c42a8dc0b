// Moves keys from memory to shared memory by cp.async (compute capability 8.0 on): `store` starts the copies, `arrive`
// waits for this thread's. Rows past the last key, and columns past the head's, become zeros. A Layout says where a
// row's 16 bytes lie.
#pragma once

#include "flash_place.h"

using Eight = Vec<scalar, 8>;

__device__ inline unsigned shared_address(const void* at) {
    return static_cast<unsigned>(__cvta_generic_to_shared(at));
}

// Copies 16 bytes, or writes zeros.
__device__ inline void copy_async(scalar* to, const scalar* from, bool exists) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
                 "r"(exists ? 16 : 0)
                 : "memory");
}
__device__ inline void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Elements column .. column + 7 of a row, zeros from DIM on, one by one: for rows that no 16-byte copy can read.
template <int DIM>
__device__ inline void copy_parts(scalar* to, const scalar* row, int column, bool exists) {
    Eight x;
#pragma unroll
    for (int e = 0; e < 8; ++e) x.at[e] = exists && column + e < DIM ? row[column + e] : scalar(0.0f);
    *reinterpret_cast<Eight*>(to) = x;
}

// Copies rows first .. first + ROWS - 1 of [rows, DIM], a part each of COUNT threads.
template <int DIM, class Layout, int ROWS, int COUNT>
__device__ inline void copy_rows(scalar* lds, int lds_row, const scalar* base, i64 stride, int first, int rows,
                                 int thread) {
    constexpr int PIECES = Layout::COLUMNS / 8, ALL = ROWS * PIECES;
    const scalar* tile = base + first * stride;
#pragma unroll
    for (int i = 0; i < (ALL + COUNT - 1) / COUNT; ++i) {
        // Where the threads make up whole rows, a thread stays in its column.
        const int piece = COUNT % PIECES ? i * COUNT + thread : thread;
        const int row = piece / PIECES + (COUNT % PIECES ? 0 : i * (COUNT / PIECES)), column = piece % PIECES * 8;
        if (ALL % COUNT != 0 && i * COUNT + thread >= ALL) break;
        scalar* to = lds + Layout::offset(lds_row + row, column);
        const bool exists = first + row < rows;
        if constexpr (VECTOR == 8) {
            const bool copied = exists && (DIM == Layout::COLUMNS || column < DIM);
            copy_async(to, copied ? tile + row * stride + column : base, copied);
        } else {
            copy_parts<DIM>(to, tile + row * stride, column, exists);
        }
    }
}

// STAGES tiles, 1 or 2: store() fills the one that turn() then makes the present one.
template <int DIM, class Layout, int STAGES = 1>
struct AsyncTile {
    static constexpr int BYTES = STAGES * Layout::ELEMENTS * sizeof(scalar);

    __device__ AsyncTile(const scalar* from, i64 row_stride, int count, char* memory)
        : lds(reinterpret_cast<scalar*>(memory)), base(from), stride(row_stride), rows(count) {}

    __device__ void fetch(int) const {}
    __device__ void store(int first) const {
        copy_rows<DIM, Layout, BLOCK_N, THREADS>(coming(), 0, base, stride, first, rows, threadIdx.x);
    }
    __device__ void turn() { stage ^= 1; }
    __device__ scalar* present() const { return lds + stage * Layout::ELEMENTS; }
    __device__ void arrive() const {
        wait_for_copies();
        Layout::publish();
    }

    // Replaces what is not finite by 0; returns whether there was any among this thread's part.
    __device__ bool clean() const {
        bool found = false;
        constexpr int PIECES = Layout::COLUMNS / 8;
        for (int i = threadIdx.x; i < BLOCK_N * PIECES; i += THREADS) {
            Eight& x = *reinterpret_cast<Eight*>(coming() + Layout::offset(i / PIECES, i % PIECES * 8));
#pragma unroll
            for (int e = 0; e < 8; ++e)
                if (!is_finite(static_cast<float>(x.at[e]))) {
                    x.at[e] = scalar(0.0f);
                    found = true;
                }
        }
        Layout::publish();
        return found;
    }

private:
    scalar* lds;
    const scalar* base;
    i64 stride;
    int rows, stage = STAGES - 1;  // so that what is stored first comes to lie in front

    __device__ scalar* coming() const { return lds + (STAGES - 1 - stage) * Layout::ELEMENTS; }
};
