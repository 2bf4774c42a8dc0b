// The devices. A device's context is its primary one, which other CUDA libraries of the process use too; a thread's
// current device is that of its current context.
#pragma once

#include "status.h"

bool device_exists(int index);
CUresult device_context(int index, CUcontext* context);  // retained at its first use, until the process ends
int device_of(CUcontext context);                        // -1 for a context that is not ours
int device_attribute(int index, int cuda_attribute);     // 0 for one that the driver does not know
