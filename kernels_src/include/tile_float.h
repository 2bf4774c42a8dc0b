// Moves rows from memory to LDS as float32, four elements a thread and access. Rows past the last, and columns past
// the head's, become zeros.
//
// `fetch` starts the loads and `store` writes what they brought; but NVIDIA's chips copy float32 to LDS without
// registers: there `store` starts the copies, and `arrive` waits for this thread's.
#pragma once

#include "flash_block.h"
#if defined(__HIP_PLATFORM_NVIDIA__)
#include "ptx.h"
#endif

using Four = Vec<float, 4>;
__device__ inline Four read(const float* at) { return *reinterpret_cast<const Four*>(at); }

template <class T>
using Piece = Vec<unsigned, sizeof(T)>;  // the bits of four elements: while they wait, narrow ones share registers

#if defined(__HIP_PLATFORM_NVIDIA__)
constexpr bool ASYNC = sizeof(cache_scalar) == 4;

// Copies BYTES, or writes zeros where nothing exists. 16 go past L1: no other block of the multiprocessor is likely to
// want them.
template <int BYTES>
__device__ inline void start_copy(float* lds, const void* from, bool exists) {
    copy_async<BYTES, (BYTES < 16 ? BY_L1 : BY_L2)>(shared_address(lds), from, exists);
}
__device__ inline void await_copies() { wait_for_copies(); }
#else
constexpr bool ASYNC = false;

template <int BYTES>
__device__ inline void start_copy(float*, const void*, bool) {}
__device__ inline void await_copies() {}
#endif

// Four elements an access, or as many as the tensors' alignment admits.
constexpr int ACCESS = VECTOR < 4 ? VECTOR : 4;

// Four elements, of which `columns` exist.
template <class T>
__device__ inline Piece<T> load_piece(const T* at, int columns, bool exists) {
    Piece<T> x = {};
    if constexpr (ACCESS == 4) {
        if (exists && columns > 0) x = *reinterpret_cast<const Piece<T>*>(at);
    } else if (exists) {
        Vec<T, 4> y;
#pragma unroll
        for (int e = 0; e < 4; ++e) y.at[e] = e < columns ? at[e] : static_cast<T>(0.0f);
        x = __builtin_bit_cast(Piece<T>, y);
    }
    return x;
}

template <class T>
__device__ inline void store_piece(const Piece<T>& piece, float* lds, float sign = 1.0f) {
    const auto x = __builtin_bit_cast(Vec<T, 4>, piece);
    Four y;
#pragma unroll
    for (int e = 0; e < 4; ++e) y.at[e] = sign * static_cast<float>(x.at[e]);
    *reinterpret_cast<Four*>(lds) = y;
}
#if defined(CACHE_E4M3)
template <>
__device__ inline void store_piece<cache_scalar>(const Piece<cache_scalar>& codes, float* lds, float) {
    *reinterpret_cast<Four*>(lds) = from_e4m3<float>(codes.at[0]);
}
#endif

// Which pieces of COUNT rows of COLUMNS elements a thread moves: those a fixed distance from its first, so that of all
// addresses only the first depends on the thread. SIDE threads share a row.
template <int COUNT, int COLUMNS>
struct Pieces {
    // A power of two: one that divides the row and still covers 64 bytes, or else some threads have nothing to do.
    static constexpr int ROW = COLUMNS / 4, POWER = ROW & -ROW, WHOLE = POWER < 32 ? POWER : 32;
    static constexpr int SIDE = WHOLE >= 4 ? WHOLE : ROW > 16 ? 32 : ROW > 8 ? 16 : ROW > 4 ? 8 : ROW > 2 ? 4 : ROW;
    static constexpr int DOWN = THREADS / SIDE, ACROSS = (ROW + SIDE - 1) / SIDE;
    static constexpr int EACH = (COUNT + DOWN - 1) / DOWN * ACROSS;
    static_assert((DOWN & (DOWN - 1)) == 0, "see FloatTile::store");

