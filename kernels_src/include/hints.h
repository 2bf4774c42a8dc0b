// What AMD's compiler cannot know and is told by inline assembly of no instructions. None of it changes a result.
#pragma once

#if defined(__AMDGCN__) && !defined(SIM_ARCH)
#define HINT(...) asm(__VA_ARGS__)
#define HINT_HERE(...) asm volatile(__VA_ARGS__)
template <class T>
using Global = const __attribute__((address_space(1))) T*;
#else
#define HINT(...)
#define HINT_HERE(...)
template <class T>
using Global = const T*;
#endif

// An address that is the same for all threads, kept apart from what a thread adds to it: the sum of the two takes
// registers of each lane, and instructions to advance it.
template <class T>
__device__ inline const T* common_address(const T* at) {
    Global<T> global = (Global<T>)at;
    HINT("" : "+s"(global));
    return (const T*)global;
}

// A number from memory that is the same for all threads.
__device__ inline int common_value(int x) {
#if defined(__AMDGCN__) && !defined(SIM_ARCH)
    return __builtin_amdgcn_readfirstlane(x);
#else
    return x;
#endif
}

// A kernel's only argument, read again where it is used from here on: not kept in registers since the kernel's begin.
template <class P>
__device__ inline const P& read_again([[maybe_unused]] const P& p) {
#if defined(__AMDGCN__) && !defined(SIM_ARCH)
    auto arguments = (const __attribute__((address_space(4))) P*)__builtin_amdgcn_kernarg_segment_ptr();
    HINT_HERE("" : "+s"(arguments));
    return *(const P*)arguments;
#else
    return p;
#endif
}

// What a thread adds to a common address. Widened outside the loop over tiles, it is not known to be of 32 bits.
template <class Offset>
__device__ inline Offset own_offset(Offset bytes, [[maybe_unused]] int tile) {
    HINT("" : "+v"(bytes) : "s"(tile));
    return bytes;
}

// A thread's own number: not taken apart into what is common to all threads, with constants in a register each.
__device__ inline int own_value(int x) {
    HINT("" : "+v"(x));
    return x;
}

// A number that the compiler does not know.
__device__ inline float unknown(float x) {
    HINT("" : "+s"(x));
    return x;
}

// The result is there from here on, and its operands are not needed any more.
template <class T>
__device__ inline void finish(T& x) {
    HINT_HERE("" : "+v"(x));
}

// What stands before is done before what stands after: loads of the next do not take registers yet.
__device__ inline void keep_order() {
#if defined(__AMDGCN__)
    __builtin_amdgcn_sched_barrier(0);
#endif
}
