// Bit manipulation, reinterpretation, and the small integer instructions.
#pragma once

template <class To, class From> SIM_FN To sim_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "sizes differ");
    To to;
    __builtin_memcpy(&to, &from, sizeof to);
    return to;
}

SIM_FN int __float_as_int(float x) { return sim_bits<int>(x); }
SIM_FN unsigned __float_as_uint(float x) { return sim_bits<unsigned>(x); }
SIM_FN float __int_as_float(int x) { return sim_bits<float>(x); }
SIM_FN float __uint_as_float(unsigned x) { return sim_bits<float>(x); }
SIM_FN long long __double_as_longlong(double x) { return sim_bits<long long>(x); }
SIM_FN double __longlong_as_double(long long x) { return sim_bits<double>(x); }

SIM_FN int __popc(unsigned x) { return __builtin_popcount(x); }
SIM_FN int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
SIM_FN int __clz(int x) { return x ? __builtin_clz(x) : 32; }
SIM_FN int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
SIM_FN int __ffs(int x) { return __builtin_ffs(x); }
SIM_FN int __ffs(unsigned x) { return __builtin_ffs(x); }
SIM_FN int __ffsll(long long x) { return __builtin_ffsll(x); }
SIM_FN int __ffsll(unsigned long long x) { return __builtin_ffsll(x); }
SIM_FN unsigned __brev(unsigned x) { return __builtin_bitreverse32(x); }
SIM_FN unsigned long long __brevll(unsigned long long x) { return __builtin_bitreverse64(x); }
SIM_FN int __mul24(int a, int b) { return (a << 8 >> 8) * (b << 8 >> 8); }
SIM_FN int __umul24(unsigned a, unsigned b) { return (a & 0xffffff) * (b & 0xffffff); }
SIM_FN int __mulhi(int a, int b) { return (long long)a * b >> 32; }
SIM_FN unsigned __umulhi(unsigned a, unsigned b) { return (unsigned long long)a * b >> 32; }
SIM_FN unsigned long long __umul64hi(unsigned long long a, unsigned long long b) { return (unsigned __int128)a * b >> 64; }
SIM_FN unsigned __sad(int a, int b, unsigned c) { return (a > b ? (unsigned)a - b : (unsigned)b - a) + c; }
SIM_FN unsigned __usad(unsigned a, unsigned b, unsigned c) { return (a > b ? a - b : b - a) + c; }
SIM_FN unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned n) {
    return (((unsigned long long)hi << 32 | lo) << (n & 31)) >> 32;
}
SIM_FN unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned n) {
    return ((unsigned long long)hi << 32 | lo) >> (n & 31);
}

SIM_FN unsigned __builtin_amdgcn_ubfe(unsigned x, unsigned offset, unsigned width) {
    offset &= 31, width &= 31;
    return width ? (x >> offset) & ((1u << width) - 1) : 0;
}
SIM_FN int __builtin_amdgcn_sbfe(int x, unsigned offset, unsigned width) {
    offset &= 31, width &= 31;
    if (!width) return 0;
    return offset + width < 32 ? x << (32 - offset - width) >> (32 - width) : x >> offset;
}
SIM_FN unsigned __builtin_amdgcn_alignbit(unsigned hi, unsigned lo, unsigned n) { return __funnelshift_r(lo, hi, n); }
SIM_FN unsigned __builtin_amdgcn_alignbyte(unsigned hi, unsigned lo, unsigned n) {
    return __funnelshift_r(lo, hi, 8 * (n & 3));
}
SIM_FN int __builtin_amdgcn_mul_i24(int a, int b) { return __mul24(a, b); }
SIM_FN unsigned __builtin_amdgcn_mul_u24(unsigned a, unsigned b) { return __umul24(a, b); }

// v_perm_b32: each byte of `selector` picks one of the eight bytes of {a, b}, b's being 0 to 3, or a constant.
SIM_FN unsigned __builtin_amdgcn_perm(unsigned a, unsigned b, unsigned selector) {
    unsigned long long bytes = (unsigned long long)a << 32 | b;
    unsigned r = 0;
    for (int i = 0; i < 4; ++i) {
        unsigned s = selector >> 8 * i & 0xff, byte;
        if (s < 8) byte = bytes >> 8 * s & 0xff;
        else if (s < 12) byte = bytes >> (16 * (s - 8) + 15) & 1 ? 0xff : 0;
        else byte = s == 12 ? 0 : 0xff;
        r |= byte << 8 * i;
    }
    return r;
}
SIM_FN unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    unsigned long long bytes = (unsigned long long)y << 32 | x;
    unsigned r = 0;
    for (int i = 0; i < 4; ++i) r |= (unsigned)(bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
    return r;
}

SIM_FN unsigned __builtin_amdgcn_sad_u8(unsigned a, unsigned b, unsigned c) {
    for (int i = 0; i < 32; i += 8) c = __usad(a >> i & 0xff, b >> i & 0xff, c);
    return c;
}
SIM_FN float __builtin_amdgcn_cvt_f32_ubyte0(unsigned x) { return x & 0xff; }
SIM_FN float __builtin_amdgcn_cvt_f32_ubyte1(unsigned x) { return x >> 8 & 0xff; }
SIM_FN float __builtin_amdgcn_cvt_f32_ubyte2(unsigned x) { return x >> 16 & 0xff; }
SIM_FN float __builtin_amdgcn_cvt_f32_ubyte3(unsigned x) { return x >> 24; }

// Conversions between number types, saturating as the device's do.
#define SIM_CONVERT(name, From, To, low, high, round)                    \
    SIM_FN To name(From x) {                                             \
        return x != x ? 0 : x <= (From)low ? low : x >= (From)high ? high : (To)round(x); \
    }
#define SIM_IDENTITY(x) (x)
SIM_CONVERT(__float2int_rn, float, int, (-2147483647 - 1), 2147483647, __builtin_rintf)
SIM_CONVERT(__float2int_rz, float, int, (-2147483647 - 1), 2147483647, SIM_IDENTITY)
SIM_CONVERT(__float2int_rd, float, int, (-2147483647 - 1), 2147483647, __builtin_floorf)
SIM_CONVERT(__float2int_ru, float, int, (-2147483647 - 1), 2147483647, __builtin_ceilf)
SIM_CONVERT(__float2uint_rn, float, unsigned, 0u, 4294967295u, __builtin_rintf)
SIM_CONVERT(__float2uint_rz, float, unsigned, 0u, 4294967295u, SIM_IDENTITY)
#undef SIM_CONVERT
#undef SIM_IDENTITY
SIM_FN float __int2float_rn(int x) { return x; }
SIM_FN float __uint2float_rn(unsigned x) { return x; }
SIM_FN float __double2float_rn(double x) { return (float)x; }
