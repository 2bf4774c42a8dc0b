// __half, __half2 and hip_bfloat16 with the functions kernels use. _Float16 and __bf16 are the compiler's own.
#pragma once

typedef _Float16 sim_half2 __attribute__((ext_vector_type(2)));
typedef __fp16 sim_fp16x2 __attribute__((ext_vector_type(2)));

struct __half_raw {
    union {
        _Float16 data;
        unsigned short x;
    };
};

struct __half {
    union {
        _Float16 data;
        unsigned short __x;
    };
    __half() = default;
    constexpr __half(_Float16 v) : data(v) {}
    constexpr __half(float v) : data((_Float16)v) {}
    constexpr __half(double v) : data((_Float16)v) {}
    constexpr __half(int v) : data((_Float16)v) {}
    constexpr __half(unsigned v) : data((_Float16)v) {}
    constexpr __half(__half_raw v) : data(v.data) {}
    operator float() const { return data; }
    operator _Float16() const { return data; }
    operator __half_raw() const { return __half_raw{{data}}; }
    __half operator-() const { return __half(-data); }
#define SIM_HALF_OPERATOR(op)                                                                    \
    __half& operator op##=(__half b) { data = data op b.data; return *this; }                    \
    friend __half operator op(__half a, __half b) { return __half((_Float16)(a.data op b.data)); }
    SIM_HALF_OPERATOR(+) SIM_HALF_OPERATOR(-) SIM_HALF_OPERATOR(*) SIM_HALF_OPERATOR(/)
#undef SIM_HALF_OPERATOR
#define SIM_HALF_COMPARE(op) friend bool operator op(__half a, __half b) { return a.data op b.data; }
    SIM_HALF_COMPARE(==) SIM_HALF_COMPARE(!=) SIM_HALF_COMPARE(<) SIM_HALF_COMPARE(<=) SIM_HALF_COMPARE(>) SIM_HALF_COMPARE(>=)
#undef SIM_HALF_COMPARE
};
typedef __half half;

struct __half2 {
    union {
        sim_half2 data;
        struct { unsigned short x, y; };
    };
    __half2() = default;
    constexpr __half2(sim_half2 v) : data(v) {}
    constexpr __half2(__half a, __half b) : data{a.data, b.data} {}
    operator sim_half2() const { return data; }
    operator float2() const { return float2((float)data.x, (float)data.y); }
#define SIM_HALF_OPERATOR(op)                                                                          \
    __half2& operator op##=(__half2 b) { data = data op b.data; return *this; }                        \
    friend __half2 operator op(__half2 a, __half2 b) { return __half2(a.data op b.data); }
    SIM_HALF_OPERATOR(+) SIM_HALF_OPERATOR(-) SIM_HALF_OPERATOR(*) SIM_HALF_OPERATOR(/)
#undef SIM_HALF_OPERATOR
};
typedef __half2 half2;

SIM_FN __half __float2half(float x) { return __half(x); }
SIM_FN __half __float2half_rn(float x) { return __half(x); }
SIM_FN __half __double2half(double x) { return __half(x); }
SIM_FN __half __int2half_rn(int x) { return __half(x); }
SIM_FN float __half2float(__half x) { return x.data; }
SIM_FN unsigned short __half_as_ushort(__half x) { return x.__x; }
SIM_FN short __half_as_short(__half x) { return (short)x.__x; }
SIM_FN __half __ushort_as_half(unsigned short x) { return __half(sim_bits<_Float16>(x)); }
SIM_FN __half __short_as_half(short x) { return __half(sim_bits<_Float16>(x)); }
SIM_FN __half2 make_half2(__half a, __half b) { return __half2(a, b); }
SIM_FN __half2 __halves2half2(__half a, __half b) { return __half2(a, b); }
SIM_FN __half2 __half2half2(__half a) { return __half2(a, a); }
SIM_FN __half2 __floats2half2_rn(float a, float b) { return __half2(__half(a), __half(b)); }
SIM_FN __half2 __float22half2_rn(float2 a) { return __floats2half2_rn(a.x, a.y); }
SIM_FN __half2 __float2half2_rn(float a) { return __floats2half2_rn(a, a); }
SIM_FN float2 __half22float2(__half2 a) { return a; }
SIM_FN __half __low2half(__half2 a) { return __half(a.data.x); }
SIM_FN __half __high2half(__half2 a) { return __half(a.data.y); }
SIM_FN float __low2float(__half2 a) { return a.data.x; }
SIM_FN float __high2float(__half2 a) { return a.data.y; }
SIM_FN bool __hisnan(__half a) { return isnan(a.data); }
SIM_FN bool __hisinf(__half a) { return isinf(a.data); }

