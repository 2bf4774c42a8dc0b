// What the matrix instructions share: element types and the product itself. A wave's product is computed once, in
// float32, over what all its lanes brought; each lane then takes its registers. Where an element lives is a Layout
// of mfma.h or wmma.h.
#pragma once

template <class T, unsigned n> using sim_vector = T __attribute__((ext_vector_type(n)));
using sim_float4 = sim_vector<float, 4>;
using sim_float8 = sim_vector<float, 8>;
using sim_float16 = sim_vector<float, 16>;
using sim_float32 = sim_vector<float, 32>;
using sim_half8 = sim_vector<_Float16, 8>;
using sim_half16 = sim_vector<_Float16, 16>;
using sim_short8 = sim_vector<short, 8>;
using sim_short16 = sim_vector<short, 16>;

struct sim_bf16 {
    unsigned short bits;
};
struct sim_fp8 {  // e4m3
    unsigned char bits;
};
struct sim_bf8 {  // e5m2
    unsigned char bits;
};

SIM_FN float sim_widen(float x) { return x; }
SIM_FN float sim_widen(_Float16 x) { return x; }
SIM_FN float sim_widen(sim_bf16 x) { return sim_bits<float>((unsigned)x.bits << 16); }

// gfx942's 8-bit floats are FNUZ: the bias is one more, the only special value is NaN, written as minus zero.
#ifdef __gfx942__
#define SIM_FNUZ 1
#else
#define SIM_FNUZ 0
#endif
SIM_FN float sim_widen8(unsigned bits, int mantissa_bits, int bias, bool has_infinity) {
    unsigned sign = bits >> 7, rest = bits & 0x7f, mantissa = rest & ((1 << mantissa_bits) - 1);
    int exponent = rest >> mantissa_bits;
    if (SIM_FNUZ) {
        if (bits == 0x80) return __builtin_nanf("");
    } else if (has_infinity && exponent == (1 << (7 - mantissa_bits)) - 1) {
        return mantissa ? __builtin_nanf("") : sign ? -__builtin_inff() : __builtin_inff();
    } else if (!has_infinity && rest == 0x7f) {
        return __builtin_nanf("");
    }
    float value = exponent ? __builtin_ldexpf((1 << mantissa_bits) + mantissa, exponent - bias - mantissa_bits)
                           : __builtin_ldexpf(mantissa, 1 - bias - mantissa_bits);
    return sign ? -value : value;
}
SIM_FN float sim_widen(sim_fp8 x) { return sim_widen8(x.bits, 3, 7 + SIM_FNUZ, false); }
SIM_FN float sim_widen(sim_bf8 x) { return sim_widen8(x.bits, 2, 15 + SIM_FNUZ, true); }

SIM_FN void sim_narrow(float x, float& to) { to = x; }
SIM_FN void sim_narrow(float x, _Float16& to) { to = (_Float16)x; }
SIM_FN void sim_narrow(float x, sim_bf16& to) { to.bits = hip_bfloat16(x).data; }

// What a lane brings. The result replaces it in the slot.
template <class L> struct sim_fragments {
    typename L::A a[L::ab_count];
    typename L::B b[L::ab_count];
    typename L::C c[L::c_count];
};

template <class L> void sim_matrix_once(sim_wave* wave) {
    float a[L::blocks][L::m][L::k], b[L::blocks][L::k][L::n], d[L::blocks][L::m][L::n];
    L::check(wave);
    for (unsigned lane = 0; lane < SIM_WAVE; ++lane) {
        auto f = sim_slot<sim_fragments<L>>(wave, lane);
        for (unsigned e = 0; e < L::ab_count; ++e) {
            auto at = L::ab(lane, e);
            a[at.block][at.ij][at.k] = sim_widen(f.a[e]);
            b[at.block][at.k][at.ij] = sim_widen(f.b[e]);
        }
        for (unsigned r = 0; r < L::c_count; ++r) {
            auto at = L::c(lane, r);
            if (at.used) d[at.block][at.i][at.j] = sim_widen(f.c[r]);
        }
    }
    for (unsigned block = 0; block < L::blocks; ++block)
        for (unsigned i = 0; i < L::m; ++i)
            for (unsigned k = 0; k < L::k; ++k)
                for (unsigned j = 0; j < L::n; ++j) d[block][i][j] += a[block][i][k] * b[block][k][j];
    for (unsigned lane = 0; lane < SIM_WAVE; ++lane) {
        auto f = sim_slot<sim_fragments<L>>(wave, lane);
        for (unsigned r = 0; r < L::c_count; ++r) {
            auto at = L::c(lane, r);
            if (at.used) sim_narrow(d[at.block][at.i][at.j], f.c[r]);
        }
        __builtin_memcpy(wave->slots + lane * wave->stride, f.c, sizeof f.c);
    }
}

template <class L, class AV, class BV, class CV> SIM_FN CV sim_matrix(AV a, BV b, CV c) {
    sim_fragments<L> f;
    static_assert(sizeof a == sizeof f.a && sizeof b == sizeof f.b && sizeof c == sizeof f.c, "fragment sizes");
    static_assert(sizeof f <= SIM_SLOT_BYTES, "a slot holds a lane's fragments");
    __builtin_memcpy(f.a, &a, sizeof a);
    __builtin_memcpy(f.b, &b, sizeof b);
    __builtin_memcpy(f.c, &c, sizeof c);
    auto wave = sim_exchange(&f, sizeof f, sim_matrix_once<L>);
    return sim_slot<CV>(wave, __lane_id());
}

struct sim_ab_place {
    unsigned block, ij, k;
};
struct sim_c_place {
    unsigned block, i, j;
    bool used = true;
};

#include "mfma.h"
#include "wmma.h"
