#include "errors.h"

const char* error_sentence(hipError_t code) {
    switch (code) {
        case hipSuccess: return "no error";
        case hipErrorInvalidValue: return "invalid argument";
        case hipErrorOutOfMemory: return "out of memory";
        case hipErrorNotInitialized: return "initialization error";
        case hipErrorInvalidConfiguration: return "invalid configuration argument";
        case hipErrorInvalidPitchValue: return "invalid pitch argument";
        case hipErrorInvalidMemcpyDirection: return "invalid copy direction for memcpy";
        case hipErrorInvalidDeviceFunction: return "invalid device function";
        case hipErrorNoDevice: return "no ROCm-capable device is detected";
        case hipErrorInvalidDevice: return "invalid device ordinal";
        case hipErrorInvalidImage: return "device kernel image is invalid";
        case hipErrorNoBinaryForGpu: return "no kernel image is available for execution on the device";
        case hipErrorSharedObjectInitFailed: return "shared object initialization failed";
        case hipErrorInvalidHandle: return "invalid resource handle";
        case hipErrorNotFound: return "named symbol not found";
        case hipErrorNotReady: return "device not ready";
        case hipErrorIllegalAddress: return "an illegal memory access was encountered";
        case hipErrorLaunchOutOfResources: return "too many resources requested for launch";
        case hipErrorContextIsDestroyed: return "context is destroyed";
        case hipErrorLaunchFailure: return "unspecified launch failure";
        case hipErrorUnknown: break;
    }
    return "unknown error";
}
