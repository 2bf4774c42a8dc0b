// kernels_src/include/ptx.h in plain C++, for a simulated GPU whose waves have 32 lanes.
//
// A copy takes place when its thread waits for it; until then there are NaNs where it goes: who reads too early, or
// what is overwritten too early, shows.
#pragma once

#include "flash_block.h"

struct PendingCopy {
    const char* from;  // of no copy, but zeros: null
    unsigned to;
    int bytes;
};
struct Pending {
    static constexpr int MOST = THREADS <= 64 ? 24 : 12;  // what its memory leaves to the kernel
    static constexpr int MOST_GROUPS = 4;
    PendingCopy copies[THREADS][MOST];
    int last[THREADS];                 // of a thread's; -1: none
    int groups[THREADS];               // the last of a thread's; -1: none
    int ends[THREADS][MOST_GROUPS];    // the last copies of its groups
};
// The simulator fills shared memory with ones when a block begins.
__device__ inline Pending& pending() {
    __shared__ Pending all;
    return all;
}
__device__ inline void require(bool condition) {
    if (!condition) __builtin_trap();
}

// From the beginning of what the launch asks for, where all tiles are; variables of a block may be far from it.
__device__ inline char* shared_memory() {
    extern __shared__ char memory[];
    return memory;
}
__device__ inline unsigned shared_address(const void* at) {
    return static_cast<unsigned>(static_cast<const char*>(at) - shared_memory());
}
__device__ inline char* shared_pointer(unsigned address) { return shared_memory() + address; }
__device__ inline bool aligned(const void* at, int bytes) { return reinterpret_cast<unsigned long long>(at) % bytes == 0; }

enum Caching { BY_L2, BY_L1, STREAMED };
template <int BYTES, Caching CACHING>
__device__ inline void copy_async(unsigned to, const void* from, bool exists = true) {
    static_assert(BYTES == 16 || (CACHING != BY_L2 && (BYTES == 8 || BYTES == 4)));
    Pending& all = pending();
    const int which = ++all.last[threadIdx.x];
    require(which < Pending::MOST && aligned(shared_pointer(to), BYTES) && aligned(from, BYTES));
    all.copies[threadIdx.x][which] = {exists ? static_cast<const char*>(from) : nullptr, to, BYTES};
    for (int i = 0; i < BYTES; ++i) shared_pointer(to)[i] = -1;
}
__device__ inline void arrive(const PendingCopy& copy) {
    for (int i = 0; i < copy.bytes; ++i) shared_pointer(copy.to)[i] = copy.from ? copy.from[i] : 0;
}
__device__ inline void wait_for_copies() {
    Pending& all = pending();
    int& last = all.last[threadIdx.x];
    for (; last >= 0; --last) arrive(all.copies[threadIdx.x][last]);
    all.groups[threadIdx.x] = -1;
}
__device__ inline void end_group() {
    Pending& all = pending();
    const int which = ++all.groups[threadIdx.x];
    require(which < Pending::MOST_GROUPS);
    all.ends[threadIdx.x][which] = all.last[threadIdx.x];
}
template <int MOST>
__device__ inline void wait_for_groups() {
    Pending& all = pending();
    int &last = all.last[threadIdx.x], &groups = all.groups[threadIdx.x];
    PendingCopy* copies = all.copies[threadIdx.x];
    int* ends = all.ends[threadIdx.x];
    for (; groups >= MOST; --groups) {
        const int arrived = ends[0] + 1;
        for (int i = 0; i < arrived; ++i) arrive(copies[i]);
        for (int i = arrived; i <= last; ++i) copies[i - arrived] = copies[i];
        last -= arrived;
        for (int group = 1; group <= groups; ++group) ends[group - 1] = ends[group] - arrived;
    }
}

template <class T>
struct NarrowOf {
    using type = T;
};
template <>
struct NarrowOf<float> {  // whose layer packs none
    using type = f16;
};
using Narrow = NarrowOf<scalar>::type;
struct Halves {
    Narrow at[2];
};
__device__ inline unsigned pack(float low, float high) {
    return __builtin_bit_cast(unsigned, Halves{static_cast<Narrow>(low), static_cast<Narrow>(high)});
}
__device__ inline float half_of(unsigned word, int which) {
    return static_cast<float>(__builtin_bit_cast(Halves, word).at[which]);
}

