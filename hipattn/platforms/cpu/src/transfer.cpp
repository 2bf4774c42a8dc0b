#include "transfer.h"

#include "fault.h"
#include "memory.h"

struct CopyOperation : Operation {
    Rows rows;
};

struct FillOperation : Operation {
    void* to;
    unsigned pattern;
    size_t size;
};

static size_t extent(size_t pitch, size_t width, size_t height) { return (height - 1) * pitch + width; }

static bool known_and_too_short(const void* p, size_t size) {
    Allocation a;
    return memory_find(p, &a) && size > a.size - static_cast<size_t>(static_cast<const char*>(p) - a.data);
}

static bool range_or_fault(Device* device, const char* what, const void* p, size_t size) {
    char why[256];
    if (memory_range_ok(p, size, why, sizeof why)) return true;
    device_fault(device, hipErrorIllegalAddress, "%s of %zu bytes at %p reaches memory %s", what, size, p, why);
    return false;
}

// Runs the body; memory that is not there is a fault of the device (host memory that the caller has given back).
template <class Body>
static void touch(Device* device, const char* what, Body body) {
    Guard guard;
    if (guarded(guard, body)) return;
    char why[384];
    describe_trap(guard.trap, why, sizeof why);
    device_fault(device, hipErrorIllegalAddress, "%s %s", what, why);
}

static void run_copy(Operation* self) {
    Rows& r = static_cast<CopyOperation*>(self)->rows;
    Device* device = self->stream->device;
    if (!range_or_fault(device, "a copy's source", r.from, extent(r.from_pitch, r.width, r.height)) ||
        !range_or_fault(device, "a copy's destination", r.to, extent(r.to_pitch, r.width, r.height)))
        return;
    touch(device, "a copy", [&r] {
        for (size_t i = 0; i < r.height; ++i)
            memmove(static_cast<char*>(r.to) + i * r.to_pitch, static_cast<const char*>(r.from) + i * r.from_pitch,
                    r.width);
    });
}

hipError_t transfer_copy(Stream* stream, const Rows& r, hipMemcpyKind kind, Ticket* ticket) {
    *ticket = {};
    if (r.width == 0 || r.height == 0) return hipSuccess;
    if (!r.to || !r.from) return hipErrorInvalidValue;
    if (kind < hipMemcpyHostToHost || kind > hipMemcpyDefault) return hipErrorInvalidMemcpyDirection;
    if (r.height > 1 && (r.width > r.to_pitch || r.width > r.from_pitch)) return hipErrorInvalidPitchValue;
    if (known_and_too_short(r.to, extent(r.to_pitch, r.width, r.height)) ||
        known_and_too_short(r.from, extent(r.from_pitch, r.width, r.height)))
        return hipErrorInvalidValue;
    auto op = make<CopyOperation>();
    op->rows = r;
    op->run = run_copy;
    *ticket = stream_submit(stream, op);
    return hipSuccess;
}

static void run_fill(Operation* self) {
    auto op = static_cast<FillOperation*>(self);
    Device* device = self->stream->device;
    if (!range_or_fault(device, "a memset", op->to, op->size)) return;
    touch(device, "a memset", [op] {
        constexpr size_t WORD = sizeof op->pattern;
        for (size_t at = 0; at < op->size; at += WORD)
            memcpy(static_cast<char*>(op->to) + at, &op->pattern, op->size - at < WORD ? op->size - at : WORD);
    });
}

hipError_t transfer_fill(Stream* stream, void* to, unsigned pattern, size_t size) {
    if (size == 0) return hipSuccess;
    Allocation a;
    if (!to || !memory_find(to, &a) || known_and_too_short(to, size)) return hipErrorInvalidValue;
    auto op = make<FillOperation>();
    op->to = to;
    op->pattern = pattern;
    op->size = size;
    op->run = run_fill;
    stream_submit(stream, op);
    return hipSuccess;
}
