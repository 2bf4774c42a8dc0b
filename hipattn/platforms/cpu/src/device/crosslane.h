// Operations between the lanes of a wave, all of them over sim_exchange.
#pragma once

template <class T> SIM_FN T sim_slot(const sim_wave* wave, unsigned lane) {
    T v;
    __builtin_memcpy(&v, wave->slots + lane * wave->stride, sizeof v);
    return v;
}
SIM_FN bool sim_active(const sim_wave* wave, unsigned lane) { return wave->active >> lane & 1; }

// The lane's value; zero from a lane that does not take part, as ds_bpermute gives.
template <class T> SIM_FN T sim_fetch(const sim_wave* wave, unsigned lane) {
    if (sim_active(wave, lane)) return sim_slot<T>(wave, lane);
    T zero;
    __builtin_memset(&zero, 0, sizeof zero);
    return zero;
}
template <class T> SIM_FN T sim_from_lane(T v, unsigned lane) {
    return sim_fetch<T>(sim_exchange(&v, sizeof v, nullptr), lane & (SIM_WAVE - 1));
}

// __shfl and its kin, over the scalar types HIP has overloads for. `width` is a power of two.
#define SIM_SHUFFLE(T)                                                                                      \
    SIM_FN T __shfl(T v, int source, int width = SIM_WAVE) {                                                \
        int self = __lane_id();                                                                             \
        return sim_from_lane(v, (source & (width - 1)) + (self & ~(width - 1)));                            \
    }                                                                                                       \
    SIM_FN T __shfl_up(T v, unsigned delta, int width = SIM_WAVE) {                                         \
        int self = __lane_id(), source = self - (int)delta;                                                 \
        return sim_from_lane(v, source < (self & ~(width - 1)) ? self : source);                            \
    }                                                                                                       \
    SIM_FN T __shfl_down(T v, unsigned delta, int width = SIM_WAVE) {                                       \
        int self = __lane_id(), source = self + (int)delta;                                                 \
        return sim_from_lane(v, (int)((self & (width - 1)) + delta) >= width ? self : source);              \
    }                                                                                                       \
    SIM_FN T __shfl_xor(T v, int mask, int width = SIM_WAVE) {                                              \
        int self = __lane_id(), source = self ^ mask;                                                       \
        return sim_from_lane(v, source >= ((self + width) & ~(width - 1)) ? self : source);                 \
    }                                                                                                       \
    SIM_FN T __shfl_sync(unsigned long long, T v, int source, int width = SIM_WAVE) {                       \
        return __shfl(v, source, width);                                                                    \
    }                                                                                                       \
    SIM_FN T __shfl_up_sync(unsigned long long, T v, unsigned delta, int width = SIM_WAVE) {                \
        return __shfl_up(v, delta, width);                                                                  \
    }                                                                                                       \
    SIM_FN T __shfl_down_sync(unsigned long long, T v, unsigned delta, int width = SIM_WAVE) {              \
        return __shfl_down(v, delta, width);                                                                \
    }                                                                                                       \
    SIM_FN T __shfl_xor_sync(unsigned long long, T v, int mask, int width = SIM_WAVE) {                     \
        return __shfl_xor(v, mask, width);                                                                  \
    }
SIM_SHUFFLE(int)
SIM_SHUFFLE(unsigned)
SIM_SHUFFLE(long)
SIM_SHUFFLE(unsigned long)
SIM_SHUFFLE(long long)
SIM_SHUFFLE(unsigned long long)
SIM_SHUFFLE(float)
SIM_SHUFFLE(double)
SIM_SHUFFLE(__half)
SIM_SHUFFLE(__half2)
#undef SIM_SHUFFLE

