// The layer over mma.sync, for the walk that has tiles of keys on their way beside the one that is computed.
#pragma once

#define RING
#include "mma_nvidia.h"
