// Copies and fills as stream operations. Their ranges are checked twice: when they are asked for, as HIP does, and
// when they run, where a range that is gone is a fault of the device.
#pragma once

#include "stream.h"

struct Rows {  // `height` rows of `width` bytes; a plain copy has one
    void* to;
    size_t to_pitch;
    const void* from;
    size_t from_pitch;
    size_t width, height;
};

hipError_t transfer_copy(Stream*, const Rows&, hipMemcpyKind, Ticket* ticket);
hipError_t transfer_fill(Stream*, void* to, unsigned pattern, size_t size);  // of words; the last may be cut