// Votes.
SIM_FN unsigned long long __ballot(int predicate) {
    unsigned long long vote = predicate != 0;  // as wide as the answer, which takes its slot
    sim_wave* wave = sim_exchange(&vote, sizeof vote, [](sim_wave* w) {
        unsigned long long mask = 0;
        for (unsigned lane = 0; lane < w->size; ++lane)
            if (sim_active(w, lane)) mask |= sim_slot<unsigned long long>(w, lane) << lane;
        for (unsigned lane = 0; lane < w->size; ++lane)
            __builtin_memcpy(w->slots + lane * w->stride, &mask, sizeof mask);
    });
    return sim_slot<unsigned long long>(wave, __lane_id());
}
SIM_FN unsigned long long __ballot64(int predicate) { return __ballot(predicate); }
SIM_FN unsigned long long __activemask() { return sim_exchange(nullptr, 0, nullptr)->active; }
SIM_FN int __any(int predicate) { return __ballot(predicate) != 0; }
SIM_FN int __all(int predicate) { return __ballot(!predicate) == 0; }
SIM_FN unsigned long long __ballot_sync(unsigned long long, int predicate) { return __ballot(predicate); }
SIM_FN int __any_sync(unsigned long long, int predicate) { return __any(predicate); }
SIM_FN int __all_sync(unsigned long long, int predicate) { return __all(predicate); }
SIM_FN unsigned long long __builtin_amdgcn_ballot_w64(bool predicate) { return __ballot(predicate); }
#ifdef SIM_RDNA
SIM_FN unsigned __builtin_amdgcn_ballot_w32(bool predicate) { return (unsigned)__ballot(predicate); }
#else
SIM_NEEDS(unsigned, __builtin_amdgcn_ballot_w32, "wavefrontsize32")
#endif
SIM_FN unsigned long long __builtin_amdgcn_read_exec() { return __activemask(); }

// Scalar registers. readlane reads the register even of a lane that is not active.
template <class T> SIM_FN T __builtin_amdgcn_readlane(T v, unsigned lane) {
    return sim_slot<T>(sim_exchange(&v, sizeof v, nullptr), lane & (SIM_WAVE - 1));
}
template <class T> SIM_FN T __builtin_amdgcn_readfirstlane(T v) {
    sim_wave* wave = sim_exchange(&v, sizeof v, nullptr);
    return sim_slot<T>(wave, __builtin_ctzll(wave->active));
}
template <class T> SIM_FN T __builtin_amdgcn_writelane(T v, unsigned lane, T old) {
    return __lane_id() == (lane & (SIM_WAVE - 1)) ? v : old;
}

// LDS permutes; addresses are in bytes.
SIM_FN int __builtin_amdgcn_ds_bpermute(int address, int v) { return sim_from_lane(v, (unsigned)address >> 2); }
SIM_FN int __builtin_amdgcn_ds_permute(int address, int v) {
    struct Push {
        unsigned to;
        int v;
    } push{((unsigned)address >> 2) & (SIM_WAVE - 1), v};
    sim_wave* wave = sim_exchange(&push, sizeof push, [](sim_wave* w) {
        int out[SIM_WAVE] = {};
        for (unsigned lane = 0; lane < SIM_WAVE; ++lane)
            if (sim_active(w, lane)) {
                Push p = sim_slot<Push>(w, lane);
                out[p.to] = p.v;
            }
        for (unsigned lane = 0; lane < SIM_WAVE; ++lane) __builtin_memcpy(w->slots + lane * w->stride, &out[lane], 4);
    });
    return sim_slot<int>(wave, __lane_id());
}
SIM_FN int __builtin_amdgcn_ds_swizzle(int v, int pattern) {
    unsigned lane = __lane_id(), source;
    if (pattern & 0x8000) source = (lane & ~3u) | (pattern >> 2 * (lane & 3) & 3);
    else source = (lane & ~31u) | ((((lane & 31) & (pattern & 31)) | (pattern >> 5 & 31)) ^ (pattern >> 10 & 31));
    return sim_from_lane(v, source);
}
#define __hip_ds_bpermute(address, v) __builtin_amdgcn_ds_bpermute(address, v)
#define __hip_ds_permute(address, v) __builtin_amdgcn_ds_permute(address, v)
#define __hip_ds_swizzle(v, pattern) __builtin_amdgcn_ds_swizzle(v, pattern)

