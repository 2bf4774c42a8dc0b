// _Float16 and __bf16, which CUDA's compiler lacks: 16 bits that convert to and from float as those types do, rounded
// to nearest even. Between two of them +, -, * and / give their type; with any other number they are floats.
#pragma once

#define HIP_16_BIT_FLOAT(Type, to_bits, from_bits)                                                        \
    struct Type {                                                                                         \
        unsigned short bits;                                                                              \
                                                                                                          \
        Type() = default;                                                                                 \
        __device__ Type(float x) { asm(to_bits : "=h"(bits) : "f"(x)); }                                  \
        __device__ Type(double x) : Type(__double2float_rn(x)) {}                                         \
        __device__ Type(int x) : Type(static_cast<float>(x)) {}                                           \
        __device__ Type(unsigned x) : Type(static_cast<float>(x)) {}                                      \
        __device__ Type(long x) : Type(static_cast<float>(x)) {}                                          \
        __device__ Type(unsigned long x) : Type(static_cast<float>(x)) {}                                 \
        __device__ Type(long long x) : Type(static_cast<float>(x)) {}                                     \
        __device__ Type(unsigned long long x) : Type(static_cast<float>(x)) {}                            \
        __device__ operator float() const {                                                               \
            float x;                                                                                      \
            asm(from_bits : "=f"(x) : "h"(bits));                                                         \
            return x;                                                                                     \
        }                                                                                                 \
        __device__ Type operator-() const {                                                               \
            Type negated;                                                                                 \
            negated.bits = bits ^ 0x8000;                                                                 \
            return negated;                                                                               \
        }                                                                                                 \
        __device__ Type& operator+=(float x) { return *this = Type(static_cast<float>(*this) + x); }      \
        __device__ Type& operator-=(float x) { return *this = Type(static_cast<float>(*this) - x); }      \
        __device__ Type& operator*=(float x) { return *this = Type(static_cast<float>(*this) * x); }      \
        __device__ Type& operator/=(float x) { return *this = Type(static_cast<float>(*this) / x); }      \
    };                                                                                                    \
    template <>                                                                                           \
    struct hip_16_bit_float<Type> {                                                                       \
        using type = Type;                                                                                \
    }

template <typename T>
struct hip_16_bit_float {};

HIP_16_BIT_FLOAT(_Float16, "cvt.rn.f16.f32 %0, %1;", "cvt.f32.f16 %0, %1;");
HIP_16_BIT_FLOAT(__bf16, "cvt.rn.bf16.f32 %0, %1;", "{ .reg .b16 zero; mov.b16 zero, 0; mov.b32 %0, {zero, %1}; }");
#undef HIP_16_BIT_FLOAT

// Templates, so that a number of another type is not converted to 16 bits first.
#define HIP_ARITHMETIC(op)                                                               \
    template <typename T>                                                                \
    __device__ inline typename hip_16_bit_float<T>::type operator op(T a, T b) {         \
        return T(static_cast<float>(a) op static_cast<float>(b));                        \
    }
HIP_ARITHMETIC(+)
HIP_ARITHMETIC(-)
HIP_ARITHMETIC(*)
HIP_ARITHMETIC(/)
#undef HIP_ARITHMETIC

#define HIP_SHUFFLE(name, Type, Lane)                                     \
    __device__ inline Type name(Type value, Lane lane, int width = 32) {  \
        value.bits = static_cast<unsigned short>(name(static_cast<unsigned>(value.bits), lane, width)); \
        return value;                                                     \
    }
#define HIP_SHUFFLES(Type)                  \
    HIP_SHUFFLE(__shfl, Type, int)          \
    HIP_SHUFFLE(__shfl_up, Type, unsigned)  \
    HIP_SHUFFLE(__shfl_down, Type, unsigned) \
    HIP_SHUFFLE(__shfl_xor, Type, int)
HIP_SHUFFLES(_Float16)
HIP_SHUFFLES(__bf16)
#undef HIP_SHUFFLES
#undef HIP_SHUFFLE
