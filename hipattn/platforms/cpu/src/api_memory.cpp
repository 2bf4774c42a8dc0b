// HIP's entry points for memory: allocation, queries, copies and fills.
#include "api.h"
#include "memory.h"
#include "transfer.h"

static hipError_t allocate(Device* device, void** out, size_t size) {
    REQUIRE(out, hipErrorInvalidValue);
    *out = nullptr;
    return size ? leave(memory_allocate(device, size, out)) : hipSuccess;
}

EXPORT hipError_t hipMalloc(void** out, size_t size) {
    ENTER_DEVICE(hipMalloc);
    return allocate(device, out, size);
}

EXPORT hipError_t hipMallocAsync(void** out, size_t size, Handle handle) {
    ENTER_STREAM(hipMallocAsync, handle);
    REFUSE_CAPTURE(stream);
    return allocate(stream->device, out, size);
}

// What gives something back does so on a broken device too, and then returns the fault.
EXPORT hipError_t hipFree(void* pointer) {
    ENTER(hipFree);
    if (!pointer) return hipSuccess;
    Allocation a;
    REQUIRE(memory_find(pointer, &a) && memory_mark_leaving(pointer) == hipSuccess, hipErrorInvalidValue);
    device_wait(a.device);
    hipError_t status = memory_release(pointer);
    return leave(fault_of(a.device) ? fault_of(a.device) : status);
}

struct FreeOperation : Operation {
    void* pointer;
};

EXPORT hipError_t hipFreeAsync(void* pointer, Handle handle) {
    ENTER(hipFreeAsync);
    Stream* stream = stream_of(handle);
    REQUIRE(stream, hipErrorContextIsDestroyed);
    REQUIRE(pointer, hipErrorInvalidValue);
    REFUSE_CAPTURE(stream);
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
    *out = {hipMemoryTypeUnregistered, -2 /* hipInvalidDeviceId */, nullptr, nullptr, 0, 0};
    if (memory_find(pointer, &a))
        *out = {hipMemoryTypeDevice, a.device->index, const_cast<void*>(pointer), nullptr, 0, 0};
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
EXPORT_AS(sim_address_range, hipMemGetAddressRange);

// A device has one memory pool, which keeps nothing that is freed: there is nothing to trim, and no threshold.

static bool is_pool(Handle pool) {
    for (int i = 0; i < device_count(); ++i)
        if (device_at(i) == pool) return true;
    return false;
}

EXPORT hipError_t hipDeviceGetDefaultMemPool(Handle* pool, int index) {
    ENTER(hipDeviceGetDefaultMemPool);
    REQUIRE(pool, hipErrorInvalidValue);
    REQUIRE(device_at(index), hipErrorInvalidDevice);
    *pool = device_at(index);
    return hipSuccess;
}

EXPORT hipError_t hipMemPoolTrimTo(Handle pool, size_t) {
    ENTER(hipMemPoolTrimTo);
    return leave(is_pool(pool) ? hipSuccess : hipErrorInvalidValue);
}

EXPORT hipError_t hipMemPoolSetAttribute(Handle pool, hipMemPoolAttr attribute, void* value) {
    ENTER(hipMemPoolSetAttribute);
    return leave(is_pool(pool) && value && attribute == hipMemPoolAttrReleaseThreshold ? hipSuccess
                                                                                     : hipErrorInvalidValue);
}

EXPORT hipError_t hipMemcpy(void* to, const void* from, size_t size, hipMemcpyKind kind) {
    ENTER_STREAM(hipMemcpy, nullptr);
    Ticket ticket;
    if (hipError_t status = transfer_copy(stream, {to, size, from, size, size, 1}, kind, &ticket)) return leave(status);
    ticket_wait(ticket);
    return leave(fault_of(stream->device));
}

EXPORT hipError_t hipMemcpyAsync(void* to, const void* from, size_t size, hipMemcpyKind kind, Handle handle) {
    ENTER_STREAM(hipMemcpyAsync, handle);
    Ticket ticket;
    return leave(transfer_copy(stream, {to, size, from, size, size, 1}, kind, &ticket));
}

EXPORT hipError_t hipMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                                   size_t height, hipMemcpyKind kind, Handle handle) {
    ENTER_STREAM(hipMemcpy2DAsync, handle);
    Ticket ticket;
    return leave(transfer_copy(stream, {to, to_pitch, from, from_pitch, width, height}, kind, &ticket));
}

EXPORT hipError_t hipMemsetAsync(void* to, int value, size_t size, Handle handle) {
    ENTER_STREAM(hipMemsetAsync, handle);
    return leave(transfer_fill(stream, to, (value & 0xFF) * 0x01010101u, size));
}

EXPORT hipError_t hipMemsetD32Async(void* to, int value, size_t count, Handle handle) {
    ENTER_STREAM(hipMemsetD32Async, handle);
    return leave(transfer_fill(stream, to, static_cast<unsigned>(value), count * sizeof value));
}
