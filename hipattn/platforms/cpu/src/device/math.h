// The math library: the host's, under HIP's names, and the fast intrinsics. Compiled with -fno-math-errno, so that
// what a CPU has an instruction for stays one.
#pragma once

// C names, and C++ overloads of the double's name for float; an integer counts as a double.
#define SIM_MATH1(name)                                                      \
    extern "C" float name##f(float);                                         \
    extern "C" double name(double);                                          \
    SIM_FN float name(float x) { return __builtin_##name##f(x); }            \
    template <class T>                                                       \
    SIM_FN typename __hip_internal::enable_if<__is_integral(T), double>::type name(T x) { return name((double)x); }
#define SIM_MATH2(name)                                        \
    extern "C" float name##f(float, float);                    \
    extern "C" double name(double, double);                    \
    SIM_FN float name(float x, float y) { return __builtin_##name##f(x, y); }
SIM_MATH1(sqrt) SIM_MATH1(cbrt) SIM_MATH1(exp) SIM_MATH1(exp2) SIM_MATH1(expm1) SIM_MATH1(exp10)
SIM_MATH1(log) SIM_MATH1(log2) SIM_MATH1(log10) SIM_MATH1(log1p) SIM_MATH1(logb)
SIM_MATH1(sin) SIM_MATH1(cos) SIM_MATH1(tan) SIM_MATH1(asin) SIM_MATH1(acos) SIM_MATH1(atan)
SIM_MATH1(sinh) SIM_MATH1(cosh) SIM_MATH1(tanh) SIM_MATH1(asinh) SIM_MATH1(acosh) SIM_MATH1(atanh)
SIM_MATH1(erf) SIM_MATH1(erfc) SIM_MATH1(tgamma) SIM_MATH1(lgamma)
SIM_MATH1(fabs) SIM_MATH1(floor) SIM_MATH1(ceil) SIM_MATH1(trunc) SIM_MATH1(round) SIM_MATH1(rint) SIM_MATH1(nearbyint)
SIM_MATH2(pow) SIM_MATH2(fmax) SIM_MATH2(fmin) SIM_MATH2(fmod) SIM_MATH2(remainder) SIM_MATH2(atan2) SIM_MATH2(hypot)
SIM_MATH2(copysign) SIM_MATH2(fdim) SIM_MATH2(nextafter)
#undef SIM_MATH1
#undef SIM_MATH2

extern "C" float fmaf(float, float, float);
extern "C" double fma(double, double, double);
extern "C" float ldexpf(float, int);
extern "C" double ldexp(double, int);
extern "C" float frexpf(float, int*);
extern "C" double frexp(double, int*);
extern "C" float modff(float, float*);
extern "C" int ilogbf(float);
extern "C" int ilogb(double);
extern "C" long lrintf(float);
extern "C" long lroundf(float);
extern "C" long lrint(double);
extern "C" long lround(double);
extern "C" int abs(int);
extern "C" long labs(long);
extern "C" long long llabs(long long);
SIM_FN float fma(float x, float y, float z) { return __builtin_fmaf(x, y, z); }
SIM_FN float ldexp(float x, int e) { return __builtin_ldexpf(x, e); }
SIM_FN float frexp(float x, int* e) { return __builtin_frexpf(x, e); }
SIM_FN float abs(float x) { return __builtin_fabsf(x); }
SIM_FN double abs(double x) { return __builtin_fabs(x); }
SIM_FN long abs(long x) { return x < 0 ? -x : x; }
SIM_FN long long abs(long long x) { return x < 0 ? -x : x; }
SIM_FN float pow(float x, int y) { return __builtin_powif(x, y); }
SIM_FN double pow(double x, int y) { return __builtin_powi(x, y); }
SIM_FN float powif(float x, int y) { return __builtin_powif(x, y); }
SIM_FN float rsqrtf(float x) { return 1.0f / __builtin_sqrtf(x); }
SIM_FN float rsqrt(float x) { return 1.0f / __builtin_sqrtf(x); }
SIM_FN double rsqrt(double x) { return 1.0 / __builtin_sqrt(x); }
SIM_FN float rcbrtf(float x) { return 1.0f / __builtin_cbrtf(x); }
SIM_FN float sinpif(float x) { return (float)__builtin_sin(3.14159265358979323846 * x); }
SIM_FN float cospif(float x) { return (float)__builtin_cos(3.14159265358979323846 * x); }
SIM_FN float normcdff(float x) { return 0.5f * __builtin_erfcf(-0.70710678118654752f * x); }
SIM_FN float fdividef(float x, float y) { return x / y; }
SIM_FN void sincosf(float x, float* s, float* c) { *s = __builtin_sinf(x); *c = __builtin_cosf(x); }
SIM_FN void sincos(double x, double* s, double* c) { *s = __builtin_sin(x); *c = __builtin_cos(x); }
SIM_FN void sincos(float x, float* s, float* c) { sincosf(x, s, c); }

#define SIM_CLASSIFY(T)                                            \
    SIM_FN bool isnan(T x) { return __builtin_isnan(x); }          \
    SIM_FN bool isinf(T x) { return __builtin_isinf(x); }          \
    SIM_FN bool isfinite(T x) { return __builtin_isfinite(x); }    \
    SIM_FN bool signbit(T x) { return __builtin_signbit(x); }
SIM_CLASSIFY(float)
SIM_CLASSIFY(double)
SIM_CLASSIFY(_Float16)
#undef SIM_CLASSIFY

#define SIM_MINMAX(T)                                     \
    SIM_FN T min(T a, T b) { return b < a ? b : a; }      \
    SIM_FN T max(T a, T b) { return a < b ? b : a; }
SIM_MINMAX(int)
SIM_MINMAX(unsigned)
SIM_MINMAX(long)
SIM_MINMAX(unsigned long)
SIM_MINMAX(long long)
SIM_MINMAX(unsigned long long)
#undef SIM_MINMAX
SIM_FN unsigned min(int a, unsigned b) { return min((unsigned)a, b); }
SIM_FN unsigned min(unsigned a, int b) { return min(a, (unsigned)b); }
SIM_FN unsigned max(int a, unsigned b) { return max((unsigned)a, b); }
SIM_FN unsigned max(unsigned a, int b) { return max(a, (unsigned)b); }
// IEEE maxNum and minNum: of a number and a NaN, the number.
SIM_FN float min(float a, float b) { return __builtin_fminf(a, b); }
SIM_FN float max(float a, float b) { return __builtin_fmaxf(a, b); }
SIM_FN double min(double a, double b) { return __builtin_fmin(a, b); }
SIM_FN double max(double a, double b) { return __builtin_fmax(a, b); }

// The device's approximate instructions flush denormals; the host's exact function stands in for each.
SIM_FN float __builtin_amdgcn_exp2f(float x) { return __builtin_exp2f(x); }
SIM_FN float __builtin_amdgcn_logf(float x) { return __builtin_log2f(x); }
SIM_FN float __builtin_amdgcn_log_clampf(float x) { return __builtin_log2f(x); }
SIM_FN float __builtin_amdgcn_rcpf(float x) { return 1.0f / x; }
SIM_FN double __builtin_amdgcn_rcp(double x) { return 1.0 / x; }
SIM_FN float __builtin_amdgcn_rsqf(float x) { return 1.0f / __builtin_sqrtf(x); }
SIM_FN double __builtin_amdgcn_rsq(double x) { return 1.0 / __builtin_sqrt(x); }
SIM_FN float __builtin_amdgcn_sqrtf(float x) { return __builtin_sqrtf(x); }
SIM_FN float __builtin_amdgcn_sinf(float x) { return (float)__builtin_sin(6.283185307179586 * x); }
SIM_FN float __builtin_amdgcn_cosf(float x) { return (float)__builtin_cos(6.283185307179586 * x); }
SIM_FN float __builtin_amdgcn_fractf(float x) { return x - __builtin_floorf(x); }
SIM_FN float __builtin_amdgcn_ldexpf(float x, int e) { return __builtin_ldexpf(x, e); }
SIM_FN float __builtin_amdgcn_frexp_mantf(float x) { int e; return __builtin_frexpf(x, &e); }
SIM_FN int __builtin_amdgcn_frexp_expf(float x) { int e; __builtin_frexpf(x, &e); return e; }
SIM_FN float __builtin_amdgcn_fmed3f(float a, float b, float c) {
    return __builtin_fmaxf(__builtin_fminf(__builtin_fmaxf(a, b), c), __builtin_fminf(a, b));
}

SIM_FN float __exp2f(float x) { return __builtin_exp2f(x); }
SIM_FN float __expf(float x) { return __builtin_exp2f(x * 1.44269504088896340736f); }
SIM_FN float __exp10f(float x) { return __builtin_exp2f(x * 3.32192809488736234787f); }
SIM_FN float __log2f(float x) { return __builtin_log2f(x); }
SIM_FN float __logf(float x) { return __builtin_log2f(x) * 0.693147180559945309417f; }
SIM_FN float __log10f(float x) { return __builtin_log10f(x); }
SIM_FN float __sinf(float x) { return __builtin_sinf(x); }
SIM_FN float __cosf(float x) { return __builtin_cosf(x); }
SIM_FN float __tanf(float x) { return __builtin_tanf(x); }
SIM_FN void __sincosf(float x, float* s, float* c) { sincosf(x, s, c); }
SIM_FN float __powf(float x, float y) { return __builtin_powf(x, y); }
SIM_FN float __saturatef(float x) { return x < 0 ? 0 : x > 1 ? 1 : x; }
SIM_FN float __fdividef(float x, float y) { return x / y; }
SIM_FN float __frcp_rn(float x) { return 1.0f / x; }
SIM_FN float __frsqrt_rn(float x) { return 1.0f / __builtin_sqrtf(x); }
SIM_FN float __fsqrt_rn(float x) { return __builtin_sqrtf(x); }
SIM_FN float __fadd_rn(float x, float y) { return x + y; }
SIM_FN float __fsub_rn(float x, float y) { return x - y; }
SIM_FN float __fmul_rn(float x, float y) { return x * y; }
SIM_FN float __fdiv_rn(float x, float y) { return x / y; }
SIM_FN float __fmaf_rn(float x, float y, float z) { return __builtin_fmaf(x, y, z); }
