// The layer over MFMA, for the walk that computes the next tile's scores beside this one's weights.
#pragma once

#define OVERLAPPED_PRODUCTS
#include "mma_cdna.h"
