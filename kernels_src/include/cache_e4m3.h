// Keys and values are stored in 8 bits, e4m3, divided by a scale that is their head's. Included in front of a layer,
// whose tiles are of `scalar` all the same: what comes from memory is converted, exactly, where it goes to LDS. The
// scales meet scores and sums, not elements.
#pragma once

#include "float8.h"

#define CACHE_E4M3

using cache_scalar = unsigned char;
__device__ inline float as_float(cache_scalar code) { return from_e4m3<float>(code).at[0]; }
