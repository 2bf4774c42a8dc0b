// HIP's sentences for its status codes.
#pragma once

#include "../../abi/hip_abi.h"

const char* error_sentence(hipError_t);
