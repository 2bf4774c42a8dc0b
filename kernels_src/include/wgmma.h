// wgmma m64nNk16 with 16-bit operands and float accumulators (PTX ISA, "Asynchronous warpgroup level matrix
// instructions"): four warps multiply 64 rows together, the right operand is read from shared memory. The products
// are asynchronous: begin_products(), any number of them, end_products(), and wait_for_products() before their sums are read.
//
// A descriptor says where an operand lies in shared memory: in rows of 128 bytes (64 elements), the 16-byte pieces
// of row r exchanged by XOR with r % 8, 8 rows a group of 1024 bytes.
#pragma once

#include "types.h"

__device__ inline void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void end_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Until at most PENDING of the groups between begin and end are under way.
template <int PENDING>
__device__ inline void wait_for_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// `address`: of the first byte. `chunk`: bytes from 64 columns of the operand to the next 64, where its rows are
// longer and it is read transposed.
__device__ inline unsigned long long descriptor(unsigned address, unsigned chunk) {
    constexpr unsigned long long swizzle_128 = 1ull << 62, group = 1024 / 16;
    return swizzle_128 | group << 32 | static_cast<unsigned long long>(chunk / 16) << 16 | (address & 0x3ffff) / 16;
}

#define WGMMA_4(x, i) "+f"(x[i][0]), "+f"(x[i][1]), "+f"(x[i][2]), "+f"(x[i][3])
#define WGMMA_8(x, i) WGMMA_4(x, i), WGMMA_4(x, i + 1)
#define WGMMA_16(x, i) WGMMA_8(x, i), WGMMA_8(x, i + 2)
#define WGMMA_32(x, i) WGMMA_16(x, i), WGMMA_16(x, i + 4)
#define WGMMA_64(x, i) WGMMA_32(x, i), WGMMA_32(x, i + 8)

// The accumulators' names in an instruction, and those of the operands after them.
#define WGMMA_NAMES_8 \
    "%0, %1, %2, %3, %4, %5, %6, %7"
#define WGMMA_NAMES_16 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define WGMMA_NAMES_32 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define WGMMA_NAMES_64 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

template <int N, class Kind>
struct Wgmma;

// c (+)= a b: both from shared memory, rows of 16 contiguous elements each; and a from registers, b transposed.
#define WGMMA(N, COUNT, A, B, FRESH, A1, A2, A3, A4, A5, kind)                                                         \
    template <>                                                                                                         \
    struct Wgmma<N, kind> {                                                                                             \
        __device__ static void from_shared(float (*c)[4], unsigned long long a, unsigned long long b, int add) {        \
            asm volatile("{.reg .pred p; setp.ne.b32 p, %" #FRESH ", 0;"                                                \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." #kind "." #kind " {" WGMMA_NAMES_##COUNT     \
                         "}, %" #A ", %" #B ", p, 1, 1, 0, 0;}"                                                         \
                         : WGMMA_##COUNT(c, 0)                                                                          \
                         : "l"(a), "l"(b), "r"(add));                                                                   \
        }                                                                                                               \
        __device__ static void from_registers(float (*c)[4], const unsigned (&a)[4], unsigned long long b) {            \
            asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." #kind "." #kind " {" WGMMA_NAMES_##COUNT     \
                         "}, {%" #A1 ", %" #A2 ", %" #A3 ", %" #A4 "}, %" #A5 ", 1, 1, 1, 1;"                           \
                         : WGMMA_##COUNT(c, 0)                                                                          \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                         \
        }                                                                                                               \
    };
WGMMA(16, 8, 8, 9, 10, 8, 9, 10, 11, 12, f16)
WGMMA(16, 8, 8, 9, 10, 8, 9, 10, 11, 12, bf16)
WGMMA(32, 16, 16, 17, 18, 16, 17, 18, 19, 20, f16)
WGMMA(32, 16, 16, 17, 18, 16, 17, 18, 19, 20, bf16)
WGMMA(64, 32, 32, 33, 34, 32, 33, 34, 35, 36, f16)
WGMMA(64, 32, 32, 33, 34, 32, 33, 34, 35, 36, bf16)
WGMMA(128, 64, 64, 65, 66, 64, 65, 66, 67, 68, f16)
WGMMA(128, 64, 64, 65, 66, 64, 65, 66, 67, 68, bf16)
#undef WGMMA
