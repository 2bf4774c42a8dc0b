// Eight-bit floats, e4m3: a sign, four bits of exponent, three of mantissa.
//
// OCP (OCP 8-bit Floating Point Specification 1.0): bias 7, up to 448, NaN 0x7f and 0xff. FNUZ (AMD CDNA 3 ISA): bias
// 8, up to 240, no -0, NaN 0x80. Neither has infinities.
#pragma once

#include "types.h"

// Rounds to nearest even; what is too large, infinity too, becomes the largest finite value. NaN stays NaN.
template <bool FNUZ>
__device__ inline unsigned char to_e4m3(float x) {
    constexpr unsigned BIAS = FNUZ ? 8 : 7, LARGEST = FNUZ ? 240 : 448;
    constexpr float SMALLEST_NORMAL = 1.0f / (1u << (BIAS - 1)), STEPS_BELOW = 1u << (BIAS + 2);
    const unsigned bits = __builtin_bit_cast(unsigned, x), sign = bits >> 24 & 0x80;
    if (!(x == x)) return FNUZ ? 0x80 : sign | 0x7f;
    float size = __builtin_bit_cast(float, bits & 0x7fffffff);
    size = size < LARGEST ? size : LARGEST;
    unsigned code;
    if (size < SMALLEST_NORMAL) {
        // A whole number of steps: adding 2^23 rounds to it, and leaves it in the sum's last bits.
        code = __builtin_bit_cast(unsigned, size * STEPS_BELOW + 8388608.0f) & 0xff;
    } else {
        const unsigned wide = __builtin_bit_cast(unsigned, size);
        code = ((wide + 0x7ffff + (wide >> 20 & 1)) >> 20) - ((127 - BIAS) << 3);
    }
    return FNUZ && code == 0 ? 0 : sign | code;
}

// ---- from e4m3 in the chip's own format, which is FNUZ on gfx942 and else the OCP's ----
//
// Every number of e4m3 is one of f16, of bf16 and of float. NaN stays NaN.

using HalfPair = unsigned;  // two numbers of 16 bits, the first in the low half

#if defined(__gfx942__) || defined(__gfx950__) || defined(__GFX12__)
// The low or the high two of four codes.
template <bool HIGH>
__device__ inline Vec<float, 2> float_pair(unsigned codes) {
    const auto pair = __builtin_amdgcn_cvt_pk_f32_fp8(codes, HIGH);
    return {{pair[0], pair[1]}};
}
template <bool HIGH>
__device__ inline HalfPair f16_pair(unsigned codes) {
    const Vec<float, 2> x = float_pair<HIGH>(codes);
    return __builtin_bit_cast(HalfPair, __builtin_amdgcn_cvt_pkrtz(x.at[0], x.at[1]));  // nothing to round
}
#else
#if defined(__HIP_PLATFORM_NVIDIA__) && __CUDA_ARCH__ >= 890
template <bool HIGH>
__device__ inline HalfPair f16_pair(unsigned codes) {
    HalfPair pair;
    const unsigned short two = HIGH ? codes >> 16 : codes;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(pair) : "h"(two));
    return pair;
}
#else
__device__ inline HalfPair times_256(HalfPair x) {
#if defined(__HIP_PLATFORM_NVIDIA__)
    asm("mul.rn.f16x2 %0, %0, %1;" : "+r"(x) : "r"(0x5c005c00u));
    return x;
#else
    using Halves = f16 __attribute__((ext_vector_type(2)));
    return __builtin_bit_cast(HalfPair, __builtin_bit_cast(Halves, x) * static_cast<f16>(256.0f));
#endif
}
template <bool HIGH>
__device__ inline HalfPair f16_pair(unsigned codes) {
#if defined(__HIP_PLATFORM_NVIDIA__)
    const unsigned wide = __byte_perm(codes, 0, HIGH ? 0x3424 : 0x1404);
#else
    const unsigned wide = __builtin_amdgcn_perm(0, codes, HIGH ? 0x030c020c : 0x010c000c);
#endif
    // Exponent and mantissa where f16 has them. Its bias is greater by 8, and with all bits set it is NaN: adding one
    // then carries to the exponent's last bit that is free.
    const unsigned size = (wide & 0x7f007f00) >> 1, nan = (size + 0x00800080) & 0x40004000;
    return times_256((wide & 0x80008000) | size | nan);
}
#endif
template <bool HIGH>
__device__ inline Vec<float, 2> float_pair(unsigned codes) {
    const auto pair = __builtin_bit_cast(Vec<f16, 2>, f16_pair<HIGH>(codes));
    return {{static_cast<float>(pair.at[0]), static_cast<float>(pair.at[1])}};
}
#endif

// bf16 is the upper half of a float.
template <bool HIGH>
__device__ inline HalfPair bf16_pair(unsigned codes) {
    const Vec<float, 2> x = float_pair<HIGH>(codes);
    const unsigned first = __builtin_bit_cast(unsigned, x.at[0]), second = __builtin_bit_cast(unsigned, x.at[1]);
#if defined(__HIP_PLATFORM_NVIDIA__)
    return __byte_perm(first, second, 0x7632);
#else
    return __builtin_amdgcn_perm(second, first, 0x07060302);
#endif
}

// Four codes, the first in the lowest byte.
template <class T>
__device__ inline Vec<T, 4> from_e4m3(unsigned codes) {
    if constexpr (same<T, float>) {
        const Vec<float, 2> low = float_pair<false>(codes), high = float_pair<true>(codes);
        return {{low.at[0], low.at[1], high.at[0], high.at[1]}};
    } else if constexpr (same<T, f16>) {
        return __builtin_bit_cast(Vec<T, 4>, Vec<HalfPair, 2>{{f16_pair<false>(codes), f16_pair<true>(codes)}});
    } else {
        return __builtin_bit_cast(Vec<T, 4>, Vec<HalfPair, 2>{{bf16_pair<false>(codes), bf16_pair<true>(codes)}});
    }
}
