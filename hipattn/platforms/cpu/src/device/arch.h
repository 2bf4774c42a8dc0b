// What is true of the simulated chip. The compiler is given __gfxNNN__; everything else follows from it.
#pragma once

#define __HIP__ 1
#define __HIPCC__ 1
#define __HIPCC_RTC__ 1
#define __HIP_DEVICE_COMPILE__ 1
#define __HIP_PLATFORM_AMD__
#define __HIP_NO_IMAGE_SUPPORT 1
#define HIP_VERSION_MAJOR 7
#define HIP_VERSION_MINOR 2
#define __AMD__ 1
#define __AMDGPU__ 1
#define __AMDGCN__ 1

#if defined(__gfx90a__)
#define SIM_ARCH "gfx90a"
#elif defined(__gfx942__)
#define SIM_ARCH "gfx942"
#elif defined(__gfx950__)
#define SIM_ARCH "gfx950"
#elif defined(__gfx1100__)
#define SIM_ARCH "gfx1100"
#elif defined(__gfx1201__)
#define SIM_ARCH "gfx1201"
#else
#error "unsupported HIP gpu architecture"
#endif

#if defined(__gfx1100__) || defined(__gfx1201__)
#define SIM_WAVE 32
#define SIM_RDNA 1
#define __AMDGCN_CUMODE__ 0
#else
#define SIM_WAVE 64
#define SIM_CDNA 1
#define __AMDGCN_CUMODE__ 1
#define __GFX9__ 1
#endif
#ifdef __gfx1100__
#define __GFX11__ 1
#endif
#ifdef __gfx1201__
#define __GFX12__ 1
#endif
#define __amdgcn_processor__ SIM_ARCH
#define __amdgcn_target_id__ SIM_ARCH
#define FP_FAST_FMA 1
#define FP_FAST_FMAF 1

// Removed from AMD's clang 22; older ROCm defines both and warns.
#define __AMDGCN_WAVEFRONT_SIZE__ SIM_WAVE
#define __AMDGCN_WAVEFRONT_SIZE SIM_WAVE
#pragma clang deprecated(__AMDGCN_WAVEFRONT_SIZE__, "newer ROCm does not define it")
#pragma clang deprecated(__AMDGCN_WAVEFRONT_SIZE, "newer ROCm does not define it")

#define SIM_FN static inline __attribute__((always_inline))

// A builtin that this chip lacks: calling it is an error, as in AMD's compiler, only where code is made of it.
#define SIM_NEEDS(result, name, feature) \
    template <class... A> __attribute__((error("'" #name "' needs target feature " feature))) result name(A...);
