// The layer over mma.sync, for the walk that has the next tile of keys on its way beside this one.
#pragma once

#define DOUBLE_BUFFERED
#include "mma_nvidia.h"
