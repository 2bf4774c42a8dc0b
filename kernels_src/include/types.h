// Scalars, and rows of them read and written as float, several elements an access.
//
// Nothing here knows a chip. The names a kernel's source finds already defined (BLOCK, WAVE_SIZE, scalar types,
// the parameter struct) are rendered in front of it, see hipattn/compiler/specialise.py.
#pragma once

using f16 = _Float16;
using bf16 = __bf16;
using f32 = float;
using i64 = long long;  // offsets: a product of sizes passes 2^31 long before memory is full

template <class A, class B>
constexpr bool same = false;
template <class A>
constexpr bool same<A, A> = true;

constexpr float INF = __builtin_bit_cast(float, 0x7f800000);  // no INFINITY without a header

__device__ inline bool is_finite(float x) { return x - x == 0.0f; }

// 2^x to 1 ulp, as one instruction where there is one; a result below 2^-126 may be 0.
__device__ inline float exp2_fast(float x) {
#if defined(__AMDGCN__)
    return __builtin_amdgcn_exp2f(x);
#elif defined(__HIP_PLATFORM_NVIDIA__)
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
#else
    return exp2f(x);
#endif
}

// N neighbours that move in one access.
template <typename T, int N>
struct alignas(N * sizeof(T)) Vec {
    static_assert((N & (N - 1)) == 0 && N * sizeof(T) <= 16, "an access moves 1, 2, 4, ... elements, up to 16 bytes");
    T at[N];
};

// Reads N neighbours as float; `at` is aligned for Vec<T, N>.
template <int N, typename T>
__device__ inline void load_vector(float (&x)[N], const T* at) {
    const Vec<T, N> v = *reinterpret_cast<const Vec<T, N>*>(at);
#pragma unroll
    for (int e = 0; e < N; ++e) x[e] = static_cast<float>(v.at[e]);
}

// Writes N neighbours in one access. CUDA's compiler, left to itself, often writes them one by one.
template <typename T, int N>
__device__ inline void store_whole(const Vec<T, N>& v, T* at) {
#if defined(__HIP_PLATFORM_NVIDIA__)
    if constexpr (sizeof(v) == 16) {
        const uint4 w = __builtin_bit_cast(uint4, v);
        asm volatile("st.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(at), "r"(w.x), "r"(w.y), "r"(w.z), "r"(w.w) : "memory");
        return;
    } else if constexpr (sizeof(v) == 8) {
        const uint2 w = __builtin_bit_cast(uint2, v);
        asm volatile("st.v2.b32 [%0], {%1, %2};" ::"l"(at), "r"(w.x), "r"(w.y) : "memory");
        return;
    }
#endif
    *reinterpret_cast<Vec<T, N>*>(at) = v;
}

// Writes 16 bytes of neighbours that are not read again soon: they give way first in the caches.
template <typename T, int N>
__device__ inline void store_streamed(const Vec<T, N>& v, T* at) {
    static_assert(sizeof(v) == 16, "a streaming store is as wide as an access can be");
#if defined(__HIP_PLATFORM_NVIDIA__)
    const uint4 w = __builtin_bit_cast(uint4, v);
    asm volatile("st.global.cs.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(at), "r"(w.x), "r"(w.y), "r"(w.z), "r"(w.w)
                 : "memory");
#elif defined(__AMDGCN__) && !defined(SIM_ARCH)
    using Whole = __attribute__((ext_vector_type(N))) T;
    __builtin_nontemporal_store(__builtin_bit_cast(Whole, v), reinterpret_cast<Whole*>(at));
#else
    store_whole(v, at);  // on a CPU such a store may be seen later than those after it
#endif
}

// Writes N neighbours, each rounded to nearest even.
template <int N, typename T>
__device__ inline void store_vector(const float (&x)[N], T* at) {
    Vec<T, N> v;
#pragma unroll
    for (int e = 0; e < N; ++e) v.at[e] = static_cast<T>(x[e]);
    store_whole(v, at);
}

// Reads elements column .. column + N - 1 of a row that may end before: `fill` from there on.
template <int N, typename T>
__device__ inline void load_row(float (&x)[N], const T* row, i64 column, i64 columns, float fill) {
    if (column + N <= columns) {
        load_vector(x, row + column);
    } else {
#pragma unroll
        for (int e = 0; e < N; ++e) x[e] = column + e < columns ? static_cast<float>(row[column + e]) : fill;
    }
}

// Writes elements column .. column + N - 1 of a row, none past its end.
template <int N, typename T>
__device__ inline void store_row(const float (&x)[N], T* row, i64 column, i64 columns) {
    if (column + N <= columns) {
        store_vector(x, row + column);
    } else {
#pragma unroll
        for (int e = 0; e < N; ++e)
            if (column + e < columns) row[column + e] = static_cast<T>(x[e]);
    }
}
