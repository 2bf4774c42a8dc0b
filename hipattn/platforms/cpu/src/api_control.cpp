// Entry and exit of every call, and the controls of tests and of the platform's other libraries.
#include "api.h"
#include "errors.h"
#include "memory.h"

static thread_local hipError_t last_error;

hipError_t fault_of(const Device* device) {
    return static_cast<hipError_t>(__atomic_load_n(&device->fault, __ATOMIC_ACQUIRE));
}

hipError_t leave(hipError_t status) {
    if (status != hipSuccess && status != hipErrorNotReady) last_error = status;
    return status;
}

static hipError_t injected(const char* name) {
    if (!strncmp(name, "hipMalloc", 9)) return hipErrorOutOfMemory;
    return strcmp(name, "hipModuleLaunchKernel") ? hipErrorUnknown : hipErrorLaunchFailure;
}

hipError_t enter(Counter* counter) {
    if (stream_forked()) return hipErrorNotInitialized;  // as with HIP, a child process has no runtime
    if (injection_enter(counter)) return injected(counter->name);
    return device_count() ? hipSuccess : hipErrorNoDevice;
}

// A broken device is the last error of every thread that uses it.
EXPORT hipError_t hipGetLastError() {
    hipError_t error = device_count() ? fault_of(device_current()) : hipSuccess;
    if (!error) error = last_error;
    last_error = hipSuccess;
    return error;
}

EXPORT const char* hipGetErrorString(hipError_t code) {
    if ((code == hipErrorNoDevice || code == hipErrorInvalidDevice) && device_problem()) return device_problem();
    if (code != hipSuccess && device_count()) {
        Device* device = device_current();
        for (int i = -1; i < device_count(); ++i) {
            if (i >= 0) device = device_at(i);
            if (fault_of(device) == code && device->fault_message) return device->fault_message;
        }
    }
    return error_sentence(code);
}

EXPORT void sim_control_set_fail(const char* spec) { injection_set(spec); }
EXPORT long sim_control_call_count(const char* name) { return injection_calls(name); }
EXPORT size_t sim_control_live_bytes() { return memory_live_bytes(); }
EXPORT size_t sim_control_live_allocations() { return memory_live_count(); }
EXPORT void sim_control_set_stream_delay(unsigned microseconds) { stream_set_delay(microseconds); }

EXPORT int sim_control_clear_fault(int index) {
    Device* device = device_at(index);
    if (!device) return hipErrorInvalidDevice;
    device_wait(device);  // what is queued is dropped, not run
    device_clear_fault(device);
    return hipSuccess;
}

EXPORT int sim_current_device() { return device_count() ? device_current()->index : -1; }
EXPORT int sim_should_fail(const char* name) { return injection_enter(name); }

EXPORT void sim_report_fault(Handle handle, int code, const char* message) {
    if (Stream* stream = stream_of(handle)) device_fault(stream->device, static_cast<hipError_t>(code), "%s", message);
}
