// HIP's device language on top of CUDA's, included in front of every program. What the two share (built-in indices,
// vector types, atomics, math, __syncthreads) is NVRTC's.
#pragma once

#pragma nv_diag_suppress 177  // a constant that nothing uses

#define __HIP__ 1
#define __HIPCC__ 1
#define __HIPCC_RTC__ 1
#define __HIP_DEVICE_COMPILE__ 1
#define __HIP_PLATFORM_NVIDIA__ 1

// In HIP the second number counts waves an execution unit, in CUDA blocks a multiprocessor: it is left out.
#undef __launch_bounds__
#define __launch_bounds__(threads, ...) __attribute__((launch_bounds(threads)))

#define HIP_DYNAMIC_SHARED(type, name) extern __shared__ type name[];

#include "builtins.h"
#include "crosslane.h"
#include "half.h"
