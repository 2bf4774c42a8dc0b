// HIP's names and sentences for its status codes.
#pragma once

#include "hip_abi.h"

const char* error_name(int code);      // null for a code that HIP does not have
const char* error_sentence(int code);  // the same