    __device__ static int first_row() { return threadIdx.x / SIDE; }
    __device__ static int first_column() { return threadIdx.x % SIDE * 4; }
    __device__ static constexpr int down(int i) { return i / ACROSS * DOWN; }
    __device__ static constexpr int across(int i) { return i % ACROSS * SIDE * 4; }
    __device__ static bool mine(int i) {
        return (COUNT % DOWN == 0 || first_row() + down(i) < COUNT) &&
               (ROW % SIDE == 0 || first_column() + across(i) < COLUMNS);
    }
};

struct InOrder {
    __device__ static int place(int key) { return key; }
};

// BLOCK_N rows of DIM elements, of which COLUMNS are kept, ROW floats from one to the next. Row j lies at
// Order::place(j), which moves bits of j and changes none.
template <int DIM, int COLUMNS, int ROW, class Order>
struct FloatTile {
    static constexpr int BYTES = BLOCK_N * ROW * sizeof(float);

    float* lds;

    __device__ FloatTile(const KeyRows& from, int count, char* memory)
        : lds(reinterpret_cast<float*>(memory)),
          source(from),
          rows(count) {}

    __device__ void fetch(int first) {
        if constexpr (ASYNC) return;
#pragma unroll
        for (int i = 0; i < Mine::EACH; ++i)
            if (Mine::mine(i)) held[i] = load_piece(row(first, i), columns(i), exists(first, i));
    }
    __device__ void store(int first) {
        float* to = lds + Order::place(Mine::first_row()) * ROW + Mine::first_column();
#pragma unroll
        for (int i = 0; i < Mine::EACH; ++i) {
            if (!Mine::mine(i)) continue;
            float* at = to + Order::place(Mine::down(i)) * ROW + Mine::across(i);
            if constexpr (ASYNC) {
#pragma unroll
                for (int part = 0; part < 4; part += ACCESS)
                    start_copy<ACCESS * sizeof(cache_scalar)>(at + part, row(first, i) + part,
                                                              exists(first, i) && part < columns(i));
            } else {
                store_piece<cache_scalar>(held[i], at);
            }
        }
    }
    __device__ void arrive() const { await_copies(); }

    // Replaces what is not finite by 0; returns whether there was any among this thread's part.
    __device__ bool clean() {
        bool found = false;
        for (int at = threadIdx.x * 4; at < BLOCK_N * ROW; at += THREADS * 4) {
            if (at % ROW >= COLUMNS) continue;
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
    KeyRows source;
    int rows;
    Piece<cache_scalar> held[Mine::EACH];

    __device__ const cache_scalar* row(int first, int i) const {
        int which = first + Mine::first_row() + Mine::down(i);
        if constexpr (!KeyRows::EVEN) which = min(which, rows - 1);
        return source.at(which) + Mine::first_column() + Mine::across(i);
    }
    __device__ bool exists(int first, int i) const { return first + Mine::first_row() + Mine::down(i) < rows; }
    // How many there are from the piece's first on.
    __device__ static int columns(int i) { return COLUMNS == DIM ? 4 : DIM - Mine::first_column() - Mine::across(i); }
};

// A block's rows of q, ROW floats from one to the next.
template <int COLUMNS, int ROW>
struct FloatQueries {
    static constexpr int BYTES = BLOCK_M * ROW * sizeof(float);
    const float* rows;  // of this wave

    // `from` of the block; `count` of them exist. Read after the block's next barrier.
    template <class Rows>
    __device__ void load(const Rows& from, int count, bool negate, char* memory) {
        using Mine = Pieces<BLOCK_M, COLUMNS>;
        float* lds = reinterpret_cast<float*>(memory);
        rows = lds + wave_index() * WAVE_ROWS * ROW;
        for (int i = 0; i < Mine::EACH; ++i) {
            if (!Mine::mine(i)) continue;
            const int row = Mine::first_row() + Mine::down(i), column = Mine::first_column() + Mine::across(i);
            store_piece<scalar>(load_piece(from.at(row) + column, HEAD_DIM - column, row < count),
                        lds + row * ROW + column, negate ? -1.0f : 1.0f);
        }
    }
};
