// HIP's device language on top of CUDA's, included in front of every program. What the two share (built-in indices,
// vector types, atomics, math, __syncthreads) is NVRTC's.
#pragma once

#pragma nv_diag_suppress 177  // a constant that nothing uses

#define __HIP__ 1
#define __HIPCC__ 1
#define __HIPCC_RTC__ 1
#define __HIP_DEVICE_COMPILE__ 1
#define __HIP_PLATFORM_NVIDIA__ 1

// In HIP the second number counts waves that an execution unit, of which there are four, is to hold; in CUDA blocks
// that a multiprocessor is.
#undef __launch_bounds__
#define HIP_BOUND_THREADS(threads) __attribute__((launch_bounds(threads)))
#define HIP_BOUND_BOTH(threads, waves) \
    __attribute__((launch_bounds(threads, (waves) * 128 < (threads) ? 1 : (waves) * 128 / (threads))))
#define HIP_BOUND(threads, waves, which, ...) which
#define __launch_bounds__(...) HIP_BOUND(__VA_ARGS__, HIP_BOUND_BOTH, HIP_BOUND_THREADS, )(__VA_ARGS__)

#define HIP_DYNAMIC_SHARED(type, name) extern __shared__ type name[];

#include "builtins.h"
#include "crosslane.h"
#include "half.h"
