// Scalar names, dim3 and HIP's vector types (float4, uint2, ...) with HIP's sizes and alignments.
#pragma once

typedef unsigned long size_t;
typedef long ptrdiff_t;
typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef unsigned char __hip_uint8_t;
typedef unsigned short __hip_uint16_t;
typedef unsigned int __hip_uint32_t;
typedef unsigned long __hip_uint64_t;
typedef signed char __hip_int8_t;
typedef short __hip_int16_t;
typedef int __hip_int32_t;
typedef long __hip_int64_t;

namespace std {}

namespace __hip_internal {
template <class T, T v> struct integral_constant {
    static constexpr T value = v;
    constexpr operator T() const { return v; }
};
template <bool b> using bool_constant = integral_constant<bool, b>;
using true_type = bool_constant<true>;
using false_type = bool_constant<false>;
template <class A, class B> struct is_same : false_type {};
template <class A> struct is_same<A, A> : true_type {};
template <bool, class T = void> struct enable_if {};
template <class T> struct enable_if<true, T> { using type = T; };
template <bool, class A, class B> struct conditional { using type = A; };
template <class A, class B> struct conditional<false, A, B> { using type = B; };
template <class From, class To> struct is_convertible : bool_constant<__is_convertible(From, To)> {};
}  // namespace __hip_internal

struct dim3 {
    uint x, y, z;
    constexpr dim3(uint x = 1, uint y = 1, uint z = 1) : x(x), y(y), z(z) {}
};

template <class T, unsigned n> struct HIP_vector_base;
template <class T> struct HIP_vector_base<T, 1> { T x; };
template <class T> struct alignas(2 * sizeof(T)) HIP_vector_base<T, 2> { T x, y; };
template <class T> struct HIP_vector_base<T, 3> { T x, y, z; };
template <class T> struct alignas(4 * sizeof(T)) HIP_vector_base<T, 4> { T x, y, z, w; };

template <class T, unsigned n> struct HIP_vector_type : HIP_vector_base<T, n> {
    using value_type = T;
    using Scalar = typename __hip_internal::enable_if<(n > 0), T>::type;

    HIP_vector_type() = default;
    template <class U, typename __hip_internal::enable_if<__is_convertible(U, T)>::type* = nullptr>
    explicit constexpr HIP_vector_type(U v) : HIP_vector_base<T, n>(splat(static_cast<T>(v))) {}
    template <class... U, typename __hip_internal::enable_if<(n > 1) && sizeof...(U) == n>::type* = nullptr>
    constexpr HIP_vector_type(U... v) : HIP_vector_base<T, n>{static_cast<T>(v)...} {}

    T& operator[](size_t i) { return reinterpret_cast<T*>(this)[i]; }
    const T& operator[](size_t i) const { return reinterpret_cast<const T*>(this)[i]; }

    static constexpr HIP_vector_base<T, n> splat(T v) {
        if constexpr (n == 1) return {v};
        else if constexpr (n == 2) return {v, v};
        else if constexpr (n == 3) return {v, v, v};
        else return {v, v, v, v};
    }

#define SIM_VECTOR_OPERATOR(op)                                                                            \
    HIP_vector_type& operator op##=(const HIP_vector_type& b) {                                            \
        for (unsigned i = 0; i < n; ++i) (*this)[i] op##= b[i];                                            \
        return *this;                                                                                      \
    }                                                                                                      \
    HIP_vector_type& operator op##=(Scalar b) { return *this op##= HIP_vector_type(b); }                   \
    friend HIP_vector_type operator op(HIP_vector_type a, const HIP_vector_type& b) { return a op##= b; }   \
    friend HIP_vector_type operator op(HIP_vector_type a, Scalar b) { return a op##= HIP_vector_type(b); } \
    friend HIP_vector_type operator op(Scalar a, const HIP_vector_type& b) { return HIP_vector_type(a) op##= b; }
    SIM_VECTOR_OPERATOR(+)
    SIM_VECTOR_OPERATOR(-)
    SIM_VECTOR_OPERATOR(*)
    SIM_VECTOR_OPERATOR(/)
    SIM_VECTOR_OPERATOR(%)
    SIM_VECTOR_OPERATOR(&)
    SIM_VECTOR_OPERATOR(|)
    SIM_VECTOR_OPERATOR(^)
    SIM_VECTOR_OPERATOR(<<)
    SIM_VECTOR_OPERATOR(>>)
#undef SIM_VECTOR_OPERATOR

    HIP_vector_type operator-() const {
        HIP_vector_type r;
        for (unsigned i = 0; i < n; ++i) r[i] = -(*this)[i];
        return r;
    }
    HIP_vector_type operator~() const {
        HIP_vector_type r;
        for (unsigned i = 0; i < n; ++i) r[i] = ~(*this)[i];
        return r;
    }
    HIP_vector_type& operator++() { return *this += T(1); }
    HIP_vector_type& operator--() { return *this -= T(1); }
    friend bool operator==(const HIP_vector_type& a, const HIP_vector_type& b) {
        for (unsigned i = 0; i < n; ++i)
            if (!(a[i] == b[i])) return false;
        return true;
    }
    friend bool operator!=(const HIP_vector_type& a, const HIP_vector_type& b) { return !(a == b); }
};

#define SIM_VECTOR_TYPES(name, T)                                                                      \
    using name##1 = HIP_vector_type<T, 1>;                                                             \
    using name##2 = HIP_vector_type<T, 2>;                                                             \
    using name##3 = HIP_vector_type<T, 3>;                                                             \
    using name##4 = HIP_vector_type<T, 4>;                                                             \
    SIM_FN name##1 make_##name##1(T x) { return name##1(x); }                                          \
    SIM_FN name##2 make_##name##2(T x, T y) { return name##2(x, y); }                                  \
    SIM_FN name##3 make_##name##3(T x, T y, T z) { return name##3(x, y, z); }                          \
    SIM_FN name##4 make_##name##4(T x, T y, T z, T w) { return name##4(x, y, z, w); }
SIM_VECTOR_TYPES(char, char)
SIM_VECTOR_TYPES(uchar, unsigned char)
SIM_VECTOR_TYPES(short, short)
SIM_VECTOR_TYPES(ushort, unsigned short)
SIM_VECTOR_TYPES(int, int)
SIM_VECTOR_TYPES(uint, unsigned)
SIM_VECTOR_TYPES(long, long)
SIM_VECTOR_TYPES(ulong, unsigned long)
SIM_VECTOR_TYPES(longlong, long long)
SIM_VECTOR_TYPES(ulonglong, unsigned long long)
SIM_VECTOR_TYPES(float, float)
SIM_VECTOR_TYPES(double, double)
#undef SIM_VECTOR_TYPES
