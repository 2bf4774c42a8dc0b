// Eight-bit floats, e4m3: a sign, four bits of exponent, three of mantissa. In plain arithmetic, for every chip.
//
// OCP (OCP 8-bit Floating Point Specification 1.0): bias 7, up to 448, NaN 0x7f and 0xff. FNUZ (AMD CDNA 3 ISA): bias
// 8, up to 240, no -0, NaN 0x80. Neither has infinities.
#pragma once

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
