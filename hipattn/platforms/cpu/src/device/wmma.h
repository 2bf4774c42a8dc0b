// WMMA of RDNA: D = A B + C of 16x16x16 over the 32 lanes of a wave, all of which must take part.
#pragma once

SIM_FN void sim_wmma_check(sim_wave* wave) {
    if (wave->active != 0xffffffffull) sim_trap("WMMA with inactive lanes: the result is undefined");
}

// RDNA3: a lane holds a whole row of A and column of B, lanes 16 to 31 repeating lanes 0 to 15; of D, every other
// row of one column. A 16-bit C lies in one half of each register, `high` or low.
template <class T, class T_C = float, bool high = false> struct sim_wmma_gfx11 {
    using A = T;
    using B = T;
    using C = T_C;
    static constexpr unsigned m = 16, n = 16, k = 16, blocks = 1;
    static constexpr unsigned ab_count = 16, per_register = 4 / sizeof(C), c_count = 8 * per_register;

    static void check(sim_wave* wave) {
        sim_wmma_check(wave);
        for (unsigned lane = 0; lane < 16; ++lane)
            if (__builtin_memcmp(wave->slots + lane * wave->stride, wave->slots + (lane + 16) * wave->stride,
                                 2 * 16 * sizeof(T)))
                sim_trap("WMMA on gfx11: lanes 16 to 31 do not repeat A and B of lanes 0 to 15");
    }
    static sim_ab_place ab(unsigned lane, unsigned e) { return {0, lane % 16, e}; }
    static sim_c_place c(unsigned lane, unsigned r) {
        return {0, r / per_register * 2 + lane / 16, lane % 16, per_register == 1 || r % 2 == high};
    }
};

// RDNA4: a lane holds 8 neighbours along k; of D, 8 neighbouring rows of one column.
template <class T, class T_C = float, class U = T> struct sim_wmma_gfx12 {
    using A = T;
    using B = U;
    using C = T_C;
    static constexpr unsigned m = 16, n = 16, k = 16, blocks = 1, ab_count = 8, c_count = 8;

    static void check(sim_wave* wave) { sim_wmma_check(wave); }
    static sim_ab_place ab(unsigned lane, unsigned e) { return {0, lane % 16, lane / 16 * 8 + e}; }
    static sim_c_place c(unsigned lane, unsigned r) { return {0, lane / 16 * 8 + r, lane % 16}; }
};

#ifdef __gfx1100__
SIM_FN sim_float8 __builtin_amdgcn_wmma_f32_16x16x16_f16_w32(sim_half16 a, sim_half16 b, sim_float8 c) {
    return sim_matrix<sim_wmma_gfx11<_Float16>>(a, b, c);
}
SIM_FN sim_float8 __builtin_amdgcn_wmma_f32_16x16x16_bf16_w32(sim_short16 a, sim_short16 b, sim_float8 c) {
    return sim_matrix<sim_wmma_gfx11<sim_bf16>>(a, b, c);
}
SIM_FN sim_half16 __builtin_amdgcn_wmma_f16_16x16x16_f16_w32(sim_half16 a, sim_half16 b, sim_half16 c, bool high) {
    return high ? sim_matrix<sim_wmma_gfx11<_Float16, _Float16, true>>(a, b, c)
                : sim_matrix<sim_wmma_gfx11<_Float16, _Float16, false>>(a, b, c);
}
SIM_FN sim_short16 __builtin_amdgcn_wmma_bf16_16x16x16_bf16_w32(
    sim_short16 a, sim_short16 b, sim_short16 c, bool high) {
    return high ? sim_matrix<sim_wmma_gfx11<sim_bf16, sim_bf16, true>>(a, b, c)
                : sim_matrix<sim_wmma_gfx11<sim_bf16, sim_bf16, false>>(a, b, c);
}
#else
SIM_NEEDS(sim_float8, __builtin_amdgcn_wmma_f32_16x16x16_f16_w32, "gfx11-insts,wavefrontsize32")
SIM_NEEDS(sim_float8, __builtin_amdgcn_wmma_f32_16x16x16_bf16_w32, "gfx11-insts,wavefrontsize32")
SIM_NEEDS(sim_half16, __builtin_amdgcn_wmma_f16_16x16x16_f16_w32, "gfx11-insts,wavefrontsize32")
SIM_NEEDS(sim_short16, __builtin_amdgcn_wmma_bf16_16x16x16_bf16_w32, "gfx11-insts,wavefrontsize32")
#endif

