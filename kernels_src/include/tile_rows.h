// Moves keys from memory to LDS through registers, 8 elements a thread and access: `fetch` starts the loads, `store`
// writes what they brought, converted if it is stored in fewer bits. Columns past the head's become zeros.
//
// In LDS a row is followed by 16 bytes of nothing: so the rows that a wave reads at once lie in different banks.
#pragma once

#include "flash_block.h"

using Eight = scalar __attribute__((ext_vector_type(8)));

constexpr int PAD = 8;  // elements

// A tile of rows spans less than 2^31 bytes, if the call did not say that it does not.
template <bool wide>
struct OffsetOf {
    using type = unsigned;
};
template <>
struct OffsetOf<true> {
    using type = i64;
};
using Offset = OffsetOf<WIDE>::type;

template <class T, int N>
using PartOf = T __attribute__((ext_vector_type(N)));
template <int N>
using Part = PartOf<scalar, N>;
template <int N>
using Stored = PartOf<cache_scalar, N>;

#if defined(CACHE_E4M3)
template <int N>
__device__ inline Part<N> widened(Stored<N> codes) {
    const auto words = __builtin_bit_cast(PartOf<unsigned, N / 4>, codes);
    Vec<Vec<scalar, 4>, N / 4> x;
#pragma unroll
    for (int w = 0; w < N / 4; ++w) x.at[w] = from_e4m3<scalar>(words[w]);
    return __builtin_bit_cast(Part<N>, x);
}
#else
template <int N>
__device__ inline Part<N> widened(Stored<N> x) {
    return x;
}
#endif

// Elements column .. column + N - 1 of a row of DIM, zeros from there on; `at` is where the first is.
template <int DIM, int N, class T>
__device__ inline PartOf<T, N> load_part(const T* at, int column) {
    constexpr int MOVED = VECTOR < N ? VECTOR : N;
    if constexpr (MOVED == N) {
        return column < DIM ? *reinterpret_cast<const PartOf<T, N>*>(at) : PartOf<T, N>(0);
    } else {
        PartOf<T, N> x = PartOf<T, N>(0);
#pragma unroll
        for (int piece = 0; piece < N; piece += MOVED)
            if (column + piece < DIM) {
                const PartOf<T, MOVED> part = *reinterpret_cast<const PartOf<T, MOVED>*>(at + piece);
#pragma unroll
                for (int e = 0; e < MOVED; ++e) x[piece + e] = part[e];
            }
        return x;
    }
}
template <int DIM>
__device__ inline Eight load_eight(const scalar* row, int column) {
    return load_part<DIM, 8>(row + column, column);
}

// What does not exist is read as zeros where the chip checks bounds itself. Elsewhere the last row stands for those
// past it: what comes of these is hidden.
template <int DIM, int COLUMNS>
struct Source {
    KeyRows from;
    int rows;

#if defined(__GFX9__)
    static constexpr bool CHECKED = KeyRows::EVEN && !WIDE;  // offsets have 32 bits
#else
    static constexpr bool CHECKED = false;
#endif
    // Calls `ending` where rows past the last are among those of the tile from `first` on, `whole` where not.
    template <class Ending, class Whole>
    __device__ void by_end(int first, Ending ending, Whole whole) const {
        if (!CHECKED && first + BLOCK_N > rows) {
            ending();
            asm volatile("" ::: "memory");  // or the loads below would be made one with these, with an address a lane
        } else {
            whole();
        }
    }