#define SIM_HALF2(name, op)                                                   \
    SIM_FN __half __h##name(__half a, __half b) { return a op b; }            \
    SIM_FN __half2 __h##name##2(__half2 a, __half2 b) { return a op b; }
SIM_HALF2(add, +) SIM_HALF2(sub, -) SIM_HALF2(mul, *)
#undef SIM_HALF2
SIM_FN __half __hdiv(__half a, __half b) { return a / b; }
SIM_FN __half2 __h2div(__half2 a, __half2 b) { return a / b; }
SIM_FN __half __hneg(__half a) { return -a; }
SIM_FN __half __habs(__half a) { return __half(__builtin_fabsf(a.data)); }
SIM_FN __half __hmax(__half a, __half b) { return __half(__builtin_fmaxf(a.data, b.data)); }
SIM_FN __half __hmin(__half a, __half b) { return __half(__builtin_fminf(a.data, b.data)); }
SIM_FN __half __hfma(__half a, __half b, __half c) {
    return __half((_Float16)__builtin_fma((double)a.data, (double)b.data, (double)c.data));
}
SIM_FN __half2 __hfma2(__half2 a, __half2 b, __half2 c) {
    return __half2(__hfma(a.data.x, b.data.x, c.data.x), __hfma(a.data.y, b.data.y, c.data.y));
}
SIM_FN bool __heq(__half a, __half b) { return a == b; }
SIM_FN bool __hne(__half a, __half b) { return a != b; }
SIM_FN bool __hlt(__half a, __half b) { return a < b; }
SIM_FN bool __hle(__half a, __half b) { return a <= b; }
SIM_FN bool __hgt(__half a, __half b) { return a > b; }
SIM_FN bool __hge(__half a, __half b) { return a >= b; }

#define SIM_HALF_MATH(name, function)                                                        \
    SIM_FN __half h##name(__half a) { return __half(function((float)a.data)); }              \
    SIM_FN __half2 h2##name(__half2 a) { return __half2(h##name(a.data.x), h##name(a.data.y)); }
SIM_HALF_MATH(exp, __builtin_expf) SIM_HALF_MATH(exp2, __builtin_exp2f) SIM_HALF_MATH(exp10, __builtin_exp10f)
SIM_HALF_MATH(log, __builtin_logf) SIM_HALF_MATH(log2, __builtin_log2f) SIM_HALF_MATH(log10, __builtin_log10f)
SIM_HALF_MATH(sqrt, __builtin_sqrtf) SIM_HALF_MATH(rsqrt, rsqrtf) SIM_HALF_MATH(rcp, __builtin_amdgcn_rcpf)
SIM_HALF_MATH(sin, __builtin_sinf) SIM_HALF_MATH(cos, __builtin_cosf)
SIM_HALF_MATH(floor, __builtin_floorf) SIM_HALF_MATH(ceil, __builtin_ceilf)
SIM_HALF_MATH(trunc, __builtin_truncf) SIM_HALF_MATH(rint, __builtin_rintf)
#undef SIM_HALF_MATH

SIM_FN _Float16 __builtin_amdgcn_rcph(_Float16 x) { return (_Float16)(1.0f / (float)x); }
SIM_FN _Float16 __builtin_amdgcn_rsqh(_Float16 x) { return (_Float16)(1.0f / __builtin_sqrtf(x)); }
SIM_FN _Float16 __builtin_amdgcn_sqrth(_Float16 x) { return (_Float16)__builtin_sqrtf(x); }

