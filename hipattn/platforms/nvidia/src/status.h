// From CUDA's status codes to HIP's, and the last error of a thread.
#pragma once

#include "driver.h"

hipError_t leave(hipError_t status);  // notes an error, and returns it
hipError_t leave_cuda(CUresult result);

// Every entry point that needs a device begins with ENTER: the driver is started, and the thread has a current device.
hipError_t enter();
#define ENTER() \
    if (hipError_t status = enter()) return leave(status)
#define REQUIRE(condition, error) \
    if (!(condition)) return leave(error)
// Ends an entry point with a call of the driver.
#define RETURN(call) return leave_cuda(cuda.call)
// Makes a call of the driver; ends the entry point if it fails.
#define CALL(call) \
    if (CUresult result = cuda.call) return leave_cuda(result)