// A row that the lane names, whose elements no lane may write any more: they all read it after this.
class Row {
    const unsigned* words;
    unsigned seen[4];

public:
    __device__ explicit Row(unsigned address) : words(reinterpret_cast<const unsigned*>(shared_pointer(address))) {
        require(aligned(words, 16));
        for (int i = 0; i < 4; ++i) seen[i] = words[i];
    }
    __device__ void check() const {
        for (int i = 0; i < 4; ++i) require(words[i] == seen[i]);
    }
};

// Row L / 4 of matrix i, of which lane L has elements 2 (L % 4) and the next, is named by lane 8 i + L / 4.
__device__ inline void load_matrices(unsigned (&x)[4], unsigned row_address) {
    const int lane = threadIdx.x % 32;
    const Row own(row_address);
    for (int i = 0; i < 4; ++i) {
        const char* row = shared_pointer(__shfl(static_cast<int>(row_address), 8 * i + lane / 4));
        x[i] = reinterpret_cast<const unsigned*>(row)[lane % 4];
    }
    own.check();
}
// Lane L has rows 2 (L % 4) and the next of column L / 4.
__device__ inline void load_matrices_transposed(unsigned (&x)[4], unsigned row_address) {
    const int lane = threadIdx.x % 32;
    const Row own(row_address);
    for (int i = 0; i < 4; ++i) {
        Halves halves;
        for (int half = 0; half < 2; ++half) {
            const char* row = shared_pointer(__shfl(static_cast<int>(row_address), 8 * i + lane % 4 * 2 + half));
            halves.at[half] = reinterpret_cast<const Narrow*>(row)[lane / 4];
        }
        x[i] = __builtin_bit_cast(unsigned, halves);
    }
    own.check();
}

// PTX ISA, "Matrix fragments for mma.m16n8k16".
__device__ inline void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    const int lane = threadIdx.x % 32;
    for (int k = 0; k < 16; ++k) {
        const int holder = k % 8 / 2;
        float row[2], column[2];  // a[lane / 4 + 8 i][k], b[k][2 (lane % 4) + i]
        for (int i = 0; i < 2; ++i) {
            row[i] = half_of(__shfl(static_cast<int>(a[k / 8 * 2 + i]), lane / 4 * 4 + holder), k % 2);
            column[i] = half_of(__shfl(static_cast<int>(k / 8 ? b1 : b0), (lane % 4 * 2 + i) * 4 + holder), k % 2);
        }
        for (int i = 0; i < 4; ++i) c[i] += row[i / 2] * column[i % 2];
    }
}

// PTX ISA, "Matrix fragments for mma.m16n8k8". The machine adds with a few bits more than a float's and cuts the sum off.
__device__ inline float tf32(unsigned bits) { return __builtin_bit_cast(float, bits & 0xffffe000u); }
__device__ inline float cut_off(double x) {
    const float near = static_cast<float>(x);
    const unsigned bits = __builtin_bit_cast(unsigned, near);
    const bool outside = __builtin_fabs(static_cast<double>(near)) > __builtin_fabs(x) && is_finite(near);
    return outside ? __builtin_bit_cast(float, bits - 1) : near;
}
__device__ inline void multiply_tf32(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    const int lane = threadIdx.x % 32;
    double sum[4] = {c[0], c[1], c[2], c[3]};
    for (int k = 0; k < 8; ++k) {
        float row[2], column[2];  // a[lane / 4 + 8 i][k], b[k][2 (lane % 4) + i]
        for (int i = 0; i < 2; ++i) {
            row[i] = tf32(__shfl(static_cast<int>(a[k / 4 * 2 + i]), lane / 4 * 4 + k % 4));
            column[i] = tf32(__shfl(static_cast<int>(k / 4 ? b1 : b0), (lane % 4 * 2 + i) * 4 + k % 4));
        }
        for (int i = 0; i < 4; ++i) sum[i] += static_cast<double>(row[i / 2]) * column[i % 2];
    }
    for (int i = 0; i < 4; ++i) c[i] = cut_off(sum[i]);
}
