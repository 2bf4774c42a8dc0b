// Moves keys from memory to shared memory by cp.async (compute capability 8.0 on): `store` starts the copies, `arrive`
// waits for this thread's. Rows past the last key, and columns past the head's, become zeros. A Layout says where a
// row's eight elements lie; rows PERIOD apart have them at the same place.
#pragma once

#include "flash_block.h"
#include "ptx.h"

using Eight = Vec<scalar, 8>;

// The first level of the caches asks the second for whole lines at a time, and DRAM gives 4 % more (H100); but what is
// in the second level already comes more slowly. Streamed, what is read once does not take the place of the rest.
#ifdef RING
template <class T>
constexpr Caching CACHING = STREAMED;
#else
template <class T>
constexpr Caching CACHING = sizeof(T) == 1 ? STREAMED : BY_L2;  // of eight bytes there is no copy BY_L2
#endif

// Copies eight elements.
template <class T, class... Exists>
__device__ inline void copy_eight(unsigned to, const T* from, Exists... exists) {
    copy_async<8 * sizeof(T), CACHING<T>>(to, from, exists...);
}

// Elements column .. column + 7 of a row, zeros from DIM on, one by one: for rows of which no copy can read eight.
template <int DIM, class T>
__device__ inline void copy_parts(T* to, const T* row, int column, bool exists) {
    Vec<T, 8> x;
#pragma unroll
    for (int e = 0; e < 8; ++e) x.at[e] = exists && column + e < DIM ? row[column + e] : T(0.0f);
    *reinterpret_cast<Vec<T, 8>*>(to) = x;
}

// Copies ROWS rows of `count` of DIM elements at a time, a part each of COUNT threads.
template <int DIM, class Layout, int ROWS, int COUNT, class Rows>
class Copy {
    static constexpr int PIECES = Layout::COLUMNS / 8, STEP = COUNT / PIECES;
    // The threads make up whole rows, STEP of them: a thread stays in its column.
    static constexpr bool WHOLE = VECTOR == 8 && DIM == Layout::COLUMNS && COUNT % PIECES == 0 &&
                                  STEP % Layout::PERIOD == 0 && ROWS % STEP == 0;
    // Of a thread's rows EACH are at even distances: a run.
    static constexpr int RUN = Rows::even_run(ROWS), EACH = !WHOLE || RUN % STEP ? 1 : RUN / STEP;
    static constexpr int RUNS = WHOLE ? ROWS / STEP / EACH : 1;
    // Of a run that is no thread's own, all threads look up the same page.
    static constexpr bool OWN = WHOLE && RUN % STEP;

public:
    __device__ Copy(const Rows& source, int count, int which) : from(source), rows(count), thread(which) {
        from.base += own_place();
    }

    // The pages of a thread's runs. They are read from memory: best some time before they are needed.
    struct Pages {
        int of[RUNS];
    };
    __device__ Pages find(int first) const {
        Pages pages = {};
        if constexpr (WHOLE && Rows::PAGES)
            if (first + ROWS <= rows)
#pragma unroll
                for (int i = 0; i < RUNS; ++i) pages.of[i] = from.page(row_of(first, i));
        return pages;
    }

    // Rows first .. first + ROWS - 1, to row `lds_row` on of `lds`.
    template <class T>
    __device__ void operator()(T* lds, int lds_row, int first) const {
        (*this)(lds, lds_row, first, find(first));
    }
    // Where find(first) was called before.
    template <class T>
    __device__ void operator()(T* lds, int lds_row, int first, const Pages& pages) const {
        if constexpr (WHOLE) {
            if (first + ROWS <= rows) {
                copy_whole(lds, lds_row, first, pages);
                return;
            }
        }
        Rows all = from;
        all.base -= own_place();
        // No unrolling: this is for the last tile, and for shapes that no thread's column fits.
#pragma unroll 1
        for (int piece = thread; piece < ROWS * PIECES; piece += COUNT) {
            const int row = piece / PIECES, column = piece % PIECES * 8;
            T* to = lds + Layout::offset(lds_row + row, column);
            const bool exists = first + row < rows;
            if constexpr (VECTOR == 8) {
                const bool copied = exists && column < DIM;
                copy_eight(shared_address(to), copied ? all.at(first + row) + column : all.base, copied);
            } else {
                copy_parts<DIM>(to, all.at(exists ? first + row : 0), column, exists);
            }
        }
    }

private:
    Rows from;  // even ones begin at this thread's piece: an address less to keep
    int rows, thread;

    __device__ i64 own_place() const {
        if constexpr (Rows::EVEN) return thread / PIECES * from.stride + thread % PIECES * 8;
        else return 0;
    }
    __device__ int row_of(int first, int run) const { return first + run * EACH * STEP + (OWN ? thread / PIECES : 0); }

    // All rows exist.
    template <class T>
    __device__ void copy_whole(T* lds, int lds_row, int first, const Pages& pages) const {
        const int row = thread / PIECES, column = thread % PIECES * 8;
        const unsigned to = shared_address(lds + Layout::offset(lds_row + row, column));
#pragma unroll
        for (int i = 0; i < RUNS; ++i) {
            const T* at;
            if constexpr (Rows::PAGES) at = from.at(row_of(first, i), pages.of[i]);
            else at = from.at(row_of(first, i));
            if constexpr (!Rows::EVEN) at += column + (OWN ? 0 : row * from.stride);
#pragma unroll
            for (int j = i * EACH; j < (i + 1) * EACH; ++j, at += STEP * from.stride)
                copy_eight(to + Layout::offset(j * STEP, 0) * static_cast<int>(sizeof(T)), at);
        }
    }
};

