// MFMA of CDNA: D[i][j] = C[i][j] + sum over k of A[i][k] B[k][j], for one or several blocks, over 64 lanes.
#pragma once

// A lane holds K·M·blocks/64 neighbours along k of one row of A (and one column of B). Of D it holds one column:
// groups of four rows, dealt to the lanes above one another in turn; then the next block.
template <class T, unsigned M, unsigned K, unsigned Blocks, class U = T> struct sim_mfma {
    using A = T;
    using B = U;
    using C = float;
    static constexpr unsigned m = M, n = M, k = K, blocks = Blocks;
    static constexpr unsigned ab_count = M * K * Blocks / 64, c_count = M * M * Blocks / 64;

    static void check(sim_wave*) {}
    static sim_ab_place ab(unsigned lane, unsigned e) {
        constexpr unsigned groups = 64 / M / Blocks;  // lanes that share a row of one block
        unsigned group = lane / M;
        return {group / groups, lane % M, group % groups * ab_count + e};
    }
    static sim_c_place c(unsigned lane, unsigned r) {
        if constexpr (M == 4) {
            return {lane / 4, r, lane % 4};
        } else {
            constexpr unsigned per_block = M * M / 64;
            unsigned in = r % per_block;
            return {r / per_block, in / 4 * (256 / M) + lane / M * 4 + in % 4, lane % M};
        }
    }
};

