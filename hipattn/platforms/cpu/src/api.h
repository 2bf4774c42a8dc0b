// What HIP's entry points have in common: each checks its handles and pointers, then calls the module that does it.
#pragma once

#include "device.h"
#include "injection.h"
#include "stream.h"

typedef void* Handle;

// Leaves an entry point: the status is the thread's last error, unless it is none.
hipError_t leave(hipError_t);
// Counts a call; not hipSuccess when it ends here, because it has to fail or there is nothing to run on.
hipError_t enter(Counter*);
hipError_t fault_of(const Device*);
bool refuses_capture(Stream*);

// Every entry point begins with one of these: it counts the call, injects a failure, and (all but the plain one)
// finds the device or stream, whose sticky fault ends the call.
#define ENTER(name)                               \
    static Counter counter = {#name, 0, nullptr}; \
    if (hipError_t status = enter(&counter)) return leave(status)
#define ENTER_DEVICE(name)              \
    ENTER(name);                        \
    Device* device = device_current();  \
    if (hipError_t status = fault_of(device)) return leave(status)
#define ENTER_STREAM(name, handle)                                  \
    ENTER(name);                                                    \
    Stream* stream = stream_of(handle);                             \
    if (!stream) return leave(hipErrorContextIsDestroyed);          \
    if (hipError_t status = fault_of(stream->device)) return leave(status)
// What this simulator cannot capture spoils the capture, as what HIP cannot capture does.
#define REFUSE_CAPTURE(stream) \
    if (refuses_capture(stream)) return leave(hipErrorStreamCaptureUnsupported)
// A call that waits fails as a real one does, after the wait: nothing touches the caller's memory any more.
#define ENTER_WAIT(name)                          \
    static Counter counter = {#name, 0, nullptr}; \
    hipError_t late = enter(&counter);            \
    if (late != hipSuccess && late != hipErrorUnknown) return leave(late)
#define REQUIRE(condition, error) \
    if (!(condition)) return leave(error)