// DPP: the lane a control word reads from, or -1 where the row or wave ends.
SIM_FN int sim_dpp_source(int lane, int control) {
    int row = lane & ~15, in = lane & 15, n = control & 15;
    if (control <= 0xff) return (lane & ~3) | (control >> 2 * (lane & 3) & 3);  // quad_perm
    switch (control & ~15) {
    case 0x100: return n == 0 ? -2 : in + n < 16 ? lane + n : -1;               // row_shl
    case 0x110: return n == 0 ? -2 : in >= n ? lane - n : -1;                   // row_shr
    case 0x120: return n == 0 ? -2 : row | ((in - n) & 15);                     // row_ror
#ifdef SIM_RDNA
    case 0x150: return row | n;         // row_share
    case 0x160: return row | (in ^ n);  // row_xmask
#endif
    }
    switch (control) {
    case 0x140: return row | (15 - in);                // row_mirror
    case 0x141: return (lane & ~7) | (7 - (lane & 7)); // row_half_mirror
#ifdef SIM_CDNA
    case 0x130: return lane + 1 < SIM_WAVE ? lane + 1 : -1;      // wave_shl
    case 0x134: return (lane + 1) & (SIM_WAVE - 1);              // wave_rol
    case 0x138: return lane - 1;                                 // wave_shr
    case 0x13c: return (lane - 1) & (SIM_WAVE - 1);              // wave_ror
    case 0x142: return row ? row - 1 : -1;                       // row_bcast:15
    case 0x143: return lane >= 32 ? 31 : -1;                     // row_bcast:31
#endif
    }
    return -2;
}
template <class T>
SIM_FN T __builtin_amdgcn_update_dpp(T old, T v, int control, int row_mask, int bank_mask, bool bound_ctrl) {
    sim_wave* wave = sim_exchange(&v, sizeof v, nullptr);
    int lane = __lane_id(), source = sim_dpp_source(lane, control);
    if (source == -2) sim_trap("DPP control that " SIM_ARCH " does not have");
    if (!(row_mask >> (lane >> 4) & 1) || !(bank_mask >> (lane >> 2 & 3) & 1)) return old;
#ifdef SIM_CDNA
    if (control == 0x142 && (lane >> 4) == 0) return old;
    if (control == 0x143 && lane < 32) return old;
#endif
    if (source >= 0 && sim_active(wave, source)) return sim_slot<T>(wave, source);
    return bound_ctrl ? T() : old;
}
template <class T> SIM_FN T __builtin_amdgcn_mov_dpp(T v, int control, int row_mask, int bank_mask, bool bound_ctrl) {
    return __builtin_amdgcn_update_dpp(v, v, control, row_mask, bank_mask, bound_ctrl);
}
#define __hip_move_dpp(v, control, row_mask, bank_mask, bound_ctrl) \
    __builtin_amdgcn_mov_dpp(v, control, row_mask, bank_mask, bound_ctrl)

typedef unsigned sim_uint2 __attribute__((ext_vector_type(2)));

#ifdef SIM_RDNA
// Each lane of a row picks a lane by a nibble of {lo, hi}: of its own row, or (permlanex16) of the other row of 32.
SIM_FN unsigned sim_permlane16(unsigned old, unsigned v, unsigned lo, unsigned hi, bool bound_ctrl, unsigned other) {
    sim_wave* wave = sim_exchange(&v, sizeof v, nullptr);
    unsigned lane = __lane_id(), in = lane & 15;
    unsigned source = ((lane & ~15u) ^ other) | ((in < 8 ? lo >> 4 * in : hi >> 4 * (in - 8)) & 15);
    if (sim_active(wave, source)) return sim_slot<unsigned>(wave, source);
    return bound_ctrl ? 0 : old;
}
SIM_FN unsigned __builtin_amdgcn_permlane16(unsigned old, unsigned v, unsigned lo, unsigned hi, bool fi, bool bc) {
    return sim_permlane16(old, v, lo, hi, bc, 0);
}
SIM_FN unsigned __builtin_amdgcn_permlanex16(unsigned old, unsigned v, unsigned lo, unsigned hi, bool fi, bool bc) {
    return sim_permlane16(old, v, lo, hi, bc, 16);
}
#else
SIM_NEEDS(unsigned, __builtin_amdgcn_permlane16, "gfx10-insts")
SIM_NEEDS(unsigned, __builtin_amdgcn_permlanex16, "gfx10-insts")
#endif

#ifdef __gfx950__
// Swaps the odd rows (16) or the upper half (32) of the first operand with the even rows or lower half of the second.
SIM_FN sim_uint2 sim_permlane_swap(unsigned a, unsigned b, unsigned distance) {
    sim_uint2 both = {a, b};
    sim_wave* wave = sim_exchange(&both, sizeof both, nullptr);
    unsigned lane = __lane_id();
    if (lane & distance) return sim_uint2{sim_slot<sim_uint2>(wave, lane ^ distance).y, b};
    return sim_uint2{a, sim_slot<sim_uint2>(wave, lane ^ distance).x};
}
SIM_FN sim_uint2 __builtin_amdgcn_permlane16_swap(unsigned a, unsigned b, bool, bool) {
    return sim_permlane_swap(a, b, 16);
}
SIM_FN sim_uint2 __builtin_amdgcn_permlane32_swap(unsigned a, unsigned b, bool, bool) {
    return sim_permlane_swap(a, b, 32);
}
#else
SIM_NEEDS(sim_uint2, __builtin_amdgcn_permlane16_swap, "permlane16-swap")
SIM_NEEDS(sim_uint2, __builtin_amdgcn_permlane32_swap, "permlane32-swap")
#endif