// float to half towards zero.
SIM_FN _Float16 sim_half_rtz(float x) {
    _Float16 h = (_Float16)x;
    if (__builtin_fabsf((float)h) > __builtin_fabsf(x) && !__builtin_isinf(x))
        h = sim_bits<_Float16>((unsigned short)(sim_bits<unsigned short>(h) - 1));
    return h;
}
SIM_FN sim_fp16x2 __builtin_amdgcn_cvt_pkrtz(float a, float b) {
    return sim_bits<sim_fp16x2>(sim_half2{sim_half_rtz(a), sim_half_rtz(b)});
}

// Two numbers of e4m3, the low or the high ones of four: FNUZ (bias 8, NaN 0x80) on gfx942, elsewhere the OCP's.
typedef float sim_floats2 __attribute__((ext_vector_type(2)));
#if defined(__gfx942__) || defined(__gfx950__) || defined(__gfx1201__)
SIM_FN float sim_from_e4m3(unsigned code) {
#ifdef __gfx942__
    const int bias = 8;
    const bool nan = code == 0x80;
#else
    const int bias = 7;
    const bool nan = (code & 0x7f) == 0x7f;
#endif
    if (nan) return __builtin_nanf("");
    const int exponent = code >> 3 & 15, mantissa = code & 7;
    const int steps = exponent ? 8 + mantissa : mantissa;
    const float size = steps * sim_bits<float>((unsigned)(127 - bias - 3 + (exponent ? exponent : 1)) << 23);
    return code & 0x80 ? -size : size;
}
SIM_FN sim_floats2 __builtin_amdgcn_cvt_pk_f32_fp8(int codes, bool high) {
    const unsigned two = (unsigned)codes >> (high ? 16 : 0);
    return sim_floats2{sim_from_e4m3(two & 0xff), sim_from_e4m3(two >> 8 & 0xff)};
}
#else
SIM_NEEDS(sim_floats2, __builtin_amdgcn_cvt_pk_f32_fp8, "fp8-conversion-insts")
#endif

struct hip_bfloat16 {
    unsigned short data;
    enum truncate_t { truncate };
    hip_bfloat16() = default;
    explicit hip_bfloat16(float f) : data(rounded(f)) {}
    explicit hip_bfloat16(float f, truncate_t) : data(truncated(f)) {}
    operator float() const { return sim_bits<float>((unsigned)data << 16); }
    hip_bfloat16& operator=(const float& f) { data = rounded(f); return *this; }
    static hip_bfloat16 round_to_bfloat16(float f) { return hip_bfloat16(f); }
    static hip_bfloat16 round_to_bfloat16(float f, truncate_t t) { return hip_bfloat16(f, t); }

  private:
    static unsigned short rounded(float f) {
        unsigned u = sim_bits<unsigned>(f);
        if (~u & 0x7f800000) u += 0x7fff + (u >> 16 & 1);  // to nearest even
        else if (u & 0xffff) u |= 0x10000;                  // keeps a NaN a NaN
        return u >> 16;
    }
    static unsigned short truncated(float f) {
        unsigned u = sim_bits<unsigned>(f);
        return u >> 16 | (!(~u & 0x7f800000) && (u & 0xffff));
    }
};
#define SIM_BFLOAT_OPERATOR(op)                                                                                      \
    SIM_FN hip_bfloat16 operator op(hip_bfloat16 a, hip_bfloat16 b) { return hip_bfloat16((float)a op (float)b); }   \
    SIM_FN hip_bfloat16& operator op##=(hip_bfloat16& a, hip_bfloat16 b) { return a = a op b; }
SIM_BFLOAT_OPERATOR(+) SIM_BFLOAT_OPERATOR(-) SIM_BFLOAT_OPERATOR(*) SIM_BFLOAT_OPERATOR(/)
#undef SIM_BFLOAT_OPERATOR
SIM_FN hip_bfloat16 operator-(hip_bfloat16 a) { a.data ^= 0x8000; return a; }

// What clang calls to round a float to __bf16, where the host's instructions cannot; its compiler library may lack it.
extern "C" __attribute__((weak, used, visibility("hidden"))) __bf16 __truncsfbf2(float f) {
    return sim_bits<__bf16>(hip_bfloat16(f).data);
}
