// Where the rows of k and v are in memory: evenly spaced. Included in front of a layer, as is key_rows_paged.h instead.
#pragma once

#include "flash_block.h"

using KeyRows = EvenRows<cache_scalar>;
