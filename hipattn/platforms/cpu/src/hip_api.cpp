// HIP's entry points, and nothing but: checks of handles and pointers, then one call of the module that does it.
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "device.h"
#include "errors.h"
#include "event.h"
#include "injection.h"
#include "memory.h"
#include "module.h"
#include "stream.h"
#include "transfer.h"

typedef void* Handle;

static thread_local hipError_t last_error;

static hipError_t leave(hipError_t status) {
    if (status != hipSuccess && status != hipErrorNotReady) last_error = status;
    return status;
}

static hipError_t injected(const char* name) {
    if (!strncmp(name, "hipMalloc", 9) || !strcmp(name, "hipHostMalloc") || !strcmp(name, "hipHostAlloc"))
        return hipErrorOutOfMemory;
    return strcmp(name, "hipModuleLaunchKernel") ? hipErrorUnknown : hipErrorLaunchFailure;
}

static hipError_t enter(Counter* counter) {
    if (stream_forked()) return hipErrorNotInitialized;  // as with HIP, a child process has no runtime
    if (injection_enter(counter)) return injected(counter->name);
    return device_count() ? hipSuccess : hipErrorNoDevice;
}

static hipError_t fault_of(const Device* device) {
    return static_cast<hipError_t>(__atomic_load_n(&device->fault, __ATOMIC_ACQUIRE));
}

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
// A call that waits fails as a real one does, after the wait: nothing touches the caller's memory any more.
#define ENTER_WAIT(name)                          \
    static Counter counter = {#name, 0, nullptr}; \
    hipError_t late = enter(&counter);            \
    if (late != hipSuccess && late != hipErrorUnknown) return leave(late)
#define REQUIRE(condition, error) \
    if (!(condition)) return leave(error)

// ---- errors ----

EXPORT const char* hipGetErrorName(hipError_t code) {
    const char* name = error_name(code);
    return name ? name : "hipErrorUnknown";
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
    const char* sentence = error_sentence(code);
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

// A broken device is the last error of every thread that uses it.
EXPORT hipError_t hipPeekAtLastError() {
    if (device_count() && fault_of(device_current())) return fault_of(device_current());
    return last_error;
}

EXPORT hipError_t hipGetLastError() {
    hipError_t error = hipPeekAtLastError();
    last_error = hipSuccess;
    return error;
}

EXPORT hipError_t hipExtGetLastError() { return hipGetLastError(); }

// ---- devices ----

EXPORT hipError_t hipInit(unsigned flags) {
    ENTER(hipInit);
    return leave(flags ? hipErrorInvalidValue : hipSuccess);
}

static hipError_t version(int* out) {
    REQUIRE(out, hipErrorInvalidValue);
    *out = 70253211;  // HIP 7.2
    return hipSuccess;
}
EXPORT hipError_t hipDriverGetVersion(int* out) {
    ENTER(hipDriverGetVersion);
    return version(out);
}
EXPORT hipError_t hipRuntimeGetVersion(int* out) {
    ENTER(hipRuntimeGetVersion);
    return version(out);
}

EXPORT hipError_t hipGetDeviceCount(int* count) {
    REQUIRE(count, hipErrorInvalidValue);
    *count = 0;
    ENTER(hipGetDeviceCount);
    *count = device_count();
    return hipSuccess;
}

EXPORT hipError_t hipSetDevice(int index) {
    ENTER(hipSetDevice);
    return leave(device_select(index) ? hipSuccess : hipErrorInvalidDevice);
}

EXPORT hipError_t hipGetDevice(int* index) {
    ENTER(hipGetDevice);
    REQUIRE(index, hipErrorInvalidValue);
    *index = device_current()->index;
    return hipSuccess;
}

EXPORT hipError_t hipDeviceGet(int* device, int ordinal) {
    ENTER(hipDeviceGet);
    REQUIRE(device && device_at(ordinal), device ? hipErrorInvalidDevice : hipErrorInvalidValue);
    *device = ordinal;
    return hipSuccess;
}

EXPORT hipError_t hipGetDevicePropertiesR0600(hipDeviceProp_t* properties, int index) {
    ENTER(hipGetDevicePropertiesR0600);
    REQUIRE(properties, hipErrorInvalidValue);
    REQUIRE(device_at(index), hipErrorInvalidDevice);
    device_properties(device_at(index), properties);
    return hipSuccess;
}

EXPORT hipError_t hipDeviceGetAttribute(int* value, hipDeviceAttribute_t attribute, int index) {
    ENTER(hipDeviceGetAttribute);
    REQUIRE(value, hipErrorInvalidValue);
    REQUIRE(device_at(index), hipErrorInvalidDevice);
    return leave(device_attribute(device_at(index), attribute, value) ? hipSuccess : hipErrorInvalidValue);
}

EXPORT hipError_t hipDeviceGetName(char* name, int length, int index) {
    ENTER(hipDeviceGetName);
    REQUIRE(device_at(index), hipErrorInvalidDevice);
    REQUIRE(name && length > 0, hipErrorInvalidValue);
    hipDeviceProp_t p;
    device_properties(device_at(index), &p);
    snprintf(name, static_cast<size_t>(length), "%s", p.name);
    return hipSuccess;
}

EXPORT hipError_t hipDeviceGetUuid(char* uuid, int index) {
    ENTER(hipDeviceGetUuid);
    REQUIRE(device_at(index), hipErrorInvalidDevice);
    REQUIRE(uuid, hipErrorInvalidValue);
    hipDeviceProp_t p;
    device_properties(device_at(index), &p);
    memcpy(uuid, p.uuid, sizeof p.uuid);
    return hipSuccess;
}

EXPORT hipError_t hipDeviceGetPCIBusId(char* id, int length, int index) {
    ENTER(hipDeviceGetPCIBusId);
    REQUIRE(device_at(index), hipErrorInvalidDevice);
    REQUIRE(id && length > 0, hipErrorInvalidValue);
    snprintf(id, static_cast<size_t>(length), "0000:%02x:00.0", index + 1);
    return hipSuccess;
}

EXPORT hipError_t hipDeviceTotalMem(size_t* bytes, int index) {
    ENTER(hipDeviceTotalMem);
    REQUIRE(device_at(index), hipErrorInvalidDevice);
    REQUIRE(bytes, hipErrorInvalidValue);
    *bytes = device_at(index)->memory_bytes;
    return hipSuccess;
}

EXPORT hipError_t hipDeviceComputeCapability(int* major, int* minor, int index) {
    ENTER(hipDeviceComputeCapability);
    REQUIRE(device_at(index), hipErrorInvalidDevice);
    REQUIRE(major && minor, hipErrorInvalidValue);
    hipDeviceProp_t p;
    device_properties(device_at(index), &p);
    *major = p.major;
    *minor = p.minor;
    return hipSuccess;
}

EXPORT hipError_t hipDeviceSynchronize() {
    ENTER_WAIT(hipDeviceSynchronize);
    Device* device = device_current();
    device_wait(device);
    return leave(fault_of(device) ? fault_of(device) : late);
}

EXPORT hipError_t hipDeviceGetStreamPriorityRange(int* least, int* greatest) {
    ENTER(hipDeviceGetStreamPriorityRange);
    if (least) *least = 1;
    if (greatest) *greatest = -1;
    return hipSuccess;
}

EXPORT hipError_t hipDeviceCanAccessPeer(int* can, int index, int peer) {
    ENTER(hipDeviceCanAccessPeer);
    REQUIRE(can, hipErrorInvalidValue);
    REQUIRE(device_at(index) && device_at(peer), hipErrorInvalidDevice);
    *can = 0;
    return hipSuccess;
}

// ---- memory ----

static hipError_t allocate(Device* device, void** out, size_t size, hipMemoryType type, unsigned flags) {
    REQUIRE(out, hipErrorInvalidValue);
    *out = nullptr;
    if (size == 0) return hipSuccess;
    return leave(memory_allocate(device, size, type, flags, out));
}

EXPORT hipError_t hipMalloc(void** out, size_t size) {
    ENTER_DEVICE(hipMalloc);
    return allocate(device, out, size, hipMemoryTypeDevice, 0);
}

EXPORT hipError_t hipMallocAsync(void** out, size_t size, Handle handle) {
    ENTER_STREAM(hipMallocAsync, handle);
    return allocate(stream->device, out, size, hipMemoryTypeDevice, 0);
}

EXPORT hipError_t hipHostMalloc(void** out, size_t size, unsigned flags) {
    ENTER_DEVICE(hipHostMalloc);
    return allocate(device, out, size, hipMemoryTypeHost, flags);
}

EXPORT hipError_t hipHostAlloc(void** out, size_t size, unsigned flags) {
    ENTER_DEVICE(hipHostAlloc);
    return allocate(device, out, size, hipMemoryTypeHost, flags);
}

// What gives something back does so on a broken device too, and then returns the fault.
static hipError_t release(void* pointer, bool host) {
    if (!pointer) return hipSuccess;
    Allocation a;
    REQUIRE(memory_find_base(pointer, &a) && (!host || a.type == hipMemoryTypeHost), hipErrorInvalidValue);
    REQUIRE(memory_mark_leaving(pointer) == hipSuccess, hipErrorInvalidValue);
    device_wait(a.device);
    hipError_t status = memory_release(pointer);
    return leave(fault_of(a.device) ? fault_of(a.device) : status);
}

EXPORT hipError_t hipFree(void* pointer) {
    ENTER(hipFree);
    return release(pointer, false);
}

EXPORT hipError_t hipHostFree(void* pointer) {
    ENTER(hipHostFree);
    return release(pointer, true);
}

EXPORT hipError_t hipFreeHost(void* pointer) {
    ENTER(hipFreeHost);
    return release(pointer, true);
}

struct FreeOperation : Operation {
    void* pointer;
};

EXPORT hipError_t hipFreeAsync(void* pointer, Handle handle) {
    ENTER(hipFreeAsync);
    Stream* stream = stream_of(handle);
    REQUIRE(stream, hipErrorContextIsDestroyed);
    REQUIRE(pointer, hipErrorInvalidValue);
    REQUIRE(memory_mark_leaving(pointer) == hipSuccess, hipErrorInvalidValue);
    auto op = make<FreeOperation>();
    op->pointer = pointer;
    op->always = true;
    op->run = [](Operation* self) { memory_release(static_cast<FreeOperation*>(self)->pointer); };
    stream_submit(stream, op);
    return leave(fault_of(stream->device));
}

EXPORT hipError_t hipMemGetInfo(size_t* free_bytes, size_t* total) {
    ENTER_DEVICE(hipMemGetInfo);
    if (free_bytes) *free_bytes = device->memory_bytes - __atomic_load_n(&device->used_bytes, __ATOMIC_RELAXED);
    if (total) *total = device->memory_bytes;
    return hipSuccess;
}

EXPORT hipError_t hipPointerGetAttributes(hipPointerAttribute_t* out, const void* pointer) {
    ENTER(hipPointerGetAttributes);
    REQUIRE(out && pointer, hipErrorInvalidValue);
    Allocation a;
    if (!memory_find(pointer, &a)) {
        *out = {hipMemoryTypeUnregistered, -2 /* hipInvalidDeviceId */, nullptr, nullptr, 0, 0};
        return hipSuccess;
    }
    void* p = const_cast<void*>(pointer);
    *out = {a.type, a.device->index, p, a.type == hipMemoryTypeHost ? p : nullptr, 0, a.flags};
    return hipSuccess;
}

EXPORT hipError_t hipMemGetAddressRange(void** base, size_t* size, void* pointer) {
    ENTER(hipMemGetAddressRange);
    REQUIRE(base && size, hipErrorInvalidValue);
    Allocation a;
    REQUIRE(memory_find(pointer, &a), hipErrorNotFound);
    *base = a.data;
    *size = a.size;
    return hipSuccess;
}

EXPORT hipError_t hipMemPtrGetInfo(void* pointer, size_t* size) {
    ENTER(hipMemPtrGetInfo);
    REQUIRE(pointer && size, hipErrorInvalidValue);
    Allocation a;
    REQUIRE(memory_find(pointer, &a), hipErrorInvalidValue);
    *size = a.size;
    return hipSuccess;
}

EXPORT hipError_t hipHostGetDevicePointer(void** device_pointer, void* host_pointer, unsigned flags) {
    ENTER(hipHostGetDevicePointer);
    Allocation a;
    REQUIRE(device_pointer && !flags && memory_find(host_pointer, &a), hipErrorInvalidValue);
    *device_pointer = host_pointer;
    return hipSuccess;
}

// ---- memory pools: one a device, whose memory is the device's ----

static Device* pool_of(Handle pool) {
    for (int i = 0; i < device_count(); ++i)
        if (device_at(i) == pool) return device_at(i);
    return nullptr;
}

EXPORT hipError_t hipDeviceGetDefaultMemPool(Handle* pool, int index) {
    ENTER(hipDeviceGetDefaultMemPool);
    REQUIRE(pool, hipErrorInvalidValue);
    REQUIRE(device_at(index), hipErrorInvalidDevice);
    *pool = device_at(index);
    return hipSuccess;
}

EXPORT hipError_t hipDeviceGetMemPool(Handle* pool, int index) {
    ENTER(hipDeviceGetMemPool);
    REQUIRE(pool, hipErrorInvalidValue);
    REQUIRE(device_at(index), hipErrorInvalidDevice);
    *pool = device_at(index);
    return hipSuccess;
}

EXPORT hipError_t hipMemPoolTrimTo(Handle pool, size_t) {
    ENTER(hipMemPoolTrimTo);
    return leave(pool_of(pool) ? hipSuccess : hipErrorInvalidValue);
}

EXPORT hipError_t hipMemPoolSetAttribute(Handle pool, hipMemPoolAttr attribute, void* value) {
    ENTER(hipMemPoolSetAttribute);
    Device* device = pool_of(pool);
    REQUIRE(device && value, hipErrorInvalidValue);
    if (attribute == hipMemPoolAttrReleaseThreshold)
        device->pool_release_threshold = *static_cast<uint64_t*>(value);
    else if (attribute >= hipMemPoolReuseFollowEventDependencies && attribute < hipMemPoolAttrReleaseThreshold)
        device->pool_reuse[attribute] = *static_cast<int*>(value);
    else
        REQUIRE(attribute == hipMemPoolAttrReservedMemHigh || attribute == hipMemPoolAttrUsedMemHigh,
                hipErrorInvalidValue);
    return hipSuccess;
}

EXPORT hipError_t hipMemPoolGetAttribute(Handle pool, hipMemPoolAttr attribute, void* value) {
    ENTER(hipMemPoolGetAttribute);
    Device* device = pool_of(pool);
    REQUIRE(device && value, hipErrorInvalidValue);
    REQUIRE(attribute >= hipMemPoolReuseFollowEventDependencies && attribute <= hipMemPoolAttrUsedMemHigh,
            hipErrorInvalidValue);
    if (attribute < hipMemPoolAttrReleaseThreshold)
        *static_cast<int*>(value) = device->pool_reuse[attribute];
    else
        *static_cast<uint64_t*>(value) = attribute == hipMemPoolAttrReleaseThreshold
                                             ? device->pool_release_threshold
                                             : __atomic_load_n(&device->used_bytes, __ATOMIC_RELAXED);
    return hipSuccess;
}

// ---- copies and fills ----

// The plain forms work on the null stream and wait; the Async forms return once the work is queued.
static hipError_t finish(hipError_t status, Stream* stream, Ticket ticket, bool wait) {
    if (status || !wait || !ticket.stream) return leave(status);
    ticket_wait(ticket);
    return leave(fault_of(stream->device));
}

static hipError_t copy(Stream* stream, const Rows& rows, hipMemcpyKind kind, bool wait) {
    Ticket ticket;
    hipError_t status = transfer_copy(stream, rows, kind, &ticket);
    return finish(status, stream, ticket, wait);
}

static hipError_t fill(Stream* stream, void* to, unsigned value, unsigned bytes, size_t count, bool wait) {
    Ticket ticket;
    hipError_t status = transfer_fill(stream, to, value, bytes, count, &ticket);
    return finish(status, stream, ticket, wait);
}

EXPORT hipError_t hipMemcpy(void* to, const void* from, size_t size, hipMemcpyKind kind) {
    ENTER_STREAM(hipMemcpy, nullptr);
    return copy(stream, {to, size, from, size, size, 1}, kind, true);
}

EXPORT hipError_t hipMemcpyAsync(void* to, const void* from, size_t size, hipMemcpyKind kind, Handle handle) {
    ENTER_STREAM(hipMemcpyAsync, handle);
    return copy(stream, {to, size, from, size, size, 1}, kind, false);
}

EXPORT hipError_t hipMemcpyWithStream(void* to, const void* from, size_t size, hipMemcpyKind kind, Handle handle) {
    ENTER_STREAM(hipMemcpyWithStream, handle);
    return copy(stream, {to, size, from, size, size, 1}, kind, true);
}

#define DIRECTED_COPY(name, kind)                                                          \
    EXPORT hipError_t name(void* to, void* from, size_t size) {                            \
        ENTER_STREAM(name, nullptr);                                                       \
        return copy(stream, {to, size, from, size, size, 1}, kind, true);                  \
    }                                                                                      \
    EXPORT hipError_t name##Async(void* to, void* from, size_t size, Handle handle) {      \
        ENTER_STREAM(name##Async, handle);                                                 \
        return copy(stream, {to, size, from, size, size, 1}, kind, false);                 \
    }
DIRECTED_COPY(hipMemcpyHtoD, hipMemcpyHostToDevice)
DIRECTED_COPY(hipMemcpyDtoH, hipMemcpyDeviceToHost)
DIRECTED_COPY(hipMemcpyDtoD, hipMemcpyDeviceToDevice)

EXPORT hipError_t hipMemcpyPeer(void* to, int to_device, const void* from, int from_device, size_t size) {
    ENTER_STREAM(hipMemcpyPeer, nullptr);
    REQUIRE(device_at(to_device) && device_at(from_device), hipErrorInvalidDevice);
    return copy(stream, {to, size, from, size, size, 1}, hipMemcpyDefault, true);
}

EXPORT hipError_t hipMemcpyPeerAsync(void* to, int to_device, const void* from, int from_device, size_t size,
                                     Handle handle) {
    ENTER_STREAM(hipMemcpyPeerAsync, handle);
    REQUIRE(device_at(to_device) && device_at(from_device), hipErrorInvalidDevice);
    return copy(stream, {to, size, from, size, size, 1}, hipMemcpyDefault, false);
}

EXPORT hipError_t hipMemcpy2D(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                              size_t height, hipMemcpyKind kind) {
    ENTER_STREAM(hipMemcpy2D, nullptr);
    return copy(stream, {to, to_pitch, from, from_pitch, width, height}, kind, true);
}

EXPORT hipError_t hipMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                                   size_t height, hipMemcpyKind kind, Handle handle) {
    ENTER_STREAM(hipMemcpy2DAsync, handle);
    return copy(stream, {to, to_pitch, from, from_pitch, width, height}, kind, false);
}

#define FILL(name, type, bytes)                                                                \
    EXPORT hipError_t name(void* to, type value, size_t count) {                               \
        ENTER_STREAM(name, nullptr);                                                           \
        return fill(stream, to, static_cast<unsigned>(value), bytes, count, true);             \
    }                                                                                          \
    EXPORT hipError_t name##Async(void* to, type value, size_t count, Handle handle) {         \
        ENTER_STREAM(name##Async, handle);                                                     \
        return fill(stream, to, static_cast<unsigned>(value), bytes, count, false);            \
    }
FILL(hipMemset, int, 1)
FILL(hipMemsetD8, unsigned char, 1)
FILL(hipMemsetD16, unsigned short, 2)
FILL(hipMemsetD32, int, 4)

// ---- streams ----

static hipError_t create_stream(Device* device, Handle* out, unsigned flags, int priority) {
    REQUIRE(out, hipErrorInvalidValue);
    REQUIRE(flags == hipStreamDefault || flags == hipStreamNonBlocking, hipErrorInvalidValue);
    *out = stream_create(device, flags, priority < -1 ? -1 : priority > 1 ? 1 : priority);
    return hipSuccess;
}

EXPORT hipError_t hipStreamCreate(Handle* out) {
    ENTER_DEVICE(hipStreamCreate);
    return create_stream(device, out, hipStreamDefault, 0);
}

EXPORT hipError_t hipStreamCreateWithFlags(Handle* out, unsigned flags) {
    ENTER_DEVICE(hipStreamCreateWithFlags);
    return create_stream(device, out, flags, 0);
}

EXPORT hipError_t hipStreamCreateWithPriority(Handle* out, unsigned flags, int priority) {
    ENTER_DEVICE(hipStreamCreateWithPriority);
    return create_stream(device, out, flags, priority);
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
    stream_wait(stream);
    return leave(fault_of(stream->device) ? fault_of(stream->device) : late);
}

EXPORT hipError_t hipStreamQuery(Handle handle) {
    ENTER_STREAM(hipStreamQuery, handle);
    if (!stream_idle(stream)) return hipErrorNotReady;
    return leave(fault_of(stream->device));
}

EXPORT hipError_t hipStreamWaitEvent(Handle handle, Handle event_handle, unsigned flags) {
    ENTER_STREAM(hipStreamWaitEvent, handle);
    Event* event = event_of(event_handle);
    REQUIRE(event, hipErrorInvalidHandle);
    REQUIRE(flags <= 1, hipErrorInvalidValue);
    event_order(event, stream);
    return hipSuccess;
}

EXPORT hipError_t hipStreamGetFlags(Handle handle, unsigned* flags) {
    ENTER_STREAM(hipStreamGetFlags, handle);
    REQUIRE(flags, hipErrorInvalidValue);
    *flags = stream->flags;
    return hipSuccess;
}

EXPORT hipError_t hipStreamGetPriority(Handle handle, int* priority) {
    ENTER_STREAM(hipStreamGetPriority, handle);
    REQUIRE(priority, hipErrorInvalidValue);
    *priority = stream->priority;
    return hipSuccess;
}

EXPORT hipError_t hipStreamGetDevice(Handle handle, int* index) {
    ENTER_STREAM(hipStreamGetDevice, handle);
    REQUIRE(index, hipErrorInvalidValue);
    *index = stream->device->index;
    return hipSuccess;
}

EXPORT hipError_t hipStreamIsCapturing(Handle handle, int* status_out) {
    ENTER_STREAM(hipStreamIsCapturing, handle);
    REQUIRE(status_out, hipErrorInvalidValue);
    *status_out = 0;  // hipStreamCaptureStatusNone
    return hipSuccess;
}

EXPORT hipError_t hipStreamBeginCapture(Handle handle, int) {
    ENTER_STREAM(hipStreamBeginCapture, handle);
    return leave(hipErrorNotSupported);
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

EXPORT hipError_t hipStreamAddCallback(Handle handle, void (*callback)(Handle, hipError_t, void*), void* data,
                                       unsigned flags) {
    ENTER_STREAM(hipStreamAddCallback, handle);
    REQUIRE(callback && !flags, hipErrorInvalidValue);
    HostOperation op = {};
    op.callback = callback;
    op.handle = handle;
    op.data = data;
    op.always = true;
    return submit_host(stream, op);
}

// ---- events ----

static hipError_t create_event(Device* device, Handle* out, unsigned flags) {
    REQUIRE(out, hipErrorInvalidValue);
    *out = event_create(device, flags);
    return hipSuccess;
}

EXPORT hipError_t hipEventCreate(Handle* out) {
    ENTER_DEVICE(hipEventCreate);
    return create_event(device, out, 0);
}

EXPORT hipError_t hipEventCreateWithFlags(Handle* out, unsigned flags) {
    ENTER_DEVICE(hipEventCreateWithFlags);
    unsigned fences = 0xE0000000;  // hipEventDisableSystemFence, hipEventReleaseToDevice, …ToSystem
    REQUIRE(!(flags & ~(hipEventBlockingSync | hipEventDisableTiming | hipEventInterprocess | fences)),
            hipErrorInvalidValue);
    return create_event(device, out, flags);
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
    return leave(event_record(event, stream));
}

EXPORT hipError_t hipEventRecordWithFlags(Handle handle, Handle stream_handle, unsigned flags) {
    ENTER_EVENT(hipEventRecordWithFlags, handle);
    Stream* stream = stream_of(stream_handle);
    REQUIRE(stream, hipErrorContextIsDestroyed);
    REQUIRE(flags <= 1, hipErrorInvalidValue);
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

// ---- modules ----

static hipError_t load(Device* device, Handle* out, const void* image) {
    REQUIRE(out && image, hipErrorInvalidValue);
    *out = nullptr;
    Module* m = nullptr;
    hipError_t status = module_load(device, image, &m);
    *out = m;
    return leave(status);
}

EXPORT hipError_t hipModuleLoadData(Handle* out, const void* image) {
    ENTER_DEVICE(hipModuleLoadData);
    return load(device, out, image);
}

EXPORT hipError_t hipModuleLoadDataEx(Handle* out, const void* image, unsigned, void*, void**) {
    ENTER_DEVICE(hipModuleLoadDataEx);
    return load(device, out, image);
}

EXPORT hipError_t hipModuleLoad(Handle* out, const char* path) {
    ENTER_DEVICE(hipModuleLoad);
    REQUIRE(out && path, hipErrorInvalidValue);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    REQUIRE(file >= 0, hipErrorFileNotFound);
    struct stat info;
    void* image = fstat(file, &info) == 0 && info.st_size > 0
                      ? mmap(nullptr, static_cast<size_t>(info.st_size), PROT_READ, MAP_PRIVATE, file, 0)
                      : MAP_FAILED;
    close(file);
    REQUIRE(image != MAP_FAILED, hipErrorInvalidImage);
    hipError_t status = load(device, out, image);
    munmap(image, static_cast<size_t>(info.st_size));
    return status;
}

EXPORT hipError_t hipModuleUnload(Handle handle) {
    ENTER(hipModuleUnload);
    Module* m = module_of(handle);
    REQUIRE(m, hipErrorInvalidHandle);
    Device* device = m->device;
    device_wait(device);
    module_unload(m);
    return leave(fault_of(device));
}

EXPORT hipError_t hipModuleGetFunction(Handle* out, Handle handle, const char* name) {
    ENTER(hipModuleGetFunction);
    REQUIRE(out && name, hipErrorInvalidValue);
    Module* m = module_of(handle);
    REQUIRE(m, hipErrorInvalidHandle);
    if (hipError_t status = fault_of(m->device)) return leave(status);
    Function* f = nullptr;
    hipError_t status = module_function(m, name, &f);
    *out = f;
    return leave(status);
}

EXPORT hipError_t hipModuleGetFunctionCount(unsigned* count, Handle handle) {
    ENTER(hipModuleGetFunctionCount);
    Module* m = module_of(handle);
    REQUIRE(count && m, m ? hipErrorInvalidValue : hipErrorInvalidHandle);
    *count = m->table->kernel_count;
    return hipSuccess;
}

EXPORT hipError_t hipFuncGetAttribute(int* value, hipFunction_attribute attribute, Handle handle) {
    ENTER(hipFuncGetAttribute);
    REQUIRE(value, hipErrorInvalidValue);
    Function* f = function_of(handle);
    REQUIRE(f, hipErrorInvalidHandle);
    switch (attribute) {
        case HIP_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = static_cast<int>(f->kernel->max_threads); break;
        case HIP_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES: *value = static_cast<int>(f->static_lds); break;
        case HIP_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
            *value = static_cast<int>(function_dynamic_lds_limit(f));
            break;
        case HIP_FUNC_ATTRIBUTE_CONST_SIZE_BYTES:
        case HIP_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES:
        case HIP_FUNC_ATTRIBUTE_NUM_REGS:
        case HIP_FUNC_ATTRIBUTE_CACHE_MODE_CA:
        case HIP_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT: *value = 0; break;
        case HIP_FUNC_ATTRIBUTE_PTX_VERSION:
        case HIP_FUNC_ATTRIBUTE_BINARY_VERSION: {
            hipDeviceProp_t p;
            device_properties(f->module->device, &p);
            *value = p.major * 10 + p.minor;
            break;
        }
        default: return leave(hipErrorInvalidValue);
    }
    return hipSuccess;
}

EXPORT hipError_t hipFuncSetAttribute(const void* handle, hipFuncAttribute attribute, int value) {
    ENTER(hipFuncSetAttribute);
    Function* f = function_of(const_cast<void*>(handle));
    REQUIRE(f, hipErrorInvalidDeviceFunction);
    bool good = attribute == hipFuncAttributeMaxDynamicSharedMemorySize
                    ? value >= 0 && static_cast<size_t>(value) <= function_dynamic_lds_limit(f)
                    : attribute == hipFuncAttributePreferredSharedMemoryCarveout && value >= -1 && value <= 100;
    return leave(good ? hipSuccess : hipErrorInvalidValue);
}

EXPORT hipError_t hipModuleOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Handle handle, int block_size,
                                                                      size_t dynamic_lds) {
    ENTER(hipModuleOccupancyMaxActiveBlocksPerMultiprocessor);
    Function* f = function_of(handle);
    REQUIRE(blocks && block_size > 0, hipErrorInvalidValue);
    REQUIRE(f, hipErrorInvalidHandle);
    *blocks = function_blocks_per_cu(f, block_size, dynamic_lds);
    return hipSuccess;
}

EXPORT hipError_t hipModuleLaunchKernel(Handle function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                                        unsigned block_x, unsigned block_y, unsigned block_z, unsigned dynamic_lds,
                                        Handle handle, void** parameters, void** extra) {
    ENTER_STREAM(hipModuleLaunchKernel, handle);
    Function* f = function_of(function);
    REQUIRE(f, hipErrorInvalidImage);
    return leave(function_launch(f, {grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, dynamic_lds, stream,
                                 parameters, extra));
}

// ---- for tests and for the platform's other libraries ----

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

EXPORT int sim_should_fail(const char* name) { return injection_enter(name); }

EXPORT void sim_report_fault(Handle handle, int code, const char* message) {
    if (Stream* stream = stream_of(handle)) device_fault(stream->device, static_cast<hipError_t>(code), "%s", message);
}
