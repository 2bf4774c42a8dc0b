// The allocation table. Every allocation is a mapping of its own that ends at a guard; what is freed becomes
// inaccessible and its addresses stay out of use for a while.
#pragma once

#include "device.h"

struct Allocation {
    char* map;
    size_t map_size;
    char* data;
    size_t size;
    Device* device;
    enum State { live, leaving, freed } state;  // leaving: hipFreeAsync is in a stream
};

hipError_t memory_allocate(Device*, size_t size, void** out);

// Finds the allocation that holds the pointer, and copies its record.
bool memory_find(const void* pointer, Allocation* out);

// Takes the allocation out of use. The caller has waited for the work on it. A damaged surrounding is a fault of
// the device.
hipError_t memory_release(void* base);
// Marks it for a later release, so that a second free is an error at once.
hipError_t memory_mark_leaving(void* base);

// Whether size bytes at the pointer may be touched: inside one allocation, or not device memory at all.
// Otherwise says why.
bool memory_range_ok(const void* pointer, size_t size, char* why, size_t why_size);

// Where an address lies relative to the nearest allocation.
void memory_describe(const void* address, char* text, size_t size);

size_t memory_live_bytes();
size_t memory_live_count();
