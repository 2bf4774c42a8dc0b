// Moves rows from memory to LDS as float32, four elements a thread and access. Rows past the last, and columns past
// the head's, become zeros.
//
// `fetch` starts the loads and `store` writes what they brought; but NVIDIA's chips copy float32 to LDS without
// registers: there `store` starts the copies, and `arrive` waits for this thread's.
#pragma once

#include "flash_place.h"

using Four = Vec<float, 4>;
using Piece = Vec<scalar, 4>;

#if defined(__HIP_PLATFORM_NVIDIA__)
constexpr bool ASYNC = sizeof(scalar) == 4;

// Copies BYTES, or writes zeros where nothing exists; `from` is not read then.
template <int BYTES>
__device__ inline void copy_async(float* lds, const void* from, bool exists) {
    const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(lds));
    const unsigned size = exists ? BYTES : 0;
    if constexpr (BYTES == 16)  // past L1: no other block of the multiprocessor is likely to want it
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(size) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from), "n"(BYTES), "r"(size)
                     : "memory");
}
__device__ inline void wait_async() { asm volatile("cp.async.wait_all;" ::: "memory"); }
#else
constexpr bool ASYNC = false;

template <int BYTES>
__device__ inline void copy_async(float*, const void*, bool) {}
__device__ inline void wait_async() {}
#endif

// Four elements an access, or as many as the tensors' alignment admits.
constexpr int ACCESS = VECTOR < 4 ? VECTOR : 4;

// Elements column .. column + 3 of a row of DIM.
template <int DIM>
__device__ inline Piece load_piece(const scalar* row, int column, bool exists) {
    Piece x;
#pragma unroll
    for (int part = 0; part < 4; part += ACCESS) {
        Vec<scalar, ACCESS> v;
        if (exists && column + part < DIM) {
            v = *reinterpret_cast<const Vec<scalar, ACCESS>*>(row + column + part);
        } else {
#pragma unroll
            for (int e = 0; e < ACCESS; ++e) v.at[e] = static_cast<scalar>(0.0f);
        }
#pragma unroll
        for (int e = 0; e < ACCESS; ++e) x.at[part + e] = v.at[e];
    }
    return x;
}

__device__ inline void store_piece(const Piece& x, float* lds, float sign = 1.0f) {
    Four y;
#pragma unroll
    for (int e = 0; e < 4; ++e) y.at[e] = sign * static_cast<float>(x.at[e]);
    *reinterpret_cast<Four*>(lds) = y;
}

// Which thread moves what of COUNT rows of COLUMNS elements: neighbours move neighbours.
template <int COUNT, int COLUMNS>
struct Pieces {
    static constexpr int ROW = COLUMNS / 4, ALL = COUNT * ROW, EACH = (ALL + THREADS - 1) / THREADS;

    __device__ static bool mine(int i) { return ALL % THREADS == 0 || i * THREADS + threadIdx.x < ALL; }
    __device__ static int row(int i) { return (i * THREADS + threadIdx.x) / ROW; }
    __device__ static int column(int i) { return (i * THREADS + threadIdx.x) % ROW * 4; }
};

// BLOCK_N rows of DIM elements, of which COLUMNS are kept, ROW floats from one to the next. Row j lies at Order::place(j).
template <int DIM, int COLUMNS, int ROW, class Order>
struct FloatTile {
    static constexpr int BYTES = BLOCK_N * ROW * sizeof(float);

    float* lds;

    __device__ FloatTile(const scalar* tensor, i64 row_stride, int count, char* memory)
        : lds(reinterpret_cast<float*>(memory)), base(tensor), stride(row_stride), rows(count) {}

    __device__ void fetch(int first) {
        if constexpr (ASYNC) return;
#pragma unroll
        for (int i = 0; i < Mine::EACH; ++i)
            if (Mine::mine(i)) held[i] = load_piece<DIM>(source(first, i), Mine::column(i), exists(first, i));
    }
    __device__ void store(int first) {
#pragma unroll
        for (int i = 0; i < Mine::EACH; ++i) {
            if (!Mine::mine(i)) continue;
            float* to = lds + Order::place(Mine::row(i)) * ROW + Mine::column(i);
            if constexpr (ASYNC) {
#pragma unroll
                for (int part = 0; part < 4; part += ACCESS) {
                    const int column = Mine::column(i) + part;
                    copy_async<ACCESS * sizeof(scalar)>(to + part, source(first, i) + column,
                                                        exists(first, i) && column < DIM);
                }
            } else {
                store_piece(held[i], to);
            }
        }
    }
    __device__ void arrive() const { wait_async(); }

    // Replaces what is not finite by 0; returns whether there was any among this thread's part.
    __device__ bool clean() {
        bool found = false;
        for (int at = threadIdx.x * 4; at < BLOCK_N * ROW; at += THREADS * 4) {
            Four& x = *reinterpret_cast<Four*>(lds + at);
#pragma unroll
            for (int e = 0; e < 4; ++e)
                if (!is_finite(x.at[e])) {
                    x.at[e] = 0.0f;
                    found = true;
                }
        }
        return found;
    }

private:
    using Mine = Pieces<BLOCK_N, COLUMNS>;
    const scalar* base;
    i64 stride;
    int rows;
    Piece held[Mine::EACH];

    __device__ bool exists(int first, int i) const { return first + Mine::row(i) < rows; }
    __device__ const scalar* source(int first, int i) const { return base + (first + Mine::row(i)) * stride; }
};