#define SIM_MFMA(name, Layout, AV, BV, count)                                                                    \
    SIM_FN sim_vector<float, count> __builtin_amdgcn_mfma_f32_##name(AV a, BV b, sim_vector<float, count> c, int cbsz, \
                                                                     int abid, int blgp) {                       \
        if (cbsz | abid | blgp) sim_trap("mfma_f32_" #name ": cbsz, abid and blgp other than 0 are not simulated"); \
        return sim_matrix<Layout>(a, b, c);                                                                      \
    }
#define SIM_LAYOUT(...) sim_mfma<__VA_ARGS__>

#ifdef SIM_CDNA
#define SIM_MFMA_F32(name, M, K, blocks, count) SIM_MFMA(name, SIM_LAYOUT(float, M, K, blocks), float, float, count)
#define SIM_MFMA_F16(name, M, K, blocks, count) \
    using sim_##name##_ab = sim_vector<_Float16, M * K * blocks / 64>; \
    SIM_MFMA(name, SIM_LAYOUT(_Float16, M, K, blocks), sim_##name##_ab, sim_##name##_ab, count)
#define SIM_MFMA_BF16(name, Element, M, K, blocks, count) \
    using sim_##name##_ab = sim_vector<Element, M * K * blocks / 64>; \
    SIM_MFMA(name, SIM_LAYOUT(sim_bf16, M, K, blocks), sim_##name##_ab, sim_##name##_ab, count)

SIM_MFMA_F32(32x32x1f32, 32, 1, 2, 32)
SIM_MFMA_F32(16x16x1f32, 16, 1, 4, 16)
SIM_MFMA_F32(4x4x1f32, 4, 1, 16, 4)
SIM_MFMA_F32(32x32x2f32, 32, 2, 1, 16)
SIM_MFMA_F32(16x16x4f32, 16, 4, 1, 4)

SIM_MFMA_F16(32x32x4f16, 32, 4, 2, 32)
SIM_MFMA_F16(16x16x4f16, 16, 4, 4, 16)
SIM_MFMA_F16(4x4x4f16, 4, 4, 16, 4)
SIM_MFMA_F16(32x32x8f16, 32, 8, 1, 16)
SIM_MFMA_F16(16x16x16f16, 16, 16, 1, 4)

SIM_MFMA_BF16(32x32x4bf16_1k, short, 32, 4, 2, 32)
SIM_MFMA_BF16(16x16x4bf16_1k, short, 16, 4, 4, 16)
SIM_MFMA_BF16(4x4x4bf16_1k, short, 4, 4, 16, 4)
SIM_MFMA_BF16(32x32x8bf16_1k, short, 32, 8, 1, 16)
SIM_MFMA_BF16(16x16x16bf16_1k, short, 16, 16, 1, 4)
#else
SIM_NEEDS(sim_float32, __builtin_amdgcn_mfma_f32_32x32x1f32, "mai-insts")
SIM_NEEDS(sim_float16, __builtin_amdgcn_mfma_f32_16x16x1f32, "mai-insts")
SIM_NEEDS(sim_float4, __builtin_amdgcn_mfma_f32_4x4x1f32, "mai-insts")
SIM_NEEDS(sim_float16, __builtin_amdgcn_mfma_f32_32x32x2f32, "mai-insts")
SIM_NEEDS(sim_float4, __builtin_amdgcn_mfma_f32_16x16x4f32, "mai-insts")
SIM_NEEDS(sim_float32, __builtin_amdgcn_mfma_f32_32x32x4f16, "mai-insts")
SIM_NEEDS(sim_float16, __builtin_amdgcn_mfma_f32_16x16x4f16, "mai-insts")
SIM_NEEDS(sim_float4, __builtin_amdgcn_mfma_f32_4x4x4f16, "mai-insts")
SIM_NEEDS(sim_float16, __builtin_amdgcn_mfma_f32_32x32x8f16, "mai-insts")
SIM_NEEDS(sim_float4, __builtin_amdgcn_mfma_f32_16x16x16f16, "mai-insts")
SIM_NEEDS(sim_float32, __builtin_amdgcn_mfma_f32_32x32x4bf16_1k, "mai-insts")
SIM_NEEDS(sim_float16, __builtin_amdgcn_mfma_f32_16x16x4bf16_1k, "mai-insts")
SIM_NEEDS(sim_float4, __builtin_amdgcn_mfma_f32_4x4x4bf16_1k, "mai-insts")
SIM_NEEDS(sim_float16, __builtin_amdgcn_mfma_f32_32x32x8bf16_1k, "mai-insts")
SIM_NEEDS(sim_float4, __builtin_amdgcn_mfma_f32_16x16x16bf16_1k, "mai-insts")
#endif

#ifdef __gfx90a__  // the first bf16 instructions, with half the k of the _1k ones: gfx942 dropped them
SIM_MFMA_BF16(32x32x2bf16, short, 32, 2, 2, 32)
SIM_MFMA_BF16(16x16x2bf16, short, 16, 2, 4, 16)
SIM_MFMA_BF16(4x4x2bf16, short, 4, 2, 16, 4)
SIM_MFMA_BF16(32x32x4bf16, short, 32, 4, 1, 16)
SIM_MFMA_BF16(16x16x8bf16, short, 16, 8, 1, 4)
#else
SIM_NEEDS(sim_float32, __builtin_amdgcn_mfma_f32_32x32x2bf16, "mai-insts")
SIM_NEEDS(sim_float16, __builtin_amdgcn_mfma_f32_16x16x2bf16, "mai-insts")
SIM_NEEDS(sim_float4, __builtin_amdgcn_mfma_f32_4x4x2bf16, "mai-insts")
SIM_NEEDS(sim_float16, __builtin_amdgcn_mfma_f32_32x32x4bf16, "mai-insts")
SIM_NEEDS(sim_float4, __builtin_amdgcn_mfma_f32_16x16x8bf16, "mai-insts")
#endif

#if defined(__gfx942__) || defined(__gfx950__)
#define SIM_MFMA_8BIT(a, b)                                                                            \
    SIM_MFMA(16x16x32_##a##_##b, SIM_LAYOUT(sim_##a, 16, 32, 1, sim_##b), long, long, 4)               \
    SIM_MFMA(32x32x16_##a##_##b, SIM_LAYOUT(sim_##a, 32, 16, 1, sim_##b), long, long, 16)
SIM_MFMA_8BIT(fp8, fp8)
SIM_MFMA_8BIT(fp8, bf8)
SIM_MFMA_8BIT(bf8, fp8)
SIM_MFMA_8BIT(bf8, bf8)
#undef SIM_MFMA_8BIT
#else
SIM_NEEDS(sim_float4, __builtin_amdgcn_mfma_f32_16x16x32_fp8_fp8, "fp8-insts")
SIM_NEEDS(sim_float4, __builtin_amdgcn_mfma_f32_16x16x32_fp8_bf8, "fp8-insts")
SIM_NEEDS(sim_float4, __builtin_amdgcn_mfma_f32_16x16x32_bf8_fp8, "fp8-insts")
SIM_NEEDS(sim_float4, __builtin_amdgcn_mfma_f32_16x16x32_bf8_bf8, "fp8-insts")
SIM_NEEDS(sim_float16, __builtin_amdgcn_mfma_f32_32x32x16_fp8_fp8, "fp8-insts")
SIM_NEEDS(sim_float16, __builtin_amdgcn_mfma_f32_32x32x16_fp8_bf8, "fp8-insts")
SIM_NEEDS(sim_float16, __builtin_amdgcn_mfma_f32_32x32x16_bf8_fp8, "fp8-insts")
SIM_NEEDS(sim_float16, __builtin_amdgcn_mfma_f32_32x32x16_bf8_bf8, "fp8-insts")
#endif

#ifdef __gfx950__
SIM_MFMA_F16(32x32x16_f16, 32, 16, 1, 16)
SIM_MFMA_F16(16x16x32_f16, 16, 32, 1, 4)
SIM_MFMA_BF16(32x32x16_bf16, __bf16, 32, 16, 1, 16)
SIM_MFMA_BF16(16x16x32_bf16, __bf16, 16, 32, 1, 4)
#else
SIM_NEEDS(sim_float16, __builtin_amdgcn_mfma_f32_32x32x16_f16, "gfx950-insts")
SIM_NEEDS(sim_float4, __builtin_amdgcn_mfma_f32_16x16x32_f16, "gfx950-insts")
SIM_NEEDS(sim_float16, __builtin_amdgcn_mfma_f32_32x32x16_bf16, "gfx950-insts")
SIM_NEEDS(sim_float4, __builtin_amdgcn_mfma_f32_16x16x32_bf16, "gfx950-insts")
#endif

#undef SIM_MFMA
#undef SIM_LAYOUT
#undef SIM_MFMA_F32
#undef SIM_MFMA_F16
#undef SIM_MFMA_BF16
