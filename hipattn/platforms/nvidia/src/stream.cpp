// Streams and events. HIP's handles are CUDA's; the null stream is the legacy one, which other libraries use too.
#include "device.h"

static hipError_t create_stream(CUstream* out, unsigned flags, int priority) {
    ENTER();
    REQUIRE(out, hipErrorInvalidValue);
    REQUIRE(flags == hipStreamDefault || flags == hipStreamNonBlocking, hipErrorInvalidValue);
    RETURN(cuStreamCreateWithPriority(out, flags, priority));
}

EXPORT hipError_t hipStreamCreate(CUstream* out) { return create_stream(out, hipStreamDefault, 0); }

EXPORT hipError_t hipStreamCreateWithFlags(CUstream* out, unsigned flags) { return create_stream(out, flags, 0); }

EXPORT hipError_t hipStreamCreateWithPriority(CUstream* out, unsigned flags, int priority) {
    return create_stream(out, flags, priority);
}

EXPORT hipError_t hipStreamDestroy(CUstream stream) {
    ENTER();
    REQUIRE(reinterpret_cast<uintptr_t>(stream) > 2, hipErrorInvalidHandle);
    RETURN(cuStreamDestroy_v2(stream));
}

EXPORT hipError_t hipStreamSynchronize(CUstream stream) {
    ENTER();
    RETURN(cuStreamSynchronize(stream));
}

EXPORT hipError_t hipStreamQuery(CUstream stream) {
    ENTER();
    RETURN(cuStreamQuery(stream));
}

EXPORT hipError_t hipStreamWaitEvent(CUstream stream, CUevent event, unsigned flags) {
    ENTER();
    REQUIRE(event, hipErrorInvalidHandle);
    REQUIRE(flags <= 1, hipErrorInvalidValue);
    RETURN(cuStreamWaitEvent(stream, event, flags));
}

EXPORT hipError_t hipStreamGetFlags(CUstream stream, unsigned* flags) {
    ENTER();
    REQUIRE(flags, hipErrorInvalidValue);
    RETURN(cuStreamGetFlags(stream, flags));
}

EXPORT hipError_t hipStreamGetPriority(CUstream stream, int* priority) {
    ENTER();
    REQUIRE(priority, hipErrorInvalidValue);
    RETURN(cuStreamGetPriority(stream, priority));
}

EXPORT hipError_t hipStreamGetDevice(CUstream stream, int* index) {
    ENTER();
    REQUIRE(index, hipErrorInvalidValue);
    CUcontext context;
    CALL(cuStreamGetCtx(stream, &context));
    *index = device_of(context);
    return leave(*index < 0 ? hipErrorInvalidHandle : hipSuccess);
}

EXPORT hipError_t hipLaunchHostFunc(CUstream stream, void (*function)(void*), void* data) {
    ENTER();
    REQUIRE(function, hipErrorInvalidValue);
    RETURN(cuLaunchHostFunc(stream, function, data));
}

// A callback takes a HIP status where CUDA's takes a CUresult.
typedef void Callback(CUstream, hipError_t, void*);
struct Pending {
    Callback* callback;
    void* data;
};

EXPORT hipError_t hipStreamAddCallback(CUstream stream, Callback* callback, void* data, unsigned flags) {
    ENTER();
    REQUIRE(callback && !flags, hipErrorInvalidValue);
    auto pending = make<Pending>();
    *pending = {callback, data};
    auto call = [](CUstream stream, CUresult result, void* given) {
        Pending pending = *static_cast<Pending*>(given);
        free(given);
        pending.callback(stream, leave_cuda(result), pending.data);
    };
    CUresult result = cuda.cuStreamAddCallback(stream, call, pending, 0);
    if (result) free(pending);
    return leave_cuda(result);
}

// ---- events: the flags have CUDA's bits ----

static hipError_t create_event(CUevent* out, unsigned flags) {
    ENTER();
    REQUIRE(out, hipErrorInvalidValue);
    unsigned known = hipEventBlockingSync | hipEventDisableTiming | hipEventInterprocess;
    unsigned fences = 0xE0000000;  // hipEventDisableSystemFence, hipEventReleaseToDevice, …ToSystem
    REQUIRE(!(flags & ~(known | fences)), hipErrorInvalidValue);
    RETURN(cuEventCreate(out, flags & known));
}

EXPORT hipError_t hipEventCreate(CUevent* out) { return create_event(out, 0); }
EXPORT hipError_t hipEventCreateWithFlags(CUevent* out, unsigned flags) { return create_event(out, flags); }

EXPORT hipError_t hipEventDestroy(CUevent event) {
    ENTER();
    REQUIRE(event, hipErrorInvalidHandle);
    RETURN(cuEventDestroy_v2(event));
}

EXPORT hipError_t hipEventRecord(CUevent event, CUstream stream) {
    ENTER();
    REQUIRE(event, hipErrorInvalidHandle);
    RETURN(cuEventRecord(event, stream));
}

EXPORT hipError_t hipEventRecordWithFlags(CUevent event, CUstream stream, unsigned flags) {
    REQUIRE(flags <= 1, hipErrorInvalidValue);
    return hipEventRecord(event, stream);
}

EXPORT hipError_t hipEventQuery(CUevent event) {
    ENTER();
    REQUIRE(event, hipErrorInvalidHandle);
    RETURN(cuEventQuery(event));
}

EXPORT hipError_t hipEventSynchronize(CUevent event) {
    ENTER();
    REQUIRE(event, hipErrorInvalidHandle);
    RETURN(cuEventSynchronize(event));
}

EXPORT hipError_t hipEventElapsedTime(float* milliseconds, CUevent start, CUevent stop) {
    ENTER();
    REQUIRE(milliseconds, hipErrorInvalidValue);
    REQUIRE(start && stop, hipErrorInvalidHandle);
    RETURN(cuEventElapsedTime(milliseconds, start, stop));
}