// The sign bits of a word are set where one of eight elements is not finite: its exponent of ones, and one more, is
// the sign bit. Two elements at once.
__device__ inline unsigned nonfinite_signs(const scalar* at) {
    constexpr unsigned ONES = same<scalar, f16> ? 0x7c007c00u : 0x7f807f80u, ONE = same<scalar, f16> ? 0x04000400u : 0x00800080u;
    const uint4 words = *reinterpret_cast<const uint4*>(at);
    return ((words.x & ONES) + ONE) | ((words.y & ONES) + ONE) | ((words.z & ONES) + ONE) | ((words.w & ONES) + ONE);
}

// STAGES tiles, 1 or 2: store() fills the one that turn() then makes the present one.
template <int DIM, class Layout, int STAGES = 1>
struct AsyncTile {
    static constexpr int BYTES = STAGES * Layout::ELEMENTS * sizeof(scalar);
    using Mover = Copy<DIM, Layout, BLOCK_N, THREADS, KeyRows>;

    __device__ AsyncTile(const KeyRows& from, int count, char* memory)
        : copy(from, count, threadIdx.x), lds(reinterpret_cast<scalar*>(memory)) {}

    __device__ void fetch(int) const {}
    __device__ void store(int first) const {
        copy(coming(), 0, first);
    }
    __device__ void turn() { stage ^= 1; }
    __device__ scalar* present() const { return at(stage); }
    __device__ void arrive() const {
        wait_for_copies();
        Layout::publish();
    }

    __device__ bool clean() const { return clean(coming()); }

protected:
    Mover copy;
    int stage = STAGES - 1;  // so that what is stored first comes to lie in front

    __device__ scalar* at(int which) const { return lds + which * Layout::ELEMENTS; }

    // Replaces what is not finite by 0; returns whether there was any among this thread's part.
    __device__ static bool clean(scalar* tile) {
        constexpr int PIECES = Layout::COLUMNS / 8, ALL = BLOCK_N * PIECES;
        unsigned signs = 0;
#pragma unroll
        for (int i = 0; i < (ALL + THREADS - 1) / THREADS; ++i) {
            const int piece = i * THREADS + threadIdx.x;
            if (ALL % THREADS == 0 || piece < ALL)
                signs |= nonfinite_signs(tile + Layout::offset(piece / PIECES, piece % PIECES * 8));
        }
        const bool found = signs & 0x80008000u;
        if (found) {
#pragma unroll 1
            for (int piece = threadIdx.x; piece < ALL; piece += THREADS) {
                scalar* at = tile + Layout::offset(piece / PIECES, piece % PIECES * 8);
#pragma unroll 1
                for (int e = 0; e < 8; ++e)
                    if (!is_finite(static_cast<float>(at[e]))) at[e] = scalar(0.0f);
            }
            Layout::publish();
        }
        return found;
    }

private:
    scalar* lds;

    __device__ scalar* coming() const { return at(STAGES - 1 - stage); }
};

// STAGES tiles in turn, for a walk that stores tiles ahead: the one `ahead` of 0 is what the next turn() makes present.
template <int DIM, class Layout, int STAGES>
struct RingTile : AsyncTile<DIM, Layout, STAGES> {
    static_assert(STAGES >= 2);
    using Base = AsyncTile<DIM, Layout, STAGES>;
    using Base::Base;
    using Pages = typename Base::Mover::Pages;
    __device__ Pages find(int first) const { return this->copy.find(first); }
    __device__ void store(int first, int ahead, const Pages& pages) const {
        const int stage = this->stage + 1 + ahead;
        this->copy(this->at(stage < STAGES ? stage : stage - STAGES), 0, first, pages);
    }
    __device__ void turn() { this->stage = this->stage + 1 < STAGES ? this->stage + 1 : 0; }
    __device__ bool clean() const { return Base::clean(this->present()); }
};

#if defined(CACHE_E4M3)
// A tile of what is stored in 8 bits: `fetch` starts copies to memory beside it, and `store` converts what this
// thread's brought.
template <int DIM, class Layout>
struct ConvertedTile : AsyncTile<DIM, Layout> {
    using Base = AsyncTile<DIM, Layout>;
    struct Codes {
        static constexpr int COLUMNS = Layout::COLUMNS, PERIOD = 1;
        __device__ static int offset(int row, int column) { return row * COLUMNS + column; }
    };
    static constexpr int BYTES = Base::BYTES + BLOCK_N * Codes::COLUMNS;

    __device__ ConvertedTile(const KeyRows& from, int count, char* memory)
        : Base(from, count, memory),
          codes(reinterpret_cast<cache_scalar*>(memory + Base::BYTES)),
          copy(from, count, threadIdx.x) {}

    __device__ void fetch(int first) const { copy(codes, 0, first); }
    __device__ void store(int) const {
        constexpr int PIECES = Codes::COLUMNS / 8, ALL = BLOCK_N * PIECES;
        wait_for_copies();
#pragma unroll 8
        for (int piece = threadIdx.x; piece < ALL; piece += THREADS) {
            const auto eight = *reinterpret_cast<const Vec<unsigned, 2>*>(codes + piece * 8);
            const Vec<Vec<scalar, 4>, 2> x = {{from_e4m3<scalar>(eight.at[0]), from_e4m3<scalar>(eight.at[1])}};
            scalar* to = this->present() + Layout::offset(piece / PIECES, piece % PIECES * 8);
            *reinterpret_cast<Eight*>(to) = __builtin_bit_cast(Eight, x);
        }
    }
    __device__ void arrive() const {}

private:
    cache_scalar* codes;
    Copy<DIM, Codes, BLOCK_N, THREADS, KeyRows> copy;
};
#endif
