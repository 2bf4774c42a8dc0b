// HIP's entry points for streams and events.
#include "api.h"
#include "event.h"

EXPORT hipError_t hipStreamCreateWithFlags(Handle* out, unsigned flags) {
    ENTER_DEVICE(hipStreamCreateWithFlags);
    REQUIRE(out, hipErrorInvalidValue);
    REQUIRE(flags == hipStreamDefault || flags == hipStreamNonBlocking, hipErrorInvalidValue);
    *out = stream_create(device, flags);
    return hipSuccess;
}

EXPORT hipError_t hipStreamDestroy(Handle handle) {
    ENTER(hipStreamDestroy);
    Stream* stream = reinterpret_cast<uintptr_t>(handle) > 2 ? stream_of(handle) : nullptr;
    REQUIRE(stream, handle ? hipErrorContextIsDestroyed : hipErrorInvalidHandle);
    stream_destroy(stream);
    return leave(fault_of(stream->device));
}

EXPORT hipError_t hipStreamSynchronize(Handle handle) {
    ENTER_WAIT(hipStreamSynchronize);
    Stream* stream = stream_of(handle);
    REQUIRE(stream, hipErrorContextIsDestroyed);
    REFUSE_CAPTURE(stream);
    stream_wait(stream);
    return leave(fault_of(stream->device) ? fault_of(stream->device) : late);
}

EXPORT hipError_t hipStreamQuery(Handle handle) {
    ENTER_STREAM(hipStreamQuery, handle);
    REFUSE_CAPTURE(stream);
    if (!stream_idle(stream)) return hipErrorNotReady;
    return leave(fault_of(stream->device));
}

EXPORT hipError_t hipStreamWaitEvent(Handle handle, Handle event_handle, unsigned flags) {
    ENTER_STREAM(hipStreamWaitEvent, handle);
    Event* event = event_of(event_handle);
    REQUIRE(event, hipErrorInvalidHandle);
    REQUIRE(flags <= 1, hipErrorInvalidValue);
    REFUSE_CAPTURE(stream);
    event_order(event, stream);
    return hipSuccess;
}

struct HostOperation : Operation {
    void (*function)(void*);
    void (*callback)(Handle, hipError_t, void*);
    Handle handle;
    void* data;
};

static hipError_t submit_host(Stream* stream, HostOperation values) {
    auto op = make<HostOperation>();
    *op = values;
    op->run = [](Operation* self) {
        auto host = static_cast<HostOperation*>(self);
        if (host->function)
            host->function(host->data);
        else
            host->callback(host->handle, fault_of(host->stream->device), host->data);
    };
    stream_submit(stream, op);
    return hipSuccess;
}

EXPORT hipError_t hipLaunchHostFunc(Handle handle, void (*function)(void*), void* data) {
    ENTER_STREAM(hipLaunchHostFunc, handle);
    REQUIRE(function, hipErrorInvalidValue);
    HostOperation op = {};
    op.function = function;
    op.data = data;
    return submit_host(stream, op);
}
EXPORT_AS(sim_launch_host_func, hipLaunchHostFunc);

EXPORT hipError_t hipStreamAddCallback(Handle handle, void (*callback)(Handle, hipError_t, void*), void* data,
                                       unsigned flags) {
    ENTER_STREAM(hipStreamAddCallback, handle);
    REQUIRE(callback && !flags, hipErrorInvalidValue);
    REFUSE_CAPTURE(stream);
    HostOperation op = {};
    op.callback = callback;
    op.handle = handle;
    op.data = data;
    op.always = true;
    return submit_host(stream, op);
}
EXPORT_AS(sim_stream_add_callback, hipStreamAddCallback);

EXPORT hipError_t hipEventCreateWithFlags(Handle* out, unsigned flags) {
    ENTER_DEVICE(hipEventCreateWithFlags);
    unsigned fences = 0xE0000000;  // hipEventDisableSystemFence, hipEventReleaseToDevice, …ToSystem
    REQUIRE(out && !(flags & ~(hipEventBlockingSync | hipEventDisableTiming | hipEventInterprocess | fences)),
            hipErrorInvalidValue);
    *out = event_create(device, flags);
    return hipSuccess;
}

#define ENTER_EVENT(name, handle)             \
    ENTER(name);                              \
    Event* event = event_of(handle);          \
    REQUIRE(event, hipErrorInvalidHandle);    \
    if (hipError_t status = fault_of(event_device(event))) return leave(status)

EXPORT hipError_t hipEventDestroy(Handle handle) {
    ENTER(hipEventDestroy);
    Event* event = event_of(handle);
    REQUIRE(event, hipErrorInvalidHandle);
    Device* device = event_device(event);
    event_destroy(event);
    return leave(fault_of(device));
}

EXPORT hipError_t hipEventRecord(Handle handle, Handle stream_handle) {
    ENTER_EVENT(hipEventRecord, handle);
    Stream* stream = stream_of(stream_handle);
    REQUIRE(stream, hipErrorContextIsDestroyed);
    REFUSE_CAPTURE(stream);
    return leave(event_record(event, stream));
}

EXPORT hipError_t hipEventQuery(Handle handle) {
    ENTER_EVENT(hipEventQuery, handle);
    hipError_t status = event_query(event);
    return leave(status ? status : fault_of(event_device(event)));
}

EXPORT hipError_t hipEventSynchronize(Handle handle) {
    ENTER_WAIT(hipEventSynchronize);
    Event* event = event_of(handle);
    REQUIRE(event, hipErrorInvalidHandle);
    event_wait(event);
    return leave(fault_of(event_device(event)) ? fault_of(event_device(event)) : late);
}

EXPORT hipError_t hipEventElapsedTime(float* milliseconds, Handle start, Handle stop) {
    ENTER_EVENT(hipEventElapsedTime, start);
    REQUIRE(milliseconds, hipErrorInvalidValue);
    Event* second = event_of(stop);
    REQUIRE(second, hipErrorInvalidHandle);
    return leave(event_elapsed(event, second, milliseconds));
}