#ifdef __gfx1201__
SIM_FN sim_float8 __builtin_amdgcn_wmma_f32_16x16x16_f16_w32_gfx12(sim_half8 a, sim_half8 b, sim_float8 c) {
    return sim_matrix<sim_wmma_gfx12<_Float16>>(a, b, c);
}
SIM_FN sim_float8 __builtin_amdgcn_wmma_f32_16x16x16_bf16_w32_gfx12(sim_short8 a, sim_short8 b, sim_float8 c) {
    return sim_matrix<sim_wmma_gfx12<sim_bf16>>(a, b, c);
}
SIM_FN sim_half8 __builtin_amdgcn_wmma_f16_16x16x16_f16_w32_gfx12(sim_half8 a, sim_half8 b, sim_half8 c) {
    return sim_matrix<sim_wmma_gfx12<_Float16, _Float16>>(a, b, c);
}
SIM_FN sim_short8 __builtin_amdgcn_wmma_bf16_16x16x16_bf16_w32_gfx12(sim_short8 a, sim_short8 b, sim_short8 c) {
    return sim_matrix<sim_wmma_gfx12<sim_bf16, sim_bf16>>(a, b, c);
}
#define SIM_WMMA_8BIT(a_type, b_type)                                                                       \
    SIM_FN sim_float8 __builtin_amdgcn_wmma_f32_16x16x16_##a_type##_##b_type##_w32_gfx12(         \
        sim_vector<int, 2> a, sim_vector<int, 2> b, sim_float8 c) {                               \
        return sim_matrix<sim_wmma_gfx12<sim_##a_type, float, sim_##b_type>>(a, b, c);                      \
    }
SIM_WMMA_8BIT(fp8, fp8)
SIM_WMMA_8BIT(fp8, bf8)
SIM_WMMA_8BIT(bf8, fp8)
SIM_WMMA_8BIT(bf8, bf8)
#undef SIM_WMMA_8BIT
#else
SIM_NEEDS(sim_float8, __builtin_amdgcn_wmma_f32_16x16x16_f16_w32_gfx12, "gfx12-insts,wavefrontsize32")
SIM_NEEDS(sim_float8, __builtin_amdgcn_wmma_f32_16x16x16_bf16_w32_gfx12, "gfx12-insts,wavefrontsize32")
SIM_NEEDS(sim_half8, __builtin_amdgcn_wmma_f16_16x16x16_f16_w32_gfx12, "gfx12-insts,wavefrontsize32")
SIM_NEEDS(sim_short8, __builtin_amdgcn_wmma_bf16_16x16x16_bf16_w32_gfx12, "gfx12-insts,wavefrontsize32")
SIM_NEEDS(sim_float8, __builtin_amdgcn_wmma_f32_16x16x16_fp8_fp8_w32_gfx12, "gfx12-insts,wavefrontsize32")
SIM_NEEDS(sim_float8, __builtin_amdgcn_wmma_f32_16x16x16_fp8_bf8_w32_gfx12, "gfx12-insts,wavefrontsize32")
SIM_NEEDS(sim_float8, __builtin_amdgcn_wmma_f32_16x16x16_bf8_fp8_w32_gfx12, "gfx12-insts,wavefrontsize32")
SIM_NEEDS(sim_float8, __builtin_amdgcn_wmma_f32_16x16x16_bf8_bf8_w32_gfx12, "gfx12-insts,wavefrontsize32")
#endif
SIM_NEEDS(sim_float4, __builtin_amdgcn_wmma_f32_16x16x16_f16_w64, "wavefrontsize64")
SIM_NEEDS(sim_float4, __builtin_amdgcn_wmma_f32_16x16x16_bf16_w64, "wavefrontsize64")
SIM_NEEDS(sim_float4, __builtin_amdgcn_wmma_f32_16x16x16_f16_w64_gfx12, "wavefrontsize64")
SIM_NEEDS(sim_float4, __builtin_amdgcn_wmma_f32_16x16x16_bf16_w64_gfx12, "wavefrontsize64")
