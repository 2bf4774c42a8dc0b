// What hiprtc's built-in header is on an AMD GPU: force-included in front of every kernel. No C or C++ header is
// included, so that a kernel compiles in a few hundredths of a second and sees nothing that a GPU would not have.
#pragma once
#pragma clang system_header

#include "../sim_abi.h"

#include "arch.h"
#include "qualifiers.h"
#include "types.h"
#include "index.h"
#include "sync.h"
#include "math.h"
#include "bits.h"
#include "half.h"
#include "crosslane.h"
#include "atomics.h"
#include "memory.h"
#include "matrix.h"
#include "module.h"
