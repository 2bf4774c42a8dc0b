// The instructions of the layers over mma.sync as functions (PTX ISA; compute capability 8.0 on). tests/helpers/ptx.h
// has the same in plain C++, over which tests/kernels/test_mma_nvidia.py runs these layers on a simulated GPU.
#pragma once

#include "types.h"

// An address in shared memory, as the instructions take it.
__device__ inline unsigned shared_address(const void* at) {
    return static_cast<unsigned>(__cvta_generic_to_shared(at));
}

// By which caches a copy goes. BY_L2 is for 16 bytes only; what is STREAMED goes by both levels, and is the first to
// leave the second.
enum Caching { BY_L2, BY_L1, STREAMED };
template <int BYTES, Caching CACHING>
constexpr bool CAN_COPY = BYTES == 16 || (CACHING != BY_L2 && (BYTES == 8 || BYTES == 4));

__device__ inline unsigned long long first_to_leave() {
    unsigned long long policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

// Starts to copy BYTES to shared memory; both addresses are multiples of BYTES.
template <int BYTES, Caching CACHING>
__device__ inline void copy_async(unsigned to, const void* from) {
    static_assert(CAN_COPY<BYTES, CACHING>);
    if constexpr (CACHING == STREAMED)
        asm volatile("cp.async.ca.shared.global.L2::cache_hint [%0], [%1], %2, %3;" ::"r"(to), "l"(from), "n"(BYTES),
                     "l"(first_to_leave())
                     : "memory");
    else if constexpr (CACHING == BY_L1)
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(from), "n"(BYTES) : "memory");
    else
        asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], %2;" ::"r"(to), "l"(from), "n"(BYTES) : "memory");
}
// Writes zeros if what is to be copied does not exist: it is not read then.
template <int BYTES, Caching CACHING>
__device__ inline void copy_async(unsigned to, const void* from, bool exists) {
    static_assert(CAN_COPY<BYTES, CACHING>);
    const int read = exists ? BYTES : 0;
    if constexpr (CACHING == STREAMED)
        asm volatile("cp.async.ca.shared.global.L2::cache_hint [%0], [%1], %2, %3, %4;" ::"r"(to), "l"(from), "n"(BYTES),
                     "r"(read), "l"(first_to_leave())
                     : "memory");
    else if constexpr (CACHING == BY_L1)
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from), "n"(BYTES), "r"(read)
                     : "memory");
    else
        asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], %2, %3;" ::"r"(to), "l"(from), "n"(BYTES), "r"(read)
                     : "memory");
}
// Until this thread's copies have arrived.
__device__ inline void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Makes a group of this thread's copies since the last; and waits until all but MOST groups have arrived.
__device__ inline void end_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int MOST>
__device__ inline void wait_for_groups() {
    asm volatile("cp.async.wait_group %0;" ::"n"(MOST) : "memory");
}

// Two numbers in 16 bits each, rounded to nearest even, the first in the low half.
__device__ inline unsigned pack(float low, float high) {
    unsigned both;
    if constexpr (same<scalar, f16>) asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    else asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

// Four 8 x 8 matrices of 16-bit elements from shared memory, a row of which each lane names.
__device__ inline void load_matrices(unsigned (&x)[4], unsigned row_address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(row_address)
                 : "memory");
}
__device__ inline void load_matrices_transposed(unsigned (&x)[4], unsigned row_address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(row_address)
                 : "memory");
}

// c += a b, 16 x 8 over 16.
__device__ inline void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    if constexpr (same<scalar, f16>)
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    else
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// c += a b, 16 x 8 over 8, of float32 with the lower 13 bits left out.
__device__ inline void multiply_tf32(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