    // Of row first + step + row, where only `row` is a thread's own, one of OWN (1: of any number); or a multiple of RUN
    // (1: any), and step is less. ENDS: it may be past the last.
    template <int N, bool ENDS, int OWN, int RUN>
    __device__ Stored<N> load(int first, int step, int row, int column) const {
#if defined(__GFX9__)
        if constexpr (CHECKED) return load_checked<N>(first, step + row, column);
#endif
        if constexpr (!KeyRows::EVEN && RUN > 1 && KeyRows::even_run(RUN) == RUN) {  // one address for a run of rows
            const int last = rows - 1 - first, begin = ENDS ? min(row, last) : row;
            if constexpr (ENDS) step = min(row + step, last) - begin;
            return load_part<DIM, N>(from.at(first + begin) + step * from.stride + column, DIM == COLUMNS ? 0 : column);
        }
        if constexpr (ENDS) row = min(step + row, rows - 1 - first), step = 0;
        if constexpr (!KeyRows::EVEN && (ENDS || OWN == 1 || KeyRows::even_run(OWN) != OWN))
            return load_part<DIM, N>(from.at(first + step + row) + column, DIM == COLUMNS ? 0 : column);
        const i64 stride = from.stride;
        const char* tile = reinterpret_cast<const char*>(from.common_at(first + step));
        const Offset offset = static_cast<Offset>(row) * static_cast<Offset>(stride) + static_cast<Offset>(column);
        const Offset bytes = own_offset(offset * static_cast<Offset>(sizeof(cache_scalar)), first);
        return load_part<DIM, N>(reinterpret_cast<const cache_scalar*>(tile + bytes), DIM == COLUMNS ? 0 : column);
    }

private:
#if defined(__GFX9__)
    template <int N>
    __device__ Stored<N> load_checked(int first, int row, int column) const {
        constexpr int MOVED = VECTOR < N ? VECTOR : N, BYTES = MOVED * sizeof(cache_scalar), FORMAT = 0x00020000;
        constexpr unsigned OUTSIDE = 0x80000000;
        const unsigned pitch = static_cast<unsigned>(from.stride) * sizeof(cache_scalar);
        const unsigned bytes = (min(rows - first, BLOCK_N) - 1) * pitch + DIM * sizeof(cache_scalar);
        const auto tile =
            __builtin_amdgcn_make_buffer_rsrc(const_cast<cache_scalar*>(from.at(first)), 0, bytes, FORMAT);
        const unsigned offset = column < DIM ? row * pitch + column * sizeof(cache_scalar) : OUTSIDE;
        Stored<N> x;
#pragma unroll
        for (int piece = 0; piece < N; piece += MOVED) {
            const unsigned at = offset + piece * sizeof(cache_scalar);
            Stored<MOVED> part;
            if constexpr (BYTES == 16)
                part = __builtin_bit_cast(Stored<MOVED>, __builtin_amdgcn_raw_buffer_load_b128(tile, at, 0, 0));
            else if constexpr (BYTES == 8)
                part = __builtin_bit_cast(Stored<MOVED>, __builtin_amdgcn_raw_buffer_load_b64(tile, at, 0, 0));
            else if constexpr (BYTES == 4)
                part = __builtin_bit_cast(Stored<MOVED>, __builtin_amdgcn_raw_buffer_load_b32(tile, at, 0, 0));
            else if constexpr (BYTES == 2)
                part = __builtin_bit_cast(Stored<MOVED>, __builtin_amdgcn_raw_buffer_load_b16(tile, at, 0, 0));
            else
                part[0] = __builtin_amdgcn_raw_buffer_load_b8(tile, at, 0, 0);
            // The next row follows this one.
            if (DIM % N != 0 && column + piece >= DIM) part = Stored<MOVED>(0);
#pragma unroll
            for (int e = 0; e < MOVED; ++e) x[piece + e] = part[e];
        }
        return x;
    }
#endif
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

// Where a row lies among the rows in LDS.
struct InOrder {
    __device__ static int place(int row) { return row; }
};

// Rows as they are: [BLOCK_N][COLUMNS + PAD].
template <int DIM, int COLUMNS, class Order = InOrder>
struct RowTile {
    static constexpr int ROW = COLUMNS + PAD;
    static constexpr int BYTES = BLOCK_N * ROW * sizeof(scalar);

    __device__ RowTile(const KeyRows& from, int rows, char* memory)
        : source{from, rows}, lds(reinterpret_cast<scalar*>(memory)) {}

    __device__ void fetch(int first) {
        source.by_end(first, [&] { fetch_rows<true>(first); }, [&] { fetch_rows<false>(first); });
    }
    __device__ void store(int) {
#pragma unroll
        for (int i = 0; i < EACH; ++i)
            if (mine(i)) *reinterpret_cast<Eight*>(lds + Order::place(row(i)) * ROW + column(i)) = widened<8>(held[i]);
    }
    __device__ void arrive() const {}

    __device__ Eight at(int row, int column) const {
        return *reinterpret_cast<const Eight*>(lds + row * ROW + column);
    }

private:
    static constexpr int PIECES = COLUMNS / 8, ALL = BLOCK_N * PIECES, EACH = (ALL + THREADS - 1) / THREADS;
    Source<DIM, COLUMNS> source;
    scalar* lds;
    Stored<8> held[EACH];

    // Where a thread's pieces lie in one column, that is known without division.
    static constexpr bool ALIGNED = THREADS % PIECES == 0;
    static constexpr int OWN = ALIGNED ? THREADS / PIECES : 1;

