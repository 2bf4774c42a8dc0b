#include "status.h"

#include "../../abi/errors.h"

namespace {

thread_local hipError_t last_error;
thread_local CUresult last_result;  // what `last_error` was translated from

// Most of CUDA's codes are HIP's. Of the others, those that say what happened in a kernel become a launch failure,
// as they end a context.
hipError_t translate(CUresult result) {
    switch (result) {
        case 36:                                         // a stub in the driver's place
        case 803: return static_cast<hipError_t>(35);    // driver and libraries differ: hipErrorInsufficientDriver
        case 46: return hipErrorNoDevice;                // the device is busy or unavailable
        case 218:                                        // invalid PTX
        case 222: return hipErrorInvalidImage;           // PTX of a newer version
        case 714:                                        // hardware stack error
        case 715:                                        // illegal instruction
        case 716:                                        // misaligned address
        case 717:                                        // invalid address space
        case 718: return hipErrorLaunchFailure;          // invalid program counter
        default: return error_name(result) ? static_cast<hipError_t>(result) : hipErrorUnknown;
    }
}

}  // namespace

hipError_t leave(hipError_t status) {
    if (status != hipSuccess && status != hipErrorNotReady) last_error = status, last_result = status;
    return status;
}

hipError_t leave_cuda(CUresult result) {
    hipError_t status = leave(translate(result));
    if (status != hipSuccess && status != hipErrorNotReady) last_result = result;
    return status;
}

EXPORT const char* hipGetErrorName(hipError_t code) {
    const char* name = error_name(code);
    return name ? name : "hipErrorUnknown";
}

// Where the thread's last error had another code in CUDA, CUDA's sentence says more: "misaligned address".
EXPORT const char* hipGetErrorString(hipError_t code) {
    const char* sentence = nullptr;
    if ((code == hipErrorNoDevice || code == 35) && driver_problem()) return driver_problem();
    if (last_result != last_error && code == translate(last_result) && !cuda.cuGetErrorString(last_result, &sentence))
        return sentence;
    sentence = error_sentence(code);
    return sentence ? sentence : "unknown error";
}

EXPORT hipError_t hipDrvGetErrorName(hipError_t code, const char** text) {
    if (!text) return hipErrorInvalidValue;
    *text = hipGetErrorName(code);
    return error_name(code) ? hipSuccess : hipErrorInvalidValue;
}

EXPORT hipError_t hipDrvGetErrorString(hipError_t code, const char** text) {
    if (!text) return hipErrorInvalidValue;
    *text = hipGetErrorString(code);
    return error_name(code) ? hipSuccess : hipErrorInvalidValue;
}

EXPORT hipError_t hipPeekAtLastError() { return last_error; }

EXPORT hipError_t hipGetLastError() {
    hipError_t error = last_error;
    last_error = hipSuccess;
    return error;
}

EXPORT hipError_t hipExtGetLastError() { return hipGetLastError(); }