    template <bool ENDS>
    __device__ void fetch_rows(int first) {
#pragma unroll
        for (int i = 0; i < EACH; ++i)
            if (mine(i)) held[i] = source.template load<8, ENDS, OWN, 1>(first, step(i), row(i) - step(i), column(i));
    }
    __device__ static bool mine(int i) { return ALL % THREADS == 0 || i * THREADS + threadIdx.x < ALL; }
    __device__ static int step(int i) { return ALIGNED ? i * (THREADS / PIECES) : 0; }
    __device__ static int row(int i) {
        return ALIGNED ? step(i) + threadIdx.x / PIECES : (i * THREADS + threadIdx.x) / PIECES;
    }
    __device__ static int column(int i) { return (ALIGNED ? threadIdx.x : i * THREADS + threadIdx.x) % PIECES * 8; }
};

// Columns for rows: [COLUMNS][BLOCK_N + PAD]. A thread turns 4 keys x WIDTH columns around in registers. Groups of 4
// keys are put in the order in which a lane holds them in its scores: `GROUPS` lanes share a row, and lane g of them
// holds groups g and GROUPS + g of each 2 * GROUPS; here they lie side by side.
template <int DIM, int COLUMNS, int GROUPS, int WIDTH = 8, class Order = InOrder>
struct ColumnTile {
    static constexpr int ROW = BLOCK_N + PAD;
    static constexpr int BYTES = COLUMNS * ROW * sizeof(scalar);
    static_assert(BLOCK_N % (8 * GROUPS) == 0, "keys come in whole groups");

    __device__ ColumnTile(const KeyRows& from, int rows, char* memory)
        : source{from, rows}, lds(reinterpret_cast<scalar*>(memory)) {}

    __device__ void fetch(int first) {
        source.by_end(first, [&] { fetch_rows<true>(first); }, [&] { fetch_rows<false>(first); });
    }
    __device__ void store(int) {
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            if (!mine(i)) continue;
            scalar* at = lds + place(quad(i)) * 4;
            Part<WIDTH> row[4];
#pragma unroll
            for (int key = 0; key < 4; ++key) row[key] = widened<WIDTH>(held[i][key]);
#pragma unroll
            for (int e = 0; e < WIDTH; ++e)
                *reinterpret_cast<Pair*>(at + Order::place(column(i) + e) * ROW) =
                    Pair{both(row[0], row[1], e), both(row[2], row[3], e)};
        }
    }
    __device__ void arrive() const {}

    // Keys key .. key + 7, in this order of keys, of a column.
    __device__ Eight at(int column, int key) const {
        return *reinterpret_cast<const Eight*>(lds + column * ROW + key);
    }
    __device__ bool clean() { return clean_lds<COLUMNS, BLOCK_N>(lds); }

private:
    static constexpr int QUADS = BLOCK_N / 4, ALL = QUADS * (COLUMNS / WIDTH), EACH = (ALL + THREADS - 1) / THREADS;
    static_assert(THREADS % QUADS == 0, "a thread's pieces lie in the same rows");
    Source<DIM, COLUMNS> source;
    scalar* lds;
    Stored<WIDTH> held[EACH][4];

    template <bool ENDS>
    __device__ void fetch_rows(int first) {
#pragma unroll
        for (int i = 0; i < EACH; ++i)
            if (mine(i))
#pragma unroll
                for (int key = 0; key < 4; ++key)
                    held[i][key] = source.template load<WIDTH, ENDS, 1, 4>(first, key, quad(i) * 4, column(i));
    }
    // Element e of two rows.
    using Pair = unsigned __attribute__((ext_vector_type(2)));
    __device__ static unsigned both(Part<WIDTH> first, Part<WIDTH> second, int e) {
        using Words = unsigned __attribute__((ext_vector_type(WIDTH / 2)));
        const unsigned low = __builtin_bit_cast(Words, first)[e / 2], high = __builtin_bit_cast(Words, second)[e / 2];
        return __builtin_amdgcn_perm(high, low, e % 2 ? 0x07060302 : 0x05040100);
    }
    __device__ static bool mine(int i) { return ALL % THREADS == 0 || i * THREADS + threadIdx.x < ALL; }
    __device__ static int quad(int) { return threadIdx.x % QUADS; }
    __device__ static int column(int i) { return (i * (THREADS / QUADS) + threadIdx.x / QUADS) * WIDTH; }
    __device__ static int place(int quad) {
        return quad / (2 * GROUPS) * (2 * GROUPS) + quad % GROUPS * 2 + quad / GROUPS % 2;
    }
};
